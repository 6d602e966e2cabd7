//! Quotas in an SQLite file, by several handles and several processes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tempfile::TempDir;
use tower_storage_guard::{
    Amount, Scopes,
    quota::QuotaError,
    store::{HoldId, Settlement, SqliteStore, Store, conformance},
};

use super::{
    an_emptied_store_is_an_outage, figures, hold,
    process::{Process, part, ready},
    reserve, settle, sql,
};

/// A file that is removed at the end.
struct File(TempDir);

impl File {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("quota.db")
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(self.path()).unwrap()
    }

    /// Opens it like any other program.
    fn raw(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    fn rows(&self, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        self.raw().query_row(&count, [], |row| row.get(0)).unwrap()
    }

    /// The file, its log, and the index of that.
    fn delete(&self) {
        for end in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{end}", self.path().display()));
        }
    }
}

#[tokio::test]
async fn it_conforms() {
    let file = File::new();
    let (one, other) = (Arc::new(file.open()), Arc::new(file.open()));
    conformance::run(one.clone(), other).await;
    sql::no_name_is_too_odd(&*one).await;
    sql::nothing_wraps(&*one).await;
    sql::an_id_counts_once_in_one_step(&*one).await;
}

#[tokio::test]
async fn figures_outlive_the_process() {
    let file = File::new();
    settle(&file.open(), HoldId::unique(), "user", 7).await;
    assert_eq!(figures(&file.open(), "user").await, (7, 0));
}

#[tokio::test]
async fn a_settlement_is_remembered_for_a_day_and_a_release_is_not() {
    let file = File::new();
    let store = file.open();
    for bytes in [1, 2, 3] {
        settle(&store, HoldId::unique(), "user", bytes).await;
    }
    let id = hold(&store, "user", 5, 100).await.unwrap();
    settle(&store, id, "user", 0).await;
    assert_eq!((file.rows("settled"), file.rows("holds")), (3, 0));
    file.raw()
        .execute("UPDATE settled SET settled = settled - 86400000", [])
        .unwrap();
    settle(&store, HoldId::unique(), "user", -6).await;
    assert_eq!((file.rows("settled"), file.rows("accounts")), (1, 0));
}

#[tokio::test]
async fn no_more_than_a_million_settlements_are_remembered() {
    const MOST: i64 = 1_000_000;
    let file = File::new();
    let store = file.open();
    settle(&store, HoldId::unique(), "user", 1).await;
    file.raw()
        .execute(
            "INSERT INTO settled (id, settled)
            WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < ?1)
            SELECT 'id' || n, (SELECT settled FROM settled) FROM counted",
            [MOST + 299],
        )
        .unwrap();
    let last = HoldId::unique();
    for rows in [MOST + 173, MOST + 46, MOST, MOST] {
        settle(&store, HoldId::unique(), "user", 1).await;
        assert_eq!(file.rows("settled"), rows);
    }
    settle(&store, last, "user", 1).await;
    settle(&store, last, "user", 1).await;
    assert_eq!(figures(&store, "user").await, (6, 0));
}

#[tokio::test]
async fn a_process_that_is_killed_frees_its_holds_and_loses_no_charge() {
    const LIVES: Duration = Duration::from_secs(2);
    if let Some(part) = part() {
        // The child: it holds, charges, and is killed before it receives the answer.
        let (path, id) = part.split_once(' ').unwrap();
        let (id, store) = (id.parse().unwrap(), SqliteStore::open(path).unwrap());
        let held = reserve(HoldId::unique(), "user", 80, 100).with_time_to_live(LIVES);
        store.reserve(&held).await.unwrap();
        ready();
        loop {
            settle(&store, id, "user", 20).await;
        }
    }
    let (file, id) = (File::new(), HoldId::unique());
    let (store, start) = (file.open(), Instant::now());
    let child = Process::start(
        "sqlite::a_process_that_is_killed_frees_its_holds_and_loses_no_charge",
        &format!("{} {id}", file.path().display()),
    );
    child.kill();
    assert_eq!(figures(&store, "user").await.1, 80);
    // Whether the charge arrived or not, it counts once.
    settle(&store, id, "user", 20).await;
    let began = Instant::now();
    while figures(&store, "user").await != (20, 0) {
        assert!(began.elapsed() < LIVES, "{:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The clock is set forward and back by two hours, while a process holds something and after it was killed.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs faketime"]
async fn a_clock_that_is_set_neither_frees_nor_keeps_a_hold() {
    use std::process::Command;

    use test_support::{eventually, running::by_clock_of};
    use tower_storage_guard::{
        Amount,
        quota::{Limits, QuotaSource},
        store::StoredQuota,
    };

    const LIVES: Duration = Duration::from_secs(3);
    const NAME: &str = "sqlite::a_clock_that_is_set_neither_frees_nor_keeps_a_hold";
    if let Some(part) = part() {
        let (bytes, path) = part.split_once(' ').unwrap();
        let store = SqliteStore::open(path).unwrap();
        let quota = StoredQuota::builder(store, Limits::bytes(100))
            .time_to_live(LIVES)
            .build();
        let bytes = Amount::bytes(bytes.parse().unwrap());
        let answer = quota.reserve(&"user".into(), bytes, Amount::ZERO).await;
        fs::write(format!("{path}.{}", answer.is_ok()), "").unwrap();
        ready();
        // It is renewed until this is killed.
        return std::future::pending().await;
    }
    let file = File::new();
    let clock = file.0.path().join("clock");
    let set = |clock_says: &str| fs::write(&clock, clock_says).unwrap();
    let start = |bytes: u64| {
        let mut program = Command::new(std::env::current_exe().unwrap());
        by_clock_of(&mut program, &clock);
        Process::start_with(program, NAME, &format!("{bytes} {}", file.path().display()))
    };
    let answered = |is_admitted: bool| {
        let answer = format!("{}.{is_admitted}", file.path().display());
        fs::remove_file(answer).is_ok()
    };
    let ahead = || {
        let ahead = file
            .raw()
            .query_row("SELECT ahead FROM clock", [], |row| row.get(0));
        ahead.unwrap_or(0i64)
    };
    set("+0");
    let holder = start(80);
    assert!(answered(true));
    for (clock, hours) in [("+7200", 2), ("+0", 0), ("-7200", -2)] {
        set(clock);
        // Its next renewal notices.
        let is_noticed = || (ahead() - hours * 3_600_000).abs() < 60_000;
        eventually("the clock was noticed", is_noticed).await;
        drop(start(30));
        assert!(answered(false), "{clock}: more than the limit");
    }
    holder.kill();
    let killed = Instant::now();
    while let another = start(100)
        && !answered(true)
    {
        assert!(answered(false));
        drop(another);
        assert!(killed.elapsed() < LIVES * 2, "the hold lives on");
    }
    assert!(killed.elapsed() > LIVES / 2, "{:?}", killed.elapsed());
}

#[tokio::test]
async fn processes_that_race_never_pass_the_limit() {
    const LIMIT: u64 = 300;
    let race = async |path: &Path| {
        let store = SqliteStore::open(path).unwrap();
        for _ in 0..200 {
            match hold(&store, ["user", "tenant"], 1, LIMIT).await {
                Ok(id) => settle(&store, id, ["tenant", "user"], 1).await,
                Err(QuotaError::Exceeded(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    if let Some(path) = part() {
        ready();
        return race(path.as_ref()).await;
    }
    let file = File::new();
    let others = [1, 2].map(|_| {
        Process::start(
            "sqlite::processes_that_race_never_pass_the_limit",
            file.path().to_str().unwrap(),
        )
    });
    race(&file.path()).await;
    others.into_iter().for_each(Process::ends);
    let store = file.open();
    assert_eq!(figures(&store, "user").await, (LIMIT as i64, 0));
    assert_eq!(figures(&store, "tenant").await, (LIMIT as i64, 0));
}

#[tokio::test]
async fn a_process_that_stops_with_the_lock_delays_others_only_briefly() {
    if let Some(path) = part() {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        ready();
        return std::thread::sleep(Duration::from_secs(60));
    }
    let file = File::new();
    let store = file.open();
    settle(&store, HoldId::unique(), "user", 7).await;
    let child = Process::start(
        "sqlite::a_process_that_stops_with_the_lock_delays_others_only_briefly",
        file.path().to_str().unwrap(),
    );
    child.stop();
    // All wait concurrently, without blocking the runtime's only thread. The first may be cancelled.
    let brief = Duration::from_millis(100);
    let gone = tokio::time::timeout(brief, hold(&store, "user", 50, 100)).await;
    assert!(gone.is_err());
    tokio::join!(
        sql::is_away(&store),
        sql::is_away(&store),
        sql::is_away(&store)
    );
    child.kill();
    sql::recovers(&store, "user", Duration::from_secs(5)).await;
    assert_eq!(figures(&store, "user").await, (7, 0));
}

#[tokio::test]
async fn a_deleted_file_is_created_again() {
    let file = File::new();
    let (one, other) = (file.open(), file.open());
    settle(&one, HoldId::unique(), "user", 7).await;
    settle(&other, HoldId::unique(), "user", 7).await;
    file.delete();
    assert_eq!(figures(&one, "user").await, (0, 0));
    // Both have the same new one.
    settle(&other, HoldId::unique(), "user", 5).await;
    assert_eq!(figures(&one, "user").await, (5, 0));
    // Without deleting its log as well.
    fs::remove_file(file.path()).unwrap();
    settle(&other, HoldId::unique(), "user", 3).await;
    assert_eq!(figures(&one, "user").await, (3, 0));
}

#[tokio::test]
async fn an_emptied_file_is_an_outage_until_it_is_counted() {
    for empty in ["", "DELETE FROM accounts", "DROP TABLE accounts"] {
        let file = File::new();
        an_emptied_store_is_an_outage(file.open(), async || match empty {
            "" => file.delete(),
            sql => file.raw().execute_batch(sql).unwrap(),
        })
        .await;
    }
}

#[tokio::test]
async fn dropped_tables_are_created_again() {
    let file = File::new();
    let store = file.open();
    settle(&store, HoldId::unique(), "user", 7).await;
    for table in ["holds", "settled", "accounts"] {
        let drop = format!("DROP TABLE {table}");
        file.raw().execute_batch(&drop).unwrap();
        let id = hold(&store, "user", 5, 100).await.expect(table);
        settle(&store, id, "user", 0).await;
    }
    assert_eq!(figures(&store, "user").await, (0, 0));
}

#[tokio::test]
async fn a_broken_or_unreachable_file_is_an_outage_and_recovers() {
    let file = File::new();
    let store = file.open();
    settle(&store, HoldId::unique(), "user", 7).await;
    file.delete();
    fs::write(file.path(), "no database at all ".repeat(1_000)).unwrap();
    sql::is_away(&store).await;
    assert!(SqliteStore::open(file.path()).is_err());
    file.delete();
    sql::recovers(&store, "user", Duration::ZERO).await;

    let folder = file.0.path();
    let away = folder.with_extension("away");
    fs::rename(folder, &away).unwrap();
    sql::is_away(&store).await;
    fs::rename(&away, folder).unwrap();
    sql::recovers(&store, "user", Duration::ZERO).await;
}

#[tokio::test]
async fn a_file_of_another_version_is_left_alone() {
    let file = File::new();
    drop(file.open());
    for version in [1, 4] {
        file.raw()
            .pragma_update(None, "user_version", version)
            .unwrap();
        let error = SqliteStore::open(file.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("version {version}")), "{error}");
    }
}

/// As it was before there were soft limits with a grace.
#[tokio::test]
async fn a_file_of_the_version_before_is_kept() {
    let file = File::new();
    settle(&file.open(), HoldId::unique(), "user", 7).await;
    let before = "ALTER TABLE accounts DROP COLUMN grace;
        ALTER TABLE accounts DROP COLUMN over_bytes;
        ALTER TABLE accounts DROP COLUMN over_objects;
        PRAGMA user_version = 2";
    file.raw().execute_batch(before).unwrap();
    let store = file.open();
    assert_eq!(figures(&store, "user").await, (7, 0));
    sql::a_grace_is_kept(&store).await;
    drop(store);
    sql::a_grace_is_kept(&file.open()).await;
}

#[tokio::test]
async fn a_tool_does_not_create_the_file_that_it_inspects() {
    let file = File::new();
    let refused = |path: &Path| SqliteStore::open_existing(path).unwrap_err().to_string();
    refused(&file.path());
    assert!(!file.path().exists());
    assert!(refused(file.0.path()).contains("no file"));
    fs::write(file.path(), "").unwrap();
    assert!(refused(&file.path()).contains("no quotas"));
    // A file of another program, which also has a version number.
    file.raw()
        .execute_batch("CREATE TABLE accounts (id); PRAGMA user_version = 1")
        .unwrap();
    assert!(refused(&file.path()).contains("no quotas"));
    assert_eq!(file.rows("sqlite_master"), 1);
    file.delete();
    fs::write(file.path(), "no database at all ".repeat(1_000)).unwrap();
    refused(&file.path());
    file.delete();

    let service = file.open();
    settle(&service, HoldId::unique(), "user", 7).await;
    let tool = SqliteStore::open_existing(file.path()).unwrap();
    assert_eq!(figures(&tool, "user").await, (7, 0));
    settle(&tool, HoldId::unique(), "user", 1).await;
    assert_eq!(figures(&service, "user").await, (8, 0));
}

#[tokio::test]
async fn many_open_a_new_file_at_the_same_time() {
    let file = File::new();
    let path = file.path();
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || SqliteStore::open(path).unwrap())
        })
        .collect();
    for thread in threads {
        let store = thread.join().unwrap();
        settle(&store, HoldId::unique(), "user", 1).await;
    }
    assert_eq!(figures(&file.open(), "user").await, (16, 0));
}

/// Charges new scopes until the store has no room for one more on its full disk: with long names, and then with shorter ones.
#[cfg(target_os = "linux")]
pub(crate) async fn use_up(store: &SqliteStore) {
    for times in [10_000, 1_000, 100, 10, 1] {
        let mut number = 0;
        loop {
            let scope = Scopes::from(format!("{number}-{}", "long".repeat(times)));
            let change = Amount::bytes(1).into();
            let settlement = Settlement::new(HoldId::unique(), scope.clone(), change);
            let charged = store.settle(&[settlement]).await.is_ok();
            let held = store
                .reserve(&reserve(HoldId::unique(), scope, 1, 1))
                .await
                .is_ok();
            if !charged && !held {
                break;
            }
            number += 1;
            assert!(number < 20_000, "the disk is not full");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk_is_an_outage_and_loses_no_charge() {
    use test_support::{
        eventually,
        mounts::{fill_but, in_runtime, tmpfs, with_own_mounts},
    };
    use tower_storage_guard::{
        quota::{Limits, QuotaHold, QuotaSource},
        store::StoredQuota,
    };

    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(&folder.path().join("disk"), "size=4m");
            let store = Arc::new(SqliteStore::open(disk.join("quota.db")).unwrap());
            let quota = StoredQuota::new(Arc::clone(&store), Limits::UNLIMITED);
            // Longer than the free part of any page.
            let user = "user".repeat(10_000);
            let hold = quota
                .reserve(&Scopes::from(&*user), Amount::bytes(9), Amount::ZERO)
                .await
                .unwrap();
            fill_but(&disk, 0);
            // Room was set aside in the file and in its log, and serves again once it was written back.
            for _ in 0..1_000 {
                settle(&store, HoldId::unique(), "short", 1).await;
            }
            assert_eq!(figures(&*store, "short").await, (1_000, 0));
            use_up(&store).await;
            let charge = hold.commit(Amount::bytes(7).into());
            sql::is_away(&*store).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(quota.unsettled(), 1);
            // Reading takes no room.
            assert_eq!(figures(&*store, &user).await, (0, 9));
            fs::remove_file(disk.join("filler")).unwrap();
            charge.await;
            eventually("it is charged", || quota.unsettled() == 0).await;
            assert_eq!(figures(&*store, &user).await, (7, 0));
        });
    });
}
