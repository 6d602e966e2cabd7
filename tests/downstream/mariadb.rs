//! MariaDB, by every driver and ORM that speaks to it.

use std::process::Command;

use tempfile::TempDir;
use test_support::mounts::{fill_but, in_runtime, run, tmpfs, with_own_mounts};
use tower_storage_guard::fault::Cause;

use crate::sql::{
    Failing, assert_answer, diesel_mysql, mysql_async, mysql_async036, sea_orm, sea_orm1,
    sqlx_mysql, sqlx08_mysql,
};
use crate::support::{Running, free_port, listens};

/// A server with a folder of its own, and in it an empty database `test`. Killed when dropped.
struct MariaDb {
    _running: Running,
    folder: TempDir,
    port: u16,
}

impl MariaDb {
    async fn start(options: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), options).await
    }

    async fn start_in(folder: TempDir, options: &[&str]) -> Self {
        let data = format!("--datadir={}", folder.path().join("data").display());
        let socket = format!("--socket={}", folder.path().join("socket").display());
        // As the current user: it only runs as root if told to.
        let output = Command::new("id").arg("-un").output().unwrap();
        let user = format!(
            "--user={}",
            String::from_utf8(output.stdout).unwrap().trim()
        );
        // Servers that run concurrently must not remove each other's files.
        let temporary = format!("TMPDIR={}", folder.path().display());
        let install = [
            &temporary,
            "mariadb-install-db",
            "--no-defaults",
            &data,
            &user,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ];
        run("env", install);
        let port = free_port();
        let mut command = Command::new("mariadbd");
        command
            .args([
                "--no-defaults",
                &data,
                &user,
                &socket,
                "--bind-address=127.0.0.1",
            ])
            .arg(format!("--port={port}"))
            .args(options)
            .env("TMPDIR", folder.path());
        let log = folder.path().join("log");
        let running = Running::start(&mut command, &log, || listens(port));
        let server = Self {
            _running: running,
            folder,
            port,
        };
        let url = format!("mysql://root@127.0.0.1:{port}/mysql");
        mysql_async(url, "CREATE DATABASE test").await.unwrap();
        server
    }

    fn url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}/test", self.port)
    }

    async fn execute(&self, sql: &'static str) {
        mysql_async(self.url(), sql).await.unwrap();
    }

    async fn assert_by_all(&self, expected: Option<Cause>, failing: Failing) {
        let url = self.url();
        assert_answer(expected, failing, &url, sqlx_mysql).await;
        assert_answer(expected, failing, &url, sqlx08_mysql).await;
        assert_answer(expected, failing, &url, sea_orm).await;
        assert_answer(expected, failing, &url, sea_orm1).await;
        assert_answer(expected, failing, &url, mysql_async).await;
        assert_answer(expected, failing, &url, mysql_async036).await;
        assert_answer(expected, failing, &url, diesel_mysql).await;
    }
}

const FULL: Option<Cause> = Some(Cause::DatabaseFull);

/// A server whose temporary files have this much room, in a mount namespace.
async fn with_small_tmpdir(size: &str) -> MariaDb {
    let folder = tempfile::tempdir().unwrap();
    let at = tmpfs(&folder.path().join("small"), &format!("size={size}"));
    let option = format!("--tmpdir={}", at.display());
    MariaDb::start_in(folder, &[&option]).await
}

#[tokio::test]
#[ignore = "runs MariaDB: run by `make test`"]
async fn a_full_tablespace() {
    // It must not grow, and tables have no other location.
    let server = MariaDb::start(&[
        "--innodb-data-file-path=ibdata1:12M",
        "--innodb-file-per-table=0",
    ])
    .await;
    server
        .execute("CREATE TABLE photos (id int, content text)")
        .await;
    let failing = Failing {
        sql: "INSERT INTO photos SELECT seq, repeat('x', 1000) FROM seq_1_to_20000",
        words: "The table 'photos' is full",
    };
    server.assert_by_all(FULL, failing).await;
}

#[tokio::test]
#[ignore = "runs MariaDB: run by `make test`"]
async fn a_full_table_in_memory_is_classified_like_a_full_tablespace() {
    let server = MariaDb::start(&["--max-heap-table-size=16384"]).await;
    server
        .execute("CREATE TABLE photos (content char(200)) ENGINE = MEMORY")
        .await;
    let failing = Failing {
        sql: "INSERT INTO photos SELECT seq FROM seq_1_to_1000",
        words: "The table 'photos' is full",
    };
    server.assert_by_all(FULL, failing).await;
}

#[test]
#[ignore = "runs MariaDB, mounts filesystems: run by `make test`"]
fn no_room_for_temporary_files() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = with_small_tmpdir("2m").await;
            server.execute("CREATE TABLE photos (content text)").await;
            let failing = Failing {
                sql: "INSERT INTO photos \
                    SELECT repeat('x', 500) FROM seq_1_to_100000 ORDER BY rand()",
                words: "Errcode: 28",
            };
            server.assert_by_all(FULL, failing).await;
        });
    });
}

#[test]
#[ignore = "runs MariaDB, mounts filesystems: run by `make test`"]
fn a_full_filesystem_under_a_database() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = MariaDb::start(&[]).await;
            let database = server.folder.path().join("data/test");
            tmpfs(&database, "size=1m");
            // MyISAM and Aria would wait for room, and InnoDB would terminate the server.
            server
                .execute("CREATE TABLE photos (content varchar(500) NOT NULL) ENGINE = CSV")
                .await;
            let failing = Failing {
                sql: "INSERT INTO photos SELECT repeat('x', 500) FROM seq_1_to_10000",
                words: "Errcode: 28",
            };
            server.assert_by_all(FULL, failing).await;
            // Room for the definition of a table, but not for the table.
            server.execute("DROP TABLE photos").await;
            fill_but(&database, 16 << 10);
            let failing = Failing {
                sql: "CREATE TABLE films (id int) ENGINE = InnoDB",
                words: "Can't create table",
            };
            server.assert_by_all(FULL, failing).await;
        });
    });
}

#[tokio::test]
#[ignore = "runs MariaDB: run by `make test`"]
async fn what_is_no_fault_of_storage() {
    let server = MariaDb::start(&[]).await;
    server
        .execute(
            "CREATE TABLE photos (id int UNIQUE, content text); INSERT INTO photos VALUES (1, '')",
        )
        .await;
    // Holds a lock as long as it exists.
    let mut other = ::mysql_async::Conn::from_url(server.url()).await.unwrap();
    let lock = "BEGIN; INSERT INTO photos VALUES (2, '')";
    ::mysql_async::prelude::Queryable::query_drop(&mut other, lock)
        .await
        .unwrap();
    for failing in [
        Failing {
            sql: "INSERT INTO photos VALUES (1, '')",
            words: "Duplicate entry",
        },
        Failing {
            sql: "SET innodb_lock_wait_timeout = 0; INSERT INTO photos VALUES (2, '')",
            words: "Lock wait timeout",
        },
        Failing {
            sql: "SET max_statement_time = 0.05; SELECT sleep(10)",
            words: "max_statement_time",
        },
        // A limit of memory.
        Failing {
            sql: "SET max_session_mem_used = 8192; SELECT * FROM information_schema.columns",
            words: "max-session-mem-used",
        },
        Failing {
            sql: "INSERT INTO photos VALUES ('Got error 28 from storage engine', '')",
            words: "Incorrect integer value",
        },
    ] {
        server.assert_by_all(None, failing).await;
    }
}
