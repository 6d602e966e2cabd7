//! Storage guard for Tower services.
#![forbid(unsafe_code)]

mod demand;
pub mod fault;
pub mod quota;
pub mod refusal;
mod scope;

pub use self::{
    demand::Amount,
    scope::{Scope, Scopes},
};
pub use tower::BoxError;
