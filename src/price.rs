//! The price of a request, and the scopes that are charged for it.

use crate::{
    amount::Amount,
    demand::Demand,
    reservation::{RareTerms, StartHook},
    scope::Scopes,
};

/// The price of a request: its [`Demand`], and the scopes to charge if its head alone does not determine them.
///
/// A demand converts into a price. The other methods are for requests that concern more than one path:
///
/// ```
/// use tower_storage_guard::{Amount, Demand, Price};
///
/// // A file of 100 bytes changes owners.
/// let file = Amount::new(100, 1);
/// let price = Price::from(Demand::nothing().moving(file))
///     .charged_to("user:ann")
///     .giving_back("user:bob", file);
/// ```
#[derive(Clone, Debug)]
pub struct Price {
    pub(crate) demand: Demand,
    pub(crate) scopes: Option<Scopes>,
    pub(crate) kind: Kind,
    /// Boxed, because prices are moved often.
    pub(crate) rare: Option<Box<RareTerms>>,
}

/// The value of a price.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// The demand's.
    Known,
    /// It cannot be determined.
    Unknown,
    /// The request is malformed.
    Malformed,
    /// It is larger than the service takes.
    TooLarge,
    /// Nothing is reserved, the body is not bounded, and nothing is charged.
    Free,
    /// Nothing is reserved, and the body is not bounded. What is stored is charged.
    Counted,
    /// Another reservation holds `bytes` for it. Of these, `unclaimed` have to be claimed again on the volume.
    Covered { bytes: u64, unclaimed: u64 },
}

impl Price {
    /// Refuses the request, because its cost cannot be determined. The request is answered 503, and the service is not
    /// called.
    pub fn unavailable() -> Self {
        Self {
            kind: Kind::Unknown,
            ..Demand::nothing().into()
        }
    }

    /// Refuses the request, because its head is malformed, or ambiguous so that the service may read it differently.
    /// The request is answered 400, and the service is not called.
    pub fn malformed() -> Self {
        Self {
            kind: Kind::Malformed,
            ..Demand::nothing().into()
        }
    }

    /// Refuses the request, because its content is larger than the service takes, whatever is free. The request is
    /// answered 413, and the service is not called.
    ///
    /// ```
    /// use tower_storage_guard::{Price, StorageGuardLayer, Volume};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let guard = StorageGuardLayer::new(Volume::open(std::env::temp_dir())?)
    ///     .price_by(|_, demand| match demand.bytes() {
    ///         Some(bytes) if bytes > 1 << 30 => Price::too_large(),
    ///         _ => Price::from(demand),
    ///     });
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn too_large() -> Self {
        Self {
            kind: Kind::TooLarge,
            ..Demand::nothing().into()
        }
    }

    /// Costs nothing, whatever its body is: the request is never refused, and no scope is charged, not even one that
    /// [`charged_to`](Self::charged_to) names.
    ///
    /// Use it for requests that remove, or whose body is not stored. If a request needs room beside its body, use
    /// [`Demand::without_body`].
    pub fn free() -> Self {
        Self {
            scopes: Some(Scopes::NONE),
            kind: Kind::Free,
            ..Demand::nothing().into()
        }
    }

    /// Admits and counts: the request is never refused, and the content that it stores is charged to its scopes all the
    /// same.
    ///
    /// No limit bounds it, so a scope may pass its limits by all that such requests store. Its other requests are then
    /// refused until it is below them again. On the volume nothing is claimed, so requests with a claim may fail
    /// because of it.
    ///
    /// Use it for content that must not be lost, such as an audit log. The server has to decide which requests these
    /// are: nothing that a client sends may select this price.
    ///
    /// ```
    /// use tower_storage_guard::{Demand, Price};
    ///
    /// let entry = Price::counted(Demand::unknown()).charged_to("audit");
    /// ```
    pub fn counted(demand: Demand) -> Self {
        Self {
            kind: Kind::Counted,
            ..demand.into()
        }
    }

    /// Covered by another reservation, which alone is charged. Of `bytes`, `unclaimed` have to be claimed again on
    /// the volume.
    pub(crate) fn covered(demand: Demand, bytes: u64, unclaimed: u64) -> Self {
        Self {
            scopes: Some(Scopes::NONE),
            kind: Kind::Covered { bytes, unclaimed },
            ..demand.into()
        }
    }

    /// Sets the scopes to charge, instead of those of the [layer](crate::StorageGuardLayer::scope_by).
    #[must_use]
    pub fn charged_to(mut self, scopes: impl Into<Scopes>) -> Self {
        if self.kind != Kind::Free {
            self.scopes = Some(scopes.into());
        }
        self
    }

    /// Sets a hook that runs when the request is admitted.
    pub(crate) fn on_start(mut self, hook: StartHook) -> Self {
        self.rare.get_or_insert_default().on_start = Some(hook);
        self
    }

    /// Adds an amount that is given back to other scopes when the request has succeeded. It is the content that the
    /// request removes there, or takes from them.
    #[must_use]
    pub fn giving_back(mut self, scopes: impl Into<Scopes>, amount: Amount) -> Self {
        let scopes = scopes.into();
        if !scopes.is_empty() && !amount.is_zero() {
            let rare = self.rare.get_or_insert_default();
            rare.gives_back.push((scopes, amount));
        }
        self
    }
}

impl From<Demand> for Price {
    fn from(demand: Demand) -> Self {
        Self {
            demand,
            scopes: None,
            kind: Kind::Known,
            rare: None,
        }
    }
}
