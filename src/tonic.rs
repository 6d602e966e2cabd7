//! What only tonic needs.
//!
//! The guard itself speaks gRPC without this: it reads headers and trailers. Here is what lets a handler hand
//! its errors to the guard.

use std::{error::Error, sync::Arc};

use tonic::{Request, Status};

use crate::{
    BoxError, Refused, Reservation,
    fault::{self, Classifier},
    refusal::{self, Refusal},
};

/// Any error of a handler's as a [`Status`], with the error as its source, for the guard to classify.
///
/// `io::Error` has a conversion into `Status` of its own, which `?` takes, and which loses the error: a full
/// disk becomes UNKNOWN. So say `.map_err(status)?` instead.
///
/// - A storage fault, as [`Classifier::default`] finds it, is RESOURCE_EXHAUSTED in the standard words.
/// - A `Status` in the error's chain is taken as it is.
/// - Everything else is INTERNAL, and the client learns nothing of it.
pub fn status(error: impl Into<BoxError>) -> Status {
    status_by(&Classifier::default(), error)
}

/// As [`status`], with a classifier of your own. It should be the layer's.
pub fn status_by(classifier: &Classifier, error: impl Into<BoxError>) -> Status {
    let error = match error.into().downcast::<Status>() {
        Ok(status) => return *status,
        Err(error) => error,
    };
    let error: Arc<dyn Error + Send + Sync> = error.into();
    let refusal = fault::find::<Refused>(&*error)
        .map(|refused| refused.refusal().clone())
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
    reservation
        .ok_or_else(|| Status::internal("the call is not guarded: is it named at the layer?"))
}
