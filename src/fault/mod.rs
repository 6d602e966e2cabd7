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
//! - A limit on the size of a file (`FileTooLarge`) is HTTP 413: a smaller request helps, making room does not. See
//!   [`Verdict::TooLarge`].
//! - Memory that ran out (`ENOMEM`) and a filesystem mounted read-only (`EROFS`) say nothing about
//!   storage. Where memory is the storage, as in Redis, it does.
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

#[cfg(feature = "async-nats")]
mod async_nats;
#[cfg(feature = "aws-smithy-types")]
mod aws_smithy_types;
mod classifier;
#[cfg(feature = "clickhouse")]
mod clickhouse;
#[cfg(feature = "diesel")]
mod diesel;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "heed")]
mod heed;
mod io;
#[cfg(feature = "lettre")]
mod lettre;
mod libraries;
mod library;
mod memory;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "mysql_async")]
mod mysql_async;
#[cfg(any(feature = "diesel", feature = "mysql_async", feature = "sqlx"))]
mod mysql_codes;
#[cfg(feature = "object_store")]
mod object_store;
#[cfg(feature = "opendal")]
mod opendal;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "anyhow", feature = "eyre"))]
mod report;
mod rocksdb;
#[cfg(feature = "rusqlite")]
mod rusqlite;
#[cfg(any(
    feature = "aws-smithy-types",
    feature = "object_store",
    feature = "opendal"
))]
mod s3_codes;
#[cfg(feature = "scylla")]
mod scylla;
#[cfg(feature = "sea-orm")]
mod sea_orm;
mod source;
#[cfg(any(feature = "diesel", feature = "rusqlite", feature = "sqlx"))]
mod sqlite_codes;
#[cfg(any(feature = "diesel", feature = "sqlx", feature = "tokio-postgres"))]
mod sqlstate;
#[cfg(feature = "sqlx")]
mod sqlx;
#[cfg(feature = "tantivy")]
mod tantivy;
#[cfg(feature = "tiberius")]
mod tiberius;
#[cfg(feature = "tokio-postgres")]
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
