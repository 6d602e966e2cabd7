//! The contract of a store as the simplest program.

use std::{
    collections::{HashMap, HashSet},
    future::ready,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::super::{
    Account, Baseline, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement, Store, StoreFuture,
};
use crate::{
    amount::Amount,
    cause::Resource,
    quota::{Change, Exceeded, Limits, OverFor, OverSoftLimit, QuotaError},
    scope::{Scope, Scopes},
};

/// The reference that [`run`](super::run) compares stores with: one map under one lock.
///
/// Use it in place of a real store in your own tests. It goes by tokio's clock, which a test may pause. It is slow with
/// many holds, remembers every settlement, and loses everything when it is dropped.
#[derive(Debug, Default)]
pub struct ReferenceStore(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    /// Without what is held, and without timers.
    accounts: HashMap<Scope, Account>,
    /// The timers of soft limits: since when usage is above, of bytes and objects.
    timers: HashMap<Scope, [Option<Instant>; 2]>,
    holds: HashMap<HoldId, Hold>,
    settled: HashSet<HoldId>,
    baseline: Option<Baseline>,
}

#[derive(Debug)]
struct Hold {
    scopes: Scopes,
    amount: Amount,
    until: Instant,
}

impl ReferenceStore {
    /// Forgets everything, as a store does that is flushed.
    pub fn clear(&self) {
        *self.tables() = Tables::default();
    }

    /// The tables, without the holds that have expired.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tables.holds.retain(|_, hold| hold.until > now);
        tables
    }
}

impl Tables {
    fn account(&self, scope: &Scope) -> Account {
        let holds = self.holds.values();
        let held = holds.filter(|hold| hold.scopes.iter().any(|held| held == scope));
        let [bytes, objects] = self.timers.get(scope).copied().unwrap_or_default();
        let elapsed = |since: Option<Instant>| since.map(|since| since.elapsed());
        let mut account = Account {
            held: held.fold(Amount::ZERO, |sum, hold| sum + hold.amount),
            over: OverFor::new(elapsed(bytes), elapsed(objects)),
            ..self.accounts.get(scope).copied().unwrap_or_default()
        };
        account.stop_below_zero();
        account
    }

    /// What is below zero by more than is held now stays cut off, whatever is held later.
    fn stop_below_zero<'a>(&mut self, scopes: impl IntoIterator<Item = &'a Scope>) {
        for scope in scopes {
            let stopped = self.account(scope);
            if let Some(account) = self.accounts.get_mut(scope) {
                (account.used, account.unmatched) = (stopped.used, stopped.unmatched);
            }
        }
    }

    fn reserve(&mut self, asked: &Reserve) -> Result<Reserved, QuotaError> {
        self.stop_below_zero(&asked.scopes);
        let required = asked.amount.max(asked.expected);
        let mut over = Vec::new();
        for (index, scope) in asked.scopes.iter().enumerate() {
            let account = self.account(scope);
            let limits = account.own.unwrap_or_else(|| asked.default_at(index));
            admit(scope, limits, account, required)?;
            over.extend(self.over(scope, limits, [false; 2]));
        }
        let held = Keep::new(asked.id, asked.amount, asked.time_to_live);
        self.hold(&asked.scopes, held);
        Ok(Reserved::new(over, self.baseline))
    }

    fn hold(&mut self, scopes: &Scopes, held: Keep) {
        let until = Instant::now() + held.time_to_live;
        let hold = self.holds.entry(held.id).or_insert_with(|| Hold {
            scopes: scopes.clone(),
            amount: Amount::ZERO,
            until,
        });
        hold.amount = hold.amount + held.amount;
        hold.until = until;
    }

    /// Starts and resets the timers of a scope. Returns which were started.
    fn review(&mut self, scope: &Scope, limits: Limits) -> [bool; 2] {
        let used = self.account(scope).used;
        let timers = self.timers.entry(scope.clone()).or_default();
        let review = |since: &mut Option<Instant>, soft: Option<u64>, used: i64| {
            let was_above = since.is_some();
            *since = match soft {
                Some(soft) if i128::from(used) > i128::from(soft) => {
                    Some(since.unwrap_or_else(Instant::now))
                }
                _ => None,
            };
            since.is_some() && !was_above
        };
        let [bytes, objects] = timers;
        [
            review(bytes, limits.soft_bytes, used.bytes),
            review(objects, limits.soft_objects, used.objects),
        ]
    }

    /// The soft limits that a scope is above.
    fn over(&self, scope: &Scope, limits: Limits, crossed: [bool; 2]) -> Vec<OverSoftLimit> {
        let both = both(limits, self.account(scope)).into_iter().zip(crossed);
        let over = both.filter_map(|((resource, soft, used, over_for), has_just_crossed)| {
            let (soft, over_for) = (soft?, over_for?);
            (used > soft).then(|| OverSoftLimit {
                grace: limits.grace.map(|grace| grace.saturating_sub(over_for)),
                has_just_crossed,
                ..OverSoftLimit::new(scope.clone(), resource, soft, used)
            })
        });
        over.collect()
    }

    /// Reviews the timers of what was charged. Returns the soft limits that usage is above.
    fn review_all(&mut self, settlements: &[Settlement]) -> Vec<OverSoftLimit> {
        let is_charge = |settlement: &&Settlement| settlement.change != Change::ZERO;
        let charges = settlements.iter().filter(is_charge);
        let charged: HashSet<_> = charges.flat_map(|charge| &charge.scopes).collect();
        let (mut over, mut seen) = (Vec::new(), HashSet::new());
        for settlement in settlements {
            for (index, scope) in settlement.scopes.iter().enumerate() {
                let own = self.account(scope).own;
                let Some(limits) = own.or(settlement.default_at(index)) else {
                    continue;
                };
                if !seen.insert(scope) {
                    continue;
                }
                let crossed = match charged.contains(scope) {
                    true => self.review(scope, limits),
                    false => [false; 2],
                };
                over.extend(self.over(scope, limits, crossed));
            }
        }
        over
    }

    fn settle(&mut self, settlement: &Settlement) {
        self.holds.remove(&settlement.id);
        if !settlement.is_remembered() || !self.settled.insert(settlement.id) {
            return;
        }
        if let Some(keep) = settlement.keep {
            self.hold(&settlement.scopes, keep);
        }
        for scope in &settlement.scopes {
            let account = self.accounts.entry(scope.clone()).or_default();
            account.used = account.used.then(settlement.change);
        }
    }
}

/// Of bytes and objects: the soft limit, what is used, and for how long that has been above it.
type Above = (Resource, Option<u64>, u64, Option<Duration>);

fn both(limits: Limits, account: Account) -> [Above; 2] {
    let (used, over) = (account.used.gain(), account.over);
    [
        (Resource::Bytes, limits.soft_bytes, used.bytes, over.bytes),
        (
            Resource::Objects,
            limits.soft_objects,
            used.objects,
            over.objects,
        ),
    ]
}

fn admit(
    scope: &Scope,
    limits: Limits,
    account: Account,
    required: Amount,
) -> Result<(), Exceeded> {
    let hard = [limits.bytes, limits.objects];
    for ((resource, soft, used, over), hard) in both(limits, account).into_iter().zip(hard) {
        let (counted, required) = (used + resource.of(account.held), resource.of(required));
        let mut limit = hard.unwrap_or(u64::MAX);
        if let (Some(soft), Some(grace), Some(over)) = (soft, limits.grace, over)
            && used > soft
            && over >= grace
        {
            limit = limit.min(soft);
        }
        if required > 0 && u128::from(counted) + u128::from(required) > limit.into() {
            let scope = scope.clone();
            return Err(Exceeded::new(scope, resource, limit, counted, required));
        }
    }
    Ok(())
}

/// A future of what is there already.
fn now<'a, T: Send + 'a, E: Send + 'a>(answer: Result<T, E>) -> StoreFuture<'a, T, E> {
    Box::pin(ready(answer))
}

impl Store for ReferenceStore {
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        now(self.tables().reserve(asked))
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>> {
        let mut tables = self.tables();
        let scopes = || settlements.iter().flat_map(|settlement| &settlement.scopes);
        tables.stop_below_zero(scopes());
        for settlement in settlements {
            tables.settle(settlement);
        }
        tables.stop_below_zero(scopes());
        now(Ok(tables.review_all(settlements)))
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        let mut tables = self.tables();
        for (id, _) in holds {
            if let Some(hold) = tables.holds.get_mut(id) {
                hold.until = Instant::now() + time_to_live;
            }
        }
        now(Ok(()))
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        now(Ok(self.tables().account(scope)))
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()> {
        let mut tables = self.tables();
        tables.accounts.entry(scope.clone()).or_default().own = limits;
        now(Ok(()))
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        let mut tables = self.tables();
        tables.accounts.entry(scope.clone()).or_default().used = used.into();
        now(Ok(()))
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        let tables = self.tables();
        let scopes = tables.accounts.keys();
        let mut all: Vec<_> = scopes
            .map(|scope| (scope.clone(), tables.account(scope)))
            .filter(|(_, account)| account.used != Change::ZERO)
            .collect();
        all.sort_by_key(|(_, account)| -account.used.bytes);
        all.truncate(count);
        now(Ok(all))
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        let tables = self.tables();
        let entries = tables.holds.iter().flat_map(|(id, hold)| {
            let expires_in = hold.until.saturating_duration_since(Instant::now());
            let scopes = hold.scopes.iter();
            scopes.map(move |scope| HoldEntry::new(*id, scope.clone(), hold.amount, expires_in))
        });
        let wanted = entries.filter(|entry| scope.is_none_or(|scope| *scope == entry.scope));
        now(Ok(wanted.take(count).collect()))
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        let mut tables = self.tables();
        tables.accounts.remove(scope);
        tables.timers.remove(scope);
        now(Ok(()))
    }

    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
        now(Ok(self.tables().baseline))
    }

    fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline> {
        now(Ok(*self.tables().baseline.get_or_insert(baseline)))
    }
}
