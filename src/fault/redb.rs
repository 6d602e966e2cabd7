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

use redb::{
    CommitError, CompactionError, CursorError, DatabaseError, SavepointError, StorageError,
    TableError, TransactionError,
};

use super::{
    library::{Library, held, of_type, undecided},
    memory::Said,
};

pub(super) const LIBRARY: Library = Library {
    look: undecided,
    inside,
    types: &[
        of_type::<redb::Error>,
        of_type::<CommitError>,
        of_type::<CompactionError>,
        of_type::<CursorError>,
        of_type::<DatabaseError>,
        of_type::<SavepointError>,
        of_type::<StorageError>,
        of_type::<TableError>,
        of_type::<TransactionError>,
    ],
};

pub(super) fn said(error: &(dyn Error + 'static)) -> Option<Said> {
    if let Some(error) = error.downcast_ref() {
        match error {
            StorageError::Io(_) | StorageError::Backend(_) | StorageError::Corrupted(_) => {
                Some(Said::Fails)
            }
            StorageError::PreviousIo => Some(Said::FailedBefore),
            _ => None,
        }
    } else {
        match error.downcast_ref()? {
            // A cursor that finds the database corrupted returns `PreviousIo` from then on.
            redb::Error::Io(_) | redb::Error::Backend(_) | redb::Error::Corrupted(_) => {
                Some(Said::Fails)
            }
            redb::Error::PreviousIo => Some(Said::FailedBefore),
            _ => None,
        }
    }
}

fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref() {
        match error {
            StorageError::Io(error) => Some(error),
            StorageError::Backend(error) => Some(&**error),
            _ => None,
        }
    } else if let Some(error) = error.downcast_ref() {
        match error {
            redb::Error::Io(error) => Some(error),
            redb::Error::Backend(error) => Some(&**error),
            _ => None,
        }
    } else {
        inside_of_a_kind(error)
            .or_else(|| held::<redb::Error>(error))
            .or_else(|| held::<StorageError>(error))
    }
}

/// The inner error of one operation's error type, also in an `Arc` or a `Box`.
fn inside_of_a_kind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    macro_rules! of {
        ($($kind:ident),*) => {
            $(if let Some($kind::Storage(error)) = error.downcast_ref() {
                return Some(error);
            } else if let Some(error) = held::<$kind>(error) {
                return Some(error);
            })*
        };
    }
    of!(
        CommitError,
        CompactionError,
        CursorError,
        DatabaseError,
        SavepointError,
        TableError,
        TransactionError
    );
    None
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;
    use crate::{cause::Cause, fault::Classifier};
    use tower::BoxError;

    type Kind = fn(StorageError) -> BoxError;

    /// Every error that a `StorageError` comes in.
    const KINDS: [Kind; 9] = [
        |error| error.into(),
        |error| redb::Error::from(error).into(),
        |error| CommitError::from(error).into(),
        |error| CompactionError::from(error).into(),
        |error| CursorError::from(error).into(),
        |error| DatabaseError::from(error).into(),
        |error| SavepointError::from(error).into(),
        |error| TableError::from(error).into(),
        |error| TransactionError::from(error).into(),
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
        for (number, kind) in KINDS.into_iter().enumerate() {
            let cause = |error| cause(&Classifier::default(), kind(error));
            assert_eq!(cause(full()), Some(Cause::DiskFull), "{number}");
            let quota = io(io::ErrorKind::QuotaExceeded);
            assert_eq!(cause(quota), Some(Cause::QuotaExceeded), "{number}");
            for other in [
                io(io::ErrorKind::NotFound),
                StorageError::ValueTooLarge(1),
                StorageError::PreviousIo,
                StorageError::Corrupted("No space left on device".into()),
                StorageError::DatabaseClosed,
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
            Arc::new(redb::Error::from(full())).into(),
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
        assert!(cause(&redb::Error::from(full())).is_some());
        assert!(cause(&CommitError::from(full())).is_some());
        assert!(cause(&CompactionError::from(full())).is_some());
        assert!(cause(&CursorError::from(full())).is_some());
        assert!(cause(&DatabaseError::from(full())).is_some());
        assert!(cause(&SavepointError::from(full())).is_some());
        assert!(cause(&TableError::from(full())).is_some());
        assert!(cause(&TransactionError::from(full())).is_some());
    }

    #[test]
    fn a_backend_of_the_users_own_can_be_full() {
        let error = StorageError::Backend(Box::new(io::Error::from(io::ErrorKind::StorageFull)));
        for error in [error.into(), io::Error::other(full()).into()] {
            let error: redb::Error = error;
            assert_eq!(cause(&Classifier::default(), error), Some(Cause::DiskFull));
        }
    }

    #[test]
    fn previous_io_is_what_it_was_in_every_kind() {
        for first in KINDS {
            let classifier = Classifier::default();
            let cause = |error| cause(&classifier, error);
            for kind in KINDS {
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
        cause(StorageError::DatabaseClosed.into());
        assert_eq!(
            cause(StorageError::PreviousIo.into()),
            Some(Cause::DiskFull)
        );
        cause(StorageError::Corrupted(String::new()).into());
        assert_eq!(cause(StorageError::PreviousIo.into()), None);
    }
}
