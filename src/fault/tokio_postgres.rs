//! `tokio-postgres`, and `postgres`, which has the same errors: the codes of PostgreSQL, judged in `sqlstate.rs`.

use std::error::Error;

use tokio_postgres::error::DbError;

use super::{
    Verdict,
    library::{Library, of_type},
    sqlstate,
};

pub(super) const LIBRARY: Library = Library {
    look,
    inside: |_| None,
    types: &[of_type::<tokio_postgres::Error>],
};

/// The source of `tokio_postgres::Error`.
fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let error = error.downcast_ref::<DbError>()?;
    sqlstate::verdict(error.code().code(), error.message())
}
