//! What a quota over a store promises.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    super::StoredQuota,
    check::{AnyStore, Handle, bytes},
};
use crate::{
    amount::Amount,
    quota::{Change, Limits, QuotaHold, QuotaSource},
    scope::Scopes,
};

pub(super) async fn holds([one, two]: [Handle; 2]) {
    let user = "{source}user";
    let limits = Limits::bytes(100);
    let quota = StoredQuota::builder(Arc::clone(&one.store), limits)
        .time_to_live(Duration::from_secs(1))
        .build();
    let neighbour = StoredQuota::new(Arc::clone(&two.store), limits);
    let scopes = Scopes::from(user);
    let ask = |quota: &StoredQuota<AnyStore>, bytes| {
        let answer = quota.reserve(&scopes, Amount::bytes(bytes), Amount::ZERO);
        answer.into_future()
    };
    let sees = async |when: &str, quota: &StoredQuota<AnyStore>, used, held| {
        let usage = one.done("account", quota.usage(user).await);
        let expected = (Amount::bytes(used), Amount::bytes(held));
        let what = format!("what a process sees {when}");
        one.expect(&what, (usage.used, usage.held), expected);
    };
    let hold = one.done("reserve", ask(&quota, 80).await);
    sees("after a hold by another", &neighbour, 0, 80).await;
    let refused = ask(&neighbour, 21).await;
    two.exceeded("21 bytes where 80 of 100 are held", refused);
    // Longer than it lives: it is renewed.
    sleep(Duration::from_millis(1_800)).await;
    sees("after the time to live of a hold", &neighbour, 0, 80).await;
    hold.commit(bytes(70)).await;
    sees("after a commit by another", &neighbour, 70, 0).await;

    let mut hold = one.done("reserve", ask(&quota, 20).await);
    one.done("grow", hold.grow(Amount::bytes(10)).await);
    one.expect_that(
        hold.grow(Amount::bytes(1)).await.is_err(),
        "a hold grows beyond the limit",
    );
    drop(hold);
    one.is_settled(&quota).await;
    sees("after a release by another", &neighbour, 70, 0).await;
    neighbour.charge(&scopes, Change::between(Amount::ZERO, Amount::bytes(70)));
    two.is_settled(&neighbour).await;
    sees("after a removal by another", &quota, 0, 0).await;
}

/// Releases reach the store a moment later. A request of the same process need not wait for that.
pub(super) async fn just_released([one, _]: [Handle; 2]) {
    let quota = StoredQuota::new(Arc::clone(&one.store), Limits::bytes(100));
    let user = Scopes::from("{again}user");
    let ask = |bytes| {
        let answer = quota.reserve(&user, Amount::bytes(bytes), Amount::ZERO);
        answer.into_future()
    };
    for _ in 0..50 {
        drop(one.done("reserve", ask(100).await));
        let mut half = one.done("reserve", ask(50).await);
        drop(one.done("reserve", ask(50).await));
        one.done("grow", half.grow(Amount::bytes(50)).await);
        one.exceeded("100 bytes more than the limit", ask(100).await);
        half.shrink_to(Amount::bytes(20));
        let _rest = one.done("reserve what another has given back", ask(80).await);
        one.exceeded("a byte more than that", ask(1).await);
        half.shrink_to(Amount::ZERO);
        one.done("grow from nothing", half.grow(Amount::bytes(20)).await);
        one.exceeded("a byte more than the limit", ask(1).await);
    }
    one.is_settled(&quota).await;
}
