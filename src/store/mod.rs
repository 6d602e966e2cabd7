//! Quotas that outlive the process: a [`StoredQuota`] over a [`Store`].
//!
//! | store | feature | shared by |
//! |---|---|---|
//! | `SqliteStore` | `store-sqlite` | the processes of one machine; SQLite is compiled in |
//! | `PostgresStore` | `store-postgres` | any number of machines, by a pool of your own sqlx |
//! | `RedisStore` | `store-redis` | any number of machines, in Redis or Valkey, on one server or in a cluster |
//! | your own [`Store`] | `store` | any process that can reach it |
//!
//! ```
//! # #[cfg(feature = "store-sqlite")] {
//! use tower_storage_guard::{
//!     Amount, Scopes,
//!     quota::{Limits, QuotaHold, QuotaSource},
//!     store::{SqliteStore, StoredQuota},
//! };
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("quota.db");
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let quota = StoredQuota::new(SqliteStore::open(&path)?, Limits::bytes(100));
//! let user = Scopes::from("user:42");
//! let hold = quota.reserve(&user, Amount::bytes(80), Amount::ZERO).await?;
//! hold.commit(Amount::bytes(60).into()).await;
//!
//! // Another process, or this one after a restart.
//! let quota = StoredQuota::new(SqliteStore::open(&path)?, Limits::bytes(100));
//! assert_eq!(quota.usage("user:42").await?.used, Amount::bytes(60));
//! assert!(quota.reserve(&user, Amount::bytes(41), Amount::ZERO).await.is_err());
//! # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
//! # }).unwrap();
//! # }
//! ```
//!
//! # Beside the quota
//!
//! - [`LeasedQuota`] decides most requests in memory, from budget that it leases from a [`StoredQuota`].
//! - [`Journal`] keeps charges on the local disk until the store has taken them.
//! - [`ObservedStore`] tells an observer how long a store takes to answer.
//! - [`Admin`] looks at accounts and corrects them, in a service or in a tool.
//!
//! # When to use this, and when not
//!
//! - Where one process serves the storage, and counts its files at each start,
//!   [`MemoryQuota`](crate::quota::MemoryQuota) is simpler and faster.
//! - Where your own database counts usage already, [`quota_fn`](crate::quota::quota_fn) and
//!   [`quota_future`](crate::quota::quota_future) read it there. They are exact within one process.
//! - Where several processes share limits, or limits and usage must survive a restart, use a store.

mod admin;
mod baseline;
mod builder;
#[cfg(any(feature = "conformance", test))]
pub mod conformance;
mod contract;
mod error;
mod intent;
mod journal;
mod leased;
mod observed;
#[cfg(feature = "store-postgres")]
mod postgres;
mod records;
#[cfg(feature = "store-redis")]
mod redis;
mod settler;
mod soft;
mod source;
#[cfg(any(feature = "store-postgres", feature = "store-sqlite"))]
mod sql;
#[cfg(feature = "store-sqlite")]
mod sqlite;
#[cfg(any(feature = "store-postgres", feature = "store-redis"))]
mod time;

#[cfg(feature = "store-postgres")]
pub use self::postgres::PostgresStore;
#[cfg(feature = "store-redis")]
pub use self::redis::{RedisConnection, RedisStore};
#[cfg(feature = "store-sqlite")]
pub use self::sqlite::SqliteStore;
pub use self::{
    admin::{Admin, Rescan, RescanError},
    builder::StoredQuotaBuilder,
    contract::{Store, StoreFuture},
    error::{StoreError, StoreErrorKind},
    intent::Intent,
    journal::Journal,
    leased::{LeasedHold, LeasedQuota},
    observed::ObservedStore,
    records::{Account, Baseline, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement},
    settler::Settled,
    source::{StoredHold, StoredQuota},
};
