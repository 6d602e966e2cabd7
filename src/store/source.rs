//! A quota source over a store.

use std::{fmt, mem, pin::Pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Account, Admin, Baseline, HoldId, Keep, Reserve, Reserved, Settlement, Store, StoreError,
    baseline::Based,
    settler::{Settled, Settler},
    soft::SoftLimits,
};
use crate::{
    amount::Amount,
    quota::{
        Answer, Change, OverSoftLimit, QuotaError, QuotaHold, QuotaSource, SoftLimitHook, Usage,
    },
    scope::{Scope, Scopes},
};

/// Keeps quotas in a [`Store`], so that they outlive the process and are shared by several.
///
/// A handle: clones share everything. It needs a tokio runtime, on which it renews and settles holds.
///
/// Use it as it is where each request can afford a round trip to the store, and behind a
/// [`LeasedQuota`](super::LeasedQuota) where it cannot.
///
/// # Holds
///
/// A hold is in the store before its request is admitted. It lives for the
/// [time to live](super::StoredQuotaBuilder::time_to_live), and is renewed three times as often. So a process that is killed
/// frees what it held within that time.
///
/// A process that is stopped, or cannot reach the store, for longer loses its holds. What its requests store is charged
/// all the same, because it is on the disk. Only then may usage pass a limit.
///
/// # Soft limits
///
/// [Soft limits](crate::quota::Limits#soft-limits) are timed by the clock of the store, for all processes. A crossing is told by the process whose
/// charge the store has taken. If its answer is lost on the way, or an [`Admin`] makes the charge, the crossing is not told.
///
/// # When the store was emptied
///
/// A store that was deleted or flushed begins at zero, whatever is on the disk. Where this process has known it otherwise,
/// requests are [`QuotaError::Unavailable`] from then on, until what is stored was counted and
/// [declared](Self::declare_counted) so. A store that is empty when the process first reaches it is taken for new, unless
/// there is an [`on_emptied`](super::StoredQuotaBuilder::on_emptied): then it has to be declared counted first.
///
/// # When the store is away
///
/// What cannot be decided is [`QuotaError::Unavailable`], never a full quota. What has been stored is charged as soon as
/// the store is back. Until then the answer waits for as long as the layer's
/// [`quota_timeout`](crate::StorageGuardLayer::quota_timeout), and the charge is kept in this process, and in the
/// [journal](super::StoredQuotaBuilder::journal) if there is one.
pub struct StoredQuota<S> {
    pub(super) shared: Arc<Shared<S>>,
}

pub(super) struct Shared<S> {
    pub(super) store: Arc<S>,
    pub(super) soft: Arc<SoftLimits>,
    /// Of holds.
    pub(super) time_to_live: Duration,
    pub(super) settler: Settler,
    pub(super) based: Based,
}

impl<S: Store> StoredQuota<S> {
    /// Returns the store.
    pub fn store(&self) -> &S {
        &self.shared.store
    }

    /// Returns an [`Admin`] of the store, to look at accounts and correct them.
    pub fn admin(&self) -> Admin<Arc<S>> {
        Admin::new(Arc::clone(&self.shared.store))
    }

    /// Returns the limits and figures of a scope.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn usage(&self, scope: impl Into<Scope>) -> Result<Usage, StoreError> {
        let scope = scope.into();
        let account = self.shared.store.account(&scope).await?;
        Ok(account.usage((self.shared.soft.limits)(&scope)))
    }

    /// Declares that the usage in the store is what is stored, so that requests are admitted.
    ///
    /// Call it after the first count of what is there already, and after a count that
    /// [`on_emptied`](super::StoredQuotaBuilder::on_emptied) has asked for. It does nothing to a store that is counted.
    ///
    /// # Errors
    ///
    /// When the store fails. Calling this again is safe.
    pub async fn declare_counted(&self) -> Result<(), StoreError> {
        let new = Baseline::unique();
        self.shared
            .based
            .set(self.shared.store.set_baseline(new).await?);
        Ok(())
    }

    /// Charges a change that was made without a reservation, such as a DELETE. It has happened, so it is never refused.
    ///
    /// The future resolves once the store has taken the charge. It is cancel-safe: the change is charged even if the future
    /// is dropped.
    pub fn adjust(&self, scopes: impl Into<Scopes>, change: Change) -> Settled {
        let settlement = Settlement::new(HoldId::unique(), scopes, change);
        self.shared.settler.settle(settlement)
    }

    /// A hold of nothing, which is not in the store yet.
    pub(super) fn hold(&self, scopes: &Scopes) -> StoredHold<S> {
        StoredHold {
            shared: Arc::clone(&self.shared),
            id: HoldId::unique(),
            scopes: scopes.clone(),
            is_there: false,
        }
    }

    /// Returns how many settlements the store has not taken yet.
    pub fn unsettled(&self) -> usize {
        self.shared.settler.unsettled()
    }

    /// Returns whether all charges that the store has not taken yet are in the
    /// [journal](super::StoredQuotaBuilder::journal), so that a kill would lose none.
    ///
    /// Without a journal, this is whether there are no such charges. With a journal it is false for a moment after each
    /// charge, and for as long as the disk of the journal takes no writes.
    pub fn is_journaled(&self) -> bool {
        self.shared.settler.is_journaled()
    }
}

impl<S: Store> StoredQuota<S> {
    /// The scopes that use most bytes, with their limits.
    pub(crate) async fn largest(&self, count: usize) -> Result<Vec<(Scope, Usage)>, StoreError> {
        let accounts = self.shared.store.largest(count).await?;
        let usage = |(scope, account): (Scope, Account)| {
            let usage = account.usage((self.shared.soft.limits)(&scope));
            (scope, usage)
        };
        Ok(accounts.into_iter().map(usage).collect())
    }

    /// Whether requests are refused because the store was emptied, and not counted since.
    pub(crate) fn is_emptied(&self) -> bool {
        self.shared.based.is_emptied()
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
            let reserve = hold.begin(demand, expected);
            match hold.shared.ask_store(reserve).await {
                Ok(()) => Ok(hold),
                Err(error) => Err(hold.refused(error)),
            }
        }))
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        drop(self.adjust(scopes.clone(), change));
    }

    /// By the last answer of the store about each scope, to this process.
    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        self.shared.soft.over(scopes)
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        self.shared.soft.hooks.push(hook);
    }
}

/// The hold of a [`StoredQuota`] for one request.
pub struct StoredHold<S: Store> {
    shared: Arc<Shared<S>>,
    id: HoldId,
    scopes: Scopes,
    /// Whether the store may have it.
    is_there: bool,
}

impl<S: Store> StoredHold<S> {
    /// The request to send to the store. From here on the store may have the hold, and dropping this settles it.
    pub(super) fn begin(&mut self, amount: Amount, expected: Amount) -> Reserve {
        self.is_there = true;
        self.shared.settler.keep_alive(self.id, &self.scopes);
        let reserve = self.shared.reserve(self.id, self.scopes.clone(), amount);
        reserve.with_expected(expected)
    }

    /// Drops the hold of a refused request. There is nothing to release where the store has refused it.
    pub(super) fn refused(mut self, error: QuotaError) -> QuotaError {
        if let QuotaError::Exceeded(_) = error {
            self.is_there = false;
            self.shared.settler.forget(self.id);
        }
        error
    }

    /// Whether the store may have it.
    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    pub(super) fn end(&mut self, change: Change) -> Settled {
        if mem::take(&mut self.is_there) || change != Change::ZERO {
            let settlement = Settlement::new(self.id, self.scopes.clone(), change);
            self.shared.settler.settle(settlement)
        } else {
            Settled::nothing()
        }
    }
}

impl<S: Store> Shared<S> {
    /// The request to send to the store.
    pub(super) fn reserve(&self, id: HoldId, scopes: Scopes, amount: Amount) -> Reserve {
        Reserve::new(id, scopes, amount)
            .with_defaults(&self.soft.limits)
            .with_time_to_live(self.time_to_live)
    }

    /// Reserves. A refusal counts only if the store knew of everything that this process has released.
    async fn ask_store(&self, reserve: Reserve) -> Result<(), QuotaError> {
        // Read before the call: the store may decide without a release, and learn of it before it answers.
        let was_behind = self.settler.unsettled() > 0;
        match self.set_aside(reserve.clone()).await {
            Err(QuotaError::Exceeded(_)) if was_behind || self.settler.unsettled() > 0 => {
                // Comes through the queue behind all earlier settlements.
                self.settler.settle(Settlement::nothing()).await;
                self.set_aside(reserve).await
            }
            decided => decided,
        }
    }

    pub(super) async fn set_aside(&self, reserve: Reserve) -> Result<(), QuotaError> {
        let asked = Instant::now();
        let Reserved { over, baseline } = self.store.reserve(&reserve).await?;
        self.soft.learn(&reserve.scopes, over, asked);
        if reserve.scopes.is_empty() {
            return Ok(());
        }
        Ok(self.based.check(&self.store, baseline).await?)
    }
}

impl<S: Store> QuotaHold for StoredHold<S> {
    type Commit = Settled;
    type Grow = Pin<Box<dyn Future<Output = Result<(), QuotaError>> + Send>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let (reserve, shared) = (self.begin(more, Amount::ZERO), Arc::clone(&self.shared));
        Box::pin(async move { shared.ask_store(reserve).await })
    }

    /// The rest is a hold of its own: the store may learn of this after a growth.
    fn shrink_to(&mut self, to: Amount) {
        if !self.is_there {
            return;
        }
        let whole = mem::replace(&mut self.id, HoldId::unique());
        let mut settlement = Settlement::new(whole, self.scopes.clone(), Change::ZERO);
        self.is_there = !to.is_zero();
        if self.is_there {
            self.shared.settler.keep_alive(self.id, &self.scopes);
            let rest = Keep::new(self.id, to, self.shared.time_to_live);
            settlement = settlement.with_keep(rest);
        }
        drop(self.shared.settler.settle(settlement));
    }

    fn commit(mut self, change: Change) -> Answer<Settled> {
        Answer::Later(self.end(change))
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
            .field("time_to_live", &self.shared.time_to_live)
            .field("unsettled", &self.shared.settler.unsettled())
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
