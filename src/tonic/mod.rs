//! What only tonic needs.
//!
//! The guard itself speaks gRPC without this: it reads headers and trailers. It is a layer of
//! `tonic::transport::Server`, and of axum's router where both are on one port. Here is what lets a handler
//! hand its errors to the guard, and see what is set aside for it.
//!
//! ```
//! use http::Request;
//! use tonic::{Response, Status, body::Body, service::Routes};
//! use tower::{Layer, ServiceExt};
//! use tower_storage_guard::{
//!     Headroom, StorageGuardLayer, Volume,
//!     tonic::{reservation, status},
//! };
//!
//! /// A method of a service.
//! async fn put(request: tonic::Request<Vec<u8>>) -> Result<Response<()>, Status> {
//!     let reservation = reservation(&request)?;
//!     let content = request.into_inner();
//!     tokio::fs::write("file", &content).await.map_err(status)?;
//!     // Less than what was read: a message has fields, and gRPC adds a prefix.
//!     reservation.stored(content.len() as u64);
//!     Ok(Response::new(()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Everything has to stay free here, so that nothing fits.
//! let volume = Volume::open(std::env::temp_dir())?.keep_free(Headroom::percent(100));
//! let guard = StorageGuardLayer::new(volume).calls(["upload.v1.Uploads/Put"])?;
//! // And then: Server::builder().layer(guard).add_service(UploadsServer::new(..))
//!
//! # let service = guard.layer(Routes::default());
//! # let call = Request::post("/upload.v1.Uploads/Put").header("content-type", "application/grpc");
//! # let answer = service.oneshot(call.body(Body::new("content".to_owned()))?).await?;
//! let refusal = Status::from_header_map(answer.headers()).expect("it is refused");
//! assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
//! assert_eq!(refusal.message(), "Server storage capacity reached");
//! # Ok(())
//! # }
//! ```
//!
//! # What is counted
//!
//! What comes over the wire: fields and prefixes too, about ten bytes a message. So a file of exactly what is
//! left does not fit. What is charged in the end is what the handler reports as
//! [stored](crate::Reservation::stored). Where messages are compressed, that is more than what came: let the
//! reservation [grow](crate::Reservation::grow) before you write.
//!
//! # How a call is settled
//!
//! By the status in its trailers, when both directions have ended. A call that ends in anything but OK is
//! released; so is one whose client has left. A stream that is cut when its head is out ends in
//! RESOURCE_EXHAUSTED, in the trailers.
//!
//! tonic reads a reset by the client as the end of the stream, so that half an upload looks whole. The body
//! of a guarded call hides that: the stream ends in an error.
//!
//! # With gRPC-Web
//!
//! The guard may be on either side of tonic-web's layer. Inside of it, it counts what the service reads;
//! outside, what the client sends.

#[cfg(feature = "tonic-health")]
pub mod health;

use std::{error::Error, sync::Arc};

use tonic::{Request, Status};

use crate::{
    fault::{self, Classifier},
    refusal::{self, Refusal},
    refused::Refused,
    reservation::Reservation,
};
use tower::BoxError;

/// Any error of a handler's as a [`Status`], with the error as its source, for the guard to classify.
///
/// `io::Error` has a conversion into `Status` of its own, which `?` takes, and which loses the error: a full
/// disk becomes UNKNOWN. So say `.map_err(status)?` instead.
///
/// - A storage fault, as [`Classifier::default`] finds it, is RESOURCE_EXHAUSTED in the standard words. The guard
///   puts it in the layer's own words; but behind the head of a stream, it cannot see where it comes from.
/// - A `Status` in the error's chain is taken as it is.
/// - Everything else is INTERNAL, and the client learns nothing of it.
pub fn status(error: impl Into<BoxError>) -> Status {
    status_by(fault::common(), error)
}

/// As [`status`], with a classifier of your own. It should be the layer's.
pub fn status_by(classifier: &Classifier, error: impl Into<BoxError>) -> Status {
    let error = match error.into().downcast::<Status>() {
        Ok(status) => return *status,
        Err(error) => error,
    };
    let error: Arc<dyn Error + Send + Sync> = error.into();
    let refusal = fault::find::<Refused>(&*error)
        .map(|refused| Refusal::from(refused.clone()))
        .or_else(|| classifier.classify(&*error).map(Refusal::from));
    let mut status = match refusal {
        Some(refusal) => refusal::status(&refusal, None),
        None => fault::find::<Status>(&*error)
            .cloned()
            .unwrap_or_else(|| Status::internal("Internal error")),
    };
    status.set_source(error);
    status
}

/// There was no room: RESOURCE_EXHAUSTED, with the refusal as its source.
impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        status(refused)
    }
}

/// The request's reservation.
///
/// # Errors
///
/// INTERNAL where the request is not guarded: there is no layer, or the call is not
/// [named](crate::StorageGuardLayer::calls).
pub fn reservation<T>(request: &Request<T>) -> Result<Reservation, Status> {
    let reservation = request.extensions().get::<Reservation>().cloned();
    reservation.ok_or_else(|| Status::internal("the call is not guarded"))
}
