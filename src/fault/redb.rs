//! redb.
//!
//! | error | verdict |
//! |---|---|
//! | `Io`, `Backend` | the error inside decides |
//! | `PreviousIo` | as the last of those |
//! | everything else | undecided |
//!
//! They come in a `StorageError`, which is the `Storage` variant of each operation's error type, and in a
//! `redb::Error`. All of these hide their inner errors.
//!
//! After an I/O error, redb does nothing more until the database is reopened. `PreviousIo` does not include that
//! error: see `memory`.
//!
//! Not storage: `ValueTooLarge` is a limit of the program, and all others are usage errors.
//! Documentation: `redb::Error`, `redb::StorageError`; `CheckedBackend` in redb's source.

use std::error::Error;

use super::{
    library::{Library, held, of_type, undecided},
    memory::Said,
};

/// Judges the errors of one version: `kinds` are the error types of its operations, `backend` is the error of a storage
/// backend, and `misused` a usage error.
macro_rules! version {
    ($redb:ident, kinds: [$($kind:ident),*], backend: [$($backend:ident)?], misused: [$($misused:ident)?]) => {
        use super::*;

        use ::$redb::{$($kind,)* StorageError};

        pub(in crate::fault) const LIBRARY: Library = Library {
            look: undecided,
            inside,
            types: &[
                of_type::<::$redb::Error>,
                of_type::<StorageError>,
                $(of_type::<$kind>,)*
            ],
        };

        pub(in crate::fault) fn said(error: &(dyn Error + 'static)) -> Option<Said> {
            if let Some(error) = error.downcast_ref() {
                match error {
                    StorageError::Io(_) | StorageError::Corrupted(_) => Some(Said::Fails),
                    $(StorageError::$backend(_) => Some(Said::Fails),)?
                    StorageError::PreviousIo => Some(Said::FailedBefore),
                    _ => None,
                }
            } else {
                match error.downcast_ref()? {
                    // A cursor that finds the database corrupted returns `PreviousIo` from then on.
                    ::$redb::Error::Io(_) | ::$redb::Error::Corrupted(_) => Some(Said::Fails),
                    $(::$redb::Error::$backend(_) => Some(Said::Fails),)?
                    ::$redb::Error::PreviousIo => Some(Said::FailedBefore),
                    _ => None,
                }
            }
        }

        fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            if let Some(error) = error.downcast_ref() {
                match error {
                    StorageError::Io(error) => Some(error),
                    $(StorageError::$backend(error) => Some(&**error),)?
                    _ => None,
                }
            } else if let Some(error) = error.downcast_ref() {
                match error {
                    ::$redb::Error::Io(error) => Some(error),
                    $(::$redb::Error::$backend(error) => Some(&**error),)?
                    _ => None,
                }
            } else {
                inside_of_a_kind(error)
                    .or_else(|| held::<::$redb::Error>(error))
                    .or_else(|| held::<StorageError>(error))
            }
        }

        /// The inner error of one operation's error type, also in an `Arc` or a `Box`.
        fn inside_of_a_kind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            $(if let Some($kind::Storage(error)) = error.downcast_ref() {
                return Some(error);
            } else if let Some(error) = held::<$kind>(error) {
                return Some(error);
            })*
            None
        }

        #[cfg(test)]
        mod tests {
            tests!($redb, [$($kind),*], [$($backend)?], [$($misused)?]);
        }
    };
}

#[cfg(test)]
macro_rules! tests {
    ($redb:ident, [$($kind:ident),*], [$($backend:ident)?], [$($misused:ident)?]) => {
        use std::{io, sync::Arc};

        use super::*;
        use crate::{cause::Cause, fault::Classifier};
        use tower::BoxError;

        type Kind = fn(StorageError) -> BoxError;

        /// Every error that a `StorageError` comes in.
        const KINDS: &[Kind] = &[
            |error| error.into(),
            |error| ::$redb::Error::from(error).into(),
            $(|error| $kind::from(error).into(),)*
        ];

        fn io(kind: io::ErrorKind) -> StorageError {
            io::Error::from(kind).into()
        }

        fn full() -> StorageError {
            io(io::ErrorKind::StorageFull)
        }

        fn cause(classifier: &Classifier, error: impl Into<BoxError>) -> Option<Cause> {
            classifier.classify(&*error.into()).map(|fault| fault.cause)
        }

        #[test]
        fn every_kind_is_opened() {
            for (number, kind) in KINDS.iter().enumerate() {
                let cause = |error| cause(&Classifier::default(), kind(error));
                assert_eq!(cause(full()), Some(Cause::DiskFull), "{number}");
                let quota = io(io::ErrorKind::QuotaExceeded);
                assert_eq!(cause(quota), Some(Cause::QuotaExceeded), "{number}");
                for other in [
                    io(io::ErrorKind::NotFound),
                    StorageError::ValueTooLarge(1),
                    StorageError::PreviousIo,
                    StorageError::Corrupted("No space left on device".into()),
                    $(StorageError::$misused,)?
                ] {
                    assert_eq!(cause(other), None, "{number}");
                }
            }
        }

        #[test]
        fn every_kind_is_found_in_an_arc() {
            let cause = |error: BoxError| cause(&Classifier::default(), error);
            for error in [
                BoxError::from(Arc::new(full())),
                Arc::new(::$redb::Error::from(full())).into(),
                Arc::new(CommitError::from(full())).into(),
                Arc::new(TableError::from(full())).into(),
                Arc::new(TransactionError::from(full())).into(),
            ] {
                assert_eq!(cause(error), Some(Cause::DiskFull));
            }
            assert_eq!(cause(Arc::new(StorageError::PreviousIo).into()), None);
        }

        #[test]
        fn a_service_can_fail_with_each_kind() {
            let classifier = Classifier::default();
            let cause = |error: &dyn std::any::Any| classifier.classify_any(error);
            assert!(cause(&full()).is_some());
            assert!(cause(&::$redb::Error::from(full())).is_some());
            $(assert!(cause(&$kind::from(full())).is_some());)*
        }

        $(#[test]
        fn a_backend_of_the_users_own_can_be_full() {
            let error = StorageError::$backend(Box::new(io::Error::from(io::ErrorKind::StorageFull)));
            for error in [error.into(), io::Error::other(full()).into()] {
                let error: ::$redb::Error = error;
                assert_eq!(cause(&Classifier::default(), error), Some(Cause::DiskFull));
            }
        })?

        #[test]
        fn previous_io_is_what_it_was_in_every_kind() {
            for first in KINDS.iter() {
                let classifier = Classifier::default();
                let cause = |error| cause(&classifier, error);
                for kind in KINDS.iter() {
                    cause(first(full()));
                    assert_eq!(cause(kind(StorageError::PreviousIo)), Some(Cause::DiskFull));
                    cause(first(io(io::ErrorKind::Other)));
                    assert_eq!(cause(kind(StorageError::PreviousIo)), None);
                }
            }
        }

        #[test]
        fn errors_of_use_are_not_remembered() {
            let classifier = Classifier::default();
            let cause = |error: BoxError| cause(&classifier, error);
            cause(full().into());
            cause(TableError::TableDoesNotExist("table".into()).into());
            cause(StorageError::ValueTooLarge(1).into());
            $(cause(StorageError::$misused.into());)?
            assert_eq!(
                cause(StorageError::PreviousIo.into()),
                Some(Cause::DiskFull)
            );
            cause(StorageError::Corrupted(String::new()).into());
            assert_eq!(cause(StorageError::PreviousIo.into()), None);
        }
    };
}

#[cfg(feature = "redb2")]
pub(super) mod redb2 {
    version!(
        redb2,
        kinds: [
            CommitError, CompactionError, DatabaseError, SavepointError, TableError,
            TransactionError, UpgradeError
        ],
        backend: [],
        misused: []
    );
}

#[cfg(feature = "redb3")]
pub(super) mod redb3 {
    version!(
        redb3,
        kinds: [
            CommitError, CompactionError, DatabaseError, SavepointError, TableError,
            TransactionError
        ],
        backend: [],
        misused: [DatabaseClosed]
    );
}

#[cfg(feature = "redb4")]
pub(super) mod redb4 {
    version!(
        redb4,
        kinds: [
            CommitError, CompactionError, CursorError, DatabaseError, SavepointError,
            TableError, TransactionError
        ],
        backend: [Backend],
        misused: [DatabaseClosed]
    );
}
