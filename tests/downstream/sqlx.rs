//! The errors of sqlx, one by one. Those of SQLite are in `sqlx_sqlite.rs`.

use std::{
    borrow::Cow,
    error::Error,
    fmt,
    sync::{Arc, Mutex},
};

use super::sqlx::{
    self, Connection,
    error::{DatabaseError, ErrorKind},
    mysql::MySqlConnection,
    postgres::PgConnection,
};

use tower_storage_guard::fault::{Cause, Classifier, classify};

use crate::fake_servers;

fn cause(error: &sqlx::Error) -> Option<Cause> {
    classify(error).map(|fault| fault.cause)
}

async fn of_postgres(code: &str, message: &str) -> sqlx::Error {
    let port = fake_servers::postgres(code, message).await;
    let url = format!("postgres://a@127.0.0.1:{port}/a?sslmode=disable");
    PgConnection::connect(&url).await.unwrap_err()
}

async fn of_mysql(number: u16, message: &str) -> sqlx::Error {
    let port = fake_servers::mysql(number, message).await;
    let url = format!("mysql://a@127.0.0.1:{port}/a?ssl-mode=disabled");
    MySqlConnection::connect(&url).await.unwrap_err()
}

#[tokio::test]
async fn codes_of_postgres() {
    for (code, expected) in [
        ("53100", Some(Cause::DatabaseFull)),
        ("53400", Some(Cause::QuotaExceeded)),
        ("53000", None),
        ("53200", None),
        ("54000", None),
        ("23505", None),
        // The texts of SQLite and MySQL.
        ("00013", None),
        ("HY000", None),
    ] {
        let error = of_postgres(code, "1114 (HY000): temp_file_limit").await;
        assert_eq!(cause(&error), expected, "{code}");
    }
}

#[tokio::test]
async fn numbers_of_mysql() {
    for (number, expected) in [
        (1021, Some(Cause::DatabaseFull)),
        (1114, Some(Cause::DatabaseFull)),
        (1026, Some(Cause::DatabaseFull)),
        (1030, None),
        (1041, None),
        (1062, None),
    ] {
        let error = of_mysql(number, "(code: 13) 53100 (errno: 28 )").await;
        assert_eq!(cause(&error), expected, "{number}");
    }
}

#[tokio::test]
async fn a_wrapped_error_is_opened() {
    let full = async || of_postgres("53100", "could not extend file").await;
    let expected = Some(Cause::DatabaseFull);
    let boxed = full().await.into_database_error().unwrap();
    assert_eq!(classify(&boxed).map(|fault| fault.cause), expected);
    let shared = Arc::new(full().await);
    assert_eq!(classify(&shared).map(|fault| fault.cause), expected);
    let wrapped = anyhow::Error::from(full().await).context("while storing");
    assert_eq!(classify(&*wrapped).map(|fault| fault.cause), expected);
}

#[tokio::test]
async fn the_errors_of_drivers_can_be_looked_at() {
    let error = of_postgres("53200", "out of memory").await;
    let code = Arc::new(Mutex::new(None));
    let found = Arc::clone(&code);
    let classifier = Classifier::default().with(move |error| {
        let error = error.downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
        *found.lock().unwrap() = Some(error.code().to_owned());
        None
    });
    assert_eq!(classifier.classify(&error), None);
    assert_eq!(code.lock().unwrap().as_deref(), Some("53200"));
}

/// An unknown driver.
#[derive(Debug)]
struct Foreign;

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("13: full")
    }
}

impl Error for Foreign {}

impl DatabaseError for Foreign {
    fn message(&self) -> &str {
        "full"
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some("13".into())
    }

    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

#[test]
fn the_same_number_means_nothing_in_another_driver() {
    assert_eq!(cause(&sqlx::Error::Database(Box::new(Foreign))), None);
    assert_eq!(cause(&sqlx::Error::RowNotFound), None);
    assert_eq!(cause(&sqlx::Error::PoolTimedOut), None);
}
