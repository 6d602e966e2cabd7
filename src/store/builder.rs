//! How a quota in a store is set up.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Journal, Store, StoredQuota,
    baseline::{Based, OnEmptied},
    records::TIME_TO_LIVE,
    settler::Settler,
    soft::{LimitsBy, SoftLimits},
    source::Shared,
};
use crate::{quota::Limits, scope::Scope};

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Sets up a [`StoredQuota`], and starts it once.
///
/// ```
/// # #[cfg(feature = "store-sqlite")] {
/// use std::time::Duration;
///
/// use tower_storage_guard::{
///     quota::Limits,
///     store::{Journal, SqliteStore, StoredQuota},
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let store = SqliteStore::open(folder.join("quota.db"))?;
/// let quota = StoredQuota::builder(store, Limits::bytes(1 << 30))
///     .time_to_live(Duration::from_secs(60))
///     .journal(Journal::open(folder.join("journal"))?)
///     .build();
/// # drop(quota);
/// # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
/// # }).unwrap();
/// # }
/// ```
#[must_use = "nothing is started before `build`"]
pub struct StoredQuotaBuilder<S> {
    store: S,
    limits: Box<LimitsBy>,
    time_to_live: Duration,
    journal: Option<Journal>,
    on_emptied: Option<Box<OnEmptied>>,
}

impl<S: Store> StoredQuota<S> {
    /// Starts quotas with these limits for every scope that has none of its own, and default settings.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(store: S, default: Limits) -> Self {
        Self::builder(store, default).build()
    }

    /// Returns a builder of quotas with these limits for every scope that has none of its own.
    pub fn builder(store: S, default: Limits) -> StoredQuotaBuilder<S> {
        StoredQuotaBuilder {
            store,
            limits: Box::new(move |_| default),
            time_to_live: TIME_TO_LIVE,
            journal: None,
            on_emptied: None,
        }
    }
}

impl<S: Store> StoredQuotaBuilder<S> {
    /// Sets how long a hold outlives its process. Clamped to between a second and a year.
    ///
    /// A long time keeps the room of a killed process from others for as long. A short time costs more renewals, and lets
    /// a process that cannot reach the store lose its holds sooner. Defaults to 30 seconds.
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = time_to_live.clamp(SECOND, YEAR);
        self
    }

    /// Sets the limits of each scope that has none of its own, in place of the same ones for all.
    ///
    /// Use it for limits that come from a configuration. A store that was emptied has forgotten the limits that were set in
    /// it, and these apply again.
    pub fn limits_by(mut self, limits: impl Fn(&Scope) -> Limits + Send + Sync + 'static) -> Self {
        self.limits = Box::new(limits);
        self
    }

    /// Calls `emptied` when the store has no [baseline](super::Baseline), or another one than this process knows: when it
    /// is new, and when it was deleted, flushed, or restarted without its data. Requests are
    /// [`QuotaError::Unavailable`](crate::quota::QuotaError::Unavailable) from then on, until
    /// [`declare_counted`](StoredQuota::declare_counted). It must not block.
    ///
    /// Use it to start a count of what is stored, or to tell an operator. It is called once for each time that the store is
    /// found so, by the first request. Defaults to doing nothing: a store that is new is then taken as counted, and one that
    /// was emptied later has to be declared counted by [`Admin::declare_counted`](super::Admin::declare_counted).
    ///
    /// Where several processes share a store and each counts files of its own, let each *add* its count: the first one that
    /// declares the store counted admits requests before the others have counted.
    pub fn on_emptied(mut self, emptied: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_emptied = Some(Box::new(emptied));
        self
    }

    /// Keeps charges in this journal until the store has taken them, and charges what an earlier process left there.
    ///
    /// Use it when charges must survive a kill while the store is away. Defaults to none: charges that the store has not
    /// taken are lost with the process.
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = Some(journal);
        self
    }

    /// Starts the quota: the tasks that settle and renew holds, and with a journal the one that writes it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn build(self) -> StoredQuota<S> {
        let store = Arc::new(self.store);
        let soft = SoftLimits::new(self.limits);
        let (own, watched) = (Arc::clone(&store), Arc::clone(&soft));
        let settler = Settler::start(own, watched, self.time_to_live, self.journal);
        StoredQuota {
            shared: Arc::new(Shared {
                store,
                soft,
                time_to_live: self.time_to_live,
                settler,
                based: Based::new(self.on_emptied),
            }),
        }
    }
}

impl<S> fmt::Debug for StoredQuotaBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredQuotaBuilder")
            .field("time_to_live", &self.time_to_live)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::*;
    use crate::{quota::Limits, store::conformance::ReferenceStore};

    #[tokio::test]
    async fn a_quota_is_started_once_however_it_is_set_up() {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let builder = || StoredQuota::builder(ReferenceStore::default(), Limits::UNLIMITED);
        let plain = StoredQuota::new(ReferenceStore::default(), Limits::UNLIMITED);
        let of_one = tasks();
        assert!(of_one > 0);
        let set_up = builder()
            .time_to_live(SECOND)
            .limits_by(|_| Limits::UNLIMITED)
            .time_to_live(SECOND * 3);
        assert_eq!(tasks(), of_one, "a setter starts nothing");
        let quota = set_up.build();
        assert_eq!(tasks(), 2 * of_one);

        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let journaled = builder().journal(journal).time_to_live(SECOND).build();
        assert_eq!(tasks(), 3 * of_one + 1, "one task more writes the journal");
        drop((plain, quota, journaled));
    }
}
