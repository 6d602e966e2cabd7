//! Limits on what is open at once in a scope.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use super::{
    Answer, Change, Limits, MemoryHold, MemoryQuota, NoQuota, OverSoftLimit, QuotaError, QuotaHold,
    QuotaSource, SoftLimitHook, Usage,
};
use crate::{
    amount::Amount,
    scope::{Scope, Scopes},
};

/// Limits how many reservations a scope may have open at once, and how many bytes they hold together, whatever its quota
/// is.
///
/// Use it if one client must not keep the room of others busy. A reservation counts from its admission to its end, and
/// then no longer. If [another quota source is set](Self::over), that decides after it. A reservation that is too much
/// is refused like any other for want of quota.
///
/// The objects of its [`Limits`] are the number of reservations. It counts in this process alone. A
/// `CollectionQuota` under it is not found by
/// `StorageGuardLayer::webdav`: give that a layer of its own.
///
/// ```
/// use tower_storage_guard::{
///     Amount, Scopes,
///     quota::{Change, Limits, MemoryQuota, OpenQuota, QuotaHold, QuotaSource},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_storage_guard::quota::QuotaError> {
/// // Eight uploads of one user at once, which are a GiB together, of the 10 GiB that the user may store.
/// let quota = OpenQuota::new(Limits::bytes(1 << 30).objects(8))
///     .over(MemoryQuota::new(Limits::bytes(10 << 30)));
///
/// let user = Scopes::from("user:42");
/// let upload = Amount::new(600 << 20, 1);
/// let first = quota.reserve(&user, upload, Amount::ZERO).await?;
/// assert!(quota.reserve(&user, upload, Amount::ZERO).await.is_err());
/// first.commit(Change::from(upload)).await;
/// assert!(quota.reserve(&user, upload, Amount::ZERO).await.is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct OpenQuota<Q = NoQuota> {
    open: MemoryQuota,
    inner: Q,
}

impl OpenQuota {
    /// Creates a source that limits each scope to the bytes of `each`, and to as many reservations as `each` has
    /// objects.
    ///
    /// # Panics
    ///
    /// If the limits have a soft limit. It goes by what is stored, and nothing of what is open is.
    pub fn new(each: Limits) -> Self {
        assert!(!each.has_soft(), "what is open has no soft limit");
        Self {
            open: MemoryQuota::new(each),
            inner: NoQuota,
        }
    }

    /// Sets the quota source that decides after it.
    ///
    /// Defaults to none: then only open reservations are limited.
    #[must_use]
    pub fn over<Q: QuotaSource>(self, quota: Q) -> OpenQuota<Q> {
        OpenQuota {
            open: self.open,
            inner: quota,
        }
    }
}

impl<Q: QuotaSource> QuotaSource for OpenQuota<Q> {
    type Future = OpenFuture<Q::Future>;
    type Hold = OpenHold<Q::Hold>;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let one = Amount::new(demand.bytes, 1);
        let open = match self.open.take(scopes, one) {
            Ok(open) => open,
            Err(exceeded) => return Answer::Now(Err(exceeded)),
        };
        match self.inner.reserve(scopes, demand, expected) {
            Answer::Now(hold) => Answer::Now(hold.map(|hold| OpenHold::new(hold, open))),
            Answer::Later(inner) => Answer::Later(OpenFuture {
                inner,
                open: Some(open),
            }),
        }
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        self.inner.charge(scopes, change);
    }

    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        self.inner.over_soft_limits(scopes)
    }

    fn usage_now(&self, scopes: &Scopes) -> Vec<(Scope, Usage)> {
        self.inner.usage_now(scopes)
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        self.inner.on_soft_limit(hook);
    }
}

pin_project! {
    /// Resolves to an [`OpenHold`].
    pub struct OpenFuture<F> {
        #[pin]
        inner: F,
        open: Option<MemoryHold>,
    }
}

impl<F, H> Future for OpenFuture<F>
where
    F: Future<Output = Result<H, QuotaError>>,
{
    type Output = Result<OpenHold<H>, QuotaError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let hold = ready!(this.inner.poll(cx));
        let open = this.open.take().expect("not polled after it was ready");
        Poll::Ready(hold.map(|hold| OpenHold::new(hold, open)))
    }
}

/// The hold of an [`OpenQuota`] for one request.
pub struct OpenHold<H> {
    inner: H,
    open: Arc<Mutex<MemoryHold>>,
}

impl<H> OpenHold<H> {
    fn new(inner: H, open: MemoryHold) -> Self {
        Self {
            inner,
            open: Arc::new(Mutex::new(open)),
        }
    }

    fn open(&self) -> MutexGuard<'_, MemoryHold> {
        lock(&self.open)
    }
}

impl<H: QuotaHold> QuotaHold for OpenHold<H> {
    type Commit = H::Commit;
    type Grow = OpenGrow<H::Grow>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let taken = self.open().take_more(Amount::bytes(more.bytes));
        let (taken, refused) = match taken {
            Ok(taken) => (Some((taken, Arc::clone(&self.open))), None),
            Err(exceeded) => (None, Some(exceeded)),
        };
        OpenGrow {
            inner: taken.is_some().then(|| self.inner.grow(more)),
            taken,
            refused,
        }
    }

    fn shrink_to(&mut self, to: Amount) {
        self.open().shrink_to(Amount::new(to.bytes, 1));
        self.inner.shrink_to(to);
    }

    /// Only the other source charges.
    fn commit(self, change: Change) -> Answer<Self::Commit> {
        self.inner.commit(change)
    }
}

impl<H> fmt::Debug for OpenHold<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenHold")
            .field("open", &*self.open())
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The growth of an [`OpenHold`].
    pub struct OpenGrow<F> {
        #[pin]
        inner: Option<F>,
        // What is open more, and where it goes. Released if this is dropped before.
        taken: Option<(MemoryHold, Arc<Mutex<MemoryHold>>)>,
        // Too much would be open.
        refused: Option<QuotaError>,
    }
}

impl<F: Future<Output = Result<(), QuotaError>>> Future for OpenGrow<F> {
    type Output = Result<(), QuotaError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(refused) = this.refused.take() {
            return Poll::Ready(Err(refused));
        }
        let inner = this
            .inner
            .as_pin_mut()
            .expect("not polled after it was ready");
        let grown = ready!(inner.poll(cx));
        if let (Ok(()), Some((taken, open))) = (&grown, this.taken.take()) {
            lock(&open).absorb(taken);
        }
        Poll::Ready(grown)
    }
}

impl<F> fmt::Debug for OpenFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFuture").finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for OpenGrow<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenGrow").finish_non_exhaustive()
    }
}

fn lock(open: &Mutex<MemoryHold>) -> MutexGuard<'_, MemoryHold> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::quota::{Quota, quota_future};

    fn each() -> OpenQuota {
        OpenQuota::new(Limits::bytes(100).objects(2))
    }

    fn reserve<Q: QuotaSource>(quota: &Q, bytes: u64) -> Result<Q::Hold, QuotaError> {
        let user = Scopes::from("user:42");
        let reserved = quota.reserve(&user, Amount::new(bytes, 1), Amount::ZERO);
        reserved.now().ok().expect("memory decides at once")
    }

    #[test]
    #[should_panic(expected = "what is open has no soft limit")]
    fn what_is_open_has_no_soft_limit() {
        OpenQuota::new(Limits::bytes(100).soft_percent(80));
    }

    #[test]
    fn bytes_and_reservations_are_limited_while_they_are_open() {
        let quota = each();
        let (one, two) = (reserve(&quota, 60).unwrap(), reserve(&quota, 40).unwrap());
        assert!(reserve(&quota, 0).is_err());
        drop(two);
        assert!(reserve(&quota, 41).is_err());
        let other = Scopes::from("user:43");
        assert!(
            quota
                .reserve(&other, Amount::bytes(100), Amount::ZERO)
                .now()
                .unwrap()
                .is_ok()
        );
        // Nothing stays of what is stored.
        assert!(matches!(
            one.commit(Change::from(Amount::new(60, 1))),
            Answer::Now(())
        ));
        assert!(reserve(&quota, 100).is_ok());
    }

    #[tokio::test]
    async fn growths_and_shrinks_count() {
        let quota = each();
        let mut one = reserve(&quota, 60).unwrap();
        assert!(one.grow(Amount::bytes(41)).await.is_err());
        one.grow(Amount::bytes(40)).await.unwrap();
        assert!(reserve(&quota, 1).is_err());
        one.shrink_to(Amount::new(30, 1));
        let two = reserve(&quota, 70).unwrap();
        assert!(one.grow(Amount::bytes(1)).await.is_err());
        drop((one, two));
        assert!(reserve(&quota, 100).is_ok());
    }

    /// The other source's refusal, and a future that is dropped, leave nothing open.
    #[tokio::test]
    async fn the_other_source_decides_after_it() {
        let quota = each().over(MemoryQuota::new(Limits::bytes(50)));
        let mut one = reserve(&quota, 30).unwrap();
        assert!(reserve(&quota, 30).is_err());
        assert!(one.grow(Amount::bytes(30)).await.is_err());
        one.grow(Amount::bytes(20)).await.unwrap();
        one.commit(Change::from(Amount::new(50, 1))).await;
        assert!(reserve(&quota, 1).is_err());
        assert!(reserve(&each().over(NoQuota), 100).is_ok());

        let asks = quota_future(|_| pending::<Result<Quota, QuotaError>>());
        let quota = OpenQuota::new(Limits::bytes(100)).over(asks);
        let user = Scopes::from("user:42");
        let waits = quota.reserve(&user, Amount::bytes(100), Amount::ZERO).now();
        let second = || quota.reserve(&user, Amount::bytes(1), Amount::ZERO).now();
        assert!(matches!(second(), Ok(Err(QuotaError::Exceeded(_)))));
        drop(waits);
        assert!(second().is_err());
    }
}
