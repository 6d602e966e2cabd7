use std::iter;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Version,
    header::{ACCEPT, CONTENT_TYPE},
};

use super::{Answers, Refusal};
use crate::rpc::Rpc;

/// A way to tell a client that its request is refused.
///
/// The whole response is the dialect's: gRPC, for one, answers 200 and says the rest in headers.
/// The guard adds a `Retry-After` where it is asked for and the dialect has none, unless the status
/// is 2xx.
///
/// The first dialect that hears a request answers it. [`Http`](super::Http) is the last, and hears
/// all.
///
/// ```
/// use bytes::Bytes;
/// use http::{HeaderMap, Method, Request, Response};
/// use tower_storage_guard::refusal::{Asked, Dialect, Refusal};
///
/// /// For clients that read nothing but a line of CSV.
/// struct Csv;
///
/// impl Dialect for Csv {
///     fn hears(&self, _: &Method, headers: &HeaderMap) -> bool {
///         headers.get("accept").is_some_and(|accept| accept == "text/csv")
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
/// let request = Request::put("/").header("accept", "text/csv").body(()).unwrap();
/// assert!(Csv.hears(request.method(), request.headers()));
///
/// let response = Csv.render(&Refusal::unavailable(), &Asked::from(&request));
/// assert_eq!(response.body(), "capacity_unknown");
/// ```
pub trait Dialect: Send + Sync + 'static {
    /// Whether the client that sent this head speaks the dialect.
    ///
    /// Asked for every request, so it should be quick.
    fn hears(&self, method: &Method, headers: &HeaderMap) -> bool;

    /// The response that says so.
    fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes>;
}

/// What is kept of a request's head, so that it can be answered when the request is gone.
#[derive(Clone, Debug)]
pub struct Asked {
    method: Method,
    version: Version,
    pub(super) rpc: Option<Rpc>,
    /// The index of the user's dialect that heard it.
    pub(super) dialect: Option<u32>,
    /// What the answer's format depends on: `Accept`, or the content type of a call. Beside the others,
    /// because hardly any request has more.
    line: Option<HeaderValue>,
    rare: Option<Box<Rare>>,
}

/// What hardly any request has.
#[derive(Clone, Debug, Default)]
struct Rare {
    more_accept: Vec<HeaderValue>,
    content_type: Option<HeaderValue>,
    is_tus: bool,
}

impl Asked {
    /// Keeps what answering the request will take.
    ///
    /// Every request comes through here, and hardly any is refused. So what costs time is left for
    /// later: `Accept` is not read, and the content type is not looked up for plain HTTP, which has no
    /// use for it.
    pub(crate) fn hear<B>(request: &Request<B>, answers: &Answers) -> Self {
        match answers.dialect_for(request.method(), request.headers()) {
            None => Self::keep(request),
            dialect => Self {
                dialect,
                ..request.into()
            },
        }
    }

    fn keep<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let (rpc, content_type) = Rpc::of(request.method(), headers).unzip();
        let (line, rare) = if rpc.is_some() {
            (content_type, None)
        } else {
            let mut lines = headers.get_all(ACCEPT).iter();
            let (accept, second) = (lines.next(), lines.next());
            let rare = second.map(|second| {
                Box::new(Rare {
                    more_accept: iter::once(second).chain(lines).cloned().collect(),
                    ..Rare::default()
                })
            });
            // Alone it says no more than no line at all (RFC 9110, section 12.5.1), and most programs
            // send it.
            let accept = accept.filter(|line| rare.is_some() || *line != "*/*");
            (accept, rare)
        };
        Self {
            method: request.method().clone(),
            version: request.version(),
            rpc,
            dialect: None,
            line: line.cloned(),
            rare,
        }
    }

    /// The client speaks tus.
    pub(crate) fn set_tus(&mut self, is_tus: bool) {
        if is_tus {
            self.rare.get_or_insert_default().is_tus = true;
        }
    }

    /// Whether the client speaks tus, so that every answer has to say so.
    pub(super) fn is_tus(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.is_tus)
    }

    /// How the call is carried, if the request is one.
    pub(crate) const fn rpc(&self) -> Option<Rpc> {
        self.rpc
    }

    /// The method.
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// The version of HTTP.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The lines of `Accept`, in their order. None where it was only `*/*`, which says the same, and none
    /// for a remote procedure call, which takes what it sends.
    pub fn accept(&self) -> impl Iterator<Item = &HeaderValue> {
        let more = self.rare.iter().flat_map(|rare| &rare.more_accept);
        let first = self.line.iter().filter(|_| self.rpc.is_none());
        first.chain(more)
    }

    /// The type of the request's content. Kept only for calls, and where a dialect of your own heard the
    /// request.
    pub fn content_type(&self) -> Option<&HeaderValue> {
        match self.rpc {
            Some(_) => self.line.as_ref(),
            None => self.rare.as_ref()?.content_type.as_ref(),
        }
    }
}

/// For the tests of a dialect: keeps the content type too.
impl<B> From<&Request<B>> for Asked {
    fn from(request: &Request<B>) -> Self {
        let mut asked = Self::keep(request);
        if asked.rpc.is_none()
            && let Some(content_type) = request.headers().get(CONTENT_TYPE)
        {
            let rare = asked.rare.get_or_insert_default();
            rare.content_type = Some(content_type.clone());
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(accept: &[&'static str]) -> Request<()> {
        let mut request = Request::put("/")
            .header(CONTENT_TYPE, "image/png")
            .body(())
            .unwrap();
        for line in accept {
            request
                .headers_mut()
                .append(ACCEPT, HeaderValue::from_static(line));
        }
        request
    }

    struct Deaf;

    impl Dialect for Deaf {
        fn hears(&self, _: &Method, _: &HeaderMap) -> bool {
            false
        }

        fn render(&self, _: &Refusal, _: &Asked) -> Response<Bytes> {
            unreachable!("it hears nothing")
        }
    }

    #[test]
    fn all_lines_of_accept_are_kept() {
        for lines in [&[][..], &["text/html"], &["text/html", "*/*;q=0.1", "a/b"]] {
            let asked = Asked::hear(&request(lines), &Answers::default());
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
                let request = request(lines);
                let counted = allocation_counter::measure(|| drop(Asked::hear(&request, &answers)));
                assert_eq!(counted.count_total, 0, "{lines:?}");
            }
        }
    }

    #[test]
    fn the_content_type_is_kept_for_those_who_read_it() {
        let request = request(&[]);
        assert_eq!(
            Asked::hear(&request, &Answers::default()).content_type(),
            None
        );
        assert_eq!(Asked::from(&request).content_type().unwrap(), "image/png");

        let mut answers = Answers::default();
        answers.push_dialect(super::super::Http::default());
        let asked = Asked::hear(&request, &answers);
        assert_eq!(asked.content_type().unwrap(), "image/png");
    }
}
