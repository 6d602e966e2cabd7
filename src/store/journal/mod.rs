//! Charges on the local disk, until the store has them.

mod files;
mod segment;
#[cfg(test)]
mod tests;

use std::{
    fmt, io, mem,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout, timeout_at},
};

use self::{
    files::Segments,
    segment::{Charge, Outstanding, Record},
};
use super::{HoldId, Settlement};
use crate::{blocking, quota::Change, scope::Scopes};

/// What each of two segments takes of the disk, in bytes.
const SIZE: u64 = 1 << 20;
/// How long a disk may take to write before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it is left alone when it has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for company before it is written that a store has confirmed charges.
const LAZY: Duration = Duration::from_millis(100);

/// Keeps charges on a disk of this machine until the store has them: none is lost when the process is killed.
///
/// What was stored while the store was away, or right before the process died, is charged when the next process opens
/// the same directory. Each charge counts once, whichever step was the last.
///
/// ```
/// use tower_storage_guard::{
///     quota::Limits,
///     store::{Journal, StoredQuota},
/// };
/// # use tower_storage_guard::store::SqliteStore;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let directory = folder.path().join("journal");
/// # let store = SqliteStore::open(folder.path().join("quota.db")).unwrap();
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let quota = StoredQuota::new(store, Limits::bytes(1 << 30)).journal(Journal::open(&directory)?);
/// assert!(quota.is_journaled());
/// # Ok::<_, std::io::Error>(())
/// # }).unwrap();
/// ```
///
/// # The directory
///
/// It belongs to one process at a time, on a disk of its machine, and to one store. The next process must find it again:
/// in a container, it lies on a volume. It is locked until the last clone of the source is gone, and all is settled.
///
/// In it are two files of 1 MiB each, which are taken from the disk when it is opened. So it takes charges when the disk
/// is full: about ten thousand that are not settled. With more the files grow, if they can. Filesystems that never
/// write to the same place twice, such as btrfs and ZFS, may have no room all the same.
///
/// # What is lost, and when
///
/// - A charge is written right after it is made, together with others, while the store is asked. A process that is killed
///   in between, within about a millisecond, loses it, unless the store has it already. An upload has had no answer by
///   then. What a removal gives back is not waited for.
/// - Nothing is synced to the disk, as services do not sync what they store either. So it survives the process, and not
///   the crash of the machine.
/// - While the disk takes no writes, charges are kept in memory only. It is tried again every second, and
///   [`StoredQuota::is_journaled`](super::StoredQuota::is_journaled) tells.
///
/// # When it is opened late
///
/// Stores remember for a day what they have settled. A process that was killed within a tenth of a second after its store
/// had confirmed a charge, and that is started again more than a day later, charges that once more.
pub struct Journal {
    directory: PathBuf,
    queue: Arc<Queue>,
    /// Until there is a runtime to write on.
    segments: Mutex<Option<Segments>>,
    left: Vec<HoldId>,
}

impl Journal {
    /// Opens the journal in this directory, and makes what is missing. Blocks meanwhile.
    ///
    /// # Errors
    ///
    /// When another process has it open ([`ResourceBusy`](io::ErrorKind::ResourceBusy)), when there is no room for its
    /// files, when they cannot be read or written, or are of another version of this crate.
    pub fn open(directory: impl AsRef<Path>) -> io::Result<Self> {
        let directory = directory.as_ref();
        Self::with_size(directory, SIZE).map_err(|error| {
            let what = format!("the journal in {}: {error}", directory.display());
            io::Error::new(error.kind(), what)
        })
    }

    fn with_size(directory: &Path, size: u64) -> io::Result<Self> {
        let (segments, outstanding) = Segments::open(directory, size)?;
        let left = outstanding.keys().copied().collect();
        let state = State {
            outstanding,
            must_begin: true,
            ..State::default()
        };
        Ok(Self {
            directory: directory.to_owned(),
            queue: Arc::new(Queue {
                state: state.into(),
                bell: Notify::new(),
            }),
            segments: Some(segments).into(),
            left,
        })
    }

    /// Writes from now on. Once is enough.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn start(&self) {
        // A whole value at any time.
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(segments) = segments.take() {
            tokio::spawn(write(Ending(Arc::clone(&self.queue)), segments));
        }
    }

    /// What an earlier process has left, and no store has confirmed since.
    pub(super) fn left(&self) -> Vec<Settlement> {
        let state = self.queue.state();
        let left = self.left.iter();
        left.filter_map(|id| Some(state.outstanding.get(id)?.settlement(*id)))
            .collect()
    }

    /// Notes a charge. What is noted under one id adds up, and is of the same scopes.
    ///
    /// Written in this order, and whether or not anybody waits.
    pub(super) fn note(&self, id: HoldId, scopes: &Scopes, change: Change) -> Noted {
        let scopes = scopes.clone();
        let record = Record::Charge(id, Charge { scopes, change });
        let mut state = self.queue.state();
        state.add(record);
        state.is_behind = true;
        if state.is_failing {
            return Noted(None);
        }
        let (written, is_written) = oneshot::channel();
        state.waiting.push(written);
        state.due = Some(Instant::now());
        drop(state);
        self.queue.bell.notify_one();
        Noted(Some(is_written))
    }

    /// The store has confirmed all that was noted under these.
    pub(super) fn done(&self, ids: impl IntoIterator<Item = HoldId>) {
        let mut state = self.queue.state();
        let mut is_news = false;
        for id in ids {
            if state.outstanding.contains_key(&id) {
                state.add(Record::Done(id));
                is_news = true;
            }
        }
        if is_news && state.due.is_none() {
            state.due = Some(Instant::now() + LAZY);
            drop(state);
            self.queue.bell.notify_one();
        }
    }

    /// Whether a kill would lose nothing that was noted.
    pub(super) fn is_written(&self) -> bool {
        let state = self.queue.state();
        state.outstanding.is_empty() || !(state.is_behind || state.is_catching_up)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue.state().is_over = true;
        self.queue.bell.notify_one();
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("directory", &self.directory)
            .field("is_written", &self.is_written())
            .finish_non_exhaustive()
    }
}

/// What is to be written.
struct Queue {
    state: Mutex<State>,
    /// Something is due earlier than it was.
    bell: Notify,
}

#[derive(Default)]
struct State {
    outstanding: Outstanding,
    /// What has changed since it was last written.
    records: Vec<Record>,
    /// Records are of no use: the next write begins a segment with all that is outstanding.
    must_begin: bool,
    /// Who waits for what is to be written, and for what is being written.
    waiting: Vec<oneshot::Sender<()>>,
    writing: Vec<oneshot::Sender<()>>,
    /// There are charges that no write has begun with.
    is_behind: bool,
    /// There are charges that are being written.
    is_catching_up: bool,
    /// When to write.
    due: Option<Instant>,
    /// The disk takes no writes, or takes too long: nobody waits for it.
    is_failing: bool,
    /// Nobody is left to note anything.
    is_over: bool,
}

impl State {
    fn add(&mut self, record: Record) {
        if !self.must_begin {
            self.records.push(record.clone());
        }
        record.apply(&mut self.outstanding);
    }

    /// Who is to be told, once the lock is given back.
    fn fail(&mut self) -> Vec<oneshot::Sender<()>> {
        self.is_failing = true;
        self.must_begin = true;
        self.records.clear();
        self.is_behind |= mem::take(&mut self.is_catching_up);
        let mut all = mem::take(&mut self.writing);
        all.append(&mut self.waiting);
        all
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // What is outstanding and the records of it are changed by nothing that panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to write. Says no when there is not, and nothing will come.
    async fn is_due(&self) -> bool {
        loop {
            let due = {
                let state = self.state();
                match state.due {
                    Some(due) if due <= Instant::now() => return true,
                    // A disk that fails is not waited for.
                    due if state.is_over => return due.is_some() && !state.is_failing,
                    due => due,
                }
            };
            let rung = self.bell.notified();
            match due {
                Some(due) => drop(timeout_at(due, rung).await),
                None => rung.await,
            }
        }
    }

    /// Writes what there is. Blocks.
    fn write(&self, segments: &mut Segments) {
        let records = {
            let mut state = self.state();
            state.due = None;
            state.writing = mem::take(&mut state.waiting);
            state.is_catching_up = mem::take(&mut state.is_behind);
            (!state.must_begin).then(|| mem::take(&mut state.records))
        };
        let is_written = match records {
            Some(records) if segments.append(&records) => true,
            _ => segments.begin(&self.all()).is_ok(),
        };
        let mut state = self.state();
        let told = if is_written {
            state.is_catching_up = false;
            if mem::take(&mut state.is_failing) {
                // What came meanwhile has not rung.
                state.due = Some(Instant::now());
            }
            mem::take(&mut state.writing)
        } else {
            state.due = Some(Instant::now() + PAUSE);
            state.fail()
        };
        drop(state);
        drop(told);
    }

    /// All that is outstanding. With it all is written that was to be.
    fn all(&self) -> Outstanding {
        let mut state = self.state();
        state.records.clear();
        (state.due, state.must_begin) = (None, false);
        state.is_catching_up |= mem::take(&mut state.is_behind);
        let mut waiting = mem::take(&mut state.waiting);
        state.writing.append(&mut waiting);
        state.outstanding.clone()
    }
}

/// Until all is written, and nobody is left to note more.
async fn write(ending: Ending, mut segments: Segments) {
    let Ending(waiting) = &ending;
    while waiting.is_due().await {
        let queue = Arc::clone(waiting);
        let mut writing = pin!(blocking::run(move || {
            queue.write(&mut segments);
            Ok(segments)
        }));
        let written = match timeout(PATIENCE, writing.as_mut()).await {
            Ok(written) => written,
            Err(_) => {
                let told = waiting.state().fail();
                drop(told);
                writing.await
            }
        };
        // The runtime shuts down.
        let Ok(back) = written else { return };
        segments = back;
    }
}

/// When nobody writes any more, nobody waits either.
struct Ending(Arc<Queue>);

impl Drop for Ending {
    fn drop(&mut self) {
        let told = self.0.state().fail();
        drop(told);
    }
}

/// Ready once a charge is written, or the journal has failed, and it is in memory only. It may be dropped.
pub(super) struct Noted(Option<oneshot::Receiver<()>>);

impl Future for Noted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(written) = &mut self.0 else {
            return Poll::Ready(());
        };
        // Told by being dropped.
        Pin::new(written)
            .poll(cx)
            .map(|_| mem::take(&mut self.0))
            .map(drop)
    }
}
