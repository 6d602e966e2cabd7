//! The errors of sqlx's SQLite driver, one by one. In a file of its own, because the driver of sqlx 0.8 is tested in a package
//! of its own: see `sqlx08`.

use std::error::Error;

use super::sqlx::{self, Connection, Executor, SqliteConnection};
use tower_storage_guard::fault::{Cause, classify};

fn cause(error: &sqlx::Error) -> Option<Cause> {
    classify(error).map(|fault| fault.cause)
}

async fn of_sqlite(sql: &'static str) -> sqlx::Error {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
    connection.execute(sql).await.unwrap_err()
}

#[tokio::test]
async fn a_full_sqlite_database_is_a_fault() {
    let error = of_sqlite(
        "PRAGMA max_page_count = 2; CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x)",
    )
    .await;
    assert_eq!(cause(&error), Some(Cause::DatabaseFull));
    assert_eq!(
        cause(&sqlx::Error::Database(error.into_database_error().unwrap())),
        Some(Cause::DatabaseFull)
    );
}

#[tokio::test]
async fn a_value_too_big_for_sqlite_is_no_fault() {
    let error = of_sqlite("SELECT zeroblob(2000000000)").await;
    assert_eq!(cause(&error), None, "{error:?}");
    assert_eq!(classify(error.source().unwrap()), None);
}
