//! The engines: this crate's store in each, and the cheapest equivalent operation of the engine itself.

mod postgres;
mod redis;
mod sqlite;

use tower_storage_guard::{BoxError, store::Store};

pub(crate) use self::{postgres::Postgres, redis::Redis, sqlite::Sqlite};

/// The number of scopes unless there are many.
pub(crate) const FEW: u32 = 100;

/// An engine that runs for this benchmark only, in a folder of its own.
pub(crate) trait Engine: Sized {
    const NAME: &str;
    type Store: Store;
    type Raw: Raw;

    /// Starts it.
    async fn start() -> Self;

    /// This crate's store, with connections of its own, as on another node.
    async fn store(&self) -> Self::Store;

    /// The engine without the store, with the same kind of connections.
    async fn raw(&self) -> Self::Raw;

    /// Creates this many scopes with some usage, from `user:0` on, in an otherwise empty store.
    async fn fill(&self, scopes: u32);

    /// The disk or memory that it uses, in bytes.
    async fn size(&self) -> u64;

    /// How often per second the engine's own tool does the same as [`Raw`], measured for about this long. None if the
    /// tool is missing, or the engine has none.
    async fn by_its_own_tool(&self, at_a_time: usize, is_short: bool) -> Option<f64>;
}

/// The engine's own fastest equivalent of a step: incrementing a number.
pub(crate) trait Raw: Send + Sync + 'static {
    /// Increments one of [`FEW`] numbers. Only a charge has to be as durable as the store makes charges.
    fn add(
        &self,
        number: u32,
        is_charge: bool,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}
