//! What is known of each library that can fail for want of storage.

use std::{any::Any, error::Error, sync::Arc};

use super::verdict::Verdict;

/// What is known of one library.
pub(super) struct Library {
    /// What one of its errors says. None when the error is not that library's, or does not decide.
    pub(super) look: fn(&(dyn Error + 'static)) -> Option<Verdict>,
    /// The error inside of one of its errors, where `source()` does not lead to it.
    pub(super) inside: for<'a> fn(&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)>,
    /// Its errors, as a service fails with them.
    pub(super) types: &'static [OfType],
}

/// The error in a value of one type.
pub(super) type OfType = fn(&dyn Any) -> Option<&(dyn Error + 'static)>;

/// For [`Library::types`].
pub(super) fn of_type<E: Error + 'static>(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
    error.downcast_ref::<E>().map(|error| error as _)
}

/// For [`Library::inside`]: the error in an `Arc` or a `Box` of its own, which show its source in its place.
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

/// For [`Library::look`], where only what is inside of a library's errors decides.
#[cfg(any(feature = "fjall", feature = "redb", feature = "tantivy"))]
pub(super) fn undecided(_: &(dyn Error + 'static)) -> Option<Verdict> {
    None
}
