use std::fmt;
#[cfg(feature = "tonic")]
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE, request::Parts};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{Asked, Dialect, Refusal, code::Code, json::Object};
use crate::rpc::{GRPC_MESSAGE, GRPC_STATUS, Rpc};

/// The dialect of remote procedure calls: gRPC, gRPC-Web and Connect.
///
/// | call | how it is answered |
/// |---|---|
/// | `application/grpc*` | Trailers-Only: HTTP 200, `grpc-status`, `grpc-message`, no content |
/// | `application/grpc-web*` | the same |
/// | Connect, unary | HTTP 429, `{"code":"resource_exhausted",…}` |
/// | Connect, streaming | HTTP 200, the same in an end-of-stream message |
///
/// | refusal | code |
/// |---|---|
/// | a storage fault | 8, RESOURCE_EXHAUSTED |
/// | an outage | 14, UNAVAILABLE |
/// | a body that has stalled | 4, DEADLINE_EXCEEDED |
/// | content that is larger than a file can be | 11, OUT_OF_RANGE |
/// | an invalid Content-Length | 3, INVALID_ARGUMENT |
///
/// With feature `tonic`, details are added. Each refusal has an `ErrorInfo` (`DISK_FULL`, `QUOTA_EXCEEDED` and so on).
/// A refusal that names a scope has a `QuotaFailure`, whose subject is that scope. `RetryInfo` is added only if a retry
/// is [allowed](crate::StorageGuardLayer::retry_after), because clients retry when they receive it.
///
/// Sources: the gRPC documents PROTOCOL-HTTP2 and PROTOCOL-WEB; the Connect protocol, "Error codes".
#[derive(Clone, Debug, Default)]
pub struct Grpc {
    #[cfg(feature = "tonic")]
    domain: Option<Arc<str>>,
}

impl Grpc {
    /// Sets the `domain` of `ErrorInfo`, which identifies the service that defines the reasons, such as
    /// `uploads.example.com`.
    ///
    /// Defaults to the name of this crate.
    #[cfg(feature = "tonic")]
    #[must_use]
    pub fn domain(mut self, domain: impl Into<Arc<str>>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    #[cfg(feature = "tonic")]
    fn details(&self, refusal: &Refusal) -> super::details::Details {
        super::details::Details::new(refusal, self.domain.as_deref())
    }

    fn trailers(&self, refusal: &Refusal) -> HeaderMap {
        let status = Code::of(refusal).number;
        let all: [(HeaderName, HeaderValue); 2] = [
            (GRPC_STATUS, status.into()),
            (GRPC_MESSAGE, grpc_message(refusal.message())),
        ];
        #[cfg_attr(not(feature = "tonic"), expect(unused_mut))]
        let mut trailers = HeaderMap::from_iter(all);
        #[cfg(feature = "tonic")]
        trailers.insert(
            crate::rpc::GRPC_STATUS_DETAILS,
            self.details(refusal).in_header(),
        );
        trailers
    }

    fn connect(&self, refusal: &Refusal) -> Result<String, fmt::Error> {
        let mut object = Object::default();
        object.text("code", Code::of(refusal).name)?;
        object.text("message", refusal.message())?;
        #[cfg(feature = "tonic")]
        object.value("details", self.details(refusal).in_json()?)?;
        Ok(object.end())
    }
}

impl Dialect for Grpc {
    fn hears(&self, head: &Parts) -> bool {
        Rpc::of(&head.method, &head.headers).is_some()
    }

    fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes> {
        let mut response = Response::default();
        let asked_in = || {
            asked
                .content_type()
                .cloned()
                .unwrap_or(HeaderValue::from_static("application/grpc"))
        };
        let content_type = match asked.rpc() {
            None | Some(Rpc::Grpc | Rpc::GrpcWeb | Rpc::GrpcWebText) => {
                *response.headers_mut() = self.trailers(refusal);
                asked_in()
            }
            Some(Rpc::ConnectUnary) => {
                *response.status_mut() = Code::of(refusal).status;
                *response.body_mut() = self.connect(refusal).expect(WRITING).into();
                HeaderValue::from_static("application/json")
            }
            Some(Rpc::ConnectStream) => {
                let error = self.connect(refusal).expect(WRITING);
                *response.body_mut() = end_of_stream(&error);
                asked_in()
            }
        };
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

const WRITING: &str = "writing to a String cannot fail";

/// The ASCII characters that are percent-encoded in a `grpc-message`, in addition to non-ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Text as the value of `grpc-message` (PROTOCOL-HTTP2, "Status-Message").
fn grpc_message(text: &str) -> HeaderValue {
    let encoded = utf8_percent_encode(text, ENCODED).to_string();
    HeaderValue::try_from(encoded).expect("it is printable ASCII")
}

/// The last message of a stream in Connect: a flag, the length, and the error.
fn end_of_stream(error: &str) -> Bytes {
    const END_STREAM: u8 = 0b10;

    let mut message = BytesMut::new();
    message.put_u8(END_STREAM);
    let mut object = Object::default();
    object.value("error", error).expect(WRITING);
    let content = object.end();
    message.put_u32(u32::try_from(content.len()).expect("it is short"));
    message.put_slice(content.as_bytes());
    message.freeze()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cause::{Cause, Fault, Resource},
        refusal::Answers,
        refused::Figures,
        scope::Scope,
    };

    fn refusal() -> Refusal {
        Refusal::from(Fault::new(Cause::QuotaExceeded, Resource::Bytes))
            .with_figures(Figures {
                limit: 1000,
                used: 900,
                required: 200,
            })
            .with_scope(Scope::from("user:42"))
    }

    fn answer(content_type: &str, refusal: &Refusal) -> Response<Bytes> {
        let request = Request::post("/upload.v1.Uploads/Put")
            .header(CONTENT_TYPE, content_type)
            .header("connect-protocol-version", "1")
            .body(())
            .unwrap();
        let answers = Answers::default();
        let (head, ()) = request.into_parts();
        answers.answer(refusal.clone(), &Asked::from(&head))
    }

    #[test]
    fn grpc_is_answered_in_headers_alone() {
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc-web",
            "application/grpc-web-text+proto",
        ] {
            let response = answer(content_type, &refusal());
            assert_eq!(response.status(), 200, "{content_type}");
            assert_eq!(response.headers()[CONTENT_TYPE], content_type);
            assert_eq!(response.headers()[GRPC_STATUS], "8");
            assert_eq!(response.headers()[GRPC_MESSAGE], "Storage quota exceeded");
            assert!(response.body().is_empty());
            assert_eq!(response.extensions().get(), Some(&refusal()));
        }
    }

    #[test]
    fn a_message_keeps_to_printable_ascii() {
        assert_eq!(
            grpc_message("50 % of \u{e9}\n\x7f~"),
            "50 %25 of %C3%A9%0A%7F~"
        );
    }

    #[test]
    fn an_outage_and_a_bad_request_have_codes_of_their_own() {
        for (refusal, code) in [
            (Refusal::unavailable(), "14"),
            (Refusal::invalid_length(), "3"),
        ] {
            let response = answer("application/grpc", &refusal);
            assert_eq!(response.headers()[GRPC_STATUS], code);
            assert_eq!(response.headers()[GRPC_MESSAGE], refusal.message());
        }
    }

    #[test]
    fn connect_unary_is_json() {
        for (refusal, status, code) in [
            (refusal(), 429, "resource_exhausted"),
            (Refusal::unavailable(), 503, "unavailable"),
            (Refusal::invalid_length(), 400, "invalid_argument"),
        ] {
            let response = answer("application/proto", &refusal);
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["code"], code);
            assert_eq!(body["message"], refusal.message());
            assert_eq!(body.get("details").is_some(), cfg!(feature = "tonic"));
        }
    }

    #[test]
    fn connect_streams_end_in_a_message() {
        let response = answer("application/connect+proto", &refusal());
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()[CONTENT_TYPE],
            "application/connect+proto"
        );
        let (head, content) = response.body().split_at(5);
        assert_eq!(head[0], 2);
        assert_eq!(head[1..], (content.len() as u32).to_be_bytes());
        let content: Value = serde_json::from_slice(content).unwrap();
        assert_eq!(content["error"]["code"], "resource_exhausted");
        assert_eq!(content["error"]["message"], json!("Storage quota exceeded"));
    }

    #[cfg(feature = "tonic")]
    mod details {
        use std::{collections::HashMap, time::Duration};

        use tonic::{Code, Status, metadata::MetadataMap};
        use tonic_types::StatusExt as _;

        use super::*;

        fn read(response: &Response<Bytes>) -> Status {
            Status::from_header_map(response.headers()).unwrap()
        }

        #[test]
        fn a_quota_refusal_has_the_scope_and_the_figures() {
            let status = read(&answer("application/grpc", &refusal()));
            assert_eq!(status.code(), Code::ResourceExhausted);
            let details = status.check_error_details().unwrap();
            let info = details.error_info().unwrap();
            assert_eq!(info.reason, "QUOTA_EXCEEDED");
            assert_eq!(info.domain, "tower-storage-guard");
            let metadata = [
                ("limit_bytes", "1000"),
                ("required_bytes", "200"),
                ("resource", "bytes"),
                ("temporary", "true"),
                ("used_bytes", "900"),
            ];
            let metadata: HashMap<_, _> = metadata
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
            assert_eq!(info.metadata, metadata);
            let violations = &details.quota_failure().unwrap().violations;
            assert_eq!(violations.len(), 1);
            assert_eq!(violations[0].subject, "user:42");
            assert_eq!(violations[0].description, "Storage quota exceeded");
            assert!(details.retry_info().is_none());
        }

        #[test]
        fn a_disk_refusal_reveals_nothing_about_the_server() {
            let full = Fault::new(Cause::DiskFull, Resource::Objects).into();
            let details = read(&answer("application/grpc", &full)).get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!(info.reason, "DISK_FULL");
            assert_eq!(info.metadata["resource"], "objects");
            assert_eq!(info.metadata.len(), 2);
            assert!(details.quota_failure().is_none());
        }

        #[test]
        fn a_retry_only_where_it_is_allowed() {
            let retry = refusal().with_retry_after(Duration::from_secs(7));
            let details = read(&answer("application/grpc", &retry)).get_error_details();
            let retry = details.retry_info().unwrap().retry_delay;
            assert_eq!(retry, Some(Duration::from_secs(7)));
        }

        #[test]
        fn the_domain_is_the_users() {
            let grpc = Grpc::default().domain("uploads.example.com");
            let request = Request::post("/").header(CONTENT_TYPE, "application/grpc");
            let asked = Asked::from(&request.body(()).unwrap());
            let details = read(&grpc.render(&refusal(), &asked)).get_error_details();
            assert_eq!(details.error_info().unwrap().domain, "uploads.example.com");
        }

        #[test]
        fn every_reason_is_one_of_aip_193() {
            for cause in [
                Cause::DiskFull,
                Cause::QuotaExceeded,
                Cause::DatabaseFull,
                Cause::CollectionFull,
            ] {
                let refusal = Fault::new(cause, Resource::Bytes).into();
                let details = read(&answer("application/grpc", &refusal)).get_error_details();
                let reason = &details.error_info().unwrap().reason;
                assert!(reason.len() <= 63);
                assert!(
                    reason
                        .bytes()
                        .all(|byte| matches!(byte, b'A'..=b'Z' | b'_'))
                );
            }
        }

        #[test]
        fn connect_has_the_same_details() {
            let response = answer("application/json", &refusal());
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            let details = body["details"].as_array().unwrap();
            let types: Vec<_> = details.iter().map(|detail| &detail["type"]).collect();
            assert_eq!(types, ["google.rpc.QuotaFailure", "google.rpc.ErrorInfo"]);
            let value = decoded(details[1]["value"].as_str().unwrap());
            let text = String::from_utf8_lossy(&value);
            assert!(text.contains("QUOTA_EXCEEDED") && text.contains("limit_bytes"));
        }

        /// As it would stand in metadata: Base64, without padding.
        fn decoded(value: &str) -> Bytes {
            assert!(!value.contains('='));
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static("a-bin"), value.parse().unwrap())]);
            let metadata = MetadataMap::from_headers(headers);
            metadata.get_bin("a-bin").unwrap().to_bytes().unwrap()
        }
    }
}
