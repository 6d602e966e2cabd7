//! What is known of each library that can fail for want of storage.

use std::{any::Any, error::Error, sync::Arc};

use super::Verdict;

/// What is known of one library.
pub(super) struct Library {
    /// What one of its errors says. None when the error is not that library's, or does not decide.
    pub(super) look: fn(&(dyn Error + 'static)) -> Option<Verdict>,
    /// The error inside of one of its errors, where `source()` does not lead to it.
    pub(super) inside: for<'a> fn(&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)>,
    /// Its errors, as a service fails with them.
    pub(super) types: &'static [OfType],
}

/// The error in a value of one type.
pub(super) type OfType = fn(&dyn Any) -> Option<&(dyn Error + 'static)>;

/// Every library whose feature is on.
pub(super) const LIBRARIES: &[Library] = &[
    super::io::LIBRARY,
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

/// For [`Library::types`].
pub(super) fn of_type<E: Error + 'static>(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
    error.downcast_ref::<E>().map(|error| error as _)
}

/// For [`Library::inside`]: the error in an `Arc` or a `Box` of its own, which show its source in its place.
pub(super) fn held<'a, E: Error + 'static>(
    error: &'a (dyn Error + 'static),
) -> Option<&'a (dyn Error + 'static)> {
    if let Some(shared) = error.downcast_ref::<Arc<E>>() {
        Some(&**shared)
    } else {
        let boxed = error.downcast_ref::<Box<E>>()?;
        Some(&**boxed)
    }
}

/// For [`Library::look`], where only what is inside of a library's errors decides.
#[cfg(any(feature = "fjall", feature = "redb", feature = "tantivy"))]
pub(super) fn undecided(_: &(dyn Error + 'static)) -> Option<Verdict> {
    None
}
