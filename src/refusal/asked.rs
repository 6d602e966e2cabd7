use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri, Version,
    header::{ACCEPT, CONTENT_TYPE, HeaderName},
    request::Parts,
};

use super::Refusal;
use crate::{
    head::{Hints, Lines},
    protocol::Protocol,
    rpc::Rpc,
};

/// A format in which a client is told that its request is refused.
///
/// The dialect makes the whole response: gRPC, for example, answers 200 and has the outcome in headers. The guard
/// adds a configured `Retry-After` if the dialect has set none, unless the status is 2xx.
///
/// The first dialect that hears a request answers it. [`Http`](super::Http) is the last, and hears all requests.
///
/// # By a header
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response, request::Parts};
/// use tower_storage_guard::refusal::{Asked, Dialect, Refusal};
///
/// /// For clients that only read a line of CSV.
/// struct Csv;
///
/// impl Dialect for Csv {
///     fn hears(&self, head: &Parts) -> bool {
///         head.headers.get("accept").is_some_and(|accept| accept == "text/csv")
///     }
///
///     fn render(&self, refusal: &Refusal, _: &Asked) -> Response<Bytes> {
///         Response::builder()
///             .status(refusal.status())
///             .header("content-type", "text/csv")
///             .body(refusal.reason().into())
///             .expect("both are valid")
///     }
/// }
///
/// let (head, ()) = Request::put("/").header("accept", "text/csv").body(()).unwrap().into_parts();
/// assert!(Csv.hears(&head));
///
/// let response = Csv.render(&Refusal::unavailable(), &Asked::from(&head));
/// assert_eq!(response.body(), "capacity_unknown");
/// ```
///
/// # By the path
///
/// S3, OCI registries, Git LFS, Matrix and JMAP are recognised by the path of the request. Clients of S3 read an
/// error in XML, whose `Resource` is that path:
///
/// ```
/// use std::convert::Infallible;
/// use bytes::Bytes;
/// use http::{Request, Response, StatusCode, request::Parts};
/// use http_body_util::{BodyExt, Full};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_storage_guard::{
///     MeteredBody, StorageGuardLayer,
///     fault::Cause,
///     quota::{Limits, MemoryQuota},
///     refusal::{Asked, Dialect, Refusal, RefusalKind},
/// };
///
/// /// Buckets are below `/s3/`.
/// struct S3;
///
/// impl Dialect for S3 {
///     fn hears(&self, head: &Parts) -> bool {
///         head.uri.path().starts_with("/s3/")
///     }
///
///     fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes> {
///         let code = match refusal.kind() {
///             RefusalKind::Storage(fault) if fault.cause == Cause::QuotaExceeded => "QuotaExceeded",
///             RefusalKind::Storage(_) => "XMinioStorageFull",
///             _ => "SlowDown",
///         };
///         let path = asked.uri().map_or("", |uri| uri.path()).replace('&', "&amp;");
///         let xml = format!(
///             "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
///              <Error><Code>{code}</Code><Message>{}</Message><Resource>{path}</Resource></Error>",
///             refusal.message(),
///         );
///         Response::builder()
///             .status(refusal.status())
///             .header("content-type", "application/xml")
///             .body(xml.into())
///             .expect("both are valid")
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// async fn store(_: Request<MeteredBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Infallible> {
///     Ok(Response::default())
/// }
///
/// let service = StorageGuardLayer::quota_only(MemoryQuota::new(Limits::bytes(1_000)))
///     .scope_by(|_| "bucket:photos")
///     .dialect(S3)
///     // The status that clients of S3 expect for a quota.
///     .status(Cause::QuotaExceeded, StatusCode::FORBIDDEN)?
///     .layer(service_fn(store));
///
/// let upload = Request::put("/s3/photos/1.jpg").body(Full::from(vec![0; 1_001]))?;
/// let answer = service.oneshot(upload).await?;
/// assert_eq!(answer.status(), StatusCode::FORBIDDEN);
///
/// let body = answer.into_body().collect().await.unwrap().to_bytes();
/// assert!(str::from_utf8(&body)?.contains("<Resource>/s3/photos/1.jpg</Resource>"));
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a dialect",
    label = "not a `Dialect`",
    note = "implement `Dialect`, or answer with a closure in `render_with`"
)]
pub trait Dialect: Send + Sync + 'static {
    /// Returns whether the client that sent this head speaks the dialect.
    ///
    /// It is called for every request, so it should be fast. The extensions are those that outer layers have set.
    fn hears(&self, head: &Parts) -> bool;

    /// Makes the response for the refusal.
    fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes>;
}

impl<T: Dialect + ?Sized> Dialect for Arc<T> {
    fn hears(&self, head: &Parts) -> bool {
        T::hears(self, head)
    }

    fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes> {
        T::render(self, refusal, asked)
    }
}

impl<T: Dialect + ?Sized> Dialect for Box<T> {
    fn hears(&self, head: &Parts) -> bool {
        T::hears(self, head)
    }

    fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes> {
        T::render(self, refusal, asked)
    }
}

/// The parts of a request's head that are kept for its answer.
#[derive(Clone, Debug)]
pub struct Asked {
    method: Method,
    version: Version,
    pub(super) rpc: Option<Rpc>,
    /// The index of the user-defined dialect that heard it.
    pub(super) dialect: Option<u32>,
    /// The header that the answer's format depends on: `Accept`, or the content type of a call. Separate from the
    /// others, because few requests have more.
    line: Option<HeaderValue>,
    rare: Option<Box<Rare>>,
}

/// Parts that few requests have.
#[derive(Clone, Debug, Default)]
struct Rare {
    more_accept: Vec<HeaderValue>,
    content_type: Option<HeaderValue>,
    uri: Option<Uri>,
    /// A header that the client's protocol requires in every answer.
    to_answer: Vec<(HeaderName, HeaderValue)>,
}

impl Asked {
    /// For the user-defined dialect with this index.
    pub(super) fn for_dialect(mut self, dialect: Option<u32>) -> Self {
        self.dialect = dialect;
        self
    }

    #[inline(always)]
    pub(super) fn keep(
        method: &Method,
        version: Version,
        headers: &HeaderMap,
        lines: &Lines<'_>,
    ) -> Self {
        let mut asked = Self {
            method: method.clone(),
            version,
            rpc: None,
            dialect: None,
            line: None,
            rare: None,
        };
        if let Some((rpc, content_type)) = Rpc::of(method, headers) {
            asked.rpc = Some(rpc);
            asked.line = Some(content_type.clone());
        } else if lines.accepts > 1 {
            asked.keep_accept(headers);
        } else if let Some(accept) = lines.accept
            // Alone it means the same as no `Accept` at all (RFC 9110, section 12.5.1), and most programs send it.
            && accept.as_bytes() != b"*/*"
        {
            asked.line = Some(accept.clone());
        }
        asked
    }

    /// Keeps several lines.
    #[cold]
    fn keep_accept(&mut self, headers: &HeaderMap) {
        let mut lines = headers.get_all(ACCEPT).iter().cloned();
        self.line = lines.next();
        self.rare.get_or_insert_default().more_accept = lines.collect();
    }

    /// Keeps everything that a user-defined dialect may read.
    fn keep_all(method: &Method, uri: &Uri, version: Version, headers: &HeaderMap) -> Self {
        let hints = Hints::default();
        let lines = Lines::read(headers, &hints);
        let mut asked = Self::keep(method, version, headers, &lines).with_uri(uri);
        if asked.rpc.is_none()
            && let Some(content_type) = headers.get(CONTENT_TYPE)
        {
            let rare = asked.rare.get_or_insert_default();
            rare.content_type = Some(content_type.clone());
        }
        asked
    }

    pub(super) fn with_uri(mut self, uri: &Uri) -> Self {
        self.rare.get_or_insert_default().uri = Some(uri.clone());
        self
    }

    /// Adds a header to every answer.
    pub(crate) fn add_to_answer(&mut self, name: HeaderName, value: HeaderValue) {
        let rare = self.rare.get_or_insert_default();
        rare.to_answer.push((name, value));
    }

    /// The headers for every answer.
    pub(super) fn to_answer(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.rare.iter().flat_map(|rare| &rare.to_answer)
    }

    /// The protocol of the call, if the request is one.
    pub(super) const fn rpc(&self) -> Option<Rpc> {
        self.rpc
    }

    /// The protocol, if it does not report the outcome of a request in the status.
    pub(crate) fn protocol(&self) -> Option<&'static dyn Protocol> {
        self.rpc.map(Rpc::protocol)
    }

    /// Returns the method.
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the URI as the guard saw it: a router in front of the guard may have stripped its prefix.
    ///
    /// It is kept only if a dialect of your own heard the request, or if there is a
    /// [`render_with`](crate::StorageGuardLayer::render_with): other requests are spared the copy. Always present in
    /// values made by `Asked::from`.
    pub fn uri(&self) -> Option<&Uri> {
        self.rare.as_ref()?.uri.as_ref()
    }

    /// Returns the version of HTTP.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns the lines of `Accept`, in their order. Empty if the only one was `*/*`, which means the same, and for a
    /// remote procedure call, which accepts the type that it sends.
    pub fn accept(&self) -> impl Iterator<Item = &HeaderValue> {
        let more = self.rare.iter().flat_map(|rare| &rare.more_accept);
        let first = self.line.iter().filter(|_| self.rpc.is_none());
        first.chain(more)
    }

    /// Returns the type of the request's content. It is kept only for calls, or if a dialect of your own heard the
    /// request.
    pub fn content_type(&self) -> Option<&HeaderValue> {
        match self.rpc {
            Some(_) => self.line.as_ref(),
            None => self.rare.as_ref()?.content_type.as_ref(),
        }
    }
}

/// Keeps the content type and the URI too. For services that refuse requests themselves, and for testing a dialect.
impl<B> From<&Request<B>> for Asked {
    fn from(request: &Request<B>) -> Self {
        Self::keep_all(
            request.method(),
            request.uri(),
            request.version(),
            request.headers(),
        )
    }
}

/// Keeps the content type and the URI too, as for a whole request.
impl From<&Parts> for Asked {
    fn from(head: &Parts) -> Self {
        Self::keep_all(&head.method, &head.uri, head.version, &head.headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Answers;

    fn head(accept: &[&'static str]) -> Parts {
        let request = Request::put("/photos/1?draft").header(CONTENT_TYPE, "image/png");
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        for line in accept {
            head.headers.append(ACCEPT, HeaderValue::from_static(line));
        }
        head
    }

    fn hear(head: &Parts, answers: &Answers) -> Asked {
        let hints = Hints::default();
        Asked::hear(head, &Lines::read(&head.headers, &hints), answers)
    }

    struct Deaf;

    impl Dialect for Deaf {
        fn hears(&self, _: &Parts) -> bool {
            false
        }

        fn render(&self, _: &Refusal, _: &Asked) -> Response<Bytes> {
            unreachable!("it hears nothing")
        }
    }

    #[test]
    fn all_lines_of_accept_are_kept() {
        for lines in [&[][..], &["text/html"], &["text/html", "*/*;q=0.1", "a/b"]] {
            let asked = hear(&head(lines), &Answers::default());
            assert!(asked.accept().eq(lines), "{asked:?}");
            assert_eq!(asked.method(), Method::PUT);
            assert_eq!(asked.version(), Version::HTTP_11);
        }
    }

    #[test]
    fn hearing_allocates_nothing() {
        let mut deaf = Answers::default();
        deaf.push_dialect(Deaf);
        for answers in [Answers::default(), deaf] {
            for lines in [&[][..], &["application/json"]] {
                let head = head(lines);
                let hints = Hints::default();
                let counted = allocation_counter::measure(|| {
                    let lines = Lines::read(&head.headers, &hints);
                    drop(Asked::hear(&head, &lines, &answers));
                });
                assert_eq!(counted.count_total, 0, "{lines:?}");
            }
        }
    }

    #[test]
    fn the_content_type_is_kept_for_dialects_that_read_it() {
        let head = head(&[]);
        assert_eq!(hear(&head, &Answers::default()).content_type(), None);
        assert_eq!(Asked::from(&head).content_type().unwrap(), "image/png");

        let mut answers = Answers::default();
        answers.push_dialect(super::super::Http::default());
        let asked = hear(&head, &answers);
        assert_eq!(asked.content_type().unwrap(), "image/png");
    }

    #[test]
    fn the_uri_is_kept_for_dialects_that_read_it() {
        let head = head(&[]);
        let uri = "/photos/1?draft";
        let mut answers = Answers::default();
        assert_eq!(hear(&head, &answers).uri(), None);
        answers.push_dialect(Deaf);
        assert_eq!(hear(&head, &answers).uri(), None);

        let mut rendered = answers.clone();
        rendered.set_renderer(|_, _| None);
        let asked = hear(&head, &rendered);
        assert_eq!(asked.uri().unwrap(), uri);
        assert_eq!(asked.content_type(), None);

        answers.push_dialect(super::super::Http::default());
        assert_eq!(hear(&head, &answers).uri().unwrap(), uri);
    }

    #[test]
    fn a_head_and_its_request_are_kept_alike() {
        let head = head(&["text/html", "a/b"]);
        let request = Request::from_parts(head.clone(), ());
        for asked in [Asked::from(&head), Asked::from(&request)] {
            assert_eq!(asked.method(), Method::PUT);
            assert_eq!(asked.uri().unwrap(), "/photos/1?draft");
            assert_eq!(asked.version(), Version::HTTP_11);
            assert_eq!(asked.content_type().unwrap(), "image/png");
            assert!(asked.accept().eq(["text/html", "a/b"]));
        }
    }
}
