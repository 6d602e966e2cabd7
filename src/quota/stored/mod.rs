//! Quotas that outlive the process: a [`StoredQuota`] over a [`Store`].

mod keeper;
#[cfg(feature = "redis-store")]
mod redis;
mod source;
mod store;

#[cfg(feature = "redis-store")]
pub use self::redis::RedisStore;
pub use self::{
    keeper::Settled,
    source::{StoredHold, StoredQuota},
    store::{
        Account, Ceilings, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreFuture,
    },
};
