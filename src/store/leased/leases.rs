//! The leases of all scopes, and the calls to the store about them.

use std::{
    collections::HashMap,
    hash::BuildHasherDefault,
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    runtime::Handle,
    sync::OwnedMutexGuard,
    time::{Instant, sleep_until, timeout},
};

use super::{
    super::{
        Reserve, Settled, Settlement, Store, StoreError, StoredQuota, journal::Noted,
        settler::PATIENCE,
    },
    lease::{Back, Chunk, Lease, WINDOW},
};
use crate::{
    amount::Amount,
    observer::Event,
    quota::{Change, QuotaError},
    scope::{PassThrough, Scope, Scopes},
};

pub(super) struct Leases<S: Store> {
    pub(super) stored: StoredQuota<S>,
    table: Mutex<Table>,
    /// How often the store's baseline had changed when the leases were looked at. Used under the lock of the table.
    changes: AtomicU64,
    pub(super) runtime: Handle,
}

type Table = HashMap<Scope, Lease, BuildHasherDefault<PassThrough>>;

impl<S: Store> Leases<S> {
    /// Starts the task that reviews the leases.
    pub(super) fn start(stored: StoredQuota<S>) -> Arc<Self> {
        let leases = Arc::new(Self {
            stored,
            table: Mutex::default(),
            changes: AtomicU64::new(0),
            runtime: Handle::current(),
        });
        tokio::spawn(watch(Arc::downgrade(&leases)));
        leases
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // No code between two changes that belong together can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a demand from the leases of all scopes, or of none. `need` must be free.
    pub(super) fn take(self: &Arc<Self>, scopes: &Scopes, demand: Amount, need: Amount) -> bool {
        let now = Instant::now();
        let mut table = self.table();
        let mut fits = self.may_lend(&mut table);
        for scope in scopes {
            // Not short-circuited, so that the request is counted in each scope.
            fits &= of(&mut table, scope).asked(need, now);
        }
        if fits {
            for scope in scopes {
                let lease = of(&mut table, scope);
                lease.take(demand);
                if lease.is_low() {
                    self.start_growing(scope, lease, now);
                }
            }
        }
        drop(table);
        if let Some(observer) = self.stored.store().observer() {
            observer.observe(&Event::Leased { is_hit: fits });
        }
        fits
    }

    /// Whether requests may be admitted from leases: not while the store is emptied. What was leased before is lost.
    fn may_lend(&self, table: &mut Table) -> bool {
        let based = &self.stored.shared.based;
        let changes = based.changes();
        if self.changes.load(Ordering::Relaxed) == changes {
            return true;
        }
        table.values_mut().for_each(Lease::lapse);
        let is_emptied = based.is_emptied();
        if !is_emptied {
            self.changes.store(changes, Ordering::Relaxed);
        }
        !is_emptied
    }

    /// Records a charge, of which the store is told later.
    pub(super) fn charge(&self, scope: &Scope, lease: &mut Lease, change: Change) -> Option<Noted> {
        lease.spend(change);
        let settler = &self.stored.shared.settler;
        settler.note(lease.id(), &scope.clone().into(), change)
    }

    /// Asks the store to reserve what the leases do not have. A refusal takes account of all that this node knows.
    pub(super) async fn ask_store(self: Arc<Self>, reserve: Reserve) -> Result<(), QuotaError> {
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
                let again = self.runtime.spawn(Arc::clone(&self).ask_again(reserve));
                return again.await.map_err(|error| {
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

    /// Counts a request that the store has admitted, and leases budget if all of its scopes are worth it. With a lease
    /// missing, the store would be asked anyway.
    fn missed(self: &Arc<Self>, scopes: &Scopes, amount: Amount) {
        let now = Instant::now();
        let mut table = self.table();
        for scope in scopes {
            of(&mut table, scope).let_in(amount);
        }
        if scopes.iter().all(|scope| of(&mut table, scope).is_hot()) {
            for scope in scopes {
                self.start_growing(scope, of(&mut table, scope), now);
            }
        }
    }

    /// Asks the store once more, after a refusal that did not take account of all that this node knows.
    async fn ask_again(self: Arc<Self>, reserve: Reserve) -> Result<(), QuotaError> {
        let shared = &self.stored.shared;
        let (id, scopes) = (reserve.id, reserve.scopes.clone());
        let leased = self.pause_leasing(&scopes);
        let paused = OnDrop(|| {
            let mut table = self.table();
            for scope in &scopes {
                of(&mut table, scope).calls.asking_again -= 1;
            }
        });
        // Held only while the leases are given back, so that requests that are refused do not delay each other.
        let guards = self.gates(&leased).await;
        if shared.settler.is_alive(id) {
            self.turn(&leased, Back::All).await;
        }
        drop(guards);
        let asked = async {
            // Comes through the queue behind all releases of this node.
            shared.settler.settle(Settlement::nothing()).await;
            match shared.settler.is_alive(id) {
                true => shared.set_aside(reserve).await,
                false => Err(StoreError::unavailable("the caller has left").into()),
            }
        };
        let answer = timeout(PATIENCE, asked).await;
        drop(paused);
        if !shared.settler.is_alive(id) {
            // The caller has left meanwhile, and nothing else would end the hold.
            let release = Settlement::new(id, scopes.clone(), Change::ZERO);
            drop(shared.settler.settle(release));
        }
        answer.map_err(|_| StoreError::timed_out("the quota's store did not answer in time"))?
    }

    /// Stops leasing in these scopes until the store has been asked again. Returns those of them that have a lease.
    fn pause_leasing(&self, scopes: &Scopes) -> Vec<Scope> {
        let mut table = self.table();
        let leased = scopes.iter().filter(|scope| {
            let lease = of(&mut table, scope);
            lease.calls.asking_again += 1;
            lease.has_anything()
        });
        leased.cloned().collect()
    }

    /// Starts the task that leases more, unless it runs already or there is a reason to wait.
    fn start_growing(self: &Arc<Self>, scope: &Scope, lease: &mut Lease, now: Instant) {
        if lease.may_grow(now) {
            lease.calls.is_growing = true;
            self.runtime.spawn(Arc::clone(self).grow(scope.clone()));
        }
    }

    /// Leases more, if the store has it to spare.
    async fn grow(self: Arc<Self>, scope: Scope) {
        let _grown = OnDrop(|| of(&mut self.table(), &scope).calls.is_growing = false);
        let gate = Arc::clone(&of(&mut self.table(), &scope).calls.gate);
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
        let changes = shared.based.changes();
        let sure = Instant::now() + shared.time_to_live;
        let id = of(&mut self.table(), scope).begin_growing();
        let reserve = shared.reserve(id, scope.clone().into(), chunk.amount);
        let reserve = reserve.with_expected(chunk.left);
        let answer = timeout(PATIENCE, shared.set_aside(reserve)).await;
        let mut table = self.table();
        let (lease, now) = (of(&mut table, scope), Instant::now());
        match answer {
            Ok(Ok(())) if shared.based.changes() == changes => {
                lease.holds_from(shared.soft.in_force_from(scope));
                lease.grown(chunk, sure, now);
            }
            Ok(Err(QuotaError::Exceeded(full))) => {
                lease.not_grown(chunk);
                let less = lease.wants_less(chunk, &full);
                if less.is_none() {
                    lease.quiet(now);
                }
                return less;
            }
            Ok(Ok(()) | Err(QuotaError::Unavailable(_))) | Err(_) => lease.lost(now),
        }
        None
    }

    /// Gives back everything that idles. Returns once the store has taken all settlements.
    pub(super) async fn settle(self: Arc<Self>) {
        let scopes: Vec<_> = self.table().keys().cloned().collect();
        let guards = self.gates(&scopes).await;
        self.turn(&scopes, Back::All).await;
        drop(guards);
        let settler = &self.stored.shared.settler;
        settler.settle(Settlement::nothing()).await;
    }

    /// Locks the gates of these scopes, in the order of their names, so that two callers never deadlock.
    async fn gates(&self, scopes: &[Scope]) -> Vec<OwnedMutexGuard<()>> {
        let mut scopes = scopes.to_vec();
        scopes.sort_unstable();
        let gates: Vec<_> = {
            let mut table = self.table();
            let gate = |scope| Arc::clone(&of(&mut table, scope).calls.gate);
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
        let (time_to_live, asked) = (shared.time_to_live, Instant::now());
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
            let in_force_from = shared.soft.in_force_from(scope);
            let mut table = self.table();
            let lease = of(&mut table, scope);
            lease.holds_from(in_force_from);
            lease.turned(asked + time_to_live, Instant::now());
        }
    }

    /// Begins a window: starts turns where there is something to tell, and forgets leases without requests.
    fn next_window(self: &Arc<Self>) {
        let time_to_live = self.stored.shared.time_to_live;
        let now = Instant::now();
        let mut table = self.table();
        self.may_lend(&mut table);
        table.retain(|scope, lease| {
            if lease.next_window(time_to_live, now) && !lease.calls.is_turning {
                lease.calls.is_turning = true;
                let gate = Arc::clone(&lease.calls.gate);
                let (leases, scope) = (Arc::clone(self), scope.clone());
                self.runtime.spawn(async move {
                    let _turned =
                        OnDrop(|| of(&mut leases.table(), &scope).calls.is_turning = false);
                    let _guard = gate.lock_owned().await;
                    leases.turn(slice::from_ref(&scope), Back::Idle).await;
                });
            }
            !lease.is_empty(now)
        });
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

/// The lease of a scope, or a new one.
pub(super) fn of<'a>(table: &'a mut Table, scope: &Scope) -> &'a mut Lease {
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

/// Runs a function when it is dropped, also by a panic.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
