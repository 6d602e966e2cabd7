//! Support for tonic: errors of handlers as [`Status`], the reservation of a request, and health checks.
//!
//! The guard itself supports gRPC without this module, because it reads headers and trailers. It is a layer for
//! `tonic::transport::Server`, and for axum's router if both are on one port. With this module, a handler can pass
//! its errors to the guard, and access its reservation.
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
//! // The whole volume is headroom here, so that nothing fits.
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
//! The guard counts the bytes on the wire, with fields and prefixes, which are about ten bytes a message. So a file of
//! exactly the remaining size does not fit. The final charge is the size that the handler reports as
//! [stored](crate::Reservation::stored). If messages are compressed, that exceeds the bytes received: let the
//! reservation [grow](crate::Reservation::grow) before you write.
//!
//! # How a call is settled
//!
//! A call is settled by the status in its trailers, when both directions have ended. A call that does not end in OK is
//! released, and so is a call whose client has disconnected. A stream that is cut after its head was sent ends in
//! RESOURCE_EXHAUSTED, in the trailers.
//!
//! tonic treats a reset by the client as the end of the stream, so half an upload looks complete. The body of a
//! guarded call prevents that: the stream ends in an error.
//!
//! # With gRPC-Web
//!
//! The guard may be on either side of tonic-web's layer. Inside of it, the guard counts the bytes that the service
//! reads. Outside, it counts the bytes that the client sends.

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

/// Converts a handler's error into a [`Status`], with the error as its source, for the guard to classify.
///
/// `io::Error` has its own conversion into `Status`, which `?` uses, and which drops the error: a full disk becomes
/// UNKNOWN. So use `.map_err(status)?` instead.
///
/// - A storage fault, as found by [`Classifier::default`], becomes RESOURCE_EXHAUSTED with the default message. The
///   guard replaces it by the layer's message. After the head of a stream was sent, the guard only sees the status and
///   passes it on.
/// - Content that is larger than a file can be becomes OUT_OF_RANGE.
/// - A `Status` in the error's chain is returned unchanged.
/// - Everything else becomes INTERNAL, and the client learns nothing about it.
pub fn status(error: impl Into<BoxError> + 'static) -> Status {
    status_by(fault::common(), error)
}

/// Converts an error like [`status`], with a classifier of your own. It should be the layer's.
pub fn status_by(classifier: &Classifier, error: impl Into<BoxError> + 'static) -> Status {
    let error = match fault::boxed(error).downcast::<Status>() {
        Ok(status) => return *status,
        Err(error) => error,
    };
    let error: Arc<dyn Error + Send + Sync> = error.into();
    let refusal = fault::find::<Refused>(&*error)
        .map(|refused| Refusal::from(refused.clone()))
        .or_else(|| Refusal::of_verdict(classifier.judge_unreported(&*error)?));
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

/// Returns the request's reservation.
///
/// # Errors
///
/// INTERNAL if the request is not guarded: there is no layer, or the call is not
/// [named](crate::StorageGuardLayer::calls).
pub fn reservation<T>(request: &Request<T>) -> Result<Reservation, Status> {
    let reservation = request.extensions().get::<Reservation>().cloned();
    reservation.ok_or_else(|| Status::internal("the call is not guarded"))
}

#[cfg(all(test, feature = "anyhow1", feature = "eyre06"))]
mod tests {
    use std::io;

    use tonic::Code;

    use super::*;

    #[test]
    fn a_report_has_the_status_of_what_is_in_it() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let not_found = || Status::not_found("no such file");
        for (status, code) in [
            (status(anyhow::Error::from(full())), Code::ResourceExhausted),
            (status(eyre::Report::from(full())), Code::ResourceExhausted),
            (status(anyhow::Error::from(not_found())), Code::NotFound),
            (status(eyre::Report::from(not_found())), Code::NotFound),
            (status(anyhow::anyhow!("it broke")), Code::Internal),
        ] {
            assert_eq!(status.code(), code, "{status:?}");
        }
    }
}
