//! The limits and the usage of a scope.

use std::time::Duration;

use super::Exceeded;
use crate::{
    amount::Amount,
    cause::Resource,
    decide::{Decision, Lack, Need, ScopeState, SoftState, decide, in_force},
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
///
/// # Soft limits
///
/// A scope may pass a soft limit, up to its limit, but not for ever: once usage has been above it for the
/// [grace](Self::grace), it is enforced, as in Linux quota (`quotactl(2)`, `setquota(8)`). Without a grace it only warns.
///
/// ```
/// use std::time::Duration;
///
/// use tower_storage_guard::quota::Limits;
///
/// let week = Duration::from_secs(7 * 24 * 60 * 60);
/// let limits = Limits::bytes(10 << 30).soft_percent(80).grace(week);
/// assert_eq!(limits.soft_bytes, Some(8 << 30));
/// ```
///
/// 1. Usage is what is stored. What is held for requests in flight does not count: it may be given back.
/// 2. Usage that is equal to a soft limit is not above it.
/// 3. A charge that leaves usage above a soft limit starts a timer, unless it runs: the limit is *crossed*. A charge, or
///    something that is given back, after which usage is not above it, resets the timer. Bytes and objects have a timer each.
///    A limit that is changed, and usage that is set or scanned, leave the timer as it is, until the next charge.
/// 4. Once the timer has run for the grace, and usage is above the soft limit still, the soft limit is the limit: what is
///    needed more of this resource is refused with the soft limit in its figures. A demand that is not larger than what it
///    replaces is admitted, and so is everything once enough is given back. With a grace of zero one charge passes the limit.
/// 5. Each crossing is told once, as [`Event::SoftLimit`](crate::observer::Event::SoftLimit). Clients are told of it for as
///    long as it lasts, with [`storage_warning`](crate::StorageGuardLayer::storage_warning).
///
/// Uploads in flight count only when they are charged, so those that were admitted before the end of the grace are charged
/// after it. That passes no hard limit.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes; `None` is unlimited.
    pub bytes: Option<u64>,
    /// Objects; `None` is unlimited.
    pub objects: Option<u64>,
    /// The [soft limit](Self#soft-limits) in bytes; `None` is none.
    pub soft_bytes: Option<u64>,
    /// The [soft limit](Self#soft-limits) in objects; `None` is none.
    pub soft_objects: Option<u64>,
    /// How long usage may be above a soft limit before it is enforced. `None` is for ever.
    pub grace: Option<Duration>,
}

impl Limits {
    /// No limit on anything.
    pub const UNLIMITED: Self = Self::new(None, None);

    /// Creates a limit on bytes and one on objects, for limits that come from a configuration. `None` is unlimited.
    pub const fn new(bytes: Option<u64>, objects: Option<u64>) -> Self {
        Self {
            bytes,
            objects,
            soft_bytes: None,
            soft_objects: None,
            grace: None,
        }
    }

    /// Creates a limit on bytes alone.
    pub const fn bytes(bytes: u64) -> Self {
        Self::new(Some(bytes), None)
    }

    /// Limits objects as well.
    #[must_use]
    pub const fn objects(mut self, objects: u64) -> Self {
        self.objects = Some(objects);
        self
    }

    /// Sets the [soft limit](Self#soft-limits) in bytes.
    ///
    /// One that is not below the limit has no effect. Defaults to none.
    #[must_use]
    pub const fn soft_bytes(mut self, bytes: u64) -> Self {
        self.soft_bytes = Some(bytes);
        self
    }

    /// Sets the [soft limit](Self#soft-limits) in objects.
    ///
    /// One that is not below the limit has no effect. Defaults to none.
    #[must_use]
    pub const fn soft_objects(mut self, objects: u64) -> Self {
        self.soft_objects = Some(objects);
        self
    }

    /// Sets the soft limits of bytes and objects to so many per cent of the limits, rounded down.
    ///
    /// Call it after the limits are set: a resource that has no limit yet gets no soft limit. 100 per cent and more have no
    /// effect.
    #[must_use]
    pub const fn soft_percent(mut self, percent: u32) -> Self {
        self.soft_bytes = share(self.bytes, percent);
        self.soft_objects = share(self.objects, percent);
        self
    }

    /// Sets how long usage may be above a soft limit before it is enforced.
    ///
    /// Defaults to none: a soft limit only warns.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Returns the limits that a reservation has to keep while so much is used: a soft limit takes the place of the limit
    /// where it is enforced. Stores that decide in Rust use it.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_storage_guard::{Amount, quota::{Limits, OverFor}};
    ///
    /// let limits = Limits::bytes(100).soft_bytes(80).grace(Duration::from_secs(60));
    /// let over = |seconds| OverFor::new(Some(Duration::from_secs(seconds)), None);
    /// assert_eq!(limits.in_force(Amount::bytes(90), over(59)).bytes, Some(100));
    /// assert_eq!(limits.in_force(Amount::bytes(90), over(60)).bytes, Some(80));
    /// assert_eq!(limits.in_force(Amount::bytes(80), over(60)).bytes, Some(100));
    /// ```
    #[must_use]
    pub fn in_force(self, used: Amount, over: OverFor) -> Self {
        let in_force = |hard: Option<u64>, limit: Option<u64>, used, over_for| {
            let soft = limit.map(|limit| SoftState {
                limit,
                grace: self.grace,
                used,
                over_for,
            });
            in_force(hard, soft)
        };
        Self {
            bytes: in_force(self.bytes, self.soft_bytes, used.bytes, over.bytes),
            objects: in_force(self.objects, self.soft_objects, used.objects, over.objects),
            ..self
        }
    }

    pub(crate) fn has_soft(&self) -> bool {
        self.soft_bytes.is_some() || self.soft_objects.is_some()
    }
}

const fn share(limit: Option<u64>, percent: u32) -> Option<u64> {
    let Some(limit) = limit else { return None };
    let share = limit as u128 * percent as u128 / 100;
    Some(if share > u64::MAX as u128 {
        u64::MAX
    } else {
        share as u64
    })
}

/// For how long the usage of a scope has been above its soft limits: since the charge that has crossed them.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct OverFor {
    /// Of bytes; `None` if usage is not above.
    pub bytes: Option<Duration>,
    /// Of objects; `None` if usage is not above.
    pub objects: Option<Duration>,
}

impl OverFor {
    /// Creates it from the time of each resource.
    pub const fn new(bytes: Option<Duration>, objects: Option<Duration>) -> Self {
        Self { bytes, objects }
    }

    pub(super) fn of(self, resource: Resource) -> Option<Duration> {
        match resource {
            Resource::Objects => self.objects,
            _ => self.bytes,
        }
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

/// The limits and the usage of a scope.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// The limits of the scope: its own, or the default ones.
    pub limits: Limits,
    /// The bytes and objects that the scope has stored.
    pub used: Amount,
    /// The bytes and objects that are reserved for requests in flight.
    pub held: Amount,
    /// For how long usage has been above the soft limits.
    pub over: OverFor,
}

impl Usage {
    /// The limits that a reservation has to keep now.
    pub(crate) fn in_force(&self) -> Limits {
        self.limits.in_force(self.used, self.over)
    }
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
    }

    #[test]
    fn a_share_is_rounded_down_and_has_no_bounds() {
        let of = |limit, percent| Limits::bytes(limit).soft_percent(percent).soft_bytes;
        assert_eq!(of(99, 80), Some(79));
        assert_eq!(of(u64::MAX, 100), Some(u64::MAX));
        assert_eq!(of(u64::MAX, u32::MAX), Some(u64::MAX));
        assert_eq!(of(5, 0), Some(0));
        let objects = Limits::UNLIMITED.objects(10).soft_percent(50);
        assert_eq!((objects.soft_bytes, objects.soft_objects), (None, Some(5)));
    }

    #[test]
    fn a_soft_limit_that_is_in_force_never_raises_the_limit() {
        let week = Duration::from_secs(7 * 24 * 60 * 60);
        let above = Limits::new(Some(5), None).soft_bytes(8).grace(week);
        let over = OverFor::new(Some(week), Some(week));
        assert_eq!(above.in_force(Amount::bytes(9), over).bytes, Some(5));
        let alone = Limits::UNLIMITED.soft_objects(8).grace(week);
        assert_eq!(alone.in_force(Amount::objects(9), over).objects, Some(8));
        let warns = Limits {
            grace: None,
            ..alone
        };
        assert_eq!(warns.in_force(Amount::objects(9), over).objects, None);
    }
}
