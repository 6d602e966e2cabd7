//! What an admin may do, on any store.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tower_storage_guard::{
    Amount, BoxError, Scope, Scopes,
    quota::{Change, Limits},
    store::{Account, Admin, Ceilings, HoldId, RescanError, Store},
};

use super::{exceeded, figures, hold, reserve, settle};

pub(crate) async fn works<S: Store>(one: &Arc<S>, other: &Arc<S>) {
    let admin = Admin::new(Arc::clone(one));
    it_shows_and_sets(&admin).await;
    what_is_added_beside_others_counts(&admin, other).await;
    a_hold_that_is_dropped_is_charged_all_the_same(&admin, other).await;
    a_count_at_rest_is_the_truth(&admin).await;
    a_disturbed_scan_is_repeated(&admin, other).await;
    a_right_account_stays_right_under_load(&admin, other).await;
    a_wrong_account_heals_under_load(&admin, other).await;
    what_comes_and_goes_is_seen(&admin, other).await;
    two_rescans_do_not_correct_twice(&admin, other).await;
}

fn change(bytes: i64, objects: i64) -> Change {
    Change { bytes, objects }
}

async fn it_shows_and_sets<S: Store>(admin: &Admin<Arc<S>>) {
    let user = "{admin}user";
    assert_eq!(admin.account(user).await.unwrap(), Account::default());
    let limits = Ceilings {
        hard: Limits::bytes(9 << 50).objects(3),
        soft: Limits::bytes(7),
    };
    admin.set_limits(user, limits).await.unwrap();
    admin.set_used(user, Amount::new(8 << 50, 2)).await.unwrap();
    let account = admin.account(user).await.unwrap();
    assert_eq!((account.own, account.held), (Some(limits), Amount::ZERO));
    assert_eq!(account.used, change(8 << 50, 2));
    let largest = admin.largest(1).await.unwrap();
    assert_eq!(largest, [(Scope::from(user), account)]);
    admin.clear_limits(user).await.unwrap();
    assert_eq!(admin.account(user).await.unwrap().own, None);
    admin.set_limits(user, limits).await.unwrap();
    admin.remove(user).await.unwrap();
    assert_eq!(admin.account(user).await.unwrap(), Account::default());
    admin.subtract(user, Amount::new(3, 1)).await.unwrap();
    assert_eq!(admin.account(user).await.unwrap().used, change(-3, -1));
    admin.add(user, Amount::new(3, 1)).await.unwrap();
    assert_eq!(admin.account(user).await.unwrap(), Account::default());
}

async fn what_is_added_beside_others_counts<S: Store>(admin: &Admin<Arc<S>>, other: &Arc<S>) {
    let user = "{beside}user";
    let tasks = (0..48).map(|number| {
        let (admin, other) = (admin.clone(), Arc::clone(other));
        tokio::spawn(async move {
            match number % 3 {
                0 => admin.add(user, Amount::new(100, 1)).await.unwrap(),
                1 => admin.subtract(user, Amount::new(10, 1)).await.unwrap(),
                _ => settle(&*other, HoldId::unique(), user, 1).await,
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let account = admin.account(user).await.unwrap();
    assert_eq!(account.used, change(16 * (100 - 10 + 1), 0));
}

/// A release is not remembered: whatever comes of it later counts.
async fn a_hold_that_is_dropped_is_charged_all_the_same<S: Store>(
    admin: &Admin<Arc<S>>,
    other: &Arc<S>,
) {
    let both = || Scopes::from_iter(["{drop}user", "{drop}tenant"].map(Scope::from));
    assert_eq!(admin.drop_hold(HoldId::unique()).await.unwrap(), []);
    let id = hold(&**other, both(), 60, 100).await.unwrap();
    let bystander = hold(&**other, both(), 40, 100).await.unwrap();
    let mut dropped = admin.drop_hold(id).await.unwrap();
    dropped.sort_by(|a, b| a.scope.cmp(&b.scope));
    let names: Vec<_> = dropped.iter().map(|entry| entry.scope.as_str()).collect();
    assert_eq!(names, ["{drop}tenant", "{drop}user"]);
    assert!(dropped.iter().all(|entry| entry.id == id));
    assert!(dropped.iter().all(|entry| entry.amount.bytes == 60));
    assert_eq!(figures(&**other, "{drop}user").await, (0, 40));
    assert_eq!(admin.drop_hold(id).await.unwrap(), []);

    // Its room is free, and its request lives on.
    let next = hold(&**other, both(), 50, 100).await.unwrap();
    other.renew(&[(id, both())], super::LONG).await.unwrap();
    assert_eq!(figures(&**other, "{drop}user").await, (0, 90));
    let more = reserve(id, both(), 10, 100);
    other.reserve(&more).await.unwrap();
    exceeded(other.reserve(&reserve(id, both(), 1, 100)).await);
    assert_eq!(figures(&**other, "{drop}tenant").await, (0, 100));
    assert_eq!(admin.drop_hold(id).await.unwrap().len(), 2);
    for _ in 0..2 {
        settle(&**other, id, both(), 70).await;
        for scope in ["{drop}user", "{drop}tenant"] {
            assert_eq!(figures(&**other, scope).await, (70, 90));
        }
    }
    // After a charge it is remembered, and nothing takes that back.
    assert_eq!(admin.drop_hold(id).await.unwrap(), []);
    settle(&**other, id, both(), 70).await;
    assert_eq!(figures(&**other, "{drop}user").await, (70, 90));
    for id in [bystander, next] {
        settle(&**other, id, both(), 0).await;
    }
}

async fn a_count_at_rest_is_the_truth<S: Store>(admin: &Admin<Arc<S>>) {
    let user = "{rest}user";
    for (used, counted) in [(0, 7), (7, 7), (9, 7), (7, 0)] {
        admin.set_used(user, Amount::new(used, used)).await.unwrap();
        let found = Amount::new(counted, 2 * counted);
        let rescan = admin.rescan(user, async || Ok::<_, BoxError>(found)).await;
        let rescan = rescan.unwrap();
        assert_eq!((rescan.counted, rescan.is_certain), (found, true));
        let before = change(used as i64, used as i64);
        assert_eq!(rescan.before, before);
        let used = admin.account(user).await.unwrap().used;
        assert_eq!(used, found.into());
        let corrected = change(used.bytes - before.bytes, used.objects - before.objects);
        assert_eq!(rescan.corrected, corrected);
    }
    // Of a count that fails nothing comes.
    let failed = admin.rescan(user, async || Err(io::Error::other("no such folder")));
    let failed = failed.await.unwrap_err();
    assert!(matches!(failed, RescanError::Count(_)), "{failed:?}");
    assert_eq!(admin.account(user).await.unwrap(), Account::default());
    assert_eq!(admin.holds(Some(turn(user)), 9).await.unwrap(), []);
}

/// Whose turn it is to rescan.
fn turn(scope: &str) -> Scope {
    Scope::from(format_args!("storage-guard:rescan:{scope}"))
}

async fn a_disturbed_scan_is_repeated<S: Store>(admin: &Admin<Arc<S>>, other: &Arc<S>) {
    let user = "{repeat}user";
    admin.set_used(user, Amount::bytes(1_000)).await.unwrap();
    let scans = AtomicUsize::new(0);
    let count = async || {
        if scans.fetch_add(1, Ordering::Relaxed) == 0 {
            settle(&**other, HoldId::unique(), user, 5).await;
        }
        Ok::<_, BoxError>(Amount::bytes(305))
    };
    let rescan = admin.rescan(user, count).await.unwrap();
    assert!(rescan.is_certain);
    assert_eq!((rescan.before.bytes, rescan.corrected.bytes), (1_005, -700));
    assert_eq!(scans.into_inner(), 2);
    assert_eq!(figures(&**other, user).await, (305, 0));
}

/// What a scan sees of uploads that come and go is a matter of luck: the books must not suffer from it.
async fn a_right_account_stays_right_under_load<S: Store>(admin: &Admin<Arc<S>>, other: &Arc<S>) {
    let user = "{load}user";
    admin.set_used(user, Amount::bytes(100)).await.unwrap();
    for (moved, seen) in [(10, 0), (10, 10), (10, 3), (-10, 0), (-10, -10)] {
        let scans = AtomicUsize::new(0);
        let count = async || {
            scans.fetch_add(1, Ordering::Relaxed);
            let (before, _) = figures(&**other, user).await;
            settle(&**other, HoldId::unique(), user, moved).await;
            Ok::<_, BoxError>(Amount::bytes((before + seen) as u64))
        };
        let rescan = admin.rescan(user, count).await.unwrap();
        assert_eq!((rescan.is_certain, scans.into_inner()), (false, 3));
        assert_eq!(rescan.corrected, Change::ZERO);
    }
    assert_eq!(figures(&**other, user).await, (100 + 3 * 10, 0));

    // An upload that is there in part, and is charged right after the scan.
    let id = hold(&**other, user, 50, u64::MAX).await.unwrap();
    let count = async || Ok::<_, BoxError>(Amount::bytes(130 + 20));
    let rescan = admin.rescan(user, count).await.unwrap();
    assert_eq!((rescan.is_certain, rescan.corrected), (false, Change::ZERO));
    settle(&**other, id, user, 50).await;
    assert_eq!(figures(&**other, user).await, (180, 0));
}

async fn a_wrong_account_heals_under_load<S: Store>(admin: &Admin<Arc<S>>, other: &Arc<S>) {
    let user = "{heals}user";
    for (used, seen) in [(0_i64, 0), (0, 10), (5_000, 0), (5_000, 10)] {
        admin
            .set_used(user, Amount::bytes(used as u64))
            .await
            .unwrap();
        let stored = AtomicUsize::new(1_000);
        let count = async || {
            let before = stored.fetch_add(10, Ordering::Relaxed);
            settle(&**other, HoldId::unique(), user, 10).await;
            Ok::<_, BoxError>(Amount::bytes(before as u64 + seen))
        };
        let rescan = admin.rescan(user, count).await.unwrap();
        assert!(!rescan.is_certain);
        // Not less than there is, and not more than what has come during one scan above it.
        let (used, stored) = (figures(&**other, user).await.0, stored.into_inner() as i64);
        assert_eq!((stored, used), (1_030, 1_030 + seen as i64));
        assert_eq!(rescan.corrected.bytes, used - 30 - rescan.before.bytes + 20);
    }
}

async fn what_comes_and_goes_is_seen<S: Store>(admin: &Admin<Arc<S>>, other: &Arc<S>) {
    let user = "{aba}user";
    let scans = AtomicUsize::new(0);
    let count = async || {
        if scans.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok::<_, BoxError>(Amount::ZERO);
        }
        settle(&**other, HoldId::unique(), user, 9).await;
        // Somebody looks every second.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        settle(&**other, HoldId::unique(), user, -9).await;
        Ok(Amount::bytes(9))
    };
    let rescan = admin.rescan(user, count).await.unwrap();
    assert_eq!((rescan.is_certain, scans.into_inner()), (true, 2));
    assert_eq!(figures(&**other, user).await, (0, 0));
}

async fn two_rescans_do_not_correct_twice<S: Store>(admin: &Admin<Arc<S>>, other: &Arc<S>) {
    let user = "{two}user";
    let neighbour = Admin::new(Arc::clone(other));
    let found = async || Ok::<_, BoxError>(Amount::bytes(7));
    let count = async || {
        let second = neighbour.rescan(user, found).await.unwrap_err();
        assert!(matches!(second, RescanError::UnderWay), "{second:?}");
        found().await
    };
    admin.rescan(user, count).await.unwrap();
    assert_eq!(figures(&**other, user).await, (7, 0));

    // Who has lost the turn corrects nothing, as somebody else may have done it.
    let count = async || {
        for held in neighbour.holds(Some(turn(user)), 9).await? {
            neighbour.drop_hold(held.id).await?;
        }
        neighbour.rescan(user, found).await?;
        Ok::<_, BoxError>(Amount::bytes(9))
    };
    let lost = admin.rescan(user, count).await.unwrap_err();
    assert!(matches!(lost, RescanError::UnderWay), "{lost:?}");
    assert_eq!(figures(&**other, user).await, (7, 0));
    admin
        .rescan(user, found)
        .await
        .expect("nobody has the turn");
}
