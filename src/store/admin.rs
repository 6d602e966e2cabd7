//! What stands in a store, looked at and corrected.

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

use super::{Account, Ceilings, HoldEntry, HoldId, Reserve, Settlement, Store};
use crate::{
    amount::Amount,
    quota::{Change, Limits, QuotaError},
    scope::{Scope, Scopes},
};

/// How often the same step is asked for where no answer comes.
const ASKED: usize = 2;
/// How often a rescan counts where something moves.
const SCANS: usize = 3;
/// How often it looks for a moment in which nothing is held before it counts, and how long it waits between two looks.
const LOOKS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// How long others are kept from scanning the same scope once whoever scans is gone.
const TURN: Duration = Duration::from_secs(30);
/// How often the scope is looked at while somebody counts, and the turn is renewed.
const WATCH: Duration = Duration::from_secs(1);

/// Looks at what stands in a [`Store`], and corrects it: for tools beside a service, and for the service itself.
///
/// It needs the store and nothing else: no [`StoredQuota`](super::StoredQuota), and no task. Whatever it does counts at
/// once, for all processes that share the store.
///
/// ```
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
/// ```
///
/// # Errors
///
/// All of its functions fail when the store is away or does not answer. What was asked for may have been done or not
/// then. To set, to take away and to remove may be repeated; [`add`](Self::add) and [`subtract`](Self::subtract) say
/// themselves what holds for them.
#[derive(Clone)]
pub struct Admin<S> {
    store: S,
}

impl<S: Store> Admin<S> {
    /// Looks after this store.
    pub fn new(store: S) -> Self {
        Self { store }
    }

    /// Where a scope stands: its own limits, what is used and what is held, in bytes and objects. Of a scope that the
    /// store has never heard of: nothing.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn account(&self, scope: impl Into<Scope>) -> Result<Account, BoxError> {
        self.store.account(&scope.into()).await
    }

    /// The scopes that use most bytes, the largest first, up to so many.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn largest(&self, count: usize) -> Result<Vec<(Scope, Account)>, BoxError> {
        self.store.largest(count).await
    }

    /// What is held in a scope, or anywhere: up to so many, in no order. A hold has an entry for each of its scopes.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn holds(
        &self,
        scope: Option<Scope>,
        count: usize,
    ) -> Result<Vec<HoldEntry>, BoxError> {
        self.store.holds(scope.as_ref(), count).await
    }

    /// Gives a scope limits of its own, in place of those that it had.
    ///
    /// They are for what comes: nothing that is used or held already is taken away.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn set_limits(
        &self,
        scope: impl Into<Scope>,
        limits: impl Into<Ceilings>,
    ) -> Result<(), BoxError> {
        let limits = limits.into();
        self.store.set_limits(&scope.into(), Some(limits)).await
    }

    /// Takes a scope's own limits away: the default ones of each service are in force again.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn clear_limits(&self, scope: impl Into<Scope>) -> Result<(), BoxError> {
        self.store.set_limits(&scope.into(), None).await
    }

    /// Says how many bytes and objects a scope uses, whatever was counted so far.
    ///
    /// What is charged between the moment of which the figure tells and this call is lost. Where uploads go on, use
    /// [`rescan`](Self::rescan), [`add`](Self::add) or [`subtract`](Self::subtract).
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn set_used(&self, scope: impl Into<Scope>, used: Amount) -> Result<(), BoxError> {
        self.store.set_used(&scope.into(), used).await
    }

    /// Charges a scope for more bytes and objects. Never refused: limits are for requests.
    ///
    /// One step of the store: what others charge at the same time counts as well. Where no answer comes it is asked for
    /// once more, and counts once all the same.
    ///
    /// # Errors
    ///
    /// When the store is away. Then nobody knows whether it was counted, and to call this again may count it twice.
    pub async fn add(&self, scope: impl Into<Scope>, more: Amount) -> Result<(), BoxError> {
        self.adjust(scope.into(), more.into()).await
    }

    /// Gives bytes and objects back to a scope, as [`add`](Self::add) charges them.
    ///
    /// Usage may fall below zero. Requests see zero then, and what is charged next makes up for it.
    ///
    /// # Errors
    ///
    /// As for [`add`](Self::add).
    pub async fn subtract(&self, scope: impl Into<Scope>, less: Amount) -> Result<(), BoxError> {
        let change = Change::between(Amount::ZERO, less);
        self.adjust(scope.into(), change).await
    }

    /// Takes away what one request, or a lease of a process, has set aside, and returns what that was in each scope:
    /// nothing where there is no such hold. Its room is free at once.
    ///
    /// This is for holds of which nobody knows any more, and which one does not want to see expire. If the request goes on
    /// after all, nothing is lost: what it stores is charged, though nothing is held for it any more, so that usage may
    /// pass a limit by as much. Whenever it grows, it holds again what it grows by.
    ///
    /// All holds of the store are looked through for it. A lease is dropped with all that it holds. Its process goes on
    /// letting requests in by it, and tells the store within a second or so what it holds.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn drop_hold(&self, id: HoldId) -> Result<Vec<HoldEntry>, BoxError> {
        let mut entries = self.store.holds(None, usize::MAX).await?;
        entries.retain(|entry| entry.id == id);
        if !entries.is_empty() {
            let scopes = entries.iter().map(|entry| &entry.scope).collect();
            self.settle(id, scopes, Change::ZERO).await?;
        }
        Ok(entries)
    }

    /// Forgets a scope's usage and its own limits. What is held stays held.
    ///
    /// # Errors
    ///
    /// When the store is away.
    pub async fn remove(&self, scope: impl Into<Scope>) -> Result<(), BoxError> {
        self.store.remove(&scope.into()).await
    }

    /// Counts what a scope has stored, and corrects its usage by that.
    ///
    /// `count` finds bytes and objects out, however it likes, and is called up to three times. Uploads go on meanwhile.
    ///
    /// ```
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
    /// ```
    ///
    /// # What it promises
    ///
    /// The count is never written over what the store has. It becomes a correction that is added in one step. So what is
    /// charged or given back during the scan, or right after it, counts as well.
    ///
    /// The correction is *certain* if nothing moved: nothing was held before the scan, after it, and whenever the scope was
    /// looked at in between, which is once a second, and usage was the same each time. Then the count is the truth of that
    /// moment, and usage is corrected to it.
    ///
    /// Otherwise nobody can tell what of the movement the count has seen. So it is counted again after a pause. When the
    /// third scan was disturbed as well, usage stays as it is where the count can be explained by what came, went, or was
    /// held meanwhile. Where it cannot, usage becomes what the count says if none of what came during the scan was counted,
    /// and all of what went was: rather too much than too little. It is then off by what moved during one scan at the most,
    /// as far as usage before and after it shows that.
    ///
    /// What it cannot see:
    ///
    /// - A removal holds nothing. What is off the disk before the scan comes by, and given back after the scan has ended, is
    ///   given back twice. That is the moment between a removal and its charge, or as long as a process cannot reach the
    ///   store. Rescan again when in doubt.
    /// - What came and went between two looks, and left the same usage.
    ///
    /// Only one rescan of a scope goes on at a time, of any process, as two would correct twice. For this one object is held
    /// in the scope `storage-guard:rescan:` and the scope's name. Who is killed, or drops the future, keeps others out for
    /// half a minute at the most.
    ///
    /// # Errors
    ///
    /// When the count fails, when the store is away, and when somebody else scans the same scope. Nothing is corrected then,
    /// unless the store was away in the last step: [`RescanError::Store`] leaves it open.
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
        let turn = self.turn(&scope).await?;
        let result = self.rescan_in_turn(&scope, &turn, &mut count).await;
        // Left behind, it expires.
        let _ = self.settle(turn.id, turn.scopes, Change::ZERO).await;
        result
    }

    async fn rescan_in_turn<F, E>(
        &self,
        scope: &Scope,
        turn: &Reserve,
        count: &mut impl FnMut() -> F,
    ) -> Result<Rescan, RescanError>
    where
        F: Future<Output = Result<Amount, E>>,
        E: Into<BoxError>,
    {
        let mut scans = 1;
        let rescan = loop {
            let rescan = self.scan(scope, turn, count()).await?;
            if rescan.is_certain || scans == SCANS {
                break rescan;
            }
            scans += 1;
        };
        // Whoever came after a turn that was lost has corrected it, or is about to.
        let turns = self.store.holds(turn.scopes.iter().next(), SCANS).await;
        let turns = turns.map_err(RescanError::Store)?;
        if !turns.iter().any(|hold| hold.id == turn.id) {
            return Err(RescanError::UnderWay);
        }
        if rescan.corrected != Change::ZERO {
            let corrected = self.adjust(scope.clone(), rescan.corrected).await;
            corrected.map_err(RescanError::Store)?;
        }
        Ok(rescan)
    }

    /// Counts once.
    async fn scan<E: Into<BoxError>>(
        &self,
        scope: &Scope,
        turn: &Reserve,
        counting: impl Future<Output = Result<Amount, E>>,
    ) -> Result<Rescan, RescanError> {
        let before = self.rest(scope).await.map_err(RescanError::Store)?;
        let was_calm = AtomicBool::new(true);
        let counted = until_ready(counting, self.watch(scope, turn, before, &was_calm)).await;
        let counted = counted.map_err(|error| RescanError::Count(error.into()))?;
        let after = self.store.account(scope).await;
        let after = after.map_err(RescanError::Store)?;
        let held = before.held + after.held;
        Ok(Rescan {
            before: before.used,
            counted,
            corrected: Change {
                bytes: correction(
                    counted.bytes,
                    before.used.bytes,
                    after.used.bytes,
                    held.bytes,
                ),
                objects: correction(
                    counted.objects,
                    before.used.objects,
                    after.used.objects,
                    held.objects,
                ),
            },
            is_certain: was_calm.into_inner() && is_calm(&before, &after),
        })
    }

    /// Where the scope stands, at a moment in which nothing is held if there is one soon.
    async fn rest(&self, scope: &Scope) -> Result<Account, BoxError> {
        let mut account = self.store.account(scope).await?;
        for _ in 1..LOOKS {
            if account.held.is_zero() {
                break;
            }
            sleep(PAUSE).await;
            account = self.store.account(scope).await?;
        }
        Ok(account)
    }

    /// Looks at the scope again and again, and renews the turn.
    async fn watch(
        &self,
        scope: &Scope,
        turn: &Reserve,
        before: Account,
        was_calm: &AtomicBool,
    ) -> Infallible {
        let turn = [(turn.id, turn.scopes.clone())];
        loop {
            sleep(WATCH).await;
            // Whether the turn was lost is asked in the end, and a look that fails says nothing.
            let _ = self.store.renew(&turn, TURN).await;
            if let Ok(now) = self.store.account(scope).await
                && !is_calm(&before, &now)
            {
                was_calm.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Keeps other rescans of the scope out.
    async fn turn(&self, scope: &Scope) -> Result<Reserve, RescanError> {
        let turn = Reserve {
            id: HoldId::unique(),
            scopes: Scope::from(format_args!("storage-guard:rescan:{scope}")).into(),
            amount: Amount::objects(1),
            expected: Amount::ZERO,
            default: Limits::UNLIMITED.objects(1).into(),
            time_to_live: TURN,
        };
        match self.store.reserve(&turn).await {
            Ok(_) => Ok(turn),
            Err(QuotaError::Exceeded(_)) => Err(RescanError::UnderWay),
            Err(QuotaError::Unavailable(error)) => Err(RescanError::Store(error)),
        }
    }

    async fn adjust(&self, scope: Scope, change: Change) -> Result<(), BoxError> {
        self.settle(HoldId::unique(), scope.into(), change).await
    }

    async fn settle(&self, id: HoldId, scopes: Scopes, change: Change) -> Result<(), BoxError> {
        let settlements = [Settlement {
            id,
            scopes,
            change,
            keep: None,
        }];
        // By its id it is settled once, however often it is asked for.
        for _ in 1..ASKED {
            if self.store.settle(&settlements).await.is_ok() {
                return Ok(());
            }
        }
        self.store.settle(&settlements).await
    }
}

impl<S> fmt::Debug for Admin<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// What came of an [`Admin::rescan`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Rescan {
    /// Bytes and objects used when the last scan began.
    pub before: Change,
    /// Bytes and objects that it found.
    pub counted: Amount,
    /// By how much usage was changed for it.
    pub corrected: Change,
    /// Whether nothing moved during the scan, so that usage is what was counted.
    pub is_certain: bool,
}

/// Why an [`Admin::rescan`] corrected nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RescanError {
    /// Somebody else scans the same scope, or did so before this scan has ended.
    #[error("another rescan of the scope is under way")]
    UnderWay,
    /// Nobody knows how much there is.
    #[error("what is stored could not be counted")]
    Count(#[source] BoxError),
    /// The store is away. Where it was away in the last step only, usage may have been corrected.
    #[error("the quota's store is unavailable")]
    Store(#[source] BoxError),
}

/// Whether nothing has moved between two looks.
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

/// What `work` returns. `beside` runs until then.
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
