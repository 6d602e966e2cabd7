//! The contract between the guard and a quota source.

use std::sync::Arc;

use super::{Answer, Change, OverSoftLimit, QuotaError, SoftLimitHook, Usage};
use crate::{
    amount::Amount,
    scope::{Scope, Scopes},
};

/// A source of limits and usage per [`Scope`](crate::Scope).
///
/// An implementation guarantees the following:
///
/// 1. `used + held <= limit` for every scope and resource, as far as admissions decide. Decision and reservation are
///    one atomic step, never a check followed by a reservation.
/// 2. All or nothing: a demand is reserved in every scope, or in none.
/// 3. An exact fit is admitted.
/// 4. Zero of a resource always fits: an empty object is refused only when objects ran out.
/// 5. The reserved amount is released when the [hold](QuotaHold) is dropped, or when a reserving future is dropped at
///    any await point.
///
/// [`QuotaError::Unavailable`] means that the source could not decide. That is an outage and not a full quota: the
/// client must not be told that the quota is full.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a quota source",
    label = "not a quota source",
    note = "use `MemoryQuota::new(limits)`, `CollectionQuota`, or with feature `store` `StoredQuota`",
    note = "or ask your own accounts with `quota_fn` or `quota_future`, or implement `QuotaSource`"
)]
pub trait QuotaSource: Send + Sync + 'static {
    /// The hold of one request.
    type Hold: QuotaHold;
    /// Resolves to the hold, if it is not available at once.
    type Future: Future<Output = Result<Self::Hold, QuotaError>> + Send + 'static;

    /// Reserves `demand` in every one of `scopes`, or in none.
    ///
    /// `expected` is the total that the client announces, of which this request may be a part. It must fit too, and
    /// is not reserved. If it is less than `demand`, it is ignored.
    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future>;

    /// Changes the usage of each of `scopes` without a hold: content was removed, belongs to another scope now, or was stored
    /// without a hold.
    ///
    /// The change has happened, and cannot be refused: it is charged even if it exceeds a limit. It must not block:
    /// slow work belongs in a task, which retries if the source is away. A source that reads usage where it is counted
    /// anyway need not do anything.
    ///
    /// Content is stored without a hold if [`Outage::Admit`](crate::Outage::Admit) admitted it while this source was
    /// away, or if its price is [`Price::counted`](crate::Price::counted).
    fn charge(&self, scopes: &Scopes, change: Change);

    /// Returns the soft limits that usage of these scopes is above, as far as the source knows without waiting. The entries have
    /// the scopes that are given here.
    ///
    /// It is called after a commit, for the answer of
    /// [`storage_warning`](crate::StorageGuardLayer::storage_warning). Defaults to none, for a source without soft limits.
    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        let _ = scopes;
        Vec::new()
    }

    /// Returns the usage of those of these scopes that the source knows without waiting, each with the scope that is given here.
    ///
    /// It is called after a commit, for the answer of
    /// [`rate_limit_fields`](crate::StorageGuardLayer::rate_limit_fields). Defaults to none.
    fn usage_now(&self, scopes: &Scopes) -> Vec<(Scope, Usage)> {
        let _ = scopes;
        Vec::new()
    }

    /// Calls `hook` once for each crossing of a soft limit from now on, without a lock that the source needs. Several hooks are
    /// all called.
    ///
    /// [`Guard::observer`](crate::Guard::observer) sets one. Defaults to nothing, for a source without soft limits.
    fn on_soft_limit(&self, hook: SoftLimitHook) {
        drop(hook);
    }
}

/// The hold of a [`QuotaSource`] for one request. Dropping it releases everything.
#[must_use = "dropped, it releases everything"]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not hold what a quota source has set aside",
    label = "not a `QuotaHold`",
    note = "implement `QuotaHold`, whose `Drop` releases what `commit` has not charged; `quota_fn` needs none"
)]
pub trait QuotaHold: Send + 'static {
    /// Resolves once more is reserved.
    type Grow: Future<Output = Result<(), QuotaError>> + Send + 'static;
    /// Resolves once the charge is recorded, if that is not done at once.
    type Commit: Future<Output = ()> + Send + 'static;

    /// Reserves `more` in every scope, or in none.
    ///
    /// If this fails, or the future is dropped, the hold is unchanged.
    fn grow(&mut self, more: Amount) -> Self::Grow;

    /// Gives back a part of the hold, so that `to` is left, which is at most the amount that is held. It does not
    /// happen while a growth is under way.
    ///
    /// Must not block: slow work belongs in a task.
    fn shrink_to(&mut self, to: Amount);

    /// Ends the hold: charges `change` to every scope and releases everything that was reserved.
    ///
    /// `change` is final. It is charged even if it exceeds the hold, because the content is already on the disk. The
    /// charge must not be lost when the returned future is dropped: record it before returning, or hand it to a task. A
    /// source that records it at once answers at once, so that the request is not suspended.
    fn commit(self, change: Change) -> Answer<Self::Commit>;
}

impl<Q: QuotaSource + ?Sized> QuotaSource for Arc<Q> {
    type Future = Q::Future;
    type Hold = Q::Hold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        Q::reserve(self, scopes, demand, expected)
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        Q::charge(self, scopes, change);
    }

    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        Q::over_soft_limits(self, scopes)
    }

    fn usage_now(&self, scopes: &Scopes) -> Vec<(Scope, Usage)> {
        Q::usage_now(self, scopes)
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        Q::on_soft_limit(self, hook);
    }
}
