//! A quota source over a store.

use std::{fmt, mem, pin::Pin, sync::Arc, time::Duration};

use tower::BoxError;

use super::{
    Account, Admin, Ceilings, HoldId, Journal, Reserve, Settlement, Store,
    keeper::{Keeper, Settled},
};
use crate::{
    amount::Amount,
    quota::{Answer, Change, QuotaError, QuotaHold, QuotaSource, Usage},
    scope::{Scope, Scopes},
};

/// Keeps quotas in a [`Store`]: they outlive the process, and processes may share them.
///
/// A handle: clones share everything. It needs a tokio runtime, on which it renews holds and settles.
///
/// # Holds
///
/// A hold is in the store before its request is let in. It lives for the [time to live](Self::time_to_live), and is
/// renewed three times as often. So a process that is killed frees what it held within that time. A process that is
/// stopped, or cannot reach the store, for longer charges what it had let in all the same, as it is on the disk: only then
/// may usage pass a limit.
///
/// # When the store is away
///
/// What cannot be decided is [`QuotaError::Unavailable`], never a full quota. What has been stored is charged as soon as
/// the store is back. Until then the answer waits for as long as the layer's
/// [`quota_timeout`](crate::StorageGuardLayer::quota_timeout), and the charge is kept in this process: for longer than that
/// with a [`journal`](Self::journal).
pub struct StoredQuota<S> {
    pub(super) shared: Arc<Shared<S>>,
}

pub(super) struct Shared<S> {
    pub(super) store: Arc<S>,
    pub(super) settings: Settings,
    pub(super) keeper: Keeper,
}

#[derive(Clone)]
pub(super) struct Settings {
    /// The limits of scopes that have none of their own.
    pub(super) default: Ceilings,
    /// Of holds.
    pub(super) time_to_live: Duration,
    warn: Option<Arc<Warn>>,
    journal: Option<Arc<Journal>>,
}

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

type Warn = dyn Fn(&Scope, &Usage) + Send + Sync;

impl<S: Store> StoredQuota<S> {
    /// Quotas with these limits for every scope that has none of its own.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(store: S, default: impl Into<Ceilings>) -> Self {
        let settings = Settings {
            default: default.into(),
            time_to_live: Duration::from_secs(30),
            warn: None,
            journal: None,
        };
        Self::start(Arc::new(store), settings)
    }

    fn start(store: Arc<S>, settings: Settings) -> Self {
        let (time_to_live, journal) = (settings.time_to_live, settings.journal.clone());
        let keeper = Keeper::start(Arc::clone(&store), time_to_live, journal);
        let shared = Shared {
            store,
            settings,
            keeper,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn set(self, set: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings.clone();
        set(&mut settings);
        Self::start(Arc::clone(&self.shared.store), settings)
    }

    /// Sets how long a hold lives when its process does not. Not less than a second, nor more than a year.
    ///
    /// Defaults to 30 seconds.
    #[must_use]
    pub fn time_to_live(self, time_to_live: Duration) -> Self {
        self.set(|settings| settings.time_to_live = time_to_live.clamp(SECOND, YEAR))
    }

    /// Calls `warn` when a request makes a scope pass its soft limit. It must not block.
    ///
    /// Defaults to nothing.
    #[must_use]
    pub fn warn_with(self, warn: impl Fn(&Scope, &Usage) + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.warn = Some(Arc::new(warn)))
    }

    /// Keeps charges in this journal until the store has them, and charges what an earlier process has left there.
    ///
    /// Defaults to none: when the process is killed, charges that the store has not taken yet are lost.
    #[must_use]
    pub fn journal(self, journal: Journal) -> Self {
        self.set(|settings| settings.journal = Some(Arc::new(journal)))
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.shared.store
    }

    /// The store, to look at and to correct.
    pub fn admin(&self) -> Admin<Arc<S>> {
        Admin::new(Arc::clone(&self.shared.store))
    }

    /// Where a scope stands now.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn usage(&self, scope: impl Into<Scope>) -> Result<Usage, BoxError> {
        let scope = scope.into();
        let account: Account = self.shared.store.account(&scope).await?;
        Ok(account.usage(self.shared.settings.default))
    }

    /// Charges, or gives back, what changed without a reservation. A DELETE, for one. Never refused: it has happened.
    ///
    /// What it returns may be dropped: the change is settled all the same.
    pub fn adjust(&self, scopes: impl Into<Scopes>, change: Change) -> Settled {
        self.shared.keeper.settle(Settlement {
            id: HoldId::unique(),
            scopes: scopes.into(),
            change,
            keep: None,
        })
    }

    /// Nothing is set aside yet.
    pub(super) fn hold(&self, scopes: &Scopes) -> StoredHold<S> {
        StoredHold {
            shared: Arc::clone(&self.shared),
            id: HoldId::unique(),
            scopes: scopes.clone(),
            is_there: false,
        }
    }

    /// How many settlements the store has not taken yet.
    pub fn unsettled(&self) -> usize {
        self.shared.keeper.unsettled()
    }

    /// Whether all charges that the store has not taken yet are in the [`journal`](Self::journal): the process could be
    /// killed now, and would lose none.
    ///
    /// Without a journal, whether there are none. With one it is false for a moment after each charge, and while the
    /// journal's disk takes no writes.
    pub fn is_journaled(&self) -> bool {
        self.shared.keeper.is_journaled()
    }
}

impl<S: Store> QuotaSource for StoredQuota<S> {
    type Future = Pin<Box<dyn Future<Output = Result<StoredHold<S>, QuotaError>> + Send>>;
    type Hold = StoredHold<S>;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let hold = self.hold(scopes);
        if demand.max(expected).is_zero() {
            // Zero always fits.
            return Answer::Now(Ok(hold));
        }
        Answer::Later(Box::pin(async move {
            let mut hold = hold;
            let asked = hold.ask(demand, expected);
            match hold.shared.decide(asked).await {
                Ok(()) => Ok(hold),
                Err(error) => Err(hold.refused(error)),
            }
        }))
    }

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        let change = Change::between(Amount::ZERO, amount);
        drop(self.adjust(scopes.clone(), change));
    }
}

/// What a [`StoredQuota`] has set aside for one request.
pub struct StoredHold<S: Store> {
    shared: Arc<Shared<S>>,
    id: HoldId,
    scopes: Scopes,
    /// Whether the store may have it.
    is_there: bool,
}

impl<S: Store> StoredHold<S> {
    /// What to ask of the store. From here on nobody knows, and whoever drops this settles it.
    pub(super) fn ask(&mut self, amount: Amount, expected: Amount) -> Reserve {
        self.is_there = true;
        self.shared.keeper.keep(self.id, &self.scopes);
        Reserve {
            id: self.id,
            scopes: self.scopes.clone(),
            amount,
            expected,
            default: self.shared.settings.default,
            time_to_live: self.shared.settings.time_to_live,
        }
    }

    /// Where the store has said no, nothing is there to be released.
    pub(super) fn refused(mut self, error: QuotaError) -> QuotaError {
        if let QuotaError::Exceeded(_) = error {
            self.is_there = false;
            self.shared.keeper.forget(self.id);
        }
        error
    }

    /// Whether the store may have it.
    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    fn end(&mut self, change: Change) -> Settled {
        if mem::take(&mut self.is_there) || change != Change::ZERO {
            self.shared.keeper.settle(Settlement {
                id: self.id,
                scopes: self.scopes.clone(),
                change,
                keep: None,
            })
        } else {
            Settled::nothing()
        }
    }
}

impl<S: Store> Shared<S> {
    /// Nobody is refused for what this process has let go, and the store has not heard of.
    async fn decide(&self, asked: Reserve) -> Result<(), QuotaError> {
        // Looked at before: by the time of an answer the store may have heard of it, and decided without.
        let was_behind = self.keeper.unsettled() > 0;
        match self.set_aside(asked.clone()).await {
            Err(QuotaError::Exceeded(_)) if was_behind || self.keeper.unsettled() > 0 => {
                // It comes through behind what is settled before.
                self.keeper.settle(Settlement::nothing()).await;
                self.set_aside(asked).await
            }
            decided => decided,
        }
    }

    pub(super) async fn set_aside(&self, asked: Reserve) -> Result<(), QuotaError> {
        let reserved = self.store.reserve(&asked).await?;
        if let Some(warn) = &self.settings.warn {
            for (scope, account) in &reserved.warnings {
                warn(scope, &account.usage(self.settings.default));
            }
        }
        Ok(())
    }
}

impl<S: Store> QuotaHold for StoredHold<S> {
    type Commit = Settled;
    type Grow = Pin<Box<dyn Future<Output = Result<(), QuotaError>> + Send>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let (asked, shared) = (self.ask(more, Amount::ZERO), Arc::clone(&self.shared));
        Box::pin(async move { shared.decide(asked).await })
    }

    fn commit(mut self, change: Change) -> Settled {
        self.end(change)
    }
}

impl<S: Store> Drop for StoredHold<S> {
    fn drop(&mut self) {
        if self.is_there {
            drop(self.end(Change::ZERO));
        }
    }
}

impl<S> Clone for StoredQuota<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S> fmt::Debug for StoredQuota<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredQuota")
            .field("default", &self.shared.settings.default)
            .field("time_to_live", &self.shared.settings.time_to_live)
            .field("unsettled", &self.shared.keeper.unsettled())
            .finish_non_exhaustive()
    }
}

impl<S: Store> fmt::Debug for StoredHold<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredHold")
            .field("id", &self.id)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}
