//! Connections of the user's pool, and what to do when one fails.

use sqlx::{
    PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tower::BoxError;

const SCHEMA: &str = include_str!("schema.sql");
/// How often a step is tried again that got into another one's way.
const TRIES: usize = 20;

/// Runs a query, and makes what is missing for it.
pub(super) async fn rows<'q>(
    pool: &PgPool,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, BoxError> {
    let mut has_migrated = false;
    for attempt in 1.. {
        let mut loan = Loan::new(pool).await?;
        let error = match query().fetch_all(loan.connection()?).await {
            Ok(rows) => {
                loan.give_back();
                return Ok(rows);
            }
            Err(error) => error,
        };
        match code(&error).as_deref() {
            // No such table, no such function.
            Some("42P01" | "42883") if !has_migrated => {
                has_migrated = true;
                loan.give_back();
                migrate(pool).await?;
            }
            // Not to be serialized; a deadlock. Under "read committed" there is neither.
            Some("40001" | "40P01") if attempt < TRIES => loan.give_back(),
            // Nobody knows what has become of it, and another connection may lead elsewhere.
            _ => return Err(error.into()),
        }
    }
    Err("PostgreSQL was asked in vain".into())
}

/// Makes tables and functions that are missing.
pub(super) async fn migrate(pool: &PgPool) -> Result<(), BoxError> {
    let mut loan = Loan::new(pool).await?;
    sqlx::raw_sql(SCHEMA).execute(loan.connection()?).await?;
    loan.give_back();
    Ok(())
}

fn code(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    Some(code.into_owned())
}

/// A connection that goes back to its pool only once it is known to be sound.
///
/// Otherwise it is closed. One that waits for an answer would keep its place in the pool for as long as the network
/// takes to notice, and one that leads to a server which has become a standby would lead there forever.
struct Loan(Option<PoolConnection<Postgres>>);

impl Loan {
    async fn new(pool: &PgPool) -> sqlx::Result<Self> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    fn connection(&mut self) -> Result<&mut PgConnection, BoxError> {
        match &mut self.0 {
            Some(connection) => Ok(connection),
            None => Err("the connection was given back".into()),
        }
    }

    fn give_back(&mut self) {
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
