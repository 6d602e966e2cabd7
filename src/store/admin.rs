//! The accounts of a store, looked at and corrected.

use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::sleep;
use tower::BoxError;

use super::{Account, Baseline, HoldEntry, HoldId, Reserve, Settlement, Store, StoreError};
use crate::{
    amount::Amount,
    quota::{Change, Limits, QuotaError},
    scope::{Scope, Scopes},
};

/// How often a rescan counts while the scope is in use.
const SCANS: usize = 3;
/// How often a scan checks for a moment in which nothing is held before it counts, and the pause between two checks.
const CHECKS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// How long the lock on a rescan outlives its owner.
const LOCKED: Duration = Duration::from_secs(30);
/// How often the scope is checked and the lock renewed during a count.
const WATCH: Duration = Duration::from_secs(1);

/// Looks at the accounts of a [`Store`] and corrects them, in a service or in a tool beside it.
///
/// It needs the store and nothing else: no [`StoredQuota`](super::StoredQuota), and no task. Each change counts at once,
/// for all processes that share the store.
///
/// ```
/// # #[cfg(feature = "store-sqlite")] {
/// use tower_storage_guard::{
///     Amount, Scopes,
///     quota::{Limits, QuotaSource},
///     store::{Admin, SqliteStore, StoredQuota},
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("quota.db");
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// // The service.
/// let quota = StoredQuota::new(SqliteStore::open(&path)?, Limits::bytes(1_000));
///
/// // A tool beside it.
/// let admin = Admin::new(SqliteStore::open_existing(&path)?);
/// admin.add("user:42", Amount::new(700, 3)).await?;
/// admin.set_limits("user:42", Limits::bytes(800)).await?;
///
/// let user = Scopes::from("user:42");
/// assert!(quota.reserve(&user, Amount::bytes(101), Amount::ZERO).await.is_err());
/// assert!(quota.reserve(&user, Amount::bytes(100), Amount::ZERO).await.is_ok());
/// # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
/// # }).unwrap();
/// # }
/// ```
///
/// # Errors
///
/// All methods fail when the store fails or does not answer. The step may have been taken or not then. Setting, clearing
/// and removing may be repeated; [`add`](Self::add) and [`subtract`](Self::subtract) say what holds for them.
#[derive(Clone)]
pub struct Admin<S> {
    store: S,
}

impl<S: Store> Admin<S> {
    /// Creates an admin of this store.
    pub fn new(store: S) -> Self {
        Self { store }
    }

    /// Returns the account of a scope: the limits of its own, how much is used and held, in bytes and objects, and for how long
    /// usage has been above the [soft limits](Limits#soft-limits). Empty if the store does not know the scope.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn account(&self, scope: impl Into<Scope>) -> Result<Account, StoreError> {
        self.store.account(&scope.into()).await
    }

    /// Returns whether the usage in the store is based on a count of what is stored. False in a store that is new or was
    /// emptied, until it is [declared](Self::declare_counted) so.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn is_counted(&self) -> Result<bool, StoreError> {
        Ok(self.store.baseline().await?.is_some())
    }

    /// Declares that the usage in the store is what is stored. Services that refuse requests since the store was emptied
    /// admit them again, unless they wait for [their own count](super::StoredQuotaBuilder::on_emptied).
    ///
    /// # Errors
    ///
    /// When the store fails. Calling this again is safe.
    pub async fn declare_counted(&self) -> Result<(), StoreError> {
        self.store.set_baseline(Baseline::unique()).await?;
        Ok(())
    }

    /// Returns the scopes that use most bytes, the largest first, up to `count`.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn largest(&self, count: usize) -> Result<Vec<(Scope, Account)>, StoreError> {
        self.store.largest(count).await
    }

    /// Returns the holds in one scope, or in all scopes: up to `count`, in no order. A hold has one entry for each of its
    /// scopes.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn holds(
        &self,
        scope: Option<Scope>,
        count: usize,
    ) -> Result<Vec<HoldEntry>, StoreError> {
        self.store.holds(scope.as_ref(), count).await
    }

    /// Sets the limits of a scope, in place of the default ones of each service.
    ///
    /// They apply to later requests: nothing that is used or held already is taken away. Where usage is above a new
    /// [soft limit](Limits#soft-limits), its grace begins with the next charge. Stores keep it in milliseconds.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn set_limits(
        &self,
        scope: impl Into<Scope>,
        limits: Limits,
    ) -> Result<(), StoreError> {
        self.store.set_limits(&scope.into(), Some(limits)).await
    }

    /// Removes the limits of a scope, so that the default ones of each service apply again.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn clear_limits(&self, scope: impl Into<Scope>) -> Result<(), StoreError> {
        self.store.set_limits(&scope.into(), None).await
    }

    /// Sets how many bytes and objects a scope uses, whatever was counted so far.
    ///
    /// A charge between the moment that the figure describes and this call is lost. While uploads go on, use
    /// [`rescan`](Self::rescan), [`add`](Self::add) or [`subtract`](Self::subtract).
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn set_used(&self, scope: impl Into<Scope>, used: Amount) -> Result<(), StoreError> {
        self.store.set_used(&scope.into(), used).await
    }

    /// Charges more bytes and objects to a scope. Never refused: limits apply to requests. If this crosses a soft limit, no
    /// observer is told of it.
    ///
    /// This is one step of the store, so concurrent charges count as well. If no answer comes it is asked for once more,
    /// and still counts once.
    ///
    /// # Errors
    ///
    /// When the store fails. Whether the charge counts is unknown then, and calling this again may charge twice.
    pub async fn add(&self, scope: impl Into<Scope>, more: Amount) -> Result<(), StoreError> {
        self.adjust(scope.into(), more.into()).await
    }

    /// Gives bytes and objects back to a scope, as [`add`](Self::add) charges them.
    ///
    /// Usage stops where it is as far below zero as requests in flight hold. The rest is
    /// [unmatched](Account::unmatched).
    ///
    /// # Errors
    ///
    /// As for [`add`](Self::add).
    pub async fn subtract(&self, scope: impl Into<Scope>, less: Amount) -> Result<(), StoreError> {
        let change = Change::between(Amount::ZERO, less);
        self.adjust(scope.into(), change).await
    }

    /// Releases a hold of a request, or of a lease, and returns what it held in each scope. Returns nothing if there is no
    /// such hold.
    ///
    /// Use it for a hold whose owner is gone, when waiting until it expires takes too long. If the request goes on after
    /// all, what it stores is charged without having been held, so usage may pass a limit by as much. When the request
    /// grows, it holds the growth again.
    ///
    /// All holds of the store are searched for the id. A lease is dropped with everything that it holds: its process goes
    /// on admitting requests by it, and sets it again within about a second.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn drop_hold(&self, id: HoldId) -> Result<Vec<HoldEntry>, StoreError> {
        let mut entries = self.store.holds(None, usize::MAX).await?;
        entries.retain(|entry| entry.id == id);
        if !entries.is_empty() {
            let scopes = entries.iter().map(|entry| &entry.scope).collect();
            self.settle(id, scopes, Change::ZERO).await?;
        }
        Ok(entries)
    }

    /// Removes the usage and the limits of a scope. Its holds stay.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn remove(&self, scope: impl Into<Scope>) -> Result<(), StoreError> {
        self.store.remove(&scope.into()).await
    }

    /// Counts what a scope has stored, and corrects its usage by the result, while uploads go on.
    ///
    /// `count` finds bytes and objects out by any means, and is called up to three times.
    ///
    /// ```
    /// # #[cfg(feature = "store-sqlite")] {
    /// use tower_storage_guard::{
    ///     Amount, BoxError,
    ///     store::{Admin, SqliteStore},
    /// };
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("quota.db");
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// async fn count() -> Result<Amount, BoxError> {
    ///     // A walk through the user's files, or a query.
    ///     Ok(Amount::new(1 << 20, 12))
    /// }
    ///
    /// let admin = Admin::new(SqliteStore::open(&path)?);
    /// let rescan = admin.rescan("user:42", count).await?;
    /// assert!(rescan.is_certain);
    /// assert_eq!(admin.account("user:42").await?.used, Amount::new(1 << 20, 12).into());
    /// # Ok::<_, BoxError>(())
    /// # }).unwrap();
    /// # }
    /// ```
    ///
    /// # What it promises
    ///
    /// The count never overwrites usage. It becomes a correction that is added in one step, so that charges during the
    /// scan, or right after it, count as well.
    ///
    /// The correction is *certain* if nothing moved: nothing was held before the scan, after it, and whenever the scope was
    /// checked in between, which is once a second, and usage was the same each time. Usage is then corrected to the count.
    ///
    /// If something moved, it is unknown which part of it the count has seen, so the scope is counted again. When the
    /// third scan was disturbed as well:
    ///
    /// 1. Usage stays as it is where the count can be explained by what came, went or was held meanwhile.
    /// 2. Where it cannot, usage becomes what the count implies if the scan has seen nothing of what came, and all of what
    ///    went. Usage is then too high rather than too low, by what moved during one scan at the most, as far as usage before
    ///    and after the scan shows that.
    ///
    /// What it cannot see:
    ///
    /// - A removal holds nothing. Content that is off the disk before the scan comes by, and given back after the scan has
    ///   ended, is given back twice. That is the moment between a removal and its charge, or as long as a process cannot
    ///   reach the store. Rescan again when in doubt.
    /// - What came and went between two checks, and left the same usage.
    ///
    /// Only one rescan of a scope goes on at a time, in any process, as two would correct twice. The lock is a hold of one
    /// object in the scope `storage-guard:rescan:` followed by the name of the scope. A process that is killed, or drops
    /// the future, leaves it locked for half a minute at the most.
    ///
    /// # Errors
    ///
    /// When the count fails, when the store fails, and when another rescan of the scope is under way. Nothing is corrected
    /// then, unless the store failed in the last step: after [`RescanError::Store`] usage may have been corrected.
    pub async fn rescan<F, E>(
        &self,
        scope: impl Into<Scope>,
        mut count: impl FnMut() -> F,
    ) -> Result<Rescan, RescanError>
    where
        F: Future<Output = Result<Amount, E>>,
        E: Into<BoxError>,
    {
        let scope = scope.into();
        let lock = self.lock(&scope).await?;
        let rescan = async {
            let mut rescan = self.scan(&scope, &lock, count()).await?;
            for _ in 1..SCANS {
                if rescan.is_certain {
                    break;
                }
                rescan = self.scan(&scope, &lock, count()).await?;
            }
            self.correct(&scope, &lock, rescan.corrected).await?;
            Ok(rescan)
        };
        let rescan = rescan.await;
        // If this fails, the lock expires.
        let _ = self.settle(lock.id, lock.scopes, Change::ZERO).await;
        rescan
    }

    /// Counts once.
    async fn scan<E: Into<BoxError>>(
        &self,
        scope: &Scope,
        lock: &Reserve,
        counting: impl Future<Output = Result<Amount, E>>,
    ) -> Result<Rescan, RescanError> {
        let before = self.at_rest(scope).await?;
        let was_calm = AtomicBool::new(true);
        let counted = until_ready(counting, self.watch(scope, lock, before, &was_calm)).await;
        let counted = counted.map_err(|error| RescanError::Count(error.into()))?;
        let after = self.store.account(scope).await?;
        let (old, new, held) = (before.used, after.used, before.held + after.held);
        let bytes = correction(counted.bytes, old.bytes, new.bytes, held.bytes);
        let objects = correction(counted.objects, old.objects, new.objects, held.objects);
        Ok(Rescan {
            before: old,
            counted,
            corrected: Change { bytes, objects },
            is_certain: was_calm.into_inner() && is_calm(&before, &after),
        })
    }

    /// Adds a correction, unless the lock was lost: another rescan has made the correction then, or is about to.
    async fn correct(
        &self,
        scope: &Scope,
        lock: &Reserve,
        change: Change,
    ) -> Result<(), RescanError> {
        let locks = self.store.holds(lock.scopes.iter().next(), SCANS).await?;
        if !locks.iter().any(|hold| hold.id == lock.id) {
            return Err(RescanError::UnderWay);
        }
        if change != Change::ZERO {
            self.adjust(scope.clone(), change).await?;
        }
        Ok(())
    }

    /// The account at a moment in which nothing is held, if there is one soon.
    async fn at_rest(&self, scope: &Scope) -> Result<Account, StoreError> {
        let mut account = self.store.account(scope).await?;
        for _ in 1..CHECKS {
            if account.held.is_zero() {
                break;
            }
            sleep(PAUSE).await;
            account = self.store.account(scope).await?;
        }
        Ok(account)
    }

    /// Checks the scope again and again, and renews the lock.
    async fn watch(
        &self,
        scope: &Scope,
        lock: &Reserve,
        before: Account,
        was_calm: &AtomicBool,
    ) -> Infallible {
        let lock = [(lock.id, lock.scopes.clone())];
        loop {
            sleep(WATCH).await;
            // A lost lock is detected before the correction, and a failed check says nothing about the scope.
            let _ = self.store.renew(&lock, LOCKED).await;
            if let Ok(now) = self.store.account(scope).await
                && !is_calm(&before, &now)
            {
                was_calm.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Keeps other rescans of the scope out.
    async fn lock(&self, scope: &Scope) -> Result<Reserve, RescanError> {
        let name = Scope::from(format_args!("storage-guard:rescan:{scope}"));
        let lock = Reserve::new(HoldId::unique(), name, Amount::objects(1))
            .with_default(Limits::UNLIMITED.objects(1))
            .with_time_to_live(LOCKED);
        match self.store.reserve(&lock).await {
            Ok(_) => Ok(lock),
            Err(QuotaError::Exceeded(_)) => Err(RescanError::UnderWay),
            Err(QuotaError::Unavailable(error)) => Err(RescanError::Store(unboxed(error))),
        }
    }

    async fn adjust(&self, scope: Scope, change: Change) -> Result<(), StoreError> {
        self.settle(HoldId::unique(), scope.into(), change).await
    }

    async fn settle(&self, id: HoldId, scopes: Scopes, change: Change) -> Result<(), StoreError> {
        let settlements = [Settlement::new(id, scopes, change)];
        // Settlements are idempotent, so a second attempt is safe.
        match self.store.settle(&settlements).await {
            Ok(_) => Ok(()),
            Err(_) => self.store.settle(&settlements).await.map(drop),
        }
    }
}

impl<S> fmt::Debug for Admin<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// The result of an [`Admin::rescan`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Rescan {
    /// Bytes and objects used when the last scan began.
    pub before: Change,
    /// Bytes and objects that it found.
    pub counted: Amount,
    /// By how much usage was changed.
    pub corrected: Change,
    /// Whether nothing moved during the scan, so that usage is what was counted.
    pub is_certain: bool,
}

/// Why an [`Admin::rescan`] corrected nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RescanError {
    /// Another rescan of the scope is under way, or was before this one ended.
    #[error("another rescan of the scope is under way")]
    UnderWay,
    /// The function that counts has failed.
    #[error("what is stored could not be counted")]
    Count(#[source] BoxError),
    /// The store has failed. If it failed in the last step, usage may have been corrected.
    #[error("the quota's store is unavailable")]
    Store(#[from] StoreError),
}

/// The error of the store within a quota error. A store of the user's own may have put any other error there.
fn unboxed(error: BoxError) -> StoreError {
    match error.downcast() {
        Ok(error) => *error,
        Err(error) => StoreError::unavailable("the quota's store failed").with_source(error),
    }
}

/// Whether nothing has moved between two checks.
fn is_calm(before: &Account, now: &Account) -> bool {
    before.held.is_zero() && now.held.is_zero() && before.used == now.used
}

/// By how much to change usage, which was `before` and `after` a scan that found `counted`.
fn correction(counted: u64, before: i64, after: i64, held: u64) -> i64 {
    let counted = i128::from(counted);
    // If the scan saw all that was added, with what is under way, and nothing of what was removed.
    let least = counted - i128::from(before.max(after)) - i128::from(held);
    // The other way round.
    let most = counted - i128::from(before.min(after));
    if (least..=most).contains(&0) {
        return 0;
    }
    // It fits after it is clamped.
    most.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Resolves to the output of `work`, and polls `beside` until then.
async fn until_ready<T>(
    work: impl Future<Output = T>,
    beside: impl Future<Output = Infallible>,
) -> T {
    let (mut work, mut beside) = (pin!(work), pin!(beside));
    poll_fn(|cx| {
        let ready = work.as_mut().poll(cx);
        if ready.is_pending() {
            let _ = beside.as_mut().poll(cx);
        }
        ready
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_rest_the_count_is_the_truth() {
        for (counted, used) in [(0, 0), (7, 0), (0, 7), (7, 9), (9, -7)] {
            let corrected = correction(counted, used, used, 0);
            assert_eq!(used + corrected, counted as i64);
        }
    }

    #[test]
    fn what_moves_may_explain_the_count() {
        // Uploads of ten in all, of which the scan may have seen any.
        for counted in 100..=110 {
            assert_eq!(correction(counted, 100, 110, 0), 0);
            assert_eq!(correction(counted, 110, 100, 0), 0);
            assert_eq!(correction(counted, 100, 100, 10), 0);
        }
        // One less or more than that cannot be.
        assert_eq!(correction(99, 100, 110, 0), -1);
        assert_eq!(correction(111, 100, 110, 0), 11);
        assert_eq!(correction(111, 110, 100, 0), 11);
        assert_eq!(correction(111, 100, 100, 10), 11);
    }

    #[test]
    fn nothing_wraps() {
        assert_eq!(correction(u64::MAX, i64::MIN, i64::MIN, 0), i64::MAX);
        assert_eq!(correction(0, i64::MAX, i64::MAX, u64::MAX), -i64::MAX);
    }
}
