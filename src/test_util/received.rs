use std::{fmt, future::poll_fn, pin::pin};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use percent_encoding::percent_decode;

use crate::{
    refusal::{Code, Refusal},
    rpc::{GRPC_MESSAGE, GRPC_STATUS},
};

/// A response as a client has received it: with the whole content, and the trailers.
///
/// The assertions check that the response is a given refusal in a dialect. They compare its status, its content type,
/// its message, and the names that identify it to programs. They do not check [figures](crate::refusal::Figures), which
/// are the client's own. Each takes a [`Fault`](crate::fault::Fault), or any [`Refusal`], such as
/// [`Refusal::unavailable`]. If the guard is set to answer with another status, compare that status instead.
///
/// ```
/// use http::{Request, Response};
/// use tower_storage_guard::{
///     fault::{Cause, Fault, Resource},
///     refusal::{Asked, Dialect, Http, Refusal},
///     test_util::Received,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), http::Error> {
/// let full = Fault::new(Cause::DiskFull, Resource::Bytes);
/// let request = Request::put("/").header("accept", "text/plain").body(())?;
/// let response = Http::default().render(&Refusal::from(full), &Asked::from(&request));
///
/// let received = Received::of(response.map(axum::body::Body::from)).await;
/// received.assert_text(full);
/// assert_eq!(received.content(), b"Server storage capacity reached");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Received {
    status: StatusCode,
    headers: HeaderMap,
    content: Vec<u8>,
    trailers: HeaderMap,
}

impl Received {
    /// Receives all of a response.
    ///
    /// # Panics
    ///
    /// If the body fails.
    pub async fn of<B>(response: Response<B>) -> Self
    where
        B: Body,
        B::Data: Into<Bytes>,
        B::Error: fmt::Debug,
    {
        let (head, body) = response.into_parts();
        let mut body = pin!(body);
        let (mut content, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.unwrap_or_else(|error| panic!("the body failed: {error:?}"));
            match frame.into_data() {
                Ok(data) => content.extend_from_slice(&data.into()),
                Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        Self {
            status: head.status,
            headers: head.headers,
            content,
            trailers,
        }
    }

    /// Returns the status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the headers.
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the content.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// Asserts that it is this refusal in `application/json`, the default of [`Http`](crate::refusal::Http).
    ///
    /// # Panics
    ///
    /// If it is not. The message shows what was received.
    #[track_caller]
    pub fn assert_json(&self, refusal: impl Into<Refusal>) -> &Self {
        let refusal = refusal.into();
        self.assert_http(&refusal, "application/json");
        self.assert_members(&refusal);
        self.assert_member("message", refusal.message())
    }

    /// Asserts that it is this refusal in `application/problem+json` (RFC 9457).
    ///
    /// # Panics
    ///
    /// As [`Self::assert_json`].
    #[track_caller]
    pub fn assert_problem(&self, refusal: impl Into<Refusal>) -> &Self {
        let refusal = refusal.into();
        self.assert_http(&refusal, "application/problem+json");
        self.assert_members(&refusal);
        self.assert_contains(&format!("\"status\":{}", refusal.status().as_u16()));
        self.assert_member("detail", refusal.message())
    }

    /// Asserts that it is this refusal in `text/plain`.
    ///
    /// # Panics
    ///
    /// As [`Self::assert_json`].
    #[track_caller]
    pub fn assert_text(&self, refusal: impl Into<Refusal>) -> &Self {
        let refusal = refusal.into();
        self.assert_http(&refusal, "text/plain");
        self.assert_contains(refusal.message())
    }

    /// Asserts that it is this refusal in `text/html`.
    ///
    /// # Panics
    ///
    /// As [`Self::assert_json`].
    #[track_caller]
    pub fn assert_html(&self, refusal: impl Into<Refusal>) -> &Self {
        let refusal = refusal.into();
        self.assert_http(&refusal, "text/html");
        self.assert_contains(&format!("<p>{}.</p>", refusal.message()))
    }

    /// Asserts that it is a `DAV:error` of this refusal, as [`Dav`](crate::refusal::Dav) answers.
    ///
    /// # Panics
    ///
    /// As [`Self::assert_json`].
    #[cfg(feature = "webdav")]
    #[track_caller]
    pub fn assert_dav(&self, refusal: impl Into<Refusal>) -> &Self {
        let refusal = refusal.into();
        self.assert_http(&refusal, "application/xml");
        self.assert_contains("<D:error ");
        for (name, text) in [("message", refusal.message()), ("reason", refusal.reason())] {
            self.assert_contains(&format!("<s:{name}>{text}</s:{name}>"));
        }
        self
    }

    /// Asserts that the status of a gRPC call is that of this refusal, in the headers or in the trailers. It is
    /// RESOURCE_EXHAUSTED of a fault, and UNAVAILABLE of an outage. A gRPC-Web call has it in the headers too, unless
    /// the handler has begun to answer.
    ///
    /// # Panics
    ///
    /// As [`Self::assert_json`].
    #[track_caller]
    pub fn assert_grpc(&self, refusal: impl Into<Refusal>) -> &Self {
        let refusal = refusal.into();
        let ending = match self.headers.contains_key(GRPC_STATUS) {
            true => &self.headers,
            false => &self.trailers,
        };
        let text = |name| {
            let value = ending.get(name)?.as_bytes();
            Some(percent_decode(value).decode_utf8_lossy().into_owned())
        };
        let code = Code::of(&refusal).number.to_string();
        assert_eq!(self.status, StatusCode::OK, "{self}");
        assert_eq!(text(GRPC_STATUS), Some(code), "the status of {self}");
        let message = Some(refusal.message().to_owned());
        assert_eq!(text(GRPC_MESSAGE), message, "the message of {self}");
        self
    }

    /// Asserts that it is the error of a unary call of Connect: `resource_exhausted` of a fault, `unavailable` of an outage.
    ///
    /// # Panics
    ///
    /// As [`Self::assert_json`].
    #[track_caller]
    pub fn assert_connect(&self, refusal: impl Into<Refusal>) -> &Self {
        let refusal = refusal.into();
        let code = Code::of(&refusal);
        assert_eq!(self.status, code.status, "{self}");
        self.assert_type("application/json");
        self.assert_member("code", code.name);
        self.assert_member("message", refusal.message())
    }

    #[track_caller]
    fn assert_http(&self, refusal: &Refusal, content_type: &str) {
        assert_eq!(self.status, refusal.status(), "{self}");
        self.assert_type(content_type);
    }

    #[track_caller]
    fn assert_type(&self, expected: &str) {
        let found = self.headers.get(CONTENT_TYPE);
        let found = found.and_then(|value| value.to_str().ok());
        let found = found.and_then(|value| value.split(';').next());
        assert_eq!(found, Some(expected), "the content type of {self}");
    }

    /// The members that both kinds of JSON share.
    #[track_caller]
    fn assert_members(&self, refusal: &Refusal) {
        self.assert_member("reason", refusal.reason());
        self.assert_contains(&format!("\"temporary\":{}", refusal.is_temporary()));
        if let Some(fault) = refusal.fault() {
            self.assert_member("resource", fault.resource.as_str());
        }
    }

    #[track_caller]
    fn assert_member(&self, name: &str, text: &str) -> &Self {
        self.assert_contains(&format!("\"{name}\":\"{text}\""))
    }

    #[track_caller]
    fn assert_contains(&self, expected: &str) -> &Self {
        let content = String::from_utf8_lossy(&self.content);
        assert!(content.contains(expected), "no {expected} in {self}");
        self
    }
}

/// The status, the headers, the content and the trailers, for the messages of failed assertions.
impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = String::from_utf8_lossy(&self.content);
        write!(f, "{} {:?} {content}", self.status, self.headers)?;
        if !self.trailers.is_empty() {
            write!(f, " {:?}", self.trailers)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use http::{HeaderName, Request};
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::{
        cause::{Cause, Fault, Resource},
        refusal::{Asked, Dialect, Grpc, Http},
    };

    const FULL: Fault = Fault::new(Cause::DiskFull, Resource::Bytes);
    const QUOTA: Fault = Fault::new(Cause::QuotaExceeded, Resource::Objects);

    async fn received(
        dialect: &impl Dialect,
        head: (HeaderName, &str),
        refusal: impl Into<Refusal>,
    ) -> Received {
        let request = Request::post("/a").header(head.0, head.1).body(()).unwrap();
        let response = dialect.render(&refusal.into(), &Asked::from(&request));
        Received::of(response.map(Full::new)).await
    }

    /// The message of the assertion that fails.
    fn failure<T>(assertion: impl FnOnce() -> T) -> String {
        let failed = catch_unwind(AssertUnwindSafe(assertion))
            .map(drop)
            .unwrap_err();
        *failed.downcast().expect("a formatted message")
    }

    #[tokio::test]
    async fn each_format_of_http_is_told_from_the_others() {
        type Assertion = fn(&Received, Refusal);
        let formats: [(&str, Assertion); 4] = [
            ("application/json", |it, refusal| {
                _ = it.assert_json(refusal)
            }),
            ("application/problem+json", |it, refusal| {
                _ = it.assert_problem(refusal)
            }),
            ("text/plain", |it, refusal| _ = it.assert_text(refusal)),
            ("text/html", |it, refusal| _ = it.assert_html(refusal)),
        ];
        for (sent, _) in formats {
            let accept = (http::header::ACCEPT, sent);
            for refusal in [FULL.into(), QUOTA.into(), Refusal::unavailable()] {
                let received = received(&Http::default(), accept.clone(), refusal.clone()).await;
                for (asserted, assert) in formats {
                    let is_it =
                        catch_unwind(AssertUnwindSafe(|| assert(&received, refusal.clone())))
                            .is_ok();
                    assert_eq!(is_it, asserted == sent, "{received}");
                }
            }
            let received = received(&Http::default(), accept, FULL).await;
            for (_, assert) in formats {
                let said = failure(|| assert(&received, QUOTA.into()));
                assert!(said.contains("Server storage capacity reached"), "{said}");
                failure(|| assert(&received, Refusal::unavailable()));
            }
        }
        let object = received(&Http::default(), (http::header::ACCEPT, "*/*"), FULL).await;
        let objects = Fault::new(Cause::DiskFull, Resource::Objects);
        let said = failure(|| object.assert_json(objects).status());
        assert!(
            said.starts_with(r#"no "resource":"objects" in 507 "#),
            "{said}"
        );
    }

    #[tokio::test]
    async fn calls_have_codes() {
        let grpc = (CONTENT_TYPE, "application/grpc");
        let connect = (CONTENT_TYPE, "application/json");
        for (refusal, other) in [
            (Refusal::from(FULL), Refusal::from(QUOTA)),
            (Refusal::unavailable(), FULL.into()),
            (Refusal::stalled(), Refusal::unavailable()),
        ] {
            let call = received(&Grpc::default(), grpc.clone(), refusal.clone()).await;
            call.assert_grpc(refusal.clone());
            failure(|| call.assert_grpc(other.clone()).status());
            failure(|| call.assert_json(refusal.clone()).status());

            let asked = Request::post("/a.B/C")
                .header(connect.0.clone(), connect.1)
                .header("connect-protocol-version", "1")
                .body(())
                .unwrap();
            let response = Grpc::default().render(&refusal, &Asked::from(&asked));
            let call = Received::of(response.map(Full::new)).await;
            call.assert_connect(refusal.clone());
            failure(|| call.assert_connect(other.clone()).status());
            failure(|| call.assert_grpc(refusal.clone()).status());
        }
    }

    #[tokio::test]
    async fn the_status_of_a_call_may_be_in_its_trailers() {
        let head = received(&Grpc::default(), (CONTENT_TYPE, "application/grpc"), FULL).await;
        let trailers = head.headers().clone();
        let body = Full::new(Bytes::from("part")).with_trailers(async { Some(Ok(trailers)) });
        let call = Received::of(Response::new(body)).await;
        call.assert_grpc(FULL);
        assert_eq!(call.content(), b"part");
        assert!(failure(|| call.assert_grpc(QUOTA).status()).contains("grpc-message"));
    }

    #[cfg(feature = "webdav")]
    #[tokio::test]
    async fn webdav_has_an_error_in_xml() {
        let dialect = crate::refusal::Dav::default();
        let answer = received(&dialect, (http::header::ACCEPT, "*/*"), FULL).await;
        answer.assert_dav(FULL);
        failure(|| answer.assert_dav(QUOTA).status());
        failure(|| answer.assert_json(FULL).status());
    }
}
