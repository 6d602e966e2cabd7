//! What a quota over a store promises.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    super::StoredQuota,
    check::{AnyStore, Handle, bytes},
};
use crate::{
    amount::Amount,
    quota::{Limits, QuotaHold, QuotaSource},
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
    let usage = async |quota: &StoredQuota<AnyStore>| {
        let usage = one.done("account", quota.usage(user).await);
        (usage.used, usage.held)
    };
    let hold = one.done("reserve", ask(&quota, 80).await);
    let held = (Amount::ZERO, Amount::bytes(80));
    one.expect("another process sees", usage(&neighbour).await, held);
    two.exceeded(
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
    two.is_settled(&neighbour).await;
    one.expect(
        "after a removal by another process",
        usage(&quota).await,
        (Amount::ZERO, Amount::ZERO),
    );
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
    }
    one.is_settled(&quota).await;
}
