//! Requests that are steps of an upload: the hooks for protocols of several requests.
//!
//! A protocol of several requests examines a head before the request is priced, may let the request draw from what an
//! earlier one has reserved, and is told how the request was answered.

use std::sync::Arc;

use http::{request, response};

use crate::{
    body::Exchange,
    demand::Demand,
    price::Price,
    refusal::Asked,
    refused::Refused,
    reservation::{BoxFuture, EndHook},
    scope::Scopes,
};

/// Finds the requests that are steps of an upload.
pub(crate) trait Steps: Send + Sync {
    fn find(&self, head: &request::Parts) -> Option<Box<dyn FoundStep>>;
}

/// A request that is a step of an upload, by its head.
pub(crate) trait FoundStep: Send {
    /// Whether an earlier request has reserved for it, so that the guard applies to it in any case.
    fn is_open(&self) -> bool;

    /// Whether it writes, even if its method does not.
    fn is_write(&self) -> bool;

    /// Whether it only asks what uploads are taken. It costs nothing, and its answer passes the guard.
    fn asks(&self) -> bool;

    /// None if the request is priced like any other.
    fn visit(self: Box<Self>, demand: Demand) -> Option<Box<dyn Visit>>;
}

/// The state of one request of an upload.
pub(crate) trait Visit: Send {
    /// The header that an answer to the request must have.
    fn mark(&self, asked: &mut Asked);

    /// The demand of the first request: the whole upload. None for other requests.
    fn whole(&self, demand: Demand) -> Option<Demand>;

    /// The cost of the request in addition to what is already reserved.
    fn draw(&self, demand: Demand, grant: u64) -> Draw;

    /// The demand of the first request is reserved. From here on it is one of several, and the demand of its own part
    /// is returned. None for other requests.
    fn begin(&mut self, whole: &Arc<dyn Exchange>) -> Option<Demand>;

    /// Runs when the request has ended.
    fn end_hook(&self) -> Option<EndHook>;

    /// The operations for body, handle and answer, given the request's own reservation.
    fn share(&self, own: Arc<dyn Exchange>) -> Arc<dyn Exchange>;

    /// The request is answered. Called before it has ended, unless the handler has committed it. It may add headers.
    fn answered(&self, answer: &mut response::Parts, success: bool);

    /// The scopes that the whole upload is charged to. None if the request is charged like any other.
    fn scopes(&self) -> Option<Scopes>;

    /// The request was answered and has ended. Returns the work that is still pending.
    fn settling(&self) -> Option<BoxFuture<bool>>;
}

/// The result of a draw.
pub(crate) enum Draw {
    /// The whole amount is reserved.
    Price(Price),
    /// More has to be reserved first. Then the request draws again.
    Grow(BoxFuture<Result<(), Refused>>),
}
