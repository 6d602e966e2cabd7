//! PostgreSQL with its default settings, which wait for the disk at each commit.

use std::fs;

use sqlx::{PgPool, Row, postgres::PgPoolOptions};
use test_support::postgres::{Server, options, program};
use tower_storage_guard::{BoxError, store::PostgresStore};

use super::{Engine, FEW, Raw};

/// Connections in each pool.
const CONNECTIONS: u32 = 8;

/// Whether a pool tests connections before it hands them out, which is sqlx's default: one more round trip.
pub(crate) struct Postgres<const TESTS: bool = true>(Server);

impl<const TESTS: bool> Engine for Postgres<TESTS> {
    const NAME: &str = match TESTS {
        true => "PostgreSQL",
        false => "PostgreSQL, `test_before_acquire(false)`",
    };
    type Store = PostgresStore;
    type Raw = PgPool;

    async fn start() -> Self {
        Self(Server::with(&[], ""))
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
        // The server does this by itself some time later.
        execute(&pool, "VACUUM ANALYZE storage_guard_accounts").await;
    }

    async fn size(&self) -> u64 {
        let size = sqlx::query("SELECT pg_total_relation_size('storage_guard_accounts')");
        let size = size.fetch_one(&self.pool()).await.expect("a server");
        size.get::<i64, _>(0).cast_unsigned()
    }

    async fn by_its_own_tool(&self, at_a_time: usize, is_short: bool) -> Option<f64> {
        self.numbers(&self.pool()).await;
        let script = self.0.folder().join("update.sql");
        let last = FEW - 1;
        let update = format!(
            "\\set one random(0, {last})\nUPDATE numbers SET used = used + 1 WHERE number = :one;\n"
        );
        fs::write(&script, update).expect("room");
        let length = if is_short { ["-t", "5"] } else { ["-T", "2"] };
        let output = program("pgbench")
            .args(["-n", "-M", "prepared", "-c", &at_a_time.to_string()])
            .args(length)
            .args(["-h", "127.0.0.1", "-p", &self.0.port().to_string()])
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
        PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .test_before_acquire(TESTS)
            .connect_lazy_with(options(self.0.port()))
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
