//! The rules of the contract, one by one.

use std::{slice, time::Duration};

use tokio::time::sleep;

use super::{
    super::{Account, Baseline, HoldId, Keep, Reserve, Settlement},
    check::{Handle, LONG, bytes, change, figures, join, reserve},
};
use crate::{
    amount::Amount,
    cause::Resource,
    quota::{Change, Exceeded, Limits, QuotaError},
    scope::{Scope, Scopes},
};

pub(super) async fn exact_fit([one, _]: [Handle; 2]) {
    let user = "{fit}user";
    let first = one.hold(user, 60, 100).await;
    let refused = one.refuse_hold(user, 41, 100).await;
    let expected = Exceeded::new(user.into(), Resource::Bytes, 100, 60, 41);
    one.expect("the refusal of 41 of 100 with 60 held", refused, expected);
    let second = one.hold(user, 40, 100).await;
    one.expect_figures("with two holds", user, (0, 100)).await;
    one.hold(user, 0, 100).await;
    one.settle(first, user, 50).await;
    one.expect_figures("after the first has ended", user, (50, 40))
        .await;
    one.admit("growth of a hold", &reserve(second, user, 10, 100))
        .await;
    one.refuse("growth beyond the limit", &reserve(second, user, 1, 100))
        .await;
    one.expect_figures("after a hold has grown", user, (50, 50))
        .await;
    one.settle(second, user, 0).await;
    one.expect_figures("after its release", user, (50, 0)).await;

    let mut objects = reserve(HoldId::unique(), "{fit}objects", 0, 100);
    objects.defaults = vec![Limits::UNLIMITED.objects(2)];
    objects.amount = Amount::objects(2);
    one.admit("two objects of two", &objects).await;
    let refused = one.refuse("two objects more", &objects).await;
    let (found, expected) = ((refused.resource, refused.limit), (Resource::Objects, 2));
    one.expect("the resource and limit of the refusal", found, expected);
}

pub(super) async fn baseline([one, other]: [Handle; 2]) {
    let user = "{baseline}user";
    let ask = || reserve(HoldId::unique(), user, 1, 100);
    let of = async |handle: &Handle| handle.done("baseline", handle.store.baseline().await);
    let set = async |handle: &Handle, new| {
        let set = handle.store.set_baseline(new).await;
        handle.done("set_baseline", set)
    };
    one.expect("the baseline of a new store", of(&one).await, None);
    let reserved = one.admit("a byte in a new store", &ask()).await;
    one.expect("the baseline of its hold", reserved.baseline, None);
    // The largest number, which is negative where numbers have a sign.
    let (first, second) = (Baseline::from(u64::MAX), Baseline::unique());
    let found = set(&one, first).await;
    one.expect("the baseline that was set", found, first);
    let found = set(&other, second).await;
    other.expect("the baseline of a store that has one", found, first);
    other.expect("the baseline", of(&other).await, Some(first));
    let reserved = other.admit("another byte", &ask()).await;
    other.expect("the baseline of its hold", reserved.baseline, Some(first));
}

pub(super) async fn all_or_none([one, _]: [Handle; 2]) {
    let (user, tenant) = ("{all}user", "{all}tenant");
    let both = || Scopes::from([user, tenant]);
    one.hold(tenant, 70, 100).await;
    let refused = one.refuse_hold(both(), 31, 100).await;
    one.expect("the scope of the refusal", refused.scope, tenant.into());
    one.expect_figures("after the refusal", user, (0, 0)).await;
    let id = one.hold(both(), 30, 100).await;
    one.settle(id, both(), 20).await;
    one.expect_figures("after a charge to both", user, (20, 0))
        .await;
    one.expect_figures("after a charge to both", tenant, (20, 70))
        .await;
}

pub(super) async fn expected([one, _]: [Handle; 2]) {
    let announced = |expected| {
        reserve(HoldId::unique(), "{announced}", 10, 100).with_expected(Amount::bytes(expected))
    };
    let refused = one.refuse("101 expected of 100", &announced(101)).await;
    one.expect("what the refusal requires", refused.required, 101);
    one.admit("100 expected of 100", &announced(100)).await;
    one.expect_figures("with 10 bytes held", "{announced}", (0, 10))
        .await;
}

pub(super) async fn settled_once([one, two]: [Handle; 2]) {
    let user = "{once}user";
    let id = one.hold(user, 60, 100).await;
    for store in [&one, &two, &one] {
        store.settle(id, user, 60).await;
        store
            .expect_figures("after one charge of 60", user, (60, 0))
            .await;
    }
    // Changes without a hold, and many in one step.
    let many: Vec<_> = (0..100)
        .map(|_| Settlement::new(HoldId::unique(), user, change(1, 2)))
        .collect();
    one.settle_all(&many).await;
    two.settle_all(&many).await;
    let used = two.account(user).await.used;
    two.expect(
        "usage after 100 changes, made twice",
        used,
        change(160, 200),
    );
    one.settle_all(&[]).await;
}

pub(super) async fn expiry([one, two]: [Handle; 2]) {
    let (user, short) = ("{ttl}user", Duration::from_secs(1));
    let brief = |bytes| reserve(HoldId::unique(), user, bytes, 100).with_time_to_live(short);
    let (dying, living) = (brief(60), brief(40));
    one.admit("a hold of 60 of 100", &dying).await;
    one.admit("a hold of the rest", &living).await;
    two.refuse_hold(user, 1, 100).await;
    one.renew(living.id, user).await;
    sleep(short + Duration::from_millis(300)).await;
    two.expect_figures("after one of two holds has expired", user, (0, 40))
        .await;
    two.expect("the number of holds", two.holds(user).await.len(), 1);
    let late = two.hold(user, 60, 100).await;
    // An expired hold stays gone, and its charge counts.
    one.renew(dying.id, user).await;
    two.expect_figures("after the expired hold was renewed", user, (0, 100))
        .await;
    one.settle(dying.id, user, 60).await;
    two.expect_figures("after the expired hold was charged", user, (60, 100))
        .await;
    one.settle(late, user, 0).await;
    one.settle(living.id, user, 0).await;
    two.expect_figures("after all holds have ended", user, (60, 0))
        .await;
}

pub(super) async fn kept([one, two]: [Handle; 2]) {
    let (user, tenant) = ("{keep}user", "{keep}tenant");
    let both = || Scopes::from([user, tenant]);
    let first = one.hold(both(), 100, 100).await;
    let turn = |id, change, kept| {
        let kept = Keep::new(HoldId::unique(), Amount::bytes(kept), LONG);
        let settlement = Settlement::new(id, both(), bytes(change)).with_keep(kept);
        (settlement, kept.id)
    };
    let (charged, kept) = turn(first, 60, 40);
    for store in [&one, &two] {
        store.settle_all(slice::from_ref(&charged)).await;
        for scope in [user, tenant] {
            store
                .expect_figures("after 60 were charged and 40 kept", scope, (60, 40))
                .await;
        }
    }
    let entries = two.holds(user).await;
    let expected = vec![(kept, user, 40)];
    two.expect("the holds", figures(&entries), expected);
    two.expect_long(&entries[0]);
    // Without a change too it is kept once.
    let (given_back, last) = turn(kept, 0, 10);
    two.settle_all(slice::from_ref(&given_back)).await;
    one.settle(last, both(), 0).await;
    two.settle_all(&[given_back]).await;
    one.expect_figures("after a kept hold was released", user, (60, 0))
        .await;
    // Whether or not it fits, and whether or not there was a hold: its owner has given it to requests.
    let (gone, grown) = turn(HoldId::unique(), 0, 70);
    one.settle_all(slice::from_ref(&gone)).await;
    two.expect_figures("after 70 were kept above the limit", tenant, (60, 70))
        .await;
    two.refuse_hold(user, 1, 100).await;
    // A hold that is there before it is kept.
    let (early, last) = turn(grown, 0, 5);
    let grows = reserve(last, both(), 2, 1_000);
    one.admit("a hold before it is kept", &grows).await;
    two.settle_all(&[early]).await;
    one.expect_figures("after a hold of 2 was kept with 5", user, (60, 7))
        .await;
    one.settle(last, both(), 0).await;
}

pub(super) async fn own_limits([one, _]: [Handle; 2]) {
    let user = "{limits}user";
    let scope = Scope::from(user);
    let set = async |limits: Option<Limits>| {
        one.done("set_limits", one.store.set_limits(&scope, limits).await);
    };
    set(Some(Limits::bytes(10))).await;
    let refused = one.refuse_hold(user, 11, 100).await;
    one.expect("the limit of a scope with its own", refused.limit, 10);
    set(Some(Limits::UNLIMITED)).await;
    one.hold(user, 1 << 40, 100).await;
    set(None).await;
    let refused = one.refuse_hold(user, 1, 100).await;
    one.expect("the limit of a scope without its own", refused.limit, 100);
    let account = one.account(user).await;
    let expected = Account::new(Change::ZERO, Amount::bytes(1 << 40));
    one.expect("the account of a scope without its own", account, expected);

    let scopes = Scopes::from(["{limits}tight", "{limits}wide"]);
    let ask = |bytes| {
        let ask = Reserve::new(HoldId::unique(), scopes.clone(), Amount::bytes(bytes));
        ask.with_defaults(|scope| {
            Limits::bytes(if scope.as_str() == "{limits}tight" {
                10
            } else {
                20
            })
        })
        .with_time_to_live(LONG)
    };
    let refused = one.refuse("11 bytes in two scopes", &ask(11)).await;
    one.expect("the default limit of the first scope", refused.limit, 10);
    one.hold("{limits}wide", 15, 20).await;
    let refused = one.refuse("6 bytes more in two scopes", &ask(6)).await;
    one.expect("the default limit of the second scope", refused.limit, 20);
    one.admit("5 bytes more in two scopes", &ask(5)).await;
}

pub(super) async fn below_zero([one, _]: [Handle; 2]) {
    let user = "{below}user";
    // A removal may be counted before the charge of what it removes.
    let early = one.hold(user, 30, 100).await;
    one.settle(HoldId::unique(), user, -30).await;
    one.expect_figures("after 30 were given back with 30 held", user, (-30, 30))
        .await;
    // No request gets more than the limit by it.
    one.refuse_hold(user, 71, 100).await;
    one.settle(early, user, 30).await;
    one.expect_figures("after 30 were charged", user, (0, 0))
        .await;
    // What cannot be charged any more is no credit.
    one.settle(HoldId::unique(), user, -30).await;
    one.expect_figures("after 30 were given back of nothing", user, (0, 0))
        .await;
    let unmatched = one.account(user).await.unmatched;
    one.expect("what is unmatched", unmatched, Amount::bytes(30));
    let short = Duration::from_secs(1);
    let brief = reserve(HoldId::unique(), user, 20, 100).with_time_to_live(short);
    one.admit("a hold that will expire", &brief).await;
    one.settle(HoldId::unique(), user, -50).await;
    one.expect_figures("after 50 were given back with 20 held", user, (-20, 20))
        .await;
    // By the engine's clock, which no test can pause.
    sleep(short + Duration::from_millis(300)).await;
    one.expect_figures("after that hold has expired", user, (0, 0))
        .await;
    let whole = one.hold(user, 100, 100).await;
    one.settle(whole, user, 100).await;
    one.expect_figures("after as much as the limit was charged", user, (100, 0))
        .await;
    let unmatched = one.account(user).await.unmatched;
    one.expect("what is unmatched in all", unmatched, Amount::bytes(80));
}

pub(super) async fn names([one, two]: [Handle; 2]) {
    let long = "long".repeat(200);
    for name in ["it's \"quoted\"", "50% _ *", "{}", "Zoë/🦀", "a:b:c", &long] {
        let id = one.hold(name, 7, 100).await;
        let holds = two.holds(name).await;
        let expected = vec![(id, name, 7)];
        two.expect("the holds in a scope", figures(&holds), expected);
        two.expect_long(&holds[0]);
        one.settle(id, name, 7).await;
        two.expect_figures("after a charge of 7", name, (7, 0))
            .await;
        let removed = one.store.remove(&name.into()).await;
        one.done("remove", removed);
    }
}

pub(super) async fn accounts([one, _]: [Handle; 2]) {
    let scopes = ["{list}a", "{list}b", "{list}c"].map(Scope::from);
    for (scope, bytes) in scopes.iter().zip([1 << 50, 3 << 50, 2 << 50]) {
        let set = one.store.set_used(scope, Amount::new(bytes, 4)).await;
        one.done("set_used", set);
    }
    let largest = one.done("largest", one.store.largest(2).await);
    let names: Vec<_> = largest.iter().map(|(scope, _)| scope.as_str()).collect();
    one.expect("the two largest scopes", names, vec!["{list}b", "{list}c"]);
    let used = largest[0].1.used;
    one.expect("the usage of the largest", used, change(3 << 50, 4));
    let id = one.hold(scopes[0].clone(), 5, u64::MAX).await;
    for scope in &scopes {
        one.done("remove", one.store.remove(scope).await);
    }
    // Requests under way go on.
    one.expect_figures("after it was removed", "{list}a", (0, 5))
        .await;
    let all = one.done("holds", one.store.holds(None, 1_000).await);
    one.expect_that(
        all.iter().any(|held| held.id == id),
        "a hold is missing among all holds",
    );
    one.settle(id, scopes[0].clone(), 0).await;
}

pub(super) async fn stampede([one, two]: [Handle; 2]) {
    let both = || Scopes::from(["{rush}user", "{rush}tenant"]);
    let tasks = (0..64).map(|number| {
        let store = if number % 2 == 0 { &one } else { &two }.clone();
        tokio::spawn(async move {
            // The order in which scopes are named must not lead to a deadlock.
            let scopes = match number % 3 {
                0 => both(),
                1 => Scopes::from(["{rush}tenant", "{rush}user"]),
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
