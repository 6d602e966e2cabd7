//! Why nothing was reserved.

use std::{error::Error, fmt, sync::Arc};

use crate::{
    amount::Amount,
    cause::{Cause, Fault, Resource},
    scope::Scope,
};

/// The error of a reservation: there is no room, the guard cannot determine whether there is room, or the client has
/// stopped sending.
///
/// It comes from [`Guard::reserve`](crate::Guard::reserve), from a [`Reservation`](crate::Reservation) that cannot
/// grow, and from a request body that was cut. A handler that passes it on with `?` answers the client as the guard
/// does.
///
/// Its text names neither the scope nor a figure, because it may reach a client. Its source is for logs: the error of a quota
/// source that could not decide.
#[derive(Clone)]
pub struct Refused(Box<Details>);

#[derive(Clone, Debug)]
struct Details {
    reason: Reason,
    is_temporary: bool,
    internal: Internal,
}

/// All details of a refusal, for logs. They must not reach the client, which is told the figures and the scope only if
/// the scope [is disclosed](Scope::is_disclosed), and nothing of the error.
#[derive(Clone, Debug, Default)]
pub struct Internal {
    error: Option<Arc<dyn Error + Send + Sync>>,
    figures: Option<Figures>,
    scope: Option<Scope>,
    needed: Option<u64>,
}

impl Internal {
    /// What has failed with this error.
    pub(crate) fn of_error(error: Arc<dyn Error + Send + Sync>) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }

    /// Returns the error that caused the refusal. It is the error of a handler or service in which a storage fault was
    /// found, or of a quota source that could not decide.
    pub fn error(&self) -> Option<&(dyn Error + 'static)> {
        self.error.as_ref().map(|error| &**error as _)
    }

    /// Returns the figures of the quota that was exceeded.
    pub const fn figures(&self) -> Option<&Figures> {
        self.figures.as_ref()
    }

    /// Returns the scope whose quota was exceeded.
    pub const fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Returns the number of bytes or objects that were needed of the resource that ran out, if it is known. Of a body
    /// without a length only a part is known.
    pub fn needed(&self) -> Option<u64> {
        let figures = self.figures.map(|figures| figures.required);
        figures.or(self.needed)
    }
}

/// The reason why nothing was reserved.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// There is no room.
    Storage(Fault),
    /// The guard cannot determine whether there is room: the probe hangs or fails, or the quota source cannot be
    /// reached.
    Unavailable,
    /// The client has stopped sending its request's body, or sends it too slowly. See
    /// [`stall_timeout`](crate::StorageGuardLayer::stall_timeout).
    Stalled,
}

impl Reason {
    /// Returns the name on the wire and in metrics: [`Cause::reason`], `capacity_unknown` or `body_stalled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Storage(fault) => fault.cause.reason(),
            Self::Unavailable => "capacity_unknown",
            Self::Stalled => "body_stalled",
        }
    }

    /// Returns one sentence for people, without a full stop. It tells nothing of the server.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Storage(fault) => match fault.cause {
                Cause::DiskFull => "Server storage capacity reached",
                Cause::QuotaExceeded => "Storage quota exceeded",
                Cause::DatabaseFull => "Database storage capacity reached",
                Cause::CollectionFull => "Collection limit reached",
            },
            Self::Unavailable => "Storage capacity cannot be determined right now",
            Self::Stalled => "The content of the request did not arrive in time",
        }
    }
}

/// The figures of an exceeded limit, in bytes or objects: the unit is that of the [`Resource`](crate::fault::Resource)
/// that ran out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct Figures {
    /// The most that may be used.
    pub limit: u64,
    /// The usage, including all that is held for other requests in flight.
    pub used: u64,
    /// The amount that this request needs. Of a body without a length only a part is known: the bytes that have
    /// arrived, or one byte before any has.
    pub required: u64,
}

impl Figures {
    /// Makes figures of a limit, its usage, and the amount that is needed.
    pub const fn new(limit: u64, used: u64, required: u64) -> Self {
        Self {
            limit,
            used,
            required,
        }
    }
}

impl Refused {
    /// Creates the error for when it cannot be determined whether there is room.
    pub fn unavailable() -> Self {
        Self::new(Reason::Unavailable)
    }

    /// The client has stopped sending.
    pub(crate) fn stalled() -> Self {
        Self::new(Reason::Stalled)
    }

    fn new(reason: Reason) -> Self {
        Self(Box::new(Details {
            reason,
            is_temporary: true,
            internal: Internal::default(),
        }))
    }

    /// Sets the figures, and the scope that they are of.
    #[must_use]
    pub(crate) fn with_figures(mut self, figures: Figures, scope: Scope) -> Self {
        // Repeated requests would reveal the limit of another's scope.
        self.0.is_temporary = !scope.is_disclosed() || figures.required <= figures.limit;
        self.0.internal.figures = Some(figures);
        self.0.internal.scope = Some(scope);
        self
    }

    /// Sets how much was needed on a volume.
    #[must_use]
    pub(crate) fn with_needed(mut self, amount: Amount) -> Self {
        self.0.internal.needed = self.fault().map(|fault| fault.resource.of(amount));
        self
    }

    /// Raises what is needed to what is known now. Only figures of bytes change.
    #[must_use]
    pub(crate) fn needing(self, bytes: u64) -> Self {
        let Internal { figures, scope, .. } = &self.0.internal;
        if let (Reason::Storage(fault), Some(figures), Some(scope)) =
            (self.0.reason, *figures, scope)
            && fault.resource == Resource::Bytes
            && bytes > figures.required
        {
            let scope = scope.clone();
            let required = bytes;
            return self.with_figures(
                Figures {
                    required,
                    ..figures
                },
                scope,
            );
        }
        self
    }

    /// Sets what the quota source failed with.
    #[must_use]
    pub(crate) fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.0.internal.error = Some(Arc::new(source));
        self
    }

    /// Returns the reason why nothing was reserved.
    pub const fn reason(&self) -> Reason {
        self.0.reason
    }

    /// Returns the storage fault, if that is the reason.
    pub const fn fault(&self) -> Option<Fault> {
        match self.0.reason {
            Reason::Storage(fault) => Some(fault),
            Reason::Unavailable | Reason::Stalled => None,
        }
    }

    /// Returns whether the same demand can succeed later, if others give something back.
    pub const fn is_temporary(&self) -> bool {
        self.0.is_temporary
    }

    /// Returns the figures, if the caller may see them.
    pub fn figures(&self) -> Option<&Figures> {
        self.scope().and(self.0.internal.figures())
    }

    /// Returns the scope whose limit was reached, if the caller may know it.
    pub fn scope(&self) -> Option<&Scope> {
        let scope = self.0.internal.scope();
        scope.filter(|scope| scope.is_disclosed())
    }

    /// Returns all details, for logs.
    pub const fn internal(&self) -> &Internal {
        &self.0.internal
    }
}

/// There is no room.
impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::new(Reason::Storage(fault))
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused")
            .field("reason", &self.0.reason)
            .field("is_temporary", &self.0.is_temporary)
            .field("figures", &self.figures())
            .field("scope", &self.scope())
            .field("source", &self.0.internal.error())
            .finish()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.reason.message())
    }
}

impl Error for Refused {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.internal.error()
    }
}
