//! Quotas that are decided in memory, from budget that is leased from a store.

mod lease;

use std::{
    collections::HashMap,
    fmt,
    hash::BuildHasherDefault,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{
    runtime::Handle,
    sync::OwnedMutexGuard,
    time::{Instant, sleep_until, timeout},
};

use self::lease::{Back, Chunk, Lease, WINDOW};
use super::{
    Reserve, Settled, Settlement, Store, StoreError, StoredHold, StoredQuota, journal::Noted,
    settler::PATIENCE,
};
use crate::{
    amount::Amount,
    quota::{Answer, Answering, Change, QuotaError, QuotaHold, QuotaSource},
    scope::{PassThrough, Scope, Scopes},
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
///    of all nodes passes a limit only by what a node had let in already when it stopped, or could not reach the store,
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
/// - [Soft limits](super::StoredQuotaBuilder::warn_with) go by what is held, which includes leases. They are reported
///   earlier than without leases, and perhaps more than once.
/// - A limit that is lowered applies once what is leased is used up, or back in the store.
pub struct LeasedQuota<S: Store> {
    leases: Arc<Leases<S>>,
}

struct Leases<S: Store> {
    stored: StoredQuota<S>,
    table: Mutex<Table>,
    runtime: Handle,
}

type Table = HashMap<Scope, Lease, BuildHasherDefault<PassThrough>>;

impl<S: Store> LeasedQuota<S> {
    /// Leases budget of these quotas, and starts the task that reviews the leases.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(stored: StoredQuota<S>) -> Self {
        let leases = Arc::new(Leases {
            stored,
            table: Mutex::default(),
            runtime: Handle::current(),
        });
        tokio::spawn(watch(Arc::downgrade(&leases)));
        Self { leases }
    }

    /// The quota that it leases from, which has the usage and the store.
    pub fn stored(&self) -> &StoredQuota<S> {
        &self.leases.stored
    }

    /// Gives back everything that idles, and tells the store what was stored. Resolves once the store knows.
    ///
    /// Call it when a service stops. Without it nothing is lost either, as long as the runtime lives on after the last handle
    /// was dropped: the store is told then.
    pub async fn settled(&self) {
        let leases = Arc::clone(&self.leases);
        let scopes: Vec<_> = leases.table().keys().cloned().collect();
        // In a task of its own, so that dropping this future leaves no call to the store halfway.
        let _ = self
            .leases
            .runtime
            .spawn(async move {
                let guards = leases.gates(&scopes).await;
                leases.turn(&scopes, Back::All).await;
                drop(guards);
                let settler = &leases.stored.shared.settler;
                settler.settle(Settlement::nothing()).await;
            })
            .await;
    }
}

impl<S: Store> Leases<S> {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No code between two changes that belong together can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a demand from the leases of all scopes, or of none. `need` must be free.
    fn take(self: &Arc<Self>, scopes: &Scopes, demand: Amount, need: Amount) -> bool {
        let now = Instant::now();
        let mut table = self.table();
        let mut fits = true;
        for scope in scopes {
            // Not short-circuited, so that the request is counted in each scope.
            fits &= of(&mut table, scope).asked(need, now);
        }
        if fits {
            for scope in scopes {
                let lease = of(&mut table, scope);
                lease.take(demand);
                if lease.is_low() && lease.may_grow(now) {
                    lease.is_growing = true;
                    self.runtime.spawn(Arc::clone(self).grow(scope.clone()));
                }
            }
        }
        fits
    }

    /// Counts a request that the store has decided, and leases budget if all of its scopes are worth it. With a lease missing,
    /// the store would be asked anyway.
    fn missed(self: &Arc<Self>, scopes: &Scopes, amount: Amount) {
        let now = Instant::now();
        let mut table = self.table();
        for scope in scopes {
            of(&mut table, scope).let_in(amount);
        }
        if scopes.iter().all(|scope| of(&mut table, scope).is_hot()) {
            for scope in scopes {
                let lease = of(&mut table, scope);
                if lease.may_grow(now) {
                    lease.is_growing = true;
                    self.runtime.spawn(Arc::clone(self).grow(scope.clone()));
                }
            }
        }
    }

    /// Leases more, if the store has it to spare.
    async fn grow(self: Arc<Self>, scope: Scope) {
        let _grown = OnDrop(|| of(&mut self.table(), &scope).is_growing = false);
        let gate = Arc::clone(&of(&mut self.table(), &scope).gate);
        let _guard = gate.lock_owned().await;
        let chunk = of(&mut self.table(), &scope).wants(Instant::now());
        if let Some(chunk) = chunk
            && let Some(less) = self.fetch(&scope, chunk).await
            && self.fetch(&scope, less).await.is_some()
        {
            of(&mut self.table(), &scope).quiet(Instant::now());
        }
    }

    /// Leases a chunk. Returns what to try instead if it does not fit.
    async fn fetch(&self, scope: &Scope, chunk: Chunk) -> Option<Chunk> {
        let shared = &self.stored.shared;
        let time_to_live = shared.time_to_live;
        let asked = Instant::now();
        let reserve = of(&mut self.table(), scope).grow(scope, chunk, shared.default, time_to_live);
        let answer = timeout(PATIENCE, shared.set_aside(reserve)).await;
        let mut table = self.table();
        let (lease, now) = (of(&mut table, scope), Instant::now());
        match answer {
            Ok(Ok(())) => lease.grown(chunk.amount, asked, time_to_live, now),
            Ok(Err(QuotaError::Exceeded(full))) => {
                lease.not_grown();
                let less = lease.wants_less(chunk, &full);
                if less.is_none() {
                    lease.quiet(now);
                }
                return less;
            }
            Ok(Err(QuotaError::Unavailable(_))) | Err(_) => lease.lost(now),
        }
        None
    }

    /// Stops leasing in these scopes until a decision is made. Returns those of them that have a lease.
    fn begin_deciding(&self, scopes: &Scopes) -> Vec<Scope> {
        let mut table = self.table();
        let leased = scopes.iter().filter(|scope| {
            let lease = of(&mut table, scope);
            lease.deciding += 1;
            lease.has_anything()
        });
        leased.cloned().collect()
    }

    /// Has the store decide once more, after a refusal that did not take account of all that this node knows.
    async fn decide(self: Arc<Self>, reserve: Reserve) -> Result<(), QuotaError> {
        let shared = &self.stored.shared;
        let (id, scopes) = (reserve.id, reserve.scopes.clone());
        let leased = self.begin_deciding(&scopes);
        let decided = OnDrop(|| {
            let mut table = self.table();
            for scope in &scopes {
                of(&mut table, scope).deciding -= 1;
            }
        });
        // Held only while the leases are given back, so that requests that are refused do not delay each other.
        let guards = self.gates(&leased).await;
        if shared.settler.is_alive(id) {
            self.turn(&leased, Back::All).await;
        }
        drop(guards);
        let decide = async {
            // Comes through the queue behind all releases of this node.
            shared.settler.settle(Settlement::nothing()).await;
            match shared.settler.is_alive(id) {
                true => shared.set_aside(reserve).await,
                false => Err(StoreError::unavailable("the caller has left").into()),
            }
        };
        let answer = timeout(PATIENCE, decide).await;
        drop(decided);
        if !shared.settler.is_alive(id) {
            // The caller has left meanwhile, and nothing else would end the hold.
            drop(shared.settler.settle(Settlement {
                id,
                scopes: scopes.clone(),
                ..Settlement::nothing()
            }));
        }
        answer.map_err(|_| StoreError::timed_out("the quota's store did not answer in time"))?
    }

    /// Asks the store. It refuses only with all that this node knows.
    async fn ask(self: Arc<Self>, reserve: Reserve) -> Result<(), QuotaError> {
        // Read before the call: the store may decide without what it learns before it answers.
        let knew_more = self.knows_more(&reserve.scopes);
        let answer = self.stored.shared.set_aside(reserve.clone()).await;
        if let Err(QuotaError::Exceeded(full)) = &answer {
            if full.required > full.limit {
                // More than the limit does not fit, whatever is given back.
                return answer;
            }
            of(&mut self.table(), &full.scope).quiet(Instant::now());
        }
        match answer {
            Ok(()) => self.missed(&reserve.scopes, reserve.amount),
            Err(QuotaError::Exceeded(_)) if knew_more || self.knows_more(&reserve.scopes) => {
                // In a task of its own, so that dropping this future leaves no call about a lease halfway.
                let decided = self.runtime.spawn(Arc::clone(&self).decide(reserve)).await;
                return decided.map_err(|error| {
                    StoreError::unavailable("the runtime has shut down").with_source(error)
                })?;
            }
            Err(_) => {}
        }
        answer
    }

    /// Whether this node knows something of these scopes that the store does not.
    fn knows_more(&self, scopes: &Scopes) -> bool {
        let table = self.table();
        let mut leases = scopes.iter().filter_map(|scope| table.get(scope));
        self.stored.unsettled() > 0 || leases.any(Lease::has_anything)
    }

    /// Locks the gates of these scopes, in the order of their names, so that two callers never deadlock.
    async fn gates(&self, scopes: &[Scope]) -> Vec<OwnedMutexGuard<()>> {
        let mut scopes = scopes.to_vec();
        scopes.sort_unstable();
        let gates: Vec<_> = {
            let mut table = self.table();
            let gate = |scope| Arc::clone(&of(&mut table, scope).gate);
            scopes.iter().map(gate).collect()
        };
        let mut guards = Vec::with_capacity(gates.len());
        for gate in gates {
            guards.push(gate.lock_owned().await);
        }
        guards
    }

    /// Tells the store what was stored, and gives back what is not needed. The caller holds the gates.
    async fn turn(&self, scopes: &[Scope], back: Back) {
        let shared = &self.stored.shared;
        let time_to_live = shared.time_to_live;
        let asked = Instant::now();
        let turned: Vec<(&Scope, Settled)> = {
            let mut table = self.table();
            let turn = |scope| {
                let settlement = of(&mut table, scope).turn(scope, back, time_to_live, asked)?;
                Some((scope, shared.settler.settle_noted(settlement)))
            };
            scopes.iter().filter_map(turn).collect()
        };
        for (scope, settled) in turned {
            settled.await;
            of(&mut self.table(), scope).turned(asked, time_to_live, Instant::now());
        }
    }

    /// Begins a window: starts turns where there is something to tell, and forgets leases without requests.
    fn next_window(self: &Arc<Self>) {
        let time_to_live = self.stored.shared.time_to_live;
        let now = Instant::now();
        self.table().retain(|scope, lease| {
            if lease.next_window(time_to_live, now) && !lease.is_turning {
                lease.is_turning = true;
                let (leases, scope, gate) =
                    (Arc::clone(self), scope.clone(), Arc::clone(&lease.gate));
                self.runtime.spawn(async move {
                    let _turned = OnDrop(|| of(&mut leases.table(), &scope).is_turning = false);
                    let _guard = gate.lock_owned().await;
                    leases.turn(std::slice::from_ref(&scope), Back::Idle).await;
                });
            }
            !lease.is_empty(now)
        });
    }
}

impl<S: Store> Leases<S> {
    /// Records a charge, of which the store is told later.
    fn charge(&self, scope: &Scope, lease: &mut Lease, change: Change) -> Option<Noted> {
        lease.spend(change);
        let settler = &self.stored.shared.settler;
        settler.note(lease.id(), &scope.clone().into(), change)
    }
}

/// Runs a function when it is dropped, also by a panic.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The lease of a scope, or a new one.
fn of<'a>(table: &'a mut Table, scope: &Scope) -> &'a mut Lease {
    table.entry(scope.clone()).or_default()
}

/// Reviews the leases once in each window, until the last handle is dropped.
async fn watch<S: Store>(leases: Weak<Leases<S>>) {
    let mut next = Instant::now() + WINDOW;
    loop {
        sleep_until(next).await;
        match leases.upgrade() {
            Some(leases) => leases.next_window(),
            None => return,
        }
        next = (next + WINDOW).max(Instant::now());
    }
}

impl<S: Store> Drop for Leases<S> {
    fn drop(&mut self) {
        let now = Instant::now();
        let shared = &self.stored.shared;
        for (scope, lease) in self.table.get_mut().unwrap_or_else(PoisonError::into_inner) {
            if let Some(settlement) = lease.turn(scope, Back::All, shared.time_to_live, now) {
                drop(shared.settler.settle_noted(settlement));
            }
        }
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
            match Arc::clone(&hold.taken.leases).ask(reserve).await {
                Ok(()) => Ok(hold),
                Err(error) => Err(hold.rest.refused(error)),
            }
        }))
    }

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        let change = Change::between(Amount::ZERO, amount);
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
            self.leases.stored.give_back(&others, amount);
        }
    }
}

/// What a [`LeasedQuota`] has set aside for one request.
pub struct LeasedHold<S: Store> {
    taken: Taken<S>,
    /// What was set aside in the store, because the leases did not have it.
    rest: StoredHold<S>,
}

/// What one request has taken from leases. Dropping it gives it back.
struct Taken<S: Store> {
    leases: Arc<Leases<S>>,
    scopes: Scopes,
    amount: Amount,
}

impl<S: Store> Taken<S> {
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
            Answer::Later(Box::pin(Arc::clone(leases).ask(reserve)) as _)
        };
        answer.into_future()
    }

    fn commit(mut self, change: Change) -> Settled {
        if self.taken.amount.is_zero() {
            return self.rest.commit(change);
        }
        // Each part is charged where it was set aside.
        let rest = match self.rest.is_there() {
            true => (change.gain() - self.taken.amount).into(),
            false => Change::ZERO,
        };
        let noted = self.taken.end(without(change, rest));
        self.rest.commit(rest).and(noted)
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
