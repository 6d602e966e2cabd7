//! What the inner service's answer comes to.

use std::error::Error;

use http::{
    Extensions, HeaderMap, Response, StatusCode,
    header::{self, HeaderName},
};

use crate::{
    cause::Fault,
    fault::{self, Source},
    refusal::{Asked, Refusal},
    refused::Refused,
    rpc::{self, GRPC_MESSAGE, GRPC_STATUS, GRPC_STATUS_DETAILS},
    settings::Settings,
};

/// The refusal behind a service's error.
pub(super) fn of_error<E: 'static, Q>(settings: &Settings<Q>, error: &E) -> Option<Refusal> {
    let fault = settings.http.classifier.classify_any(error)?;
    Some(fault.into())
}

/// The refusal behind an answer, if it is one that the guard has not made.
pub(super) fn of_response<R, Q>(settings: &Settings<Q>, response: &Response<R>) -> Option<Refusal> {
    let is_507 = response.status() == StatusCode::INSUFFICIENT_STORAGE;
    if response.extensions().is_empty() && !is_507 {
        return None;
    }
    // Each of its parts has a status of its own (RFC 4918, section 13). One refusal for all of them would deny
    // those that were carried out.
    if response.status() == StatusCode::MULTI_STATUS {
        return None;
    }
    let extensions = response.extensions();
    if extensions.get::<Refusal>().is_some() {
        return None;
    }
    if let Some(fault) = extensions.get::<Fault>() {
        return Some((*fault).into());
    }
    if let Some(error) = error_behind(extensions) {
        if let Some(refused) = fault::find::<Refused>(error) {
            return Some(refused.clone().into());
        }
        if let Some(fault) = settings.http.classifier.classify(error) {
            return Some(fault.into());
        }
    }
    // Nobody says why. A full disk is what it means most often.
    is_507.then(|| Fault::DISK_FULL.into())
}

/// The error that a handler has left in its answer.
fn error_behind(extensions: &Extensions) -> Option<&(dyn Error + 'static)> {
    let source = extensions.get::<Source>().map(Source::error);
    #[cfg(feature = "tonic")]
    let source = source.or_else(|| {
        let status = extensions.get::<tonic::Status>()?;
        Some(status as _)
    });
    source
}

/// Whether a request was carried out that is answered so. Of a call it says no more than that nothing has failed
/// yet.
#[inline]
pub(super) fn success<R, Q>(
    settings: &Settings<Q>,
    asked: &Asked,
    response: Response<R>,
) -> (Response<R>, bool) {
    // A guard inside has refused it, in a dialect that says so in its own way. Or a call has ended with its head:
    // as in the trailers, nobody asks what HTTP's status is then.
    let is_refused = response.extensions().get::<Refusal>().is_some();
    if is_refused || asked.rpc().is_some() && rpc::is_ok(response.headers()) == Some(false) {
        return (response, false);
    }
    let Some(judge) = &settings.http.success else {
        let status = response.status();
        let success = status.is_success() || status == StatusCode::SEE_OTHER;
        return (response, success);
    };
    let (head, body) = response.into_parts();
    let success = judge(&head);
    (Response::from_parts(head, body), success)
}

/// What describes the content that the refusal takes the place of, or how it is sent.
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

/// Keeps what other layers inside have said: cookies, request ids, CORS.
pub(super) fn carry_over(inner: HeaderMap, refusal: &mut HeaderMap) {
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
