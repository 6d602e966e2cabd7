//! Quotas whose limits and usage are in the user's own database.

use std::{
    collections::HashMap,
    fmt,
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;
use tower::BoxError;

use super::{
    Answer, Change, Crossed, Exceeded, Limits, OverFor, OverSince, OverSoftLimit, QuotaError,
    QuotaHold, QuotaSource, SoftLimitHook, SoftLimitHooks, limits::Ceiling, over,
};
use crate::{
    amount::Amount,
    scope::{Scope, Scopes},
};

/// How often a decision is retried because requests ended while it was being made.
const RETRIES: u32 = 8;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The limits and the usage of one scope, as the lookup of [`quota_fn`] or [`quota_future`] returns them.
///
/// Defaults to no limits and no usage. See [`quota_fn`] for an example.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Quota {
    /// The limits of the scope, in bytes and objects.
    pub limits: Limits,
    /// The bytes and objects that the scope has stored.
    pub used: Amount,
}

/// Makes a source that calls `lookup` for the limits and the usage of each scope, and adds the requests in flight.
///
/// `lookup` must not block; it may read a map, for example. If it has to wait, use [`quota_future`].
///
/// An error means that the quota is unknown: it becomes [`QuotaError::Unavailable`].
///
/// # What `used` must include
///
/// `used` must include everything that a request has stored **by the time its handler answers**. So the handler has to
/// write the row before it answers. Between the two its bytes count twice, in the row and in the hold. Meanwhile a
/// request close to the limit may be refused, but none is wrongly admitted. Holds are in memory only, so nothing has to
/// be cleaned up after a restart.
///
/// Processes do not share their holds. If several serve one storage, use a source that they share.
///
/// # Soft limits
///
/// The limits may have a [soft limit](Limits#soft-limits). The source learns of usage when it looks it up: the first lookup that
/// finds it above the soft limit starts the timer, and one that does not resets it. So a crossing is told with the next request
/// of the scope rather than with the one that has crossed the limit. The timers are in memory only: after a restart the grace
/// begins again.
///
/// # Panics
///
/// A panic of `lookup` propagates to the task that polls the request. The request then holds nothing more than
/// before.
///
/// # Example
///
/// ```
/// use std::{collections::HashMap, convert::Infallible};
///
/// use tower_storage_guard::{
///     Amount, Scope, Scopes,
///     quota::{Limits, Quota, QuotaSource, quota_fn},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_storage_guard::quota::QuotaError> {
/// let stored = HashMap::from([(Scope::from("user:42"), Amount::bytes(70))]);
/// let quota = quota_fn(move |scope| {
///     let used = stored.get(scope).copied().unwrap_or_default();
///     Ok::<_, Infallible>(Quota { limits: Limits::bytes(100), used })
/// });
///
/// let user = Scopes::from("user:42");
/// let hold = quota.reserve(&user, Amount::bytes(30), Amount::ZERO).await?;
/// assert!(quota.reserve(&user, Amount::bytes(1), Amount::ZERO).await.is_err());
/// drop(hold);
/// assert!(quota.reserve(&user, Amount::bytes(1), Amount::ZERO).await.is_ok());
/// # Ok(())
/// # }
/// ```
pub fn quota_fn<F, E>(lookup: F) -> FunctionQuota
where
    F: Fn(&Scope) -> Result<Quota, E> + Send + Sync + 'static,
    E: Into<BoxError>,
{
    FunctionQuota::new(move |scope| Box::pin(ready(lookup(&scope).map_err(Into::into))))
}

/// Makes a source that awaits `lookup`, for databases that answer asynchronously.
///
/// The requirements for [`quota_fn`] apply. Several scopes are looked up one after the other. If requests of the same
/// scope end meanwhile and that affects the decision, the scope is looked up again.
///
/// ```
/// use tower_storage_guard::{
///     Amount, Scope, Scopes,
///     quota::{Limits, Quota, QuotaError, QuotaSource, quota_future},
/// };
///
/// async fn select(scope: Scope) -> Result<Quota, &'static str> {
///     match scope.as_str() {
///         "user:42" => Ok(Quota { limits: Limits::bytes(100), used: Amount::bytes(70) }),
///         _ => Err("no such user"),
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let quota = quota_future(select);
/// assert!(quota.reserve(&Scopes::from("user:42"), Amount::bytes(30), Amount::ZERO).await.is_ok());
///
/// let unknown = quota.reserve(&Scopes::from("user:0"), Amount::bytes(30), Amount::ZERO).await;
/// assert!(matches!(unknown, Err(QuotaError::Unavailable(_))));
/// # });
/// ```
pub fn quota_future<F, Fut, E>(lookup: F) -> FunctionQuota
where
    F: Fn(Scope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Quota, E>> + Send + 'static,
    E: Into<BoxError>,
{
    FunctionQuota::new(move |scope| {
        let answer = lookup(scope);
        Box::pin(async { answer.await.map_err(Into::into) })
    })
}

/// The source that [`quota_fn`] and [`quota_future`] make. It is a handle: clones share the requests in flight.
#[derive(Clone)]
pub struct FunctionQuota {
    shared: Arc<Shared>,
}

impl FunctionQuota {
    fn new(
        lookup: impl Fn(Scope) -> BoxFuture<Result<Quota, BoxError>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                lookup: Box::new(lookup),
                flights: Mutex::default(),
                over: Mutex::default(),
                hooks: SoftLimitHooks::default(),
            }),
        }
    }
}

impl fmt::Debug for FunctionQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionQuota").finish_non_exhaustive()
    }
}

impl QuotaSource for FunctionQuota {
    type Future = BoxFuture<Result<FunctionHold, QuotaError>>;
    type Hold = FunctionHold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        Answer::Later(self.ask(scopes, demand, expected))
    }

    /// The next lookup sees the new usage.
    fn charge(&self, _: &Scopes, _: Change) {}

    /// By the last lookup of each scope.
    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        let all = self.shared.over();
        let mut found = Vec::new();
        for scope in scopes {
            if let Some(Over { since, quota }) = all.get(scope) {
                let over_for = elapsed(*since);
                let crossed = Crossed::default();
                found.extend(over(scope, &quota.limits, quota.used, over_for, crossed));
            }
        }
        found
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        self.shared.hooks.push(hook);
    }
}

impl FunctionQuota {
    fn ask(
        &self,
        scopes: &Scopes,
        demand: Amount,
        expected: Amount,
    ) -> BoxFuture<Result<FunctionHold, QuotaError>> {
        let (shared, scopes) = (Arc::clone(&self.shared), scopes.clone());
        Box::pin(async move {
            let claim = Claim::new(shared, scopes);
            claim.take(demand, expected).await?;
            Ok(FunctionHold {
                claim: Arc::new(claim),
            })
        })
    }
}

/// The hold of a [`FunctionQuota`] for one request.
pub struct FunctionHold {
    // Shared with growth futures, which may outlive it.
    claim: Arc<Claim>,
}

impl QuotaHold for FunctionHold {
    type Commit = Ready<()>;
    type Grow = BoxFuture<Result<(), QuotaError>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let claim = Arc::clone(&self.claim);
        Box::pin(async move { claim.take(more, Amount::ZERO).await })
    }

    fn shrink_to(&mut self, to: Amount) {
        self.claim.settle(to, Change::ZERO);
    }

    fn commit(self, change: Change) -> Answer<Self::Commit> {
        self.claim.settle(Amount::ZERO, change);
        Answer::Now(())
    }
}

impl fmt::Debug for FunctionHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionHold")
            .field("scopes", &self.claim.scopes)
            .finish_non_exhaustive()
    }
}

struct Shared {
    lookup: Box<dyn Fn(Scope) -> BoxFuture<Result<Quota, BoxError>> + Send + Sync>,
    flights: Mutex<HashMap<Scope, Flight>>,
    /// The scopes that were above a soft limit when they were last looked up.
    over: Mutex<HashMap<Scope, Over>>,
    hooks: SoftLimitHooks,
}

/// A scope above a soft limit.
#[derive(Clone, Copy, Default)]
struct Over {
    since: OverSince<Instant>,
    /// The last lookup.
    quota: Quota,
}

fn elapsed(since: OverSince<Instant>) -> OverFor {
    since.elapsed(|since| since.elapsed())
}

impl Shared {
    /// Looks a scope up. Returns the limits that are in force.
    async fn look_up(&self, scope: &Scope) -> Result<Quota, QuotaError> {
        let quota = (self.lookup)(scope.clone()).await;
        let quota = quota.map_err(QuotaError::Unavailable)?;
        let mut all = self.over();
        if !quota.limits.has_soft() && all.is_empty() {
            return Ok(quota);
        }
        let Over { mut since, .. } = all.get(scope).copied().unwrap_or_default();
        let crossed = since.review(&quota.limits, quota.used, Instant::now());
        match since.is_never() {
            true => all.remove(scope),
            false => all.insert(scope.clone(), Over { since, quota }),
        };
        drop(all);
        let over_for = elapsed(since);
        let found = over(scope, &quota.limits, quota.used, over_for, crossed);
        self.hooks.tell(&found.collect::<Vec<_>>());
        let limits = quota.limits.in_force(quota.used, over_for);
        Ok(Quota { limits, ..quota })
    }

    fn over(&self) -> MutexGuard<'_, HashMap<Scope, Over>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Scope, Flight>> {
        // Ignoring poison is sound: no user code runs under this lock, and none of this crate's code under it can
        // panic.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a scope's usage that this process knows and the database does not know yet.
#[derive(Default)]
struct Flight {
    held: Amount,
    /// The sum of all commits so far. Only differences are meaningful, so it may wrap around.
    settled: Amount,
    /// The number of claims. The flight is removed with the last one.
    claims: usize,
}

impl Flight {
    fn settle(&mut self, change: Change) {
        let gain = change.gain();
        self.settled.bytes = self.settled.bytes.wrapping_add(gain.bytes);
        self.settled.objects = self.settled.objects.wrapping_add(gain.objects);
    }

    /// The sum of commits since `settled` returned `before`.
    fn settled_since(&self, before: Amount) -> Amount {
        Amount::new(
            self.settled.bytes.wrapping_sub(before.bytes),
            self.settled.objects.wrapping_sub(before.objects),
        )
    }
}

/// One request's part in the flights of its scopes. Made before the first lookup, with nothing held, so that dropping
/// it at any point releases everything.
struct Claim {
    shared: Arc<Shared>,
    scopes: Scopes,
    /// Changed only while the flights are locked as well.
    held: Mutex<Amount>,
}

/// Why a demand does not fit.
enum Refused {
    /// It does not fit, even if the lookups saw all commits.
    Surely(Exceeded),
    /// It fits only if the lookups saw all commits, which is unknown.
    Perhaps(Exceeded),
}

impl Claim {
    fn new(shared: Arc<Shared>, scopes: Scopes) -> Self {
        let mut flights = shared.lock();
        for scope in &scopes {
            flights.entry(scope.clone()).or_default().claims += 1;
        }
        drop(flights);
        Self {
            shared,
            scopes,
            held: Mutex::default(),
        }
    }

    /// Reserves `need` in every scope, or in none. `expected` must fit too.
    async fn take(&self, need: Amount, expected: Amount) -> Result<(), QuotaError> {
        // Zero always fits, so there is no reason to look anything up.
        if need.max(expected).is_zero() {
            return Ok(());
        }
        let mut retries = RETRIES;
        loop {
            let before = self.settled();
            let mut quotas = Vec::with_capacity(self.scopes.len());
            for scope in &self.scopes {
                quotas.push(self.shared.look_up(scope).await?);
            }
            match self.admit(need, expected, &quotas, &before) {
                Ok(()) => return Ok(()),
                Err(Refused::Perhaps(_)) if retries > 0 => retries -= 1,
                Err(Refused::Perhaps(exceeded) | Refused::Surely(exceeded)) => {
                    return Err(exceeded.into());
                }
            }
        }
    }

    fn settled(&self) -> Vec<Amount> {
        let flights = self.shared.lock();
        self.scopes
            .iter()
            .map(|scope| flights[scope].settled)
            .collect()
    }

    /// Decides and reserves in one step.
    ///
    /// `quotas` were looked up after `settled` returned `before`. Commits since then may or may not be included in
    /// them, so they are added, because counting them twice is safe.
    fn admit(
        &self,
        need: Amount,
        expected: Amount,
        quotas: &[Quota],
        before: &[Amount],
    ) -> Result<(), Refused> {
        let required = need.max(expected);
        let mut flights = self.shared.lock();
        for ((scope, quota), before) in self.scopes.iter().zip(quotas).zip(before) {
            let flight = &flights[scope];
            let ceiling = Ceiling::from(quota.limits);
            let known = quota.used + flight.held;
            ceiling
                .admit(scope, known, required)
                .map_err(Refused::Surely)?;
            ceiling
                .admit(scope, known + flight.settled_since(*before), required)
                .map_err(Refused::Perhaps)?;
        }
        self.change(&mut flights, |flight| flight.held = flight.held + need);
        let mut held = self.lock();
        *held = *held + need;
        Ok(())
    }

    /// Releases what is held beyond `rest`, and counts `change` as committed.
    fn settle(&self, rest: Amount, change: Change) {
        let mut flights = self.shared.lock();
        let mut held = self.lock();
        let released = *held - rest;
        *held = *held - released;
        drop(held);
        self.change(&mut flights, |flight| {
            flight.held = flight.held - released;
            flight.settle(change);
        });
    }

    fn change(&self, flights: &mut HashMap<Scope, Flight>, change: impl Fn(&mut Flight)) {
        for scope in &self.scopes {
            flights.get_mut(scope).into_iter().for_each(&change);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Amount> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.settle(Amount::ZERO, Change::ZERO);
        let mut flights = self.shared.lock();
        self.change(&mut flights, |flight| flight.claims -= 1);
        for scope in &self.scopes {
            if flights.get(scope).is_some_and(|flight| flight.claims == 0) {
                flights.remove(scope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        mem,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
            mpsc,
        },
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use proptest::prelude::*;
    use tokio::{sync::oneshot, time::advance};

    use super::*;
    use crate::cause::Resource;

    const LIMIT: u64 = 100;

    fn quota(used: u64) -> Quota {
        Quota {
            limits: Limits::bytes(LIMIT),
            used: Amount::bytes(used),
        }
    }

    fn poll<T>(future: &mut BoxFuture<T>) -> Poll<T> {
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    }

    fn ready<T>(mut future: BoxFuture<T>) -> T {
        match poll(&mut future) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }

    fn is_idle(source: &FunctionQuota) -> bool {
        source.shared.lock().is_empty()
    }

    fn commit(hold: FunctionHold, bytes: u64) {
        assert!(matches!(
            hold.commit(Amount::bytes(bytes).into()),
            Answer::Now(())
        ));
    }

    /// A scope, and the channel for the answer.
    type Asked = (Scope, oneshot::Sender<Quota>);

    /// A database whose answers the test sends one by one.
    #[derive(Clone, Default)]
    struct ByHand(Arc<Mutex<Vec<Asked>>>);

    impl ByHand {
        fn source(&self) -> FunctionQuota {
            let asked = Arc::clone(&self.0);
            quota_future(move |scope| {
                let (answer, answered) = oneshot::channel();
                asked.lock().unwrap().push((scope, answer));
                answered
            })
        }

        /// Answers the oldest lookup, and returns its scope.
        fn answer(&self, used: u64) -> Scope {
            let (scope, answer) = self.0.lock().unwrap().remove(0);
            // The request may have been dropped.
            let _ = answer.send(quota(used));
            scope
        }

        fn is_asked(&self) -> bool {
            !self.0.lock().unwrap().is_empty()
        }

        /// An existing hold.
        fn hold(&self, source: &FunctionQuota, bytes: u64, used: u64) -> FunctionHold {
            let mut future = source.ask(&"s".into(), Amount::bytes(bytes), Amount::ZERO);
            assert!(poll(&mut future).is_pending());
            self.answer(used);
            ready(future).unwrap()
        }
    }

    #[test]
    fn a_commit_that_the_answer_missed_is_counted() {
        let database = ByHand::default();
        let source = database.source();
        let first = database.hold(&source, 60, 0);

        let mut second = source.ask(&"s".into(), Amount::bytes(41), Amount::ZERO);
        assert!(poll(&mut second).is_pending());
        commit(first, 60);
        // Read before the commit.
        database.answer(0);
        // That is not enough evidence to refuse, so it looks up again.
        assert!(poll(&mut second).is_pending());
        database.answer(60);
        let Err(QuotaError::Exceeded(exceeded)) = ready(second) else {
            panic!("60 + 41 do not fit")
        };
        assert_eq!(
            exceeded,
            Exceeded::new("s".into(), Resource::Bytes, LIMIT, 60, 41)
        );
        assert!(is_idle(&source));
    }

    #[test]
    fn a_commit_that_the_answer_saw_causes_no_refusal() {
        let database = ByHand::default();
        let source = database.source();
        let first = database.hold(&source, 60, 0);

        let mut second = source.ask(&"s".into(), Amount::bytes(40), Amount::ZERO);
        assert!(poll(&mut second).is_pending());
        commit(first, 60);
        // Read after the commit. 60 + 60 + 40 does not fit, but the second 60 may be the first.
        database.answer(60);
        assert!(poll(&mut second).is_pending());
        database.answer(60);
        assert!(ready(second).is_ok());
    }

    #[test]
    fn a_certain_fit_is_not_looked_up_again() {
        let database = ByHand::default();
        let source = database.source();
        let first = database.hold(&source, 60, 0);

        let mut second = source.ask(&"s".into(), Amount::bytes(40), Amount::ZERO);
        assert!(poll(&mut second).is_pending());
        commit(first, 60);
        database.answer(0);
        assert!(ready(second).is_ok());
        assert!(!database.is_asked());
    }

    #[test]
    fn asking_again_has_an_end() {
        let database = ByHand::default();
        let source = database.source();
        let mut second = source.ask(&"s".into(), Amount::bytes(LIMIT), Amount::ZERO);
        for _ in 0..RETRIES {
            assert!(poll(&mut second).is_pending());
            commit(database_hold(&database, &source), 1);
            database.answer(0);
        }
        assert!(poll(&mut second).is_pending());
        commit(database_hold(&database, &source), 1);
        database.answer(0);
        assert!(matches!(ready(second), Err(QuotaError::Exceeded(_))));

        /// A hold of a request that looks up after another, and is answered first.
        fn database_hold(database: &ByHand, source: &FunctionQuota) -> FunctionHold {
            let mut future = source.ask(&"s".into(), Amount::bytes(1), Amount::ZERO);
            assert!(poll(&mut future).is_pending());
            database.0.lock().unwrap().rotate_right(1);
            database.answer(0);
            ready(future).unwrap()
        }
    }

    #[test]
    fn several_scopes_take_all_or_nothing() {
        let database = ByHand::default();
        let source = database.source();
        let mut both = source.ask(&["a", "b"].into(), Amount::bytes(30), Amount::ZERO);
        assert!(poll(&mut both).is_pending());
        assert_eq!(database.answer(0).as_str(), "a");
        assert!(poll(&mut both).is_pending());
        assert_eq!(database.answer(80).as_str(), "b");
        let Err(QuotaError::Exceeded(exceeded)) = ready(both) else {
            panic!("80 + 30 do not fit")
        };
        assert_eq!(exceeded.scope.as_str(), "b");
        assert!(is_idle(&source));
    }

    #[test]
    fn a_dropped_request_leaves_nothing() {
        let database = ByHand::default();
        let source = database.source();

        drop(source.ask(&"s".into(), Amount::bytes(1), Amount::ZERO));
        let mut asking = source.ask(&["s", "t"].into(), Amount::bytes(1), Amount::ZERO);
        assert!(poll(&mut asking).is_pending());
        assert!(!is_idle(&source));
        drop(asking);
        assert!(is_idle(&source));
        database.answer(0);

        let mut hold = database.hold(&source, 60, 0);
        let mut growing = hold.grow(Amount::bytes(40));
        assert!(poll(&mut growing).is_pending());
        drop(growing);
        assert_eq!(
            source.shared.lock()[&Scope::from("s")].held,
            Amount::bytes(60)
        );
        drop(hold);
        assert!(is_idle(&source));
    }

    #[test]
    fn growing_counts_the_hold_itself() {
        let database = ByHand::default();
        let source = database.source();
        let mut hold = database.hold(&source, 60, 0);
        for (more, fits) in [(41, false), (40, true), (1, false)] {
            let mut growing = hold.grow(Amount::bytes(more));
            assert!(poll(&mut growing).is_pending());
            database.answer(0);
            assert_eq!(ready(growing).is_ok(), fits);
        }
        drop(hold);
        assert!(is_idle(&source));
    }

    #[test]
    fn growth_that_outlives_its_hold_is_released() {
        let database = ByHand::default();
        let source = database.source();
        let mut hold = database.hold(&source, 60, 0);
        let mut growing = hold.grow(Amount::bytes(10));
        assert!(poll(&mut growing).is_pending());
        commit(hold, 60);
        database.answer(0);
        assert!(ready(growing).is_ok());
        assert!(is_idle(&source));
    }

    #[test]
    fn zero_needs_no_lookup() {
        let source = quota_fn(|_| -> Result<Quota, BoxError> { panic!("unexpected lookup") });
        assert!(ready(source.ask(&"s".into(), Amount::ZERO, Amount::ZERO)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_soft_limit_is_timed_by_lookups() {
        let used = Arc::new(AtomicU64::new(80));
        let read = Arc::clone(&used);
        let grace = Duration::from_secs(60);
        let source = quota_fn(move |_| {
            Ok::<_, BoxError>(Quota {
                limits: Limits::bytes(LIMIT).soft_percent(80).grace(grace),
                used: Amount::bytes(read.load(SeqCst)),
            })
        });
        let (sender, crossings) = mpsc::channel();
        source.on_soft_limit(SoftLimitHook::new(move |over| {
            let _ = sender.send(over.clone());
        }));
        let user = Scopes::from("s");
        let ask = || source.reserve(&user, Amount::bytes(1), Amount::ZERO);
        ask().await.unwrap();
        assert!(crossings.try_recv().is_err());
        used.store(81, SeqCst);
        ask().await.unwrap();
        let over = OverSoftLimit::new("s".into(), Resource::Bytes, 80, 81);
        let over = over.with_grace(grace);
        assert_eq!(crossings.try_recv(), Ok(over.clone().crossed()));
        assert_eq!(source.over_soft_limits(&user), [over]);
        advance(grace).await;
        let Err(QuotaError::Exceeded(refused)) = ask().await else {
            panic!("the grace has passed");
        };
        assert_eq!(
            refused,
            Exceeded::new("s".into(), Resource::Bytes, 80, 81, 1)
        );
        used.store(80, SeqCst);
        ask().await.unwrap();
        assert_eq!(source.over_soft_limits(&user), []);
        assert!(source.shared.over().is_empty());
        assert!(crossings.try_recv().is_err());
    }

    #[test]
    fn an_error_is_an_outage() {
        let source = quota_fn(|_| Err("connection refused"));
        let Err(QuotaError::Unavailable(error)) =
            ready(source.ask(&"s".into(), Amount::bytes(1), Amount::ZERO))
        else {
            panic!("nothing is known")
        };
        assert_eq!(error.to_string(), "connection refused");
        assert!(is_idle(&source));
    }

    #[test]
    fn a_panic_leaves_nothing() {
        let broken = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&broken);
        let source = quota_fn(move |_| {
            assert!(!seen.load(SeqCst), "on purpose");
            Ok::<_, BoxError>(quota(0))
        });
        let mut hold = ready(source.ask(&"s".into(), Amount::bytes(60), Amount::ZERO)).unwrap();

        broken.store(true, SeqCst);
        let growing = hold.grow(Amount::bytes(1));
        assert!(catch_unwind(AssertUnwindSafe(|| ready(growing))).is_err());
        let asking = source.ask(&"s".into(), Amount::bytes(1), Amount::ZERO);
        assert!(catch_unwind(AssertUnwindSafe(|| ready(asking))).is_err());

        broken.store(false, SeqCst);
        assert!(ready(source.ask(&"s".into(), Amount::bytes(41), Amount::ZERO)).is_err());
        assert!(ready(source.ask(&"s".into(), Amount::bytes(40), Amount::ZERO)).is_ok());
        drop(hold);
        assert!(is_idle(&source));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_stampede_stores_as_many_as_fit() {
        const EACH: u64 = 12;
        for _ in 0..50 {
            let stored = Arc::new(AtomicU64::new(0));
            let database = Arc::clone(&stored);
            let source = quota_future(move |_| {
                let database = Arc::clone(&database);
                async move {
                    // The answer takes some time, before and after the reading.
                    tokio::task::yield_now().await;
                    let used = database.load(SeqCst);
                    tokio::task::yield_now().await;
                    Ok::<_, BoxError>(quota(used))
                }
            });
            let requests = (0..16).map(|request| {
                let (source, stored) = (source.clone(), Arc::clone(&stored));
                tokio::spawn(async move {
                    let Ok(hold) = source
                        .reserve(&"s".into(), Amount::bytes(EACH), Amount::ZERO)
                        .await
                    else {
                        return;
                    };
                    for _ in 0..request % 4 {
                        tokio::task::yield_now().await;
                    }
                    assert!(stored.fetch_add(EACH, SeqCst) + EACH <= LIMIT);
                    commit(hold, EACH);
                })
            });
            for request in requests.collect::<Vec<_>>() {
                request.await.unwrap();
            }
            // A request that arrived between a write and its commit may have been refused. Now all of the quota can
            // be reserved.
            while let Ok(hold) = source
                .reserve(&"s".into(), Amount::bytes(EACH), Amount::ZERO)
                .await
            {
                stored.fetch_add(EACH, SeqCst);
                commit(hold, EACH);
            }
            assert_eq!(stored.load(SeqCst), LIMIT / EACH * EACH);
            assert!(is_idle(&source));
        }
    }

    /// One step of a model in which every operation takes time. Numbers select one of the existing items.
    #[derive(Clone, Debug)]
    enum Step {
        /// A request arrives, for one scope or for both.
        Ask(Vec<usize>, u64),
        /// A hold grows.
        Grow(usize, u64),
        /// The database reads the scope of one lookup.
        Read(usize),
        /// The answer of a lookup arrives.
        Arrive(usize),
        /// The handler stores a part of what is reserved, and answers.
        Store(usize, u64),
        /// A request is dropped while its lookup is in flight.
        Cancel(usize),
        /// A request that holds something stores nothing.
        Drop(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let pick = any::<usize>;
        prop_oneof![
            4 => (prop::sample::subsequence(vec![0, 1], 1..=2), 1..60_u64).prop_map(|(s, b)| Step::Ask(s, b)),
            2 => (pick(), 1..30_u64).prop_map(|(hold, bytes)| Step::Grow(hold, bytes)),
            6 => pick().prop_map(Step::Read),
            6 => pick().prop_map(Step::Arrive),
            2 => (pick(), any::<u64>()).prop_map(|(hold, part)| Step::Store(hold, part)),
            1 => pick().prop_map(Step::Cancel),
            1 => pick().prop_map(Step::Drop),
        ]
    }

    struct Question {
        scope: usize,
        read: Cell<Option<u64>>,
        answer: oneshot::Sender<Quota>,
    }

    type Reserving = BoxFuture<Result<FunctionHold, QuotaError>>;
    type Growing = BoxFuture<Result<(), QuotaError>>;
    /// A hold, its scopes, and the number of bytes that it should have in each.
    type Held = (FunctionHold, Vec<usize>, u64);

    struct World {
        source: FunctionQuota,
        questions: Arc<Mutex<Vec<Question>>>,
        stored: [u64; 2],
        asking: Vec<(Vec<usize>, u64, Reserving)>,
        growing: Vec<(Held, u64, Growing)>,
        holding: Vec<Held>,
    }

    impl World {
        fn new() -> Self {
            let questions = Arc::new(Mutex::new(Vec::new()));
            let asked = Arc::clone(&questions);
            let source = quota_future(move |scope| {
                let (answer, answered) = oneshot::channel();
                let scope = usize::from(scope.as_str() == "1");
                asked.lock().unwrap().push(Question {
                    scope,
                    read: Cell::new(None),
                    answer,
                });
                answered
            });
            Self {
                source,
                questions,
                stored: [0; 2],
                asking: Vec::new(),
                growing: Vec::new(),
                holding: Vec::new(),
            }
        }

        fn step(&mut self, step: Step) {
            fn pick<T>(from: &[T], number: usize) -> Option<usize> {
                (!from.is_empty()).then(|| number % from.len())
            }
            match step {
                Step::Ask(scopes, bytes) => {
                    let names: Scopes = scopes.iter().map(|scope| ["0", "1"][*scope]).collect();
                    self.asking.push((
                        scopes,
                        bytes,
                        self.source.ask(&names, Amount::bytes(bytes), Amount::ZERO),
                    ));
                }
                Step::Grow(hold, more) => {
                    let Some(hold) = pick(&self.holding, hold) else {
                        return;
                    };
                    let (mut hold, scopes, bytes) = self.holding.swap_remove(hold);
                    let growing = hold.grow(Amount::bytes(more));
                    self.growing.push(((hold, scopes, bytes), more, growing));
                }
                Step::Read(question) => {
                    let questions = self.questions.lock().unwrap();
                    let Some(question) = pick(&questions, question) else {
                        return;
                    };
                    let question = &questions[question];
                    question.read.set(Some(
                        question.read.get().unwrap_or(self.stored[question.scope]),
                    ));
                }
                Step::Arrive(question) => {
                    let mut questions = self.questions.lock().unwrap();
                    let Some(question) = pick(&questions, question) else {
                        return;
                    };
                    if let Some(used) = questions[question].read.get() {
                        let _ = questions.swap_remove(question).answer.send(quota(used));
                    }
                }
                Step::Store(hold, part) => {
                    let Some(hold) = pick(&self.holding, hold) else {
                        return;
                    };
                    let (hold, scopes, bytes) = self.holding.swap_remove(hold);
                    let stored = part % (bytes + 1);
                    scopes
                        .iter()
                        .for_each(|&scope| self.stored[scope] += stored);
                    commit(hold, stored);
                }
                Step::Cancel(asking) => {
                    let Some(asking) = pick(&self.asking, asking) else {
                        return;
                    };
                    drop(self.asking.swap_remove(asking));
                }
                Step::Drop(hold) => {
                    let Some(hold) = pick(&self.holding, hold) else {
                        return;
                    };
                    drop(self.holding.swap_remove(hold));
                }
            }
        }

        /// Polls every task until none can proceed, and checks the results.
        fn run(&mut self) {
            for (scopes, bytes, mut future) in mem::take(&mut self.asking) {
                match poll(&mut future) {
                    Poll::Pending => self.asking.push((scopes, bytes, future)),
                    Poll::Ready(Ok(hold)) => self.holding.push((hold, scopes, bytes)),
                    Poll::Ready(Err(error)) => self.check_refusal(error),
                }
            }
            for ((hold, scopes, bytes), more, mut future) in mem::take(&mut self.growing) {
                match poll(&mut future) {
                    Poll::Pending => self.growing.push(((hold, scopes, bytes), more, future)),
                    Poll::Ready(Ok(())) => self.holding.push((hold, scopes, bytes + more)),
                    Poll::Ready(Err(error)) => {
                        self.check_refusal(error);
                        self.holding.push((hold, scopes, bytes));
                    }
                }
            }
            for scope in 0..2 {
                let total = self.stored[scope] + self.held(scope);
                assert!(total <= LIMIT, "{total} of {LIMIT}");
            }
        }

        /// A refusal is justified by the actual usage, unless the retries are exhausted.
        fn check_refusal(&self, error: QuotaError) {
            let QuotaError::Exceeded(exceeded) = error else {
                panic!("the database is there")
            };
            let scope = usize::from(exceeded.scope.as_str() == "1");
            assert!(exceeded.used <= self.stored[scope] + self.source_held(&exceeded.scope));
            assert!(exceeded.used + exceeded.required > LIMIT);
        }

        fn source_held(&self, scope: &Scope) -> u64 {
            self.source
                .shared
                .lock()
                .get(scope)
                .map_or(0, |flight| flight.held.bytes)
        }

        fn held(&self, scope: usize) -> u64 {
            let held = self
                .holding
                .iter()
                .chain(self.growing.iter().map(|(held, ..)| held));
            held.filter(|(_, scopes, _)| scopes.contains(&scope))
                .map(|(.., bytes)| bytes)
                .sum()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(test_support::times(500)))]
        #[test]
        fn no_interleaving_passes_the_limit(steps in prop::collection::vec(any_step(), 1..120)) {
            let mut world = World::new();
            for step in steps {
                world.step(step);
                world.run();
                for (scope, name) in ["0", "1"].into_iter().enumerate() {
                    prop_assert_eq!(world.source_held(&name.into()), world.held(scope));
                }
            }
            let source = world.source.clone();
            drop(world);
            prop_assert!(is_idle(&source));
        }
    }
}
