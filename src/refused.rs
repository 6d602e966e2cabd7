//! Why nothing was reserved.

use std::{error::Error, fmt, sync::Arc};

use crate::{
    cause::{Cause, Fault, Resource},
    scope::Scope,
};

/// There was no room, it could not be found out whether there is, or the client has stopped sending.
///
/// The error of [`Guard::reserve`](crate::Guard::reserve), of a [`Reservation`](crate::Reservation) that cannot grow, and of
/// a request body that was cut. A handler that passes it on with `?` answers the client as the guard does.
///
/// Its text names neither the scope nor a figure, because it may reach a client. Its source is for logs: the error of a quota
/// source that could not decide.
#[derive(Clone)]
pub struct Refused(Box<Details>);

#[derive(Clone, Debug)]
struct Details {
    reason: Reason,
    is_temporary: bool,
    figures: Option<Figures>,
    scope: Option<Scope>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// Why nothing was reserved.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// There is no room.
    Storage(Fault),
    /// It could not be found out whether there is room: the probe hangs or fails, or the quota source cannot be reached.
    Unavailable,
    /// The client has stopped sending its request's body, or sends it too slowly. See
    /// [`stall_timeout`](crate::StorageGuardLayer::stall_timeout).
    Stalled,
}

impl Reason {
    /// The name on the wire and in metrics: [`Cause::reason`], `capacity_unknown` or `body_stalled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Storage(fault) => fault.cause.reason(),
            Self::Unavailable => "capacity_unknown",
            Self::Stalled => "body_stalled",
        }
    }

    /// One sentence for people, without a full stop. It tells nothing of the server.
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

/// How much there is, and how much is missing. Counted in the [`Resource`](crate::fault::Resource) that ran out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct Figures {
    /// The most that may be used.
    pub limit: u64,
    /// What is used, with what is held for other requests in flight.
    pub used: u64,
    /// What this request needs. Of a body without a length only a part is known: what of it has arrived, and one byte before
    /// any has.
    pub required: u64,
}

impl Figures {
    /// A limit, what is used of it, and what is needed.
    pub const fn new(limit: u64, used: u64, required: u64) -> Self {
        Self {
            limit,
            used,
            required,
        }
    }
}

impl Refused {
    /// It could not be found out whether there is room.
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
            figures: None,
            scope: None,
            source: None,
        }))
    }

    /// Sets whether the same demand can succeed later. Defaults to true.
    #[must_use]
    pub(crate) fn with_temporary(mut self, is_temporary: bool) -> Self {
        self.0.is_temporary = is_temporary;
        self
    }

    /// Sets the figures that the one who asked may see, and the scope that they are of.
    #[must_use]
    pub(crate) fn with_figures(mut self, figures: Figures, scope: Scope) -> Self {
        self.0.figures = Some(figures);
        self.0.scope = Some(scope);
        self
    }

    /// Raises what is needed to what is known now. Only figures of bytes change.
    #[must_use]
    pub(crate) fn needing(mut self, bytes: u64) -> Self {
        if let (Reason::Storage(fault), Some(figures)) = (self.0.reason, &mut self.0.figures)
            && fault.resource == Resource::Bytes
            && bytes > figures.required
        {
            figures.required = bytes;
            self.0.is_temporary &= bytes <= figures.limit;
        }
        self
    }

    /// Sets what the quota source failed with.
    #[must_use]
    pub(crate) fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// Why nothing was reserved.
    pub const fn reason(&self) -> Reason {
        self.0.reason
    }

    /// The storage fault, if that is why.
    pub const fn fault(&self) -> Option<Fault> {
        match self.0.reason {
            Reason::Storage(fault) => Some(fault),
            Reason::Unavailable | Reason::Stalled => None,
        }
    }

    /// Whether the same demand can succeed later, if others give something back.
    pub const fn is_temporary(&self) -> bool {
        self.0.is_temporary
    }

    /// The figures, if the one who asked may see them.
    pub const fn figures(&self) -> Option<&Figures> {
        self.0.figures.as_ref()
    }

    /// The scope whose limit was reached, if the one who asked may know it.
    pub const fn scope(&self) -> Option<&Scope> {
        self.0.scope.as_ref()
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
            .field("figures", &self.0.figures)
            .field("scope", &self.0.scope)
            .field("source", &self.0.source)
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
        self.0.source.as_ref().map(|source| &**source as _)
    }
}
