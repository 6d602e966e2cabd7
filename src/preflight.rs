//! A route for clients that ask before they send, with feature `preflight`.
//!
//! A refusal on a slow line comes late: a browser shows it when all is sent. A [`Preflight`] answers beforehand whether an upload
//! would be admitted. It reserves nothing, so it is advice: the [layer](crate::StorageGuardLayer) around the upload itself decides.
//!
//! ```
//! use axum::{Router, body::{Body, to_bytes}, http::{Request, StatusCode}, routing::put};
//! use tower::ServiceExt;
//! use tower_storage_guard::{
//!     Guard, StorageGuardLayer,
//!     preflight::Preflight,
//!     quota::{Limits, MemoryQuota},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let guard = Guard::quota_only(MemoryQuota::new(Limits::bytes(1_000)));
//! let app = Router::new()
//!     .route("/files/{name}", put(async |_: String| StatusCode::CREATED))
//!     .layer(StorageGuardLayer::new(guard.clone()).scope_by(|_| "user:42"))
//!     .route_service("/preflight", Preflight::new(guard, |_| "user:42"));
//!
//! let one = |bytes: u64| Request::head("/preflight").header("upload-length", bytes).body(Body::empty());
//! assert_eq!(app.clone().oneshot(one(1_000)?).await?.status(), StatusCode::NO_CONTENT);
//! assert_eq!(app.clone().oneshot(one(1_001)?).await?.status(), StatusCode::INSUFFICIENT_STORAGE);
//!
//! let several = r#"{"files": [{"size": 600}, {"size": 600}, {"size": 400}]}"#;
//! let answer = app.oneshot(Request::post("/preflight").body(Body::from(several))?).await?;
//! let answer = to_bytes(answer.into_body(), 1_000).await?;
//! assert_eq!(
//!     answer,
//!     r#"{"files":[{"fits":true},{"fits":false,"reason":"quota_exceeded"},{"fits":true}]}"#
//! );
//! # Ok(())
//! # }
//! ```
//!
//! # Requests and answers
//!
//! | request | answer |
//! |---|---|
//! | HEAD or GET with `Upload-Length`: bytes | 204 if it would be admitted, otherwise a refusal as a layer without settings of its own answers |
//! | POST with JSON: `files`, an array of objects with a `size` in bytes | 200 with `files`: for each whether it `fits`, and if not the `reason`. Those that fit before it count |
//! | the same with more than 1,000 files, or more than 128 KiB | 413 |
//! | a length that is missing, is there twice, or is no number; JSON of another form | 400 |
//! | another method | 405 |
//!
//! Each file is taken for a new object. Answers must not be stored by caches.
//!
//! Mount it inside of authentication, as the upload itself: it tells how much room a scope has.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use tower::{BoxError, Service};

use crate::{
    demand::Demand,
    guard::Guard,
    head::number,
    quota::QuotaSource,
    refusal::{
        Answers, Asked, Refusal,
        json::{Object, array},
    },
    refused::{Reason, Refused},
    scope::Scopes,
};

/// The longest list of files, in bytes.
const LONGEST: usize = 128 << 10;
/// The most files in a list: each may be a question to the quota source.
const MOST: usize = 1_000;

type ScopesBy = dyn Fn(&Parts) -> Scopes + Send + Sync;

/// Answers whether uploads would be admitted, and reserves nothing. See the [module](self).
///
/// A Tower service: mount it with axum's `route_service`, or call it from any other router. Cheap to clone.
#[must_use]
pub struct Preflight<Q> {
    guard: Guard<Q>,
    scopes: Arc<ScopesBy>,
}

impl<Q: QuotaSource> Preflight<Q> {
    /// Asks this guard, in the scopes that the request's upload would be charged to. Without quotas, give
    /// [`Scopes::NONE`](crate::Scopes::NONE).
    pub fn new<T: Into<Scopes>>(
        guard: Guard<Q>,
        scopes: impl Fn(&Parts) -> T + Send + Sync + 'static,
    ) -> Self {
        Self {
            guard,
            scopes: Arc::new(move |head| scopes(head).into()),
        }
    }

    async fn answer<B>(self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let (head, body) = request.into_parts();
        let scopes = (self.scopes)(&head);
        match head.method {
            Method::HEAD | Method::GET => self.answer_one(&head, scopes).await,
            Method::POST => self.answer_several(scopes, body).await,
            _ => {
                let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "");
                let allow = HeaderValue::from_static("GET, HEAD, POST");
                response.headers_mut().insert(ALLOW, allow);
                response
            }
        }
    }

    async fn answer_one(&self, head: &Parts, scopes: Scopes) -> Response<Full<Bytes>> {
        let Ok(Some(bytes)) = number(&head.headers, "upload-length") else {
            return answer(
                StatusCode::BAD_REQUEST,
                "Upload-Length must be a number of bytes",
            );
        };
        match self.guard.would_fit(scopes, Demand::known(bytes)).await {
            Ok(()) => answer(StatusCode::NO_CONTENT, ""),
            Err(refused) => {
                let asked = Asked::from(head);
                let refusal = Answers::default().answer(Refusal::from(refused), &asked);
                not_stored(refusal.map(Full::new))
            }
        }
    }

    async fn answer_several<B>(&self, scopes: Scopes, body: B) -> Response<Full<Bytes>>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let content = match Limited::new(body, LONGEST).collect().await {
            Ok(content) => content.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return answer(StatusCode::PAYLOAD_TOO_LARGE, "the list is too long");
            }
            Err(_) => return answer(StatusCode::BAD_REQUEST, "the content was not received"),
        };
        let Some(sizes) = sizes(&content) else {
            let form = "the content must be like {\"files\": [{\"size\": 1024}]}";
            return answer(StatusCode::BAD_REQUEST, form);
        };
        if sizes.len() > MOST {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, "the list is too long");
        }
        let refused = self.refused_of(&scopes, &sizes).await;
        let mut json = Object::default();
        let written = json.value("files", array(refused.into_iter().map(file)));
        written.expect("a string takes all that is written to it");
        let mut response = answer(StatusCode::OK, json.end());
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

impl<Q: QuotaSource> Preflight<Q> {
    /// Why each of these files would be refused, behind those that fit before it. None if it fits.
    async fn refused_of(&self, scopes: &Scopes, sizes: &[u64]) -> Vec<Option<Refused>> {
        let all = sizes.iter().copied().fold(0, u64::saturating_add);
        let all = Demand::known(all).with_objects(sizes.len() as u64);
        // Mostly everything fits, and one question is enough.
        if self.guard.would_fit(scopes, all).await.is_ok() {
            return vec![None; sizes.len()];
        }
        let mut refused = Vec::with_capacity(sizes.len());
        let (mut bytes, mut objects) = (0_u64, 0);
        for size in sizes {
            let with_it = Demand::known(bytes.saturating_add(*size)).with_objects(objects + 1);
            match self.guard.would_fit(scopes, with_it).await {
                Ok(()) => {
                    bytes += size;
                    objects += 1;
                    refused.push(None);
                }
                // Each answer may take as long as the guard waits for its quota source.
                Err(unknown) if unknown.reason() == Reason::Unavailable => {
                    refused.resize(sizes.len(), Some(unknown));
                    return refused;
                }
                Err(other) => refused.push(Some(other)),
            }
        }
        refused
    }
}

/// The sizes of the files in a list.
fn sizes(content: &[u8]) -> Option<Vec<u64>> {
    let list: Value = serde_json::from_slice(content).ok()?;
    let files = list.get("files")?.as_array()?;
    files
        .iter()
        .map(|file| file.get("size")?.as_u64())
        .collect()
}

/// What is answered of one file.
fn file(refused: Option<Refused>) -> String {
    let mut json = Object::default();
    let written = json.value("fits", refused.is_none()).and_then(|()| {
        let reason = refused.map(|refused| refused.reason().as_str());
        reason.map_or(Ok(()), |reason| json.text("reason", reason))
    });
    written.expect("a string takes all that is written to it");
    json.end()
}

fn answer(status: StatusCode, content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content.into()));
    *response.status_mut() = status;
    not_stored(response)
}

fn not_stored<T>(mut response: Response<T>) -> Response<T> {
    let value = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, value);
    response
}

impl<Q, B> Service<Request<B>> for Preflight<Q>
where
    Q: QuotaSource,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async { Ok(this.answer(request).await) })
    }
}

impl<Q> Clone for Preflight<Q> {
    fn clone(&self) -> Self {
        Self {
            guard: self.guard.clone(),
            scopes: Arc::clone(&self.scopes),
        }
    }
}

impl<Q> fmt::Debug for Preflight<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preflight")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;
    use crate::quota::{Limits, MemoryQuota};

    fn preflight(limit: u64) -> (MemoryQuota, Preflight<MemoryQuota>) {
        let quota = MemoryQuota::new(Limits::bytes(limit).objects(3));
        let guard = Guard::quota_only(quota.clone());
        (quota, Preflight::new(guard, |_| "user:42"))
    }

    async fn ask(preflight: &Preflight<MemoryQuota>, request: Request<String>) -> (u16, String) {
        let answer = preflight.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store");
        let status = answer.status().as_u16();
        let content = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(content.into()).unwrap())
    }

    fn several(content: impl Into<String>) -> Request<String> {
        Request::post("/").body(content.into()).unwrap()
    }

    #[tokio::test]
    async fn one_file_is_asked_by_its_length() {
        let (quota, preflight) = preflight(10);
        for (length, status) in [
            ("0", 204),
            ("10", 204),
            ("11", 507),
            ("x", 400),
            ("-1", 400),
        ] {
            let request = Request::get("/").header("upload-length", length);
            let (answered, content) = ask(&preflight, request.body(String::new()).unwrap()).await;
            assert_eq!(answered, status, "{length}");
            assert_eq!(
                content.contains("quota_exceeded"),
                status == 507,
                "{content}"
            );
        }
        let usage = quota.usage("user:42");
        assert_eq!((usage.held.bytes, usage.used.bytes), (0, 0));
        let twice = Request::get("/")
            .header("upload-length", 1)
            .header("upload-length", 2);
        assert_eq!(
            ask(&preflight, twice.body(String::new()).unwrap()).await.0,
            400
        );
        let none = Request::get("/").body(String::new()).unwrap();
        assert_eq!(ask(&preflight, none).await.0, 400);
        let put = Request::put("/").body(String::new()).unwrap();
        assert_eq!(ask(&preflight, put).await.0, 405);
    }

    #[tokio::test]
    async fn files_count_that_fit_before() {
        let (quota, preflight) = preflight(10);
        let list =
            r#"{"files":[{"size":4},{"size":7},{"size":0},{"size":6},{"name":"d","size":0}]}"#;
        let (status, content) = ask(&preflight, several(list)).await;
        let full = r#"{"fits":false,"reason":"quota_exceeded"}"#;
        let fits = r#"{"fits":true}"#;
        assert_eq!(status, 200);
        assert_eq!(
            content,
            format!(r#"{{"files":[{fits},{full},{fits},{fits},{full}]}}"#)
        );
        assert_eq!(quota.usage("user:42").held.objects, 0);
        assert_eq!(
            ask(&preflight, several(r#"{"files":[]}"#)).await.1,
            r#"{"files":[]}"#
        );
    }

    /// A source that does not answer is asked twice, not for each file.
    #[cfg(feature = "test-util")]
    #[tokio::test(start_paused = true)]
    async fn a_list_is_not_asked_on_where_the_source_is_away() {
        let quota = crate::test_util::FakeQuota::new(Limits::bytes(10));
        let preflight = Preflight::new(Guard::quota_only(quota.clone()), |_| "user:42");
        quota.wait();
        let began = tokio::time::Instant::now();
        let list = several(r#"{"files":[{"size":4},{"size":7},{"size":1}]}"#);
        let answer = preflight.oneshot(list).await.unwrap();
        let content = answer.into_body().collect().await.unwrap().to_bytes();
        let content = String::from_utf8(content.into()).unwrap();
        assert_eq!(content.matches("capacity_unknown").count(), 3, "{content}");
        assert_eq!(began.elapsed().as_secs(), 4);
    }

    #[tokio::test]
    async fn what_is_no_list_is_refused() {
        let (_, preflight) = preflight(10);
        for content in [
            "",
            "[1]",
            "{}",
            r#"{"files":[{"size":-1}]}"#,
            r#"{"files":[{"size":1.5}]}"#,
            r#"{"files":[{}]}"#,
        ] {
            assert_eq!(ask(&preflight, several(content)).await.0, 400, "{content}");
        }
        let files = |count| {
            format!(
                r#"{{"files":[{}]}}"#,
                vec![r#"{"size":0}"#; count].join(",")
            )
        };
        assert_eq!(ask(&preflight, several(files(MOST))).await.0, 200);
        assert_eq!(ask(&preflight, several(files(MOST + 1))).await.0, 413);
        assert_eq!(
            ask(&preflight, several(" ".repeat(LONGEST + 1))).await.0,
            413
        );
    }

    #[tokio::test]
    async fn lengths_that_add_up_to_more_than_a_number_fit_nowhere() {
        let (_, preflight) = preflight(u64::MAX - 1);
        let most = u64::MAX;
        let list = format!(r#"{{"files":[{{"size":{most}}},{{"size":5}},{{"size":{most}}}]}}"#);
        let (_, content) = ask(&preflight, several(list)).await;
        assert_eq!(content.matches("false").count(), 2, "{content}");
    }
}
