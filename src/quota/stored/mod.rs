//! Quotas that outlive the process: a [`StoredQuota`] over a [`Store`].

mod keeper;
mod leased;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis-store")]
mod redis;
mod source;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;

#[cfg(feature = "postgres")]
pub use self::postgres::PostgresStore;
#[cfg(feature = "redis-store")]
pub use self::redis::{RedisConnection, RedisStore};
#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteStore;
pub use self::{
    keeper::Settled,
    leased::{LeasedHold, LeasedQuota},
    source::{StoredHold, StoredQuota},
    store::{
        Account, Ceilings, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement, Store,
        StoreFuture,
    },
};
