use http::{
    HeaderMap,
    header::{self, HeaderName},
};

use crate::rpc::{GRPC_MESSAGE, GRPC_STATUS, GRPC_STATUS_DETAILS};

/// Headers that describe the content that the refusal replaces, or its transfer.
const OF_CONTENT: [HeaderName; 25] = [
    header::ACCEPT_RANGES,
    header::AGE,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::RETRY_AFTER,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("grpc-encoding"),
    GRPC_MESSAGE,
    GRPC_STATUS,
    GRPC_STATUS_DETAILS,
    HeaderName::from_static("repr-digest"),
];

/// Keeps the headers that inner layers have set: cookies, request ids, CORS.
pub(crate) fn carry_over(inner: HeaderMap, refusal: &mut HeaderMap) {
    let mut last = None;
    for (name, value) in inner {
        last = name.or(last);
        if let Some(name) = &last
            && !OF_CONTENT.contains(name)
        {
            refusal.append(name, value);
        }
    }
}
