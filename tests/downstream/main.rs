//! Errors from full databases, stores, engines and brokers, through a guarded handler and HTTP.

#[cfg(target_os = "linux")]
mod aws_chunked;
mod fake_servers;
mod lettre;
#[cfg(target_os = "linux")]
mod mariadb;
#[cfg(target_os = "linux")]
mod object_stores;
#[cfg(target_os = "linux")]
mod postgres;
mod reports;
mod responder;
#[cfg(target_os = "linux")]
mod rusqlite;
mod scylla;
#[cfg(target_os = "linux")]
mod shared;
#[cfg(target_os = "linux")]
mod sql;
#[cfg(target_os = "linux")]
mod sqlite;
#[cfg(target_os = "linux")]
mod sqlite_transactions;
mod support;
mod tokio_postgres;
mod versions;

/// `std::io` needs no feature.
#[tokio::test]
async fn a_full_device() {
    use std::io::{Error, ErrorKind, Write};

    use tower_storage_guard::fault::Cause;

    support::assert_refused(Cause::DiskFull, async || {
        let mut device = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
        device.write_all(b"content")
    })
    .await;
    support::assert_not_refused(async || Err::<(), _>(Error::from(ErrorKind::NotFound))).await;
}
