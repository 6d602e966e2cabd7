//! Quotas whose limits and usage are in the user's own database.

use std::{
    collections::HashMap,
    fmt,
    future::{Ready, ready},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Change, Exceeded, Limits, QuotaError, QuotaHold, QuotaSource, limits::Ceiling};
use crate::{Amount, BoxError, Scope, Scopes};

/// How often a decision is tried again because requests ended while it was being made.
const RETRIES: u32 = 8;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What your database says about one scope: the answer to [`quota_fn`] and [`quota_future`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Quota {
    /// How much the scope may use.
    pub limits: Limits,
    /// How much it has stored.
    pub used: Amount,
}

/// Asks `lookup` for the limits and the usage of each scope, and keeps what is in flight on top.
///
/// `lookup` must answer at once, say from a map. When it has to wait, use [`quota_future`].
///
/// An error means that the quota is unknown: it becomes [`QuotaError::Unavailable`].
///
/// # What `used` must say
///
/// Everything that a request stored **by the time its handler answers**. Write the row first, answer then. Between the
/// two its bytes count twice, in the row and in the hold: for that moment a request close to the limit may be refused,
/// though never let in wrongly. Nothing is held any more when the process starts again, so nothing has to be cleaned up.
///
/// Processes do not know of each other's holds. Where several serve one storage, use a source that they share.
///
/// # Panics
///
/// A panic of `lookup` is passed on to whoever polls the request. Nothing stays held.
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
/// let stored = HashMap::from([(Scope::from("user:42"), Amount::bytes(70))]);
/// let quota = quota_fn(move |scope| {
///     let used = stored.get(scope).copied().unwrap_or_default();
///     Ok::<_, Infallible>(Quota { limits: Limits::bytes(100), used })
/// });
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let user = Scopes::from("user:42");
/// let hold = quota.reserve(&user, Amount::bytes(30)).await.unwrap();
/// assert!(quota.reserve(&user, Amount::bytes(1)).await.is_err());
/// drop(hold);
/// assert!(quota.reserve(&user, Amount::bytes(1)).await.is_ok());
/// # });
/// ```
pub fn quota_fn<F, E>(lookup: F) -> FunctionQuota
where
    F: Fn(&Scope) -> Result<Quota, E> + Send + Sync + 'static,
    E: Into<BoxError>,
{
    FunctionQuota::new(move |scope| Box::pin(ready(lookup(&scope).map_err(Into::into))))
}

/// Asks `lookup`, and waits for its answer: [`quota_fn`] for databases that take their time.
///
/// The same must be true of the answers. Several scopes are looked up one after the other. When requests of the same
/// scope end meanwhile and that makes the difference, it is looked up again.
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
/// assert!(quota.reserve(&Scopes::from("user:42"), Amount::bytes(30)).await.is_ok());
///
/// let unknown = quota.reserve(&Scopes::from("user:0"), Amount::bytes(30)).await;
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

/// The source that [`quota_fn`] and [`quota_future`] make. A handle: clones share what is in flight.
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

    fn reserve(&self, scopes: &Scopes, demand: Amount) -> Self::Future {
        let (shared, scopes) = (Arc::clone(&self.shared), scopes.clone());
        Box::pin(async move {
            let claim = Claim::new(shared, scopes);
            claim.take(demand).await?;
            Ok(FunctionHold {
                claim: Arc::new(claim),
            })
        })
    }
}

/// What a [`FunctionQuota`] has set aside for one request.
pub struct FunctionHold {
    // Shared with futures that make it grow, which may outlive it.
    claim: Arc<Claim>,
}

impl QuotaHold for FunctionHold {
    type Commit = Ready<()>;
    type Grow = BoxFuture<Result<(), QuotaError>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let claim = Arc::clone(&self.claim);
        Box::pin(async move { claim.take(more).await })
    }

    fn commit(self, change: Change) -> Self::Commit {
        self.claim.settle(change);
        ready(())
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
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Scope, Flight>> {
        // Poison is sound here: no code of the user runs under this lock, and nothing of ours that can panic.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this process knows about a scope that the database does not know yet.
#[derive(Default)]
struct Flight {
    held: Amount,
    /// Everything that commits have added so far. Only differences of it mean anything, so it may wrap around.
    settled: Amount,
    /// Claims that there are. The flight is forgotten with the last one.
    claims: usize,
}

impl Flight {
    fn settle(&mut self, change: Change) {
        let gain = change.gain();
        self.settled.bytes = self.settled.bytes.wrapping_add(gain.bytes);
        self.settled.objects = self.settled.objects.wrapping_add(gain.objects);
    }

    /// What commits have added since `settled` said `before`.
    fn settled_since(&self, before: Amount) -> Amount {
        Amount::new(
            self.settled.bytes.wrapping_sub(before.bytes),
            self.settled.objects.wrapping_sub(before.objects),
        )
    }
}

/// One request's part in the flights of its scopes. Made before the first lookup, with nothing held, so that whatever
/// ends it on the way takes everything back.
struct Claim {
    shared: Arc<Shared>,
    scopes: Scopes,
    /// Changed only while the flights are locked as well.
    held: Mutex<Amount>,
}

/// Why a demand does not fit.
enum Refused {
    /// It does not, whatever the answers have seen.
    Surely(Exceeded),
    /// It would fit if the answers had seen all commits, which nobody can tell.
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

    /// Sets `need` aside in every scope, or in none.
    async fn take(&self, need: Amount) -> Result<(), QuotaError> {
        // Zero always fits: no reason to ask.
        if need.is_zero() {
            return Ok(());
        }
        let mut retries = RETRIES;
        loop {
            let before = self.settled();
            let mut quotas = Vec::with_capacity(self.scopes.len());
            for scope in &self.scopes {
                quotas.push(
                    (self.shared.lookup)(scope.clone())
                        .await
                        .map_err(QuotaError::Unavailable)?,
                );
            }
            match self.admit(need, &quotas, &before) {
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

    /// Decides and takes in one step.
    ///
    /// `quotas` were looked up after `settled` said `before`. What was committed since may be in them or not: it is
    /// counted, because too much is safe.
    fn admit(&self, need: Amount, quotas: &[Quota], before: &[Amount]) -> Result<(), Refused> {
        let mut flights = self.shared.lock();
        for ((scope, quota), before) in self.scopes.iter().zip(quotas).zip(before) {
            let flight = &flights[scope];
            let ceiling = Ceiling::from(quota.limits);
            let known = quota.used + flight.held;
            ceiling.admit(scope, known, need).map_err(Refused::Surely)?;
            ceiling
                .admit(scope, known + flight.settled_since(*before), need)
                .map_err(Refused::Perhaps)?;
        }
        self.change(&mut flights, |flight| flight.held = flight.held + need);
        let mut held = self.lock();
        *held = *held + need;
        Ok(())
    }

    /// Moves everything that is held to what was stored, as far as it was.
    fn settle(&self, change: Change) {
        let mut flights = self.shared.lock();
        let held = mem::take(&mut *self.lock());
        self.change(&mut flights, |flight| {
            flight.held = flight.held - held;
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
        self.settle(Change::ZERO);
        let mut flights = self.shared.lock();
        self.change(&mut flights, |flight| flight.claims -= 1);
        for scope in &self.scopes {
            if flights.get(scope).is_some_and(|flight| flight.claims == 0) {
                flights.remove(scope);
            }
        }
    }
}
