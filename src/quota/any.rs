//! A type-erased source.

use std::{any::Any, fmt, pin::Pin, sync::Arc};

use super::{
    Answer, Change, OverSoftLimit, QuotaError, QuotaHold, QuotaSource, SoftLimitHook, Usage,
};
use crate::{
    amount::Amount,
    scope::{Scope, Scopes},
};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Any quota source, type-erased. Cheap to clone.
///
/// Use it where a source is chosen at run time, by a command line or a configuration. It allocates a box for each
/// hold, which a source of a concrete type does not.
///
/// ```
/// use tower_storage_guard::quota::{AnyQuota, Limits, MemoryQuota, NoQuota};
///
/// # let has_quotas = true;
/// let quota = match has_quotas {
///     true => AnyQuota::new(MemoryQuota::new(Limits::bytes(1 << 30))),
///     false => AnyQuota::new(NoQuota),
/// };
/// ```
#[derive(Clone)]
pub struct AnyQuota(Arc<dyn AnySource>);

impl AnyQuota {
    /// Wraps a source.
    pub fn new(source: impl QuotaSource) -> Self {
        Self(Arc::new(source))
    }

    pub(crate) fn source(&self) -> &dyn Any {
        self.0.as_any()
    }
}

impl fmt::Debug for AnyQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyQuota").finish_non_exhaustive()
    }
}

impl QuotaSource for AnyQuota {
    type Future = BoxFuture<Result<AnyHold, QuotaError>>;
    type Hold = AnyHold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        self.0.reserve_any(scopes, demand, expected)
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        self.0.charge_any(scopes, change);
    }

    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        self.0.over_any(scopes)
    }

    fn usage_now(&self, scopes: &Scopes) -> Vec<(Scope, Usage)> {
        self.0.usage_any(scopes)
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        self.0.on_any(hook);
    }
}

/// The hold of an [`AnyQuota`] for one request.
pub struct AnyHold(Box<dyn AnyHeld>);

impl fmt::Debug for AnyHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyHold").finish_non_exhaustive()
    }
}

impl QuotaHold for AnyHold {
    type Grow = BoxFuture<Result<(), QuotaError>>;
    type Commit = BoxFuture<()>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        self.0.grow_any(more)
    }

    fn shrink_to(&mut self, to: Amount) {
        self.0.shrink_any(to);
    }

    fn commit(self, change: Change) -> Answer<Self::Commit> {
        self.0.commit_any(change)
    }
}

/// [`QuotaSource`], without associated types.
trait AnySource: Send + Sync {
    fn as_any(&self) -> &dyn Any;

    fn reserve_any(
        &self,
        scopes: &Scopes,
        demand: Amount,
        expected: Amount,
    ) -> Answer<BoxFuture<Result<AnyHold, QuotaError>>>;

    fn charge_any(&self, scopes: &Scopes, change: Change);
    fn over_any(&self, scopes: &Scopes) -> Vec<OverSoftLimit>;
    fn usage_any(&self, scopes: &Scopes) -> Vec<(Scope, Usage)>;
    fn on_any(&self, hook: SoftLimitHook);
}

impl<Q: QuotaSource> AnySource for Q {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn reserve_any(
        &self,
        scopes: &Scopes,
        demand: Amount,
        expected: Amount,
    ) -> Answer<BoxFuture<Result<AnyHold, QuotaError>>> {
        match self.reserve(scopes, demand, expected).now() {
            Ok(decided) => Answer::Now(decided.map(|hold| AnyHold(Box::new(hold)))),
            Err(deciding) => Answer::Later(Box::pin(async {
                deciding.await.map(|hold| AnyHold(Box::new(hold)))
            })),
        }
    }

    fn charge_any(&self, scopes: &Scopes, change: Change) {
        self.charge(scopes, change);
    }

    fn over_any(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        self.over_soft_limits(scopes)
    }

    fn usage_any(&self, scopes: &Scopes) -> Vec<(Scope, Usage)> {
        self.usage_now(scopes)
    }

    fn on_any(&self, hook: SoftLimitHook) {
        self.on_soft_limit(hook);
    }
}

/// [`QuotaHold`], without associated types.
trait AnyHeld: Send {
    fn grow_any(&mut self, more: Amount) -> BoxFuture<Result<(), QuotaError>>;
    fn shrink_any(&mut self, to: Amount);
    fn commit_any(self: Box<Self>, change: Change) -> Answer<BoxFuture<()>>;
}

impl<H: QuotaHold> AnyHeld for H {
    fn grow_any(&mut self, more: Amount) -> BoxFuture<Result<(), QuotaError>> {
        Box::pin(self.grow(more))
    }

    fn shrink_any(&mut self, to: Amount) {
        self.shrink_to(to);
    }

    fn commit_any(self: Box<Self>, change: Change) -> Answer<BoxFuture<()>> {
        match self.commit(change) {
            Answer::Now(()) => Answer::Now(()),
            Answer::Later(commit) => Answer::Later(Box::pin(commit)),
        }
    }
}
