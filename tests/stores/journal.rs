//! Charges survive a kill: at any step, during an outage of the store, and on a full disk.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tempfile::TempDir;
use test_support::{Dice, eventually, times};
use tower_storage_guard::{
    Amount, Scopes,
    quota::{Change, Limits, QuotaHold, QuotaSource},
    store::{Journal, LeasedQuota, SqliteStore, Store, StoredQuota},
};

use super::{
    figures,
    process::{Process, part, ready},
};

/// A folder with a quota in SQLite and its journal.
struct Folder(PathBuf);

impl Folder {
    fn database(&self) -> PathBuf {
        self.0.join("quota.db")
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(self.database()).unwrap()
    }

    fn journal(&self) -> Journal {
        Journal::open(self.0.join("journal")).unwrap()
    }

    fn quota(&self) -> StoredQuota<SqliteStore> {
        over(self.store(), self.journal())
    }

    /// Waits until the journal is closed, with everything written.
    async fn journal_again(&self) -> Journal {
        let began = Instant::now();
        loop {
            match Journal::open(self.0.join("journal")) {
                Ok(journal) => return journal,
                Err(error) => assert_eq!(error.kind(), ErrorKind::ResourceBusy),
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it is kept open");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn over<S: Store>(store: S, journal: Journal) -> StoredQuota<S> {
    StoredQuota::builder(store, Limits::bytes(100))
        .journal(journal)
        .time_to_live(Duration::from_secs(1))
        .build()
}

fn bytes(bytes: i64) -> Change {
    Change { bytes, objects: 0 }
}

/// Ends this process at once, as a kill does. Waiting for one would give the journal's thread time to go on.
fn is_killed() -> ! {
    ready();
    std::process::abort()
}

/// Waits until it is killed. Its tasks continue.
async fn go_on() {
    ready();
    std::future::pending().await
}

async fn all_is_journaled<S: Store>(quota: &StoredQuota<S>) {
    eventually("it is written", || quota.is_journaled()).await;
}

async fn all_is_settled<S: Store>(quota: &StoredQuota<S>) {
    eventually("it is settled", || quota.unsettled() == 0).await;
}

const NAMES: [&str; 2] = ["it's\n\"a\" na\0me", "Zoë/🦀"];

/// Stores 20 bytes, gives back 3, and stops at this step. Its runtime has one thread, so work that it does not await
/// does not run.
async fn stop_at(step: &str, folder: &Folder) {
    let quota = folder.quota();
    let scopes = Scopes::from(NAMES);
    let hold = quota
        .reserve(&scopes, Amount::bytes(80), Amount::ZERO)
        .await
        .unwrap();
    if step == "held" {
        is_killed();
    }
    let _lock = (step == "noted").then(|| lock(folder));
    let began = Instant::now();
    let charge = hold.commit(bytes(20));
    quota.charge(&scopes, Change::between(Amount::ZERO, Amount::bytes(3)));
    match step {
        "charged" => {}
        "noted" => {
            all_is_journaled(&quota).await;
            assert_eq!(quota.unsettled(), 2);
        }
        _ => {
            charge.await;
            while quota.unsettled() > 0 {
                tokio::task::yield_now().await;
            }
            // The journal writes a tenth of a second later that the store has them, and may have done so.
            if began.elapsed() > Duration::from_millis(80) {
                fs::write(folder.0.join(LATE), "").unwrap();
            }
        }
    }
    if step == "done" {
        drop(quota);
        drop(folder.journal_again().await);
    }
    is_killed();
}

/// The store is unreachable until this is dropped.
fn lock(folder: &Folder) -> Connection {
    let connection = Connection::open(folder.database()).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

/// What a process leaves that is killed at this step. On a busy machine it may come there too late: it is started again then.
fn killed_at(step: &str) -> (TempDir, Folder, StoredQuota<SqliteStore>) {
    for _ in 0..50 {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder(temporary.path().into());
        let child = Process::start(
            "journal::a_process_that_is_killed_at_any_step_charges_once",
            &format!("{step} {}", folder.0.display()),
        );
        child.kill();
        if step == "settled" && folder.0.join(LATE).exists() {
            continue;
        }
        let quota = folder.quota();
        // The journal's thread may have been faster than the kill.
        if step != "charged" || quota.unsettled() == 0 {
            return (temporary, folder, quota);
        }
    }
    panic!("the machine is too slow");
}

#[tokio::test]
async fn a_process_that_is_killed_at_any_step_charges_once() {
    if let Some(part) = part() {
        let (step, folder) = part.split_once(' ').unwrap();
        return stop_at(step, &Folder(folder.into())).await;
    }
    for (step, used, replayed) in [
        // The upload was not answered.
        ("held", 0, 0),
        ("charged", 0, 0),
        ("noted", 17, 2),
        ("settled", 17, 2),
        ("done", 17, 0),
    ] {
        let (_temporary, folder, quota) = killed_at(step);
        assert_eq!(quota.unsettled(), replayed, "{step}");
        all_is_settled(&quota).await;
        for name in NAMES {
            assert_eq!(figures(quota.store(), name).await.0, used, "{step}");
        }
        // Its holds are released with the charge, or expire.
        if replayed > 0 {
            assert_eq!(figures(quota.store(), NAMES[0]).await.1, 0, "{step}");
        }
        drop(quota);
        let quota = over(folder.store(), folder.journal_again().await);
        assert_eq!(quota.unsettled(), 0, "{step}");
        let began = Instant::now();
        while figures(quota.store(), NAMES[1]).await != (used, 0) {
            assert!(began.elapsed() < Duration::from_secs(2), "{step}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Left by a process that was late.
const LATE: &str = "late";
/// One byte per charge: the charges that were begun, and those that are in the journal or the store.
const BEGUN: &str = "begun";
const KEPT: &str = "kept";

fn count(folder: &Folder, what: &str) -> u64 {
    fs::metadata(folder.0.join(what)).map_or(0, |file| file.len())
}

fn append(folder: &Folder, what: &str) -> fs::File {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true);
    options.open(folder.0.join(what)).unwrap()
}

/// Thirty of them fill a segment, and no SQLite page has that much left.
fn long_name() -> String {
    "user".repeat(10_000)
}

/// Charges one byte after the other until it is killed.
async fn charge_on(folder: &Folder) {
    let (mut begun, mut kept) = (append(folder, BEGUN), append(folder, KEPT));
    let quota = folder.quota();
    ready();
    loop {
        begun.write_all(b".").unwrap();
        drop(quota.adjust(&*long_name(), bytes(1)));
        while !quota.is_journaled() {
            tokio::task::yield_now().await;
        }
        kept.write_all(b".").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_at_any_moment_charges_what_it_has_written() {
    if let Some(folder) = part() {
        return charge_on(&Folder(folder.into())).await;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder(temporary.path().into());
    let mut dice = Dice::new(11);
    let rounds = u64::from(times(8));
    for _ in 0..rounds {
        let enough = count(&folder, KEPT) + 1 + dice.roll(300);
        let child = Process::start(
            "journal::a_process_that_is_killed_at_any_moment_charges_what_it_has_written",
            folder.0.to_str().unwrap(),
        );
        eventually("it charges", || count(&folder, KEPT) >= enough).await;
        child.kill();
    }
    let quota = folder.quota();
    all_is_settled(&quota).await;
    let used = figures(quota.store(), &long_name()).await.0 as u64;
    let (begun, kept) = (count(&folder, BEGUN), count(&folder, KEPT));
    assert!((kept..=begun).contains(&used), "{kept} {used} {begun}");
    // One at a time.
    assert!(begun - kept <= rounds, "{kept} {begun}");
}

/// Uploads of one byte, several concurrently, from a leased budget.
async fn upload_on(folder: &Folder) {
    let quota = StoredQuota::builder(folder.store(), Limits::bytes(1 << 40))
        .journal(folder.journal())
        .build();
    let quota = LeasedQuota::new(quota);
    ready();
    for client in 0..4 {
        let (quota, begun, kept) = (quota.clone(), append(folder, BEGUN), append(folder, KEPT));
        tokio::spawn(async move {
            let (mut begun, mut kept) = (begun, kept);
            let scopes = Scopes::from(["user", if client < 2 { "tenant" } else { "other tenant" }]);
            loop {
                begun.write_all(b".").unwrap();
                let hold = quota.reserve(&scopes, Amount::bytes(4), Amount::ZERO).await;
                hold.unwrap().commit(bytes(1)).await;
                // It is answered.
                kept.write_all(b".").unwrap();
            }
        });
    }
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_leases_and_is_killed_loses_no_charge_of_an_answer() {
    if let Some(folder) = part() {
        return upload_on(&Folder(folder.into())).await;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder(temporary.path().into());
    let mut dice = Dice::new(12);
    let rounds = u64::from(times(8));
    for _ in 0..rounds {
        // Around the moments at which it renews its leases.
        let enough = count(&folder, KEPT) + 1 + dice.roll(20_000);
        let child = Process::start(
            "journal::a_process_that_leases_and_is_killed_loses_no_charge_of_an_answer",
            folder.0.to_str().unwrap(),
        );
        eventually("it stores", || count(&folder, KEPT) >= enough).await;
        child.kill();
    }
    let quota = folder.quota();
    all_is_settled(&quota).await;
    let used = figures(quota.store(), "user").await.0 as u64;
    let (begun, kept) = (count(&folder, BEGUN), count(&folder, KEPT));
    assert!((kept..=begun).contains(&used), "{kept} {used} {begun}");
    // Four at a time.
    assert!(begun - kept <= 4 * rounds, "{kept} {begun}");
    let tenants =
        figures(quota.store(), "tenant").await.0 + figures(quota.store(), "other tenant").await.0;
    assert!(
        (kept..=begun).contains(&(tenants as u64)),
        "{kept} {tenants} {begun}"
    );
}

#[tokio::test]
async fn it_is_open_until_all_clones_are_gone_and_all_is_settled() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder(temporary.path().into());
    let is_open = || {
        let again = Journal::open(folder.0.join("journal"));
        matches!(again, Err(error) if error.kind() == ErrorKind::ResourceBusy)
    };
    let quota = folder.quota();
    let clone = quota.clone();
    drop(quota);
    let lock = lock(&folder);
    let charge = clone.adjust("user", bytes(5));
    all_is_journaled(&clone).await;
    drop(clone);
    // The task is stuck with the charge.
    let settled = tokio::time::timeout(Duration::from_millis(200), charge).await;
    assert!(settled.is_err() && is_open());
    drop(lock);
    let quota = over(folder.store(), folder.journal_again().await);
    assert_eq!(quota.unsettled(), 0);
    assert_eq!(figures(quota.store(), "user").await, (5, 0));
}

#[test]
fn it_says_what_is_wrong() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [&file, &file.join("below")] {
        let error = Journal::open(path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

/// The store is killed, requests are charged, the process is killed, both restart.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs postgresql"]
async fn charges_outlive_their_process_while_postgresql_is_away() {
    use test_support::postgres::{Server, pool};
    use tower_storage_guard::store::PostgresStore;

    const DOWN: &str = "down";
    if let Some(part) = part() {
        let (port, folder) = part.split_once(' ').unwrap();
        let folder = Folder(folder.into());
        let store = PostgresStore::new(pool(port.parse().unwrap()));
        let quota = StoredQuota::builder(store, Limits::bytes(100))
            .journal(folder.journal())
            .build();
        let user = Scopes::from("user");
        let mut holds = Vec::new();
        for _ in 0..3 {
            let hold = quota.reserve(&user, Amount::bytes(20), Amount::ZERO).await;
            holds.push(hold.unwrap());
        }
        let charged = holds.pop().unwrap();
        charged.commit(bytes(20)).await;
        ready();
        eventually("it is killed", || folder.0.join(DOWN).exists()).await;
        for hold in holds {
            drop(hold.commit(bytes(7)));
        }
        for _ in 0..100 {
            drop(quota.adjust(["user", "tenant"], bytes(2)));
        }
        all_is_journaled(&quota).await;
        assert_eq!(quota.unsettled(), 102);
        fs::write(folder.0.join(KEPT), "").unwrap();
        return std::future::pending().await;
    }
    let temporary = tempfile::tempdir().unwrap();
    let (folder, mut server) = (Folder(temporary.path().into()), Server::new());
    let child = Process::start(
        "journal::charges_outlive_their_process_while_postgresql_is_away",
        &format!("{} {}", server.port(), folder.0.display()),
    );
    assert_eq!(figures(&server.store(), "user").await, (20, 40));
    server.kill();
    fs::write(folder.0.join(DOWN), "").unwrap();
    eventually("it is kept", || folder.0.join(KEPT).exists()).await;
    child.kill();
    // It starts before its store does.
    let quota = over(server.store(), folder.journal());
    assert_eq!(quota.unsettled(), 102);
    server.start();
    all_is_settled(&quota).await;
    assert_eq!(figures(quota.store(), "user").await, (234, 0));
    assert_eq!(figures(quota.store(), "tenant").await, (200, 0));
}

/// The store is away when the requests are admitted, and knows of them once it is back.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs postgresql"]
async fn what_an_outage_of_postgresql_admits_is_charged_when_it_is_back() {
    use test_support::postgres::Server;
    use tower_storage_guard::{Demand, Guard, Outage};

    let temporary = tempfile::tempdir().unwrap();
    let (folder, mut server) = (Folder(temporary.path().into()), Server::new());
    let stored = over(server.store(), folder.journal());
    // The store has been reached before.
    stored.usage("user").await.unwrap();
    let guard = |admits| {
        let guard = Guard::quota_only(stored.clone());
        guard
            .quota_timeout(Duration::from_millis(300))
            .quota_outage(admits)
    };
    server.kill();
    let refused = guard(Outage::Refuse)
        .reserve("user", Demand::known(60))
        .await;
    assert!(refused.is_err());
    let leased = LeasedQuota::new(stored.clone());
    let by_lease = Guard::quota_only(leased).quota_timeout(Duration::from_millis(300));
    for demand in [Demand::known(60), Demand::known(70)] {
        let job = guard(Outage::Admit)
            .reserve(["user", "tenant"], demand)
            .await;
        job.unwrap().commit().await;
        let by_lease = by_lease.clone().quota_outage(Outage::Admit);
        let job = by_lease.reserve("leased", demand).await;
        job.unwrap().commit().await;
    }
    // One that is released is not charged.
    drop(
        guard(Outage::Admit)
            .reserve("user", Demand::known(5))
            .await
            .unwrap(),
    );
    all_is_journaled(&stored).await;
    server.start();
    all_is_settled(&stored).await;
    for scope in ["user", "tenant", "leased"] {
        assert_eq!(figures(stored.store(), scope).await, (130, 0), "{scope}");
    }
    let refused = guard(Outage::Refuse)
        .reserve("user", Demand::known(1))
        .await;
    assert_eq!(refused.unwrap_err().reason().as_str(), "quota_exceeded");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_disk_that_is_full_takes_charges() {
    use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

    async fn charge(folder: &Folder, change: i64) {
        let quota = folder.quota();
        drop(quota.adjust(&*long_name(), bytes(change)));
        for _ in 0..100 {
            drop(quota.adjust("user", bytes(1)));
        }
        all_is_journaled(&quota).await;
        assert!(quota.unsettled() > 0);
        go_on().await;
    }

    with_own_mounts(|| {
        in_runtime(async {
            if let Some(part) = part() {
                let (change, folder) = part.split_once(' ').unwrap();
                return charge(&Folder(folder.into()), change.parse().unwrap()).await;
            }
            let temporary = tempfile::tempdir().unwrap();
            let folder = Folder(tmpfs(&temporary.path().join("disk"), "size=6m"));
            drop(folder.journal());
            let store = Arc::new(folder.store());
            fill_but(&folder.0, 0);
            // The store has room of its own.
            super::sqlite::use_up(&store).await;
            for change in [7, 80, 900] {
                let child = Process::start(
                    "journal::a_disk_that_is_full_takes_charges",
                    &format!("{change} {}", folder.0.display()),
                );
                child.kill();
                assert_eq!(figures(&*store, &long_name()).await, (0, 0));
            }
            fs::remove_file(folder.0.join("filler")).unwrap();
            let quota = over(Arc::clone(&store), folder.journal());
            all_is_settled(&quota).await;
            assert_eq!(figures(&*store, &long_name()).await, (987, 0));
            assert_eq!(figures(&*store, "user").await, (300, 0));
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn charges_without_room_are_written_once_there_is_room() {
    use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

    async fn charge(folder: &Folder) {
        let quota = folder.quota();
        let _lock = lock(folder);
        drop(quota.adjust("user", bytes(100)));
        all_is_journaled(&quota).await;
        fill_but(&folder.0, 0);
        // Larger than a segment.
        for _ in 0..60 {
            drop(quota.adjust(&*long_name(), bytes(1)));
        }
        eventually("it is found out", || !quota.is_journaled()).await;
        // It stays so while there is no room.
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(quota.adjust("user", bytes(1_000)));
        assert!(!quota.is_journaled());
        fs::remove_file(folder.0.join("filler")).unwrap();
        all_is_journaled(&quota).await;
        assert_eq!(quota.unsettled(), 62);
        go_on().await;
    }

    with_own_mounts(|| {
        in_runtime(async {
            if let Some(folder) = part() {
                return charge(&Folder(folder.into())).await;
            }
            let temporary = tempfile::tempdir().unwrap();
            let folder = Folder(tmpfs(&temporary.path().join("disk"), "size=10m"));
            let store = folder.store();
            let child = Process::start(
                "journal::charges_without_room_are_written_once_there_is_room",
                folder.0.to_str().unwrap(),
            );
            child.kill();
            let quota = over(store, folder.journal());
            all_is_settled(&quota).await;
            assert_eq!(figures(quota.store(), &long_name()).await, (60, 0));
            assert_eq!(figures(quota.store(), "user").await, (1_100, 0));
        });
    });
}

/// Only the journal's own files are touched.
#[test]
fn other_files_of_the_directory_are_left_alone() {
    let folder = TempDir::new().unwrap();
    let other: &Path = &folder.path().join("other");
    fs::write(other, "content").unwrap();
    drop(Journal::open(folder.path()).unwrap());
    assert_eq!(fs::read_to_string(other).unwrap(), "content");
}
