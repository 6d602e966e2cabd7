//! Guarantees of the SQL engines in addition to the contract: they can store any name and any figure.

use std::time::{Duration, Instant};

use tower_storage_guard::{
    Amount, Scope,
    quota::{Change, Limits, QuotaError},
    store::{HoldId, Settlement, Store},
};

use super::{exceeded, figures, hold, reserve, settle};

pub(crate) async fn no_name_is_too_odd<S: Store>(store: &S) {
    let random: String = (0..100_000_u32)
        .map(|n| char::from(b'!' + (n.wrapping_mul(2_654_435_761) >> 25) as u8 % 90))
        .collect();
    let other = format!("{random}!");
    for name in ["nul\0one", "nul\0two", "nul", "", "\\x00", &random, &other] {
        let id = hold(store, name, 7, 10).await.expect(name);
        let [held] = &store.holds(Some(&name.into()), 2).await.unwrap()[..] else {
            panic!("{name}")
        };
        assert_eq!(held.scope, Scope::from(name));
        settle(store, id, name, 7).await;
    }
    assert_eq!(figures(store, "nul\0one").await, (7, 0));
    let largest = store.largest(1_000).await.unwrap();
    for name in ["nul\0one", "", &random, &other] {
        assert!(largest.iter().any(|(scope, _)| scope.as_str() == name));
        store.remove(&name.into()).await.unwrap();
    }
}

pub(crate) async fn nothing_wraps<S: Store>(store: &S) {
    let all = i64::MAX as u64;
    let user = "wraps";
    let unlimited = |id, bytes| {
        reserve(id, user, bytes, 0)
            .with_default(Limits::UNLIMITED)
            .with_time_to_live(Duration::MAX)
    };
    let id = HoldId::unique();
    exceeded(store.reserve(&unlimited(id, u64::MAX)).await);
    exceeded(store.reserve(&unlimited(id, all + 1)).await);
    store.reserve(&unlimited(id, all)).await.unwrap();
    exceeded(store.reserve(&unlimited(id, 1)).await);
    exceeded(store.reserve(&unlimited(HoldId::unique(), 1)).await);
    store
        .renew(&[(id, user.into())], Duration::MAX)
        .await
        .unwrap();
    assert_eq!(figures(store, user).await, (0, all));
    for (change, used) in [
        (i64::MAX, i64::MAX),
        (i64::MAX, i64::MAX),
        (i64::MIN, -1),
        // As far below zero as is held.
        (i64::MIN, -i64::MAX),
        (i64::MIN, -i64::MAX),
    ] {
        settle(store, HoldId::unique(), user, change).await;
        assert_eq!(figures(store, user).await, (used, all));
    }
    settle(store, id, user, 0).await;
    let change = Change {
        bytes: i64::MAX,
        objects: i64::MIN,
    };
    let twice = [1, 2].map(|_| Settlement::new(HoldId::unique(), user, change));
    store.settle(&twice).await.unwrap();

    let scope = Scope::from(user);
    store
        .set_used(&scope, Amount::new(u64::MAX, 1))
        .await
        .unwrap();
    assert_eq!(figures(store, user).await, (i64::MAX, 0));
    for limit in [None, Some(0), Some(u64::MAX), Some(all + 1)] {
        let mut limits = Limits::new(limit, Some(3)).grace(Duration::from_secs(1));
        limits.soft_objects = limit;
        store.set_limits(&scope, Some(limits)).await.unwrap();
        let account = store.account(&scope).await.unwrap();
        assert_eq!(account.own, Some(limits));
    }
    store.set_limits(&scope, None).await.unwrap();
    store.set_used(&scope, Amount::ZERO).await.unwrap();
    let account = store.account(&scope).await.unwrap();
    assert_eq!((account.own, account.used), (None, Change::ZERO));
    assert_eq!(account.unmatched.bytes, all, "it stops at its end");
    store.remove(&scope).await.unwrap();
    assert_eq!(
        store.account(&scope).await.unwrap(),
        Default::default(),
        "all is as it was"
    );
}

/// A charge of the scope `user` crosses its own soft limit, in a store whose schema was older.
pub(crate) async fn a_grace_is_kept<S: Store>(store: &S) {
    let limits = Limits::UNLIMITED.soft_bytes(7).grace(Duration::ZERO);
    let user = Scope::from("user");
    store.set_limits(&user, Some(limits)).await.unwrap();
    store.set_used(&user, Amount::bytes(7)).await.unwrap();
    assert_eq!(store.account(&user).await.unwrap().own, Some(limits));
    settle(store, HoldId::unique(), "user", 1).await;
    assert_eq!(exceeded(hold(store, "user", 1, 0).await).limit, 7);
    settle(store, HoldId::unique(), "user", -1).await;
    let id = hold(store, "user", 1, 0).await.unwrap();
    settle(store, id, "user", 0).await;
}

/// If a settlement is named twice, it counts once, even in one step.
pub(crate) async fn an_id_counts_once_in_one_step<S: Store>(store: &S) {
    let (id, user) = (HoldId::unique(), "twice");
    store.reserve(&reserve(id, user, 5, 10)).await.unwrap();
    let [release, charge, again] =
        [0, 3, 3].map(|bytes| Settlement::new(id, user, Change { bytes, objects: 0 }));
    store.settle(&[release, charge, again]).await.unwrap();
    assert_eq!(figures(store, user).await, (3, 0));
}

/// Tries to reserve until the store answers again, at most for this long.
pub(crate) async fn recovers<S: Store>(store: &S, scope: &str, within: Duration) {
    let start = Instant::now();
    loop {
        match hold(store, scope, 1, u64::MAX).await {
            Ok(id) => return settle(store, id, scope, 0).await,
            Err(error) => assert!(start.elapsed() < within, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asserts that a reservation is not decided, and that the caller learns this in time.
pub(crate) async fn is_away<S: Store>(store: &S) {
    let start = Instant::now();
    let answer = hold(store, "away", 1, u64::MAX).await;
    assert!(
        matches!(answer, Err(QuotaError::Unavailable(_))),
        "{answer:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(8), "late");
}
