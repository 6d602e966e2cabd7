//! One filesystem in this process: its ledger, and the thread that reads how full it is.

use std::{
    collections::HashMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    freshness::{Freshness, Probing},
    ledger::{Epoch, Ledger, UNKNOWN},
    probe::{Device, GONE, Probe, Reading, Statvfs, Writes},
    trend::Trend,
};
use crate::{amount::Amount, wait_queue::WaitQueue};

/// How long opening a volume waits for the first reading.
const FIRST_READING: Duration = Duration::from_secs(5);

/// The minimum interval between readings that requests ask for, so that many requests on a full disk cannot turn the
/// probe into a busy loop.
pub(super) const SHORTEST: Duration = Duration::from_millis(5);

/// How often the filesystem is read by default.
const EVERY: Duration = Duration::from_secs(1);

/// A larger block size is a network filesystem's transfer size, not the cost of a small file.
const LARGEST_BLOCK: u64 = 64 << 10;
const USUAL_BLOCK: u64 = 4 << 10;

/// One filesystem.
#[derive(Debug)]
pub(crate) struct Filesystem {
    pub(super) ledger: Ledger,
    pub(crate) queue: Arc<WaitQueue>,
    /// Notified after every reading, for tasks that follow whether the volume takes writes. Separate from the queue
    /// of requests, because these tasks listen for as long as the process lives, and each request has to check a
    /// queue with listeners.
    pub(super) followers: Arc<WaitQueue>,
    size: Size,
    pub(super) freshness: Freshness,
    trend: Mutex<Trend>,
    control: Mutex<Control>,
    wake: Condvar,
}

/// The size of a filesystem, by its last reading, and of its blocks.
#[derive(Debug)]
struct Size {
    bytes: AtomicU64,
    inodes: AtomicU64,
    blocks: Blocks,
}

/// How a filesystem allocates.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    /// Allocation unit in bytes, a power of two.
    size: u64,
    /// Overwritten content keeps its blocks.
    are_kept: bool,
}

/// The control state of the probing thread.
#[derive(Debug)]
struct Control {
    every: Duration,
    wanted: bool,
    stop: bool,
    /// The error of the last probe, until one succeeds.
    failed: Option<io::ErrorKind>,
}

impl Filesystem {
    /// Starts to watch. Waits for the first reading, for five seconds at the most.
    fn watch(probe: impl Probe, every: Option<Duration>, blocks: Blocks) -> io::Result<Watched> {
        let filesystem = Arc::new(Self {
            ledger: Ledger::new(),
            queue: Arc::new(WaitQueue::new()),
            followers: Arc::new(WaitQueue::new()),
            size: Size {
                bytes: AtomicU64::new(0),
                inodes: AtomicU64::new(0),
                blocks,
            },
            freshness: Freshness::new(),
            trend: Mutex::new(Trend::new()),
            control: Mutex::new(Control {
                every: every.unwrap_or(EVERY).max(SHORTEST),
                wanted: false,
                stop: false,
                failed: None,
            }),
            wake: Condvar::new(),
        });
        let watched = Watched(Arc::clone(&filesystem));
        thread::Builder::new()
            .name("storage-guard-probe".into())
            .spawn(move || filesystem.probe_until_stopped(probe))?;
        watched.first_reading()?;
        Ok(watched)
    }

    /// The probing thread. It holds no lock during a reading, however long it takes.
    fn probe_until_stopped(&self, mut probe: impl Probe) {
        loop {
            let epoch = self.ledger.begin();
            // A claim that settles from here on may miss the sync, so its bucket has to wait.
            let is_settling = self.ledger.is_settling();
            let probing = self.freshness.begin();
            // A user's probe may panic. That is a failed reading, and the thread goes on.
            let reading = catch_unwind(AssertUnwindSafe(|| {
                if is_settling {
                    probe.sync()?;
                }
                probe.read()
            }))
            .unwrap_or_else(|_| Err(io::Error::other("the probe panicked")));
            let failed = match reading {
                Ok(reading) => {
                    self.publish(epoch, &reading, is_settling);
                    self.freshness.publish(probing);
                    self.note(reading.at.unwrap_or_else(|| probing.began()));
                    None
                }
                Err(error) => {
                    if error.kind() == GONE {
                        self.freshness.lose();
                    }
                    Some(error.kind())
                }
            };
            self.freshness.end(probing);
            let mut control = self.control();
            control.failed = failed;
            drop(control);
            self.wake.notify_all();
            self.queue.notify();
            self.followers.notify();
            if !self.rest(probing) {
                return;
            }
        }
    }

    fn publish(&self, epoch: Epoch, reading: &Reading, was_settling: bool) {
        self.size.bytes.store(reading.total, Ordering::Release);
        self.size
            .inodes
            .store(reading.inodes_total, Ordering::Release);
        let inodes = match reading.inodes_total {
            0 => UNKNOWN,
            _ => reading.inodes_available,
        };
        self.ledger
            .publish(epoch, Amount::new(reading.available, inodes), was_settling);
    }

    /// Follows how the filesystem fills.
    fn note(&self, at: Instant) {
        let total = i64::try_from(self.total()).unwrap_or(i64::MAX);
        let taken = total.saturating_sub(self.ledger.free_bytes());
        self.trend().note(at, taken);
    }

    /// How fast the filesystem fills.
    pub(super) fn trend(&self) -> MutexGuard<'_, Trend> {
        // Plain values, each of them always valid.
        self.trend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the next probe is due or requested. False when the thread has to stop.
    fn rest(&self, probing: Probing) -> bool {
        let mut control = self.control();
        loop {
            if control.stop {
                return false;
            }
            let due = if control.wanted {
                SHORTEST
            } else {
                control.every
            };
            let Some(left) = due
                .checked_sub(probing.age())
                .filter(|left| !left.is_zero())
            else {
                control.wanted = false;
                return true;
            };
            control = self
                .wake
                .wait_timeout(control, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Requests a reading soon. Takes a lock; for requests that are about to be refused, not for every request.
    pub(crate) fn want_reading(&self) {
        self.control().wanted = true;
        self.wake.notify_all();
    }

    /// The number of probes begun: a reading with a higher number includes everything that is written now.
    pub(crate) fn begun(&self) -> u64 {
        self.freshness.begun()
    }

    /// The number of the published reading.
    pub(crate) fn published(&self) -> u64 {
        self.freshness.published()
    }

    /// The number of the probe that has ended last, with a reading or without.
    pub(super) fn ended(&self) -> u64 {
        self.freshness.ended()
    }

    /// Waits until a later probe than this one has ended, with a reading or without. Blocks.
    pub(super) fn wait_for_end(&self, of: u64, at_most: Duration) {
        let control = self.control();
        drop(
            self.wake
                .wait_timeout_while(control, at_most, |_| self.ended() <= of)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Takes a reading that begins after this call, and waits until it has ended. Blocks: for five milliseconds, unless the probe
    /// takes longer.
    #[cfg(feature = "test-util")]
    pub(crate) fn read_now(&self) {
        let begun = self.begun();
        let mut control = self.control();
        control.wanted = true;
        self.wake.notify_all();
        while self.ended() <= begun {
            control = self
                .wake
                .wait(control)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    #[inline]
    pub(super) fn total(&self) -> u64 {
        self.size.bytes.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn inodes_total(&self) -> u64 {
        self.size.inodes.load(Ordering::Relaxed)
    }

    /// Whether overwritten content keeps its blocks.
    pub(super) fn writes_in_place(&self) -> bool {
        self.size.blocks.are_kept
    }

    /// `bytes` in whole blocks.
    #[inline]
    pub(super) fn in_blocks(&self, bytes: u64) -> u64 {
        let rest = self.size.blocks.size - 1;
        bytes.saturating_add(rest) & !rest
    }

    /// Sets the maximum interval between probes from now on.
    fn probe_more_often(&self, every: Duration) {
        let mut control = self.control();
        control.every = control.every.min(every.max(SHORTEST));
        drop(control);
        self.wake.notify_all();
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // Plain values, each of them always valid: a panic elsewhere breaks none.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A filesystem whose probing ends when the last volume on it is dropped.
#[derive(Debug)]
pub(super) struct Watched(Arc<Filesystem>);

impl Watched {
    pub(super) fn filesystem(&self) -> &Arc<Filesystem> {
        &self.0
    }

    fn first_reading(&self) -> io::Result<()> {
        let deadline = Instant::now() + FIRST_READING;
        let mut control = self.0.control();
        while self.0.published() == 0 {
            if let Some(kind) = control.failed {
                return Err(kind.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            control = self
                .0
                .wake
                .wait_timeout(control, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A thread that hangs in its probe sees this when it returns; the drop does not join it.
        self.0.control().stop = true;
        self.0.wake.notify_all();
    }
}

/// A filesystem that is watched, and the paths by which its probe may find it.
#[derive(Debug)]
struct Known {
    watched: Weak<Watched>,
    paths: Arc<Mutex<Vec<PathBuf>>>,
}

/// Returns the filesystem that holds `path`: the one already watched, if any. There is one ledger for each
/// filesystem.
pub(super) fn open(path: &Path, every: Option<Duration>) -> io::Result<Arc<Watched>> {
    static KNOWN: LazyLock<Mutex<HashMap<Device, Known>>> = LazyLock::new(Mutex::default);

    let path = fs::canonicalize(path)?;
    let device = Device::of(&path)?;
    let block = match fs4::allocation_granularity(&path)? {
        block if block.is_power_of_two() && block <= LARGEST_BLOCK => block,
        _ => USUAL_BLOCK,
    };
    // Held during the first reading, so that two concurrent calls do not make two ledgers. The wait is bounded,
    // because the reading is; it happens at startup.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = known.get(&device)
        && let Some(watched) = there.watched.upgrade()
    {
        let mut paths = there.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if !paths.contains(&path) {
            paths.push(path);
        }
        watched.0.probe_more_often(every.unwrap_or(EVERY));
        return Ok(watched);
    }
    let writes = Writes::of(&path);
    let blocks = Blocks {
        size: block,
        are_kept: writes.in_place,
    };
    let paths = Arc::new(Mutex::new(vec![path]));
    let probe = Statvfs {
        counts_at_commit: writes.counted_at_commit,
        device: device.clone(),
        paths: Arc::clone(&paths),
    };
    let watched = Arc::new(Filesystem::watch(probe, every, blocks)?);
    known.retain(|_, there| there.watched.strong_count() > 0);
    known.insert(
        device,
        Known {
            watched: Arc::downgrade(&watched),
            paths,
        },
    );
    Ok(watched)
}

/// A store that is not a filesystem of the operating system, with a ledger of its own.
pub(super) fn custom(probe: impl Probe, every: Option<Duration>) -> io::Result<Arc<Watched>> {
    let bytes = Blocks {
        size: 1,
        are_kept: false,
    };
    Filesystem::watch(probe, every, bytes).map(Arc::new)
}
