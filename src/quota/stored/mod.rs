//! Quotas that outlive the process: a [`StoredQuota`] over a [`Store`].

mod admin;
mod keeper;
#[cfg(feature = "postgres")]
mod postgres;
mod source;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;

#[cfg(feature = "postgres")]
pub use self::postgres::PostgresStore;
#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteStore;
pub use self::{
    admin::{Admin, Rescan, RescanError},
    keeper::Settled,
    source::{StoredHold, StoredQuota},
    store::{
        Account, Ceilings, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement, Store,
        StoreFuture,
    },
};
