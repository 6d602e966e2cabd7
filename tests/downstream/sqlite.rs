//! SQLite, by sqlx, sea-orm and diesel.

use std::path::Path;

use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};
use tower_storage_guard::fault::Cause;

use crate::sql::{Failing, assert_answer, diesel_sqlite, sea_orm, sqlx_sqlite};

const FULL: Option<Cause> = Some(Cause::DatabaseFull);

/// A new database in a folder.
struct Database {
    /// The URL for sqlx and sea-orm.
    url: String,
    /// The path for diesel.
    path: String,
}

impl Database {
    async fn create(folder: &Path, sql: &'static str) -> Self {
        let path = folder.join("photos.db").to_str().unwrap().to_owned();
        let url = format!("sqlite://{path}");
        sqlx_sqlite(format!("{url}?mode=rwc"), sql).await.unwrap();
        Self { url, path }
    }

    async fn assert_by_all(&self, expected: Option<Cause>, failing: Failing) {
        self.assert_by_all_with_codes(expected, failing).await;
        assert_answer(expected, failing, &self.path, diesel_sqlite).await;
    }

    /// All but diesel, which only has the text.
    async fn assert_by_all_with_codes(&self, expected: Option<Cause>, failing: Failing) {
        assert_answer(expected, failing, &self.url, sqlx_sqlite).await;
        assert_answer(expected, failing, &self.url, sea_orm).await;
    }
}

const INSERT: Failing = Failing {
    sql: "INSERT INTO photos VALUES (2, zeroblob(3000000))",
    words: "database or disk is full",
};

#[tokio::test]
async fn a_database_of_a_limited_size() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::create(folder.path(), "CREATE TABLE photos (id, content)").await;
    let failing = Failing {
        sql: "PRAGMA max_page_count = 10; INSERT INTO photos VALUES (1, zeroblob(100000))",
        ..INSERT
    };
    database.assert_by_all(FULL, failing).await;
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_filesystem() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let at = tmpfs(&folder.path().join("small"), "size=1m");
            let database = Database::create(&at, "CREATE TABLE photos (id, content)").await;
            database.assert_by_all(FULL, INSERT).await;
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_filesystem_under_a_write_ahead_log() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let at = tmpfs(&folder.path().join("small"), "size=1m");
            let sql = "PRAGMA journal_mode = WAL; CREATE TABLE photos (id, content)";
            let database = Database::create(&at, sql).await;
            database.assert_by_all(FULL, INSERT).await;
            // Now there is no room even for reading.
            fill_but(&at, 0);
            let failing = Failing {
                words: "disk I/O error",
                ..INSERT
            };
            // SQLITE_IOERR_SHMSIZE: only a disk can be the reason.
            let disk_full = Some(Cause::DiskFull);
            database.assert_by_all_with_codes(disk_full, failing).await;
            // This text alone is ambiguous without its code.
            assert_answer(None, failing, &database.path, diesel_sqlite).await;
        });
    });
}

#[tokio::test]
async fn what_is_no_fault_of_storage() {
    let folder = tempfile::tempdir().unwrap();
    let sql = "CREATE TABLE photos (id UNIQUE, content); INSERT INTO photos VALUES (1, '')";
    let database = Database::create(folder.path(), sql).await;
    for failing in [
        Failing {
            sql: "INSERT INTO photos VALUES (1, 'database or disk is full')",
            words: "UNIQUE constraint failed",
        },
        // SQLITE_TOOBIG, a limit of the program.
        Failing {
            sql: "INSERT INTO photos VALUES (2, zeroblob(2000000000))",
            words: "string or blob too big",
        },
        Failing {
            sql: "SELECT * FROM \"database or disk is full\"",
            words: "no such table",
        },
        Failing {
            sql: "PRAGMA query_only = on; INSERT INTO photos VALUES (2, '')",
            words: "readonly database",
        },
    ] {
        database.assert_by_all(None, failing).await;
    }
}

#[tokio::test]
async fn a_database_that_is_locked_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::create(folder.path(), "CREATE TABLE photos (id, content)").await;
    let mut other = <::sqlx::SqliteConnection as ::sqlx::Connection>::connect(&database.url)
        .await
        .unwrap();
    ::sqlx::raw_sql("BEGIN EXCLUSIVE")
        .execute(&mut other)
        .await
        .unwrap();
    let failing = Failing {
        sql: "PRAGMA busy_timeout = 10; INSERT INTO photos VALUES (2, '')",
        words: "database is locked",
    };
    database.assert_by_all(None, failing).await;
}
