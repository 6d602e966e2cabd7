//! A store whose answers are told to an observer.

use std::{error::Error, fmt, time::Duration};

use tokio::time::Instant;

use super::{
    Account, Baseline, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreError,
    StoreFuture,
};
use crate::{
    amount::Amount,
    observer::{Absence, Event, Observer},
    quota::{Limits, OverSoftLimit, QuotaError},
    scope::{Scope, Scopes},
};

/// Tells an observer of each answer of a store, with the time that it took.
///
/// Put it around the store of a [`StoredQuota`](super::StoredQuota) or a [`LeasedQuota`](super::LeasedQuota) for the events
/// [`StoreAnswered`](Event::StoreAnswered), [`StoreAway`](Event::StoreAway), [`StoreBack`](Event::StoreBack) and
/// [`Leased`](Event::Leased). The observer of a guard is told of the quota source's answers in any case: this one also sees what
/// happens beside requests, as settlements, and how many round trips there are.
///
/// A call that its caller has given up is not told. A store that is away fails its calls within bounded time, by its
/// [contract](Store), so that it is noticed all the same.
///
/// ```
/// # #[cfg(feature = "store-sqlite")] {
/// use tower_storage_guard::{
///     observer::Event,
///     quota::Limits,
///     store::{ObservedStore, SqliteStore, StoredQuota},
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("quota.db");
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let store = ObservedStore::new(SqliteStore::open(&path)?, |event: &Event<'_>| {
///     if let Event::StoreAway { error, .. } = event {
///         eprintln!("the quotas are away: {error}");
///     }
/// });
/// let quota = StoredQuota::new(store, Limits::bytes(1 << 30));
/// # drop(quota);
/// # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
/// # }).unwrap();
/// # }
/// ```
pub struct ObservedStore<S> {
    store: S,
    absence: Absence,
    observer: Box<dyn Observer>,
}

impl<S: Store> ObservedStore<S> {
    /// Puts an observer before a store.
    pub fn new(store: S, observer: impl Observer) -> Self {
        Self {
            store,
            absence: Absence::default(),
            observer: Box::new(observer),
        }
    }

    /// Returns the store.
    pub fn get_ref(&self) -> &S {
        &self.store
    }

    /// Tells the observer of this call.
    fn observed<'a, T: 'a, E: Failure + 'a>(
        &'a self,
        operation: &'static str,
        call: StoreFuture<'a, T, E>,
    ) -> StoreFuture<'a, T, E> {
        let asked = Instant::now();
        Box::pin(async move {
            let answer = call.await;
            let error = answer.as_ref().err().and_then(Failure::failure);
            self.tell(operation, asked.elapsed(), error);
            answer
        })
    }

    fn tell(&self, operation: &'static str, took: Duration, error: Option<&(dyn Error + 'static)>) {
        self.observer.observe(&Event::StoreAnswered {
            operation,
            took,
            error,
        });
        match error {
            Some(error) if self.absence.begins() => {
                self.observer.observe(&Event::StoreAway { error });
            }
            Some(_) => {}
            None => {
                if let Some(after) = self.absence.ends() {
                    self.observer.observe(&Event::StoreBack { after });
                }
            }
        }
    }
}

/// What a call may end with instead of what was asked for.
trait Failure: Send {
    /// The error, if the store has failed.
    fn failure(&self) -> Option<&(dyn Error + 'static)>;
}

impl Failure for StoreError {
    fn failure(&self) -> Option<&(dyn Error + 'static)> {
        Some(self)
    }
}

impl Failure for QuotaError {
    fn failure(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Exceeded(_) => None,
            Self::Unavailable(error) => Some(&**error),
        }
    }
}

impl<S: Store> Store for ObservedStore<S> {
    fn reserve<'a>(&'a self, reserve: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        self.observed("reserve", self.store.reserve(reserve))
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>> {
        self.observed("settle", self.store.settle(settlements))
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        self.observed("renew", self.store.renew(holds, time_to_live))
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        self.observed("account", self.store.account(scope))
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()> {
        self.observed("set_limits", self.store.set_limits(scope, limits))
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        self.observed("set_used", self.store.set_used(scope, used))
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        self.observed("largest", self.store.largest(count))
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        self.observed("holds", self.store.holds(scope, count))
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        self.observed("remove", self.store.remove(scope))
    }

    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
        self.observed("baseline", self.store.baseline())
    }

    fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline> {
        self.observed("set_baseline", self.store.set_baseline(baseline))
    }

    fn observer(&self) -> Option<&dyn Observer> {
        Some(&*self.observer)
    }
}

impl<S: fmt::Debug> fmt::Debug for ObservedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedStore")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}
