//! What only axum needs: the [`Reservation`] as an extractor, and an error type for handlers.
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

use std::convert::Infallible;

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use crate::{BoxError, Reservation, fault::Source};

/// Any error of a handler's.
///
/// `?` turns every error into it. The guard answers a storage fault with its refusal; everything else is
/// 500, and the client learns nothing of it. The error stays in the answer's extensions as a [`Source`],
/// for your own layers to log.
///
/// The guard must be around the handler. Without it, a storage fault is 500 as well.
#[derive(Debug)]
pub struct Failure(Source);

impl Failure {
    /// The error.
    pub fn error(&self) -> &(dyn std::error::Error + 'static) {
        self.0.error()
    }
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Source::new(error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self.0);
        response
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

/// The request's reservation. None where the request is not guarded.
impl<S: Sync> OptionalFromRequestParts<S> for Reservation {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}

/// A handler asked for a [`Reservation`], and its request is not guarded. Answered 500.
#[derive(Debug, thiserror::Error)]
#[error("the request is not guarded: is there a StorageGuardLayer, and does it apply?")]
pub struct MissingReservation {
    _private: (),
}

impl IntoResponse for MissingReservation {
    fn into_response(self) -> Response {
        // The mistake is the developer's, and says nothing of the server.
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
