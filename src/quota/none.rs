//! The absence of quotas.

use std::future::{Pending, Ready, ready};

use super::{Answer, Change, QuotaError, QuotaHold, QuotaSource};
use crate::{amount::Amount, scope::Scopes};

/// Charges no scope and refuses nothing. The default source of a guard.
///
/// ```
/// use tower_storage_guard::{
///     Amount, Scopes,
///     quota::{NoQuota, QuotaSource},
/// };
///
/// let hold = NoQuota.reserve(&Scopes::from("user:42"), Amount::bytes(u64::MAX), Amount::ZERO);
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// assert!(hold.await.is_ok());
/// # });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NoQuota;

impl QuotaSource for NoQuota {
    /// Never used.
    type Future = Pending<Result<(), QuotaError>>;
    type Hold = ();

    fn reserve(&self, _: &Scopes, _: Amount, _: Amount) -> Answer<Self::Future> {
        Answer::Now(Ok(()))
    }

    fn charge(&self, _: &Scopes, _: Change) {}
}

/// Holds nothing.
impl QuotaHold for () {
    type Commit = Ready<()>;
    type Grow = Ready<Result<(), QuotaError>>;

    fn grow(&mut self, _: Amount) -> Self::Grow {
        ready(Ok(()))
    }

    fn shrink_to(&mut self, _: Amount) {}

    fn commit(self, _: Change) -> Answer<Self::Commit> {
        Answer::Now(())
    }
}
