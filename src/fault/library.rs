//! How to classify the errors of each library that can fail for want of storage.

use std::{any::Any, error::Error, sync::Arc};

use super::verdict::Verdict;

/// How to classify one library's errors.
pub(super) struct Library {
    /// Judges one of its errors. None when the error is another library's, or is undecided.
    pub(super) look: fn(&(dyn Error + 'static)) -> Option<Verdict>,
    /// Returns the error inside one of its errors, where `source()` does not lead to it.
    pub(super) inside: for<'a> fn(&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)>,
    /// Its error types, as services fail with them.
    pub(super) types: &'static [OfType],
}

/// The error in a value of one type.
pub(super) type OfType = fn(&dyn Any) -> Option<&(dyn Error + 'static)>;

/// For [`Library::types`].
pub(super) fn of_type<E: Error + 'static>(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
    error.downcast_ref::<E>().map(|error| error as _)
}

/// For [`Library::inside`]: the error in an `Arc` or a `Box` of its own, which forwards `source()` past it.
pub(super) fn held<'a, E: Error + 'static>(
    error: &'a (dyn Error + 'static),
) -> Option<&'a (dyn Error + 'static)> {
    if let Some(shared) = error.downcast_ref::<Arc<E>>() {
        Some(&**shared)
    } else {
        let boxed = error.downcast_ref::<Box<E>>()?;
        Some(&**boxed)
    }
}

/// For [`Library::look`], where only the inner errors of a library decide.
#[cfg(any(
    feature = "fjall2",
    feature = "fjall3",
    feature = "redb2",
    feature = "redb3",
    feature = "redb4",
    feature = "tantivy025",
    feature = "tantivy027"
))]
pub(super) fn undecided(_: &(dyn Error + 'static)) -> Option<Verdict> {
    None
}
