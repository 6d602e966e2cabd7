//! What comes back from databases, stores, engines and brokers that are full, through a guarded handler and HTTP.

mod mongodb;
mod async_nats;
mod clickhouse;
mod lettre;
mod apart;
#[cfg(target_os = "linux")]
mod fjall;
#[cfg(target_os = "linux")]
mod heed;
#[cfg(target_os = "linux")]
mod mariadb;
#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "the other tests use more of it")]
#[path = "../it/support/mounts.rs"]
mod mounts;
mod object_stores;
mod redis;
#[cfg(target_os = "linux")]
mod postgres;
mod postgres_documents;
#[cfg(target_os = "linux")]
mod sql;
#[cfg(target_os = "linux")]
mod sqlite;
mod responder;
mod scylla;
mod support;
mod tiberius;
#[cfg(target_os = "linux")]
mod redb;
#[cfg(target_os = "linux")]
mod rusqlite;
#[cfg(target_os = "linux")]
mod shared;
mod support;
#[cfg(target_os = "linux")]
mod tantivy;

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
