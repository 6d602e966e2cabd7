//! Quotas that outlive the process: a [`StoredQuota`] over a [`Store`].

mod admin;
mod contract;
mod journal;
mod keeper;
mod leased;
#[cfg(feature = "store-postgres")]
mod postgres;
#[cfg(feature = "store-redis")]
mod redis;
mod source;
#[cfg(any(feature = "store-sqlite", feature = "store-postgres"))]
mod sql;
#[cfg(feature = "store-sqlite")]
mod sqlite;

#[cfg(feature = "store-postgres")]
pub use self::postgres::PostgresStore;
#[cfg(feature = "store-redis")]
pub use self::redis::{RedisConnection, RedisStore};
#[cfg(feature = "store-sqlite")]
pub use self::sqlite::SqliteStore;
pub use self::{
    admin::{Admin, Rescan, RescanError},
    contract::{
        Account, Ceilings, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement, Store,
        StoreFuture,
    },
    journal::Journal,
    keeper::Settled,
    leased::{LeasedHold, LeasedQuota},
    source::{StoredHold, StoredQuota},
};
