//! `sea-orm`: `sqlx` inside of it, which is judged in `sqlx.rs`.
//!
//! `RuntimeErr` shows neither that error nor its source, and `TransactionError` shows nothing. The latter is opened
//! where what is in it is a `DbErr`: with an error type of the user's own, it has no name here.

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
