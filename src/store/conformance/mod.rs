//! Tests of the contract of [`Store`], for authors of stores.
//!
//! Call [`run`] from a test of your own. It panics with the rule that is broken, and with what was expected and found:
//!
//! ```
//! use std::sync::Arc;
//!
//! use tower_storage_guard::store::{Store, conformance};
//! # use tower_storage_guard::store::conformance::ReferenceStore as MyStore;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! // In a test with `#[tokio::test]`.
//! let store = Arc::new(MyStore::default());
//! conformance::run(Arc::clone(&store), store).await;
//! # });
//! ```
//!
//! A store that processes share should be given two handles that share nothing in this process. Open the file twice, or
//! connect twice:
//!
//! ```no_run
//! # #[cfg(feature = "store-sqlite")] {
//! use tower_storage_guard::store::{SqliteStore, conformance};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! # let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("quota.db");
//! conformance::run(SqliteStore::open(&path)?, SqliteStore::open(&path)?).await;
//! # Ok::<_, tower_storage_guard::store::StoreError>(())
//! # }).unwrap();
//! # }
//! ```
//!
//! # The rules
//!
//! | rule | of the [contract](Store) |
//! |---|---|
//! | an exact fit is admitted, and one byte more is not | 1 |
//! | a reservation holds in all of its scopes, or in none | 1 |
//! | what is expected must fit, and is not held | 1 |
//! | a settlement is idempotent | 3 |
//! | a hold expires unless it is renewed | 2 |
//! | a hold is kept under another id in one step | 1, 3 |
//! | limits are those of the scope, or the default ones | 1 |
//! | passing a soft limit is reported once | 1 |
//! | usage may fall below zero | 1 |
//! | names are kept as they are | 1 |
//! | accounts can be read and corrected | 1 |
//! | concurrent requests never pass a limit | 1 |
//! | a quota over the store holds, charges and releases | 1 to 4 |
//! | what was just released is free | 1 |
//! | an admin reads and corrects accounts, as [`Admin`](super::Admin) promises | 1, 3 |
//! | random steps have the results of the [`ReferenceStore`] | 1, 3 |
//!
//! What it cannot test is up to the author: that a step survives a crash, and that calls fail in bounded time while the
//! engine is away.
//!
//! # Scopes
//!
//! Scopes that are reserved together have names such as `{all}user` and `{all}tenant`, with the same part in braces.
//! Engines that keep scopes apart by their names can use that, as the Redis store does.

mod admin;
mod check;
mod reference;

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::sleep};

pub use self::reference::ReferenceStore;
use self::{
    check::{AnyStore, Handle, LONG, bytes, reserve},
    reference::Dice,
};
use super::{Ceilings, HoldId, Keep, Reserve, Reserved, Settlement, Store, StoredQuota};
use crate::{
    amount::Amount,
    cause::Resource,
    quota::{Change, Exceeded, Limits, QuotaError, QuotaHold, QuotaSource},
    scope::{Scope, Scopes},
};

/// Tests a store by two handles on it, as of two processes. The store must be empty, and used by nothing else.
///
/// A run takes some 15 seconds, for most of which it waits for holds to expire. It needs a tokio runtime with its timer
/// enabled. The timer must not be paused, unless the store goes by tokio's clock as well.
///
/// # Panics
///
/// When the store breaks a rule of the [contract](Store), with the name of the rule, or when a call to it fails.
pub async fn run<S: Store>(one: S, other: S) {
    let (one, other): (AnyStore, AnyStore) = (Arc::new(one), Arc::new(other));
    let by = |rule| {
        let handle = |store: &AnyStore| Handle {
            rule,
            store: Arc::clone(store),
        };
        [handle(&one), handle(&other)]
    };
    exact_fit(by("an exact fit is admitted, and one byte more is not")).await;
    all_or_none(by("a reservation holds in all of its scopes, or in none")).await;
    expected(by("what is expected must fit, and is not held")).await;
    settled_once(by("a settlement is idempotent")).await;
    expiry(by("a hold expires unless it is renewed")).await;
    kept(by("a hold is kept under another id in one step")).await;
    own_limits(by("limits are those of the scope, or the default ones")).await;
    soft_limits(by("passing a soft limit is reported once")).await;
    below_zero(by("usage may fall below zero")).await;
    names(by("names are kept as they are")).await;
    accounts(by("accounts can be read and corrected")).await;
    stampede(by("concurrent requests never pass a limit")).await;
    quota(by("a quota over the store holds, charges and releases")).await;
    just_released(by("what was just released is free")).await;
    admin::rules(by("an admin reads and corrects accounts")).await;
    reference(by("random steps have the results of the reference store")).await;
}

async fn exact_fit([store, _]: [Handle; 2]) {
    let user = "{fit}user";
    let first = store.hold(user, 60, 100).await;
    store.expect(
        "the refusal of 41 bytes where 60 of 100 are held",
        store.refuse_hold(user, 41, 100).await,
        Exceeded::new(user.into(), Resource::Bytes, 100, 60, 41),
    );
    let second = store.hold(user, 40, 100).await;
    store.expect_figures("with two holds", user, (0, 100)).await;
    store.hold(user, 0, 100).await;
    store.settle(first, user, 50).await;
    store
        .expect_figures("after the first has ended", user, (50, 40))
        .await;
    store
        .admit("growth of a hold", &reserve(second, user, 10, 100))
        .await;
    store
        .refuse("growth beyond the limit", &reserve(second, user, 1, 100))
        .await;
    store
        .expect_figures("after a hold has grown", user, (50, 50))
        .await;
    store.settle(second, user, 0).await;
    store
        .expect_figures("after its release", user, (50, 0))
        .await;

    let mut objects = reserve(HoldId::unique(), "{fit}objects", 0, 100);
    objects.default = Limits::UNLIMITED.objects(2).into();
    objects.amount = Amount::objects(2);
    store.admit("two objects of two", &objects).await;
    let refused = store.refuse("two objects more", &objects).await;
    store.expect(
        "the resource and limit of the refusal",
        (refused.resource, refused.limit),
        (Resource::Objects, 2),
    );
}

async fn all_or_none([store, _]: [Handle; 2]) {
    let both = || Scopes::from_iter(["{all}user", "{all}tenant"].map(Scope::from));
    store.hold("{all}tenant", 70, 100).await;
    let refused = store.refuse_hold(both(), 31, 100).await;
    store.expect(
        "the scope of the refusal",
        refused.scope,
        Scope::from("{all}tenant"),
    );
    store
        .expect_figures("after the refusal", "{all}user", (0, 0))
        .await;
    let id = store.hold(both(), 30, 100).await;
    store.settle(id, both(), 20).await;
    store
        .expect_figures("after a charge to both", "{all}user", (20, 0))
        .await;
    store
        .expect_figures("after a charge to both", "{all}tenant", (20, 70))
        .await;
}

async fn expected([store, _]: [Handle; 2]) {
    let announced = |expected| {
        reserve(HoldId::unique(), "{announced}", 10, 100).with_expected(Amount::bytes(expected))
    };
    let refused = store.refuse("101 expected of 100", &announced(101)).await;
    store.expect("what the refusal requires", refused.required, 101);
    store.admit("100 expected of 100", &announced(100)).await;
    store
        .expect_figures("with 10 bytes held", "{announced}", (0, 10))
        .await;
}

async fn settled_once([one, other]: [Handle; 2]) {
    let user = "{once}user";
    let id = one.hold(user, 60, 100).await;
    for store in [&one, &other, &one] {
        store.settle(id, user, 60).await;
        store
            .expect_figures("after one charge of 60", user, (60, 0))
            .await;
    }
    // Changes without a hold, and many in one step.
    let many: Vec<_> = (0..100)
        .map(|_| {
            let change = Change {
                bytes: 1,
                objects: 2,
            };
            Settlement::new(HoldId::unique(), user, change)
        })
        .collect();
    one.settle_all(&many).await;
    other.settle_all(&many).await;
    other.expect(
        "usage after a hundred changes that were settled twice",
        other.account(user).await.used,
        Change {
            bytes: 160,
            objects: 200,
        },
    );
    one.settle_all(&[]).await;
}

async fn expiry([one, other]: [Handle; 2]) {
    let (user, short) = ("{ttl}user", Duration::from_secs(1));
    let brief = |bytes| reserve(HoldId::unique(), user, bytes, 100).with_time_to_live(short);
    let (dying, living) = (brief(60), brief(40));
    one.admit("a hold of 60 of 100", &dying).await;
    one.admit("a hold of the rest", &living).await;
    other.refuse_hold(user, 1, 100).await;
    one.renew(living.id, user).await;
    sleep(short + Duration::from_millis(300)).await;
    other
        .expect_figures("after one of two holds has expired", user, (0, 40))
        .await;
    other.expect("the number of holds", other.holds(user).await.len(), 1);
    let late = other.hold(user, 60, 100).await;
    // An expired hold stays gone, and its charge counts.
    one.renew(dying.id, user).await;
    other
        .expect_figures("after the expired hold was renewed", user, (0, 100))
        .await;
    one.settle(dying.id, user, 60).await;
    other
        .expect_figures("after the expired hold was charged", user, (60, 100))
        .await;
    one.settle(late, user, 0).await;
    one.settle(living.id, user, 0).await;
    other
        .expect_figures("after all holds have ended", user, (60, 0))
        .await;
}

async fn kept([one, other]: [Handle; 2]) {
    let (user, tenant) = ("{keep}user", "{keep}tenant");
    let both = || Scopes::from_iter([user, tenant].map(Scope::from));
    let first = one.hold(both(), 100, 100).await;
    let turn = |id, change, kept| {
        let kept = Keep::new(HoldId::unique(), Amount::bytes(kept), LONG);
        let settlement = Settlement::new(id, both(), bytes(change)).with_keep(kept);
        (settlement, kept.id)
    };
    let (charged, kept) = turn(first, 60, 40);
    for store in [&one, &other] {
        store.settle_all(std::slice::from_ref(&charged)).await;
        for scope in [user, tenant] {
            store
                .expect_figures("after 60 were charged and 40 kept", scope, (60, 40))
                .await;
        }
    }
    let entries = other.holds(user).await;
    let found: Vec<_> = entries
        .iter()
        .map(|entry| (entry.id, entry.amount.bytes))
        .collect();
    other.expect("the holds", found, vec![(kept, 40)]);
    other.expect_that(
        entries[0].expires_in > LONG / 2,
        format!(
            "a hold that is kept for {LONG:?} expires in {:?}",
            entries[0].expires_in
        ),
    );
    // Without a change too it is kept once.
    let (given_back, last) = turn(kept, 0, 10);
    other.settle_all(std::slice::from_ref(&given_back)).await;
    one.settle(last, both(), 0).await;
    other.settle_all(&[given_back]).await;
    one.expect_figures("after a kept hold was released", user, (60, 0))
        .await;
    // Whether or not it fits, and whether or not there was a hold: its owner has given it to requests.
    let (gone, grown) = turn(HoldId::unique(), 0, 70);
    one.settle_all(std::slice::from_ref(&gone)).await;
    other
        .expect_figures("after 70 were kept above the limit", tenant, (60, 70))
        .await;
    other.refuse_hold(user, 1, 100).await;
    // A hold that is there before it is kept.
    let (early, last) = turn(grown, 0, 5);
    let grows = reserve(last, both(), 2, 1_000);
    one.admit("a hold before it is kept", &grows).await;
    other.settle_all(&[early]).await;
    one.expect_figures("after a hold of 2 was kept with 5", user, (60, 7))
        .await;
    one.settle(last, both(), 0).await;
}

async fn own_limits([store, _]: [Handle; 2]) {
    let user = "{limits}user";
    let scope = Scope::from(user);
    let set = async |limits: Option<Limits>| {
        let set = store.store.set_limits(&scope, limits.map(Ceilings::from));
        store.done("set_limits", set.await);
    };
    set(Some(Limits::bytes(10))).await;
    let refused = store.refuse_hold(user, 11, 100).await;
    store.expect("the limit of a scope with its own", refused.limit, 10);
    set(Some(Limits::UNLIMITED)).await;
    store.hold(user, 1 << 40, 100).await;
    set(None).await;
    let refused = store.refuse_hold(user, 1, 100).await;
    store.expect("the limit of a scope without its own", refused.limit, 100);
    let account = store.account(user).await;
    store.expect(
        "the limits and holds of the account",
        (account.own, account.held.bytes),
        (None, 1 << 40),
    );
}

async fn soft_limits([store, _]: [Handle; 2]) {
    let user = "{soft}user";
    let limits = Ceilings::from(Limits::bytes(100)).with_soft(Limits::bytes(50));
    let ask = |bytes| reserve(HoldId::unique(), user, bytes, 0).with_default(limits);
    let none = Reserved::default();
    let reserved = store.admit("as much as the soft limit", &ask(50)).await;
    store.expect("the warnings at the soft limit", &reserved, &none);
    let reserved = store.admit("one byte more", &ask(1)).await;
    let warnings: Vec<_> = reserved
        .warnings
        .iter()
        .map(|(scope, account)| (scope.as_str(), account.held.bytes))
        .collect();
    store.expect("the warnings beyond it", warnings, vec![(user, 51)]);
    let reserved = store.admit("another byte", &ask(1)).await;
    store.expect("the warnings after that", &reserved, &none);
}

async fn below_zero([store, _]: [Handle; 2]) {
    let user = "{below}user";
    store.settle(HoldId::unique(), user, -30).await;
    store
        .expect_figures("after 30 were given back", user, (-30, 0))
        .await;
    // No request gets more than the limit by it.
    store.refuse_hold(user, 101, 100).await;
    store.settle(HoldId::unique(), user, 30).await;
    store
        .expect_figures("after 30 were charged", user, (0, 0))
        .await;
}

async fn names([one, other]: [Handle; 2]) {
    for name in [
        "it's \"quoted\"",
        "50% _ *",
        "{}",
        "Zoë/🦀",
        "a:b:c",
        &"long".repeat(200),
    ] {
        let id = one.hold(name, 7, 100).await;
        let holds = other.holds(name).await;
        let found: Vec<_> = holds
            .iter()
            .map(|held| (held.id, held.scope.as_str(), held.amount.bytes))
            .collect();
        other.expect("the holds in a scope", found, vec![(id, name, 7)]);
        let expires_in = holds[0].expires_in;
        other.expect_that(
            expires_in <= LONG && expires_in > LONG / 2,
            format!("a hold for {LONG:?} expires in {expires_in:?}"),
        );
        one.settle(id, name, 7).await;
        other
            .expect_figures("after a charge of 7", name, (7, 0))
            .await;
        let removed = one.store.remove(&name.into()).await;
        one.done("remove", removed);
    }
}

async fn accounts([store, _]: [Handle; 2]) {
    let scopes = ["{list}a", "{list}b", "{list}c"].map(Scope::from);
    for (scope, bytes) in scopes.iter().zip([1 << 50, 3 << 50, 2 << 50]) {
        let set = store.store.set_used(scope, Amount::new(bytes, 4)).await;
        store.done("set_used", set);
    }
    let largest = store.done("largest", store.store.largest(2).await);
    let names: Vec<_> = largest.iter().map(|(scope, _)| scope.as_str()).collect();
    store.expect("the two largest scopes", names, vec!["{list}b", "{list}c"]);
    store.expect(
        "the usage of the largest",
        largest[0].1.used,
        Change {
            bytes: 3 << 50,
            objects: 4,
        },
    );
    let id = store.hold(scopes[0].clone(), 5, u64::MAX).await;
    for scope in &scopes {
        store.done("remove", store.store.remove(scope).await);
    }
    // Requests under way go on.
    store
        .expect_figures("after it was removed", "{list}a", (0, 5))
        .await;
    let all = store.done("holds", store.store.holds(None, 1_000).await);
    store.expect_that(
        all.iter().any(|held| held.id == id),
        "a hold is missing among all holds",
    );
    store.settle(id, scopes[0].clone(), 0).await;
}

async fn stampede([one, other]: [Handle; 2]) {
    let both = || Scopes::from_iter(["{rush}user", "{rush}tenant"].map(Scope::from));
    let tasks = (0..64).map(|number| {
        let store = if number % 2 == 0 { &one } else { &other }.clone();
        tokio::spawn(async move {
            // The order in which scopes are named must not lead to a deadlock.
            let scopes = match number % 3 {
                0 => both(),
                1 => Scopes::from_iter(["{rush}tenant", "{rush}user"].map(Scope::from)),
                _ => "{rush}user".into(),
            };
            let asked = reserve(HoldId::unique(), scopes.clone(), 10, 105);
            match store.store.reserve(&asked).await {
                Ok(_) => {
                    store.settle(asked.id, scopes, 10).await;
                    true
                }
                Err(QuotaError::Exceeded(_)) => false,
                Err(error) => store.done("reserve", Err(error)),
            }
        })
    });
    let mut stored = 0;
    for task in tasks.collect::<Vec<_>>() {
        stored += i64::from(join(task).await);
    }
    one.expect("the number of 64 uploads that fit", stored, 10);
    one.expect_figures("after them", "{rush}user", (100, 0))
        .await;
}

/// Passes a panic of a task on.
async fn join<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(output) => output,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(error) => panic!("the runtime has shut down: {error}"),
    }
}

async fn quota([one, other]: [Handle; 2]) {
    let user = "{source}user";
    let limits = Limits::bytes(100);
    let quota = StoredQuota::builder(Arc::clone(&one.store), limits)
        .time_to_live(Duration::from_secs(1))
        .build();
    let neighbour = StoredQuota::new(Arc::clone(&other.store), limits);
    let scopes = Scopes::from(user);
    let ask = |quota: &StoredQuota<AnyStore>, bytes| {
        let answer = quota.reserve(&scopes, Amount::bytes(bytes), Amount::ZERO);
        answer.into_future()
    };
    let usage = async |quota: &StoredQuota<AnyStore>| {
        let usage = one.done("account", quota.usage(user).await);
        (usage.used, usage.held)
    };
    let hold = one.done("reserve", ask(&quota, 80).await);
    let held = (Amount::ZERO, Amount::bytes(80));
    one.expect("another process sees", usage(&neighbour).await, held);
    other.exceeded(
        "21 bytes where 80 of 100 are held",
        ask(&neighbour, 21).await,
    );
    // Longer than it lives: it is renewed.
    sleep(Duration::from_millis(1_800)).await;
    one.expect(
        "after its time to live another process sees",
        usage(&neighbour).await,
        held,
    );
    hold.commit(bytes(70)).await;
    one.expect(
        "after a commit another process sees",
        usage(&neighbour).await,
        (Amount::bytes(70), Amount::ZERO),
    );

    let mut hold = one.done("reserve", ask(&quota, 20).await);
    one.done("grow", hold.grow(Amount::bytes(10)).await);
    one.expect_that(
        hold.grow(Amount::bytes(1)).await.is_err(),
        "a hold grows beyond the limit",
    );
    drop(hold);
    one.is_settled(&quota).await;
    one.expect(
        "after a release another process sees",
        usage(&neighbour).await,
        (Amount::bytes(70), Amount::ZERO),
    );
    neighbour.give_back(&scopes, Amount::bytes(70));
    other.is_settled(&neighbour).await;
    one.expect(
        "after a removal by another process",
        usage(&quota).await,
        (Amount::ZERO, Amount::ZERO),
    );
}

/// Releases reach the store a moment later. A request of the same process need not wait for that.
async fn just_released([store, _]: [Handle; 2]) {
    let quota = StoredQuota::new(Arc::clone(&store.store), Limits::bytes(100));
    let user = Scopes::from("{again}user");
    let ask = |bytes| {
        let answer = quota.reserve(&user, Amount::bytes(bytes), Amount::ZERO);
        answer.into_future()
    };
    for _ in 0..50 {
        drop(store.done("reserve", ask(100).await));
        let mut half = store.done("reserve", ask(50).await);
        drop(store.done("reserve", ask(50).await));
        store.done("grow", half.grow(Amount::bytes(50)).await);
        store.exceeded("100 bytes more than the limit", ask(100).await);
    }
    store.is_settled(&quota).await;
}

/// Random steps on the store and on the reference.
async fn reference([one, other]: [Handle; 2]) {
    let names = ["{model}a", "{model}b", "{model}c"];
    let reference = ReferenceStore::default();
    let mut dice = Dice::new(7);
    let mut open: Vec<(HoldId, Scopes)> = Vec::new();
    for step in 0..300 {
        let store = if dice.roll(2) == 0 { &one } else { &other };
        let any_scope = |dice: &mut Dice| Scope::from(names[dice.roll(3) as usize]);
        match dice.roll(10) {
            0..4 => {
                let scopes = match dice.roll(2) {
                    0 => any_scope(&mut dice).into(),
                    _ => {
                        let (first, second) = (any_scope(&mut dice), any_scope(&mut dice));
                        Scopes::from_iter([first, second])
                    }
                };
                let limits = Ceilings::from(Limits::bytes(200).objects(9));
                let amount = Amount::new(dice.roll(60), dice.roll(3));
                let asked = Reserve::new(HoldId::unique(), scopes.clone(), amount)
                    .with_expected(Amount::bytes(dice.roll(60)))
                    .with_default(limits.with_soft(Limits::bytes(100)))
                    .with_time_to_live(LONG);
                compare(store, &reference, &asked, step).await;
                open.push((asked.id, scopes));
            }
            4 if !open.is_empty() => {
                let (id, scopes) = &open[dice.roll(open.len() as u64) as usize];
                let more = reserve(*id, scopes.clone(), dice.roll(30), 200);
                compare(store, &reference, &more, step).await;
            }
            5..8 if !open.is_empty() => {
                let index = dice.roll(open.len() as u64) as usize;
                let (id, scopes) = open.swap_remove(index);
                let change = Change {
                    bytes: dice.roll(80) as i64 - 20,
                    objects: dice.roll(3) as i64 - 1,
                };
                let mut settlement = Settlement::new(id, scopes.clone(), change);
                if dice.roll(2) == 0 {
                    let amount = Amount::new(dice.roll(60), dice.roll(3));
                    let keep = Keep::new(HoldId::unique(), amount, LONG);
                    open.push((keep.id, scopes));
                    settlement = settlement.with_keep(keep);
                }
                let settlements = [settlement];
                for _ in 0..=dice.roll(1) {
                    store.settle_all(&settlements).await;
                    store.done("settle", reference.settle(&settlements).await);
                }
            }
            8 => {
                let scope = any_scope(&mut dice);
                let used = Amount::new(dice.roll(150), dice.roll(5));
                store.done("set_used", store.store.set_used(&scope, used).await);
                store.done("set_used", reference.set_used(&scope, used).await);
            }
            _ => {
                let scope = any_scope(&mut dice);
                let own = match dice.roll(2) {
                    0 => None,
                    _ => Some(Ceilings::from(Limits::bytes(dice.roll(300)))),
                };
                store.done("set_limits", store.store.set_limits(&scope, own).await);
                store.done("set_limits", reference.set_limits(&scope, own).await);
            }
        }
        for name in names {
            let expected = reference.account(&name.into()).await;
            store.expect(
                &format!("the account of `{name}` after step {step}"),
                store.account(name).await,
                store.done("account", expected),
            );
        }
    }
}

async fn compare(store: &Handle, reference: &ReferenceStore, asked: &Reserve, step: usize) {
    let answers = (
        store.store.reserve(asked).await,
        reference.reserve(asked).await,
    );
    match answers {
        (Ok(found), Ok(expected)) => {
            store.expect(&format!("the answer to step {step}"), found, expected);
        }
        (Err(QuotaError::Exceeded(found)), Err(QuotaError::Exceeded(expected))) => {
            // Of several limits that are passed, any may be named.
            store.expect_that(
                found.used + found.required > found.limit,
                format!("step {step}: the refusal passes no limit: {found:?}, not {expected:?}"),
            );
        }
        (found, expected) => store.fail(format!(
            "the answer to step {step}: expected {expected:?}, found {found:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tokio::task::yield_now;

    use super::*;
    use crate::store::{Account, HoldEntry, StoreError, StoreFuture};

    #[tokio::test(start_paused = true)]
    async fn the_reference_conforms_to_itself() {
        let reference = Arc::new(ReferenceStore::default());
        run(Arc::clone(&reference), reference).await;
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Defect {
        HasNoLimits,
        ChargesFirstScopeOnly,
        IgnoresExpected,
        ForgetsIds,
        NeverExpires,
        DropsKeep,
        IgnoresOwnLimits,
        NeverWarns,
        StopsAtZero,
        RenamesScopes,
        RemovesNothing,
        RefusesRenewal,
        ChecksThenTakes,
    }

    /// The reference with a defect.
    struct Broken(ReferenceStore, Defect);

    impl Store for Broken {
        fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
            let mut asked = asked.clone();
            match self.1 {
                Defect::HasNoLimits => asked.default = Ceilings::default(),
                Defect::ChargesFirstScopeOnly => {
                    asked.scopes = asked.scopes.iter().take(1).cloned().collect();
                }
                Defect::IgnoresExpected => asked.expected = Amount::ZERO,
                Defect::NeverExpires => asked.time_to_live = LONG,
                _ => {}
            }
            Box::pin(async move {
                if self.1 == Defect::ChecksThenTakes {
                    let mut check = asked.clone();
                    check.id = HoldId::unique();
                    self.0.reserve(&check).await?;
                    let release = Settlement::new(check.id, check.scopes, Change::ZERO);
                    self.0.settle(&[release]).await?;
                    yield_now().await;
                    asked.default.hard = Limits::UNLIMITED;
                }
                let reserved = self.0.reserve(&asked).await?;
                match self.1 {
                    Defect::NeverWarns => Ok(Reserved::default()),
                    _ => Ok(reserved),
                }
            })
        }

        fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, ()> {
            let mut settlements = settlements.to_vec();
            for settlement in &mut settlements {
                match self.1 {
                    Defect::DropsKeep => settlement.keep = None,
                    Defect::StopsAtZero => {
                        settlement.change.bytes = settlement.change.bytes.max(0);
                    }
                    _ => {}
                }
            }
            if self.1 == Defect::ForgetsIds {
                let releases = settlements
                    .iter()
                    .map(|one| Settlement::new(one.id, one.scopes.clone(), Change::ZERO));
                let mut all: Vec<_> = releases.collect();
                for settlement in settlements {
                    all.push(Settlement {
                        id: HoldId::unique(),
                        ..settlement
                    });
                }
                settlements = all;
            }
            Box::pin(async move { self.0.settle(&settlements).await })
        }

        fn renew<'a>(
            &'a self,
            holds: &'a [(HoldId, Scopes)],
            time_to_live: Duration,
        ) -> StoreFuture<'a, ()> {
            match self.1 {
                Defect::RefusesRenewal => {
                    let source = StoreError::timed_out("the engine is slow");
                    let error = StoreError::unavailable("the engine failed").with_source(source);
                    Box::pin(async { Err(error) })
                }
                _ => self.0.renew(holds, time_to_live),
            }
        }

        fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
            self.0.account(scope)
        }

        fn set_limits<'a>(
            &'a self,
            scope: &'a Scope,
            limits: Option<Ceilings>,
        ) -> StoreFuture<'a, ()> {
            let ignored = self.1 == Defect::IgnoresOwnLimits;
            self.0.set_limits(scope, limits.filter(|_| !ignored))
        }

        fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
            self.0.set_used(scope, used)
        }

        fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
            self.0.largest(count)
        }

        fn holds<'a>(
            &'a self,
            scope: Option<&'a Scope>,
            count: usize,
        ) -> StoreFuture<'a, Vec<HoldEntry>> {
            Box::pin(async move {
                let mut holds = self.0.holds(scope, count).await?;
                if self.1 == Defect::RenamesScopes {
                    for hold in &mut holds {
                        hold.scope = hold.scope.as_str().replace('"', "").into();
                    }
                }
                Ok(holds)
            })
        }

        fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
            match self.1 {
                Defect::RemovesNothing => Box::pin(async { Ok(()) }),
                _ => self.0.remove(scope),
            }
        }
    }

    /// The message for a store with this defect.
    fn message(defect: Defect) -> String {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            let store = Arc::new(Broken(ReferenceStore::default(), defect));
            runtime.block_on(run(Arc::clone(&store), store));
        }));
        let panicked = panicked.expect_err(&format!("{defect:?} is not found"));
        *panicked.downcast::<String>().unwrap()
    }

    #[test]
    fn each_defect_is_found_by_its_rule() {
        for (defect, rule) in [
            (
                Defect::HasNoLimits,
                "an exact fit is admitted, and one byte more is not",
            ),
            (
                Defect::ChargesFirstScopeOnly,
                "a reservation holds in all of its scopes, or in none",
            ),
            (
                Defect::IgnoresExpected,
                "what is expected must fit, and is not held",
            ),
            (Defect::ForgetsIds, "a settlement is idempotent"),
            (Defect::NeverExpires, "a hold expires unless it is renewed"),
            (
                Defect::RefusesRenewal,
                "a hold expires unless it is renewed",
            ),
            (
                Defect::DropsKeep,
                "a hold is kept under another id in one step",
            ),
            (
                Defect::IgnoresOwnLimits,
                "limits are those of the scope, or the default ones",
            ),
            (Defect::NeverWarns, "passing a soft limit is reported once"),
            (Defect::StopsAtZero, "usage may fall below zero"),
            (Defect::RenamesScopes, "names are kept as they are"),
            (Defect::RemovesNothing, "accounts can be read and corrected"),
            (
                Defect::ChecksThenTakes,
                "concurrent requests never pass a limit",
            ),
        ] {
            let message = message(defect);
            let expected = format!("the store breaks the rule \"{rule}\": ");
            assert!(message.starts_with(&expected), "{defect:?}: {message}");
        }
    }

    #[test]
    fn a_message_has_the_figures_and_the_causes() {
        let message = self::message(Defect::StopsAtZero);
        assert!(
            message.contains("expected (-30, 0), found (0, 0)"),
            "{message}"
        );
        let message = self::message(Defect::RefusesRenewal);
        let causes = "`renew` fails: the engine failed: the engine is slow";
        assert!(message.contains(causes), "{message}");
    }
}
