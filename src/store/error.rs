//! Why a store failed.

use std::borrow::Cow;

use tower::BoxError;

use crate::quota::QuotaError;

/// Why a [`Store`](super::Store) did not do what was asked of it.
///
/// The text says what failed, and [`source`](std::error::Error::source) leads to the error of the engine.
/// A [`Classifier`](crate::fault::Classifier) walks through it.
///
/// ```
/// use std::{error::Error, io};
///
/// use tower_storage_guard::store::{StoreError, StoreErrorKind};
///
/// // In a store of your own.
/// let lost = io::Error::from(io::ErrorKind::ConnectionReset);
/// let error = StoreError::unavailable("the ledger service failed").with_source(lost);
///
/// assert_eq!(error.kind(), StoreErrorKind::Unavailable);
/// assert_eq!(error.to_string(), "the ledger service failed");
/// assert!(error.source().unwrap().is::<io::Error>());
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    kind: StoreErrorKind,
    message: Cow<'static, str>,
    source: Option<BoxError>,
}

/// What kind of failure a [`StoreError`] is, and so what can be done about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The engine failed or cannot be reached. The same call may succeed later.
    ///
    /// The step may have been taken all the same, if the answer was lost.
    Unavailable,
    /// The engine did not answer in time. The same call may succeed later.
    ///
    /// The step may have been taken all the same.
    TimedOut,
    /// The store is not usable as it was set up: a wrong path or URL, or scopes of one request that a cluster keeps
    /// apart. The same call fails until the configuration is changed.
    Misconfigured,
    /// The store holds something that this version of the crate cannot read.
    Unreadable,
    /// The store was emptied, and what is stored was not [counted](super::StoredQuota::declare_counted) since. The same call
    /// succeeds afterwards.
    NotCounted,
}

impl StoreError {
    /// Creates an error with a message of one line, in lower case and without a full stop.
    pub fn new(kind: StoreErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Creates an error of kind [`StoreErrorKind::Unavailable`], for most failures of an engine.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StoreErrorKind::Unavailable, message)
    }

    /// Creates an error of kind [`StoreErrorKind::TimedOut`].
    pub fn timed_out(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StoreErrorKind::TimedOut, message)
    }

    /// Creates an error of kind [`StoreErrorKind::Misconfigured`].
    pub fn misconfigured(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StoreErrorKind::Misconfigured, message)
    }

    /// Creates an error of kind [`StoreErrorKind::Unreadable`].
    pub fn unreadable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StoreErrorKind::Unreadable, message)
    }

    /// Keeps the error that led to this one as the [`source`](std::error::Error::source).
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns the kind of failure, by which a caller decides whether to try again.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

/// A store that fails cannot decide, which is never a full quota.
impl From<StoreError> for QuotaError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, io};

    use super::*;
    use crate::fault::{Cause, Classifier, classify};

    #[test]
    fn the_error_of_the_engine_is_found_in_the_chain() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = StoreError::unavailable("the store failed").with_source(full);
        assert!(
            error
                .source()
                .is_some_and(|source| source.is::<io::Error>())
        );
        let fault = Classifier::default().classify(&error);
        assert_eq!(fault.map(|fault| fault.cause), Some(Cause::DiskFull));
    }

    /// A full disk of the store says nothing of the client's quota.
    #[test]
    fn a_store_that_fails_is_an_outage_of_the_quota() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = StoreError::unavailable("the store failed").with_source(full);
        let error = QuotaError::from(error);
        assert!(matches!(error, QuotaError::Unavailable(_)), "{error:?}");
        assert_eq!(classify(&error), None);
    }
}
