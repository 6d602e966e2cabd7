//! What a store is to do, as simple as can be: one map under one lock.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use tower_storage_guard::{
    Amount, Scope, Scopes,
    fault::Resource,
    quota::{Change, Exceeded, Limits, QuotaError},
    store::{
        Account, Ceilings, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement, Store,
        StoreFuture,
    },
};

#[derive(Default)]
pub(crate) struct Model(Mutex<State>);

#[derive(Default)]
struct State {
    own: HashMap<Scope, Ceilings>,
    used: HashMap<Scope, Change>,
    holds: HashMap<HoldId, Hold>,
    settled: HashSet<HoldId>,
}

struct Hold {
    scopes: Scopes,
    amount: Amount,
    until: Instant,
}

impl Model {
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap();
        state.holds.retain(|_, hold| hold.until > Instant::now());
        state
    }
}

impl State {
    fn account(&self, scope: &Scope) -> Account {
        let holds = self.holds.values();
        let held = holds.filter(|hold| hold.scopes.iter().any(|held| held == scope));
        Account {
            own: self.own.get(scope).copied(),
            used: self.used.get(scope).copied().unwrap_or_default(),
            held: held.fold(Amount::ZERO, |sum, hold| sum + hold.amount),
        }
    }

    fn reserve(&mut self, asked: &Reserve) -> Result<Reserved, QuotaError> {
        let required = asked.amount.max(asked.expected);
        let mut warnings = Vec::new();
        for scope in &asked.scopes {
            let account = self.account(scope);
            let limits = account.own.unwrap_or(asked.default);
            let counted = counted(account);
            let of = |limits: Limits| {
                [
                    (Resource::Bytes, limits.bytes, counted.bytes, required.bytes),
                    (
                        Resource::Objects,
                        limits.objects,
                        counted.objects,
                        required.objects,
                    ),
                ]
            };
            for (resource, limit, counted, required) in of(limits.hard) {
                let limit = limit.unwrap_or(u64::MAX);
                if required > 0 && u128::from(counted) + u128::from(required) > limit.into() {
                    let exceeded = Exceeded::new(scope.clone(), resource, limit, counted, required);
                    return Err(exceeded.into());
                }
            }
            let after = Account {
                held: account.held + asked.amount,
                ..account
            };
            let passes = |soft: Option<u64>, before: u64, after: u64| {
                soft.is_some_and(|soft| before <= soft && after > soft)
            };
            let now = self::counted(after);
            if passes(limits.soft.bytes, counted.bytes, now.bytes)
                || passes(limits.soft.objects, counted.objects, now.objects)
            {
                warnings.push((scope.clone(), after));
            }
        }
        let &Reserve {
            id,
            amount,
            time_to_live,
            ..
        } = asked;
        self.hold(
            &asked.scopes,
            Keep {
                id,
                amount,
                time_to_live,
            },
        );
        Ok(Reserved { warnings })
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
}

fn counted(account: Account) -> Amount {
    let gain = |change: i64| change.max(0).unsigned_abs();
    Amount::new(gain(account.used.bytes), gain(account.used.objects)) + account.held
}

/// Boxes what is there already.
fn now<'a, T: Send + 'a, E: Send + 'a>(answer: Result<T, E>) -> StoreFuture<'a, T, E> {
    Box::pin(std::future::ready(answer))
}

impl Store for Model {
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        now(self.state().reserve(asked))
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, ()> {
        let mut state = self.state();
        for settlement in settlements {
            let Settlement { id, scopes, .. } = settlement;
            state.holds.remove(id);
            if !settlement.is_remembered() || !state.settled.insert(*id) {
                continue;
            }
            if let Some(keep) = settlement.keep {
                state.hold(scopes, keep);
            }
            let change = settlement.change;
            for scope in scopes {
                let used = state.used.entry(scope.clone()).or_default();
                used.bytes += change.bytes;
                used.objects += change.objects;
            }
        }
        now(Ok(()))
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        let mut state = self.state();
        for (id, _) in holds {
            if let Some(hold) = state.holds.get_mut(id) {
                hold.until = Instant::now() + time_to_live;
            }
        }
        now(Ok(()))
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        now(Ok(self.state().account(scope)))
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Ceilings>) -> StoreFuture<'a, ()> {
        let mut state = self.state();
        match limits {
            Some(limits) => state.own.insert(scope.clone(), limits),
            None => state.own.remove(scope),
        };
        now(Ok(()))
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        self.state().used.insert(scope.clone(), used.into());
        now(Ok(()))
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        let state = self.state();
        let scopes = state.used.keys().cloned();
        let mut all: Vec<_> = scopes
            .map(|scope| (scope.clone(), state.account(&scope)))
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
        let state = self.state();
        let entries = state.holds.iter().flat_map(|(id, hold)| {
            hold.scopes.iter().map(|scope| HoldEntry {
                id: *id,
                scope: scope.clone(),
                amount: hold.amount,
                expires_in: hold.until.saturating_duration_since(Instant::now()),
            })
        });
        let wanted = entries.filter(|entry| scope.is_none_or(|scope| *scope == entry.scope));
        now(Ok(wanted.take(count).collect()))
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        let mut state = self.state();
        state.used.remove(scope);
        state.own.remove(scope);
        now(Ok(()))
    }
}
