//! The cost of a request that a lease decides in memory, relative to a memory quota.
//!
//! `tests/stores/allocations.rs` counts the allocations of the same. The timed binary does not count: see `guard`.

use std::path::Path;

use tower_storage_guard::{
    Amount, Scopes,
    quota::{Limits, MemoryQuota, QuotaHold, QuotaSource},
    store::{LeasedQuota, SqliteStore, StoredQuota},
};

/// What a request stores.
pub(crate) const AMOUNT: Amount = Amount::new(1 << 10, 1);
/// More than all requests store together.
pub(crate) const LIMITS: Limits = Limits::bytes(1 << 60);

/// The allocations for reserving and committing.
pub(crate) const ALLOCATIONS_OF_MEMORY: u64 = 0;
pub(crate) const ALLOCATIONS_OF_LEASED: u64 = 0;

pub(crate) fn scope() -> Scopes {
    "user:42".into()
}

/// The account exists, as it does once something is stored.
pub(crate) fn memory() -> MemoryQuota {
    let quota = MemoryQuota::new(LIMITS);
    quota.set_used("user:42", AMOUNT);
    quota
}

/// With a lease that lasts, until the runtime finds that it is larger than necessary.
pub(crate) async fn leased(folder: &Path) -> LeasedQuota<SqliteStore> {
    let store = SqliteStore::open(folder.join("leased.db")).expect("a file");
    let quota = LeasedQuota::new(StoredQuota::new(store, LIMITS));
    let large = Amount::new(1 << 30, 1 << 20);
    loop {
        match quota.reserve(&scope(), large, Amount::ZERO).now() {
            Ok(hold) => {
                drop(hold.expect("room"));
                return quota;
            }
            Err(later) => drop(later.await.expect("room")),
        }
    }
}

/// Reserves and commits, if that is decided in memory. Returns whether it was.
pub(crate) fn once(quota: &impl QuotaSource, scope: &Scopes) -> bool {
    let answer = quota.reserve(scope, AMOUNT, Amount::ZERO).now();
    match answer {
        Ok(hold) => {
            drop(hold.expect("room").commit(AMOUNT.into()));
            true
        }
        Err(_) => false,
    }
}
