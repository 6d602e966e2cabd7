//! Quotas in a file of SQLite.

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
use tower::BoxError;

use self::engine::{Engine, Kind};
use super::{
    Account, Ceilings, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreFuture,
    sql::PATIENCE,
};
use crate::{
    amount::Amount,
    quota::{Change, QuotaError},
    scope::{Scope, Scopes},
};

/// How much longer than its patience a thread may take to say that it has run out.
const GRACE: Duration = Duration::from_millis(500);

/// Quotas in an SQLite file, which the processes of one machine may share. Nothing is to be installed.
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
/// It is the quota's own, on a disk of this machine: SQLite's locks do not work over a network. Beside it are its log
/// and an index of that (`-wal` and `-shm`), and all three belong together. Tables are made when they are missing. A
/// file that is deleted is made anew with the next call, empty.
///
/// # What a crash may take
///
/// Nothing when the process crashes. When the machine does, holds may be lost, whose requests are lost as well, and
/// nothing that was charged.
///
/// # Time
///
/// Holds expire by the machine's clock. Where that is set forward, they expire sooner unless they are renewed after.
///
/// # Bounds
///
/// All calls run on one thread of the store, one after the other. Each fails after five seconds at the latest, as when
/// another process has locked the file for longer. No scope counts more than [`i64::MAX`] bytes or objects.
pub struct SqliteStore {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
}

/// What the thread is to do.
type Job = Box<dyn FnOnce(&mut Engine) + Send>;

impl SqliteStore {
    /// Opens the file, and makes it when it is missing. Its folder must be there. Blocks meanwhile.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, is no such file, or was made by a newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, BoxError> {
        Self::start(Engine::open(path.as_ref(), Instant::now() + PATIENCE)?)
    }

    /// Opens a file that is there, and holds quotas already: for tools that are to say so when the path is wrong. Blocks
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// When there is no such file, when something else is in it, and as for [`open`](Self::open). Nothing is made or
    /// changed then.
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, BoxError> {
        let (path, deadline) = (path.as_ref(), Instant::now() + PATIENCE);
        engine::look(path, deadline)?;
        Self::start(Engine::open(path, deadline)?)
    }

    fn start(mut engine: Engine) -> Result<Self, BoxError> {
        let path = engine.path().to_owned();
        let (jobs, asked) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("storage-guard-sqlite".into())
            .spawn(move || asked.into_iter().for_each(|job| job(&mut engine)))?;
        Ok(Self { path, jobs })
    }

    /// Runs `work` on the thread, in one transaction. It may run twice, and counts once.
    async fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl Fn(&Transaction<'_>, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, BoxError> {
        let deadline = Instant::now() + PATIENCE;
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move |engine: &mut Engine| {
            // Whom nobody waits for any more must not keep the others waiting.
            if !answer.is_closed() {
                let _ = answer.send(engine.run(kind, deadline, work));
            }
        });
        let has_gone = || BoxError::from("the thread of the quota's file has gone");
        self.jobs.send(job).map_err(|_| has_gone())?;
        // The thread keeps the deadline, unless the disk keeps the thread.
        match timeout_at((deadline + GRACE).into(), answered).await {
            Ok(answered) => answered.map_err(|_| has_gone())?,
            Err(_) => Err("the quota's file did not answer in time".into()),
        }
    }
}

impl Store for SqliteStore {
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        Box::pin(async {
            let asked = asked.clone();
            let reserved = self.run(Kind::Hold, move |tx, now| steps::reserve(tx, now, &asked));
            Ok(reserved.await.map_err(QuotaError::Unavailable)??)
        })
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, ()> {
        let settlements = settlements.to_vec();
        // Releases may be lost with the power: what they released is gone by then.
        let kind = match settlements.iter().all(|one| one.change == Change::ZERO) {
            true => Kind::Hold,
            false => Kind::Charge,
        };
        Box::pin(self.run(kind, move |tx, now| steps::settle(tx, now, &settlements)))
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        let holds = holds.to_vec();
        Box::pin(self.run(Kind::Hold, move |tx, now| {
            steps::renew(tx, now, &holds, time_to_live)
        }))
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        let scope = scope.clone();
        Box::pin(self.run(Kind::Look, move |tx, now| steps::account(tx, now, &scope)))
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Ceilings>) -> StoreFuture<'a, ()> {
        let scope = scope.clone();
        Box::pin(self.run(Kind::Charge, move |tx, _| {
            steps::set_limits(tx, &scope, limits)
        }))
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        let scope = scope.clone();
        Box::pin(self.run(Kind::Charge, move |tx, _| {
            steps::set_used(tx, &scope, used.into())
        }))
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        Box::pin(self.run(Kind::Look, move |tx, now| steps::largest(tx, now, count)))
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        let scope = scope.cloned();
        Box::pin(self.run(Kind::Look, move |tx, now| {
            steps::holds(tx, now, scope.as_ref(), count)
        }))
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        let scope = scope.clone();
        Box::pin(self.run(Kind::Charge, move |tx, _| steps::remove(tx, &scope)))
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
