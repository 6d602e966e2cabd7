//! `mongodb`.
//!
//! | code | cause |
//! |---|---|
//! | 14031 `OutOfDiskSpace` | `disk_full` |
//! | 8000 `AtlasError`, `you are over your space quota` | `quota_exceeded` |
//!
//! The server reports it as the failure of a command, of one write or of several, or as a write concern error. If
//! several errors are reported, one of these is enough. Atlas uses one code for every refusal of its own, so the text
//! has to distinguish them.
//!
//! Not storage: memory (146 `ExceededMemoryLimit`, 292 `QueryExceededMemoryLimitNoDiskUseAllowed`), limits of a
//! request (10334 `BSONObjectTooLarge`, 257 `TransactionTooLarge`), rates (16500 of Cosmos DB, 449
//! `RateLimitExceeded`), 402 `ResourceExhausted`, which does not name the resource, and Atlas' limit on collections
//! (8000, `cannot create a new collection`), which is not a disk's limit. A server whose disk fills up in the middle
//! of a write terminates, so the client sees only a broken connection.
//!
//! MongoDB: `error_codes.yml`. Atlas: "FAQ: Storage".

use std::error::Error;

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, of_type},
};

/// Judges the errors of one version. `many` is the kind of a failed `insert_many`. Version 2 has no
/// `bulk_write`, and does not let its `GridFs` errors be opened.
macro_rules! version {
    ($mongodb:ident, many: $many:ident, bulk: [$($bulk:ident)?], grid_fs: [$($grid_fs:ident)?]) => {
        use super::*;

        use ::$mongodb::error::{Error as MongoError, ErrorKind, WriteFailure};
        $(use ::$mongodb::error::GridFsErrorKind::$grid_fs;)?

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside,
            types: &[of_type::<MongoError>],
        };

        /// `source()` leads only from one error of the library to another.
        fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            match &*error.downcast_ref::<MongoError>()?.kind {
                ErrorKind::Io(shared) => Some(&**shared),
                // The failed upload takes precedence over the failed cleanup.
                $(ErrorKind::GridFs($grid_fs { original_error, .. }) => {
                    original_error.as_ref().map(|error| error as _)
                })?
                _ => None,
            }
        }

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            match &*error.downcast_ref::<MongoError>()?.kind {
                ErrorKind::Command(error) => verdict(error.code, &error.message),
                ErrorKind::Write(WriteFailure::WriteError(error)) => verdict(error.code, &error.message),
                ErrorKind::Write(WriteFailure::WriteConcernError(error)) => {
                    verdict(error.code, &error.message)
                }
                ErrorKind::$many(errors) => {
                    let writes = errors.write_errors.iter().flatten();
                    let concern = errors.write_concern_error.iter();
                    (writes.map(|error| (error.code, &error.message)))
                        .chain(concern.map(|error| (error.code, &error.message)))
                        .find_map(|(code, message)| verdict(code, message))
                }
                $(ErrorKind::$bulk(errors) => {
                    let writes = errors.write_errors.values();
                    let concerns = errors.write_concern_errors.iter();
                    (writes.map(|error| (error.code, &error.message)))
                        .chain(concerns.map(|error| (error.code, &error.message)))
                        .find_map(|(code, message)| verdict(code, message))
                })?
                _ => None,
            }
        }

        #[cfg(test)]
        mod tests {
            tests!($mongodb, $many);
        }
    };
}

fn verdict(code: i32, message: &str) -> Option<Verdict> {
    let cause = match code {
        14031 => Cause::DiskFull,
        8000 if message.starts_with("you are over your space quota") => Cause::QuotaExceeded,
        _ => return None,
    };
    Some(Verdict::Fault(Fault::new(cause, Resource::Bytes)))
}

#[cfg(test)]
macro_rules! tests {
    ($mongodb:ident, $many:ident) => {
        use std::io;

        use ::$mongodb::{
            bson::{Document, doc, from_document},
            error::{CommandError, WriteConcernError, WriteError},
        };
        use serde::de::DeserializeOwned;

        use super::*;
        use crate::fault::{Classifier, classify};

        /// The library has no constructors for these: it deserializes them from what the server sends.
        fn read<T: DeserializeOwned>(document: Document) -> T {
            from_document(document).unwrap()
        }

        fn command(code: i32, message: &str) -> MongoError {
            let error: CommandError =
                read(doc! { "code": code, "codeName": "a", "errmsg": message });
            ErrorKind::Command(error).into()
        }

        #[test]
        fn codes_of_commands() {
            for (code, message, expected) in [
                (
                    14031,
                    "available disk space is too little",
                    Some(Cause::DiskFull),
                ),
                (
                    8000,
                    "you are over your space quota, using 513 MB of 512 MB",
                    Some(Cause::QuotaExceeded),
                ),
                (
                    8000,
                    "cannot create a new collection -- already using 500 collections of 500",
                    None,
                ),
                (
                    8000,
                    "user is not allowed to: you are over your space quota",
                    None,
                ),
                (11000, "duplicate key: you are over your space quota", None),
                (146, "exceeded memory limit", None),
                (292, "exceeded memory limit", None),
                (257, "transaction too large", None),
                (402, "resource exhausted", None),
                (449, "rate limit exceeded", None),
                (10334, "object to insert too large", None),
                (50, "operation exceeded time limit", None),
                (0, "", None),
            ] {
                let found = classify(&command(code, message));
                assert_eq!(found.map(|fault| fault.cause), expected, "{code} {message}");
                let wrapped = io::Error::other(command(code, message));
                assert_eq!(classify(&wrapped), found, "{code} {message}");
            }
        }

        #[test]
        fn each_place_of_a_write_error() {
            let cause = |kind: ErrorKind| {
                let found = classify(&MongoError::from(kind));
                found.map(|fault| fault.cause)
            };
            for (code, expected) in [(14031, Some(Cause::DiskFull)), (11000, None)] {
                let error = || doc! { "code": code, "errmsg": "a", "index": 1 };
                let duplicate = doc! { "code": 11000, "errmsg": "b", "index": 0 };

                let write: WriteError = read(error());
                assert_eq!(
                    cause(ErrorKind::Write(WriteFailure::WriteError(write))),
                    expected
                );
                let concern: WriteConcernError = read(error());
                let kind = ErrorKind::Write(WriteFailure::WriteConcernError(concern));
                assert_eq!(cause(kind), expected);

                let many = read(doc! { "writeErrors": [duplicate.clone(), error()] });
                assert_eq!(cause(ErrorKind::$many(many)), expected);
                let many = read(doc! { "writeErrors": [duplicate], "writeConcernError": error() });
                assert_eq!(cause(ErrorKind::$many(many)), expected);
            }
        }

        #[test]
        fn an_io_error_within_is_opened() {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            assert_eq!(classify(&MongoError::from(full)), Some(Fault::DISK_FULL));
            let late = io::Error::from(io::ErrorKind::TimedOut);
            assert_eq!(classify(&MongoError::from(late)), None);
        }

        #[test]
        fn a_service_may_fail_with_it() {
            assert_eq!(
                Classifier::default().classify_any(&command(14031, "a")),
                Some(Fault::DISK_FULL)
            );
        }
    };
}

#[cfg(feature = "mongodb2")]
pub(super) mod mongodb2 {
    version!(mongodb2, many: BulkWrite, bulk: [], grid_fs: []);
}

#[cfg(feature = "mongodb3")]
pub(super) mod mongodb3 {
    version!(mongodb3, many: InsertMany, bulk: [BulkWrite], grid_fs: [AbortError]);
}
