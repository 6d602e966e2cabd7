//! Whether volumes take writes at all, for load balancers and clients that ask before they send.

use std::{future::poll_fn, task::Poll, time::Duration};

use super::{Shortfall, Volume, filesystem::SHORTEST, ledger::Missing};
use crate::{amount::Amount, cause::Fault, outage::Outage, refused::Reason, time::Bound};

/// The reason why a volume takes no writes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// It is full down to its headroom, or waits for its level to resume.
    #[error("the volume takes no writes")]
    Full(#[source] Fault),
    /// Its last reading is too old: the probe hangs or fails.
    #[error("how full the volume is cannot be determined right now")]
    Unknown,
}

impl Closed {
    /// Returns the name of the reason on the wire, as refusals give it: `disk_full` or `capacity_unknown`.
    ///
    /// ```
    /// use tower_storage_guard::{Headroom, Volume};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let volume = Volume::open(std::env::temp_dir())?.keep_free(Headroom::percent(100));
    /// assert_eq!(volume.takes_writes().unwrap_err().reason(), "disk_full");
    /// # Ok(())
    /// # }
    /// ```
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Full(fault) => fault.cause.reason(),
            Self::Unknown => Reason::Unavailable.as_str(),
        }
    }
}

impl From<Shortfall> for Closed {
    fn from(shortfall: Shortfall) -> Self {
        match shortfall {
            Shortfall::Full { fault, .. } => Self::Full(fault),
            Shortfall::Unknown => Self::Unknown,
        }
    }
}

impl Volume {
    /// Returns whether the volume takes writes: whether one byte in a new file would be admitted, if nothing else
    /// were in flight. Reads memory only.
    ///
    /// The answer follows the last reading, with everything that uploads in flight have written by then. Their other
    /// reservations are left out, because they change with every request. So a volume that takes writes may still
    /// refuse a request. A volume that takes none refuses every new file that is not empty.
    ///
    /// Near the [headroom](Self::keep_free) the answer may change with every reading. With a [level to resume
    /// at](Self::resume_at), it stays negative until that much is available.
    ///
    /// # Errors
    ///
    /// - [`Closed::Full`] of bytes, when less than one block of the filesystem is available above the headroom. Also
    ///   when less is available than the level that the volume waits for.
    /// - [`Closed::Full`] of objects, when no inode is available above the headroom.
    /// - [`Closed::Unknown`], when the last reading is older than [`Self::max_age`]. With [`Outage::Admit`] such a
    ///   volume takes writes, regardless of the last reading.
    pub fn takes_writes(&self) -> Result<(), Closed> {
        self.could_take_writes().map_err(|shortfall| {
            // A caller told "full" sends nothing, so no refusal would arm the resume level; arm it here.
            self.note_full(shortfall, Amount::ZERO);
            shortfall.into()
        })
    }

    /// The same, for those who only look: it does not arm the level to resume.
    pub(super) fn could_take_writes(&self) -> Result<(), Shortfall> {
        if self.is_stale() {
            return match self.outage {
                Outage::Admit => Ok(()),
                Outage::Refuse => Err(Shortfall::Unknown),
            };
        }
        let filesystem = self.filesystem();
        let (available, floor) = (filesystem.ledger.available(), self.floor());
        let room = available.bytes.saturating_sub(floor.bytes);
        let missing = if room < filesystem.in_blocks(1) {
            Missing::Bytes
        } else if available.objects <= floor.objects {
            Missing::Objects
        } else if self.waits_for_more_than(available) {
            Missing::Bytes
        } else {
            return Ok(());
        };
        Err(self.shortfall(Amount::ZERO, missing))
    }

    /// Whether the volume waits to resume, and would also wait with nothing in flight.
    fn waits_for_more_than(&self, available: Amount) -> bool {
        let filesystem = self.filesystem();
        self.is_full()
            && self.resume.as_ref().is_some_and(|resume| {
                let level = resume
                    .level
                    .of(filesystem.total(), filesystem.inodes_total());
                available.bytes < level.bytes || available.objects < level.objects
            })
    }

    /// The time after which the reading may be too old, without an event that reports it.
    pub(super) fn may_be_stale_in(&self) -> Duration {
        let doubt = self
            .filesystem()
            .freshness
            .in_doubt_for()
            .unwrap_or_default();
        let left = self.max_age.checked_sub(doubt);
        // Once it is too old, only a new reading changes the answer.
        left.unwrap_or(self.max_age).max(SHORTEST)
    }
}

/// The state of one or several volumes: whether all of them take writes. It is for load balancers, orchestrators, and
/// clients that ask before they send.
///
/// With feature `axum` it is a route by itself, see `tower_storage_guard::axum`. With feature `tonic-health` it is
/// reported as `grpc.health.v1`, see `tower_storage_guard::tonic::health`. Other code can call
/// [`Self::takes_writes`], or wait for [`Self::changed`].
///
/// # When to use it
///
/// A server with a full disk takes no writes, but still serves reads and deletes. So use this only to decide where
/// writes are sent, by a route, a backend or a service name for writes. As the only readiness probe of a server, it
/// would also stop reads. As a liveness probe, it would restart a server that a restart does not help.
///
/// # Delay
///
/// The state changes with each reading, which is [once a second](super::VolumeBuilder::probe_every) unless a request asks for an
/// earlier one. A probe that hangs or fails shows after [`Volume::max_age`], ten seconds by default.
///
/// Headroom, level and outage belong to a `Volume` and its clones. So set them before you clone it:
///
/// ```
/// use tower_storage_guard::{Readiness, StorageGuardLayer, Volume};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let files = Volume::open(std::env::temp_dir())?.keep_free(4 << 10).resume_at(8 << 10);
/// let index = Volume::open(".")?;
/// let readiness = Readiness::new(files.clone()).and(index);
/// let guard = StorageGuardLayer::new(files);
/// assert_eq!(readiness.takes_writes(), Ok(()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Readiness {
    volumes: Vec<Volume>,
}

impl Readiness {
    /// Creates the readiness of one volume.
    pub fn new(volume: Volume) -> Self {
        Self {
            volumes: vec![volume],
        }
    }

    /// Adds a volume, which has to take writes too.
    #[must_use]
    pub fn and(mut self, volume: Volume) -> Self {
        self.volumes.push(volume);
        self
    }

    /// Returns whether all of the volumes [take writes](Volume::takes_writes). Reads memory only.
    ///
    /// # Errors
    ///
    /// The error of the first volume that takes none, in the order in which they were added.
    pub fn takes_writes(&self) -> Result<(), Closed> {
        self.volumes.iter().try_for_each(Volume::takes_writes)
    }

    /// Waits until [`Self::takes_writes`] answers something other than `known`, and returns that.
    ///
    /// It wakes up once for each reading, and does not request any. Cancel-safe. Outside of a tokio runtime it does
    /// not notice that the probe hangs.
    ///
    /// ```
    /// use tower_storage_guard::{Headroom, Readiness, Volume};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let volume = Volume::open(std::env::temp_dir())?.keep_free(Headroom::percent(100));
    /// let readiness = Readiness::new(volume);
    /// if let Err(closed) = readiness.changed(Ok(())).await {
    ///     eprintln!("no writes from now on: {}", closed.reason());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`Self::takes_writes`]: it resolves to the new state.
    ///
    /// # Panics
    ///
    /// If it runs in a tokio runtime whose timer is not enabled.
    pub async fn changed(&self, known: Result<(), Closed>) -> Result<(), Closed> {
        let listener = |volume: &Volume| volume.filesystem().followers.listener();
        let listeners: Vec<_> = self.volumes.iter().map(listener).collect();
        let mut bound = None;
        poll_fn(|cx| {
            loop {
                // Register before the check, so that no event between the two is missed.
                listeners.iter().for_each(|listener| listener.listen(cx));
                let after = self.volumes.iter().map(Volume::may_be_stale_in).min();
                let now = self.takes_writes();
                if now != known {
                    return Poll::Ready(now);
                }
                // A probe that hangs causes no event.
                let bound = bound.insert(Bound::new(after.unwrap_or(Duration::MAX)));
                if bound.poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

/// Ready while this volume takes writes.
impl From<Volume> for Readiness {
    fn from(volume: Volume) -> Self {
        Self::new(volume)
    }
}
