//! Requests that are steps of something larger: where a protocol takes part in the way of a request.
//!
//! A protocol of several requests looks at a head before it is priced, may let the request draw from what an earlier one has
//! reserved, and hears how it was answered.

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

/// Finds the requests that are steps of something larger.
pub(crate) trait Steps: Send + Sync {
    fn find(&self, head: &request::Parts) -> Option<Box<dyn FoundStep>>;
}

/// A request that is a step of something larger, by its head.
pub(crate) trait FoundStep: Send {
    /// Whether something was set aside for it, so that the guard applies whatever other requests are like.
    fn is_open(&self) -> bool;

    /// None where the request is priced like any other.
    fn visit(self: Box<Self>, demand: Demand) -> Option<Box<dyn Visit>>;
}

/// One request's way through something larger.
pub(crate) trait Visit: Send {
    /// What an answer to the request has to say.
    fn mark(&self, asked: &mut Asked);

    /// What the first request wants: all of it. None for the other requests.
    fn whole(&self, demand: Demand) -> Option<Demand>;

    /// What the request costs beside what is set aside already.
    fn draw(&self, demand: Demand, grant: u64) -> Draw;

    /// What the first request wanted is set aside. From here on it is one of several, and what it brings is returned. None
    /// for the other requests.
    fn begin(&mut self, whole: &Arc<dyn Exchange>) -> Option<Demand>;

    /// Runs when the request has ended, unless its answer says more.
    fn end_hook(&self) -> Option<EndHook>;

    /// What body, handle and answer see, given what is the request's own.
    fn share(&self, own: Arc<dyn Exchange>) -> Arc<dyn Exchange>;

    /// What a successful answer says.
    fn hear(self: Box<Self>, answer: &response::Parts) -> Box<dyn Heard>;
}

/// What a request draws.
pub(crate) enum Draw {
    /// All of it is set aside.
    Price(Price),
    /// More has to be set aside first. Then it is drawn again.
    Grow(BoxFuture<Result<(), Refused>>),
}

/// A request whose answer was heard.
pub(crate) trait Heard: Send {
    /// The request has ended. What is left to wait for is returned.
    fn end(self: Box<Self>, outcome: Outcome) -> Option<BoxFuture<bool>>;

    /// The request has succeeded, and has ended. What is left to wait for is returned.
    fn succeeded(self: Box<Self>) -> Option<BoxFuture<bool>>;
}
