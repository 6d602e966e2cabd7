//! The limits and the usage of a scope.

use super::Exceeded;
use crate::{
    amount::Amount,
    cause::Resource,
    decide::{Decision, Lack, Need, ScopeState, decide},
    scope::Scope,
};

/// How much a scope may use of each resource.
///
/// ```
/// use tower_storage_guard::quota::Limits;
///
/// let limits = Limits::bytes(1 << 30).objects(10_000);
/// assert_eq!(limits, Limits::new(Some(1 << 30), Some(10_000)));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes; `None` is unlimited.
    pub bytes: Option<u64>,
    /// Objects; `None` is unlimited.
    pub objects: Option<u64>,
}

impl Limits {
    /// No limit on anything.
    pub const UNLIMITED: Self = Self {
        bytes: None,
        objects: None,
    };

    /// A limit on bytes and one on objects, for limits that come from a configuration. `None` is unlimited.
    pub const fn new(bytes: Option<u64>, objects: Option<u64>) -> Self {
        Self { bytes, objects }
    }

    /// A limit on bytes alone.
    pub const fn bytes(bytes: u64) -> Self {
        Self {
            bytes: Some(bytes),
            objects: None,
        }
    }

    /// Limits objects as well.
    #[must_use]
    pub const fn objects(mut self, objects: u64) -> Self {
        self.objects = Some(objects);
        self
    }
}

/// Limits as two plain numbers, the largest of which means "unlimited": no sum of this crate's can exceed it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ceiling(pub(crate) Amount);

impl Ceiling {
    /// Whether `need` fits on top of what is `counted` already.
    ///
    /// Even without a limit the sum must not overflow. So the figures of holds never saturate, and match when the
    /// holds are released.
    #[inline]
    pub(crate) fn admit(
        self,
        scope: &Scope,
        counted: Amount,
        need: Amount,
    ) -> Result<(), Exceeded> {
        let limit = self.0;
        let amount = Need {
            amount: need,
            expected: 0,
        };
        let Decision::Refuse(Lack::Scope(_, resource)) =
            decide(amount, None, [ScopeState { limit, counted }])
        else {
            return Ok(());
        };
        Err(self.exceeded(scope, resource, counted, need))
    }

    #[cold]
    fn exceeded(
        self,
        scope: &Scope,
        resource: Resource,
        counted: Amount,
        need: Amount,
    ) -> Exceeded {
        Exceeded::new(
            scope.clone(),
            resource,
            resource.of(self.0),
            resource.of(counted),
            resource.of(need),
        )
    }
}

impl From<Limits> for Ceiling {
    fn from(limits: Limits) -> Self {
        Self(Amount::new(
            limits.bytes.unwrap_or(u64::MAX),
            limits.objects.unwrap_or(u64::MAX),
        ))
    }
}

impl From<Ceiling> for Limits {
    fn from(Ceiling(most): Ceiling) -> Self {
        let limit = |most| (most < u64::MAX).then_some(most);
        Self {
            bytes: limit(most.bytes),
            objects: limit(most.objects),
        }
    }
}

/// The limits and the usage of a scope.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Its own limits, or the default ones.
    pub limits: Limits,
    /// What the scope has stored.
    pub used: Amount,
    /// What is reserved for requests in flight.
    pub held: Amount,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(limits: Limits, counted: Amount, need: Amount) -> Result<(), Resource> {
        Ceiling::from(limits)
            .admit(&Scope::from("s"), counted, need)
            .map_err(|exceeded| exceeded.resource)
    }

    #[test]
    fn an_exact_fit_is_admitted_and_one_more_is_not() {
        let limits = Limits::bytes(10).objects(2);
        assert_eq!(admit(limits, Amount::new(4, 1), Amount::new(6, 1)), Ok(()));
        assert_eq!(
            admit(limits, Amount::new(4, 1), Amount::new(7, 1)),
            Err(Resource::Bytes)
        );
        assert_eq!(
            admit(limits, Amount::new(4, 1), Amount::new(6, 2)),
            Err(Resource::Objects)
        );
        assert_eq!(
            admit(limits, Amount::new(4, 1), Amount::new(7, 2)),
            Err(Resource::Bytes)
        );
    }

    #[test]
    fn zero_fits_even_far_above_the_limit() {
        let limits = Limits::bytes(10).objects(2);
        let over = Amount::new(99, 99);
        assert_eq!(admit(limits, over, Amount::ZERO), Ok(()));
        // An empty object.
        assert_eq!(
            admit(limits, Amount::new(99, 1), Amount::objects(1)),
            Ok(())
        );
        assert_eq!(
            admit(limits, over, Amount::objects(1)),
            Err(Resource::Objects)
        );
    }

    #[test]
    fn unlimited_ends_where_counting_does() {
        let all = Amount::new(u64::MAX, u64::MAX);
        assert_eq!(admit(Limits::UNLIMITED, Amount::ZERO, all), Ok(()));
        assert_eq!(
            admit(Limits::UNLIMITED, all, Amount::bytes(1)),
            Err(Resource::Bytes)
        );
        assert_eq!(
            Limits::from(Ceiling::from(Limits::UNLIMITED)),
            Limits::UNLIMITED
        );
    }
}
