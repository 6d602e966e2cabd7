//! SQL Server: it is not installed here, so a minimal server speaks its protocol.

use super::tiberius::{AuthMethod, Client, Config, EncryptionLevel, error::Error};
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncWriteCompatExt as _;
use tower_storage_guard::fault::Cause;

use crate::responder::sql_server;
use crate::support::{assert_not_refused, assert_refused};

async fn insert(port: u16) -> Result<(), Error> {
    let mut config = Config::new();
    config.authentication(AuthMethod::sql_server("user", "password"));
    config.encryption(EncryptionLevel::NotSupported);
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut client = Client::connect(config, stream.compat_write()).await?;
    let answer = client.simple_query("INSERT INTO t VALUES (1)").await?;
    answer.into_results().await?;
    Ok(())
}

#[tokio::test]
async fn a_full_filegroup_log_or_quota_is_a_fault() {
    for (number, cause) in [
        (1105, Cause::DatabaseFull),
        (9002, Cause::DatabaseFull),
        (40544, Cause::QuotaExceeded),
        (3257, Cause::DiskFull),
    ] {
        let port = sql_server(number).await;
        assert_refused(cause, move || insert(port)).await;
    }
}

#[tokio::test]
async fn memory_deadlocks_and_duplicates_are_no_fault() {
    for number in [701, 1205, 2627, 8645] {
        let port = sql_server(number).await;
        assert_not_refused(move || insert(port)).await;
    }
}
