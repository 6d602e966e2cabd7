//! rusqlite.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags};
use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts, with_small_files};
use tower_storage_guard::fault::Cause;

use crate::shared::{Engine, limit_files};
use crate::support::{FORMS, assert_not_refused, assert_refused};

fn open(folder: &Path, journal: &str) -> Connection {
    let db = Connection::open(folder.join("sqlite")).unwrap();
    db.pragma_update(None, "journal_mode", journal).unwrap();
    let table = "CREATE TABLE IF NOT EXISTS items (key UNIQUE, value)";
    db.execute(table, []).unwrap();
    db
}

fn put(db: &Connection, size: u32) -> rusqlite::Result<usize> {
    db.execute("INSERT INTO items VALUES (NULL, zeroblob(?))", [size])
}

#[tokio::test]
async fn a_database_at_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    for journal in ["DELETE", "WAL"] {
        let db = open(folder.path(), journal);
        db.pragma_update(None, "max_page_count", 16).unwrap();
        let db = Engine::new(db);
        assert_refused(Cause::DatabaseFull, db.each_time(|db| put(db, 1 << 20))).await;
        db.close();
    }
}

#[tokio::test]
async fn what_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sqlite");
    let db = Engine::new(open(folder.path(), "DELETE"));

    let twice = |db: &mut Connection| {
        let insert = "INSERT INTO items (key) VALUES (1), (1)";
        db.execute(insert, [])
    };
    assert_not_refused(db.each_time(twice)).await;
    assert_not_refused(db.each_time(|db| put(db, 2_000_000_000))).await;
    let missing = |_: &mut Connection| {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        Connection::open_with_flags("/nowhere/sqlite", flags).map(drop)
    };
    assert_not_refused(db.each_time(missing)).await;
    let busy = move |db: &mut Connection| {
        let other = Connection::open(&path)?;
        other.busy_timeout(Duration::from_millis(10))?;
        let writing = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let failed = put(&other, 1);
        writing.rollback()?;
        failed
    };
    assert_not_refused(db.each_time(busy)).await;

    let errors = db.errors();
    for (number, code) in [2067, 18, 14, 5].into_iter().enumerate() {
        let code = format!("extended_code: {code} ");
        assert!(errors[number * FORMS].contains(&code), "{errors:?}");
    }
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk() {
    with_own_mounts(|| {
        in_runtime(async {
            for journal in ["DELETE", "WAL"] {
                let folder = tempfile::tempdir().unwrap();
                let disk = tmpfs(folder.path(), "size=8m");
                let db = open(&disk, journal);
                put(&db, 1 << 10).unwrap();
                fill_but(&disk, 64 << 10);
                let db = Engine::new(db);
                let put = db.each_time(|db| put(db, 1 << 20));
                assert_refused(Cause::DatabaseFull, put.clone()).await;
                std::fs::remove_file(disk.join("filler")).unwrap();
                put().await.unwrap();
            }
        });
    });
}

/// There is no room for the index that readers and writers share.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk_before_the_first_use_of_wal() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=8m");
            put(&open(&disk, "WAL"), 1 << 10).unwrap();
            fill_but(&disk, 0);
            let db = Engine::new(Connection::open(disk.join("sqlite")).unwrap());
            assert_refused(Cause::DiskFull, db.each_time(|db| put(db, 1 << 10))).await;
            let errors = db.errors();
            assert!(errors[0].contains("extended_code: 4874 "), "{errors:?}");
        });
    });
}

/// A broken disk would cause the same error.
#[test]
fn a_limit_of_the_process_is_no_fault() {
    with_small_files(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let db = Engine::new(open(folder.path(), "DELETE"));
            limit_files("65536");
            assert_not_refused(db.each_time(|db| put(db, 1 << 20))).await;
            let errors = db.errors();
            assert!(errors[0].contains("extended_code: 778 "), "{errors:?}");
        });
    });
}

/// In a process of its own, because the limit applies to all of SQLite's memory.
#[test]
fn a_limit_of_memory_is_no_fault() {
    with_small_files(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let db = open(folder.path(), "DELETE");
            let limit = "PRAGMA hard_heap_limit = 1000000";
            db.query_row(limit, [], |_| Ok(())).unwrap();
            let db = Engine::new(db);
            let put = |db: &mut Connection| {
                let insert = "INSERT INTO items VALUES (NULL, hex(zeroblob(4000000)))";
                db.execute(insert, [])
            };
            assert_not_refused(db.each_time(put)).await;
            assert!(db.errors()[0].contains("extended_code: 7 "));
        });
    });
}

#[test]
fn an_error_in_sql_carries_a_code_too() {
    let error = rusqlite::Error::SqlInputError {
        error: rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
        msg: String::new(),
        sql: String::new(),
        offset: 0,
    };
    let fault = tower_storage_guard::fault::classify(&error);
    assert_eq!(fault.unwrap().cause, Cause::DatabaseFull);
}
