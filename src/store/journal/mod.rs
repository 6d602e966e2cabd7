//! Charges on the local disk, until the store has taken them.

mod files;
mod segment;
#[cfg(test)]
mod tests;

use std::{
    fmt, io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use self::{
    files::Segments,
    segment::{Charge, Entry, Intended, Outstanding, Record},
};
use super::{HoldId, Settlement};
use crate::{
    observer::{Absence, Event, Observer},
    quota::Change,
    scope::Scopes,
};

/// How much of the disk each of the two segments takes, in bytes.
const SIZE: u64 = 1 << 20;
/// How long a write may take before its charges are no longer waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait before a disk that has failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Batching delay for records that a store has confirmed a charge.
const LAZY: Duration = Duration::from_millis(100);

/// Keeps charges on a disk of this machine until the store has taken them, so that a kill loses none.
///
/// What was stored while the store was away, or right before the process died, is charged when the next process opens
/// the same directory. Each charge counts once, at whichever step the process was killed.
///
/// ```
/// # #[cfg(feature = "store-sqlite")] {
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
/// let quota = StoredQuota::builder(store, Limits::bytes(1 << 30))
///     .journal(Journal::open(&directory)?)
///     .build();
/// assert!(quota.is_journaled());
/// # Ok::<_, std::io::Error>(())
/// # }).unwrap();
/// # }
/// ```
///
/// # The directory
///
/// The directory belongs to one process at a time, on a disk of its machine, and to one store. The next process must find
/// it again: in a container, put it on a persistent volume. It is locked until the last clone of the quota is gone and
/// all is settled.
///
/// It contains two files of 1 MiB each. Their room is allocated when the journal is opened, so that charges can be
/// written when the disk is full: about ten thousand that the store has not taken. With more, the files grow if they
/// can. Copy-on-write filesystems such as btrfs and ZFS may have no room for a write all the same.
///
/// # What may be lost
///
/// - A charge is written right after it is made, together with others, while the store is asked. A process that is killed
///   in between, within about a millisecond, loses the charge unless the store has it already, or the change was
///   [intended](super::StoredQuota::intend) before. An upload has not been answered by then. What a removal gives back is not
///   waited for.
/// - Nothing is synced to the disk, as services do not sync what they store either. So the journal survives the process,
///   and not a crash of the machine.
/// - While the disk takes no writes, charges are kept in memory only. The disk is tried again every second, and
///   [`StoredQuota::is_journaled`](super::StoredQuota::is_journaled) tells, and an [observer](Self::observer).
///
/// # When it is opened late
///
/// Stores remember for a day what they have settled, but no more than the last million settlements, or 100,000 of a hash tag in
/// Redis. A process that was killed within a tenth of a second after its store had confirmed a charge, and is started again
/// after that, charges it once more.
pub struct Journal {
    directory: PathBuf,
    queue: Arc<Queue>,
    /// None once they are written to.
    segments: Option<Segments>,
    left: Vec<HoldId>,
}

impl Journal {
    /// Opens the journal in this directory, and creates what is missing. Blocks.
    ///
    /// # Errors
    ///
    /// - [`ResourceBusy`](io::ErrorKind::ResourceBusy) when another process has it open.
    /// - [`InvalidData`](io::ErrorKind::InvalidData) when another version of this crate wrote it, in another format.
    /// - Any other error when the files cannot be read or written, or there is no room for them.
    pub fn open(directory: impl AsRef<Path>) -> io::Result<Self> {
        let directory = directory.as_ref();
        Self::with_size(directory, SIZE).map_err(|error| {
            let what = format!("the journal in {}: {error}", directory.display());
            io::Error::new(error.kind(), what)
        })
    }

    fn with_size(directory: &Path, size: u64) -> io::Result<Self> {
        let (segments, outstanding) = Segments::open(directory, size)?;
        let left = charged(&outstanding);
        let state = JournalState {
            outstanding,
            ..JournalState::default()
        };
        Ok(Self {
            directory: directory.to_owned(),
            queue: Arc::new(Queue {
                state: state.into(),
                bell: Notify::new(),
                absence: Absence::default(),
                observer: OnceLock::new(),
            }),
            segments: Some(segments),
            left,
        })
    }

    /// Sets an observer, which is told when the journal [cannot be written](Event::JournalAway), and when it is
    /// [written again](Event::JournalBack). The first one stays.
    ///
    /// It is called on the thread that writes, or in the task that waits for that. A panic in it is caught.
    #[must_use]
    pub fn observer(self, observer: impl Observer) -> Self {
        self.queue.observer.get_or_init(|| Box::new(observer));
        self
    }

    /// Resolves what an earlier process has [intended](super::StoredQuota::intend), and may have done before it was killed.
    /// `made` gets the note of each, looks at what is stored, and returns the change that was made: zero where nothing was.
    /// Each change is charged once. Blocks.
    ///
    /// Call it before anything is changed that it looks at, such as temporary files that are left.
    ///
    /// # Errors
    ///
    /// When `made` fails, or the files cannot be written. Nothing is resolved then.
    pub fn resolve(&mut self, mut made: impl FnMut(&[u8]) -> io::Result<Change>) -> io::Result<()> {
        let mut outstanding = self.queue.state().outstanding.clone();
        let mut records = Vec::new();
        for (id, entry) in &outstanding {
            if let Entry::Intent(Intended { scopes, note }) = entry {
                let (scopes, change) = (scopes.clone(), made(note)?);
                records.push(match change {
                    Change::ZERO => Record::Done(*id),
                    change => Record::Charge(*id, Charge { scopes, change }),
                });
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        for record in records {
            record.apply(&mut outstanding);
        }
        self.begin(outstanding)
    }

    /// Forgets the charges that an earlier process left, and what it [intended](super::StoredQuota::intend). Blocks.
    ///
    /// Use it where everything that is stored is about to be counted, because the count includes them: when the store is
    /// not [counted](super::Admin::is_counted).
    ///
    /// # Errors
    ///
    /// When the files cannot be written. Nothing is forgotten then.
    pub fn discard(&mut self) -> io::Result<()> {
        self.begin(Outstanding::new())
    }

    /// Begins with this instead of what an earlier process left.
    fn begin(&mut self, outstanding: Outstanding) -> io::Result<()> {
        if let Some(segments) = &mut self.segments {
            segments.begin(&outstanding)?;
            self.left = charged(&outstanding);
            self.queue.state().outstanding = outstanding;
        }
        Ok(())
    }

    /// Starts the task that writes. Later calls do nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn start(&mut self) {
        if let Some(segments) = self.segments.take() {
            tokio::spawn(write(Ending(Arc::clone(&self.queue)), segments));
        }
    }

    /// The charges that an earlier process has left, and no store has confirmed since.
    pub(super) fn left(&self) -> Vec<Settlement> {
        let state = self.queue.state();
        let left = self.left.iter();
        left.filter_map(|id| Some(state.outstanding.get(id)?.charge()?.settlement(*id)))
            .collect()
    }

    /// Notes a charge. Charges that are noted under one id add up, and are of the same scopes.
    ///
    /// They are written in the order of the calls, whether or not the future is polled.
    pub(super) fn note(&self, id: HoldId, scopes: &Scopes, change: Change) -> Noted {
        let scopes = scopes.clone();
        self.add(Record::Charge(id, Charge { scopes, change }))
    }

    /// Notes a change that is about to be made. A charge under this id ends it.
    pub(super) fn intend(&self, id: HoldId, scopes: &Scopes, note: &[u8]) -> Noted {
        let (scopes, note) = (scopes.clone(), note.into());
        self.add(Record::Intent(id, Intended { scopes, note }))
    }

    /// What is noted until this is dropped is written together.
    pub(super) fn together(&self) -> Together<'_> {
        self.queue.state().together += 1;
        Together(&self.queue)
    }

    fn add(&self, record: Record) -> Noted {
        let mut state = self.queue.state();
        state.add(record);
        state.next.has_charges = true;
        self.once_written(state)
    }

    /// Resolves once all that was noted so far is written, or once the journal has failed.
    pub(super) fn written(&self) -> Noted {
        let state = self.queue.state();
        match state.next.has_charges || state.writing.has_charges {
            // A write under way is waited for too, since the next one follows it.
            true => self.once_written(state),
            false => Noted(None),
        }
    }

    /// Has the next batch written at once.
    fn once_written(&self, mut state: MutexGuard<'_, JournalState>) -> Noted {
        if state.is_failing {
            return Noted(None);
        }
        let (written, is_written) = oneshot::channel();
        state.next.told.push(written);
        state.due = Some(Instant::now());
        drop(state);
        self.queue.bell.notify_one();
        Noted(Some(is_written))
    }

    /// Forgets what was noted under these ids: charges that the store has confirmed, and changes that were not made.
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

    /// Whether a kill would lose no charge that was noted.
    pub(super) fn is_written(&self) -> bool {
        let state = self.queue.state();
        state.outstanding.is_empty() || !(state.next.has_charges || state.writing.has_charges)
    }
}

/// The ids of charges among what is outstanding.
fn charged(outstanding: &Outstanding) -> Vec<HoldId> {
    let charges = outstanding.iter();
    let charges = charges.filter(|(_, entry)| entry.charge().is_some());
    charges.map(|(id, _)| *id).collect()
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

/// Keeps what is noted from being written apart.
pub(super) struct Together<'a>(&'a Queue);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        self.0.state().together -= 1;
    }
}

/// What is to be written.
struct Queue {
    state: Mutex<JournalState>,
    /// Rings when something is due earlier than before.
    bell: Notify,
    absence: Absence,
    observer: OnceLock<Box<dyn Observer>>,
}

#[derive(Default)]
struct JournalState {
    outstanding: Outstanding,
    /// The changes since the last write. None where the next write begins a segment with all that is outstanding.
    records: Option<Vec<Record>>,
    /// The charges for the next write.
    next: Batch,
    /// The charges of the write under way.
    writing: Batch,
    /// When to write.
    due: Option<Instant>,
    /// Whether the disk takes no writes, or takes too long. Charges are not waited for then.
    is_failing: bool,
    /// Whether the journal was dropped, so that nothing more is noted.
    is_over: bool,
    /// How many callers are in the middle of noting what is to be written together.
    together: u32,
}

/// The charges of one write.
#[derive(Default)]
struct Batch {
    has_charges: bool,
    /// Dropping these resolves the futures of the charges. They are dropped outside of the lock.
    told: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn append(&mut self, mut other: Self) {
        self.has_charges |= other.has_charges;
        self.told.append(&mut other.told);
    }
}

impl JournalState {
    fn add(&mut self, record: Record) {
        if let Some(records) = &mut self.records {
            records.push(record.clone());
        }
        record.apply(&mut self.outstanding);
    }

    /// Returns the futures to resolve, which the caller does after it has given the lock back.
    fn fail(&mut self) -> Vec<oneshot::Sender<()>> {
        self.is_failing = true;
        self.records = None;
        let failed = mem::take(&mut self.writing);
        self.next.append(failed);
        mem::take(&mut self.next.told)
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, JournalState> {
        // No code between two statements that belong together can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state between callers that note several things together, which takes them an instant.
    fn state_between(&self) -> MutexGuard<'_, JournalState> {
        loop {
            let state = self.state();
            if state.together == 0 {
                return state;
            }
            drop(state);
            thread::yield_now();
        }
    }

    /// Waits until there is something to write. Returns false when there is nothing, and nothing can come.
    async fn is_due(&self) -> bool {
        loop {
            let due = {
                let state = self.state();
                match state.due {
                    Some(due) if due <= Instant::now() => return true,
                    // At the end, a disk that fails is given up.
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
            let mut state = self.state_between();
            state.due = None;
            state.writing = mem::take(&mut state.next);
            state.records.as_mut().map(mem::take)
        };
        let is_written = match records {
            Some(records) if segments.append(&records) => true,
            _ => segments.begin(&self.all()).is_ok(),
        };
        let mut state = self.state();
        let told = if is_written {
            if mem::take(&mut state.is_failing) {
                // Charges that came meanwhile did not ring the bell.
                state.due = Some(Instant::now());
            }
            mem::take(&mut state.writing).told
        } else {
            state.due = Some(Instant::now() + PAUSE);
            state.fail()
        };
        drop(state);
        drop(told);
        self.tell(is_written);
    }

    /// Tells the observer whether the journal is written, if that is news.
    fn tell(&self, is_written: bool) {
        let event = match is_written {
            true => self
                .absence
                .ends()
                .map(|after| Event::JournalBack { after }),
            false => self.absence.begins().then_some(Event::JournalAway),
        };
        if let (Some(observer), Some(event)) = (self.observer.get(), event) {
            // Writing goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| observer.observe(&event)));
        }
    }

    /// All that is outstanding, for a new segment. Nothing else has to be written after it.
    fn all(&self) -> Outstanding {
        let mut state = self.state_between();
        state.records = Some(Vec::new());
        state.due = None;
        let next = mem::take(&mut state.next);
        state.writing.append(next);
        state.outstanding.clone()
    }
}

/// Writes until all is written and the journal was dropped.
async fn write(ending: Ending, mut segments: Segments) {
    let Ending(queue) = &ending;
    while queue.is_due().await {
        let blocking = Arc::clone(queue);
        let mut writing = pin!(spawn_blocking(move || {
            blocking.write(&mut segments);
            segments
        }));
        let written = match timeout(PATIENCE, writing.as_mut()).await {
            Ok(written) => written,
            Err(_) => {
                let told = queue.state().fail();
                drop(told);
                queue.tell(false);
                writing.await
            }
        };
        // An error means that the runtime shuts down.
        let Ok(back) = written else { return };
        segments = back;
    }
}

/// Resolves all futures when the task that writes has ended, whatever ended it.
struct Ending(Arc<Queue>);

impl Drop for Ending {
    fn drop(&mut self) {
        let told = self.0.state().fail();
        drop(told);
    }
}

/// Resolves once a charge is written, or once the journal has failed and keeps it in memory only.
///
/// It is cancel-safe: the charge is written even if this is dropped.
pub(super) struct Noted(Option<oneshot::Receiver<()>>);

impl Future for Noted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(written) = &mut self.0 else {
            return Poll::Ready(());
        };
        // The sender is dropped, and sends nothing.
        Pin::new(written)
            .poll(cx)
            .map(|_| mem::take(&mut self.0))
            .map(drop)
    }
}
