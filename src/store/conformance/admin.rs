//! What an [`Admin`] promises, on any store.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;
use tower::BoxError;

use super::{
    super::{Account, Admin, HoldId, Rescan, RescanError},
    check::{AnyStore, Handle, bytes, change, figures, join, reserve},
};
use crate::{
    amount::Amount,
    quota::{Change, Limits},
    scope::{Scope, Scopes},
};

/// An admin on one handle, and requests on the other.
pub(super) async fn rules([one, two]: [Handle; 2]) {
    let admin = Admin::new(Arc::clone(&one.store));
    shows_and_sets(&admin, &one).await;
    adds_beside_others(&admin, &two).await;
    drops_a_hold(&admin, &two).await;
    rescans_at_rest(&admin, &one).await;
    repeats_a_disturbed_scan(&admin, &two).await;
    leaves_a_right_account(&admin, &two).await;
    heals_a_wrong_account(&admin, &two).await;
    sees_what_comes_and_goes(&admin, &two).await;
    rescans_one_at_a_time(&admin, &two).await;
}

async fn shows_and_sets(admin: &Admin<AnyStore>, one: &Handle) {
    let user = "{admin}user";
    let expect = async |what, expected: Account| {
        let found = one.done("account", admin.account(user).await);
        one.expect(what, found, expected);
    };
    expect("an account that is unknown", Account::default()).await;
    let limits = Limits::bytes(9 << 50).objects(3).soft_bytes(7);
    let limits = limits.grace(Duration::from_secs(7 * 24 * 60 * 60));
    one.done("set_limits", admin.set_limits(user, limits).await);
    let used = Amount::new(8 << 50, 2);
    one.done("set_used", admin.set_used(user, used).await);
    let expected = Account::new(used.into(), Amount::ZERO).with_own(Some(limits));
    expect("an account that was set", expected).await;
    let largest = one.done("largest", admin.largest(1).await);
    one.expect(
        "the largest scope",
        largest,
        vec![(Scope::from(user), expected)],
    );
    one.done("set_limits", admin.clear_limits(user).await);
    expect("cleared limits", expected.with_own(None)).await;
    one.done("set_limits", admin.set_limits(user, limits).await);
    one.done("remove", admin.remove(user).await);
    expect("an account that was removed", Account::default()).await;
    let amount = Amount::new(3, 1);
    one.done("settle", admin.subtract(user, amount).await);
    let unmatched = Account {
        unmatched: amount,
        ..Account::default()
    };
    expect("the account after a subtraction from nothing", unmatched).await;
    one.done("settle", admin.add(user, amount).await);
    let used = Account {
        used: amount.into(),
        ..unmatched
    };
    expect("the account after adding the same", used).await;
    one.done("settle", admin.subtract(user, amount).await);
    one.done("remove", admin.remove(user).await);
    expect("an account that was removed again", Account::default()).await;
}

async fn adds_beside_others(admin: &Admin<AnyStore>, two: &Handle) {
    let user = "{beside}user";
    let before = Amount::new(1_000, 20);
    two.done("set_used", admin.set_used(user, before).await);
    let tasks = (0..48).map(|number| {
        let (admin, two) = (admin.clone(), two.clone());
        tokio::spawn(async move {
            match number % 3 {
                0 => two.done("settle", admin.add(user, Amount::new(100, 1)).await),
                1 => two.done("settle", admin.subtract(user, Amount::new(10, 1)).await),
                _ => two.settle(HoldId::unique(), user, 1).await,
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        join(task).await;
    }
    let account = two.done("account", admin.account(user).await);
    let expected = change(1_000 + 16 * (100 - 10 + 1), 20);
    two.expect("usage after concurrent changes", account.used, expected);
}

/// A release is not remembered, so what comes of the hold later counts.
async fn drops_a_hold(admin: &Admin<AnyStore>, two: &Handle) {
    let (user, tenant) = ("{drop}user", "{drop}tenant");
    let both = || Scopes::from([user, tenant]);
    let drop_hold = async |id| two.done("holds", admin.drop_hold(id).await);
    let drop_nothing = async |what, id| two.expect(what, drop_hold(id).await, Vec::new());
    drop_nothing("an unknown hold that is dropped", HoldId::unique()).await;
    let id = two.hold(both(), 60, 100).await;
    let bystander = two.hold(both(), 40, 100).await;
    let mut dropped = drop_hold(id).await;
    dropped.sort_by(|a, b| a.scope.cmp(&b.scope));
    let expected = vec![(id, tenant, 60), (id, user, 60)];
    two.expect("a hold that is dropped", figures(&dropped), expected);
    two.expect_figures("after the drop", user, (0, 40)).await;
    drop_nothing("a hold that is dropped again", id).await;

    // Its room is free, and its request lives on.
    let next = two.hold(both(), 50, 100).await;
    two.renew(id, both()).await;
    two.expect_figures("after the dropped hold was renewed", user, (0, 90))
        .await;
    two.admit("growth of a dropped hold", &reserve(id, both(), 10, 100))
        .await;
    two.refuse("growth beyond the limit", &reserve(id, both(), 1, 100))
        .await;
    two.expect_figures("after a dropped hold has grown", tenant, (0, 100))
        .await;
    let entries = drop_hold(id).await.len();
    two.expect("the entries of a hold that grew after its drop", entries, 2);
    for _ in 0..2 {
        two.settle(id, both(), 70).await;
        for scope in [user, tenant] {
            two.expect_figures("after a dropped hold was charged", scope, (70, 90))
                .await;
        }
    }
    // A charge is remembered, and a drop does not undo that.
    drop_nothing("a charged hold that is dropped", id).await;
    two.settle(id, both(), 70).await;
    two.expect_figures("after it was charged again", user, (70, 90))
        .await;
    for id in [bystander, next] {
        two.settle(id, both(), 0).await;
    }
}

async fn rescans_at_rest(admin: &Admin<AnyStore>, one: &Handle) {
    let user = "{rest}user";
    for (used, counted) in [(0, 7), (7, 7), (9, 7), (7, 0)] {
        let set = admin.set_used(user, Amount::new(used, used)).await;
        one.done("set_used", set);
        let found = Amount::new(counted, 2 * counted);
        let rescan = admin.rescan(user, async || Ok::<_, BoxError>(found)).await;
        let rescan = one.done("rescan", rescan);
        let (before, after) = (used as i64, counted as i64);
        let expected = Rescan {
            before: change(before, before),
            counted: found,
            corrected: change(after - before, 2 * after - before),
            is_certain: true,
        };
        one.expect("a rescan at rest", rescan, expected);
        let used = one.done("account", admin.account(user).await).used;
        one.expect("usage after it", used, found.into());
    }
    // A count that fails corrects nothing.
    let failed = admin.rescan(user, async || Err(io::Error::other("no such folder")));
    let failed = failed.await;
    one.expect_that(
        matches!(failed, Err(RescanError::Count(_))),
        format!("a count that fails leads to {failed:?}"),
    );
    let account = one.done("account", admin.account(user).await);
    one.expect("the account after it", account, Account::default());
    let locks = one.done("holds", admin.holds(Some(lock(user)), 9).await);
    one.expect("the locks after it", locks, Vec::new());
}

/// The scope whose hold is the lock of a rescan.
fn lock(scope: &str) -> Scope {
    Scope::from(format_args!("storage-guard:rescan:{scope}"))
}

async fn repeats_a_disturbed_scan(admin: &Admin<AnyStore>, two: &Handle) {
    let user = "{repeat}user";
    let set = admin.set_used(user, Amount::bytes(1_000)).await;
    two.done("set_used", set);
    let scans = AtomicUsize::new(0);
    let count = async || {
        if scans.fetch_add(1, Ordering::Relaxed) == 0 {
            two.settle(HoldId::unique(), user, 5).await;
        }
        Ok::<_, BoxError>(Amount::bytes(305))
    };
    let rescan = two.done("rescan", admin.rescan(user, count).await);
    let expected = Rescan {
        before: bytes(1_005),
        counted: Amount::bytes(305),
        corrected: bytes(-700),
        is_certain: true,
    };
    two.expect("a rescan whose first scan was disturbed", rescan, expected);
    two.expect("the number of its scans", scans.into_inner(), 2);
    two.expect_figures("after the rescan", user, (305, 0)).await;
}

/// What a scan sees of uploads that come and go varies. A right account must not suffer from it.
async fn leaves_a_right_account(admin: &Admin<AnyStore>, two: &Handle) {
    let user = "{load}user";
    let set = admin.set_used(user, Amount::bytes(100)).await;
    two.done("set_used", set);
    for (moved, seen) in [(10, 0), (10, 10), (10, 3), (-10, 0), (-10, -10)] {
        let scans = AtomicUsize::new(0);
        let count = async || {
            scans.fetch_add(1, Ordering::Relaxed);
            let (before, _) = two.figures(user).await;
            two.settle(HoldId::unique(), user, moved).await;
            Ok::<_, BoxError>(Amount::bytes((before + seen) as u64))
        };
        let rescan = two.done("rescan", admin.rescan(user, count).await);
        let found = (rescan.is_certain, rescan.corrected, scans.into_inner());
        let expected = (false, Change::ZERO, 3);
        two.expect(
            "a rescan under load (certain, corrected, scans)",
            found,
            expected,
        );
    }
    two.expect_figures("after rescans under load", user, (100 + 3 * 10, 0))
        .await;

    // An upload that is there in part, and is charged right after the scan.
    let id = two.hold(user, 50, u64::MAX).await;
    let count = async || Ok::<_, BoxError>(Amount::bytes(130 + 20));
    let rescan = two.done("rescan", admin.rescan(user, count).await);
    let (found, expected) = ((rescan.is_certain, rescan.corrected), (false, Change::ZERO));
    two.expect(
        "a rescan during an upload (certain, corrected)",
        found,
        expected,
    );
    two.settle(id, user, 50).await;
    two.expect_figures("after the upload", user, (180, 0)).await;
}

async fn heals_a_wrong_account(admin: &Admin<AnyStore>, two: &Handle) {
    let user = "{heals}user";
    for (used, seen) in [(0_i64, 0), (0, 10), (5_000, 0), (5_000, 10)] {
        let set = admin.set_used(user, Amount::bytes(used as u64)).await;
        two.done("set_used", set);
        let stored = AtomicUsize::new(1_000);
        let count = async || {
            let before = stored.fetch_add(10, Ordering::Relaxed);
            two.settle(HoldId::unique(), user, 10).await;
            Ok::<_, BoxError>(Amount::bytes(before as u64 + seen))
        };
        let rescan = two.done("rescan", admin.rescan(user, count).await);
        two.expect_that(!rescan.is_certain, "a rescan under load is certain");
        // Not less than there is, and not more than what has come during one scan above it.
        let (used, stored) = (two.figures(user).await.0, stored.into_inner() as i64);
        let expected = (1_030, 1_030 + seen as i64);
        two.expect("bytes stored and used after it", (stored, used), expected);
        let expected = used - 30 - rescan.before.bytes + 20;
        two.expect("its correction", rescan.corrected.bytes, expected);
    }
}

async fn sees_what_comes_and_goes(admin: &Admin<AnyStore>, two: &Handle) {
    let user = "{aba}user";
    let scans = AtomicUsize::new(0);
    let count = async || {
        if scans.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok::<_, BoxError>(Amount::ZERO);
        }
        two.settle(HoldId::unique(), user, 9).await;
        // The scope is checked every second.
        sleep(Duration::from_millis(1_500)).await;
        two.settle(HoldId::unique(), user, -9).await;
        Ok(Amount::bytes(9))
    };
    let rescan = two.done("rescan", admin.rescan(user, count).await);
    let found = (rescan.is_certain, scans.into_inner());
    two.expect(
        "a rescan over a rise and a fall (certain, scans)",
        found,
        (true, 2),
    );
    two.expect_figures("after it", user, (0, 0)).await;
}

async fn rescans_one_at_a_time(admin: &Admin<AnyStore>, two: &Handle) {
    let user = "{two}user";
    let neighbour = Admin::new(Arc::clone(&two.store));
    let found = async || Ok::<_, BoxError>(Amount::bytes(7));
    let count = async || {
        let second = neighbour.rescan(user, found).await;
        two.expect_that(
            matches!(second, Err(RescanError::UnderWay)),
            format!("a second rescan of the same scope leads to {second:?}"),
        );
        found().await
    };
    two.done("rescan", admin.rescan(user, count).await);
    two.expect_figures("after two rescans", user, (7, 0)).await;

    // A rescan that has lost its lock corrects nothing, as another may have done so.
    let count = async || {
        for held in neighbour.holds(Some(lock(user)), 9).await? {
            neighbour.drop_hold(held.id).await?;
        }
        neighbour.rescan(user, found).await?;
        Ok::<_, BoxError>(Amount::bytes(9))
    };
    let lost = admin.rescan(user, count).await;
    two.expect_that(
        matches!(lost, Err(RescanError::UnderWay)),
        format!("a rescan that has lost its lock leads to {lost:?}"),
    );
    two.expect_figures("after a rescan that has lost its lock", user, (7, 0))
        .await;
    // The lock is free.
    two.done("rescan", admin.rescan(user, found).await);
}
