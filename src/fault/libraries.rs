//! Every library and engine whose feature is on.

use super::{library::Library, memory::Sticky};

/// Every library whose feature is on, in each of its versions.
pub(super) const LIBRARIES: &[Library] = &[
    super::io::LIBRARY,
    #[cfg(any(feature = "anyhow1", feature = "eyre06"))]
    super::report::LIBRARY,
    #[cfg(feature = "async-nats049")]
    super::async_nats::async_nats049::LIBRARY,
    #[cfg(feature = "async-nats046")]
    super::async_nats::async_nats046::LIBRARY,
    #[cfg(feature = "async-nats051")]
    super::async_nats::async_nats051::LIBRARY,
    #[cfg(feature = "aws-smithy-types1")]
    super::aws_smithy_types::LIBRARY,
    #[cfg(feature = "clickhouse013")]
    super::clickhouse::clickhouse013::LIBRARY,
    #[cfg(feature = "clickhouse014")]
    super::clickhouse::clickhouse014::LIBRARY,
    #[cfg(feature = "clickhouse015")]
    super::clickhouse::clickhouse015::LIBRARY,
    #[cfg(feature = "diesel2")]
    super::diesel::LIBRARY,
    #[cfg(feature = "fjall2")]
    super::fjall::fjall2::LIBRARY,
    #[cfg(feature = "fjall3")]
    super::fjall::fjall3::LIBRARY,
    #[cfg(feature = "heed020")]
    super::heed::heed020::LIBRARY,
    #[cfg(feature = "heed021")]
    super::heed::heed021::LIBRARY,
    #[cfg(feature = "heed022")]
    super::heed::heed022::LIBRARY,
    #[cfg(feature = "heed023")]
    super::heed::heed023::LIBRARY,
    #[cfg(feature = "lettre011")]
    super::lettre::LIBRARY,
    #[cfg(feature = "mongodb2")]
    super::mongodb::mongodb2::LIBRARY,
    #[cfg(feature = "mongodb3")]
    super::mongodb::mongodb3::LIBRARY,
    #[cfg(feature = "mysql_async036")]
    super::mysql_async::mysql_async036::LIBRARY,
    #[cfg(feature = "mysql_async037")]
    super::mysql_async::mysql_async037::LIBRARY,
    #[cfg(feature = "object_store012")]
    super::object_store::object_store012::LIBRARY,
    #[cfg(feature = "object_store013")]
    super::object_store::object_store013::LIBRARY,
    #[cfg(feature = "object_store014")]
    super::object_store::object_store014::LIBRARY,
    #[cfg(feature = "opendal054")]
    super::opendal::opendal054::LIBRARY,
    #[cfg(feature = "opendal055")]
    super::opendal::opendal055::LIBRARY,
    #[cfg(feature = "opendal059")]
    super::opendal::opendal059::LIBRARY,
    #[cfg(feature = "redb2")]
    super::redb::redb2::LIBRARY,
    #[cfg(feature = "redb3")]
    super::redb::redb3::LIBRARY,
    #[cfg(feature = "redb4")]
    super::redb::redb4::LIBRARY,
    #[cfg(feature = "redis027")]
    super::redis::redis027::LIBRARY,
    #[cfg(feature = "redis029")]
    super::redis::redis029::LIBRARY,
    #[cfg(feature = "redis032")]
    super::redis::redis032::LIBRARY,
    #[cfg(feature = "redis1")]
    super::redis::redis1::LIBRARY,
    #[cfg(feature = "rusqlite")]
    super::rusqlite::LIBRARY,
    #[cfg(feature = "scylla1")]
    super::scylla::LIBRARY,
    #[cfg(feature = "sea-orm1")]
    super::sea_orm::sea_orm1::LIBRARY,
    #[cfg(feature = "sea-orm2")]
    super::sea_orm::sea_orm2::LIBRARY,
    #[cfg(feature = "sqlx08")]
    super::sqlx::sqlx08::LIBRARY,
    #[cfg(feature = "sqlx09")]
    super::sqlx::sqlx09::LIBRARY,
    #[cfg(feature = "tantivy025")]
    super::tantivy::tantivy025::LIBRARY,
    #[cfg(feature = "tantivy027")]
    super::tantivy::tantivy027::LIBRARY,
    #[cfg(feature = "tiberius012")]
    super::tiberius::tiberius012::LIBRARY,
    #[cfg(feature = "tiberius013")]
    super::tiberius::tiberius013::LIBRARY,
    #[cfg(feature = "tokio-postgres07")]
    super::tokio_postgres::LIBRARY,
];

/// Every engine whose feature is on.
pub(super) const STICKY: &[Sticky] = &[
    #[cfg(feature = "fjall2")]
    super::fjall::fjall2::said,
    #[cfg(feature = "fjall3")]
    super::fjall::fjall3::said,
    #[cfg(feature = "redb2")]
    super::redb::redb2::said,
    #[cfg(feature = "redb3")]
    super::redb::redb3::said,
    #[cfg(feature = "redb4")]
    super::redb::redb4::said,
];
