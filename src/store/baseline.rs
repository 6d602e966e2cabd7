//! Whether the usage in a store is still based on a count of what is stored.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{Baseline, Store, StoreError, StoreErrorKind};

/// Called when a store was found emptied.
pub(super) type OnEmptied = dyn Fn() + Send + Sync;

/// The baseline that a quota goes by.
pub(super) struct Based {
    on: Mutex<On>,
    /// How often that has changed.
    changes: AtomicU64,
    on_emptied: Option<Box<OnEmptied>>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum On {
    /// The store was not asked yet.
    Unasked,
    /// It was new when it was asked first, so what was reserved before it had a baseline counts.
    New(Baseline),
    Count(Baseline),
    /// The store has another baseline, or none.
    Emptied,
}

impl Based {
    pub(super) fn new(on_emptied: Option<Box<OnEmptied>>) -> Self {
        Self {
            on: Mutex::new(On::Unasked),
            changes: AtomicU64::new(0),
            on_emptied,
        }
    }

    /// Goes by this baseline from now on.
    pub(super) fn set(&self, baseline: Baseline) {
        self.change(&mut self.lock(), On::Count(baseline));
    }

    /// How often the baseline has changed. What the store held before is not there any more.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether the store was found emptied, and not counted since.
    pub(super) fn is_emptied(&self) -> bool {
        *self.lock() == On::Emptied
    }

    /// Sets it, unless it has changed since it was read. Returns whether it did.
    fn change_from(&self, read: On, to: On) -> bool {
        let mut on = self.lock();
        let is_same = *on == read;
        if is_same {
            self.change(&mut on, to);
        }
        is_same
    }

    fn change(&self, on: &mut On, to: On) {
        if *on != to {
            *on = to;
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, On> {
        self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this quota goes by the baseline on which something was reserved.
    fn is(&self, found: Option<Baseline>) -> bool {
        match *self.lock() {
            On::New(baseline) => found.is_none_or(|found| found == baseline),
            On::Count(baseline) => found == Some(baseline),
            On::Unasked | On::Emptied => false,
        }
    }

    /// Decides whether a reservation counts that the store made on this baseline.
    pub(super) async fn check(
        &self,
        store: &impl Store,
        found: Option<Baseline>,
    ) -> Result<(), StoreError> {
        if found.is_some() && self.is(found) {
            return Ok(());
        }
        // Asked again, because the reservation may have been made before the store was emptied and counted.
        let on = *self.lock();
        let mut now = store.baseline().await?;
        if now.is_none() && self.on_emptied.is_none() && on == On::Unasked {
            now = Some(store.set_baseline(Baseline::unique()).await?);
        }
        self.note(on, now, found);
        if self.is(found) {
            return Ok(());
        }
        let emptied = "the store was emptied: what is stored has to be counted again";
        Err(StoreError::new(StoreErrorKind::NotCounted, emptied))
    }

    /// Notes which baseline the store has `now`. What a count has declared since `on` was read is newer, and stays.
    fn note(&self, on: On, now: Option<Baseline>, found: Option<Baseline>) {
        let noted = match (now, on) {
            (Some(now), On::New(known) | On::Count(known)) if now == known => return,
            (Some(now), On::Unasked) if found.is_none() && self.on_emptied.is_none() => {
                On::New(now)
            }
            (Some(now), On::Unasked) => On::Count(now),
            // Without a hook, another process or a tool has counted it.
            (Some(now), _) if self.on_emptied.is_none() => On::Count(now),
            _ => On::Emptied,
        };
        if noted != on
            && self.change_from(on, noted)
            && noted == On::Emptied
            && let Some(on_emptied) = &self.on_emptied
        {
            on_emptied();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use super::*;
    use crate::{
        amount::Amount,
        quota::{Limits, QuotaError, QuotaHold, QuotaSource},
        scope::Scopes,
        store::{Admin, StoredQuota, conformance::ReferenceStore},
    };

    type Quota = StoredQuota<Arc<ReferenceStore>>;

    /// Whether one byte is admitted. It is stored then.
    async fn admits(quota: &Quota) -> bool {
        let byte = Amount::bytes(1);
        match quota
            .reserve(&Scopes::from("user"), byte, Amount::ZERO)
            .await
        {
            Ok(hold) => {
                hold.commit(byte.into()).await;
                true
            }
            Err(QuotaError::Unavailable(error)) => {
                let error = error.downcast::<StoreError>().unwrap();
                assert_eq!(error.kind(), StoreErrorKind::NotCounted, "{error}");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn with_hook(store: &Arc<ReferenceStore>) -> (Quota, Arc<AtomicUsize>) {
        let called = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&called);
        let quota = StoredQuota::builder(Arc::clone(store), Limits::bytes(100))
            .on_emptied(move || {
                count.fetch_add(1, Relaxed);
            })
            .build();
        (quota, called)
    }

    #[tokio::test]
    async fn an_emptied_store_admits_nothing_until_it_is_declared_counted() {
        let store = Arc::new(ReferenceStore::default());
        let quota = Quota::new(Arc::clone(&store), Limits::bytes(100));
        assert!(admits(&quota).await, "a new store is taken as counted");
        store.clear();
        for _ in 0..2 {
            assert!(!admits(&quota).await);
            assert!(!quota.admin().is_counted().await.unwrap());
        }
        // A refused request holds nothing.
        quota.adjust("user", Amount::ZERO.into()).await;
        assert_eq!(quota.usage("user").await.unwrap().held, Amount::ZERO);
        quota.adjust("user", Amount::bytes(60).into()).await;
        assert!(!admits(&quota).await, "a charge is no count");
        // By a tool.
        Admin::new(Arc::clone(&store))
            .declare_counted()
            .await
            .unwrap();
        assert!(admits(&quota).await);
        assert_eq!(quota.usage("user").await.unwrap().used, Amount::bytes(61));
        store.clear();
        assert!(!admits(&quota).await, "emptied again");
        quota.declare_counted().await.unwrap();
        assert!(admits(&quota).await);
    }

    #[tokio::test]
    async fn a_hook_is_called_once_for_each_time() {
        let store = Arc::new(ReferenceStore::default());
        let (quota, called) = with_hook(&store);
        for times in 1..=3 {
            for _ in 0..3 {
                assert!(!admits(&quota).await);
                assert_eq!(called.load(Relaxed), times);
            }
            quota.declare_counted().await.unwrap();
            for _ in 0..3 {
                assert!(admits(&quota).await);
            }
            store.clear();
        }
    }

    /// The files of the second process are missing from the count of the first.
    #[tokio::test]
    async fn each_process_with_a_hook_counts_by_itself() {
        let store = Arc::new(ReferenceStore::default());
        let ((one, _), (other, called)) = (with_hook(&store), with_hook(&store));
        one.declare_counted().await.unwrap();
        assert!(admits(&one).await && admits(&other).await);
        store.clear();
        assert!(!admits(&one).await);
        one.declare_counted().await.unwrap();
        assert!(admits(&one).await);
        assert!(!admits(&other).await);
        assert_eq!(called.load(Relaxed), 1);
        other.declare_counted().await.unwrap();
        assert!(admits(&one).await && admits(&other).await);
        assert_eq!(called.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_reservation_on_the_emptied_store_is_not_taken_for_another_time() {
        let store = Arc::new(ReferenceStore::default());
        let (quota, called) = with_hook(&store);
        quota.declare_counted().await.unwrap();
        assert!(admits(&quota).await);
        let based = &quota.shared.based;
        // Made before the store was counted, and answered afterwards.
        for late in [None, Some(Baseline::unique())] {
            based.check(&store, late).await.unwrap_err();
        }
        assert!(admits(&quota).await);
        assert_eq!(called.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn an_answer_that_is_older_than_a_count_changes_nothing() {
        let store = Arc::new(ReferenceStore::default());
        let (quota, called) = with_hook(&store);
        let based = &quota.shared.based;
        let admitted = async |times| {
            assert!(admits(&quota).await);
            assert_eq!(called.load(Relaxed), times);
        };
        assert!(!admits(&quota).await);
        // The store is asked, and counted before it answers.
        let on = *based.lock();
        quota.declare_counted().await.unwrap();
        for older in [None, Some(Baseline::unique())] {
            based.note(on, older, None);
        }
        admitted(1).await;
        // It is asked, then emptied and counted before it answers.
        let on = *based.lock();
        store.clear();
        assert!(!admits(&quota).await);
        quota.declare_counted().await.unwrap();
        based.note(on, None, None);
        admitted(2).await;
    }
}
