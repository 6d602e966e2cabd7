//! Remote procedure calls over HTTP: gRPC, gRPC-Web and Connect. None of this needs a framework.

use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_TYPE, HeaderName},
};

use crate::config::ConfigError;

/// How a call is carried.
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

/// Tells a Connect call of one message from any other POST (Connect protocol, "Unary-Request").
const CONNECT_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");

impl Rpc {
    /// How it is carried and the content type that says so. None where the request is no call.
    pub(crate) fn of<'a>(
        method: &Method,
        headers: &'a HeaderMap,
    ) -> Option<(Self, &'a HeaderValue)> {
        // Calls are POST. Other requests pay nothing for this.
        if *method != Method::POST {
            return None;
        }
        let content_type = headers.get(CONTENT_TYPE)?;
        let unary = || {
            headers
                .contains_key(CONNECT_VERSION)
                .then_some(Self::ConnectUnary)
        };
        let rpc = Self::by(content_type.as_bytes()).or_else(unary)?;
        Some((rpc, content_type))
    }

    /// How an answer is carried, by its head.
    pub(crate) fn of_answer(headers: &HeaderMap) -> Option<Self> {
        Self::by(headers.get(CONTENT_TYPE)?.as_bytes())
    }

    fn by(content_type: &[u8]) -> Option<Self> {
        // As most calls and their answers have it.
        if content_type == b"application/grpc" {
            return Some(Self::Grpc);
        }
        let (application, subtype) = content_type.split_at_checked("application/".len())?;
        if !application.eq_ignore_ascii_case(b"application/") {
            return None;
        }
        // Neither the encoding of messages (`+proto`) nor parameters matter.
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

/// Whether a call went well, as the head or the trailers of a gRPC answer say. None where they say nothing.
pub(crate) fn is_ok(headers: &HeaderMap) -> Option<bool> {
    headers.get(GRPC_STATUS).map(|status| status == "0")
}

/// The calls that are guarded: a service, and one of its methods or all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Vec<(Box<str>, Option<Box<str>>)>);

impl Calls {
    pub(crate) fn name(&mut self, name: &str) -> Result<(), ConfigError> {
        let plain = name.strip_prefix('/').unwrap_or(name);
        let (service, method) = match plain.split_once('/') {
            Some((service, method)) => (service, Some(method)),
            None => (plain, None),
        };
        if !service.split('.').all(is_identifier) || method.is_some_and(|name| !is_identifier(name))
        {
            return Err(ConfigError::Call(name.to_owned()));
        }
        self.0.push((service.into(), method.map(Into::into)));
        Ok(())
    }

    /// Whether a call of this path is guarded. None where it is a request as any other: whoever sends it
    /// chooses its content type, and could choose not to be guarded.
    pub(crate) fn guard(&self, path: &str) -> Option<bool> {
        // Nobody has said that there are calls at all.
        if self.0.is_empty() {
            return None;
        }
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        if !is_identifier(method) {
            return None;
        }
        let mut is_known = service.contains('.') && service.split('.').all(is_identifier);
        for (named, methods) in &self.0 {
            if **named == *service {
                match methods {
                    None => return Some(true),
                    Some(named) if **named == *method => return Some(true),
                    Some(_) => is_known = true,
                }
            }
        }
        is_known.then_some(false)
    }
}

/// As the language of protos has them.
fn is_identifier(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(is_word) && !name.is_empty() && !name.as_bytes()[0].is_ascii_digit()
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

    #[test]
    fn calls_are_named_by_service_or_method() {
        let mut calls = Calls::default();
        calls.name("upload.v1.Uploads/Put").unwrap();
        calls.name("/Plain").unwrap();
        calls.name("Mixed/Write").unwrap();
        for (path, guard) in [
            ("/upload.v1.Uploads/Put", Some(true)),
            ("/upload.v1.Uploads/PutSmall", Some(false)),
            ("/grpc.health.v1.Health/Check", Some(false)),
            ("/Plain/Anything", Some(true)),
            ("/Mixed/Write", Some(true)),
            ("/Mixed/Read", Some(false)),
            // These are no calls, whatever their content type is.
            ("/PlainToo/Anything", None),
            ("/files/a", None),
            ("/files/a.b", None),
            ("/v1.0/files", None),
            ("/a.b/c/d", None),
            ("/a..b/c", None),
            ("/upload.v1.Uploads/", None),
            ("/upload.v1.Uploads", None),
            ("/", None),
        ] {
            assert_eq!(calls.guard(path), guard, "{path:?}");
        }
        assert_eq!(Calls::default().guard("/upload.v1.Uploads/Put"), None);
        for name in [
            "",
            "/",
            "a/",
            "a/b/c",
            "a b",
            "a/b?c",
            "a..b",
            "upload.v1.Uploads/*",
        ] {
            let refused = Calls::default().name(name);
            assert_eq!(refused, Err(ConfigError::Call(name.to_owned())));
        }
    }
}
