//! Quotas in a store: asked directly, or leased.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tower_storage_guard::{
    BoxError, Scope, Scopes,
    observer::Observer,
    quota::{AnyQuota, Change, Limits, Usage},
    store::{
        self, Account, Admin, Journal, LeasedQuota, ObservedStore, Settled, Store, StoredQuota,
    },
};

/// How long a caller waits for a charge to reach the store. It reaches the store even after that.
const CHARGED: Duration = Duration::from_secs(2);

pub(crate) type Intent = store::Intent<Arc<dyn Store>>;

/// Quotas in a store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stored {
    quota: StoredQuota<Arc<dyn Store>>,
    leased: Option<LeasedQuota<Arc<dyn Store>>>,
    /// Whether it was counted when it was opened.
    is_counted: bool,
    emptied: Arc<Notify>,
}

impl Stored {
    /// With the limits of scopes that have none of their own in the store. Charges that have not reached the store yet are in
    /// the directory `journal`, and what was intended there is resolved by `made`. The observer is told of both.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        journal: PathBuf,
        time_to_live: Duration,
        has_leases: bool,
        limits: HashMap<Scope, Limits>,
        made: impl Fn(&[u8]) -> io::Result<Change> + Send + 'static,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self, BoxError> {
        let is_counted = Admin::new(Arc::clone(&store)).is_counted().await?;
        let journal = spawn_blocking(move || {
            let mut journal = Journal::open(journal)?;
            match is_counted {
                true => journal.resolve(made)?,
                // Of files that are about to be counted.
                false => journal.discard()?,
            }
            Ok::<_, io::Error>(journal)
        });
        let mut journal = journal.await??;
        let mut store = store;
        if let Some(observer) = observer {
            journal = journal.observer(Arc::clone(&observer));
            store = Arc::new(ObservedStore::new(store, observer));
        }
        let emptied = Arc::new(Notify::new());
        let notice = Arc::clone(&emptied);
        let quota = StoredQuota::builder(store, Limits::UNLIMITED)
            .limits_by(move |scope| limits.get(scope).copied().unwrap_or(Limits::UNLIMITED))
            .on_emptied(move || notice.notify_one())
            .time_to_live(time_to_live)
            .journal(journal)
            .build();
        Ok(Self {
            leased: has_leases.then(|| LeasedQuota::new(quota.clone())),
            quota,
            is_counted,
            emptied,
        })
    }

    pub(crate) fn is_counted(&self) -> bool {
        self.is_counted
    }

    pub(crate) async fn declare_counted(&self) -> Result<(), BoxError> {
        Ok(self.quota.declare_counted().await?)
    }

    pub(crate) async fn emptied(&self) {
        self.emptied.notified().await;
    }

    pub(crate) fn source(&self) -> AnyQuota {
        match &self.leased {
            Some(leased) => AnyQuota::new(leased.clone()),
            None => AnyQuota::new(self.quota.clone()),
        }
    }

    pub(crate) async fn is_new(&self, scope: &Scope) -> Result<bool, BoxError> {
        let account = self.quota.admin().account(scope).await?;
        Ok(account == Account::default())
    }

    pub(crate) async fn set_limits(&self, scope: &Scope, limits: Limits) -> Result<(), BoxError> {
        self.quota.admin().set_limits(scope, limits).await?;
        Ok(())
    }

    pub(crate) async fn usage(&self, scope: &Scope) -> Result<Usage, BoxError> {
        Ok(self.quota.usage(scope).await?)
    }

    pub(crate) async fn intend(&self, scopes: &Scopes, note: &str) -> Intent {
        self.quota.intend(scopes.clone(), note).await
    }

    pub(crate) async fn charge(&self, scopes: &Scopes, change: Change) {
        charged(self.quota.adjust(scopes.clone(), change)).await;
    }

    pub(crate) async fn are_settled(&self) {
        if let Some(leased) = &self.leased {
            leased.settled().await;
        }
        while self.unsettled() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.quota.unsettled()
    }
}

/// Waits for a charge. The wait is bounded, and the charge is not lost when it ends.
pub(crate) async fn charged(settled: Settled) {
    let _ = timeout(CHARGED, settled).await;
}
