//! Soft limits: what may be passed for a time.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use super::{Limits, OverFor};
use crate::{amount::Amount, cause::Resource, scope::Scope};

/// A scope whose usage is above one of its [soft limits](Limits#soft-limits).
///
/// ```
/// use std::time::Duration;
///
/// use tower_storage_guard::{Scope, fault::Resource, quota::OverSoftLimit};
///
/// let week = Duration::from_secs(7 * 24 * 60 * 60);
/// let over = OverSoftLimit::new(Scope::from("user:42"), Resource::Bytes, 800, 850).with_grace(week);
/// assert_eq!((over.limit, over.used, over.grace), (800, 850, Some(week)));
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct OverSoftLimit {
    /// Whose limit it is.
    pub scope: Scope,
    /// What the two figures below count: bytes or objects.
    pub resource: Resource,
    /// The soft limit.
    pub limit: u64,
    /// How much is stored. What is held does not count.
    pub used: u64,
    /// How long it will take until the soft limit is enforced; zero once it is. `None` if it never will be.
    pub grace: Option<Duration>,
    /// Whether the charge that this is the answer to has crossed the limit. One charge of each crossing has.
    pub has_just_crossed: bool,
}

impl OverSoftLimit {
    /// Creates an entry for a soft limit that is never enforced, and was crossed some time ago.
    pub fn new(scope: Scope, resource: Resource, limit: u64, used: u64) -> Self {
        Self {
            scope,
            resource,
            limit,
            used,
            grace: None,
            has_just_crossed: false,
        }
    }

    /// Sets [`grace`](Self::grace).
    #[must_use]
    pub fn with_grace(mut self, left: Duration) -> Self {
        self.grace = Some(left);
        self
    }

    /// Sets [`has_just_crossed`](Self::has_just_crossed).
    #[must_use]
    pub fn crossed(mut self) -> Self {
        self.has_just_crossed = true;
        self
    }
}

/// Since when the usage of a scope has been above its soft limits, by some clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct OverSince<T> {
    pub(crate) bytes: Option<T>,
    pub(crate) objects: Option<T>,
}

impl<T> Default for OverSince<T> {
    fn default() -> Self {
        Self {
            bytes: None,
            objects: None,
        }
    }
}

/// Which soft limits a charge has crossed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Crossed {
    pub(crate) bytes: bool,
    pub(crate) objects: bool,
}

impl<T: Copy> OverSince<T> {
    pub(crate) fn is_never(&self) -> bool {
        self.bytes.is_none() && self.objects.is_none()
    }

    /// Reviews the timers after a charge: starts those of soft limits that usage is above, unless they run, and resets the
    /// others.
    pub(crate) fn review(&mut self, limits: &Limits, used: Amount, now: T) -> Crossed {
        let review = |since: &mut Option<T>, soft: Option<u64>, used: u64| {
            let is_over = soft.is_some_and(|soft| used > soft);
            let has_crossed = is_over && since.is_none();
            *since = is_over.then(|| since.unwrap_or(now));
            has_crossed
        };
        Crossed {
            bytes: review(&mut self.bytes, limits.soft_bytes, used.bytes),
            objects: review(&mut self.objects, limits.soft_objects, used.objects),
        }
    }

    pub(crate) fn elapsed(self, elapsed: impl Fn(T) -> Duration) -> OverFor {
        OverFor::new(self.bytes.map(&elapsed), self.objects.map(&elapsed))
    }
}

/// The soft limits that a scope is over, with this usage.
pub(crate) fn over<'a>(
    scope: &'a Scope,
    limits: &'a Limits,
    used: Amount,
    over: OverFor,
    crossed: Crossed,
) -> impl Iterator<Item = OverSoftLimit> + 'a {
    let resources = [
        (Resource::Bytes, limits.soft_bytes, crossed.bytes),
        (Resource::Objects, limits.soft_objects, crossed.objects),
    ];
    resources
        .into_iter()
        .filter_map(move |(resource, soft, has_just_crossed)| {
            let (limit, over_for) = (soft?, over.of(resource)?);
            let used = resource.of(used);
            (used > limit).then(|| OverSoftLimit {
                grace: limits.grace.map(|grace| grace.saturating_sub(over_for)),
                has_just_crossed,
                ..OverSoftLimit::new(scope.clone(), resource, limit, used)
            })
        })
}

/// A function that is called when a soft limit is crossed.
#[derive(Clone)]
pub struct SoftLimitHook(Arc<dyn Fn(&OverSoftLimit) + Send + Sync>);

impl SoftLimitHook {
    /// Makes a hook of a function. It must not block.
    pub fn new(crossed: impl Fn(&OverSoftLimit) + Send + Sync + 'static) -> Self {
        Self(Arc::new(crossed))
    }

    /// Calls the function.
    pub fn call(&self, over: &OverSoftLimit) {
        (self.0)(over);
    }
}

impl fmt::Debug for SoftLimitHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftLimitHook").finish_non_exhaustive()
    }
}

/// The hooks of a source.
#[derive(Debug, Default)]
pub(crate) struct SoftLimitHooks(RwLock<Vec<SoftLimitHook>>);

impl SoftLimitHooks {
    pub(crate) fn push(&self, hook: SoftLimitHook) {
        let mut hooks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        hooks.push(hook);
    }

    /// Calls each hook for each limit that was crossed. They are foreign code: no lock may be held.
    pub(crate) fn tell(&self, over: &[OverSoftLimit]) {
        if over.is_empty() {
            return;
        }
        let hooks = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for over in over.iter().filter(|over| over.has_just_crossed) {
            hooks.iter().for_each(|hook| hook.call(over));
        }
    }
}
