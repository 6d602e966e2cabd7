//! Connections of the application's pool, and what to do when one fails.

use sqlx::{
    PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use super::super::StoreError;

const SCHEMA: &str = include_str!("schema.sql");
/// How often a query is run that fails to serialize, or is the victim of a deadlock.
const TRIES: usize = 20;

/// Runs a query, and creates the tables and functions that it misses.
pub(super) async fn rows<'q>(
    pool: &PgPool,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, StoreError> {
    let mut has_migrated = false;
    let mut tries = 1;
    loop {
        let mut loan = Loan::new(pool).await?;
        let error = match query().fetch_all(loan.connection()).await {
            Ok(rows) => {
                loan.give_back();
                return Ok(rows);
            }
            Err(error) => error,
        };
        match code(&error).as_deref() {
            // No such table, no such function, no such column.
            Some("42P01" | "42883" | "42703") if !has_migrated => {
                has_migrated = true;
                loan.give_back();
                migrate(pool).await?;
            }
            // A serialization failure, a deadlock. Neither happens under "read committed".
            Some("40001" | "40P01") if tries < TRIES => loan.give_back(),
            // The query may or may not have been executed, and another connection may lead to another server.
            _ => return Err(failed(error)),
        }
        tries += 1;
    }
}

/// Creates the tables and functions that are missing.
pub(super) async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    let mut loan = Loan::new(pool).await?;
    let schema = sqlx::raw_sql(SCHEMA);
    schema.execute(loan.connection()).await.map_err(failed)?;
    loan.give_back();
    Ok(())
}

pub(super) fn failed(error: sqlx::Error) -> StoreError {
    StoreError::unavailable("PostgreSQL failed").with_source(error)
}

fn code(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    Some(code.into_owned())
}

/// A connection that goes back to its pool only once it is known to be sound, and is dropped otherwise.
///
/// A connection that waits for an answer would occupy its place in the pool until the network reports the failure, and a
/// connection to a server that has become a standby would stay there forever. A proper close could wait for as long, so the
/// connection is dropped without one.
struct Loan(Option<PoolConnection<Postgres>>);

impl Loan {
    async fn new(pool: &PgPool) -> Result<Self, StoreError> {
        let connection = pool.acquire().await.map_err(failed)?;
        Ok(Self(Some(connection)))
    }

    fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("taken only when the loan ends")
    }

    fn give_back(mut self) {
        self.0 = None;
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}
