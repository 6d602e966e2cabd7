//! Figures beyond the precision of a Lua number.

use test_support::Dice;
use tower_storage_guard::{
    Amount,
    fault::Resource,
    quota::{Change, Exceeded, Limits, OverSoftLimit},
    store::{HoldId, Settlement, Store},
};

use super::{
    super::{exceeded, figures, hold, settle},
    server::Server,
};

/// A number of any length up to 63 bits, often close to a power of two.
fn number(dice: &mut Dice) -> u64 {
    let power = 1_u64 << dice.roll(63);
    match dice.roll(3) {
        0 => power.wrapping_sub(dice.roll(3)) >> 1,
        1 => power + dice.roll(3),
        _ => dice.roll(power),
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn no_byte_is_lost() {
    let server = Server::start();
    let store = server.store().await;
    let mut dice = Dice::new(3);
    for round in 0..400 {
        let scope = format!("{{exact}}{round}");
        let (used, held) = (number(&mut dice), number(&mut dice));
        let below = number(&mut dice) as i64;
        store
            .set_used(&scope.as_str().into(), Amount::bytes(used))
            .await
            .unwrap();
        let id = hold(&store, &*scope, held, u64::MAX).await.unwrap();
        settle(&store, HoldId::unique(), &*scope, -below).await;
        // As far below zero as is held.
        let used = (used as i64 - below).max(-held.cast_signed());
        assert_eq!(figures(&store, &scope).await, (used, held), "round {round}");

        // Exactly the remaining amount, and one more.
        let counted = used.max(0) as u64 + held;
        let need = number(&mut dice);
        let limit = counted.saturating_add(need);
        if need < i64::MAX as u64 && limit < u64::MAX {
            assert_eq!(
                exceeded(hold(&store, &*scope, need + 1, limit).await),
                Exceeded::new((&*scope).into(), Resource::Bytes, limit, counted, need + 1)
            );
        }
        if counted.checked_add(need).is_some() {
            let more = hold(&store, &*scope, need, limit).await.unwrap();
            assert_eq!(figures(&store, &scope).await, (used, held + need));
            settle(&store, more, &*scope, 0).await;
        }
        settle(&store, id, &*scope, 1).await;
        assert_eq!(figures(&store, &scope).await, ((used + 1).max(0), 0));
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn nothing_wraps_at_the_ends() {
    let server = Server::start();
    let store = server.store().await;
    for (change, end) in [(i64::MAX, i64::MAX), (i64::MIN, i64::MIN)] {
        let scope = format!("{{ends}}{change}");
        let most = i64::MAX as u64;
        for _ in 0..2 {
            hold(&store, &*scope, most, u64::MAX).await.unwrap();
        }
        for _ in 0..3 {
            settle(&store, HoldId::unique(), &*scope, change).await;
            assert_eq!(figures(&store, &scope).await, (end, 2 * most));
        }
    }
    // Unlimited: as long as the sum can be counted.
    let most = i64::MAX as u64;
    for _ in 0..2 {
        hold(&store, "holder", most, u64::MAX).await.unwrap();
    }
    hold(&store, "holder", 1, u64::MAX).await.unwrap();
    exceeded(hold(&store, "holder", 1, u64::MAX).await);
    settle(&store, HoldId::unique(), "holder", i64::MAX).await;
    assert_eq!(figures(&store, "holder").await, (i64::MAX, u64::MAX));
    let refused = exceeded(hold(&store, "holder", 1, u64::MAX).await);
    assert_eq!((refused.limit, refused.used), (u64::MAX, u64::MAX));
    // More than can be charged.
    let refused = exceeded(hold(&store, "new", most + 1, u64::MAX).await);
    assert_eq!(
        (refused.limit, refused.used, refused.required),
        (most, 0, most + 1)
    );
    hold(&store, "new", most, u64::MAX).await.unwrap();

    let own = Limits::bytes(u64::MAX).objects(u64::MAX - 1);
    let own = own.soft_bytes((1 << 63) - 2);
    store.set_limits(&"own".into(), Some(own)).await.unwrap();
    let used = Amount::new(u64::MAX, 1 << 60);
    store.set_used(&"own".into(), used).await.unwrap();
    let account = store.account(&"own".into()).await.unwrap();
    let stored = Change {
        bytes: i64::MAX,
        objects: 1 << 60,
    };
    assert_eq!((account.own, account.used), (Some(own), stored));
    let change = Change {
        bytes: 0,
        objects: 1,
    };
    let charge = Settlement::new(HoldId::unique(), "own", change);
    let over = store.settle(&[charge]).await.unwrap();
    let expected = OverSoftLimit::new("own".into(), Resource::Bytes, (1 << 63) - 2, most);
    assert_eq!(over, [expected.crossed()]);
}
