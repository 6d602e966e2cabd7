use std::{error::Error, sync::Arc, time::Duration};

use http::StatusCode;

use crate::{
    cause::{Fault, Resource},
    fault::Verdict,
    refused::{Figures, Internal, Reason, Refused},
    scope::Scope,
};

/// The guard's answer, before a dialect renders it.
///
/// ```
/// use tower_storage_guard::{
///     fault::{Cause, Fault, Resource},
///     refusal::{Figures, Refusal},
/// };
///
/// let refusal = Refusal::from(Fault::new(Cause::QuotaExceeded, Resource::Bytes))
///     .with_figures(Figures::new(1000, 900, 200));
///
/// assert_eq!(refusal.status(), 507);
/// assert_eq!(refusal.message(), "Storage quota exceeded");
/// assert_eq!(refusal.reason(), "quota_exceeded");
/// assert_eq!(refusal.figures().unwrap().limit, 1000);
/// assert!(refusal.is_temporary());
/// ```
///
/// It is in the extensions of the response. There, layers outside find the details that the client is not told: see
/// [`Self::internal`].
///
/// Two are equal if their clients are told the same.
#[derive(Clone, Debug)]
pub struct Refusal {
    kind: RefusalKind,
    status: StatusCode,
    temporary: bool,
    figures: Option<Figures>,
    scope: Option<Scope>,
    retry_after: Option<Duration>,
    internal: Option<Arc<Internal>>,
}

impl Refusal {
    /// Creates the refusal when the guard cannot determine whether there is room: the probe is stale, or the quota
    /// source is unreachable.
    ///
    /// It is answered with 503, because that is an outage and not a lack of storage.
    ///
    /// ```
    /// use tower_storage_guard::refusal::Refusal;
    ///
    /// assert_eq!(Refusal::unavailable().status(), 503);
    /// ```
    pub const fn unavailable() -> Self {
        Self::new(
            RefusalKind::Unavailable,
            StatusCode::SERVICE_UNAVAILABLE,
            true,
        )
    }

    /// Creates the refusal of a request whose `Content-Length` is not a number of bytes.
    ///
    /// It is answered with 400 (RFC 9112, section 6.3).
    ///
    /// ```
    /// use tower_storage_guard::refusal::Refusal;
    ///
    /// assert_eq!(Refusal::invalid_length().status(), 400);
    /// ```
    pub const fn invalid_length() -> Self {
        Self::new(RefusalKind::InvalidLength, StatusCode::BAD_REQUEST, false)
    }

    /// Creates the refusal of a request whose head is malformed or ambiguous: see
    /// [`Price::malformed`](crate::Price::malformed).
    ///
    /// It is answered with 400.
    ///
    /// ```
    /// use tower_storage_guard::refusal::Refusal;
    ///
    /// assert_eq!(Refusal::malformed().status(), 400);
    /// ```
    pub const fn malformed() -> Self {
        Self::new(RefusalKind::Malformed, StatusCode::BAD_REQUEST, false)
    }

    /// Creates the refusal of a request whose client has stopped sending the body, or sends it too slowly.
    ///
    /// It is answered with 408 (RFC 9110, section 15.5.9), and with DEADLINE_EXCEEDED over gRPC.
    ///
    /// ```
    /// use tower_storage_guard::refusal::Refusal;
    ///
    /// assert_eq!(Refusal::stalled().status(), 408);
    /// ```
    pub const fn stalled() -> Self {
        Self::new(RefusalKind::Stalled, StatusCode::REQUEST_TIMEOUT, true)
    }

    /// Creates the refusal of content that is larger than a file can be, by a limit of the process or of the
    /// filesystem.
    ///
    /// It is answered with 413 (RFC 9110, section 15.5.14), because a smaller request helps, and making room does not.
    /// Over gRPC it is OUT_OF_RANGE.
    ///
    /// ```
    /// use tower_storage_guard::refusal::Refusal;
    ///
    /// assert_eq!(Refusal::too_large().status(), 413);
    /// ```
    pub const fn too_large() -> Self {
        Self::new(RefusalKind::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, false)
    }

    /// The refusal for a verdict, if it is one.
    pub(crate) fn of_verdict(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Fault(fault) => Some(fault.into()),
            Verdict::TooLarge => Some(Self::too_large()),
            Verdict::NotOurs => None,
        }
    }

    /// Adds the error that it was found in.
    pub(crate) fn with_error(mut self, error: Arc<dyn Error + Send + Sync>) -> Self {
        self.internal = Some(Arc::new(Internal::of_error(error)));
        self
    }

    const fn new(kind: RefusalKind, status: StatusCode, temporary: bool) -> Self {
        Self {
            kind,
            status,
            temporary,
            figures: None,
            scope: None,
            retry_after: None,
            internal: None,
        }
    }

    /// Adds the figures of the limit: how much is allowed, used and required.
    ///
    /// The client will see them, so they must be of its own scope. Only a storage fault has figures: any other
    /// refusal is unchanged. Defaults to none.
    #[must_use]
    pub const fn with_figures(mut self, figures: Figures) -> Self {
        if self.fault().is_some() {
            self.figures = Some(figures);
        }
        self
    }

    /// Adds the scope whose limit was reached.
    ///
    /// The client will see its name, so it must be the client's own scope. Only a storage fault has a scope. Defaults
    /// to none.
    #[must_use]
    pub fn with_scope(mut self, scope: Scope) -> Self {
        if self.fault().is_some() {
            self.scope = Some(scope);
        }
        self
    }

    /// Sets whether the same request can succeed later.
    ///
    /// Defaults to true for a storage fault (RFC 4918, section 11.5) and for an outage, and to
    /// false for a malformed request.
    #[must_use]
    pub const fn with_temporary(mut self, temporary: bool) -> Self {
        self.temporary = temporary;
        self
    }

    pub(super) const fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(super) const fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Returns the kind of refusal.
    pub const fn kind(&self) -> RefusalKind {
        self.kind
    }

    /// Returns the storage fault, if that is the reason.
    pub const fn fault(&self) -> Option<Fault> {
        match self.kind {
            RefusalKind::Storage(fault) => Some(fault),
            _ => None,
        }
    }

    /// Returns the status of an HTTP answer: 4xx or 5xx.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns one sentence for people, without a full stop. It reveals nothing about the server.
    pub const fn message(&self) -> &'static str {
        match self.kind {
            RefusalKind::Storage(fault) => Reason::Storage(fault).message(),
            RefusalKind::Unavailable => Reason::Unavailable.message(),
            RefusalKind::Stalled => Reason::Stalled.message(),
            RefusalKind::TooLarge => "The content is larger than a file can be",
            RefusalKind::InvalidLength => "Content-Length is not a valid number of bytes",
            RefusalKind::Malformed => "The request's path or headers are malformed",
        }
    }

    /// Returns the name of the reason on the wire, for programs: [`Cause::reason`](crate::fault::Cause::reason),
    /// `capacity_unknown`, `body_stalled`, `file_too_large`, `invalid_content_length` or `malformed_request`.
    pub const fn reason(&self) -> &'static str {
        self.kind.reason()
    }

    /// The resource that ran out, if it is known.
    pub(super) fn resource(&self) -> Option<Resource> {
        self.fault().map(|fault| fault.resource)
    }

    /// Returns whether the same request can succeed later.
    pub const fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// Returns the figures, if the client may see them.
    pub const fn figures(&self) -> Option<&Figures> {
        self.figures.as_ref()
    }

    /// Returns the scope whose limit was reached, if the client may see it.
    pub const fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Returns the delay after which the client may retry, if it is set: whole seconds, at least one.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns the details that the client is not told. They are for logs, and for layers outside of the guard that
    /// find the refusal in a response's extensions. They must not reach the client. None if there are no more details
    /// than the client is told.
    pub fn internal(&self) -> Option<&Internal> {
        self.internal.as_deref()
    }
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        let told = |it: &Self| (it.kind, it.status, it.temporary, it.figures, it.retry_after);
        told(self) == told(other) && self.scope == other.scope
    }
}

impl Eq for Refusal {}

/// The refusal as an HTTP answer.
impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let refusal = match refused.reason() {
            Reason::Storage(fault) => Self::from(fault),
            Reason::Unavailable => Self::unavailable(),
            Reason::Stalled => Self::stalled(),
        };
        Self {
            temporary: refused.is_temporary(),
            figures: refused.figures().copied(),
            scope: refused.scope().cloned(),
            internal: Some(Arc::new(refused.internal().clone())),
            ..refusal
        }
    }
}

/// There is no room: 507.
impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::new(
            RefusalKind::Storage(fault),
            StatusCode::INSUFFICIENT_STORAGE,
            true,
        )
    }
}

/// The reason why a request is refused.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum RefusalKind {
    /// There is no room: 507, unless another status is set for the cause.
    Storage(Fault),
    /// The guard could not determine whether there is room: 503.
    Unavailable,
    /// The client has stopped sending the request's body: 408.
    Stalled,
    /// The content is larger than a file can be: 413.
    TooLarge,
    /// The request's `Content-Length` is malformed: 400.
    InvalidLength,
    /// The head of the request is malformed in another way: 400.
    Malformed,
}

impl RefusalKind {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Storage(fault) => Reason::Storage(fault).as_str(),
            Self::Unavailable => Reason::Unavailable.as_str(),
            Self::Stalled => Reason::Stalled.as_str(),
            Self::TooLarge => "file_too_large",
            Self::InvalidLength => "invalid_content_length",
            Self::Malformed => "malformed_request",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Cause;

    const FIGURES: Figures = Figures {
        limit: 10,
        used: 9,
        required: 2,
    };

    #[test]
    fn every_cause_has_its_message() {
        for (cause, message) in [
            (Cause::DiskFull, "Server storage capacity reached"),
            (Cause::QuotaExceeded, "Storage quota exceeded"),
            (Cause::DatabaseFull, "Database storage capacity reached"),
            (Cause::CollectionFull, "Collection limit reached"),
        ] {
            for resource in [Resource::Bytes, Resource::Objects] {
                let fault = Fault::new(cause, resource);
                let refusal = Refusal::from(fault);
                assert_eq!(refusal.message(), message);
                assert_eq!(refusal.reason(), cause.reason());
                assert_eq!(refusal.status(), 507);
                assert_eq!(refusal.kind(), RefusalKind::Storage(fault));
                assert_eq!(refusal.fault(), Some(fault));
                assert_eq!(refusal.figures(), None);
                assert_eq!(refusal.retry_after(), None);
                assert!(refusal.is_temporary());
            }
        }
    }

    #[test]
    fn an_outage_and_a_bad_request_are_no_faults() {
        let outage = Refusal::unavailable();
        assert_eq!(
            (outage.status().as_u16(), outage.is_temporary()),
            (503, true)
        );
        assert_eq!(
            (outage.reason(), outage.fault()),
            ("capacity_unknown", None)
        );
        let invalid = Refusal::invalid_length();
        assert_eq!(
            (invalid.status().as_u16(), invalid.is_temporary()),
            (400, false)
        );
        assert_eq!(
            (invalid.reason(), invalid.fault()),
            ("invalid_content_length", None)
        );
    }

    #[test]
    fn only_faults_have_figures() {
        let fault = Refusal::from(Fault::new(Cause::QuotaExceeded, Resource::Bytes));
        assert_eq!(fault.with_figures(FIGURES).figures(), Some(&FIGURES));
        assert_eq!(Refusal::unavailable().with_figures(FIGURES).figures(), None);
        assert_eq!(
            Refusal::invalid_length().with_figures(FIGURES).figures(),
            None
        );
    }

    #[test]
    fn temporary_can_be_denied() {
        let refusal = Refusal::from(Fault::new(Cause::CollectionFull, Resource::Objects));
        assert!(!refusal.with_temporary(false).is_temporary());
    }
}
