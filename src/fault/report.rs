//! Reports: `anyhow::Error` and `eyre::Report`.
//!
//! A report is no error, and hides the one that it was made of when it becomes a `Box<dyn Error>`: what is in the box forwards
//! `source()` past that error, and its type is private. So a report is kept as it is.

use std::{any::Any, error::Error, fmt};

use tower::BoxError;

use super::library::{Library, OfType};

pub(super) const LIBRARY: Library = Library {
    look: |_| None,
    inside: |_| None,
    types: TYPES,
};

const TYPES: &[OfType] = &[
    #[cfg(feature = "anyhow1")]
    first_in::<anyhow::Error>,
    #[cfg(feature = "eyre06")]
    first_in::<eyre::Report>,
];

/// What a report is for the walk.
type AnyError = dyn Error + Send + Sync;

/// The outermost error in a report.
fn first_in<R: AsRef<AnyError> + 'static>(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
    let report: &R = error.downcast_ref()?;
    Some(report.as_ref() as &(dyn Error + 'static))
}

/// Boxes an error, or a report so that the walk finds what is in it.
pub(crate) fn boxed<E: Into<BoxError> + 'static>(error: E) -> BoxError {
    let mut error = Some(error);
    let any: &mut dyn Any = &mut error;
    #[cfg(feature = "anyhow1")]
    if let Some(report) = any.downcast_mut::<Option<anyhow::Error>>() {
        return Report(report.take().expect(ONCE)).into();
    }
    #[cfg(feature = "eyre06")]
    if let Some(report) = any.downcast_mut::<Option<eyre::Report>>() {
        return Report(report.take().expect(ONCE)).into();
    }
    error.expect(ONCE).into()
}

/// Why there is an error to take.
const ONCE: &str = "taken once, before the function returns";

/// A report as an error, whose source is the report's first error.
struct Report<R>(R);

impl<R: AsRef<AnyError> + fmt::Debug + fmt::Display> Error for Report<R> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.0.as_ref() as &(dyn Error + 'static))
    }
}

impl<R: fmt::Display> fmt::Display for Report<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<R: fmt::Debug> fmt::Debug for Report<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
