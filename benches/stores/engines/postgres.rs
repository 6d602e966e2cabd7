//! PostgreSQL with its default settings, which wait for the disk at each commit.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sqlx::{
    PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tempfile::TempDir;
use tower_storage_guard::{BoxError, quota::PostgresStore};

use super::{Engine, FEW, Raw};
use crate::running::{Running, free_port};

/// In each pool.
const CONNECTIONS: u32 = 8;

/// Whether a pool tests connections before it hands them out, which is sqlx's default: one more round trip.
pub(crate) struct Postgres<const TESTS: bool = true> {
    _running: Running,
    folder: TempDir,
    port: u16,
}

impl<const TESTS: bool> Engine for Postgres<TESTS> {
    const NAME: &str = match TESTS {
        true => "PostgreSQL",
        false => "PostgreSQL, `test_before_acquire(false)`",
    };
    type Store = PostgresStore;
    type Raw = PgPool;

    async fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        own(folder.path());
        let data = folder.path().join("data");
        let made = program("initdb")
            .args([
                "--no-sync",
                "-A",
                "trust",
                "-U",
                "guard",
                "-E",
                "UTF8",
                "-D",
            ])
            .arg(&data)
            .output()
            .expect("initdb");
        assert!(made.status.success(), "{made:?}");
        let (text, log) = (port.to_string(), folder.path().join("log"));
        let mut command = program("postgres");
        command.arg("-D").arg(data).arg("-k").arg(folder.path());
        command.args(["-h", "127.0.0.1", "-p", &text]);
        let is_ready = || {
            let asked = program("pg_isready")
                .args(["-q", "-h", "127.0.0.1", "-p", &text])
                .status();
            asked.expect("pg_isready").success()
        };
        Self {
            _running: Running::start(&mut command, &log, is_ready),
            folder,
            port,
        }
    }

    async fn store(&self) -> PostgresStore {
        PostgresStore::new(self.pool())
    }

    async fn raw(&self) -> PgPool {
        let pool = self.pool();
        self.numbers(&pool).await;
        pool
    }

    async fn fill(&self, scopes: u32) {
        self.store().await.migrate().await.expect("a server");
        let pool = self.pool();
        sqlx::query(
            "INSERT INTO storage_guard_accounts (scope, used_bytes, used_objects)
            SELECT convert_to('user:' || number, 'UTF8'), 1, 1 FROM generate_series(0, $1 - 1) AS number",
        )
        .bind(i64::from(scopes))
        .execute(&pool)
        .await
        .expect("room");
        // As the server does by itself, some time later.
        execute(&pool, "VACUUM ANALYZE storage_guard_accounts").await;
    }

    async fn size(&self) -> u64 {
        let size = sqlx::query("SELECT pg_total_relation_size('storage_guard_accounts')");
        let size = size.fetch_one(&self.pool()).await.expect("a server");
        size.get::<i64, _>(0).cast_unsigned()
    }

    async fn by_its_own_tool(&self, at_a_time: usize, is_short: bool) -> Option<f64> {
        self.numbers(&self.pool()).await;
        let script = self.folder.path().join("update.sql");
        let last = FEW - 1;
        let update = format!(
            "\\set one random(0, {last})\nUPDATE numbers SET used = used + 1 WHERE number = :one;\n"
        );
        fs::write(&script, update).expect("room");
        let length = if is_short { ["-t", "5"] } else { ["-T", "2"] };
        let output = program("pgbench")
            .args(["-n", "-M", "prepared", "-c", &at_a_time.to_string()])
            .args(length)
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-U", "guard", "-f"])
            .arg(script)
            .arg("postgres")
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).expect("text");
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = rate.and_then(|rate| rate.split(' ').next()?.parse().ok());
        Some(rate.unwrap_or_else(|| panic!("pgbench says: {text}")))
    }
}

impl<const TESTS: bool> Postgres<TESTS> {
    fn pool(&self) -> PgPool {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("guard")
            .database("postgres");
        PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .test_before_acquire(TESTS)
            .connect_lazy_with(options)
    }

    async fn numbers(&self, pool: &PgPool) {
        execute(
            pool,
            "CREATE TABLE IF NOT EXISTS numbers (number int PRIMARY KEY, used bigint NOT NULL)",
        )
        .await;
        let insert = "INSERT INTO numbers SELECT number, 0 FROM generate_series(0, $1) AS number
            ON CONFLICT DO NOTHING";
        let inserted = sqlx::query(insert).bind(FEW as i32 - 1).execute(pool).await;
        inserted.expect("room");
    }
}

async fn execute(pool: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(pool).await.expect("a server");
}

impl Raw for PgPool {
    async fn add(&self, number: u32, _: bool) -> Result<(), BoxError> {
        let update = sqlx::query("UPDATE numbers SET used = used + 1 WHERE number = $1");
        let updated = update.bind(number as i32).execute(self).await?;
        match updated.rows_affected() {
            1 => Ok(()),
            _ => Err("no such number".into()),
        }
    }
}

impl<const TESTS: bool> Drop for Postgres<TESTS> {
    /// All of its processes, before the folder goes.
    fn drop(&mut self) {
        let data = self.folder.path().join("data");
        let mut stop = program("pg_ctl");
        stop.args(["stop", "-s", "-w", "-m", "immediate", "-D"])
            .arg(data);
        // Else it is killed.
        let _ = stop.status();
    }
}

/// Where a program of PostgreSQL's is, of the newest version that is there.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let programs =
        versions.filter_map(|version| Some(version.ok()?.path().join("bin").join(program)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).map(|folder| folder.join(program));
    let newest = programs.filter(|path| path.exists()).max();
    newest.or_else(|| others.into_iter().find(|path| path.exists()))
}

/// The server does not run as root.
fn program(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    command.current_dir("/").env_remove("PGDATA");
    #[cfg(unix)]
    if let Some((user, group)) = other_than_root() {
        std::os::unix::process::CommandExt::gid(&mut command, group);
        std::os::unix::process::CommandExt::uid(&mut command, user);
    }
    command
}

fn own(folder: &Path) {
    #[cfg(unix)]
    if let Some((user, group)) = other_than_root() {
        std::os::unix::fs::chown(folder, Some(user), Some(group)).expect("we are root");
    }
    #[cfg(not(unix))]
    let _ = folder;
}

/// The user and group of Debian's package, when we are root.
#[cfg(unix)]
fn other_than_root() -> Option<(u32, u32)> {
    let id = |args: &[&str]| -> u32 {
        let answer = Command::new("id").args(args).output().expect("id");
        let text = String::from_utf8(answer.stdout).expect("text");
        text.trim().parse().expect("there is a user postgres")
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}
