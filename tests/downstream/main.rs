//! Errors from full databases, stores, engines and brokers, through a guarded handler and HTTP.

mod async_nats;
mod clickhouse;
mod fake_servers;
#[cfg(target_os = "linux")]
mod fjall;
#[cfg(target_os = "linux")]
mod heed;
mod lettre;
#[cfg(target_os = "linux")]
mod mariadb;
mod mongodb;
#[cfg(target_os = "linux")]
mod object_stores;
#[cfg(target_os = "linux")]
mod postgres;
#[cfg(target_os = "linux")]
mod redb;
#[cfg(target_os = "linux")]
mod redis;
mod reports;
mod responder;
#[cfg(target_os = "linux")]
mod rusqlite;
mod scylla;
mod sea_orm;
#[cfg(target_os = "linux")]
mod shared;
#[cfg(target_os = "linux")]
mod sql;
#[cfg(target_os = "linux")]
mod sqlite;
#[cfg(target_os = "linux")]
mod sqlite_transactions;
mod sqlx;
mod support;
#[cfg(target_os = "linux")]
mod tantivy;
mod tiberius;
mod tokio_postgres;

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
