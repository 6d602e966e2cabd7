//! Quotas in the memory of this process.

use std::{
    collections::HashMap,
    fmt,
    future::{Pending, Ready, ready},
    hash::BuildHasherDefault,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use super::{
    Answer, Change, Crossed, Limits, OverSince, OverSoftLimit, QuotaError, QuotaHold, QuotaSource,
    SoftLimitHook, SoftLimitHooks, Usage, limits::Ceiling, over,
};
use crate::{
    amount::Amount,
    scope::{PassThrough, Scope, Scopes},
};

/// A quota source in memory, for up to millions of scopes.
///
/// A handle: clones share everything. Usage starts at zero with the process, so [initialise](Self::set_used) it from
/// what is already stored. An account costs less than 100 bytes in addition to its key; the account of a scope that
/// uses nothing and has no limits of its own costs nothing.
///
/// Use it when one process serves the storage. If usage is in a database anyway, use [`quota_fn`](super::quota_fn) or
/// [`quota_future`](super::quota_future) to read it there.
///
/// ```
/// use tower_storage_guard::{
///     Amount,
///     quota::{Change, Limits, MemoryQuota},
/// };
///
/// let quota = MemoryQuota::new(Limits::bytes(1 << 30));
/// quota.set_limits("user:42", Limits::bytes(5 << 30).objects(1000));
///
/// // Counted at the start of the server.
/// quota.set_used("user:42", Amount::new(300, 3));
/// // A DELETE gives back.
/// quota.adjust("user:42", Change::between(Amount::ZERO, Amount::new(100, 1)));
///
/// let usage = quota.usage("user:42");
/// assert_eq!(usage.used, Amount::new(200, 2));
/// assert_eq!(usage.held, Amount::ZERO);
/// assert_eq!(usage.limits.objects, Some(1000));
/// ```
#[derive(Clone)]
pub struct MemoryQuota {
    store: Arc<Store>,
}

impl MemoryQuota {
    /// Creates quotas with these limits for every scope that has none of its own.
    pub fn new(default: Limits) -> Self {
        Self {
            store: Arc::new(Store::new(default)),
        }
    }

    /// Changes the limits of every scope that has none of its own. Existing holds are kept.
    pub fn set_default(&self, limits: Limits) {
        self.store.set_default(limits);
    }

    /// Sets a scope's own limits. Existing holds are kept.
    pub fn set_limits(&self, scope: impl Into<Scope>, limits: Limits) {
        self.store.update(&scope.into(), |account| {
            account.change_rare(|rare| rare.limits = Some(limits))
        });
    }

    /// Removes a scope's own limits: the default limits apply again.
    pub fn clear_limits(&self, scope: impl Into<Scope>) {
        self.store.update(&scope.into(), |account| {
            account.change_rare(|rare| rare.limits = None)
        });
    }

    /// Sets how much a scope has stored, whatever was counted so far.
    ///
    /// Requests in flight are added when they commit. For exact figures, call this before the first request.
    pub fn set_used(&self, scope: impl Into<Scope>, used: Amount) {
        self.store
            .update(&scope.into(), |account| account.used = used.into());
    }

    /// Charges, or gives back, a change that had no reservation, such as a DELETE.
    ///
    /// Never refused, because the change has already happened. It may be counted before the commit of what it
    /// deletes. Usage is then zero until both are counted, and exact after that: a scope may be below
    /// zero by as much as it holds. What is given back beyond that is [unmatched](Self::unmatched), and no credit.
    pub fn adjust(&self, scope: impl Into<Scope>, change: Change) {
        self.charge(&Scopes::from(scope.into()), change);
    }

    /// Charges all of these scopes, and does not call the hooks, which a caller that holds a lock does later.
    pub(crate) fn charge_quietly(&self, scopes: &Scopes, change: Change) -> Vec<OverSoftLimit> {
        match self.store.leave(scopes, Amount::ZERO, change) {
            true => self.store.review_all(scopes),
            false => Vec::new(),
        }
    }

    /// Calls the hooks for soft limits that were crossed.
    pub(crate) fn tell(&self, crossed: Vec<OverSoftLimit>) {
        self.store.hooks.tell(&crossed);
    }

    /// Returns the limits and the usage of a scope.
    pub fn usage(&self, scope: impl Into<Scope>) -> Usage {
        let scope = scope.into();
        let shard = self.store.lock(shard_of(&scope));
        let account = shard.get(&scope).unwrap_or(&Account::EMPTY);
        self.store.usage(account)
    }

    /// The number of locks that the accounts are distributed over.
    pub(crate) const SHARDS: usize = SHARDS as usize;

    /// Shows the accounts under one of the locks, which requests in their scopes wait for meanwhile.
    pub(crate) fn visit_shard(&self, place: usize, mut visit: impl FnMut(&Scope, Usage)) {
        let shard = self.store.lock(place);
        for (scope, account) in shard.iter() {
            visit(scope, self.store.usage(account));
        }
    }

    /// Returns how much was given back to all scopes, since the process has started, without having been charged to them.
    ///
    /// It is no credit. If it grows, something is removed through the guard that came in beside it, or is removed twice:
    /// recount the usage of the scopes.
    pub fn unmatched(&self) -> Amount {
        let [bytes, objects] = &self.store.unmatched;
        Amount::new(bytes.load(Relaxed), objects.load(Relaxed))
    }

    /// Removes a scope's usage and its own limits. What is held for requests in flight stays held until they end.
    pub fn remove(&self, scope: impl Into<Scope>) {
        self.store.update(&scope.into(), |account| {
            account.used = Change::ZERO;
            account.rare = None;
        });
    }
}

impl fmt::Debug for MemoryQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryQuota")
            .field("default", &self.store.default())
            .finish_non_exhaustive()
    }
}

impl MemoryQuota {
    /// Reserves at once.
    pub(super) fn take(&self, scopes: &Scopes, demand: Amount) -> Result<MemoryHold, QuotaError> {
        let taken = self.store.take(scopes, demand, Amount::ZERO);
        taken.map(|()| self.hold(scopes, demand))
    }

    fn hold(&self, scopes: &Scopes, amount: Amount) -> MemoryHold {
        MemoryHold {
            store: Arc::clone(&self.store),
            scopes: scopes.clone(),
            amount,
        }
    }
}

impl QuotaSource for MemoryQuota {
    /// Never used, because memory decides at once.
    type Future = Pending<Result<MemoryHold, QuotaError>>;
    type Hold = MemoryHold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let taken = self.store.take(scopes, demand, expected);
        Answer::Now(taken.map(|()| self.hold(scopes, demand)))
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        self.tell(self.charge_quietly(scopes, change));
    }

    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        let over = scopes.iter().flat_map(|scope| {
            let Usage {
                limits, used, over, ..
            } = self.usage(scope);
            let over = super::over(scope, &limits, used, over, Crossed::default());
            over.collect::<Vec<_>>()
        });
        over.collect()
    }

    fn usage_now(&self, scopes: &Scopes) -> Vec<(Scope, Usage)> {
        let usage = |scope: &Scope| (scope.clone(), self.usage(scope));
        scopes.iter().map(usage).collect()
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        self.store.hooks.push(hook);
    }
}

/// The hold of a [`MemoryQuota`] for one request.
pub struct MemoryHold {
    store: Arc<Store>,
    scopes: Scopes,
    amount: Amount,
}

impl QuotaHold for MemoryHold {
    type Commit = Ready<()>;
    type Grow = Ready<Result<(), QuotaError>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        ready(
            self.store
                .take(&self.scopes, more, Amount::ZERO)
                .map(|()| self.amount = self.amount + more),
        )
    }

    fn shrink_to(&mut self, to: Amount) {
        self.leave(to, Change::ZERO);
    }

    #[inline]
    fn commit(mut self, change: Change) -> Answer<Self::Commit> {
        // Zero is left, so that the drop finds nothing to release.
        if self.leave(Amount::ZERO, change) {
            self.review();
        }
        Answer::Now(())
    }
}

impl MemoryHold {
    /// Reserves `more` in the same scopes, as a hold of its own.
    pub(super) fn take_more(&self, more: Amount) -> Result<Self, QuotaError> {
        self.store.take(&self.scopes, more, Amount::ZERO)?;
        Ok(Self {
            store: Arc::clone(&self.store),
            scopes: self.scopes.clone(),
            amount: more,
        })
    }

    /// Takes over another hold in the same scopes.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.amount = self.amount + mem::replace(&mut other.amount, Amount::ZERO);
    }

    /// Commits, and does not call the hooks, which a caller that holds a lock does later.
    pub(crate) fn commit_quietly(mut self, change: Change) -> Vec<OverSoftLimit> {
        match self.leave(Amount::ZERO, change) {
            true => self.store.review_all(&self.scopes),
            false => Vec::new(),
        }
    }

    /// Reviews timers after a charge, and tells of what was crossed.
    #[cold]
    #[inline(never)]
    fn review(&self) {
        self.store.hooks.tell(&self.store.review_all(&self.scopes));
    }

    /// Charges a change, and leaves so much reserved. Returns whether timers are to be reviewed.
    fn leave(&mut self, rest: Amount, change: Change) -> bool {
        let released = self.amount - rest;
        self.amount = self.amount - released;
        if released.is_zero() && change == Change::ZERO {
            return false;
        }
        self.store.leave(&self.scopes, released, change)
    }
}

impl Drop for MemoryHold {
    #[inline]
    fn drop(&mut self) {
        if !self.amount.is_zero() {
            self.leave(Amount::ZERO, Change::ZERO);
        }
    }
}

impl fmt::Debug for MemoryHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryHold")
            .field("scopes", &self.scopes)
            .field("amount", &self.amount)
            .finish_non_exhaustive()
    }
}

/// The number of locks that the accounts are distributed over.
const SHARDS: u64 = 128;

type Shard = HashMap<Scope, Account, BuildHasherDefault<PassThrough>>;

struct Store {
    // Two atomics instead of a lock that every request would contend for. Each resource is decided by its own atomic,
    // so it is not observable that the two change at different instants.
    default_bytes: AtomicU64,
    default_objects: AtomicU64,
    /// Whether the default limits have a soft limit, so that charges of scopes without limits of their own are reviewed.
    has_soft: AtomicBool,
    /// The default limits in whole, for what is rare. Locked inside of a shard.
    default: RwLock<Limits>,
    hooks: SoftLimitHooks,
    /// Bytes and objects.
    unmatched: [AtomicU64; 2],
    shards: Box<[Mutex<Shard>]>,
}

impl Store {
    fn new(default: Limits) -> Self {
        let store = Self {
            default_bytes: AtomicU64::default(),
            default_objects: AtomicU64::default(),
            has_soft: AtomicBool::default(),
            default: RwLock::default(),
            hooks: SoftLimitHooks::default(),
            unmatched: Default::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        };
        store.set_default(default);
        store
    }

    fn default_ceiling(&self) -> Ceiling {
        Ceiling(Amount::new(
            self.default_bytes.load(Relaxed),
            self.default_objects.load(Relaxed),
        ))
    }

    fn default(&self) -> Limits {
        *self.default.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_default(&self, default: Limits) {
        let mut limits = self.default.write().unwrap_or_else(PoisonError::into_inner);
        *limits = default;
        let Ceiling(most) = default.into();
        self.default_bytes.store(most.bytes, Relaxed);
        self.default_objects.store(most.objects, Relaxed);
        self.has_soft.store(default.has_soft(), Relaxed);
    }

    /// The limits and the usage of an account.
    fn usage(&self, account: &Account) -> Usage {
        let rare = account.rare.as_deref();
        let (own, over) = rare
            .map(|rare| (rare.limits, rare.over))
            .unwrap_or_default();
        Usage {
            limits: own.unwrap_or_else(|| self.default()),
            used: account.used.gain(),
            held: account.held,
            over: over.elapsed(|since: Instant| since.elapsed()),
        }
    }

    /// The most that an account may use now.
    #[inline]
    fn ceiling(&self, account: &Account, default: Ceiling) -> Ceiling {
        match account.rare {
            None => default,
            Some(_) => self.rare_ceiling(account),
        }
    }

    #[cold]
    fn rare_ceiling(&self, account: &Account) -> Ceiling {
        self.usage(account).in_force().into()
    }

    /// Releases what was held, and charges a change. Returns whether the timers of these scopes are to be reviewed.
    #[inline(always)]
    fn leave(&self, scopes: &Scopes, released: Amount, change: Change) -> bool {
        let mut may_have_soft = self.has_soft.load(Relaxed);
        for scope in scopes {
            self.update(scope, |account| {
                account.held = account.held - released;
                account.used = account.used.then(change);
                may_have_soft |= account.rare.is_some();
            });
        }
        // Nothing but a charge starts or resets a timer.
        may_have_soft && change != Change::ZERO
    }

    /// Reviews the timers of these scopes, as usage is now: right after a charge, so that one without soft limits does not pay
    /// for this. Returns the soft limits that were crossed.
    #[cold]
    fn review_all(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        let mut crossed = Vec::new();
        for scope in scopes {
            self.update(scope, |account| {
                crossed.extend(self.review(scope, account));
            });
        }
        crossed
    }

    /// Starts and resets the timers of an account. Returns the soft limits that were crossed.
    fn review(&self, scope: &Scope, account: &mut Account) -> Vec<OverSoftLimit> {
        let Usage { limits, used, .. } = self.usage(account);
        let rare = account.rare.as_deref();
        let mut since = rare.map(|rare| rare.over).unwrap_or_default();
        let crossed = since.review(&limits, used, Instant::now());
        if account.rare.is_some() || !since.is_never() {
            account.change_rare(|rare| rare.over = since);
        }
        let over_for = self.usage(account).over;
        let all = over(scope, &limits, used, over_for, crossed);
        all.filter(|over| over.has_just_crossed).collect()
    }

    /// Reserves `need` in every scope, or in none. `expected` must fit too.
    fn take(&self, scopes: &Scopes, need: Amount, expected: Amount) -> Result<(), QuotaError> {
        // Zero always fits, and leaves no account.
        let required = need.max(expected);
        if required.is_zero() {
            return Ok(());
        }
        let default = self.default_ceiling();
        if let [scope] = scopes.as_slice() {
            return self.take_of_one(scope, default, need, required);
        }
        let mut shards = self.lock_all(scopes);
        for scope in scopes {
            let account = shards.of(scope).get(scope).unwrap_or(&Account::EMPTY);
            let counted = account.used.gain() + account.held;
            self.ceiling(account, default)
                .admit(scope, counted, required)?;
        }
        if need.is_zero() {
            return Ok(());
        }
        for scope in scopes {
            self.update_in(shards.of(scope), scope, |account| {
                account.held = account.held + need
            });
        }
        Ok(())
    }

    /// The same in one scope, which is looked up once.
    #[inline]
    fn take_of_one(
        &self,
        scope: &Scope,
        default: Ceiling,
        need: Amount,
        required: Amount,
    ) -> Result<(), QuotaError> {
        let mut shard = self.lock(shard_of(scope));
        let Some(account) = shard.get_mut(scope) else {
            default.admit(scope, Amount::ZERO, required)?;
            if !need.is_zero() {
                let held = need;
                shard.insert(
                    scope.clone(),
                    Account {
                        held,
                        ..Account::EMPTY
                    },
                );
            }
            return Ok(());
        };
        let counted = account.used.gain() + account.held;
        self.ceiling(account, default)
            .admit(scope, counted, required)?;
        account.held = account.held + need;
        Ok(())
    }

    fn update(&self, scope: &Scope, change: impl FnOnce(&mut Account)) {
        self.update_in(&mut self.lock(shard_of(scope)), scope, change);
    }

    /// Changes one account. Accounts in the default state are removed, so that they do not accumulate as scopes come and
    /// go.
    fn update_in(&self, shard: &mut Shard, scope: &Scope, change: impl FnOnce(&mut Account)) {
        if let Some(account) = shard.get_mut(scope) {
            change(account);
            self.note(account.used.stop_below(account.held));
            if account.is_empty() {
                shard.remove(scope);
            }
        } else {
            let mut account = Account::EMPTY;
            change(&mut account);
            self.note(account.used.stop_below(account.held));
            if !account.is_empty() {
                shard.insert(scope.clone(), account);
            }
        }
    }

    fn note(&self, unmatched: Amount) {
        if !unmatched.is_zero() {
            self.unmatched[0].fetch_add(unmatched.bytes, Relaxed);
            self.unmatched[1].fetch_add(unmatched.objects, Relaxed);
        }
    }

    fn lock_all(&self, scopes: &Scopes) -> Locked<'_> {
        let mut places: Vec<usize> = scopes.iter().map(shard_of).collect();
        // One order for all requests, so that two can never deadlock.
        places.sort_unstable();
        places.dedup();
        let locked = places.into_iter().map(|place| (place, self.lock(place)));
        Locked(locked.collect())
    }

    fn lock(&self, place: usize) -> MutexGuard<'_, Shard> {
        // Ignoring poison is sound: nothing that can panic runs between two changes that belong together.
        self.shards[place]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The locked shards of one request.
struct Locked<'a>(Vec<(usize, MutexGuard<'a, Shard>)>);

impl Locked<'_> {
    /// The shard of a scope, which has to be among the locked ones.
    fn of(&mut self, scope: &Scope) -> &mut Shard {
        let found = (self.0).binary_search_by_key(&shard_of(scope), |(place, _)| *place);
        &mut self.0[found.expect("the shard of every scope was locked")].1
    }
}

/// Selects a scope's shard. The last ones get twice as many scopes as the first ones.
///
/// A map doubles its capacity when it is full. If the shards had equal sizes, all of them would double at once, which
/// causes a burst of pauses and leaves more than half of the memory empty. With unequal sizes a few of them double at
/// any time, and the empty share is constant.
fn shard_of(scope: &Scope) -> usize {
    // The map uses the lowest and the highest bits, so these are independent of it.
    let x = (scope.hash_code() >> 32) & 0xFFFF;
    // x(4 - x)/3 over [0, 1): its slope falls from 4/3 to 2/3. In units of 2^-16.
    let place = x * ((4 << 16) - x) * SHARDS / (3 << 32);
    place as usize
}

/// 40 bytes, because there may be millions.
struct Account {
    /// Below zero by what is held at most: a delete may be counted before the commit of what it deletes.
    used: Change,
    held: Amount,
    /// None where there is nothing in it.
    rare: Option<Box<Rare>>,
}

/// What few accounts have.
#[derive(Default)]
struct Rare {
    /// The scope's own limits.
    limits: Option<Limits>,
    /// Since when usage has been above the soft limits.
    over: OverSince<Instant>,
}

impl Account {
    /// The account of an unknown scope.
    const EMPTY: Self = Self {
        used: Change::ZERO,
        held: Amount::ZERO,
        rare: None,
    };

    fn change_rare(&mut self, change: impl FnOnce(&mut Rare)) {
        let rare = self.rare.get_or_insert_default();
        change(rare);
        if rare.limits.is_none() && rare.over.is_never() {
            self.rare = None;
        }
    }

    fn is_empty(&self) -> bool {
        self.used == Change::ZERO && self.held.is_zero() && self.rare.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{atomic::Ordering::SeqCst, mpsc},
        thread,
        time::Duration,
    };

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;
    use crate::{
        cause::{Cause, Resource},
        quota::{Exceeded, OverFor},
    };

    const NAMES: [&str; 4] = ["a", "b", "c", "a name that is too long to be kept inline"];

    fn reserve(
        quota: &MemoryQuota,
        scopes: impl Into<Scopes>,
        demand: Amount,
    ) -> Result<MemoryHold, Exceeded> {
        quota
            .reserve(&scopes.into(), demand, Amount::ZERO)
            .now()
            .expect("decided in memory")
            .map_err(|error| match error {
                QuotaError::Exceeded(exceeded) => exceeded,
                QuotaError::Unavailable(error) => panic!("memory is always there: {error}"),
            })
    }

    fn commit(hold: MemoryHold, change: impl Into<Change>) {
        assert!(matches!(hold.commit(change.into()), Answer::Now(())));
    }

    fn accounts(quota: &MemoryQuota) -> usize {
        quota
            .store
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap().len())
            .sum()
    }

    #[test]
    fn a_refusal_has_the_scope_and_the_figures() {
        let quota = MemoryQuota::new(Limits::bytes(100).objects(1));
        quota.set_used("user:42", Amount::bytes(50));
        let _hold = reserve(&quota, "user:42", Amount::new(20, 1)).unwrap();

        let exceeded = reserve(&quota, ["tenant:acme", "user:42"], Amount::bytes(31)).unwrap_err();
        assert_eq!(
            exceeded,
            Exceeded::new(Scope::from("user:42"), Resource::Bytes, 100, 70, 31)
        );
        assert_eq!(exceeded.cause, Cause::QuotaExceeded);
        assert_eq!(
            reserve(&quota, "user:42", Amount::objects(1))
                .unwrap_err()
                .resource,
            Resource::Objects
        );
        assert!(reserve(&quota, "user:42", Amount::bytes(30)).is_ok());
        // Nothing was reserved in the scope that had room.
        assert_eq!(quota.usage("tenant:acme").held, Amount::ZERO);
    }

    #[test]
    fn a_refusal_keeps_the_discretion_of_its_request() {
        let quota = MemoryQuota::new(Limits::bytes(1));
        let _account_of_the_disclosed = reserve(&quota, "user:1", Amount::bytes(1));
        let owner = Scope::from("user:1").undisclosed();
        assert!(
            !reserve(&quota, owner, Amount::bytes(1))
                .unwrap_err()
                .scope
                .is_disclosed()
        );
    }

    #[test]
    fn an_expected_amount_must_fit_and_is_not_held() {
        let quota = MemoryQuota::new(Limits::bytes(100));
        let reserve = |demand, expected| {
            let (demand, expected) = (Amount::bytes(demand), Amount::bytes(expected));
            quota
                .reserve(&"user:42".into(), demand, expected)
                .now()
                .expect("decided in memory")
        };
        let _hold = reserve(10, 100).unwrap();
        assert_eq!(quota.usage("user:42").held, Amount::bytes(10));
        assert!(reserve(0, 91).is_err());
        assert!(reserve(0, 90).is_ok());
    }

    #[test]
    fn a_request_without_scopes_is_never_refused() {
        let quota = MemoryQuota::new(Limits::bytes(0));
        assert!(reserve(&quota, Scopes::NONE, Amount::bytes(1)).is_ok());
        assert!(reserve(&quota, "user:42", Amount::bytes(1)).is_err());
    }

    #[test]
    fn commit_charges_the_truth() {
        let quota = MemoryQuota::new(Limits::bytes(100));
        let hold = reserve(&quota, "user:42", Amount::bytes(10)).unwrap();
        commit(hold, Amount::bytes(150));
        let usage = quota.usage("user:42");
        assert_eq!((usage.used, usage.held), (Amount::bytes(150), Amount::ZERO));
    }

    #[test]
    fn a_delete_may_overtake_the_commit() {
        let quota = MemoryQuota::new(Limits::bytes(100));
        let hold = reserve(&quota, "user:42", Amount::bytes(60)).unwrap();
        quota.adjust(
            "user:42",
            Change {
                bytes: -60,
                objects: 0,
            },
        );
        assert_eq!(quota.usage("user:42").used, Amount::ZERO);
        // It must not make room for more than the limit.
        assert!(reserve(&quota, "user:42", Amount::bytes(41)).is_err());
        commit(hold, Amount::bytes(60));
        assert_eq!(accounts(&quota), 0);
    }

    #[test]
    fn what_is_given_back_too_often_is_no_credit() {
        let quota = MemoryQuota::new(Limits::bytes(100));
        let delete = |bytes| {
            let removed = Change::between(Amount::ZERO, Amount::bytes(bytes));
            quota.charge(&"user:42".into(), removed);
        };
        for _ in 0..60 {
            delete(100);
        }
        assert_eq!(quota.unmatched(), Amount::bytes(6_000));
        let hold = reserve(&quota, "user:42", Amount::bytes(100)).unwrap();
        // Nor while something is held: no more than that can be charged later.
        delete(300);
        assert_eq!(quota.unmatched(), Amount::bytes(6_200));
        commit(hold, Amount::bytes(100));
        let hold = reserve(&quota, "user:42", Amount::bytes(60)).unwrap();
        commit(hold, Amount::bytes(60));
        assert!(reserve(&quota, "user:42", Amount::bytes(41)).is_err());
    }

    #[test]
    fn default_limits_apply_where_none_are_set() {
        let quota = MemoryQuota::new(Limits::UNLIMITED);
        quota.set_limits("own", Limits::bytes(1));
        quota.set_default(Limits::bytes(5));
        assert_eq!(quota.usage("own").limits, Limits::bytes(1));
        assert_eq!(quota.clone().usage("other").limits, Limits::bytes(5));
        quota.clear_limits("own");
        assert_eq!(quota.usage("own").limits, Limits::bytes(5));
        assert_eq!(accounts(&quota), 0);
    }

    #[test]
    fn removing_keeps_what_is_held() {
        let quota = MemoryQuota::new(Limits::bytes(10));
        let hold = reserve(&quota, "user:42", Amount::bytes(6)).unwrap();
        quota.set_used("user:42", Amount::bytes(4));
        quota.remove("user:42");
        assert_eq!(quota.usage("user:42").used, Amount::ZERO);
        let other = reserve(&quota, "user:42", Amount::bytes(4)).unwrap();
        drop(hold);
        assert_eq!(quota.usage("user:42").held, Amount::bytes(4));
        drop(other);
        assert_eq!(accounts(&quota), 0);
    }

    #[test]
    fn extreme_values_neither_wrap_nor_panic() {
        let (most, least) = (
            Change {
                bytes: i64::MAX,
                objects: i64::MAX,
            },
            Change {
                bytes: i64::MIN,
                objects: i64::MIN,
            },
        );
        let all = Amount::new(u64::MAX, u64::MAX);
        let quota = MemoryQuota::new(Limits::UNLIMITED);

        let hold = reserve(&quota, "s", all).unwrap();
        // Even an unlimited scope cannot count further, so every hold is released in full.
        assert!(reserve(&quota, "s", Amount::bytes(1)).is_err());
        quota.set_used("s", all);
        quota.adjust("s", most);
        assert!(reserve(&quota, "s", Amount::bytes(1)).is_err());
        commit(hold, most);
        assert_eq!(quota.usage("s").used, most.gain());
        assert_eq!(quota.usage("s").held, Amount::ZERO);

        for _ in 0..3 {
            quota.adjust("s", least);
        }
        assert_eq!(quota.usage("s").used, Amount::ZERO);
        assert!(reserve(&quota, "s", all).is_ok());
    }

    #[test]
    fn a_poisoned_shard_still_serves() {
        let quota = MemoryQuota::new(Limits::bytes(10));
        let store = Arc::clone(&quota.store);
        let place = shard_of(&Scope::from("user:42"));
        thread::spawn(move || {
            let _shard = store.lock(place);
            panic!("on purpose");
        })
        .join()
        .unwrap_err();
        assert!(quota.store.shards[place].is_poisoned());
        assert!(reserve(&quota, "user:42", Amount::bytes(10)).is_ok());
    }

    #[test]
    fn every_shard_is_in_use_and_the_last_the_most() {
        let mut scopes = [0_u32; SHARDS as usize];
        for id in 0..SHARDS * 1000 {
            scopes[shard_of(&Scope::from(format_args!("{id}")))] += 1;
        }
        let eighth = scopes.len() / 8;
        let first: u32 = scopes[..eighth].iter().sum();
        let last: u32 = scopes[scopes.len() - eighth..].iter().sum();
        assert!(scopes.iter().all(|&scopes| scopes > 500));
        assert!((1.6..2.2).contains(&(f64::from(last) / f64::from(first))));
    }

    #[test]
    fn a_request_of_one_scope_does_not_allocate() {
        let quota = MemoryQuota::new(Limits::bytes(1000));
        quota.set_used("user:42", Amount::bytes(1));
        let counted = allocation_counter::measure(|| {
            let mut hold = reserve(&quota, "user:42", Amount::new(10, 1)).unwrap();
            hold.grow(Amount::bytes(5)).into_inner().unwrap();
            commit(hold, Amount::new(12, 1));
            drop(reserve(&quota, "user:42", Amount::new(10, 1)).unwrap());
        });
        assert_eq!(counted.count_total, 0);
        assert_eq!(quota.usage("user:42").used, Amount::new(13, 1));
    }

    #[test]
    fn an_account_costs_at_most_100_bytes() {
        assert_eq!(size_of::<Account>(), 40);
        let mut quota = None;
        let allocated =
            allocation_counter::measure(|| quota = Some(MemoryQuota::new(Limits::bytes(1000))));
        let quota = quota.unwrap();
        // Covers a doubling of a map, wherever the worst case is.
        let steps = (0..=10).map(|step| 200_000 + 20_000 * step);
        let (mut scopes, mut bytes) = (0, allocated.bytes_current);
        for target in [1000, 10_000].into_iter().chain(steps) {
            bytes += allocation_counter::measure(|| {
                for id in scopes..target {
                    quota.set_used(format_args!("user:{id}"), Amount::bytes(1));
                }
            })
            .bytes_current;
            scopes = target;
            let each = bytes as f64 / scopes as f64 - size_of::<Scope>() as f64;
            println!(
                "{scopes} scopes: {each:.1} bytes each, beside the key of {} bytes",
                size_of::<Scope>()
            );
            assert!(each <= 100.0);
        }
    }

    /// One operation on a quota, in the order of `Model`'s fields. Holds are selected by a number modulo their count.
    #[derive(Clone, Debug)]
    enum Op {
        Reserve(Vec<usize>, Amount),
        Grow(usize, Amount),
        Shrink(usize, Amount),
        Commit(usize, Change),
        Drop(usize),
        Adjust(usize, Change),
        SetUsed(usize, Amount),
        SetLimits(usize, Limits),
        ClearLimits(usize),
        SetDefault(Limits),
        Remove(usize),
        /// Seconds pass.
        Wait(u64),
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let amount =
            || (0..25_u64, 0..3_u64).prop_map(|(bytes, objects)| Amount::new(bytes, objects));
        let change =
            || (-25..25_i64, -3..3_i64).prop_map(|(bytes, objects)| Change { bytes, objects });
        let limits = || {
            let each = || (prop::option::of(0..80_u64), prop::option::of(0..8_u64));
            let grace = prop::option::of((0..6_u64).prop_map(Duration::from_secs));
            (each(), each(), grace).prop_map(|(hard, (soft_bytes, soft_objects), grace)| Limits {
                soft_bytes,
                soft_objects,
                grace,
                ..Limits::new(hard.0, hard.1)
            })
        };
        let scope = || 0..NAMES.len();
        prop_oneof![
            8 => (prop::collection::vec(scope(), 0..4), amount()).prop_map(|(s, a)| Op::Reserve(s, a)),
            4 => (any::<usize>(), amount()).prop_map(|(h, a)| Op::Grow(h, a)),
            2 => (any::<usize>(), amount()).prop_map(|(h, a)| Op::Shrink(h, a)),
            4 => (any::<usize>(), change()).prop_map(|(h, c)| Op::Commit(h, c)),
            3 => any::<usize>().prop_map(Op::Drop),
            2 => (scope(), change()).prop_map(|(s, c)| Op::Adjust(s, c)),
            1 => (scope(), amount()).prop_map(|(s, a)| Op::SetUsed(s, a)),
            1 => (scope(), limits()).prop_map(|(s, l)| Op::SetLimits(s, l)),
            1 => scope().prop_map(Op::ClearLimits),
            1 => limits().prop_map(Op::SetDefault),
            1 => scope().prop_map(Op::Remove),
            2 => (0..4_u64).prop_map(Op::Wait),
        ]
    }

    /// The reference model: `[bytes, objects]` per scope, and every hold individually.
    #[derive(Default)]
    struct Model {
        default: Limits,
        own: [Option<Limits>; NAMES.len()],
        used: [[i64; 2]; NAMES.len()],
        /// Since when usage is above a soft limit.
        over: [[Option<Instant>; 2]; NAMES.len()],
        /// The crossings since the last step.
        crossed: Vec<(usize, usize)>,
        unmatched: [u64; 2],
        holds: Vec<(MemoryHold, HashSet<usize>, [u64; 2])>,
    }

    impl Model {
        /// Hard, soft and grace.
        fn limits(&self, scope: usize) -> ([Option<u64>; 2], [Option<u64>; 2], Option<Duration>) {
            let limits = self.own[scope].unwrap_or(self.default);
            (
                [limits.bytes, limits.objects],
                [limits.soft_bytes, limits.soft_objects],
                limits.grace,
            )
        }

        /// The smaller of the hard limit, and of the soft limit if that was passed for the grace.
        fn limit(&self, scope: usize, resource: usize) -> Option<u64> {
            let (hard, soft, grace) = self.limits(scope);
            let used = self.used[scope][resource].max(0) as u64;
            let mut limits = vec![hard[resource]];
            if let (Some(soft), Some(grace), Some(since)) =
                (soft[resource], grace, self.over[scope][resource])
                && used > soft
                && since.elapsed() >= grace
            {
                limits.push(Some(soft));
            }
            limits.into_iter().flatten().min()
        }

        fn held(&self, scope: usize) -> [u64; 2] {
            let of = |resource: usize| {
                self.holds
                    .iter()
                    .filter(|(_, scopes, _)| scopes.contains(&scope))
                    .map(|hold| hold.2[resource])
                    .sum()
            };
            [of(0), of(1)]
        }

        fn total(&self, scope: usize, resource: usize) -> u64 {
            self.used[scope][resource].max(0) as u64 + self.held(scope)[resource]
        }

        fn fits(&self, scopes: &HashSet<usize>, need: [u64; 2]) -> bool {
            scopes.iter().all(|&scope| {
                (0..2).all(|resource| {
                    need[resource] == 0
                        || self.limit(scope, resource).is_none_or(|limit| {
                            self.total(scope, resource) + need[resource] <= limit
                        })
                })
            })
        }

        fn charge(&mut self, scope: usize, change: Change) {
            self.used[scope][0] += change.bytes;
            self.used[scope][1] += change.objects;
            if change == Change::ZERO {
                return;
            }
            let (_, soft, _) = self.limits(scope);
            for (resource, soft) in soft.into_iter().enumerate() {
                let since = &mut self.over[scope][resource];
                let used = self.used[scope][resource];
                match soft.is_some_and(|soft| used > soft as i64) {
                    true if since.is_none() => {
                        *since = Some(Instant::now());
                        self.crossed.push((scope, resource));
                    }
                    true => {}
                    false => *since = None,
                }
            }
        }

        /// A scope is below zero by what it holds at most.
        fn stop_at_holds(&mut self) {
            for scope in 0..NAMES.len() {
                for (resource, held) in self.held(scope).into_iter().enumerate() {
                    let used = &mut self.used[scope][resource];
                    let stopped = (*used).max(-held.cast_signed());
                    self.unmatched[resource] += stopped.abs_diff(*used);
                    *used = stopped;
                }
            }
        }

        /// Applies `op` to both, and checks that they agree on the result.
        fn apply(&mut self, quota: &MemoryQuota, op: Op) {
            let pair = |amount: Amount| [amount.bytes, amount.objects];
            let pick = |hold: usize| (!self.holds.is_empty()).then(|| hold % self.holds.len());
            match op {
                Op::Reserve(scopes, need) => {
                    let names: Vec<_> = scopes.iter().map(|&scope| NAMES[scope]).collect();
                    let scopes: HashSet<_> = scopes.into_iter().collect();
                    let fits = self.fits(&scopes, pair(need));
                    let hold = reserve(quota, names, need);
                    assert_eq!(hold.is_ok(), fits);
                    if let Ok(hold) = hold {
                        self.holds.push((hold, scopes.clone(), pair(need)));
                    }
                    self.check_limits(fits, &scopes, pair(need));
                }
                Op::Grow(hold, more) => {
                    let Some(hold) = pick(hold) else { return };
                    let scopes = self.holds[hold].1.clone();
                    let fits = self.fits(&scopes, pair(more));
                    let (known, _, held) = &mut self.holds[hold];
                    assert_eq!(known.grow(more).into_inner().is_ok(), fits);
                    if fits {
                        *held = [held[0] + more.bytes, held[1] + more.objects];
                    }
                    self.check_limits(fits, &scopes, pair(more));
                }
                Op::Shrink(hold, less) => {
                    let Some(hold) = pick(hold) else { return };
                    let (known, _, held) = &mut self.holds[hold];
                    let to = Amount::new(held[0], held[1]) - less;
                    known.shrink_to(to);
                    *held = pair(to);
                }
                Op::Commit(hold, change) => {
                    let Some(hold) = pick(hold) else { return };
                    let (hold, scopes, _) = self.holds.swap_remove(hold);
                    commit(hold, change);
                    scopes
                        .into_iter()
                        .for_each(|scope| self.charge(scope, change));
                }
                Op::Drop(hold) => {
                    let Some(hold) = pick(hold) else { return };
                    self.holds.swap_remove(hold);
                }
                Op::Adjust(scope, change) => {
                    quota.adjust(NAMES[scope], change);
                    self.charge(scope, change);
                }
                Op::SetUsed(scope, used) => {
                    quota.set_used(NAMES[scope], used);
                    self.used[scope] = [used.bytes as i64, used.objects as i64];
                }
                Op::SetLimits(scope, limits) => {
                    quota.set_limits(NAMES[scope], limits);
                    self.own[scope] = Some(limits);
                }
                Op::ClearLimits(scope) => {
                    quota.clear_limits(NAMES[scope]);
                    self.own[scope] = None;
                }
                Op::SetDefault(limits) => {
                    quota.set_default(limits);
                    self.default = limits;
                }
                Op::Remove(scope) => {
                    quota.remove(NAMES[scope]);
                    (self.used[scope], self.own[scope]) = ([0; 2], None);
                    self.over[scope] = [None; 2];
                }
                Op::Wait(_) => {}
            }
        }

        /// No admission takes a scope over its limit.
        fn check_limits(&self, admitted: bool, scopes: &HashSet<usize>, need: [u64; 2]) {
            for &scope in scopes.iter().filter(|_| admitted) {
                for resource in (0..2).filter(|&resource| need[resource] > 0) {
                    let limit = self.limit(scope, resource).unwrap_or(u64::MAX);
                    assert!(self.total(scope, resource) <= limit);
                }
            }
        }

        fn check_figures(&self, quota: &MemoryQuota) {
            let mut known = 0;
            for (scope, name) in NAMES.into_iter().enumerate() {
                let usage = quota.usage(name);
                let (used, held) = (self.used[scope], self.held(scope));
                assert_eq!(usage.limits, self.own[scope].unwrap_or(self.default));
                let over = self.over[scope].map(|since| since.map(|since| since.elapsed()));
                assert_eq!([usage.over.bytes, usage.over.objects], over);
                assert_eq!(
                    [usage.used.bytes, usage.used.objects],
                    used.map(|used| used.max(0) as u64)
                );
                assert_eq!([usage.held.bytes, usage.held.objects], held);
                let is_empty = used == [0; 2] && held == [0; 2] && over == [None; 2];
                known += usize::from(!is_empty || self.own[scope].is_some());
            }
            assert_eq!(accounts(quota), known);
            let [bytes, objects] = self.unmatched;
            assert_eq!(quota.unmatched(), Amount::new(bytes, objects));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(ops in prop::collection::vec(any_op(), 1..150)) {
            paused().block_on(async {
                let quota = MemoryQuota::new(Limits::UNLIMITED);
                let crossings = crossings(&quota);
                let mut model = Model::default();
                for op in ops {
                    if let Op::Wait(seconds) = op {
                        advance(Duration::from_secs(seconds)).await;
                    }
                    model.apply(&quota, op);
                    model.stop_at_holds();
                    model.check_figures(&quota);
                    let mut crossed: Vec<_> = crossings.try_iter().map(|over| {
                        let scope = NAMES.iter().position(|name| *name == over.scope.as_str());
                        (scope.unwrap(), usize::from(over.resource == Resource::Objects))
                    }).collect();
                    // A set of scopes has no order.
                    crossed.sort_unstable();
                    model.crossed.sort_unstable();
                    assert_eq!(crossed, mem::take(&mut model.crossed));
                }
                model.holds.clear();
                model.stop_at_holds();
                model.check_figures(&quota);
            });
        }
    }

    fn paused() -> tokio::runtime::Runtime {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap()
    }

    /// What the source tells its hooks.
    fn crossings(quota: &MemoryQuota) -> mpsc::Receiver<OverSoftLimit> {
        let (sender, crossings) = mpsc::channel();
        quota.on_soft_limit(SoftLimitHook::new(move |over| {
            let _ = sender.send(over.clone());
        }));
        crossings
    }

    #[tokio::test(start_paused = true)]
    async fn a_soft_limit_is_enforced_after_its_grace_until_usage_has_fallen_to_it() {
        const GRACE: Duration = Duration::from_secs(60);
        let quota = MemoryQuota::new(Limits::bytes(100).soft_percent(80).grace(GRACE));
        let crossings = crossings(&quota);
        let user = Scopes::from("user:42");
        commit(
            reserve(&quota, &user, Amount::bytes(80)).unwrap(),
            Amount::bytes(80),
        );
        // An exact fit is not above it, and what is held does not count.
        let held = reserve(&quota, &user, Amount::bytes(10)).unwrap();
        advance(GRACE).await;
        drop(held);
        assert_eq!(quota.over_soft_limits(&user), []);
        assert!(crossings.try_recv().is_err());

        let crossing = reserve(&quota, &user, Amount::bytes(1)).unwrap();
        commit(crossing, Amount::bytes(1));
        let over = |used| OverSoftLimit::new("user:42".into(), Resource::Bytes, 80, used);
        assert_eq!(
            crossings.try_recv(),
            Ok(over(81).with_grace(GRACE).crossed())
        );
        let second = Duration::from_secs(1);
        advance(GRACE - second).await;
        let early = reserve(&quota, &user, Amount::bytes(9)).unwrap();
        commit(early, Amount::bytes(9));
        assert_eq!(quota.over_soft_limits(&user), [over(90).with_grace(second)]);
        let under_way = reserve(&quota, &user, Amount::bytes(5)).unwrap();
        advance(second).await;

        let refused = reserve(&quota, &user, Amount::bytes(1)).unwrap_err();
        let expected = Exceeded::new("user:42".into(), Resource::Bytes, 80, 95, 1);
        assert_eq!(refused, expected);
        assert!(reserve(&quota, &user, Amount::ZERO).is_ok());
        assert!(reserve(&quota, &user, Amount::objects(1)).is_ok());
        // What was admitted before is charged, and crosses nothing again.
        commit(under_way, Amount::bytes(5));
        assert_eq!(quota.usage("user:42").over.bytes, Some(GRACE));
        quota.adjust("user:42", Change::between(Amount::ZERO, Amount::bytes(14)));
        assert!(reserve(&quota, &user, Amount::bytes(1)).is_err());
        assert!(crossings.try_recv().is_err());

        quota.adjust("user:42", Change::between(Amount::ZERO, Amount::bytes(1)));
        assert_eq!(quota.usage("user:42").over, OverFor::default());
        commit(
            reserve(&quota, &user, Amount::bytes(20)).unwrap(),
            Amount::bytes(20),
        );
        let again = over(100).with_grace(GRACE).crossed();
        assert_eq!(crossings.try_recv(), Ok(again));
    }

    #[tokio::test(start_paused = true)]
    async fn a_soft_limit_without_a_grace_only_warns() {
        let quota = MemoryQuota::new(Limits::UNLIMITED.soft_objects(1));
        let crossings = crossings(&quota);
        quota.adjust("user:42", Amount::objects(2).into());
        assert_eq!(crossings.try_recv().unwrap().grace, None);
        advance(Duration::from_secs(1 << 30)).await;
        assert!(reserve(&quota, "user:42", Amount::objects(1)).is_ok());
        // Usage that is counted is no charge.
        quota.set_used("user:43", Amount::objects(9));
        assert!(crossings.try_recv().is_err());
        quota.remove("user:42");
        assert_eq!(accounts(&quota), 1);
    }

    /// A hook may ask the source.
    #[test]
    fn hooks_are_called_without_a_lock() {
        let quota = MemoryQuota::new(Limits::UNLIMITED.soft_objects(1));
        let asked = quota.clone();
        let (sender, seen) = mpsc::channel();
        quota.on_soft_limit(SoftLimitHook::new(move |over| {
            asked.on_soft_limit(SoftLimitHook::new(|_| {}));
            let _ = sender.send(asked.usage(over.scope.clone()).used);
        }));
        let hold = reserve(&quota, "user:42", Amount::objects(2)).unwrap();
        commit(hold, Amount::objects(2));
        assert_eq!(seen.try_recv(), Ok(Amount::objects(2)));
    }

    #[test]
    fn threads_never_pass_the_limit_together() {
        const LIMIT: u64 = 1000;
        let quota = MemoryQuota::new(Limits::bytes(LIMIT));
        // Counted beside the quota: added after an admission, subtracted before the release. Never more than is held.
        let admitted: [AtomicU64; 3] = Default::default();
        let stored: [AtomicU64; 3] = Default::default();
        thread::scope(|threads| {
            for seed in 1..=8_u64 {
                let (quota, admitted, stored) = (&quota, &admitted, &stored);
                threads.spawn(move || {
                    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    let mut below = |end: u64| {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        random % end
                    };
                    let enter = |scopes: &[usize], bytes: u64| {
                        for &scope in scopes {
                            assert!(admitted[scope].fetch_add(bytes, SeqCst) + bytes <= LIMIT);
                        }
                    };
                    let strike = |scopes: &[usize], bytes: u64| {
                        scopes.iter().for_each(|&scope| {
                            admitted[scope].fetch_sub(bytes, SeqCst);
                        });
                    };
                    for _ in 0..4000 {
                        let scopes: &[usize] =
                            [&[0][..], &[1], &[2], &[0, 1], &[2, 0], &[2, 1, 0]][below(6) as usize];
                        let names = scopes.iter().map(|&scope| NAMES[scope]);
                        let mut bytes = below(300);
                        let Ok(mut hold) =
                            reserve(quota, names.collect::<Scopes>(), Amount::bytes(bytes))
                        else {
                            continue;
                        };
                        enter(scopes, bytes);
                        let more = below(100);
                        if hold.grow(Amount::bytes(more)).into_inner().is_ok() {
                            enter(scopes, more);
                            bytes += more;
                        }
                        if below(20) == 0 {
                            // Stored, and therefore charged permanently.
                            let kept = below(bytes.min(20) + 1);
                            strike(scopes, bytes - kept);
                            scopes.iter().for_each(|&scope| {
                                stored[scope].fetch_add(kept, SeqCst);
                            });
                            commit(hold, Amount::bytes(kept));
                        } else {
                            strike(scopes, bytes);
                            drop(hold);
                        }
                    }
                });
            }
        });
        for (scope, name) in NAMES[..3].iter().enumerate() {
            let usage = quota.usage(*name);
            assert_eq!(usage.held, Amount::ZERO);
            assert_eq!(usage.used, Amount::bytes(stored[scope].load(SeqCst)));
            assert_eq!(stored[scope].load(SeqCst), admitted[scope].load(SeqCst));
        }
    }
}
