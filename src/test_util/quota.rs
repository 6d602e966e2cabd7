use std::{fmt, pin::Pin, sync::Arc};

use tokio::sync::watch;
use tower::BoxError;

use crate::{
    amount::Amount,
    quota::{
        Answer, Change, FunctionHold, FunctionQuota, Limits, MemoryQuota, Quota, QuotaError,
        QuotaHold, QuotaSource, quota_future,
    },
    scope::{Scope, Scopes},
};

/// A quota source that fails or waits when a test says so.
///
/// Use it to test what your service does while its accounts cannot be reached: a request is answered 503, or as
/// [`Guard::quota_outage`](crate::Guard::quota_outage) says. While it answers, limits and usage are those of
/// [`Self::memory`], which the test may set and read.
///
/// It answers from the start. Requests that were made before it was told to wait go on. It is a handle: clones are one
/// source.
///
/// ```
/// use tower_storage_guard::{Demand, Guard, Reason, quota::Limits, test_util::FakeQuota};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let quota = FakeQuota::new(Limits::bytes(100));
/// let guard = Guard::quota_only(quota.clone());
/// let reserve = async || guard.reserve("user:42", Demand::known(60)).await;
///
/// quota.fail();
/// assert_eq!(reserve().await.unwrap_err().reason(), Reason::Unavailable);
///
/// quota.wait();
/// let (reserved, ()) = tokio::join!(reserve(), async {
///     quota.waiting().await;
///     quota.answer();
/// });
/// assert!(reserved.is_ok());
/// # }
/// ```
#[derive(Clone)]
pub struct FakeQuota {
    shared: Arc<Shared>,
    source: FunctionQuota,
}

struct Shared {
    memory: MemoryQuota,
    mode: watch::Sender<Mode>,
    /// How many lookups wait.
    waiting: watch::Sender<usize>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Answers,
    Fails,
    Waits,
}

impl FakeQuota {
    /// Creates a source that answers, with these limits for each scope.
    pub fn new(limits: Limits) -> Self {
        let shared = Arc::new(Shared {
            memory: MemoryQuota::new(limits),
            mode: watch::Sender::new(Mode::Answers),
            waiting: watch::Sender::new(0),
        });
        let asked = Arc::clone(&shared);
        Self {
            shared,
            source: quota_future(move |scope| Arc::clone(&asked).look_up(scope)),
        }
    }

    /// Returns the limits and the usage. They leave out amounts that are reserved and not yet charged.
    pub fn memory(&self) -> &MemoryQuota {
        &self.shared.memory
    }

    /// Answers every reservation and growth from now on, including those that wait.
    pub fn answer(&self) {
        self.shared.mode.send_replace(Mode::Answers);
    }

    /// Fails every reservation and growth from now on with [`QuotaError::Unavailable`], including those that wait.
    pub fn fail(&self) {
        self.shared.mode.send_replace(Mode::Fails);
    }

    /// Lets each reservation and each growth wait from now on, until [`Self::answer`] or [`Self::fail`] is called.
    ///
    /// The guard waits for [`quota_timeout`](crate::Guard::quota_timeout), two seconds by default. With tokio's clock paused, a
    /// request is answered at once.
    pub fn wait(&self) {
        self.shared.mode.send_replace(Mode::Waits);
    }

    /// Resolves once a reservation or a growth waits for an answer, so that a test can go on without a sleep.
    /// Cancel-safe.
    pub async fn waiting(&self) {
        let mut waiting = self.shared.waiting.subscribe();
        // The sender is in `self`.
        let _ = waiting.wait_for(|waiting| *waiting > 0).await;
    }
}

impl Shared {
    async fn look_up(self: Arc<Self>, scope: Scope) -> Result<Quota, BoxError> {
        let mut mode = self.mode.subscribe();
        let decided = {
            let _waits = (*mode.borrow() == Mode::Waits).then(|| Waits::begin(&self.waiting));
            *mode.wait_for(|mode| *mode != Mode::Waits).await?
        };
        if decided == Mode::Fails {
            return Err("the quota source fails, because the test says so".into());
        }
        let usage = self.memory.usage(scope);
        Ok(Quota {
            limits: usage.limits,
            used: usage.used,
        })
    }
}

/// A lookup that waits, until it is dropped.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl QuotaSource for FakeQuota {
    type Future = Pin<Box<dyn Future<Output = Result<FakeHold, QuotaError>> + Send>>;
    type Hold = FakeHold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let reserved = self.source.reserve(scopes, demand, expected);
        let (scopes, memory) = (scopes.clone(), self.shared.memory.clone());
        Answer::Later(Box::pin(async move {
            Ok(FakeHold {
                reserved: reserved.await?,
                scopes,
                memory,
            })
        }))
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        self.shared.memory.charge(scopes, change);
    }
}

/// The hold of a [`FakeQuota`] for one request.
pub struct FakeHold {
    reserved: FunctionHold,
    scopes: Scopes,
    memory: MemoryQuota,
}

impl QuotaHold for FakeHold {
    type Commit = <FunctionHold as QuotaHold>::Commit;
    type Grow = <FunctionHold as QuotaHold>::Grow;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        self.reserved.grow(more)
    }

    fn shrink_to(&mut self, to: Amount) {
        self.reserved.shrink_to(to);
    }

    /// Charges whether the source fails or not, as a store whose client retries.
    fn commit(self, change: Change) -> Answer<Self::Commit> {
        self.memory.charge(&self.scopes, change);
        self.reserved.commit(change)
    }
}

impl fmt::Debug for FakeQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeQuota")
            .field("mode", &*self.shared.mode.borrow())
            .field("waiting", &*self.shared.waiting.borrow())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for FakeHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reserved.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Scopes {
        Scopes::from("user:42")
    }

    async fn reserve(quota: &FakeQuota, bytes: u64) -> Result<FakeHold, QuotaError> {
        quota
            .reserve(&user(), Amount::bytes(bytes), Amount::ZERO)
            .await
    }

    fn used(quota: &FakeQuota) -> u64 {
        quota.memory().usage("user:42").used.bytes
    }

    #[tokio::test]
    async fn holds_and_charges_count_once_each() {
        let quota = FakeQuota::new(Limits::bytes(100));
        let mut hold = reserve(&quota, 60).await.unwrap();
        assert!(reserve(&quota, 41).await.is_err());
        hold.grow(Amount::bytes(40)).await.unwrap();
        hold.shrink_to(Amount::bytes(70));
        assert!(reserve(&quota, 31).await.is_err());
        hold.commit(Change::from(Amount::bytes(50))).await;
        assert_eq!(used(&quota), 50);
        assert!(reserve(&quota, 50).await.is_ok());
        assert!(reserve(&quota, 51).await.is_err());
        let removed = Change::between(Amount::ZERO, Amount::bytes(50));
        quota.charge(&user(), removed);
        assert!(reserve(&quota, 100).await.is_ok());
    }

    #[tokio::test]
    async fn it_fails_and_waits_on_demand() {
        let quota = FakeQuota::new(Limits::bytes(100));
        let mut hold = reserve(&quota, 10).await.unwrap();
        quota.fail();
        for failed in [
            reserve(&quota, 1).await.map(drop),
            hold.grow(Amount::bytes(1)).await,
        ] {
            assert!(matches!(failed, Err(QuotaError::Unavailable(_))));
        }
        // What was stored is charged all the same.
        hold.commit(Change::from(Amount::bytes(10))).await;
        assert_eq!(used(&quota), 10);

        quota.wait();
        let (reserved, ()) = tokio::join!(reserve(&quota, 90), async {
            quota.waiting().await;
            quota.answer();
        });
        drop(reserved.unwrap());
        quota.wait();
        let (reserved, ()) = tokio::join!(reserve(&quota, 1), async {
            quota.waiting().await;
            quota.fail();
        });
        assert!(matches!(reserved, Err(QuotaError::Unavailable(_))));
    }

    #[tokio::test]
    async fn one_that_is_dropped_no_longer_waits() {
        let quota = FakeQuota::new(Limits::bytes(100));
        quota.wait();
        let mut waits = Box::pin(reserve(&quota, 100));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        assert_eq!(*quota.shared.waiting.borrow(), 1);
        drop(waits);
        assert_eq!(*quota.shared.waiting.borrow(), 0);
        quota.answer();
        assert!(reserve(&quota, 100).await.is_ok());
    }
}
