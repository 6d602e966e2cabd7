//! What the tests of SQL servers share: the drivers and ORMs that run a statement there, and the expected errors.

use std::error::Error;

use diesel_async::{
    AsyncConnection, AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection,
};
use tower_storage_guard::fault::Cause;

use crate::support::{assert_not_refused, assert_refused};

/// Statements that fail.
#[derive(Clone, Copy)]
pub(crate) struct Failing {
    pub(crate) sql: &'static str,
    /// A part of the error's text, so that it is known to be the expected one.
    pub(crate) words: &'static str,
}

/// Asserts the answer of a handler that runs the statements by a driver: 507 with a cause, or 500.
pub(crate) async fn assert_answer<E, Fut>(
    expected: Option<Cause>,
    failing: Failing,
    url: &str,
    driver: impl Fn(String, &'static str) -> Fut + Copy + Send + Sync + 'static,
) where
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
{
    let Failing { sql, words } = failing;
    let url = url.to_owned();
    let work = move || {
        let done = driver(url.clone(), sql);
        async move {
            let done = done.await;
            let said = format!("{done:?}");
            assert!(said.contains(words), "not {words:?}: {said}");
            done
        }
    };
    match expected {
        Some(cause) => assert_refused(cause, work).await,
        None => assert_not_refused(work).await,
    }
}

/// The drivers of one version of sqlx.
macro_rules! sqlx {
    ($sqlx:ident: $($driver:ident by $Connection:ident),*) => {
        $(pub(crate) async fn $driver(url: String, sql: &'static str) -> ::$sqlx::Result<()> {
            let connected = <::$sqlx::$Connection as ::$sqlx::Connection>::connect(&url).await;
            ::$sqlx::Executor::execute(&mut connected?, ::$sqlx::raw_sql(sql)).await?;
            Ok(())
        })*
    };
}
sqlx!(sqlx: sqlx_postgres by PgConnection, sqlx_mysql by MySqlConnection, sqlx_sqlite by SqliteConnection);
sqlx!(sqlx08: sqlx08_postgres by PgConnection, sqlx08_mysql by MySqlConnection);

/// One version of SeaORM.
macro_rules! sea_orm {
    ($sea_orm:ident: $orm:ident) => {
        pub(crate) async fn $orm(url: String, sql: &'static str) -> Result<(), ::$sea_orm::DbErr> {
            use ::$sea_orm::ConnectionTrait as _;

            let mut options = ::$sea_orm::ConnectOptions::new(url);
            options.max_connections(1);
            let connection = ::$sea_orm::Database::connect(options).await?;
            let done = connection.execute_unprepared(sql).await;
            connection.close().await?;
            done?;
            Ok(())
        }
    };
}
sea_orm!(sea_orm: sea_orm);
sea_orm!(sea_orm1: sea_orm1);

pub(crate) async fn tokio_postgres(
    url: String,
    sql: &'static str,
) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(sql).await
}

/// One version of mysql_async.
macro_rules! mysql_async {
    ($mysql_async:ident: $driver:ident) => {
        pub(crate) async fn $driver(url: String, sql: &'static str) -> ::$mysql_async::Result<()> {
            use ::$mysql_async::prelude::Queryable as _;

            let mut connection = ::$mysql_async::Conn::from_url(url).await?;
            let done = connection.query_drop(sql).await;
            connection.disconnect().await?;
            done
        }
    };
}
mysql_async!(mysql_async: mysql_async);
mysql_async!(mysql_async036: mysql_async036);

pub(crate) async fn diesel_postgres(
    url: String,
    sql: &'static str,
) -> Result<(), diesel::result::Error> {
    let connected = AsyncPgConnection::establish(&url).await;
    connected.map_err(query_error)?.batch_execute(sql).await
}

pub(crate) async fn diesel_mysql(
    url: String,
    sql: &'static str,
) -> Result<(), diesel::result::Error> {
    let connected = AsyncMysqlConnection::establish(&url).await;
    connected.map_err(query_error)?.batch_execute(sql).await
}

pub(crate) async fn diesel_sqlite(
    path: String,
    sql: &'static str,
) -> Result<(), diesel::result::Error> {
    use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

    let connected = SqliteConnection::establish(&path);
    connected.map_err(query_error)?.batch_execute(sql)
}

/// diesel also sends queries to every new connection.
fn query_error(error: diesel::ConnectionError) -> diesel::result::Error {
    match error {
        diesel::ConnectionError::CouldntSetupConfiguration(error) => error,
        error => panic!("no connection: {error}"),
    }
}
