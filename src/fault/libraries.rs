//! Every library and engine whose feature is on.

use super::{library::Library, memory::Sticky};

/// Every library whose feature is on.
pub(super) const LIBRARIES: &[Library] = &[
    super::io::LIBRARY,
    #[cfg(any(feature = "anyhow", feature = "eyre"))]
    super::report::LIBRARY,
    #[cfg(feature = "async-nats")]
    super::async_nats::LIBRARY,
    #[cfg(feature = "aws-smithy-types")]
    super::aws_smithy_types::LIBRARY,
    #[cfg(feature = "clickhouse")]
    super::clickhouse::LIBRARY,
    #[cfg(feature = "diesel")]
    super::diesel::LIBRARY,
    #[cfg(feature = "fjall")]
    super::fjall::LIBRARY,
    #[cfg(feature = "heed")]
    super::heed::LIBRARY,
    #[cfg(feature = "lettre")]
    super::lettre::LIBRARY,
    #[cfg(feature = "mongodb")]
    super::mongodb::LIBRARY,
    #[cfg(feature = "mysql_async")]
    super::mysql_async::LIBRARY,
    #[cfg(feature = "object_store")]
    super::object_store::LIBRARY,
    #[cfg(feature = "opendal")]
    super::opendal::LIBRARY,
    #[cfg(feature = "redb")]
    super::redb::LIBRARY,
    #[cfg(feature = "redis")]
    super::redis::LIBRARY,
    #[cfg(feature = "rusqlite")]
    super::rusqlite::LIBRARY,
    #[cfg(feature = "scylla")]
    super::scylla::LIBRARY,
    #[cfg(feature = "sea-orm")]
    super::sea_orm::LIBRARY,
    #[cfg(feature = "sqlx")]
    super::sqlx::LIBRARY,
    #[cfg(feature = "tantivy")]
    super::tantivy::LIBRARY,
    #[cfg(feature = "tiberius")]
    super::tiberius::LIBRARY,
    #[cfg(feature = "tokio-postgres")]
    super::tokio_postgres::LIBRARY,
];

/// Every engine whose feature is on.
pub(super) const STICKY: &[Sticky] = &[
    #[cfg(feature = "fjall")]
    super::fjall::said,
    #[cfg(feature = "redb")]
    super::redb::said,
];
