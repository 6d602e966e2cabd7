//! The errors of SeaORM, one by one.

use std::error::Error;

use sea_orm::{DbErr, RuntimeErr, TransactionError};
use sqlx::{Connection, Executor, SqliteConnection};

use tower_storage_guard::fault::{Cause, classify};

fn cause(error: &(dyn Error + 'static)) -> Option<Cause> {
    classify(error).map(|fault| fault.cause)
}

async fn runtime_error(sql: &'static str) -> RuntimeErr {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
    let error = connection.execute(sql).await.unwrap_err();
    RuntimeErr::SqlxError(error.into())
}

#[tokio::test]
async fn the_error_of_sqlx_is_found() {
    let full = runtime_error(
        "PRAGMA max_page_count = 2; CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x)",
    )
    .await;
    let expected = Some(Cause::DatabaseFull);
    assert_eq!(cause(&full), expected);
    for error in [
        DbErr::Conn(full.clone()),
        DbErr::Exec(full.clone()),
        DbErr::Query(full.clone()),
    ] {
        assert_eq!(cause(&error), expected);
        assert_eq!(
            cause(&TransactionError::<DbErr>::Connection(error.clone())),
            expected
        );
        assert_eq!(cause(&TransactionError::Transaction(error)), expected);
    }
}

#[tokio::test]
async fn other_errors_say_nothing() {
    let unknown = runtime_error("SELECT * FROM a").await;
    for error in [
        DbErr::Query(unknown),
        DbErr::Exec(RuntimeErr::Internal("database or disk is full".into())),
        DbErr::Custom("database or disk is full".into()),
    ] {
        assert_eq!(cause(&error), None, "{error:?}");
        assert_eq!(cause(&TransactionError::Transaction(error)), None);
    }
}
