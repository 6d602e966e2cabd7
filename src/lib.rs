//! Storage guard for Tower services.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(feature = "axum")]
pub mod axum;
mod body;
mod demand;
pub mod fault;
mod future;
mod layer;
mod line;
mod outage;
pub mod quota;
pub mod refusal;
mod reservation;
mod scope;
mod service;
mod time;
pub mod volume;

pub use self::{
    body::{MeteredBody, ResponseBody},
    demand::{Amount, Demand},
    future::ResponseFuture,
    layer::StorageGuardLayer,
    outage::Outage,
    reservation::{Refused, Reservation},
    scope::{Scope, Scopes},
    service::StorageGuard,
    volume::{Headroom, Probe, Reading, Volume},
};
pub use tower::BoxError;
