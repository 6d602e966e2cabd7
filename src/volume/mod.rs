//! Volumes: filesystems under guard.
//!
//! A [`Volume`] reads in the background how full its filesystem is, on a thread of its own, and keeps a ledger of
//! claims on it. A request only ever looks at the last reading and at the ledger. So a filesystem that hangs costs that
//! one thread, and no request waits for it.
//!
//! All volumes of a process that name a path on the same filesystem share one ledger, each with its own headroom. They
//! tell filesystems apart by device number. If one space has several device numbers (the subvolumes of a btrfs), clone
//! one `Volume` instead.
//!
//! # What a reading does not hold
//!
//! statvfs knows nothing of quotas of the filesystem itself, nor of the last blocks that a filesystem keeps for its own
//! books. Headroom covers both. A write that fails all the same is answered as a fault.
//!
//! On btrfs statvfs follows writes only when the filesystem commits. So there a probe has it commit (`syncfs`) before
//! it reads, if anything was stored since the last reading. If that is too often, [probe less
//! often](VolumeBuilder::probe_every).

mod admission;
mod builder;
mod filesystem;
mod freshness;
mod headroom;
mod horizons;
mod ledger;
mod probe;
mod readiness;
mod refresh;
mod trend;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub(crate) use self::{
    admission::{Claimed, Look, Shortfall, WaitForRoom, Wanted},
    filesystem::Filesystem,
};
pub use self::{
    builder::{VolumeBuilder, VolumeError},
    headroom::Headroom,
    probe::{Probe, Reading},
    readiness::{Closed, Readiness},
    refresh::Refresh,
};
use self::{filesystem::Watched, horizons::Horizons, ledger::Missing};
use crate::{
    amount::Amount,
    cause::{Cause, Fault, Resource},
    decide::{Decision, Lack, Need, VolumeState, decide},
    outage::Outage,
};
pub use crate::{forecast::Forecast, status::VolumeStatus};

/// A filesystem under guard.
///
/// Cheap to clone. Clones share the readings and the ledger; [`Self::keep_free`] and the other setters change one clone
/// only.
///
/// ```
/// use std::time::Duration;
/// use tower_storage_guard::{Headroom, Outage, Volume};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let volume = Volume::open(std::env::temp_dir())?
///     .keep_free(Headroom::bytes(64 << 20).or_percent(5))
///     .max_age(Duration::from_secs(30))
///     .outage(Outage::Admit);
/// assert!(volume.status().available <= volume.status().total);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Volume {
    watched: Arc<Watched>,
    name: Arc<str>,
    keep_free: Headroom,
    resume: Option<Resume>,
    max_age: Duration,
    outage: Outage,
    horizons: Horizons,
}

/// The level at which a volume that was full takes requests again.
#[derive(Clone, Debug)]
struct Resume {
    level: Headroom,
    full: Arc<AtomicBool>,
}

impl Volume {
    /// Guards the filesystem that holds `path`, which must exist.
    ///
    /// Starts the probing thread, unless this process guards that filesystem already, and waits for the
    /// first reading: five seconds at the most. Blocks: the path is looked up on this thread.
    ///
    /// # Errors
    ///
    /// When the path cannot be read, or the first reading fails or takes too long.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, VolumeError> {
        Self::builder().open(path)
    }

    /// Guards a store that is not a local filesystem, by a probe of your own.
    ///
    /// It has a ledger of its own: clone the volume to share it.
    ///
    /// ```
    /// use tower_storage_guard::{Probe, Reading, Volume};
    ///
    /// struct Pool;
    ///
    /// impl Probe for Pool {
    ///     fn read(&mut self) -> std::io::Result<Reading> {
    ///         Ok(Reading::new(3 << 30, 4 << 30))
    ///     }
    /// }
    ///
    /// let volume = Volume::from_probe(Pool)?;
    /// assert_eq!(volume.status().available, 3 << 30);
    /// # Ok::<(), tower_storage_guard::volume::VolumeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the first reading fails, or takes longer than five seconds.
    pub fn from_probe(probe: impl Probe) -> Result<Self, VolumeError> {
        Self::builder().from_probe(probe)
    }

    /// Sets how the volume is probed, before it is opened.
    pub fn builder() -> VolumeBuilder {
        VolumeBuilder::default()
    }

    fn new(watched: Arc<Watched>) -> Self {
        Self {
            watched,
            horizons: Horizons::default(),
            name: "volume".into(),
            keep_free: Headroom::NONE,
            resume: None,
            max_age: Duration::from_secs(10),
            outage: Outage::Refuse,
        }
    }

    /// Sets the name by which logs, metrics and [events](crate::observer::Event) call the volume. Clients do not see it.
    ///
    /// Defaults to `volume`.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// The name that was [set](Self::named).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets what stays free. An upload that leaves exactly this much is admitted.
    ///
    /// Defaults to nothing.
    #[must_use]
    pub fn keep_free(mut self, headroom: impl Into<Headroom>) -> Self {
        self.keep_free = headroom.into();
        self
    }

    /// Sets a level to resume at, higher than what is kept free.
    ///
    /// Once a request was refused with nothing free above what is kept free, all that need bytes are, until so much is free
    /// again. That [`Self::takes_writes`] says no counts as a refusal. A request that asks for more than there is does not close
    /// the volume to others. Without a level, a full volume admits whatever happens to fit at the moment.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn resume_at(mut self, level: impl Into<Headroom>) -> Self {
        self.resume = Some(Resume {
            level: level.into(),
            full: Arc::default(),
        });
        self
    }

    /// Sets for how long a probe may hang, or readings may fail, before [`Self::outage`] decides. A filesystem that is no
    /// longer mounted at its path is not waited for: the reading that finds this is the last that counts.
    ///
    /// Defaults to ten seconds.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Sets what happens to requests while the last reading is too old.
    ///
    /// Defaults to [`Outage::Refuse`].
    #[must_use]
    pub fn outage(mut self, outage: Outage) -> Self {
        self.outage = outage;
        self
    }

    /// Sets the horizons of the [forecast](Self::forecast): the times to full at which an observer is told
    /// ([`Event::Horizon`](crate::observer::Event::Horizon)).
    ///
    /// It is told once for each horizon, and again only after the forecast has recovered: after it was a quarter beyond the
    /// horizon, or not filling, for ten minutes. A volume that becomes full at once has fallen below all of its horizons.
    ///
    /// Defaults to 24 hours and 4 hours.
    #[must_use]
    pub fn horizons(mut self, horizons: impl IntoIterator<Item = Duration>) -> Self {
        self.horizons = Horizons::new(horizons);
        self
    }

    /// When the volume will be full, if it goes on as it did: when nothing is available any more above what is claimed and
    /// [kept free](Self::keep_free). Reads memory only.
    ///
    /// It is a trend of bytes that are used or claimed, by whichever program; inodes have none. The trend is the median slope
    /// between the readings of the last quarter of an hour, or of the last six hours, whichever is full sooner. So a volume that
    /// begins to fill is noticed within minutes, up to four hours ahead, and writes that come in batches count by their average. A
    /// single large file, removals, and usage that rises and falls again are no trend: the volume is [not
    /// filling](Forecast::NotFilling) then.
    ///
    /// [Unknown](Forecast::Unknown) for the first two minutes of a process, for the first hour if the volume fills too slowly
    /// to tell, and while the probe hangs or fails.
    pub fn forecast(&self) -> Forecast {
        match self.is_stale() {
            true => Forecast::Unknown,
            false => self.filesystem().trend().forecast(self.room()),
        }
    }

    /// What is known now. Reads memory only.
    pub fn status(&self) -> VolumeStatus {
        let filesystem = self.filesystem();
        let (available, claimed) = (filesystem.ledger.available(), filesystem.ledger.claimed());
        let inodes = Some(filesystem.inodes_total()).filter(|total| *total != 0);
        VolumeStatus {
            total: filesystem.total(),
            available: available.bytes,
            claimed: claimed.bytes,
            settling: filesystem.ledger.settling_bytes().min(claimed.bytes),
            headroom: self.floor().bytes,
            inodes_total: inodes,
            inodes_available: inodes.map(|_| available.objects),
            objects_claimed: claimed.objects,
            waiting: filesystem.queue.waiting(),
            age: filesystem.freshness.age(),
            is_stale: self.is_stale(),
            is_full: self.is_full(),
        }
    }

    pub(crate) fn filesystem(&self) -> &Arc<Filesystem> {
        self.watched.filesystem()
    }

    /// Claims `amount`, with no waiting, provided that `expected` bytes would fit too.
    ///
    /// Returns the claim in whole blocks, for the caller to [`Self::release`] or [`Self::settle`].
    #[inline(always)]
    pub(crate) fn claim(&self, amount: Amount, expected: u64) -> Result<Amount, Shortfall> {
        let ledger = &self.filesystem().ledger;
        let blocks = self.in_blocks(amount);
        let need = Need {
            amount: blocks,
            expected: self.filesystem().in_blocks(expected),
        };
        let state = self.state();
        let missing = match decide(need, Some(&state), []) {
            // Others may have claimed since the look, so that the ledger looks again while it takes.
            Decision::Admit => match ledger.claim(blocks, state.floor) {
                Ok(()) => return Ok(blocks),
                Err(missing) => missing,
            },
            // Claimed all the same, so that the ledger is right when the probe is back.
            Decision::AdmitUnseen if ledger.claim_anyway(blocks) => return Ok(blocks),
            Decision::Refuse(Lack::Unknown) => return Err(Shortfall::Unknown),
            Decision::Refuse(Lack::Volume(Resource::Objects)) => Missing::Objects,
            Decision::AdmitUnseen | Decision::Refuse(_) => Missing::Bytes,
        };
        Err(self.shortfall(
            Amount::new(amount.bytes.max(expected), amount.objects),
            missing,
        ))
    }

    /// Whether `amount` would be admitted now. Claims nothing.
    pub(crate) fn would_fit(&self, amount: Amount) -> Result<(), Shortfall> {
        let need = Need {
            amount: self.in_blocks(amount),
            expected: 0,
        };
        let missing = match decide(need, Some(&self.state()), []) {
            Decision::Admit | Decision::AdmitUnseen => return Ok(()),
            Decision::Refuse(Lack::Unknown) => return Err(Shortfall::Unknown),
            Decision::Refuse(Lack::Volume(Resource::Objects)) => Missing::Objects,
            Decision::Refuse(_) => Missing::Bytes,
        };
        Err(self.shortfall(amount, missing))
    }

    /// Claims blocks that are in use now. False if they cannot be counted.
    pub(crate) fn claim_anyway(&self, blocks: Amount) -> bool {
        self.filesystem().ledger.claim_anyway(blocks)
    }

    /// What a decision goes by.
    #[inline]
    fn state(&self) -> VolumeState {
        let ledger = &self.filesystem().ledger;
        VolumeState {
            is_stale: self.is_stale(),
            outage: self.outage,
            waits_to_resume: self.is_full(),
            free_bytes: ledger.free_bytes(),
            free_objects: ledger.free_objects(),
            floor: self.floor(),
        }
    }

    /// Gives claimed blocks back that nothing was written to.
    #[inline]
    pub(crate) fn release(&self, blocks: Amount) {
        if !blocks.is_zero() {
            self.filesystem().ledger.release(blocks);
            self.filesystem().queue.notify();
        }
    }

    /// Hands claimed blocks over to the probe: what they were claimed for is on the disk, or may be.
    #[inline]
    pub(crate) fn settle(&self, blocks: Amount) {
        self.filesystem().ledger.settle(blocks);
    }

    /// How many reservations wait here to grow.
    pub(crate) fn waiting_growths(&self) -> usize {
        self.filesystem().queue.growing()
    }

    /// Whether the filesystem has a fixed number of inodes.
    pub(crate) fn counts_inodes(&self) -> bool {
        self.filesystem().inodes_total() != 0
    }

    /// Whether the last reading saw no inodes left. A write fails then as on a disk without bytes.
    pub(crate) fn lacks_inodes(&self) -> bool {
        self.counts_inodes() && self.filesystem().ledger.available().objects == 0
    }

    /// Whether both are on one filesystem, with one ledger.
    pub(crate) fn is_same_filesystem(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.filesystem(), other.filesystem())
    }

    /// Whether content that is written over keeps its blocks.
    pub(crate) fn writes_in_place(&self) -> bool {
        self.filesystem().writes_in_place()
    }

    /// In whole blocks, as files take them.
    #[inline]
    pub(crate) fn in_blocks(&self, amount: Amount) -> Amount {
        Amount::new(self.filesystem().in_blocks(amount.bytes), amount.objects)
    }

    /// What can still be claimed: the bytes of so many whole blocks.
    pub(crate) fn room(&self) -> u64 {
        let free = u64::try_from(self.filesystem().ledger.free_bytes()).unwrap_or(0);
        let room = free.saturating_sub(self.floor().bytes);
        room - room % self.filesystem().in_blocks(1)
    }

    /// How large a new object may be. None where it is not known.
    pub(crate) fn left(&self) -> Option<Amount> {
        let ledger = &self.filesystem().ledger;
        if self.is_stale() {
            return match self.outage {
                Outage::Refuse => None,
                Outage::Admit => Some(Amount::new(u64::MAX, u64::MAX)),
            };
        }
        let objects = u64::try_from(ledger.free_objects()).unwrap_or(0);
        // A volume that waits to resume takes no bytes.
        let bytes = if self.is_full() { 0 } else { self.room() };
        Some(Amount::new(
            bytes,
            objects.saturating_sub(self.floor().objects),
        ))
    }

    /// Whether `amount` would fit if all that is claimed were given back, but for `own`.
    ///
    /// What settles is among it: a reading that began before may hold it already, so that it counts twice
    /// until the next.
    pub(crate) fn could_have_room(&self, amount: Amount, expected: u64, own: Amount) -> bool {
        let ledger = &self.filesystem().ledger;
        let (floor, claimed) = (self.floor(), ledger.claimed() - own);
        let fits = |needed: u64, free: i64, claimed, floor| {
            needed == 0
                || u64::try_from(free.saturating_add_unsigned(claimed))
                    .is_ok_and(|free| free.saturating_sub(floor) >= needed)
        };
        let bytes = amount.bytes.max(expected);
        fits(bytes, ledger.free_bytes(), claimed.bytes, floor.bytes)
            && fits(
                amount.objects,
                ledger.free_objects(),
                claimed.objects,
                floor.objects,
            )
    }

    #[inline]
    fn floor(&self) -> Amount {
        let filesystem = self.filesystem();
        self.keep_free
            .of(filesystem.total(), filesystem.inodes_total())
    }

    #[inline]
    fn is_stale(&self) -> bool {
        self.filesystem()
            .freshness
            .in_doubt_for()
            .is_some_and(|doubt| doubt > self.max_age)
    }

    /// Whether the volume still waits for its level to resume.
    #[inline]
    fn is_full(&self) -> bool {
        let Some(resume) = &self.resume else {
            return false;
        };
        let full = resume.full.load(Ordering::Relaxed);
        if full && !self.is_below(resume.level) {
            resume.full.store(false, Ordering::Relaxed);
            return false;
        }
        full
    }

    /// A request was refused that has claimed its `own`: from now on all are, if nothing else is free above the headroom. One
    /// that has asked for more than there is says nothing about it.
    #[cold]
    pub(crate) fn note_full(&self, shortfall: Shortfall, own: Amount) {
        if let Some(resume) = &self.resume
            && matches!(shortfall, Shortfall::Full { .. })
            && self.is_at_headroom(own)
            && self.is_below(resume.level)
        {
            // No reading tells the followers of this.
            if !resume.full.swap(true, Ordering::Relaxed) {
                self.filesystem().followers.notify();
            }
        }
    }

    /// Whether the last reading is too old, and the outage policy is to refuse.
    pub(crate) fn refuses_unseen(&self) -> bool {
        self.outage == Outage::Refuse && self.is_stale()
    }

    /// Whether its probe has been hanging or failing for so long.
    pub(crate) fn is_in_doubt_for(&self, time: Duration) -> bool {
        let in_doubt = self.filesystem().freshness.in_doubt_for();
        in_doubt.is_some_and(|doubt| doubt > time)
    }

    /// Takes back what silent clients do not use, if that makes room for `needed` bytes. True if it is worth to try again.
    pub(crate) fn takes_back(&self, shortfall: Shortfall, needed: u64) -> bool {
        let is_short_of_bytes = matches!(
            shortfall,
            Shortfall::Full { fault, is_hopeless: false } if fault.resource == Resource::Bytes
        );
        let missing = self
            .filesystem()
            .in_blocks(needed)
            .saturating_sub(self.room());
        // A volume that waits to resume takes no bytes, whatever is given back.
        is_short_of_bytes
            && missing > 0
            && !self.is_full()
            && self.filesystem().queue.offers.take_back(&None, missing)
    }

    /// Whether not even one byte could be claimed, or no object, if `own` were given back.
    fn is_at_headroom(&self, own: Amount) -> bool {
        let (ledger, floor) = (&self.filesystem().ledger, self.floor());
        let has = |free: i64, own: u64, floor: u64, least: u64| {
            let free = free.saturating_add_unsigned(own);
            u64::try_from(free).is_ok_and(|free| free.saturating_sub(floor) >= least)
        };
        let block = self.filesystem().in_blocks(1);
        let has_bytes = has(ledger.free_bytes(), own.bytes, floor.bytes, block);
        !has_bytes || !has(ledger.free_objects(), own.objects, floor.objects, 1)
    }

    fn is_below(&self, level: Headroom) -> bool {
        let filesystem = self.filesystem();
        let level = level.of(filesystem.total(), filesystem.inodes_total());
        let is_below = |free: i64, level| u64::try_from(free).unwrap_or(0) < level;
        is_below(filesystem.ledger.free_bytes(), level.bytes)
            || is_below(filesystem.ledger.free_objects(), level.objects)
    }

    /// Full at the moment.
    #[cold]
    pub(crate) fn full(&self) -> Shortfall {
        self.shortfall(Amount::ZERO, Missing::Bytes)
    }

    #[cold]
    fn shortfall(&self, amount: Amount, missing: Missing) -> Shortfall {
        let filesystem = self.filesystem();
        let floor = self.floor();
        let (resource, is_hopeless) = match missing {
            Missing::Bytes => {
                let most = filesystem.total().saturating_sub(floor.bytes);
                (Resource::Bytes, amount.bytes > most)
            }
            Missing::Objects => {
                let most = filesystem.inodes_total().saturating_sub(floor.objects);
                (Resource::Objects, amount.objects > most)
            }
        };
        Shortfall::Full {
            fault: Fault::new(Cause::DiskFull, resource),
            is_hopeless,
        }
    }
}
