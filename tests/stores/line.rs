//! The connection to a store: its latency, its error rate, and whether it is cut.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tower_storage_guard::{
    Amount, Scope, Scopes,
    quota::{Limits, OverSoftLimit, QuotaError},
    store::{
        Account, Baseline, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreError,
        StoreFuture,
    },
};

/// A store at the end of a connection.
pub(crate) struct Line<S> {
    store: Arc<S>,
    /// The latency in each direction.
    latency: Duration,
    trips: AtomicU64,
    is_cut: AtomicBool,
    panics: AtomicBool,
}

impl<S: Store> Line<S> {
    pub(crate) fn new(store: Arc<S>, latency: Duration) -> Self {
        Self {
            store,
            latency,
            trips: AtomicU64::new(0),
            is_cut: AtomicBool::new(false),
            panics: AtomicBool::new(false),
        }
    }

    pub(crate) fn trips(&self) -> u64 {
        self.trips.load(Relaxed)
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Relaxed);
    }

    pub(crate) fn panic_once(&self) {
        self.panics.store(true, Relaxed);
    }

    /// Fails on the way to the store, or on the way back.
    async fn trip<T>(&self, step: impl Future<Output = T>) -> Result<T, StoreError> {
        self.trips.fetch_add(1, Relaxed);
        assert!(!self.panics.swap(false, Relaxed), "asked to panic");
        self.way().await?;
        let answer = step.await;
        self.way().await?;
        Ok(answer)
    }

    async fn way(&self) -> Result<(), StoreError> {
        // No sleep is shorter than a millisecond.
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        match self.is_cut.load(Relaxed) {
            true => Err(StoreError::unavailable("the line is cut")),
            false => Ok(()),
        }
    }
}

impl<S: Store> Store for Line<S> {
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        Box::pin(async { self.trip(async { self.store.reserve(asked).await }).await? })
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>> {
        Box::pin(async {
            self.trip(async { self.store.settle(settlements).await })
                .await?
        })
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.trip(async { self.store.renew(holds, time_to_live).await })
                .await?
        })
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        self.store.account(scope)
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()> {
        self.store.set_limits(scope, limits)
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        self.store.set_used(scope, used)
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        self.store.largest(count)
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        self.store.holds(scope, count)
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        self.store.remove(scope)
    }

    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
        self.store.baseline()
    }

    fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline> {
        self.store.set_baseline(baseline)
    }
}
