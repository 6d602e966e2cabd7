//! tantivy.
//!
//! | error | verdict |
//! |---|---|
//! | `IoError`, and the I/O errors of `OpenDirectoryError`, `OpenReadError`, `OpenWriteError`, `DeleteError`, `LockError` and `tantivy_fst::Error` | the `io::Error` inside decides |
//! | everything else | undecided |
//!
//! tantivy hides all of these. A full disk most often appears first as the last one, from its term dictionaries.
//!
//! Threads write the documents. When one fails, `add_document` returns `ErrorInThread`, which has no reason and is
//! also returned for a panic: undecided. The next `commit` or `prepare_commit` fails with the error itself.
//! `wait_merging_threads` drops it. A writer whose commit has failed has fewer threads, or none: it accepts documents
//! and loses them, so it has to be reopened.
//!
//! Not storage: `AggregationError::MemoryExceeded` and `BucketLimitExceeded` are limits of one request, `LockBusy` is
//! another writer.
//! Documentation: `tantivy::TantivyError`, `tantivy::directory::error`; `IndexWriter` in tantivy's source.

use std::error::Error;

use super::library::{Library, held, of_type, undecided};

/// Judges the errors of one version.
macro_rules! version {
    ($tantivy:ident) => {
        use super::*;

        use ::$tantivy::{
            TantivyError,
            directory::error::{
                DeleteError, LockError, OpenDirectoryError, OpenReadError, OpenWriteError,
            },
        };

        pub(in crate::fault) const LIBRARY: Library = Library {
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

        fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            let inside = if let Some(error) = error.downcast_ref() {
                match error {
                    TantivyError::IoError(error) => error,
                    TantivyError::LockFailure(error, _) => return Some(error),
                    // The others are exposed as its source.
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
            } else if let Some(tantivy_fst::Error::Io(error)) = error.downcast_ref() {
                return Some(error);
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

        #[cfg(test)]
        mod tests {
            tests!($tantivy);
        }
    };
}

#[cfg(test)]
macro_rules! tests {
    ($tantivy:ident) => {
        use std::{io, path::PathBuf, sync::Arc};

        use ::$tantivy::aggregation::AggregationError;

        use super::*;
        use crate::{
            cause::Cause,
            fault::{Classifier, classify},
        };
        use tower::BoxError;

        /// An I/O error in every tantivy error that can hold one.
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
                TantivyError::from(io::Error::other(tantivy_fst::Error::from(error()))).into(),
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

        #[test]
        fn every_hidden_error_decides() {
            for error in wrapped(io::ErrorKind::StorageFull) {
                let cause = classify(&*error).map(|fault| fault.cause);
                assert_eq!(cause, Some(Cause::DiskFull), "{error:?}");
            }
            for error in wrapped(io::ErrorKind::NotFound) {
                assert_eq!(classify(&*error), None, "{error:?}");
            }
        }

        #[test]
        fn a_service_can_fail_with_it() {
            let full = TantivyError::from(io::Error::from(io::ErrorKind::StorageFull));
            assert!(Classifier::default().classify_any(&full).is_some());
        }

        #[test]
        fn an_error_without_an_inner_one_is_undecided() {
            for error in [
                TantivyError::from(LockError::LockBusy),
                TantivyError::from(OpenDirectoryError::DoesNotExist(PathBuf::new())),
                TantivyError::ErrorInThread("No space left on device".into()),
                TantivyError::SystemError("No space left on device".into()),
                TantivyError::from(AggregationError::BucketLimitExceeded {
                    limit: 1,
                    current: 2,
                }),
                TantivyError::IndexAlreadyExists,
            ] {
                assert_eq!(classify(&error), None, "{error:?}");
            }
        }
    };
}

#[cfg(feature = "tantivy025")]
pub(super) mod tantivy025 {
    version!(tantivy025);
}

#[cfg(feature = "tantivy027")]
pub(super) mod tantivy027 {
    version!(tantivy027);
}
