//! What a request costs, and who is charged for it.

use crate::{amount::Amount, demand::Demand, reservation::StartHook, scope::Scopes};

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
    pub(crate) on_start: Option<StartHook>,
}

/// What a price is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// What the demand says.
    Known,
    /// It cannot be found out.
    Unknown,
    /// Nothing is set aside, and the body has no bound.
    Free,
    /// Another reservation holds `bytes` for it. Of these, `unclaimed` are to be claimed on the volume once more.
    Covered { bytes: u64, unclaimed: u64 },
}

impl Price {
    /// It cannot be found out what the request costs. It is answered 503, and not called.
    pub fn unavailable() -> Self {
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

    /// What another reservation holds for it, which alone is charged. Of `bytes`, `unclaimed` are to be claimed on the
    /// volume once more.
    pub(crate) fn covered(demand: Demand, bytes: u64, unclaimed: u64) -> Self {
        Self {
            scopes: Some(Scopes::NONE),
            kind: Kind::Covered { bytes, unclaimed },
            ..demand.into()
        }
    }

    /// Sets who is charged, in the place of whom the [layer](crate::StorageGuardLayer::scope_by) says.
    #[must_use]
    pub fn charged_to(mut self, scopes: impl Into<Scopes>) -> Self {
        self.scopes = Some(scopes.into());
        self
    }

    /// Sets what runs when the request is let in.
    pub(crate) fn on_start(mut self, hook: Option<StartHook>) -> Self {
        self.on_start = hook;
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
            on_start: None,
        }
    }
}
