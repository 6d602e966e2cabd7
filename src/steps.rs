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
    reservation::{BoxFuture, EndHook, Outcome},
};

/// Finds the requests that are steps of an upload.
pub(crate) trait Steps: Send + Sync {
    fn find(&self, head: &request::Parts) -> Option<Box<dyn FoundStep>>;
}

/// A request that is a step of an upload, by its head.
pub(crate) trait FoundStep: Send {
    /// Whether an earlier request has reserved for it, so that the guard applies to it in any case.
    fn is_open(&self) -> bool;

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

    /// The demand of the first request is reserved. From here on it is one of several, and the cost of its own part
    /// is returned. None for other requests.
    fn begin(&mut self, whole: &Arc<dyn Exchange>) -> Option<Demand>;

    /// Runs when the request has ended, unless its answer says more.
    fn end_hook(&self) -> Option<EndHook>;

    /// The operations for body, handle and answer, given the request's own reservation.
    fn share(&self, own: Arc<dyn Exchange>) -> Arc<dyn Exchange>;

    /// What a successful answer means for the upload.
    fn hear(self: Box<Self>, answer: &response::Parts) -> Box<dyn Heard>;
}

/// The result of a draw.
pub(crate) enum Draw {
    /// The whole amount is reserved.
    Price(Price),
    /// More has to be reserved first. Then the request draws again.
    Grow(BoxFuture<Result<(), Refused>>),
}

/// A request that was answered.
pub(crate) trait Heard: Send {
    /// The request has ended. Returns the work that is still pending.
    fn end(self: Box<Self>, outcome: Outcome) -> Option<BoxFuture<bool>>;

    /// The request has ended with success. Returns the work that is still pending.
    fn succeeded(self: Box<Self>) -> Option<BoxFuture<bool>>;
}
