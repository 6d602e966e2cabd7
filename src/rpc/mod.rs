//! Remote procedure calls over HTTP: gRPC, gRPC-Web and Connect. None of this depends on a framework.

mod tail;
mod web;

use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_TYPE, HeaderName},
};

use crate::protocol::Protocol;

/// The protocol of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rpc {
    /// Its outcome is in the trailers.
    Grpc,
    /// The trailers are the last frame of the content.
    GrpcWeb,
    /// The same, and the content is Base64.
    GrpcWebText,
    /// One message each way; the outcome is the status.
    ConnectUnary,
    /// The outcome is the last message of the content.
    ConnectStream,
}

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const GRPC_STATUS_DETAILS: HeaderName =
    HeaderName::from_static("grpc-status-details-bin");

/// Distinguishes a unary Connect call from any other POST (Connect protocol, "Unary-Request").
const CONNECT_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");

impl Rpc {
    /// The protocol of a call and the content type that names it. None if the request is not a call.
    #[inline]
    pub(crate) fn of<'a>(
        method: &Method,
        headers: &'a HeaderMap,
    ) -> Option<(Self, &'a HeaderValue)> {
        // Calls are POST. Other requests are not examined further.
        if *method != Method::POST {
            return None;
        }
        Self::of_post(headers)
    }

    fn of_post(headers: &HeaderMap) -> Option<(Self, &HeaderValue)> {
        let content_type = headers.get(CONTENT_TYPE)?;
        let unary = || {
            headers
                .contains_key(CONNECT_VERSION)
                .then_some(Self::ConnectUnary)
        };
        let rpc = Self::by(content_type.as_bytes()).or_else(unary)?;
        Some((rpc, content_type))
    }

    /// Where the answer has its outcome.
    pub(crate) fn protocol(self) -> &'static dyn Protocol {
        match self {
            Self::Grpc => &Self::Grpc,
            Self::GrpcWeb => &Self::GrpcWeb,
            Self::GrpcWebText => &Self::GrpcWebText,
            Self::ConnectUnary => &Self::ConnectUnary,
            Self::ConnectStream => &Self::ConnectStream,
        }
    }

    /// The protocol of an answer, by its head.
    fn of_answer(headers: &HeaderMap) -> Option<Self> {
        Self::by(headers.get(CONTENT_TYPE)?.as_bytes())
    }

    fn by(content_type: &[u8]) -> Option<Self> {
        // The content type of most calls and answers.
        if content_type == b"application/grpc" {
            return Some(Self::Grpc);
        }
        let (application, subtype) = content_type.split_at_checked("application/".len())?;
        if !application.eq_ignore_ascii_case(b"application/") {
            return None;
        }
        // Neither the message encoding (`+proto`) nor parameters matter.
        let end = subtype
            .iter()
            .position(|byte| matches!(byte, b'+' | b';' | b' ' | b'\t'));
        let (carrier, rest) = subtype.split_at(end.unwrap_or(subtype.len()));
        let is = |name: &str| carrier.eq_ignore_ascii_case(name.as_bytes());
        if is("grpc") {
            Some(Self::Grpc)
        } else if is("grpc-web") {
            Some(Self::GrpcWeb)
        } else if is("grpc-web-text") {
            Some(Self::GrpcWebText)
        } else if is("connect") && rest.starts_with(b"+") {
            Some(Self::ConnectStream)
        } else {
            None
        }
    }
}

/// Whether a call succeeded, by the head or the trailers of a gRPC answer. None if they have no status.
fn is_ok(headers: &HeaderMap) -> Option<bool> {
    headers.get(GRPC_STATUS).map(|status| status == "0")
}

/// The trailers of a refusal: the headers of a Trailers-Only answer.
fn trailers(mut headers: HeaderMap) -> Option<HeaderMap> {
    headers.remove(CONTENT_TYPE);
    headers.contains_key(GRPC_STATUS).then_some(headers)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(content_type: &str) -> Option<Rpc> {
        let request = Request::post("/").header(CONTENT_TYPE, content_type);
        let request = request.body(()).unwrap();
        rpc_of(&request)
    }

    fn rpc_of(request: &Request<()>) -> Option<Rpc> {
        Rpc::of(request.method(), request.headers()).map(|(rpc, _)| rpc)
    }

    #[test]
    fn the_content_type_tells_how_a_call_is_carried() {
        for (content_type, rpc) in [
            ("application/grpc", Some(Rpc::Grpc)),
            ("application/grpc+proto", Some(Rpc::Grpc)),
            ("Application/gRPC+json; charset=utf-8", Some(Rpc::Grpc)),
            ("application/grpc;x=1", Some(Rpc::Grpc)),
            ("application/grpc-web", Some(Rpc::GrpcWeb)),
            ("application/grpc-web+proto", Some(Rpc::GrpcWeb)),
            ("application/grpc-web-text", Some(Rpc::GrpcWebText)),
            ("application/grpc-web-text+proto", Some(Rpc::GrpcWebText)),
            ("application/connect+json", Some(Rpc::ConnectStream)),
            ("application/connect+proto", Some(Rpc::ConnectStream)),
            ("application/connect", None),
            ("application/grpcx", None),
            ("application/grpc-websocket", None),
            ("application/json", None),
            ("application/", None),
            ("text/grpc", None),
            ("grpc", None),
            ("", None),
        ] {
            assert_eq!(of(content_type), rpc, "{content_type:?}");
        }
    }

    #[test]
    fn only_a_post_is_a_call() {
        let request = Request::put("/").header(CONTENT_TYPE, "application/grpc");
        let request = request.body(()).unwrap();
        assert_eq!(rpc_of(&request), None);
        assert_eq!(Rpc::of(&Method::POST, &HeaderMap::new()), None);
    }

    #[test]
    fn a_unary_connect_call_names_its_protocol() {
        let request = Request::post("/")
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECT_VERSION, "1")
            .body(())
            .unwrap();
        assert_eq!(rpc_of(&request), Some(Rpc::ConnectUnary));
    }
}
