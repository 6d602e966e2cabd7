//! [`Guard`]: reservations for any code that stores.

mod admission;

use std::{fmt, future::poll_fn, sync::Arc, time::Duration};

use self::admission::would_fit;
pub(crate) use self::admission::{Admission, Admit, Claim, admit};
use crate::{
    demand::Demand,
    observer::{Event, Observed, Observer},
    outage::Outage,
    quota::{NoQuota, QuotaSource, SoftLimitHook},
    refused::Refused,
    reservation::{Context, Grants, Reservation, Rules, Shared, Terms},
    scope::Scopes,
    volume::Volume,
};

/// Makes [reservations](Reservation): on a volume, in the scopes of a quota source, or both. Cheap to clone.
///
/// It does not depend on HTTP. A job, a cache fill or a handler of any framework reserves before it writes. A
/// [`StorageGuardLayer`](crate::StorageGuardLayer) made from the same guard does so for each request. Clones share the
/// volume's ledger, the quota source and the queues, so that all of them together never exceed the available room.
///
/// ```
/// use tower_storage_guard::{
///     Demand, Guard, Volume,
///     quota::{Limits, MemoryQuota},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let quota = MemoryQuota::new(Limits::bytes(1_000));
/// let guard = Guard::new(Volume::open(std::env::temp_dir())?).quota(quota.clone());
///
/// let reservation = guard.reserve("user:42", Demand::known(800)).await?;
/// // There is no room for another of this size, although nothing is written yet.
/// assert!(guard.reserve("user:42", Demand::known(800)).await.is_err());
///
/// reservation.written(500);
/// reservation.stored(500);
/// assert!(reservation.commit().await);
/// assert_eq!(quota.usage("user:42").used.bytes, 500);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Guard<Q = NoQuota> {
    pub(crate) context: Arc<Context<Q>>,
}

impl Guard {
    /// Guards a volume. Each demand must find room on it.
    pub fn new(volume: Volume) -> Self {
        Self::with(Some(volume), NoQuota)
    }
}

impl<Q: QuotaSource> Guard<Q> {
    /// Guards quotas only, for content that is not stored on a volume of this machine.
    pub fn quota_only(quota: Q) -> Self {
        Self::with(None, quota)
    }
}

impl<Q> Guard<Q> {
    fn with(volume: Option<Volume>, quota: Q) -> Self {
        Self {
            context: Arc::new(Context {
                quota,
                volume,
                rules: Rules::default(),
            }),
        }
    }

    /// Sets the source of limits and usage per scope, replacing the previous one.
    ///
    /// Defaults to none.
    pub fn quota<R: QuotaSource>(self, quota: R) -> Guard<R> {
        if let Some(observer) = &self.context.rules.observer {
            tell_of_soft_limits(&quota, observer);
        }
        Guard {
            context: Arc::new(Context {
                quota,
                volume: self.context.volume.clone(),
                rules: self.context.rules.clone(),
            }),
        }
    }

    /// Returns the volume, if one is guarded.
    pub fn volume(&self) -> Option<&Volume> {
        self.context.volume.as_ref()
    }
}

/// Settings. Set them before the guard is cloned: if a clone's settings are changed, it still shares what is guarded,
/// but no longer the settings.
impl<Q: Clone> Guard<Q> {
    /// Sets how long a demand may wait for room that requests in flight are about to give back, before it is refused.
    /// If nothing can be given back, it does not wait.
    ///
    /// Defaults to half a second.
    pub fn patience(self, patience: Duration) -> Self {
        self.set(|rules| rules.patience = patience)
    }

    /// Sets the timeout for each answer of the quota source.
    ///
    /// Defaults to two seconds.
    pub fn quota_timeout(self, timeout: Duration) -> Self {
        self.set(|rules| rules.quota_timeout = timeout)
    }

    /// Sets what happens when the quota source fails, or takes too long.
    ///
    /// Defaults to [`Outage::Refuse`].
    pub fn quota_outage(self, outage: Outage) -> Self {
        self.set(|rules| rules.quota_outage = outage)
    }

    /// Sets the initial grant of a demand of unknown length, and the maximum of later grants, in bytes. Later grants
    /// are a quarter of what the demand has.
    ///
    /// Defaults to 64 KiB and 16 MiB. The minimum is one byte for both, and the maximum is never below the initial
    /// grant.
    pub fn grants(self, first: u64, most: u64) -> Self {
        let first = first.max(1);
        let most = most.max(first);
        self.set(|rules| rules.grants = Grants { first, most })
    }

    /// Sets an observer of the guard's decisions, of the ends of its reservations, and of its volume and quota source.
    /// See [`observer`](crate::observer).
    ///
    /// Set it last, and once for each volume: an observer is told of the volume with the headroom and the name that it has now. That
    /// takes a thread, which ends with the guard.
    ///
    /// Defaults to none, which costs nothing.
    ///
    /// # Panics
    ///
    /// If no thread can be started.
    pub fn observer(self, observer: impl Observer) -> Self
    where
        Q: QuotaSource,
    {
        let observed = Observed::new(observer);
        tell_of_soft_limits(&self.context.quota, &observed);
        if let Some(volume) = self.volume() {
            volume.tell(&observed);
        }
        self.set(|rules| rules.observer = Some(observed))
    }

    /// Sets the maximum number of bytes that are reserved for a size hint, if the length is unknown. A larger hint
    /// must fit, but the rest is reserved as it arrives.
    ///
    /// Defaults to 1 GiB.
    pub fn hint_cap(self, bytes: u64) -> Self {
        self.set(|rules| rules.hint_cap = bytes)
    }

    fn set(mut self, set: impl FnOnce(&mut Rules)) -> Self {
        set(&mut Arc::make_mut(&mut self.context).rules);
        self
    }
}

impl<Q: QuotaSource> Guard<Q> {
    /// Reserves the demand on the volume and in every one of the scopes, or reserves nothing.
    ///
    /// A demand that finds no room waits for what requests in flight give back, as long as the guard's
    /// [patience](Self::patience). Cancel-safe: dropped before it is ready, it reserves nothing.
    ///
    /// # Errors
    ///
    /// If there is no room, or if the volume's probe or the quota source is unavailable and the outage policy is to
    /// refuse.
    pub async fn reserve(
        &self,
        scopes: impl Into<Scopes>,
        demand: Demand,
    ) -> Result<Reservation, Refused> {
        let terms = Terms::new(demand, scopes.into());
        let reserved: Arc<Shared<Q>> = match admit(&self.context, terms, Claim::Demanded, || ()) {
            Admit::Now(decided) => decided,
            Admit::Wait(mut admission) => poll_fn(|cx| admission.poll(cx, || ())).await,
        }
        .inspect_err(|refused| self.context.tell_refused(refused))?;
        Ok(Reservation::new(reserved))
    }

    /// Reserves like [`Self::reserve`], but without waiting. So it may be refused for want of room that would be
    /// available a moment later.
    ///
    /// # Errors
    ///
    /// [`TryReserveError::WouldBlock`] if the quota source answers later.
    pub fn try_reserve(
        &self,
        scopes: impl Into<Scopes>,
        demand: Demand,
    ) -> Result<Reservation, TryReserveError> {
        let terms = Terms::new(demand, scopes.into());
        let reserved: Arc<Shared<Q>> = match admit(&self.context, terms, Claim::Demanded, || ()) {
            Admit::Now(decided) => decided,
            Admit::Wait(admission) => {
                Err(admission.why_not_now().ok_or(TryReserveError::WouldBlock)?)
            }
        }
        .inspect_err(|refused| self.context.tell_refused(refused))?;
        Ok(Reservation::new(reserved))
    }
}

/// Advice, for those who ask before they send.
impl<Q: QuotaSource> Guard<Q> {
    /// Returns whether the demand would be admitted now. It reserves nothing, so it is advice and no promise. Others
    /// may take the room in the next moment.
    ///
    /// Use it to tell a client before it sends, and [`reserve`](Self::reserve) before anything is stored. It does not
    /// wait for room. For a demand of unknown length it asks for the size hint, or one byte. An
    /// [observer](Self::observer) is not told of the answer.
    ///
    /// ```
    /// use tower_storage_guard::{Demand, Guard, quota::{Limits, MemoryQuota}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let guard = Guard::quota_only(MemoryQuota::new(Limits::bytes(1_000)));
    /// assert!(guard.would_fit("user:42", Demand::known(1_000)).await.is_ok());
    /// // Nothing was reserved by that.
    /// let reservation = guard.reserve("user:42", Demand::known(600)).await.unwrap();
    /// let refused = guard.would_fit("user:42", Demand::known(401)).await.unwrap_err();
    /// assert_eq!(refused.reason().as_str(), "quota_exceeded");
    /// # drop(reservation);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`Self::reserve`].
    pub async fn would_fit(
        &self,
        scopes: impl Into<Scopes>,
        demand: Demand,
    ) -> Result<(), Refused> {
        would_fit(&self.context, &Terms::new(demand, scopes.into())).await
    }
}

/// The reason why [`Guard::try_reserve`] reserved nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TryReserveError {
    /// There is no room, or the guard could not determine whether there is.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The quota source has not answered yet. Use [`Guard::reserve`].
    #[error("the quota source has not answered yet")]
    WouldBlock,
}

/// Tells an observer of each crossing of a soft limit in a quota source, as long as both are there.
fn tell_of_soft_limits<Q: QuotaSource>(quota: &Q, observer: &Observed) {
    let told = observer.downgrade();
    quota.on_soft_limit(SoftLimitHook::new(move |over| {
        if let Some(observer) = told.upgrade() {
            observer.observe(&Event::SoftLimit {
                scope: &over.scope,
                resource: over.resource,
                limit: over.limit,
                used: over.used,
                grace: over.grace,
            });
        }
    }));
}

/// Makes a guard of this volume, without quotas.
impl From<Volume> for Guard {
    fn from(volume: Volume) -> Self {
        Self::new(volume)
    }
}

impl<Q> Clone for Guard<Q> {
    fn clone(&self) -> Self {
        Self {
            context: Arc::clone(&self.context),
        }
    }
}

impl<Q> fmt::Debug for Guard<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("volume", &self.context.volume)
            .field("rules", &self.context.rules)
            .finish_non_exhaustive()
    }
}
