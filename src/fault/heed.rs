//! heed: LMDB in the process.
//!
//! | error | verdict |
//! |---|---|
//! | `Mdb(MapFull)` | `database_full`: the map size is the database's own limit |
//! | `Io` | the `io::Error` inside decides |
//! | `Encoding`, `Decoding` | the error inside decides |
//! | everything else | undecided |
//!
//! heed exposes none of its inner errors as a source.
//!
//! A write that a full disk cuts short is EIO in LMDB, as on a broken disk: undecided. The next write, which finds no
//! space at all, is ENOSPC. With `EnvFlags::WRITE_MAP`, a full disk returns no error: the process is killed (SIGBUS).
//!
//! Not storage: `DbsFull`, `ReadersFull`, `TlsFull`, `TxnFull`, `CursorFull` and `PageFull`, which are limits of the
//! program or of one transaction. `Panic` (the environment failed before) does not report the reason.
//!
//! "Return Codes" in LMDB's documentation; `mdb_page_flush` in its source.

use std::error::Error;

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, held, of_type},
};

/// Judges the errors of one version.
macro_rules! version {
    ($heed:ident, $misused:ident) => {
        use super::*;

        use ::$heed::MdbError;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside,
            types: &[of_type::<::$heed::Error>],
        };

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            match error.downcast_ref()? {
                MdbError::MapFull => Some(Verdict::Fault(Fault::new(
                    Cause::DatabaseFull,
                    Resource::Bytes,
                ))),
                _ => None,
            }
        }

        fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            let Some(error) = error.downcast_ref() else {
                return held::<::$heed::Error>(error);
            };
            match error {
                ::$heed::Error::Io(error) => Some(error),
                ::$heed::Error::Mdb(error) => Some(error),
                ::$heed::Error::Encoding(error) | ::$heed::Error::Decoding(error) => Some(&**error),
                _ => None,
            }
        }

        #[cfg(test)]
        mod tests {
            tests!($heed, $misused);
        }
    };
}

#[cfg(test)]
macro_rules! tests {
    ($heed:ident, $misused:ident) => {
        use std::{io, sync::Arc};

        use super::*;
        use crate::fault::{Classifier, classify};
        use tower::BoxError;

        fn cause(error: impl Into<BoxError>) -> Option<Cause> {
            classify(&*error.into()).map(|fault| fault.cause)
        }

        #[test]
        fn a_full_map_is_a_full_database() {
            let full = || ::$heed::Error::from(MdbError::MapFull);
            assert_eq!(cause(full()), Some(Cause::DatabaseFull));
            assert_eq!(cause(Arc::new(full())), Some(Cause::DatabaseFull));
            assert_eq!(cause(io::Error::other(full())), Some(Cause::DatabaseFull));
            assert_eq!(cause(MdbError::MapFull), Some(Cause::DatabaseFull));
            assert!(Classifier::default().classify_any(&full()).is_some());
        }

        #[test]
        fn other_things_that_are_full_are_no_storage() {
            for error in [
                MdbError::DbsFull,
                MdbError::ReadersFull,
                MdbError::TlsFull,
                MdbError::TxnFull,
                MdbError::CursorFull,
                MdbError::PageFull,
                MdbError::MapResized,
                MdbError::Panic,
                MdbError::KeyExist,
                MdbError::BadValSize,
            ] {
                assert_eq!(cause(::$heed::Error::from(error)), None, "{error:?}");
            }
        }

        #[test]
        #[cfg(target_os = "linux")]
        fn the_inner_io_error_decides() {
            // ENOSPC, EDQUOT, and EIO.
            for (code, expected) in [
                (28, Some(Cause::DiskFull)),
                (122, Some(Cause::QuotaExceeded)),
                (5, None),
            ] {
                let error = ::$heed::Error::from(MdbError::Other(code));
                assert_eq!(cause(error), expected, "{code}");
            }
        }

        #[test]
        fn an_encoder_can_fail_for_want_of_storage() {
            let full = || Box::new(io::Error::from(io::ErrorKind::StorageFull));
            assert_eq!(
                cause(::$heed::Error::Encoding(full())),
                Some(Cause::DiskFull)
            );
            assert_eq!(
                cause(::$heed::Error::Decoding(full())),
                Some(Cause::DiskFull)
            );
            assert_eq!(cause(::$heed::Error::$misused), None);
        }
    };
}

#[cfg(feature = "heed020")]
pub(super) mod heed020 {
    version!(heed020, DatabaseClosing);
}

#[cfg(feature = "heed021")]
pub(super) mod heed021 {
    version!(heed021, EnvAlreadyOpened);
}

#[cfg(feature = "heed022")]
pub(super) mod heed022 {
    version!(heed022, EnvAlreadyOpened);
}

#[cfg(feature = "heed023")]
pub(super) mod heed023 {
    version!(heed023, EnvAlreadyOpened);
}
