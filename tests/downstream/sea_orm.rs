//! The errors of SeaORM, one by one.

use std::error::Error;

use super::{
    held,
    sea_orm::{DbErr, RuntimeErr, TransactionError},
    sqlx::{Connection, PgConnection},
};
use tower_storage_guard::fault::{Cause, classify};

use crate::fake_servers;

fn cause(error: &(dyn Error + 'static)) -> Option<Cause> {
    classify(error).map(|fault| fault.cause)
}

/// The error of a server that refuses with this code.
async fn runtime_error(code: &str) -> RuntimeErr {
    let port = fake_servers::postgres(code, "No space left on device").await;
    let url = format!("postgres://a@127.0.0.1:{port}/a?sslmode=disable");
    let error = PgConnection::connect(&url).await.unwrap_err();
    RuntimeErr::SqlxError(held(error))
}

const KINDS: [fn(RuntimeErr) -> DbErr; 3] = [DbErr::Conn, DbErr::Exec, DbErr::Query];

#[tokio::test]
async fn the_error_of_sqlx_is_found() {
    let full = async || runtime_error("53100").await;
    let expected = Some(Cause::DatabaseFull);
    assert_eq!(cause(&full().await), expected);
    for kind in KINDS {
        let error = async || kind(full().await);
        assert_eq!(cause(&error().await), expected);
        let connection = TransactionError::<DbErr>::Connection(error().await);
        assert_eq!(cause(&connection), expected);
        assert_eq!(
            cause(&TransactionError::Transaction(error().await)),
            expected
        );
    }
}

#[tokio::test]
async fn other_errors_say_nothing() {
    let unknown = runtime_error("42P01").await;
    for error in [
        DbErr::Query(unknown),
        DbErr::Exec(RuntimeErr::Internal("database or disk is full".into())),
        DbErr::Custom("database or disk is full".into()),
    ] {
        assert_eq!(cause(&error), None, "{error:?}");
        assert_eq!(cause(&TransactionError::Transaction(error)), None);
    }
}
