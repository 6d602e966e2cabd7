//! The rules of soft limits.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    super::{HoldId, Settlement},
    check::{Handle, bytes, change, in_order, reserve, timeless},
};
use crate::{
    amount::Amount,
    cause::Resource,
    quota::{Change, Limits, OverFor, OverSoftLimit},
    scope::{Scope, Scopes},
};

/// Longer than a run.
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

fn over(scope: &str, limit: u64, used: u64) -> OverSoftLimit {
    OverSoftLimit::new(scope.into(), Resource::Bytes, limit, used)
}

/// With what is left of a grace in weeks, rounded up: engines have clocks of their own.
fn in_weeks(over: Vec<OverSoftLimit>) -> Vec<OverSoftLimit> {
    let mut over = in_order(over);
    for one in &mut over {
        let weeks = |left: Duration| WEEK * left.as_secs().div_ceil(WEEK.as_secs()) as u32;
        one.grace = one.grace.map(weeks);
    }
    over
}

pub(super) async fn crossing([one, two]: [Handle; 2]) {
    let user = "{soft}user";
    let limits = Limits::bytes(100).objects(9).soft_bytes(50).soft_objects(2);
    let limits = limits.grace(WEEK);
    let charge =
        async |store: &Handle, change| in_weeks(store.charge(user, change, Some(limits)).await);
    let week = |over: OverSoftLimit| over.with_grace(WEEK);

    one.hold(user, 40, 100).await;
    let found = charge(&one, change(50, 2)).await;
    one.expect("the soft limits that usage is equal to", found, vec![]);
    let found = charge(&one, bytes(1)).await;
    let expected = vec![week(over(user, 50, 51)).crossed()];
    one.expect("the crossing of a soft limit", found, expected);
    let found = charge(&two, bytes(1)).await;
    let expected = vec![week(over(user, 50, 52))];
    two.expect("a charge above a soft limit", found, expected);
    let asked = reserve(HoldId::unique(), user, 1, 0).with_default(limits);
    two.admit("a byte within the grace", &asked).await;
    two.settle(asked.id, user, 0).await;
    let found = charge(&two, change(0, 1)).await;
    let objects = OverSoftLimit::new(user.into(), Resource::Objects, 2, 3);
    let expected = vec![week(over(user, 50, 52)), week(objects.clone()).crossed()];
    two.expect("the crossing by objects", found, expected);
    let found = charge(&one, bytes(-2)).await;
    one.expect(
        "what is left of bytes that are back at their soft limit",
        found,
        vec![week(objects)],
    );
    let found = charge(&one, bytes(1)).await;
    let crossed: Vec<_> = found.iter().map(|over| over.has_just_crossed).collect();
    one.expect(
        "whether it is crossed again (bytes, objects)",
        crossed,
        vec![true, false],
    );
}

pub(super) async fn once([one, two]: [Handle; 2]) {
    let both = || Scopes::from(["{softly}user", "{softly}tenant"]);
    let limits = Limits::UNLIMITED.soft_bytes(50);
    let mut charge = Settlement::new(HoldId::unique(), both(), bytes(60));
    // Without them, the limits of a scope that has none of its own are unknown.
    let other = one.charge("{softly}user", bytes(1), None).await;
    one.expect("the soft limits that are not known", other, vec![]);
    charge = charge.with_defaults(|_| limits);
    let found = one.settle_all(&[charge.clone()]).await;
    let expected = |user| {
        vec![
            over("{softly}tenant", 50, 60),
            over("{softly}user", 50, user),
        ]
    };
    let crossed = expected(61)
        .into_iter()
        .map(OverSoftLimit::crossed)
        .collect();
    one.expect("the crossings in two scopes", found, crossed);
    let found = two.settle_all(&[charge]).await;
    two.expect(
        "the crossings of a charge that is made again",
        found,
        expected(61),
    );
    // A release is no charge, and says what is known.
    let release = Settlement::new(HoldId::unique(), both(), Change::ZERO);
    let found = two.settle_all(&[release.with_defaults(|_| limits)]).await;
    two.expect(
        "the soft limits that are passed after a release",
        found,
        expected(61),
    );
    let asked = reserve(HoldId::unique(), both(), 1, 0).with_default(limits);
    let reserved = two
        .admit("a byte above a soft limit that only warns", &asked)
        .await;
    two.expect(
        "the soft limits in its answer",
        in_order(reserved.over),
        expected(61),
    );

    // A timer stays until the next charge, if limits are unknown or usage is set.
    let found = one.charge("{softly}user", bytes(-50), None).await;
    one.expect("the soft limits that are not known", found, vec![]);
    let set = one
        .store
        .set_used(&"{softly}user".into(), Amount::bytes(70))
        .await;
    one.done("set_used", set);
    let found = one.charge("{softly}user", bytes(1), Some(limits)).await;
    one.expect(
        "a charge in a crossing",
        found,
        vec![over("{softly}user", 50, 71)],
    );
    one.done("remove", one.store.remove(&"{softly}user".into()).await);
    let found = one.charge("{softly}user", bytes(51), Some(limits)).await;
    let expected = vec![over("{softly}user", 50, 51).crossed()];
    one.expect("the crossing in a scope that was removed", found, expected);
}

pub(super) async fn grace([one, two]: [Handle; 2]) {
    let (user, second) = ("{grace}user", Duration::from_secs(1));
    let scope = Scope::from(user);
    let limits = Limits::bytes(100).soft_bytes(50).grace(second);
    one.done(
        "set_limits",
        one.store.set_limits(&scope, Some(limits)).await,
    );
    // What is held is not used.
    let held = one.hold(user, 60, 0).await;
    one.settle(held, user, 0).await;
    // The limits of the scope are its own.
    let found = one.charge(user, bytes(51), None).await;
    one.expect_that(found.len() == 1, "a limit of a scope's own is not crossed");
    sleep(second + Duration::from_millis(300)).await;
    let over = two.account(user).await.over;
    let runs =
        |over: OverFor| over.bytes.is_some_and(|over| over >= second) && over.objects.is_none();
    two.expect_that(
        runs(over),
        format!("usage was above the soft limit for a second: {over:?}"),
    );
    let refused = two.refuse_hold(user, 1, 0).await;
    two.expect("the limit after the grace", refused.limit, 50);
    two.hold(user, 0, 0).await;
    let mut object = reserve(HoldId::unique(), user, 0, 0);
    object.amount = Amount::objects(1);
    two.admit("an object, of which there is enough", &object)
        .await;
    // A charge after the grace counts, and changes nothing.
    one.charge(user, bytes(9), None).await;
    two.refuse_hold(user, 1, 0).await;
    one.charge(user, bytes(-10), None).await;
    let account = timeless(two.account(user).await);
    two.expect(
        "the timers of usage at the soft limit",
        account.over,
        OverFor::default(),
    );
    two.hold(user, 40, 0).await;
    let found = one.charge(user, bytes(1), None).await;
    let crosses = found.first().is_some_and(|over| over.has_just_crossed);
    one.expect_that(crosses, "a second crossing is none");
    two.admit(
        "a byte in a new grace",
        &reserve(HoldId::unique(), user, 1, 0),
    )
    .await;
}

/// Only a charge starts a timer, and without one there is no end of a grace, however short it is.
pub(super) async fn no_grace([one, two]: [Handle; 2]) {
    let user = "{no-grace}user";
    let scope = Scope::from(user);
    let limits = Limits::bytes(100).soft_bytes(50).grace(Duration::ZERO);
    let set = one.store.set_limits(&scope, Some(limits)).await;
    one.done("set_limits", set);
    one.done(
        "set_used",
        one.store.set_used(&scope, Amount::bytes(60)).await,
    );
    let asked = reserve(HoldId::unique(), user, 1, 0);
    two.admit("a byte before a charge has crossed", &asked)
        .await;
    two.settle(asked.id, user, 0).await;
    one.charge(user, bytes(1), None).await;
    let refused = two.refuse_hold(user, 1, 0).await;
    two.expect("the limit after no grace at all", refused.limit, 50);
}
