//! tantivy.
//!
//! | error | verdict |
//! |---|---|
//! | `IoError`, and the I/O errors of `OpenDirectoryError`, `OpenReadError`, `OpenWriteError`, `DeleteError`, `LockError` | the `io::Error` inside decides |
//! | `ErrorInThread` that says that the index writer was killed | as the last of those |
//! | everything else | undecided |
//!
//! tantivy hides all of these.
//!
//! Documents are written by threads. One that fails keeps its error until the next `commit` or `prepare_commit`, which
//! fails with it. Until then, and of merges for good, only the text says that a thread has failed, and not for what: see
//! `memory`. `wait_merging_threads` loses the error altogether.
//!
//! Not storage: `AggregationError::MemoryExceeded` and `BucketLimitExceeded` are limits of one request, `LockBusy` is
//! another writer.
//! Documentation: `tantivy::TantivyError`, `tantivy::directory::error`; `IndexWriter` in tantivy's source.

use std::error::Error;

use tantivy::{
    TantivyError,
    directory::error::{DeleteError, LockError, OpenDirectoryError, OpenReadError, OpenWriteError},
};

use super::{
    library::{Library, held, of_type, undecided},
    memory::Said,
};

pub(super) const LIBRARY: Library = Library {
    look: undecided,
    inside,
    types: &[
        of_type::<TantivyError>,
        of_type::<DeleteError>,
        of_type::<LockError>,
        of_type::<OpenDirectoryError>,
        of_type::<OpenReadError>,
        of_type::<OpenWriteError>,
    ],
};

/// How `ErrorInThread` begins where the writer takes no more documents: from `add_document`, and from `commit`.
const KILLED: [&str; 2] = [
    "An index writer was killed.",
    "The index writer was killed.",
];

pub(super) fn said(error: &(dyn Error + 'static)) -> Option<Said> {
    match error.downcast_ref()? {
        TantivyError::IoError(_) | TantivyError::OpenWriteError(OpenWriteError::IoError { .. }) => {
            Some(Said::Fails)
        }
        TantivyError::ErrorInThread(text)
            if KILLED.iter().any(|killed| text.starts_with(killed)) =>
        {
            Some(Said::FailedBefore)
        }
        _ => None,
    }
}

fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let inside = if let Some(error) = error.downcast_ref() {
        match error {
            TantivyError::IoError(error) => error,
            TantivyError::LockFailure(error, _) => return Some(error),
            // The others are its source.
            _ => return None,
        }
    } else if let Some(OpenWriteError::IoError { io_error, .. }) = error.downcast_ref() {
        io_error
    } else if let Some(OpenReadError::IoError { io_error, .. }) = error.downcast_ref() {
        io_error
    } else if let Some(DeleteError::IoError { io_error, .. }) = error.downcast_ref() {
        io_error
    } else if let Some(LockError::IoError(io_error)) = error.downcast_ref() {
        io_error
    } else if let Some(
        OpenDirectoryError::IoError { io_error, .. }
        | OpenDirectoryError::FailedToCreateTempDir(io_error),
    ) = error.downcast_ref()
    {
        io_error
    } else {
        return held::<TantivyError>(error);
    };
    Some(&**inside)
}

#[cfg(all(test, not(storage_guard_loom)))]
mod tests {
    use std::{io, path::PathBuf, sync::Arc};

    use tantivy::aggregation::AggregationError;

    use super::*;
    use crate::{
        BoxError,
        fault::{Cause, Classifier},
    };

    /// An I/O error in every error of tantivy's that has one.
    fn wrapped(kind: io::ErrorKind) -> Vec<BoxError> {
        let error = || io::Error::from(kind);
        let path = PathBuf::new;
        let write = || OpenWriteError::wrap_io_error(error(), path());
        let read = || OpenReadError::wrap_io_error(error(), path());
        let directory = || OpenDirectoryError::wrap_io_error(error(), path());
        let temporary = || OpenDirectoryError::FailedToCreateTempDir(Arc::new(error()));
        let lock = || LockError::wrap_io_error(error());
        let delete = DeleteError::IoError {
            io_error: Arc::new(error()),
            filepath: path(),
        };
        vec![
            TantivyError::from(error()).into(),
            Arc::new(TantivyError::from(error())).into(),
            Box::new(TantivyError::from(error())).into(),
            io::Error::other(TantivyError::from(error())).into(),
            TantivyError::from(write()).into(),
            write().into(),
            TantivyError::from(read()).into(),
            read().into(),
            TantivyError::from(directory()).into(),
            directory().into(),
            TantivyError::from(temporary()).into(),
            temporary().into(),
            TantivyError::from(lock()).into(),
            lock().into(),
            delete.into(),
        ]
    }

    fn cause(classifier: &Classifier, error: impl Into<BoxError>) -> Option<Cause> {
        classifier.classify(&*error.into()).map(|fault| fault.cause)
    }

    #[test]
    fn every_hidden_error_decides() {
        let classifier = Classifier::default();
        for error in wrapped(io::ErrorKind::StorageFull) {
            assert_eq!(
                classifier.classify(&*error).map(|fault| fault.cause),
                Some(Cause::DiskFull),
                "{error:?}"
            );
        }
        for error in wrapped(io::ErrorKind::NotFound) {
            assert_eq!(classifier.classify(&*error), None, "{error:?}");
        }
    }

    #[test]
    fn a_service_can_fail_with_it() {
        let full = TantivyError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(Classifier::default().classify_any(&full).is_some());
    }

    #[test]
    fn what_has_no_error_inside_is_undecided() {
        let classifier = Classifier::default();
        cause(
            &classifier,
            TantivyError::from(io::Error::from(io::ErrorKind::StorageFull)),
        );
        for error in [
            TantivyError::from(LockError::LockBusy),
            TantivyError::from(OpenDirectoryError::DoesNotExist(PathBuf::new())),
            TantivyError::ErrorInThread("No space left on device".into()),
            TantivyError::ErrorInThread("It said: An index writer was killed.".into()),
            TantivyError::SystemError("No space left on device".into()),
            TantivyError::from(AggregationError::BucketLimitExceeded {
                limit: 1,
                current: 2,
            }),
            TantivyError::IndexAlreadyExists,
        ] {
            assert_eq!(cause(&classifier, error.clone()), None, "{error:?}");
        }
    }

    #[test]
    fn a_killed_writer_is_what_killed_it() {
        let classifier = Classifier::default();
        let cause = |error: TantivyError| cause(&classifier, error);
        let io = |kind| TantivyError::from(io::Error::from(kind));
        let open = |kind: io::ErrorKind| {
            TantivyError::from(OpenWriteError::wrap_io_error(kind.into(), PathBuf::new()))
        };
        for text in KILLED {
            let killed = || TantivyError::ErrorInThread(format!("{text} And so on."));
            for of in [io, open] {
                cause(of(io::ErrorKind::StorageFull));
                assert_eq!(cause(killed()), Some(Cause::DiskFull));
                cause(of(io::ErrorKind::Other));
                assert_eq!(cause(killed()), None);
            }
        }
    }
}
