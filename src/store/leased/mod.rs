//! Quotas that are decided in memory, from budget that is leased from a store.

mod lease;
mod leases;

use std::{fmt, mem, pin::Pin, sync::Arc};

use self::leases::{Leases, of};
use super::{Settled, Store, StoredHold, StoredQuota, journal::Noted};
use crate::{
    amount::Amount,
    quota::{
        Answer, Answering, Change, OverSoftLimit, QuotaError, QuotaHold, QuotaSource, SoftLimitHook,
    },
    scope::Scopes,
};

/// Decides most requests in memory, from budget that it leases from a [`StoredQuota`].
///
/// A handle: clones share everything.
///
/// Use it where scopes are busy and a round trip to the store in each request is too slow. Where each scope sees few
/// requests, it only passes them on.
///
/// ```no_run
/// # #[cfg(feature = "store-sqlite")] {
/// use tower_storage_guard::{
///     StorageGuardLayer,
///     quota::Limits,
///     store::{LeasedQuota, SqliteStore, StoredQuota},
/// };
///
/// # fn start() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let stored = StoredQuota::new(SqliteStore::open("quota.db")?, Limits::bytes(1 << 30));
/// let layer = StorageGuardLayer::quota_only(LeasedQuota::new(stored));
/// # Ok(())
/// # }
/// # }
/// ```
///
/// # How it works
///
/// A scope with several requests in a second gets a lease: a hold in the store with room for what requests ask for within
/// 1.6 seconds. Requests take of it, and what they do not store comes back to it. When it is low, more is leased in the
/// background. A request that finds too little asks the store itself, as without leases. So does a request with several
/// scopes while any of them has no lease: `user:42` and `tenant:acme` are both leased once both are busy.
///
/// A lease grows by at most an eighth of what is left. When that is not worth a round trip, or after a refusal, the scope
/// has no lease for a second, and the store decides each request.
///
/// # What is promised
///
/// 1. **Never a byte over.** What the nodes have leased is held in the store. No node gives away more than that, or
///    anything after its lease may have expired, by the time that has passed on its own clock since it asked. So the sum
///    of all nodes passes a limit only by what a node had admitted already when it stopped, or could not reach the store,
///    for longer than its [time to live](super::StoredQuotaBuilder::time_to_live).
/// 2. **Idle budget refuses no request of this node.** Before a request is refused, this node gives back everything that
///    idles in its scopes, tells the store what it knows, and asks it once more. What idles on another node, or was
///    removed there, is back within two windows of 0.4 seconds and a few round trips. So, while a round trip takes less
///    than 0.05 seconds, a request that fits is refused only if another node held the rest within the last second.
/// 3. **One round trip per hundred requests**, or less, where all scopes of a request are leased and steadily asked for
///    250 times a second: a lease costs about two round trips in a second, one of which is shared by up to 64 scopes.
///
/// # What differs from a `StoredQuota`
///
/// - The store learns within a second what requests have stored. Until then it is part of what the lease holds:
///   [`StoredQuota::usage`] shows it as held, and [`StoredQuota::unsettled`] does not count it. A process that is killed in
///   that time loses it, unless there is a [journal](super::StoredQuotaBuilder::journal): each charge is in the journal
///   before its request is answered. What the process had leased is free again after the time to live. When a service
///   stops, wait for [`settled`](Self::settled).
/// - A charge crosses a [soft limit](crate::quota::Limits#soft-limits) when the store learns of it, within a second. It is told then, and answers
///   warn from then on. Nothing is given away of a lease once a soft limit may be enforced: the store decides then. The node
///   learns of it with each call to the store about the lease, at least three times in the
///   [time to live](super::StoredQuotaBuilder::time_to_live). So a grace that is shorter than that may be passed by what was
///   leased before.
/// - A limit that is lowered applies once what is leased is used up, or back in the store.
pub struct LeasedQuota<S: Store> {
    leases: Arc<Leases<S>>,
}

impl<S: Store> LeasedQuota<S> {
    /// Leases budget of these quotas, and starts the task that reviews the leases.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(stored: StoredQuota<S>) -> Self {
        Self {
            leases: Leases::start(stored),
        }
    }

    /// Returns the quota that it leases from, which has the usage and the store.
    pub fn stored(&self) -> &StoredQuota<S> {
        &self.leases.stored
    }

    /// The number of scopes that have a lease.
    pub(crate) fn leases(&self) -> usize {
        let table = self.leases.table();
        table.values().filter(|lease| lease.is_there()).count()
    }

    /// Gives back everything that idles, and tells the store what was stored. Resolves once the store knows.
    ///
    /// It is cancel-safe: a task of its own does the work. Call it when a service stops. Without it nothing is lost either, as long as the runtime lives on after the last handle
    /// was dropped: the store is told then.
    pub async fn settled(&self) {
        // In a task of its own, so that dropping this future leaves no call to the store halfway.
        let settling = Arc::clone(&self.leases).settle();
        let _ = self.leases.runtime.spawn(settling).await;
    }
}

impl<S: Store> QuotaSource for LeasedQuota<S> {
    type Future = Pin<Box<dyn Future<Output = Result<LeasedHold<S>, QuotaError>> + Send>>;
    type Hold = LeasedHold<S>;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let leases = Arc::clone(&self.leases);
        let mut hold = LeasedHold {
            rest: leases.stored.hold(scopes),
            taken: Taken {
                leases,
                scopes: scopes.clone(),
                amount: Amount::ZERO,
            },
        };
        let need = demand.max(expected);
        if need.is_zero() {
            // Zero always fits.
            return Answer::Now(Ok(hold));
        }
        if self.leases.take(scopes, demand, need) {
            hold.taken.amount = demand;
            return Answer::Now(Ok(hold));
        }
        Answer::Later(Box::pin(async move {
            let reserve = hold.rest.begin(demand, expected);
            match Arc::clone(&hold.taken.leases).ask_store(reserve).await {
                Ok(()) => Ok(hold),
                Err(error) => Err(hold.rest.refused(error)),
            }
        }))
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        let mut table = self.leases.table();
        let others = scopes.iter().filter(|scope| match table.get_mut(scope) {
            Some(lease) if lease.is_there() => {
                drop(self.leases.charge(scope, lease, change));
                false
            }
            _ => true,
        });
        let others: Scopes = others.cloned().collect();
        drop(table);
        if !others.is_empty() {
            self.leases.stored.charge(&others, change);
        }
    }

    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        self.leases.stored.over_soft_limits(scopes)
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        self.leases.stored.on_soft_limit(hook);
    }
}

/// The hold of a [`LeasedQuota`] for one request.
pub struct LeasedHold<S: Store> {
    taken: Taken<S>,
    /// What was reserved in the store, because the leases did not have it.
    rest: StoredHold<S>,
}

/// What one request has taken from leases. Dropping it gives it back.
struct Taken<S: Store> {
    leases: Arc<Leases<S>>,
    scopes: Scopes,
    amount: Amount,
}

impl<S: Store> Taken<S> {
    fn shrink_to(&mut self, to: Amount) {
        let given_back = self.amount - to;
        if given_back.is_zero() {
            return;
        }
        self.amount = self.amount - given_back;
        let mut table = self.leases.table();
        for scope in &self.scopes {
            of(&mut table, scope).end(given_back);
        }
    }

    fn end(&mut self, change: Change) -> Option<Noted> {
        let amount = mem::take(&mut self.amount);
        if amount.is_zero() && change == Change::ZERO {
            return None;
        }
        let mut table = self.leases.table();
        let mut noted = None;
        for scope in &self.scopes {
            let lease = of(&mut table, scope);
            lease.end(amount);
            noted = self.leases.charge(scope, lease, change);
        }
        // The journal writes in this order, so the last one is written after all others.
        noted
    }
}

impl<S: Store> Drop for Taken<S> {
    fn drop(&mut self) {
        drop(self.end(Change::ZERO));
    }
}

impl<S: Store> QuotaHold for LeasedHold<S> {
    type Commit = Settled;
    type Grow = Answering<Pin<Box<dyn Future<Output = Result<(), QuotaError>> + Send>>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let Taken {
            leases,
            scopes,
            amount,
        } = &mut self.taken;
        let answer = if more.is_zero() {
            Answer::Now(Ok(()))
        } else if leases.take(scopes, more, more) {
            *amount = *amount + more;
            Answer::Now(Ok(()))
        } else {
            let reserve = self.rest.begin(more, Amount::ZERO);
            Answer::Later(Box::pin(Arc::clone(leases).ask_store(reserve)) as _)
        };
        answer.into_future()
    }

    fn shrink_to(&mut self, to: Amount) {
        self.rest.shrink_to(to - self.taken.amount);
        self.taken.shrink_to(to);
    }

    fn commit(mut self, change: Change) -> Answer<Settled> {
        if self.taken.amount.is_zero() {
            return self.rest.commit(change);
        }
        // Each part is charged where it was reserved.
        let rest = match self.rest.is_there() {
            true => (change.gain() - self.taken.amount).into(),
            false => Change::ZERO,
        };
        let noted = self.taken.end(without(change, rest));
        Answer::Later(self.rest.end(rest).and(noted))
    }
}

/// The rest of a change of which `part` is charged elsewhere.
fn without(change: Change, part: Change) -> Change {
    Change {
        bytes: change.bytes.saturating_sub(part.bytes),
        objects: change.objects.saturating_sub(part.objects),
    }
}

impl<S: Store> Clone for LeasedQuota<S> {
    fn clone(&self) -> Self {
        Self {
            leases: Arc::clone(&self.leases),
        }
    }
}

impl<S: Store> fmt::Debug for LeasedQuota<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedQuota")
            .field("stored", &self.leases.stored)
            .finish_non_exhaustive()
    }
}

impl<S: Store> fmt::Debug for LeasedHold<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedHold")
            .field("taken", &self.taken.amount)
            .field("rest", &self.rest)
            .finish_non_exhaustive()
    }
}
