//! The engines: our store in each, and the least that the engine itself can be asked for.

mod postgres;
mod redis;
mod sqlite;

use tower_storage_guard::{BoxError, store::Store};

pub(crate) use self::{postgres::Postgres, redis::Redis, sqlite::Sqlite};

/// How many scopes there are unless there are many.
pub(crate) const FEW: u32 = 100;

/// An engine that runs for nobody else, in a folder of its own.
pub(crate) trait Engine: Sized {
    const NAME: &str;
    type Store: Store;
    type Raw: Raw;

    /// Starts it.
    async fn start() -> Self;

    /// Our store, by connections of its own, as on another node.
    async fn store(&self) -> Self::Store;

    /// The engine without us, by connections as our store has them.
    async fn raw(&self) -> Self::Raw;

    /// Makes so many scopes that use something, from `user:0` on. Nothing else is in there.
    async fn fill(&self, scopes: u32);

    /// How much disk or memory it takes, in bytes.
    async fn size(&self) -> u64;

    /// How often in a second the engine's own tool does the same as [`Raw`], for about so long or as good as never. None
    /// where the tool is missing, or there is none.
    async fn by_its_own_tool(&self, at_a_time: usize, is_short: bool) -> Option<f64>;
}

/// The engine's own fastest equivalent of a step: a number that grows.
pub(crate) trait Raw: Send + Sync + 'static {
    /// Of one out of [`FEW`] numbers. Only a charge has to be as safe as the store makes charges.
    fn add(
        &self,
        number: u32,
        is_charge: bool,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}
