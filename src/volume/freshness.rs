//! How old the reading of a filesystem is.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// All times are stored as nanoseconds since this instant, so that they fit an atomic.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Which probe was begun last, which reading is published, and since when neither is sure.
#[derive(Debug)]
pub(super) struct Freshness {
    /// A probe is in progress, or the last one failed: check the reading's age.
    doubt: AtomicBool,
    /// Since when: the start of the probe that hangs, or of the first that failed.
    doubt_since: AtomicU64,
    /// The filesystem is gone, by the last probe.
    lost: AtomicBool,
    /// When the published reading began.
    read_at: AtomicU64,
    /// The number of probes begun so far.
    begun: AtomicU64,
    /// The number of the probe that was published last.
    published: AtomicU64,
    /// The number of the probe that has ended last.
    ended: AtomicU64,
    /// How long it took.
    took: AtomicU64,
}

/// A probe under way.
#[derive(Clone, Copy)]
pub(super) struct Probing {
    number: u64,
    began: u64,
}

impl Probing {
    pub(super) fn began(self) -> Instant {
        *START + Duration::from_nanos(self.began)
    }

    pub(super) fn age(self) -> Duration {
        Duration::from_nanos(now().saturating_sub(self.began))
    }
}

impl Freshness {
    pub(super) fn new() -> Self {
        Self {
            doubt: AtomicBool::new(true),
            doubt_since: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            read_at: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            published: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            took: AtomicU64::new(0),
        }
    }

    pub(super) fn begin(&self) -> Probing {
        let began = now();
        if !self.doubt.load(Ordering::Acquire) {
            self.doubt_since.store(began, Ordering::Release);
            self.doubt.store(true, Ordering::Release);
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        Probing { number, began }
    }

    /// The reading of this probe is published.
    pub(super) fn publish(&self, probing: Probing) {
        self.read_at.store(probing.began, Ordering::Release);
        self.published.store(probing.number, Ordering::Release);
        self.lost.store(false, Ordering::Release);
        self.doubt.store(false, Ordering::Release);
    }

    /// This probe has ended, with a reading or without.
    pub(super) fn end(&self, probing: Probing) {
        let took = now().saturating_sub(probing.began);
        self.took.store(took, Ordering::Release);
        self.ended.store(probing.number, Ordering::Release);
    }

    /// The filesystem is gone: the reading does not count from now on, however young it is.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Whether the filesystem is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// How long the last probe took.
    pub(super) fn took(&self) -> Duration {
        Duration::from_nanos(self.took.load(Ordering::Acquire))
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// For how long a probe has been in progress, or has been failing; the longest time of all if the filesystem is
    /// gone. None in normal operation: then the thread keeps the reading fresh, and requests need no clock.
    #[inline]
    pub(super) fn in_doubt_for(&self) -> Option<Duration> {
        self.doubt.load(Ordering::Acquire).then(|| {
            if self.lost.load(Ordering::Acquire) {
                return Duration::MAX;
            }
            let since = self.doubt_since.load(Ordering::Acquire);
            Duration::from_nanos(now().saturating_sub(since))
        })
    }

    /// The age of the reading.
    pub(super) fn age(&self) -> Duration {
        Duration::from_nanos(now().saturating_sub(self.read_at.load(Ordering::Acquire)))
    }
}
