//! fjall.
//!
//! | error | verdict |
//! |---|---|
//! | `Io`, `Storage(Io)` | the `io::Error` inside decides |
//! | `Poisoned` | as the last of those |
//! | everything else | undecided |
//!
//! fjall exposes the inner error as a source.
//!
//! After a write has failed, including one of its own threads', fjall accepts no writes until the database is
//! reopened. `Poisoned` does not say what the failure was: see `memory`.
//!
//! Documentation: `fjall::Error`; `is_poisoned` in fjall's source.

use std::error::Error;

use super::{
    library::{Library, held, of_type, undecided},
    memory::Said,
};

/// Judges the errors of one version: `failing` are the errors of its trees that an I/O error is in.
macro_rules! version {
    ($fjall:ident, failing: [$($failing:ident),*], misused: [$($misused:ident),*]) => {
        use super::*;

        use ::$fjall::LsmError;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look: undecided,
            // Without this `Poisoned` would not be seen: it has no source.
            inside: held::<::$fjall::Error>,
            types: &[of_type::<::$fjall::Error>],
        };

        pub(in crate::fault) fn said(error: &(dyn Error + 'static)) -> Option<Said> {
            match error.downcast_ref()? {
                ::$fjall::Error::Io(_) => Some(Said::Fails),
                $(::$fjall::Error::Storage(LsmError::$failing(_)) => Some(Said::Fails),)*
                ::$fjall::Error::Poisoned => Some(Said::FailedBefore),
                _ => None,
            }
        }

        #[cfg(test)]
        mod tests {
            tests!($fjall, [$($misused),*]);
        }
    };
}

#[cfg(test)]
macro_rules! tests {
    ($fjall:ident, [$($misused:ident),*]) => {
        use std::{io, sync::Arc};

        use super::*;
        use crate::{cause::Cause, fault::Classifier};
        use tower::BoxError;

        fn journal(kind: io::ErrorKind) -> ::$fjall::Error {
            io::Error::from(kind).into()
        }

        fn tree(kind: io::ErrorKind) -> ::$fjall::Error {
            LsmError::from(io::Error::from(kind)).into()
        }

        fn cause(classifier: &Classifier, error: impl Into<BoxError>) -> Option<Cause> {
            classifier.classify(&*error.into()).map(|fault| fault.cause)
        }

        #[test]
        fn the_error_inside_decides() {
            let cause = |error: BoxError| cause(&Classifier::default(), error);
            for of in [journal, tree] {
                let full = || of(io::ErrorKind::StorageFull);
                assert_eq!(cause(full().into()), Some(Cause::DiskFull));
                assert_eq!(cause(Arc::new(full()).into()), Some(Cause::DiskFull));
                assert_eq!(cause(of(io::ErrorKind::NotFound).into()), None);
                assert!(Classifier::default().classify_any(&full()).is_some());
            }
            assert_eq!(cause(::$fjall::Error::Poisoned.into()), None);
            $(assert_eq!(cause(::$fjall::Error::$misused.into()), None);)*
        }

        #[test]
        fn poisoned_is_what_it_was() {
            let classifier = Classifier::default();
            let cause = |error: BoxError| cause(&classifier, error);
            for of in [journal, tree] {
                cause(of(io::ErrorKind::StorageFull).into());
                // Usage errors.
                $(cause(::$fjall::Error::$misused.into());)*
                let poisoned = Some(Cause::DiskFull);
                assert_eq!(cause(::$fjall::Error::Poisoned.into()), poisoned);
                assert_eq!(cause(Arc::new(::$fjall::Error::Poisoned).into()), poisoned);
                assert_eq!(
                    cause(io::Error::other(::$fjall::Error::Poisoned).into()),
                    poisoned
                );

                cause(of(io::ErrorKind::Other).into());
                assert_eq!(cause(::$fjall::Error::Poisoned.into()), None);
            }
        }
    };
}

#[cfg(feature = "fjall2")]
pub(super) mod fjall2 {
    version!(fjall2, failing: [Io, ValueLog], misused: [PartitionDeleted]);
}

#[cfg(feature = "fjall3")]
pub(super) mod fjall3 {
    version!(fjall3, failing: [Io], misused: [KeyspaceDeleted, Locked]);
}
