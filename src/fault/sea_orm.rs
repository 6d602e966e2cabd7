//! `sea-orm`: `sqlx` inside of it, which is judged in `sqlx.rs`.
//!
//! `RuntimeErr` exposes neither that error nor its source, and `TransactionError` exposes nothing. The latter is
//! opened where it contains a `DbErr`: with an error type of the user's own, its type cannot be named here.

use std::error::Error;

use super::library::{Library, of_type};

/// Judges the errors of one version. Version 2 holds the error of sqlx in an `Arc`.
macro_rules! version {
    ($sea_orm:ident, $held:ident => $sqlx:expr) => {
        use super::*;

        use ::$sea_orm::{DbErr, RuntimeErr, TransactionError};

        pub(in crate::fault) const LIBRARY: Library = Library {
            look: |_| None,
            inside,
            types: &[of_type::<DbErr>, of_type::<TransactionError<DbErr>>],
        };

        fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            if let Some(RuntimeErr::SqlxError($held)) = error.downcast_ref() {
                return Some($sqlx);
            }
            match error.downcast_ref::<TransactionError<DbErr>>()? {
                TransactionError::Connection(error) | TransactionError::Transaction(error) => {
                    Some(error)
                }
            }
        }
    };
}

#[cfg(feature = "sea-orm1")]
pub(super) mod sea_orm1 {
    version!(sea_orm1, error => error);
}

#[cfg(feature = "sea-orm2")]
pub(super) mod sea_orm2 {
    version!(sea_orm2, shared => &**shared);
}
