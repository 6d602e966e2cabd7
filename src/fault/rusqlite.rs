//! rusqlite: SQLite in the process.
//!
//! `ffi::Error::extended_code` decides, by the table of `sqlite_codes`. rusqlite turns extended codes on for every
//! connection, and exposes its `ffi::Error` as a source.
//!
//! Not storage: violated constraints, a database that is busy or locked, rusqlite's own conversion errors.
//! Documentation: `rusqlite::Error`, and "Result and Error Codes" in SQLite's.

use std::error::Error;

use rusqlite::ffi;

use super::{
    Verdict,
    library::{Library, held, of_type},
    sqlite_codes,
};

pub(super) const LIBRARY: Library = Library {
    look,
    inside: held::<ffi::Error>,
    types: &[of_type::<rusqlite::Error>],
};

fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let error = error.downcast_ref::<ffi::Error>()?;
    sqlite_codes::verdict(error.extended_code)
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;
    use crate::{
        cause::Cause,
        fault::{Classifier, classify},
    };
    use tower::BoxError;

    fn failure(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("text".into()))
    }

    fn cause(error: impl Into<BoxError>) -> Option<Cause> {
        classify(&*error.into()).map(|fault| fault.cause)
    }

    #[test]
    fn the_extended_code_decides_in_every_wrapping() {
        for (code, expected) in [
            (ffi::SQLITE_FULL, Some(Cause::DatabaseFull)),
            (ffi::SQLITE_IOERR_SHMSIZE, Some(Cause::DiskFull)),
            (ffi::SQLITE_TOOBIG, None),
            (ffi::SQLITE_NOMEM, None),
            (ffi::SQLITE_BUSY, None),
            (ffi::SQLITE_IOERR_WRITE, None),
            (ffi::SQLITE_CONSTRAINT_UNIQUE, None),
        ] {
            assert_eq!(cause(failure(code)), expected, "{code}");
            assert_eq!(cause(ffi::Error::new(code)), expected, "{code}");
            assert_eq!(cause(Arc::new(failure(code))), expected, "{code}");
            assert_eq!(cause(Arc::new(ffi::Error::new(code))), expected, "{code}");
            assert_eq!(cause(io::Error::other(failure(code))), expected, "{code}");
        }
    }

    #[test]
    fn text_decides_nothing() {
        let text = Some("database or disk is full".to_owned());
        let error =
            rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CONSTRAINT_TRIGGER), text);
        assert_eq!(cause(error), None);
    }

    #[test]
    fn a_service_can_fail_with_it() {
        let fault = Classifier::default().classify_any(&failure(ffi::SQLITE_FULL));
        assert!(fault.is_some());
    }
}
