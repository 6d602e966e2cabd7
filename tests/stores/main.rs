//! One suite for every store, and a model to measure them by.

mod admin;
mod allocations;
#[cfg(unix)]
mod journal;
mod leased;
mod line;
mod model;
#[cfg(target_os = "linux")]
pub(crate) mod postgres;
#[cfg(unix)]
mod process;
#[cfg(unix)]
pub(crate) mod redis;
#[cfg(unix)]
mod sql;
#[cfg(unix)]
mod sqlite;

use std::{sync::Arc, time::Duration};

use test_support::{Dice, eventually};
use tower_storage_guard::{
    Amount, Scope, Scopes,
    fault::Resource,
    quota::{Change, Exceeded, Limits, QuotaError, QuotaHold, QuotaSource},
    store::{Ceilings, HoldId, Keep, Reserve, Reserved, Settlement, Store, StoredQuota},
};

use self::model::Model;

const LONG: Duration = Duration::from_secs(60);

/// All that a store promises. `one` and `other` are handles on the same store, as of two processes, and nobody else
/// uses it.
pub(crate) async fn conforms<S: Store>(one: Arc<S>, other: Arc<S>) {
    an_exact_fit_is_let_in(&*one).await;
    all_scopes_have_room_or_none_is_charged(&*one).await;
    what_is_announced_must_fit(&*one).await;
    what_is_settled_is_settled_once(&*one, &*other).await;
    a_hold_expires_unless_it_is_renewed(&*one, &*other).await;
    what_is_kept_goes_on_under_another_name(&*one, &*other).await;
    limits_are_those_of_the_scope_or_the_default(&*one).await;
    passing_a_soft_limit_is_told_once(&*one).await;
    usage_may_fall_below_zero_for_a_while(&*one).await;
    names_are_taken_as_they_are(&*one, &*other).await;
    figures_can_be_looked_at_and_corrected(&*one).await;
    a_stampede_never_passes_the_limit(&one, &other).await;
    a_source_over_it_holds_charges_and_releases(one.clone(), other.clone()).await;
    what_was_just_let_go_is_free(one.clone()).await;
    admin::works(&one, &other).await;
    it_does_as_the_model_does(&*one, &*other).await;
}

fn reserve(id: HoldId, scopes: impl Into<Scopes>, bytes: u64, limit: u64) -> Reserve {
    Reserve {
        id,
        scopes: scopes.into(),
        amount: Amount::bytes(bytes),
        expected: Amount::ZERO,
        default: Limits::bytes(limit).into(),
        time_to_live: LONG,
    }
}

/// Sets so many bytes aside.
async fn hold<S: Store>(
    store: &S,
    scopes: impl Into<Scopes>,
    bytes: u64,
    limit: u64,
) -> Result<HoldId, QuotaError> {
    let id = HoldId::unique();
    store.reserve(&reserve(id, scopes, bytes, limit)).await?;
    Ok(id)
}

async fn settle<S: Store>(store: &S, id: HoldId, scopes: impl Into<Scopes>, bytes: i64) {
    let settlement = Settlement {
        id,
        scopes: scopes.into(),
        change: Change { bytes, objects: 0 },
        keep: None,
    };
    store.settle(&[settlement]).await.unwrap();
}

/// Bytes used and held.
async fn figures<S: Store>(store: &S, scope: &str) -> (i64, u64) {
    let account = store.account(&scope.into()).await.unwrap();
    (account.used.bytes, account.held.bytes)
}

fn exceeded<T>(answer: Result<T, QuotaError>) -> Exceeded {
    match answer {
        Err(QuotaError::Exceeded(exceeded)) => exceeded,
        Err(error) => panic!("not decided: {error:?}"),
        Ok(_) => panic!("let in"),
    }
}

async fn an_exact_fit_is_let_in<S: Store>(store: &S) {
    let user = "{fit}user";
    let first = hold(store, user, 60, 100).await.unwrap();
    assert_eq!(
        exceeded(hold(store, user, 41, 100).await),
        Exceeded::new(user.into(), Resource::Bytes, 100, 60, 41)
    );
    let second = hold(store, user, 40, 100).await.unwrap();
    assert_eq!(figures(store, user).await, (0, 100));
    hold(store, user, 0, 100).await.expect("zero fits");
    settle(store, first, user, 50).await;
    assert_eq!(figures(store, user).await, (50, 40));
    // A hold that grows.
    store
        .reserve(&reserve(second, user, 10, 100))
        .await
        .unwrap();
    exceeded(store.reserve(&reserve(second, user, 1, 100)).await);
    assert_eq!(figures(store, user).await, (50, 50));
    settle(store, second, user, 0).await;
    assert_eq!(figures(store, user).await, (50, 0));

    let mut objects = reserve(HoldId::unique(), "{fit}objects", 0, 100);
    objects.default = Limits::UNLIMITED.objects(2).into();
    objects.amount = Amount::objects(2);
    store.reserve(&objects).await.unwrap();
    let refused = exceeded(store.reserve(&objects).await);
    assert_eq!((refused.resource, refused.limit), (Resource::Objects, 2));
}

async fn all_scopes_have_room_or_none_is_charged<S: Store>(store: &S) {
    let both = || Scopes::from_iter(["{all}user", "{all}tenant"].map(Scope::from));
    hold(store, "{all}tenant", 70, 100).await.unwrap();
    let refused = exceeded(hold(store, both(), 31, 100).await);
    assert_eq!(refused.scope, Scope::from("{all}tenant"));
    assert_eq!(figures(store, "{all}user").await, (0, 0));
    let id = hold(store, both(), 30, 100).await.unwrap();
    settle(store, id, both(), 20).await;
    assert_eq!(figures(store, "{all}user").await, (20, 0));
    assert_eq!(figures(store, "{all}tenant").await, (20, 70));
}

async fn what_is_announced_must_fit<S: Store>(store: &S) {
    let announced = |expected| Reserve {
        expected: Amount::bytes(expected),
        ..reserve(HoldId::unique(), "{announced}", 10, 100)
    };
    assert_eq!(exceeded(store.reserve(&announced(101)).await).required, 101);
    store.reserve(&announced(100)).await.unwrap();
    assert_eq!(figures(store, "{announced}").await, (0, 10));
}

async fn what_is_settled_is_settled_once<S: Store>(one: &S, other: &S) {
    let user = "{once}user";
    let id = hold(one, user, 60, 100).await.unwrap();
    for store in [one, other, one] {
        settle(store, id, user, 60).await;
        assert_eq!(figures(store, user).await, (60, 0));
    }
    // Without a hold, and many in one step.
    let many: Vec<_> = (0..100)
        .map(|_| Settlement {
            id: HoldId::unique(),
            scopes: user.into(),
            change: Change {
                bytes: 1,
                objects: 2,
            },
            keep: None,
        })
        .collect();
    one.settle(&many).await.unwrap();
    other.settle(&many).await.unwrap();
    let account = other.account(&user.into()).await.unwrap();
    assert_eq!(
        account.used,
        Change {
            bytes: 160,
            objects: 200
        }
    );
    one.settle(&[]).await.unwrap();
}

async fn a_hold_expires_unless_it_is_renewed<S: Store>(one: &S, other: &S) {
    let (user, short) = ("{ttl}user", Duration::from_secs(1));
    let brief = |bytes| Reserve {
        time_to_live: short,
        ..reserve(HoldId::unique(), user, bytes, 100)
    };
    let (dying, living) = (brief(60), brief(40));
    one.reserve(&dying).await.unwrap();
    one.reserve(&living).await.unwrap();
    exceeded(hold(other, user, 1, 100).await);
    one.renew(&[(living.id, user.into())], LONG).await.unwrap();
    tokio::time::sleep(short + Duration::from_millis(300)).await;
    assert_eq!(figures(other, user).await, (0, 40));
    assert_eq!(other.holds(Some(&user.into()), 9).await.unwrap().len(), 1);
    let late = hold(other, user, 60, 100).await.expect("its room is free");
    // What is gone stays gone, and what it stored is charged all the same.
    one.renew(&[(dying.id, user.into())], LONG).await.unwrap();
    assert_eq!(figures(other, user).await, (0, 100));
    settle(one, dying.id, user, 60).await;
    assert_eq!(figures(other, user).await, (60, 100));
    settle(one, late, user, 0).await;
    settle(one, living.id, user, 0).await;
    assert_eq!(figures(other, user).await, (60, 0));
}

async fn what_is_kept_goes_on_under_another_name<S: Store>(one: &S, other: &S) {
    let both = || Scopes::from_iter(["{keep}user", "{keep}tenant"].map(Scope::from));
    let first = hold(one, both(), 100, 100).await.unwrap();
    let turn = |id, bytes, kept: u64| Settlement {
        id,
        scopes: both(),
        change: Change { bytes, objects: 0 },
        keep: Some(Keep {
            id: HoldId::unique(),
            amount: Amount::bytes(kept),
            time_to_live: LONG,
        }),
    };
    // Nobody can come between.
    let charged = turn(first, 60, 40);
    for store in [one, other] {
        store.settle(std::slice::from_ref(&charged)).await.unwrap();
        assert_eq!(figures(store, "{keep}user").await, (60, 40));
        assert_eq!(figures(store, "{keep}tenant").await, (60, 40));
    }
    let kept = charged.keep.unwrap().id;
    let entries = other.holds(Some(&"{keep}user".into()), 9).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].id, entries[0].amount.bytes), (kept, 40));
    assert!(entries[0].expires_in > LONG / 2);
    // Without a change, too, it is kept once.
    let given_back = turn(kept, 0, 10);
    other
        .settle(std::slice::from_ref(&given_back))
        .await
        .unwrap();
    let last = given_back.keep.unwrap().id;
    settle(one, last, both(), 0).await;
    other.settle(&[given_back]).await.unwrap();
    assert_eq!(figures(one, "{keep}user").await, (60, 0));
    // Whatever there is room for, and whether or not there was a hold: it has been given to others.
    let gone = turn(HoldId::unique(), 0, 70);
    one.settle(std::slice::from_ref(&gone)).await.unwrap();
    assert_eq!(figures(other, "{keep}tenant").await, (60, 70));
    exceeded(hold(other, "{keep}user", 1, 100).await);
    // A hold that grew before it was kept.
    let early = turn(gone.keep.unwrap().id, 0, 5);
    let grown = early.keep.unwrap().id;
    one.reserve(&reserve(grown, both(), 2, 1_000))
        .await
        .unwrap();
    other.settle(&[early]).await.unwrap();
    assert_eq!(figures(one, "{keep}user").await, (60, 7));
    settle(one, grown, both(), 0).await;
}

async fn limits_are_those_of_the_scope_or_the_default<S: Store>(store: &S) {
    let user: Scope = "{limits}user".into();
    let own = |limits: Limits| Some(Ceilings::from(limits));
    store
        .set_limits(&user, own(Limits::bytes(10)))
        .await
        .unwrap();
    assert_eq!(exceeded(hold(store, user.clone(), 11, 100).await).limit, 10);
    store
        .set_limits(&user, own(Limits::UNLIMITED))
        .await
        .unwrap();
    hold(store, user.clone(), 1 << 40, 100).await.unwrap();
    store.set_limits(&user, None).await.unwrap();
    assert_eq!(exceeded(hold(store, user.clone(), 1, 100).await).limit, 100);
    let account = store.account(&user).await.unwrap();
    assert_eq!((account.own, account.held.bytes), (None, 1 << 40));
}

async fn passing_a_soft_limit_is_told_once<S: Store>(store: &S) {
    let ask = |bytes| Reserve {
        default: Ceilings {
            hard: Limits::bytes(100),
            soft: Limits::bytes(50),
        },
        ..reserve(HoldId::unique(), "{soft}user", bytes, 0)
    };
    let none = Reserved::default();
    assert_eq!(store.reserve(&ask(50)).await.unwrap(), none);
    let told = store.reserve(&ask(1)).await.unwrap().warnings;
    let [(scope, account)] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((scope.as_str(), account.held.bytes), ("{soft}user", 51));
    assert_eq!(store.reserve(&ask(1)).await.unwrap(), none);
}

async fn usage_may_fall_below_zero_for_a_while<S: Store>(store: &S) {
    let user = "{below}user";
    settle(store, HoldId::unique(), user, -30).await;
    assert_eq!(figures(store, user).await, (-30, 0));
    // It gives nobody more than the limit.
    exceeded(hold(store, user, 101, 100).await);
    settle(store, HoldId::unique(), user, 30).await;
    assert_eq!(figures(store, user).await, (0, 0));
}

async fn names_are_taken_as_they_are<S: Store>(one: &S, other: &S) {
    for name in [
        "it's \"quoted\"",
        "50% _ *",
        "{}",
        "Zoë/🦀",
        "a:b:c",
        &"long".repeat(200),
    ] {
        let id = hold(one, name, 7, 100).await.unwrap();
        let [held] = &other.holds(Some(&name.into()), 2).await.unwrap()[..] else {
            panic!("{name}")
        };
        assert_eq!(
            (held.id, held.scope.as_str(), held.amount.bytes),
            (id, name, 7)
        );
        assert!(
            held.expires_in <= LONG && held.expires_in > LONG / 2,
            "{held:?}"
        );
        settle(one, id, name, 7).await;
        assert_eq!(figures(other, name).await, (7, 0));
        one.remove(&name.into()).await.unwrap();
    }
}

async fn figures_can_be_looked_at_and_corrected<S: Store>(store: &S) {
    let scopes = ["{list}a", "{list}b", "{list}c"].map(Scope::from);
    for (scope, bytes) in scopes.iter().zip([1 << 50, 3 << 50, 2 << 50]) {
        store.set_used(scope, Amount::new(bytes, 4)).await.unwrap();
    }
    let largest = store.largest(2).await.unwrap();
    let names: Vec<_> = largest.iter().map(|(scope, _)| scope.as_str()).collect();
    assert_eq!(names, ["{list}b", "{list}c"]);
    assert_eq!(
        largest[0].1.used,
        Change {
            bytes: 3 << 50,
            objects: 4
        }
    );
    let id = hold(store, scopes[0].clone(), 5, u64::MAX).await.unwrap();
    for scope in &scopes {
        store.remove(scope).await.unwrap();
    }
    // What is under way goes on.
    assert_eq!(figures(store, "{list}a").await, (0, 5));
    assert!(
        store
            .holds(None, 1_000)
            .await
            .unwrap()
            .iter()
            .any(|held| held.id == id)
    );
    settle(store, id, scopes[0].clone(), 0).await;
}

async fn a_stampede_never_passes_the_limit<S: Store>(one: &Arc<S>, other: &Arc<S>) {
    let both = || Scopes::from_iter(["{rush}user", "{rush}tenant"].map(Scope::from));
    let tasks = (0..64).map(|number| {
        let store = Arc::clone(if number % 2 == 0 { one } else { other });
        tokio::spawn(async move {
            // The order in which scopes are named must not lead to a deadlock.
            let scopes = match number % 3 {
                0 => both(),
                1 => Scopes::from_iter(["{rush}tenant", "{rush}user"].map(Scope::from)),
                _ => "{rush}user".into(),
            };
            match hold(&*store, scopes.clone(), 10, 105).await {
                Ok(id) => {
                    settle(&*store, id, scopes, 10).await;
                    true
                }
                Err(QuotaError::Exceeded(_)) => false,
                Err(error) => panic!("{error:?}"),
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut stored = 0;
    for task in tasks {
        stored += i64::from(task.await.unwrap());
    }
    assert_eq!(stored, 10);
    assert_eq!(figures(&**one, "{rush}user").await, (100, 0));
}

async fn a_source_over_it_holds_charges_and_releases<S: Store>(one: Arc<S>, other: Arc<S>) {
    let user = "{source}user";
    let quota = StoredQuota::new(one, Limits::bytes(100)).time_to_live(Duration::from_secs(1));
    let neighbour = StoredQuota::new(other, Limits::bytes(100));
    let scopes = Scopes::from(user);
    let hold = quota
        .reserve(&scopes, Amount::bytes(80), Amount::ZERO)
        .await
        .unwrap();
    let held = neighbour.usage(user).await.unwrap().held;
    assert_eq!(held, Amount::bytes(80));
    exceeded(
        neighbour
            .reserve(&scopes, Amount::bytes(21), Amount::ZERO)
            .await,
    );
    // Longer than it lives: it is renewed.
    tokio::time::sleep(Duration::from_millis(1_800)).await;
    assert_eq!(neighbour.usage(user).await.unwrap().held, Amount::bytes(80));
    hold.commit(Amount::bytes(70).into()).await;
    assert_eq!(neighbour.usage(user).await.unwrap().used, Amount::bytes(70));

    let mut hold = quota
        .reserve(&scopes, Amount::bytes(20), Amount::ZERO)
        .await
        .unwrap();
    hold.grow(Amount::bytes(10)).await.unwrap();
    assert!(hold.grow(Amount::bytes(1)).await.is_err());
    drop(hold);
    eventually("it is released", || quota.unsettled() == 0).await;
    assert_eq!(neighbour.usage(user).await.unwrap().held, Amount::ZERO);
    neighbour.give_back(&scopes, Amount::bytes(70));
    eventually("it is given back", || neighbour.unsettled() == 0).await;
    assert_eq!(quota.usage(user).await.unwrap().used, Amount::ZERO);
}

/// Releases get to the store a moment later. Whoever lets go, and asks again, need not wait for that.
async fn what_was_just_let_go_is_free<S: Store>(store: Arc<S>) {
    let quota = StoredQuota::new(store, Limits::bytes(100));
    let user = Scopes::from("{again}user");
    let whole = || quota.reserve(&user, Amount::bytes(100), Amount::ZERO);
    for _ in 0..50 {
        drop(whole().await.expect("it was let go"));
        let mut half = quota
            .reserve(&user, Amount::bytes(50), Amount::ZERO)
            .await
            .expect("it was let go");
        let other = quota.reserve(&user, Amount::bytes(50), Amount::ZERO);
        drop(other.await.expect("it fits"));
        half.grow(Amount::bytes(50)).await.expect("it was let go");
        exceeded(whole().await);
    }
    eventually("all is let go", || quota.unsettled() == 0).await;
}

/// Random steps, side by side.
async fn it_does_as_the_model_does<S: Store>(one: &S, other: &S) {
    let names = ["{model}a", "{model}b", "{model}c"];
    let model = Model::default();
    let mut dice = Dice::new(7);
    let mut open: Vec<(HoldId, Scopes)> = Vec::new();
    for step in 0..300 {
        let store = if dice.roll(2) == 0 { one } else { other };
        let which = |dice: &mut Dice| Scope::from(names[dice.roll(3) as usize]);
        match dice.roll(10) {
            0..4 => {
                let scopes = match dice.roll(2) {
                    0 => which(&mut dice).into(),
                    _ => {
                        let (first, second) = (which(&mut dice), which(&mut dice));
                        Scopes::from_iter([first, second])
                    }
                };
                let amount = Amount::new(dice.roll(60), dice.roll(3));
                let asked = Reserve {
                    amount,
                    expected: Amount::bytes(dice.roll(60)),
                    default: Ceilings {
                        hard: Limits::bytes(200).objects(9),
                        soft: Limits::bytes(100),
                    },
                    ..reserve(HoldId::unique(), scopes.clone(), 0, 0)
                };
                compare(store, &model, &asked, step).await;
                open.push((asked.id, scopes));
            }
            4 if !open.is_empty() => {
                let (id, scopes) = &open[dice.roll(open.len() as u64) as usize];
                let more = reserve(*id, scopes.clone(), dice.roll(30), 200);
                compare(store, &model, &more, step).await;
            }
            5..8 if !open.is_empty() => {
                let which = dice.roll(open.len() as u64) as usize;
                let (id, scopes) = open.swap_remove(which);
                let change = Change {
                    bytes: dice.roll(80) as i64 - 20,
                    objects: dice.roll(3) as i64 - 1,
                };
                let keep = (dice.roll(2) == 0).then(|| Keep {
                    id: HoldId::unique(),
                    amount: Amount::new(dice.roll(60), dice.roll(3)),
                    time_to_live: LONG,
                });
                if let Some(keep) = keep {
                    open.push((keep.id, scopes.clone()));
                }
                let settlements = [Settlement {
                    id,
                    scopes,
                    change,
                    keep,
                }];
                for _ in 0..=dice.roll(1) {
                    store.settle(&settlements).await.unwrap();
                    model.settle(&settlements).await.unwrap();
                }
            }
            8 => {
                let (scope, used) = (which(&mut dice), Amount::new(dice.roll(150), dice.roll(5)));
                store.set_used(&scope, used).await.unwrap();
                model.set_used(&scope, used).await.unwrap();
            }
            _ => {
                let scope = which(&mut dice);
                let own = match dice.roll(2) {
                    0 => None,
                    _ => Some(Ceilings::from(Limits::bytes(dice.roll(300)))),
                };
                store.set_limits(&scope, own).await.unwrap();
                model.set_limits(&scope, own).await.unwrap();
            }
        }
        for name in names {
            let scope = Scope::from(name);
            let (theirs, ours) = (store.account(&scope), model.account(&scope));
            assert_eq!(
                theirs.await.unwrap(),
                ours.await.unwrap(),
                "{name} after step {step}"
            );
        }
    }
}

async fn compare<S: Store>(store: &S, model: &Model, asked: &Reserve, step: usize) {
    match (store.reserve(asked).await, model.reserve(asked).await) {
        (Ok(theirs), Ok(ours)) => assert_eq!(theirs, ours, "step {step}"),
        (Err(QuotaError::Exceeded(theirs)), Err(QuotaError::Exceeded(ours))) => {
            // Of several limits any may be named.
            assert!(
                theirs.used + theirs.required > theirs.limit,
                "step {step}: {theirs:?}, {ours:?}"
            );
        }
        (theirs, ours) => panic!("step {step}: {theirs:?} instead of {ours:?}"),
    }
}

#[tokio::test]
async fn the_model_conforms_to_itself() {
    let model = Arc::new(Model::default());
    conforms(model.clone(), model).await;
}
