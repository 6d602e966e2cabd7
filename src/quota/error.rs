//! Why nothing could be reserved.

use tower::BoxError;

use crate::{
    amount::Amount,
    cause::{Cause, Fault, Resource},
    refused::{Figures, Refused},
    scope::Scope,
};

/// The reason why a [`QuotaSource`](super::QuotaSource) reserved nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaError {
    /// A limit would be exceeded: the client gets a 507.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// The source could not decide. Never a 507, because it says nothing about the quota.
    #[error("the quota source is unavailable")]
    Unavailable(#[source] BoxError),
}

/// The limit that would be exceeded.
///
/// `Display` names neither the scope nor a figure, because error texts end up in logs and answers.
///
/// ```
/// use tower_storage_guard::{
///     Scope,
///     fault::{Cause, Resource},
///     quota::Exceeded,
/// };
///
/// let full = Exceeded::new(Scope::from("collection:/photos"), Resource::Objects, 500, 500, 1)
///     .with_cause(Cause::CollectionFull);
/// assert_eq!(full.to_string(), "object quota exceeded");
/// ```
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{} quota exceeded", match .resource { Resource::Bytes => "byte", Resource::Objects => "object" })]
#[non_exhaustive]
pub struct Exceeded {
    /// The scope whose limit it is.
    pub scope: Scope,
    /// [`Cause::QuotaExceeded`], unless the source sets another.
    pub cause: Cause,
    /// The resource that ran out. The three figures below count it: bytes or objects.
    pub resource: Resource,
    /// The amount that the scope may use.
    pub limit: u64,
    /// The amount that was used or held at the time of the decision.
    pub used: u64,
    /// The amount that the request asked for.
    pub required: u64,
}

/// No room, or an outage, whose error is the source.
impl From<QuotaError> for Refused {
    fn from(error: QuotaError) -> Self {
        match error {
            QuotaError::Exceeded(exceeded) => Self::from(&exceeded),
            // Whole, so that no classifier takes a full disk behind an outage for a full quota.
            outage @ QuotaError::Unavailable(_) => Self::unavailable().with_source(outage),
        }
    }
}

/// What the caller is told: which scope has no room, and its figures, if they are its own.
impl From<&Exceeded> for Refused {
    fn from(exceeded: &Exceeded) -> Self {
        let figures = Figures {
            limit: exceeded.limit,
            used: exceeded.used,
            required: exceeded.required,
        };
        Self::from(Fault::new(exceeded.cause, exceeded.resource))
            .with_figures(figures, exceeded.scope.clone())
    }
}

impl Exceeded {
    /// Creates the error of a quota that is used up.
    pub fn new(scope: Scope, resource: Resource, limit: u64, used: u64, required: u64) -> Self {
        Self {
            scope,
            cause: Cause::QuotaExceeded,
            resource,
            limit,
            used,
            required,
        }
    }

    /// The figures for a request that holds `own` already, which the source counts as used.
    pub(crate) fn beside(mut self, own: Amount) -> Self {
        let own = self.resource.of(own);
        self.used = self.used.saturating_sub(own);
        self.required = self.required.saturating_add(own);
        self
    }

    /// Sets the kind of limit. Defaults to [`Cause::QuotaExceeded`].
    #[must_use]
    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }
}
