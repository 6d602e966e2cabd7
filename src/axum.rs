//! Support for axum: the [`Reservation`] as an extractor, an error type for handlers, and [`Readiness`] and [`OperatorView`] as
//! routes.
//!
//! ```
//! use axum::{
//!     Router,
//!     body::{Body, Bytes},
//!     http::{Request, StatusCode},
//!     routing::put,
//! };
//! use tower::ServiceExt;
//! use tower_storage_guard::{Reservation, StorageGuardLayer, Volume, axum::Failure};
//!
//! async fn upload(reservation: Reservation, content: Bytes) -> Result<StatusCode, Failure> {
//!     assert_eq!(reservation.reserved(), content.len() as u64);
//!     // As it is when the disk is full.
//!     Err(std::io::Error::from(std::io::ErrorKind::StorageFull))?
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = Router::new()
//!     .route("/files/{name}", put(upload))
//!     .layer(StorageGuardLayer::new(Volume::open(std::env::temp_dir())?));
//!
//! let answer = app.oneshot(Request::put("/files/a").body(Body::from("content"))?).await?;
//! assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
//! # Ok(())
//! # }
//! ```
//!
//! # A handler that reserves by itself
//!
//! The layer decides before the handler runs. Where only the handler knows who is charged, or what is overwritten, let it reserve
//! with a [`Guard`](crate::Guard), and let the layer apply to no request: it still answers what the handler's `?` returns. So a stranger
//! is answered 401 on a full disk, and an upload that only overwrites a file is not refused.
//!
//! ```
//! use axum::{
//!     Router,
//!     body::{Body, Bytes},
//!     extract::State,
//!     http::{HeaderMap, Request, StatusCode, header::AUTHORIZATION},
//!     routing::put,
//! };
//! use tower::ServiceExt;
//! use tower_storage_guard::{
//!     Demand, Guard, InPlace, StorageGuardLayer, Volume,
//!     axum::Failure,
//!     quota::{Limits, MemoryQuota},
//! };
//!
//! async fn upload(
//!     State(guard): State<Guard<MemoryQuota>>,
//!     headers: HeaderMap,
//!     content: Bytes,
//! ) -> Result<StatusCode, Failure> {
//!     let Some(user) = headers.get(AUTHORIZATION) else {
//!         return Ok(StatusCode::UNAUTHORIZED);
//!     };
//!     let path = std::env::temp_dir().join("tower-storage-guard-example");
//!     let mut demand = Demand::known(content.len() as u64);
//!     if let Ok(old) = std::fs::metadata(&path) {
//!         // `write` truncates it, and its blocks are used again.
//!         demand = demand.in_place(InPlace::whole(&old).truncated());
//!     }
//!     let reservation = guard.reserve(user.to_str()?, demand).await?;
//!     std::fs::write(&path, &content)?;
//!     reservation.commit().await;
//! #   std::fs::remove_file(&path)?;
//!     Ok(StatusCode::CREATED)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let quota = MemoryQuota::new(Limits::bytes(10));
//! let guard = Guard::new(Volume::open(std::env::temp_dir())?).quota(quota);
//! let answers = StorageGuardLayer::new(guard.clone())
//!     .scope_by(|_| tower_storage_guard::Scopes::NONE)
//!     .applies_when(|_| false);
//! let app = Router::new().route("/", put(upload)).layer(answers).with_state(guard);
//!
//! let ask = async |user: Option<&str>, content: &'static str| {
//!     let mut request = Request::put("/").body(Body::from(content)).unwrap();
//!     if let Some(user) = user {
//!         request.headers_mut().insert(AUTHORIZATION, user.parse().unwrap());
//!     }
//!     app.clone().oneshot(request).await.unwrap().status()
//! };
//! assert_eq!(ask(None, "more than ten bytes").await, StatusCode::UNAUTHORIZED);
//! assert_eq!(ask(Some("ann"), "more than ten bytes").await, StatusCode::INSUFFICIENT_STORAGE);
//! assert_eq!(ask(Some("ann"), "ten bytes.").await, StatusCode::CREATED);
//! # Ok(())
//! # }
//! ```
//!
//! # A route that says whether writes are taken
//!
//! For a load balancer that asks before it sends writes here. See [`Readiness`] for when to use it.
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::get};
//! use tower::ServiceExt;
//! use tower_storage_guard::{Headroom, Readiness, Volume};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let volume = Volume::open(std::env::temp_dir())?;
//! // The whole volume is headroom here, so that it takes no writes.
//! let full = volume.clone().keep_free(Headroom::percent(100));
//! let app: Router = Router::new()
//!     .route("/ready", get(Readiness::new(volume)))
//!     .route("/full", get(Readiness::new(full)));
//!
//! let ask = |path| app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());
//! assert_eq!(ask("/ready").await?.status(), StatusCode::OK);
//! assert_eq!(ask("/full").await?.status(), StatusCode::SERVICE_UNAVAILABLE);
//! # Ok(())
//! # }
//! ```
//!
//! # A route that shows an operator what goes on
//!
//! An [`OperatorView`] answers with JSON, by the [schema](crate::operator#schema). **Mount it behind authentication**: it names
//! scopes, uploads and figures. The guide [`operating`](crate::guide::operating) does so.
//!
//! ```
//! use axum::{Router, body::{Body, to_bytes}, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_storage_guard::{Volume, operator::OperatorView};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let view = OperatorView::new().volume(Volume::open(std::env::temp_dir())?.named("files"));
//! let app: Router = Router::new().route("/status", get(view));
//!
//! let answer = app.oneshot(Request::get("/status").body(Body::empty())?).await?;
//! assert_eq!(answer.headers()["content-type"], "application/json");
//! let json = to_bytes(answer.into_body(), 1 << 20).await?;
//! assert!(json.starts_with(br#"{"schema_version":1,"volumes":[{"name":"files","state":"#));
//! # Ok(())
//! # }
//! ```

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{
    HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use http_body::Frame;
use http_body_util::LengthLimitError;

use crate::{
    fault::{Source, find},
    operator::OperatorView,
    reservation::Reservation,
    volume::Readiness,
};
use tower::BoxError;

/// An error of a handler.
///
/// `?` converts every error into it, and with the features `anyhow1` and `eyre06` their reports. The answer has no content, and
/// this status:
///
/// | error | answer |
/// |---|---|
/// | a storage fault | the guard's refusal |
/// | content that is larger than a file can be (`FileTooLarge`) | the guard's refusal, 413 |
/// | a body limit: `http_body_util::LengthLimitError`, of axum's `DefaultBodyLimit` or tower-http's `RequestBodyLimit` | 413 |
/// | a malformed multipart body, with the feature `axum-multipart` | 400 |
/// | any other | 500 |
///
/// The error stays in the response's extensions as a [`Source`], for your own layers to log.
///
/// The guard must be around the handler. Without it, a storage fault is 500 as well.
#[derive(Debug)]
pub struct Failure(Source);

impl Failure {
    /// Returns the error.
    pub fn error(&self) -> &(dyn std::error::Error + 'static) {
        self.0.error()
    }
}

impl<E: Into<BoxError> + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Source::new(error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = status_of(self.error()).into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// The status of an error, unless the guard finds a storage fault in it.
fn status_of(error: &(dyn std::error::Error + 'static)) -> StatusCode {
    if find::<LengthLimitError>(error).is_some() {
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    #[cfg(feature = "axum-multipart")]
    if let Some(error) = find::<multer::Error>(error) {
        use multer::Error::*;

        return match error {
            FieldSizeExceeded { .. } | StreamSizeExceeded { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            // What has failed is inside.
            StreamReadFailed(_) | LockFailure => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
    }
    StatusCode::INTERNAL_SERVER_ERROR
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Answers with the current state: 200 and `ready` while all of the volumes take writes, otherwise 503 and the
/// [reason](crate::volume::Closed::reason). Caches must not store the answer, and it contains no figures.
///
/// A `Readiness` is an axum handler by itself.
impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        let (status, word) = match self.takes_writes() {
            Ok(()) => (StatusCode::OK, "ready"),
            Err(closed) => (StatusCode::SERVICE_UNAVAILABLE, closed.reason()),
        };
        (status, [(CACHE_CONTROL, NO_STORE)], word).into_response()
    }
}

/// Answers 200 with the JSON of a [snapshot](OperatorView::snapshot), which is taken when the body is read. Caches must not store
/// it.
///
/// An `OperatorView` is an axum handler by itself. Mount it behind authentication.
impl IntoResponse for OperatorView {
    fn into_response(self) -> Response {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");

        let json = Box::pin(async move { self.snapshot().await.to_json() });
        let body = Body::new(LaterJson(Some(json)));
        ([(CONTENT_TYPE, JSON), (CACHE_CONTROL, NO_STORE)], body).into_response()
    }
}

/// A body that is written when it is first read.
struct LaterJson(Option<Pin<Box<dyn Future<Output = String> + Send>>>);

impl http_body::Body for LaterJson {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(json) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let json = ready!(json.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Some(Ok(Frame::data(json.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// The request's reservation.
impl<S: Sync> FromRequestParts<S> for Reservation {
    type Rejection = MissingReservation;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingReservation> {
        parts
            .extensions
            .get()
            .cloned()
            .ok_or(MissingReservation { _private: () })
    }
}

/// The request's reservation. None if the request is not guarded.
impl<S: Sync> OptionalFromRequestParts<S> for Reservation {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}

/// A handler asked for a [`Reservation`], but its request is not guarded. Answered 500.
#[derive(Debug, thiserror::Error)]
#[error("the request is not guarded: is there a StorageGuardLayer, and does it apply?")]
pub struct MissingReservation {
    _private: (),
}

impl IntoResponse for MissingReservation {
    fn into_response(self) -> Response {
        // This is a developer's mistake, and the text reveals nothing about the server.
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
