//! Connections to PostgreSQL.

use std::time::Duration;

use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;
use tower_storage_guard::BoxError;

/// How long the first connection may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Reads a URL. sqlx takes one of any scheme, and what comes first in others for the name of a database.
///
/// # Errors
///
/// When it is no URL of PostgreSQL. The text does not contain it, because there may be a password in it.
pub fn parse(url: &str) -> Result<PgConnectOptions, String> {
    let is_ours = ["postgres://", "postgresql://"].map(|scheme| url.starts_with(scheme));
    if !is_ours.contains(&true) {
        return Err("expected postgres://USER@HOST/DATABASE".to_owned());
    }
    url.parse()
        .map_err(|error| format!("that is no address of PostgreSQL: {error}"))
}

/// Connects once, so that a start fails at once and with the cause. A pool would try again for half a minute, and say only that it
/// has timed out.
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, BoxError> {
    match timeout(PATIENCE, options.connect()).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(format!("the server has not answered within {PATIENCE:?}").into()),
    }
}

/// The address of a database, without user and password.
pub fn name(options: &PgConnectOptions) -> String {
    let (host, port) = (options.get_host(), options.get_port());
    let database = options.get_database().unwrap_or(options.get_username());
    format!("postgres://{host}:{port}/{database}")
}
