//! Quotas in an SQLite file.

mod engine;
mod steps;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use rusqlite::Transaction;
use tokio::{sync::oneshot, time::timeout_at};

use self::engine::{Engine, StepKind};
use super::{
    Account, Baseline, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreError,
    StoreFuture, sql::PATIENCE,
};
use crate::{
    amount::Amount,
    quota::{Change, Limits, OverSoftLimit, QuotaError},
    scope::{Scope, Scopes},
};

/// How much longer than its patience the thread may take to report that it has run out of time.
const GRACE: Duration = Duration::from_millis(500);

/// A [`Store`] in an SQLite file, shared by the processes of one machine.
///
/// SQLite is compiled in, so nothing needs to be installed.
///
/// ```
/// use tower_storage_guard::{
///     Amount, Scopes,
///     quota::{Limits, QuotaHold, QuotaSource},
///     store::{SqliteStore, StoredQuota},
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("quota.db");
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let quota = StoredQuota::new(SqliteStore::open(&path)?, Limits::bytes(1 << 30));
/// let user = Scopes::from("user:42");
/// let hold = quota.reserve(&user, Amount::bytes(80), Amount::ZERO).await?;
/// hold.commit(Amount::bytes(60).into()).await;
///
/// // Another process, or this one after a restart.
/// let quota = StoredQuota::new(SqliteStore::open(&path)?, Limits::bytes(1 << 30));
/// assert_eq!(quota.usage("user:42").await?.used, Amount::bytes(60));
/// # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
/// # }).unwrap();
/// ```
///
/// # The file
///
/// The file belongs to the quota alone, on a disk of this machine: SQLite's locks do not work over a network. Its log and
/// the index of the log (`-wal` and `-shm`) lie beside it, and the three belong together. Missing tables are created. A
/// file that was deleted is created again by the next call, empty.
///
/// On a full disk neither of the two can grow. So when the file is opened, room for about a thousand steps is set aside: a
/// megabyte in the file, and one in the log. Open the file before the [`Volume`](crate::Volume) that it is on, so that the room is
/// not promised to requests. Copy-on-write filesystems such as btrfs and ZFS may have no room for a write all the same.
///
/// # Durability
///
/// A crash of the process loses nothing. A crash of the machine may lose holds, whose requests are lost with it, and no
/// charge.
///
/// # Time
///
/// Holds expire by the clock of the machine. If it is set forward, they expire early unless they are renewed first.
///
/// # Bounds
///
/// All calls of a store run on one thread, one after the other. Each fails after five seconds at the latest, such as when
/// another process has locked the file for longer. No scope counts more than [`i64::MAX`] bytes or objects.
pub struct SqliteStore {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
}

/// One step for the thread.
type Job = Box<dyn FnOnce(&mut Engine) + Send>;

impl SqliteStore {
    /// Opens the file, and creates it if it is missing. Its directory must exist. Blocks.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, is not an SQLite file, or was written by a newer version of this crate.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::start(path.as_ref(), Instant::now() + PATIENCE)
    }

    /// Opens a file that holds quotas already. Blocks.
    ///
    /// Use it in a tool, which should report a wrong path rather than create a file there.
    ///
    /// # Errors
    ///
    /// When there is no such file, when it holds something else, and as for [`open`](Self::open). Nothing is created or
    /// changed then.
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let (path, deadline) = (path.as_ref(), Instant::now() + PATIENCE);
        engine::check(path, deadline)?;
        Self::start(path, deadline)
    }

    fn start(path: &Path, deadline: Instant) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let mut engine = Engine::open(path.clone(), deadline)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("storage-guard-sqlite".into())
            .spawn(move || queue.into_iter().for_each(|job| job(&mut engine)))
            .map_err(|error| {
                StoreError::unavailable("cannot start the thread of the quota's file")
                    .with_source(error)
            })?;
        Ok(Self { path, jobs })
    }

    /// Runs `work` on the thread, in one transaction. It may run twice, and counts once.
    async fn run<T: Send + 'static>(
        &self,
        kind: StepKind,
        work: impl Fn(&Transaction<'_>, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move |engine: &mut Engine| {
            // A step whose caller has left must not delay the others.
            if !answer.is_closed() {
                let _ = answer.send(engine.run(kind, deadline, work));
            }
        });
        let has_gone = || StoreError::unavailable("the thread of the quota's file has ended");
        self.jobs.send(job).map_err(|_| has_gone())?;
        // The thread observes the deadline by itself, unless a call to the disk blocks the thread.
        match timeout_at((deadline + GRACE).into(), answered).await {
            Ok(answered) => answered.map_err(|_| has_gone())?,
            Err(_) => Err(StoreError::timed_out(
                "the quota's file did not answer in time",
            )),
        }
    }
}

impl Store for SqliteStore {
    fn reserve<'a>(&'a self, reserve: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        Box::pin(async {
            let reserve = reserve.clone();
            let reserved = self.run(StepKind::Hold, move |tx, now| {
                steps::reserve(tx, now, &reserve)
            });
            Ok(reserved.await??)
        })
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>> {
        let settlements = settlements.to_vec();
        // A power failure may lose a release: the request that was released is lost with it.
        let kind = match settlements.iter().all(|one| one.change == Change::ZERO) {
            true => StepKind::Hold,
            false => StepKind::Charge,
        };
        Box::pin(self.run(kind, move |tx, now| steps::settle(tx, now, &settlements)))
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        let holds = holds.to_vec();
        Box::pin(self.run(StepKind::Hold, move |tx, now| {
            steps::renew(tx, now, &holds, time_to_live)
        }))
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        let scope = scope.clone();
        Box::pin(self.run(StepKind::Read, move |tx, now| {
            steps::account(tx, now, &scope)
        }))
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()> {
        let scope = scope.clone();
        Box::pin(self.run(StepKind::Charge, move |tx, _| {
            steps::set_limits(tx, &scope, limits)
        }))
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        let scope = scope.clone();
        Box::pin(self.run(StepKind::Charge, move |tx, _| {
            steps::set_used(tx, &scope, used.into())
        }))
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        Box::pin(self.run(StepKind::Read, move |tx, now| {
            steps::largest(tx, now, count)
        }))
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        let scope = scope.cloned();
        Box::pin(self.run(StepKind::Read, move |tx, now| {
            steps::holds(tx, now, scope.as_ref(), count)
        }))
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        let scope = scope.clone();
        Box::pin(self.run(StepKind::Charge, move |tx, _| steps::remove(tx, &scope)))
    }

    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
        Box::pin(self.run(StepKind::Read, |tx, _| steps::baseline(tx)))
    }

    fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline> {
        Box::pin(self.run(StepKind::Charge, move |tx, _| {
            steps::set_baseline(tx, baseline)
        }))
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
