//! Storage failures, classified by cause.
//!
//! When a disk fills up, a service returns some library's error, with the cause somewhere inside it. A [`Classifier`]
//! finds the cause. It examines the error, then the error inside that one, and so on: the first storage failure
//! becomes the [`Fault`].
//!
//! ```
//! use std::io;
//!
//! use tower_storage_guard::fault::{self, Cause};
//!
//! let full = io::Error::other(io::Error::from(io::ErrorKind::StorageFull));
//! assert_eq!(fault::classify(&full).unwrap().cause, Cause::DiskFull);
//!
//! let missing = io::Error::from(io::ErrorKind::NotFound);
//! assert_eq!(fault::classify(&missing), None);
//! ```
//!
//! # Failures that are not faults
//!
//! - A limit on the size of a file (`FileTooLarge`) is HTTP 413, because a smaller request helps, and making room does
//!   not. See [`Verdict::TooLarge`].
//! - Memory that ran out (`ENOMEM`) and a filesystem mounted read-only (`EROFS`) say nothing about storage. If memory
//!   is the storage, as in Redis, memory that ran out is a fault.
//! - A full disk at the other end of an outbound call is not the guarded server's. The classifier cannot know that:
//!   return [`Verdict::NotOurs`] for it.
#![doc = include_str!("libraries.md")]
//!
//! # Errors that hide their inner errors
//!
//! The walk follows `source()`, and looks into `io::Error`, `Arc` and `Box` where `source()` does
//! not lead. An enum whose variant is `#[error(transparent)]` shows the *source* of the error in
//! it, never that error. Look into such a type with a function of your own:
//!
//! ```
//! use std::{error::Error, fmt, io};
//!
//! use tower_storage_guard::fault::{self, Cause, Classifier, Verdict};
//!
//! #[derive(Debug)]
//! struct Hiding(io::Error);
//!
//! impl fmt::Display for Hiding {
//!     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
//!         self.0.fmt(f)
//!     }
//! }
//!
//! impl Error for Hiding {
//!     fn source(&self) -> Option<&(dyn Error + 'static)> {
//!         self.0.source()
//!     }
//! }
//!
//! let error = Hiding(io::ErrorKind::StorageFull.into());
//! assert_eq!(fault::classify(&error), None);
//!
//! let classifier = Classifier::default().with(|error| {
//!     let hiding = error.downcast_ref::<Hiding>()?;
//!     fault::classify(&hiding.0).map(Verdict::Fault)
//! });
//! assert_eq!(classifier.classify(&error).unwrap().cause, Cause::DiskFull);
//! ```

#[cfg(any(
    feature = "async-nats049",
    feature = "async-nats046",
    feature = "async-nats051"
))]
mod async_nats;
#[cfg(feature = "aws-smithy-types1")]
mod aws_smithy_types;
mod classifier;
#[cfg(any(
    feature = "clickhouse013",
    feature = "clickhouse014",
    feature = "clickhouse015"
))]
mod clickhouse;
#[cfg(feature = "diesel2")]
mod diesel;
#[cfg(any(feature = "fjall2", feature = "fjall3"))]
mod fjall;
#[cfg(any(
    feature = "heed020",
    feature = "heed021",
    feature = "heed022",
    feature = "heed023"
))]
mod heed;
mod io;
#[cfg(feature = "lettre011")]
mod lettre;
mod libraries;
mod library;
mod memory;
#[cfg(any(feature = "mongodb2", feature = "mongodb3"))]
mod mongodb;
#[cfg(any(feature = "mysql_async036", feature = "mysql_async037"))]
mod mysql_async;
#[cfg(any(
    feature = "diesel2",
    feature = "mysql_async036",
    feature = "mysql_async037",
    feature = "sqlx08",
    feature = "sqlx09"
))]
mod mysql_codes;
#[cfg(any(
    feature = "object_store012",
    feature = "object_store013",
    feature = "object_store014"
))]
mod object_store;
#[cfg(any(feature = "opendal054", feature = "opendal055", feature = "opendal059"))]
mod opendal;
#[cfg(any(feature = "redb2", feature = "redb3", feature = "redb4"))]
mod redb;
#[cfg(any(
    feature = "redis027",
    feature = "redis029",
    feature = "redis032",
    feature = "redis1"
))]
mod redis;
#[cfg(any(feature = "anyhow1", feature = "eyre06"))]
mod report;
mod rocksdb;
#[cfg(feature = "rusqlite")]
mod rusqlite;
#[cfg(any(
    feature = "aws-smithy-types1",
    feature = "object_store012",
    feature = "object_store013",
    feature = "object_store014",
    feature = "opendal054",
    feature = "opendal055",
    feature = "opendal059"
))]
mod s3_codes;
#[cfg(feature = "scylla1")]
mod scylla;
#[cfg(any(feature = "sea-orm1", feature = "sea-orm2"))]
mod sea_orm;
mod source;
#[cfg(any(
    feature = "diesel2",
    feature = "rusqlite",
    feature = "sqlx08",
    feature = "sqlx09"
))]
mod sqlite_codes;
#[cfg(any(
    feature = "diesel2",
    feature = "sqlx08",
    feature = "sqlx09",
    feature = "tokio-postgres07"
))]
mod sqlstate;
#[cfg(any(feature = "sqlx08", feature = "sqlx09"))]
mod sqlx;
mod suspect;
#[cfg(any(feature = "tantivy025", feature = "tantivy027"))]
mod tantivy;
#[cfg(any(feature = "tiberius012", feature = "tiberius013"))]
mod tiberius;
#[cfg(feature = "tokio-postgres07")]
mod tokio_postgres;
mod verdict;

#[cfg(feature = "tonic")]
pub(crate) use self::classifier::common;
#[cfg(feature = "tonic")]
pub(crate) use self::source::boxed;
pub(crate) use self::{
    classifier::find,
    source::{error_behind, kept},
};
pub use self::{
    classifier::{Classifier, classify},
    rocksdb::rocksdb,
    source::Source,
    verdict::Verdict,
};
pub use crate::cause::{Cause, Fault, Resource};
