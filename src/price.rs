//! What a request costs, and whom.

use std::{fmt, sync::Arc};

use crate::{Amount, Demand, Scopes, upload::Drawn};

/// What a request costs: its [`Demand`], and where its head alone does not say so, who is charged.
///
/// A demand is a price by itself. The rest is for requests that concern more than one place:
///
/// ```
/// use tower_storage_guard::{Amount, Demand, Price};
///
/// // A file of 100 bytes changes hands.
/// let file = Amount::new(100, 1);
/// let price = Price::from(Demand::nothing().moving(file))
///     .charged_to("user:ann")
///     .giving_back("user:bob", file);
/// ```
#[derive(Clone, Debug)]
pub struct Price {
    pub(crate) demand: Demand,
    pub(crate) scopes: Option<Scopes>,
    pub(crate) gives_back: Vec<(Scopes, Amount)>,
    pub(crate) kind: Kind,
    pub(crate) during: Option<During>,
}

/// What a price is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// What the demand says.
    Known,
    /// Nobody knows.
    Unknown,
    /// Nothing is set aside, and the body has no bound.
    Free,
    /// A part of an upload.
    Part(Drawn),
}

/// What is begun right before the inner service is called, and told once the request has ended and all it
/// gives back is given back.
#[derive(Clone)]
pub(crate) struct During(Arc<dyn Fn() -> Underway + Send + Sync>);

pub(crate) type Underway = Box<dyn FnOnce(Ending) + Send>;

/// How a request has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ending {
    pub(crate) success: bool,
    /// Bytes of its body that were read.
    pub(crate) received: u64,
    /// Bytes that it has stored.
    pub(crate) stored: u64,
}

impl During {
    pub(crate) fn new(begin: impl Fn() -> Underway + Send + Sync + 'static) -> Self {
        Self(Arc::new(begin))
    }

    pub(crate) fn begin(&self) -> Underway {
        (self.0)()
    }
}

impl fmt::Debug for During {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("During").finish_non_exhaustive()
    }
}

impl Price {
    /// It cannot be found out what the request costs. It is answered 503, and not called.
    pub fn unknown() -> Self {
        Self {
            kind: Kind::Unknown,
            ..Demand::nothing().into()
        }
    }

    /// Nothing, whatever its body is: the request is never refused, and nobody is charged.
    pub fn free() -> Self {
        Self {
            scopes: Some(Scopes::NONE),
            kind: Kind::Free,
            ..Demand::nothing().into()
        }
    }

    /// What is drawn from an upload. Nobody is charged for it beside that.
    pub(crate) fn part(demand: Demand, drawn: Drawn) -> Self {
        Self {
            scopes: Some(Scopes::NONE),
            kind: Kind::Part(drawn),
            ..demand.into()
        }
    }

    /// Sets who is charged, in the place of whom the [layer](crate::StorageGuardLayer::scope_by) says.
    #[must_use]
    pub fn charged_to(mut self, scopes: impl Into<Scopes>) -> Self {
        self.scopes = Some(scopes.into());
        self
    }

    /// Sets what is to know that the request is under way.
    pub(crate) fn during(mut self, during: Option<During>) -> Self {
        self.during = during;
        self
    }

    /// Adds what is given back to others when the request has succeeded: what it removes there, or takes
    /// from them.
    #[must_use]
    pub fn giving_back(mut self, scopes: impl Into<Scopes>, amount: Amount) -> Self {
        let scopes = scopes.into();
        if !scopes.is_empty() && !amount.is_zero() {
            self.gives_back.push((scopes, amount));
        }
        self
    }
}

impl From<Demand> for Price {
    fn from(demand: Demand) -> Self {
        Self {
            demand,
            scopes: None,
            gives_back: Vec::new(),
            kind: Kind::Known,
            during: None,
        }
    }
}
