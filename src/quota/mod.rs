//! Quotas: limits and usage per [`Scope`](crate::Scope), kept by a [`QuotaSource`].
//!
//! | source | limits and usage are in | exact among |
//! |---|---|---|
//! | [`NoQuota`] | nowhere; charges no scope | |
//! | [`MemoryQuota`] | this process | all requests of this process |
//! | `dav::CollectionQuota` (feature `webdav`) | this process; usage is counted in the directories | all requests of this process |
//! | [`quota_fn`], [`quota_future`] | your own database | all requests of this process |
//! | `store::StoredQuota` | an SQLite file (feature `store-sqlite`), PostgreSQL (`store-postgres`), Redis or Valkey (`store-redis`), or your own store (`store`); they outlive the process | all requests of all processes |
//! | [`AnyQuota`] | in any of these, chosen at run time | what that promises |
//! | your own [`QuotaSource`] | anywhere | what it promises |
//!
//! ```
//! use tower_storage_guard::{
//!     Amount, Scopes,
//!     quota::{Change, Limits, MemoryQuota, QuotaHold, QuotaSource},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_storage_guard::quota::QuotaError> {
//! let quota = MemoryQuota::new(Limits::bytes(100));
//! let user = Scopes::from("user:42");
//!
//! let hold = quota.reserve(&user, Amount::bytes(80), Amount::ZERO).await?;
//! // Set aside already, though nothing is stored yet.
//! assert!(quota.reserve(&user, Amount::bytes(80), Amount::ZERO).await.is_err());
//!
//! // Half of it came.
//! hold.commit(Change::from(Amount::bytes(40))).await;
//! assert!(quota.reserve(&user, Amount::bytes(60), Amount::ZERO).await.is_ok());
//! # Ok(())
//! # }
//! ```

mod answer;
mod any;
mod change;
mod error;
mod function;
mod limits;
mod memory;
mod none;
mod open;
mod soft;
mod source;

#[cfg(any(feature = "store-postgres", feature = "store-sqlite"))]
pub(crate) use self::limits::Ceiling;
pub(crate) use self::soft::{Crossed, OverSince, SoftLimitHooks, over};
pub use self::{
    answer::{Answer, Answering},
    any::{AnyHold, AnyQuota},
    change::Change,
    error::{Exceeded, QuotaError},
    function::{FunctionHold, FunctionQuota, Quota, quota_fn, quota_future},
    limits::{Limits, OverFor, Usage},
    memory::{MemoryHold, MemoryQuota},
    none::NoQuota,
    open::{OpenFuture, OpenGrow, OpenHold, OpenQuota},
    soft::{OverSoftLimit, SoftLimitHook},
    source::{QuotaHold, QuotaSource},
};
