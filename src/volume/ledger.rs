//! The claims on a filesystem, in addition to what the probe has read.

use crate::{
    amount::Amount,
    atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
};

/// The available inodes if the filesystem has no fixed number of them.
pub(super) const UNKNOWN: u64 = i64::MAX as u64 / 2;

/// The ledger of one filesystem: bytes and objects (inodes).
///
/// A claim is in flight or settling. A settling claim stays claimed until a probe that *began after* it settled has
/// been published: only then is it certain that the reading includes it.
///
/// Aligned to its own cache lines: every request writes here, and the neighbouring fields are only read.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Ledger {
    bytes: Account,
    objects: Account,
    /// The bucket, by parity, that settling claims go to.
    epoch: AtomicUsize,
}

/// A probe in progress: the bucket whose claims its reading will include.
#[derive(Debug)]
pub(super) struct Epoch(usize);

impl Ledger {
    /// A ledger with nothing available, until the first reading is published.
    pub(super) fn new() -> Self {
        Self {
            bytes: Account::new(),
            objects: Account::new(),
            epoch: AtomicUsize::new(0),
        }
    }

    /// Claims `amount` if that leaves `floor` of each resource free. All or nothing.
    ///
    /// Zero of a resource always fits. The error names the resource that is short.
    #[inline]
    pub(super) fn claim(&self, amount: Amount, floor: Amount) -> Result<(), Missing> {
        if !self.bytes.claim(amount.bytes, floor.bytes) {
            return Err(Missing::Bytes);
        }
        if !self.objects.claim(amount.objects, floor.objects) {
            self.bytes.release(amount.bytes);
            return Err(Missing::Objects);
        }
        Ok(())
    }

    /// Claims `amount` regardless of what is free. False only if the figures would overflow.
    pub(super) fn claim_anyway(&self, amount: Amount) -> bool {
        if !self.bytes.claim_above(amount.bytes, i64::MIN) {
            return false;
        }
        let both = self.objects.claim_above(amount.objects, i64::MIN);
        if !both {
            self.bytes.release(amount.bytes);
        }
        both
    }

    /// Releases claims that never reached the disk.
    #[inline]
    pub(super) fn release(&self, amount: Amount) {
        self.bytes.release(amount.bytes);
        self.objects.release(amount.objects);
    }

    /// Hands claims that are on the disk now over to the next probe.
    #[inline]
    pub(super) fn settle(&self, amount: Amount) {
        if amount.is_zero() {
            return;
        }
        // The caller wrote first. If this load returns the old epoch, the probe had not flipped it by then, so its
        // statvfs follows the write and includes it.
        let bucket = self.epoch.load(Ordering::SeqCst) & 1;
        self.bytes.settle(amount.bytes, bucket);
        self.objects.settle(amount.objects, bucket);
    }

    /// A probe begins. Only the probing thread calls this and [`Self::publish`], one probe at a time.
    pub(super) fn begin(&self) -> Epoch {
        Epoch(self.epoch.fetch_add(1, Ordering::SeqCst) & 1)
    }

    /// Publishes a reading, and drops the claims that it includes: none, if no claim was
    /// [settling](Self::is_settling) right after the probe began.
    ///
    /// A failed probe is not published: its bucket waits for the next probe but one.
    pub(super) fn publish(&self, epoch: Epoch, available: Amount, was_settling: bool) {
        let bucket = was_settling.then_some(epoch.0);
        self.bytes.publish(bucket, available.bytes);
        self.objects.publish(bucket, available.objects);
    }

    /// What is neither used nor claimed. Negative if other programs filled the disk despite the claims.
    pub(super) fn free_bytes(&self) -> i64 {
        self.bytes.free.load(Ordering::Acquire)
    }

    /// Like [`Self::free_bytes`], in objects.
    pub(super) fn free_objects(&self) -> i64 {
        self.objects.free.load(Ordering::Acquire)
    }

    /// Claims in flight and settling.
    pub(super) fn claimed(&self) -> Amount {
        Amount::new(self.bytes.claimed(), self.objects.claimed())
    }

    /// The bytes that wait for a probe to include them.
    pub(super) fn settling_bytes(&self) -> u64 {
        let buckets = self.bytes.settling.iter();
        buckets.map(|bucket| bucket.load(Ordering::Acquire)).sum()
    }

    /// Whether any claim waits for a probe to include it.
    pub(super) fn is_settling(&self) -> bool {
        let buckets = [&self.bytes, &self.objects].into_iter();
        buckets
            .flat_map(|account| &account.settling)
            .any(|bucket| bucket.load(Ordering::Acquire) != 0)
    }

    /// The available amount in the last reading.
    pub(super) fn available(&self) -> Amount {
        Amount::new(
            self.bytes.seen.load(Ordering::Acquire),
            self.objects.seen.load(Ordering::Acquire),
        )
    }
}

/// The resource that a claim lacks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Missing {
    Bytes,
    Objects,
}

/// One resource.
///
/// Free is available less claimed, in one word. A reading changes both at once, so no request can see the new reading
/// with the old claims.
#[derive(Debug)]
struct Account {
    free: AtomicI64,
    settling: [AtomicU64; 2],
    /// The last reading; only the probing thread writes it.
    seen: AtomicU64,
}

impl Account {
    fn new() -> Self {
        Self {
            free: AtomicI64::new(0),
            settling: [AtomicU64::new(0), AtomicU64::new(0)],
            seen: AtomicU64::new(0),
        }
    }

    #[inline]
    fn claim(&self, amount: u64, floor: u64) -> bool {
        self.claim_above(amount, i64::try_from(floor).unwrap_or(i64::MAX))
    }

    #[inline]
    fn claim_above(&self, amount: u64, floor: i64) -> bool {
        if amount == 0 {
            return true;
        }
        let Ok(amount) = i64::try_from(amount) else {
            return false;
        };
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            let Some(rest) = free.checked_sub(amount).filter(|rest| *rest >= floor) else {
                return false;
            };
            match self
                .free
                .compare_exchange_weak(free, rest, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => free = now,
            }
        }
    }

    #[inline]
    fn release(&self, amount: u64) {
        if amount != 0 {
            // Fits: it was claimed.
            self.free.fetch_add(amount as i64, Ordering::AcqRel);
        }
    }

    #[inline]
    fn settle(&self, amount: u64, bucket: usize) {
        if amount != 0 {
            self.settling[bucket].fetch_add(amount, Ordering::AcqRel);
        }
    }

    fn publish(&self, bucket: Option<usize>, available: u64) {
        let available = available.min(UNKNOWN);
        let drained = bucket.map_or(0, |bucket| self.settling[bucket].swap(0, Ordering::AcqRel));
        let before = self.seen.swap(available, Ordering::AcqRel);
        // Both at most i64::MAX / 2, so the difference fits.
        let change = available as i64 - before as i64;
        self.free
            .fetch_add(change.saturating_add_unsigned(drained), Ordering::AcqRel);
    }

    fn claimed(&self) -> u64 {
        let seen = self.seen.load(Ordering::Acquire) as i64;
        let free = self.free.load(Ordering::Acquire);
        u64::try_from(seen.saturating_sub(free)).unwrap_or(0)
    }
}
