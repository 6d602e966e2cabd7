//! `sqlx`: the errors of PostgreSQL, MySQL, MariaDB and SQLite. Their codes are judged in `sqlstate.rs`,
//! `mysql_codes.rs` and `sqlite_codes.rs`.
//!
//! This crate's feature turns on none of sqlx's drivers, so their error types cannot be named here. The driver is
//! identified by what it writes before the server's message (`Display` in `error.rs` of `sqlx-mysql` and
//! `sqlx-sqlite`), which neither servers nor users can influence. Any other driver has a SQLSTATE.

use std::{error::Error, sync::Arc};

use super::{
    Verdict,
    library::{Library, of_type},
    mysql_codes, sqlite_codes, sqlstate,
};

/// Judges the errors of one version.
macro_rules! version {
    ($sqlx:ident) => {
        use super::*;

        use ::$sqlx::error::DatabaseError;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside,
            types: &[of_type::<::$sqlx::Error>, of_type::<Arc<::$sqlx::Error>>],
        };

        /// A box has no source. The driver's error is inside, and users may want to examine it.
        fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            let error = error.downcast_ref::<Box<dyn DatabaseError>>()?;
            Some(&**error)
        }

        /// The source of `sqlx::Error::Database` is the box.
        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            let error = error.downcast_ref::<Box<dyn DatabaseError>>()?;
            let (code, message) = (error.code()?, error.message());
            let text = error.to_string();
            let before = text.strip_suffix(message).unwrap_or_default();
            if let Some(number) = before.strip_suffix(&format!(" ({code}): ")) {
                mysql_codes::verdict(number.parse().ok()?, message)
            } else if before == format!("(code: {code}) ") {
                sqlite_codes::verdict(code.parse().ok()?)
            } else {
                sqlstate::verdict(&code, message)
            }
        }
    };
}

#[cfg(feature = "sqlx08")]
pub(super) mod sqlx08 {
    version!(sqlx08);
}

#[cfg(feature = "sqlx09")]
pub(super) mod sqlx09 {
    version!(sqlx);
}
