//! `sea-orm`: `sqlx` inside of it, which is judged in `sqlx.rs`.
//!
//! `RuntimeErr` exposes neither that error nor its source, and `TransactionError` exposes nothing. The latter is
//! opened where it contains a `DbErr`: with an error type of the user's own, its type cannot be named here.

use std::error::Error;

use sea_orm::{DbErr, RuntimeErr, TransactionError};

use super::library::{Library, of_type};

pub(super) const LIBRARY: Library = Library {
    look: |_| None,
    inside,
    types: &[of_type::<DbErr>, of_type::<TransactionError<DbErr>>],
};

fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(RuntimeErr::SqlxError(error)) = error.downcast_ref() {
        return Some(&**error);
    }
    match error.downcast_ref::<TransactionError<DbErr>>()? {
        TransactionError::Connection(error) | TransactionError::Transaction(error) => Some(error),
    }
}
