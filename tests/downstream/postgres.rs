//! PostgreSQL, by every driver and ORM that speaks to it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use tempfile::TempDir;
use tower_storage_guard::fault::Cause;

use crate::{
    mounts::{in_runtime, run, tmpfs, with_own_mounts},
    sql::{Failing, assert_answer, diesel_postgres, sea_orm, sqlx_postgres, tokio_postgres},
    support::{Running, free_port, listens},
};

/// Of `nobody` and `nogroup`: the server does not run as root.
const NOBODY: u32 = 65534;

/// A server with a folder of its own. Stopped when dropped.
pub(crate) struct Postgres {
    running: Running,
    folder: TempDir,
    port: u16,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        Self::start_in_language("")
    }

    /// In a language such as `de`. English, where that is empty.
    fn start_in_language(language: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        chown(&data, Some(NOBODY), Some(NOBODY)).expect("this test runs as root");
        let options = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"];
        let options = options
            .into_iter()
            .chain(["--no-sync", "--username=postgres"]);
        let options = options
            .map(Into::into)
            .chain(["--pgdata".into(), data.clone().into()]);
        let initdb = [program("initdb").into_os_string()];
        run(
            "setpriv",
            AS_NOBODY
                .map(Into::into)
                .into_iter()
                .chain(initdb)
                .chain(options),
        );
        let port = free_port();
        let mut command = Command::new("setpriv");
        command
            .args(AS_NOBODY)
            .arg(program("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-c", &format!("port={port}")])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories="])
            .args(["-c", "fsync=off"])
            .env("LANGUAGE", language);
        let log = folder.path().join("log");
        let running = Running::start(&mut command, &log, || is_ready(&data));
        Self {
            running,
            folder,
            port,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable",
            self.port
        )
    }

    /// A tablespace `small` on a filesystem of this size, in a mount namespace.
    pub(crate) async fn add_small_tablespace(&self, size: &str) {
        let at = self.folder.path().join("small");
        tmpfs(&at, &format!("size={size},uid={NOBODY},gid={NOBODY}"));
        let (client, connection) = ::tokio_postgres::connect(&self.url(), ::tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        let sql = format!("CREATE TABLESPACE small LOCATION '{}'", at.display());
        client.batch_execute(&sql).await.unwrap();
    }

    pub(crate) async fn execute(&self, sql: &'static str) {
        tokio_postgres(self.url(), sql).await.unwrap();
    }

    async fn assert_by_all(&self, expected: Option<Cause>, failing: Failing) {
        self.assert_by_all_with_codes(expected, failing).await;
        assert_answer(expected, failing, &self.url(), diesel_postgres).await;
    }

    /// All but diesel, which has the words only.
    async fn assert_by_all_with_codes(&self, expected: Option<Cause>, failing: Failing) {
        let url = self.url();
        assert_answer(expected, failing, &url, sqlx_postgres).await;
        assert_answer(expected, failing, &url, sea_orm).await;
        assert_answer(expected, failing, &url, tokio_postgres).await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Killed at once, it would leave shared memory behind.
        let id = self.running.id().to_string();
        let _ = Command::new("kill").args(["-INT", &id]).status();
        for _ in 0..500 {
            if !listens(self.port) && !self.folder.path().join("data/postmaster.pid").exists() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

const AS_NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// The last line of its file says so.
fn is_ready(data: &Path) -> bool {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    file.lines()
        .nth(7)
        .is_some_and(|line| line.trim() == "ready")
}

/// Debian keeps the server's programs out of the PATH.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let paths = versions.map(|entry| entry.unwrap().path().join("bin").join(name));
    paths
        .filter(|path| path.exists())
        .max()
        .unwrap_or_else(|| name.into())
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
            // diesel does not know what this means, until the server is told to speak English.
            assert_answer(None, full, &server.url(), diesel_postgres).await;
            server
                .execute("ALTER ROLE postgres SET lc_messages = 'C'")
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
