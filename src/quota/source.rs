//! The contract between the guard and a source of quotas.

use std::sync::Arc;

use super::{Answer, Change, QuotaError};
use crate::{amount::Amount, scope::Scopes};

/// Keeps limits and usage per [`Scope`](crate::Scope), and sets aside what requests demand.
///
/// What an implementation promises:
///
/// 1. `used + held <= limit` for every scope and resource, as far as admissions decide.
///    The decision and the taking are one step: never a check followed by a take.
/// 2. All or nothing: a demand is set aside in every scope, or in none.
/// 3. An exact fit is admitted.
/// 4. Zero of a resource always fits: an empty object is refused only when objects ran out.
/// 5. What is held is released when the [hold](QuotaHold) is dropped, or a reserving future is, at
///    whatever moment.
///
/// [`QuotaError::Unavailable`] says that the source could not decide. That is an outage and not a
/// full quota: the client must not be told that the quota is full.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a quota source",
    label = "not a quota source",
    note = "use `MemoryQuota::new(limits)`, `CollectionQuota`, or with feature `store` `StoredQuota`",
    note = "or ask your own accounts with `quota_fn` or `quota_future`, or implement `QuotaSource`"
)]
pub trait QuotaSource: Send + Sync + 'static {
    /// The record of what is set aside for one request.
    type Hold: QuotaHold;
    /// Resolves to the hold, where it is not there at once.
    type Future: Future<Output = Result<Self::Hold, QuotaError>> + Send + 'static;

    /// Sets `demand` aside in every one of `scopes`, or in none.
    ///
    /// `expected` is what the client announces in all, of which this request may be a part. It must fit
    /// too, and is not set aside. Where it is less than `demand`, it says nothing.
    ///
    /// # Errors
    ///
    /// [`QuotaError::Exceeded`] where a scope has no room, and [`QuotaError::Unavailable`] where the source cannot decide.
    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future>;

    /// Takes `amount` off what each of `scopes` uses: it was removed, or is charged to another scope now.
    ///
    /// It has happened, and cannot be refused. Must not block: what takes time goes to a task. A source that
    /// looks usage up where it is counted anyway has nothing to do.
    fn give_back(&self, scopes: &Scopes, amount: Amount);
}

/// What a [`QuotaSource`] has set aside for one request. Dropping it releases everything.
#[must_use = "dropped, it releases everything"]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not hold what a quota source has set aside",
    label = "not a `QuotaHold`",
    note = "implement `QuotaHold`, whose `Drop` releases what `commit` has not charged; `quota_fn` needs none"
)]
pub trait QuotaHold: Send + 'static {
    /// Resolves once more is set aside.
    type Grow: Future<Output = Result<(), QuotaError>> + Send + 'static;
    /// Resolves once the charge is recorded.
    type Commit: Future<Output = ()> + Send + 'static;

    /// Sets `more` aside in every scope, or in none.
    ///
    /// The hold is as before when this fails, or when the future is dropped.
    ///
    /// # Errors
    ///
    /// As for [`QuotaSource::reserve`].
    fn grow(&mut self, more: Amount) -> Self::Grow;

    /// Ends the hold: charges `change` to every scope and releases everything that was set aside.
    ///
    /// `change` is the truth. It is charged even if it is more than was held, because it is on the
    /// disk already. The charge must not be lost when the returned future is dropped: record it
    /// before returning, or hand it to a task.
    fn commit(self, change: Change) -> Self::Commit;
}

impl<Q: QuotaSource + ?Sized> QuotaSource for Arc<Q> {
    type Future = Q::Future;
    type Hold = Q::Hold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        Q::reserve(self, scopes, demand, expected)
    }

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        Q::give_back(self, scopes, amount);
    }
}
