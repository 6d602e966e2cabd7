//! What a store does.

use std::{pin::Pin, sync::Arc, time::Duration};

use super::{Account, Baseline, HoldEntry, HoldId, Reserve, Reserved, Settlement, StoreError};
use crate::{
    amount::Amount,
    observer::Observer,
    quota::{Limits, OverSoftLimit, QuotaError},
    scope::{Scope, Scopes},
};

/// The future of a call to a [`Store`].
pub type StoreFuture<'a, T, E = StoreError> =
    Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// An engine that keeps limits, usage and holds for a [`StoredQuota`](super::StoredQuota).
///
/// An implementation promises:
///
/// 1. Each call is one atomic step. No other process sees half of it, and after a crash it has happened or has not.
/// 2. A hold counts until it is settled, or until its time to live has passed by the clock of the *engine*. The clocks
///    of the processes may disagree, so they are never used.
/// 3. A settlement is idempotent: its id is charged once, however often it is settled.
/// 4. Usage falls below zero by what is held in the scope at most, as a removal may be counted before the charge of what it
///    removes. What is given back beyond that is [unmatched](super::Account::unmatched), and no credit: usage is stopped at
///    the beginning and at the end of each settlement, and before a reservation.
/// 5. A [soft limit](Limits#soft-limits) is timed by the clock of the engine, for bytes and objects apart. Settlements with a
///    change review the timers of their scopes, at the end of the step: usage above the soft limit starts a timer that does not
///    run, and other usage resets it. Nothing else does, but `remove`. A reservation finds the soft limit in place of the limit
///    where usage is above it and its timer has run for the grace, in milliseconds.
/// 6. The [baseline](Baseline) goes when usage goes: whatever deletes the accounts of the store deletes it too.
/// 7. Each call fails in bounded time while the engine is away. A call that failed, or whose future was dropped, has
///    happened or has not; the caller cannot know, and settles whatever it has reserved.
///
/// The module `conformance`, behind the feature of that name, tests all of this. Run it against an implementation of
/// your own.
///
/// The methods return boxed futures, so that `Arc<dyn Store>` is a store too and an application can choose one at run
/// time.
pub trait Store: Send + Sync + 'static {
    /// Sets an amount aside in every scope, or in none. Adds to the hold if there is one with this id already.
    ///
    /// Both `amount` and `expected` must fit. Zero of a resource always fits.
    ///
    /// # Errors
    ///
    /// [`QuotaError::Exceeded`] when a limit would be passed, and [`QuotaError::Unavailable`] when the store cannot
    /// decide. A [`StoreError`] converts into the latter.
    fn reserve<'a>(&'a self, reserve: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError>;

    /// Ends holds: releases what they held, and charges the change. All settlements are made, or none. Returns the soft limits
    /// that usage in their scopes is above then. The one step that starts a timer, and no other, says that it
    /// [has just crossed](OverSoftLimit::has_just_crossed) the limit.
    ///
    /// A settlement without a hold is charged all the same, since its content is on the disk. [`Settlement::keep`] is
    /// never ended by the call that sets it.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time. The settlements may have been made all the same. They are
    /// idempotent, so the caller settles them again.
    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>>;

    /// Prolongs holds: each expires when this time has passed from now. A hold that is gone stays gone.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time. The holds may have been prolonged all the same.
    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()>;

    /// Returns the account of a scope: empty if the store does not know the scope.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time, and when it holds something that cannot be read.
    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account>;

    /// Sets the limits of a scope, or removes them.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time. The change may have been made all the same.
    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()>;

    /// Sets how much a scope has stored, whatever was counted so far.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time. The change may have been made all the same.
    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()>;

    /// Returns the scopes that use most bytes, the largest first.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time, and when it holds something that cannot be read.
    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>>;

    /// Returns the holds in one scope, or in all scopes: up to `count`, in no order.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time, and when it holds something that cannot be read.
    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>>;

    /// Removes the usage and the limits of a scope. Its holds stay.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time. The change may have been made all the same.
    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()>;

    /// Returns the baseline. None in a store that is new or was emptied.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time, and when it holds something that cannot be read.
    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>>;

    /// Sets the baseline unless there is one, and returns the one that is in force.
    ///
    /// # Errors
    ///
    /// When the engine fails or does not answer in time. The baseline may have been set all the same.
    fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline>;

    /// Returns what is told of the leases of this store. Defaults to none: an [`ObservedStore`](super::ObservedStore) has one.
    fn observer(&self) -> Option<&dyn Observer> {
        None
    }
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn reserve<'a>(&'a self, reserve: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        S::reserve(self, reserve)
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>> {
        S::settle(self, settlements)
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        S::renew(self, holds, time_to_live)
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        S::account(self, scope)
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()> {
        S::set_limits(self, scope, limits)
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        S::set_used(self, scope, used)
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        S::largest(self, count)
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        S::holds(self, scope, count)
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        S::remove(self, scope)
    }

    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
        S::baseline(self)
    }

    fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline> {
        S::set_baseline(self, baseline)
    }

    fn observer(&self) -> Option<&dyn Observer> {
        S::observer(self)
    }
}
