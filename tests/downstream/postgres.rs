//! PostgreSQL, by every driver and ORM that speaks to it.

use test_support::mounts::{in_runtime, with_own_mounts};
use test_support::postgres::Server;
use tower_storage_guard::fault::Cause;

use crate::sql::{
    Failing, assert_answer, diesel_postgres, sea_orm, sea_orm1, sqlx_postgres, sqlx08_postgres,
    tokio_postgres,
};

/// A server on which every driver fails.
pub(crate) struct Postgres(Server);

impl Postgres {
    pub(crate) fn start() -> Self {
        Self(Server::new())
    }

    /// In a language such as `de`.
    fn start_in_language(language: &str) -> Self {
        Self(Server::with(&["fsync=off"], language))
    }

    pub(crate) fn url(&self) -> String {
        format!("{}?sslmode=disable", self.0.url())
    }

    async fn add_small_tablespace(&self, size: &str) {
        self.0.add_small_tablespace(size).await;
    }

    async fn execute(&self, sql: &'static str) {
        self.0.execute(sql).await;
    }

    async fn assert_by_all(&self, expected: Option<Cause>, failing: Failing) {
        self.assert_by_all_with_codes(expected, failing).await;
        assert_answer(expected, failing, &self.url(), diesel_postgres).await;
    }

    /// All but diesel, which only has the text.
    async fn assert_by_all_with_codes(&self, expected: Option<Cause>, failing: Failing) {
        let url = self.url();
        assert_answer(expected, failing, &url, sqlx_postgres).await;
        assert_answer(expected, failing, &url, sqlx08_postgres).await;
        assert_answer(expected, failing, &url, sea_orm).await;
        assert_answer(expected, failing, &url, sea_orm1).await;
        assert_answer(expected, failing, &url, tokio_postgres).await;
    }
}

const FULL: Option<Cause> = Some(Cause::DatabaseFull);
const OVER_QUOTA: Option<Cause> = Some(Cause::QuotaExceeded);

/// More than fits into the tablespace.
const INSERT: &str =
    "INSERT INTO photos SELECT g, repeat('x', 1000) FROM generate_series(1, 10000) g";

/// More than fits into memory, to be sorted.
const SORT: &str = "SET work_mem = '64kB'; SET temp_file_limit = '64kB'; \
    SELECT count(*) FROM (SELECT g FROM generate_series(1, 100000) g ORDER BY g DESC) sorted";

#[test]
#[ignore = "runs PostgreSQL, mounts filesystems: run by `make test`"]
fn a_full_tablespace() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = Postgres::start();
            server.add_small_tablespace("2m").await;
            server
                .execute("CREATE TABLE photos (id int, content text) TABLESPACE small")
                .await;
            let failing = Failing {
                sql: INSERT,
                words: "No space left on device",
            };
            server.assert_by_all(FULL, failing).await;
        });
    });
}

#[test]
#[ignore = "runs PostgreSQL, mounts filesystems: run by `make test`"]
fn no_room_for_temporary_files() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = Postgres::start();
            server.add_small_tablespace("1m").await;
            let failing = Failing {
                sql: "SET temp_tablespaces = small; SET work_mem = '64kB'; \
                    SELECT count(*) FROM (SELECT g FROM generate_series(1, 1000000) g ORDER BY g DESC) sorted",
                words: "No space left on device",
            };
            server.assert_by_all(FULL, failing).await;
        });
    });
}

#[tokio::test]
#[ignore = "runs PostgreSQL: run by `make test`"]
async fn more_temporary_files_than_allowed() {
    let server = Postgres::start();
    let failing = Failing {
        sql: SORT,
        words: "temporary file size exceeds",
    };
    server.assert_by_all(OVER_QUOTA, failing).await;
}

#[test]
#[ignore = "runs PostgreSQL, mounts filesystems: run by `make test`"]
fn a_server_that_speaks_german_is_understood_by_its_codes() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = Postgres::start_in_language("de");
            server.add_small_tablespace("2m").await;
            server
                .execute("CREATE TABLE photos (id int, content text) TABLESPACE small")
                .await;
            let full = Failing {
                sql: INSERT,
                words: "konnte Datei",
            };
            server.assert_by_all_with_codes(FULL, full).await;
            let over_quota = Failing {
                sql: SORT,
                words: "überschreitet temp_file_limit",
            };
            server
                .assert_by_all_with_codes(OVER_QUOTA, over_quota)
                .await;
            // diesel cannot classify this until the server is set to English.
            assert_answer(None, full, &server.url(), diesel_postgres).await;
            server
                .execute("ALTER ROLE guard SET lc_messages = 'C'")
                .await;
            let full = Failing {
                words: "No space left on device",
                ..full
            };
            assert_answer(FULL, full, &server.url(), diesel_postgres).await;
        });
    });
}

#[tokio::test]
#[ignore = "runs PostgreSQL: run by `make test`"]
async fn what_is_no_fault_of_storage() {
    let server = Postgres::start();
    server
        .execute(
            "CREATE TABLE photos (id int UNIQUE, content text); INSERT INTO photos VALUES (1, '')",
        )
        .await;
    for failing in [
        Failing {
            sql: "INSERT INTO photos VALUES (1, 'No space left on device')",
            words: "duplicate key value",
        },
        Failing {
            sql: "INSERT INTO photos VALUES ('could not do it: No space left on device')",
            words: "invalid input syntax",
        },
        Failing {
            sql: "SET statement_timeout = 50; SELECT pg_sleep(30)",
            words: "statement timeout",
        },
        // 54000, a limit of the program.
        Failing {
            sql: "SELECT repeat('x', 2000000000)",
            words: "requested length too large",
        },
        Failing {
            sql: "SET transaction_read_only = on; INSERT INTO photos VALUES (2, '')",
            words: "read-only transaction",
        },
        // 53200, a limit of memory.
        Failing {
            sql: "SELECT pg_advisory_xact_lock(g) FROM generate_series(1, 100000) g",
            words: "out of shared memory",
        },
    ] {
        server.assert_by_all(None, failing).await;
    }
}
