//! The demand of a request: what is to be stored, and what that replaces.

use std::{fs::Metadata, ops::Range};

use crate::amount::Amount;

/// The storage that a request needs, and the content that it replaces.
///
/// ```
/// use tower_storage_guard::{Amount, Demand};
///
/// let overwrite = Demand::known(4 << 20).replacing(Amount::new(3 << 20, 1));
/// assert_eq!(overwrite.bytes(), Some(4 << 20));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Demand {
    bytes: Option<u64>,
    expected: u64,
    objects: u64,
    copied: u64,
    moved: Amount,
    replaced: Amount,
    /// Bytes of the body that the service does not store, beside those that are known or expected. The largest number if it stores
    /// nothing of it: a demand is copied often, so that has no field of its own.
    framing: u64,
    reach: Reach,
}

/// How stored bytes become bytes on the volume.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reach {
    percent: u32,
    /// Bytes that already have blocks of their own there.
    in_place: u64,
    /// Whether these are freed before they are written again.
    is_truncated: bool,
}

impl Demand {
    const fn new(bytes: Option<u64>, expected: u64) -> Self {
        Self {
            bytes,
            expected,
            objects: 1,
            copied: 0,
            moved: Amount::ZERO,
            replaced: Amount::ZERO,
            framing: 0,
            reach: Reach::PLAIN,
        }
    }

    /// Makes a demand for a known number of bytes, and one object.
    pub const fn known(bytes: u64) -> Self {
        Self::new(Some(bytes), bytes)
    }

    /// Makes a demand for an unknown number of bytes, and one object.
    ///
    /// A first [grant](crate::Guard::grants) is reserved, and the reservation grows.
    pub const fn unknown() -> Self {
        Self::new(None, 0)
    }

    /// Makes a demand for no bytes and no objects. It always fits.
    pub const fn nothing() -> Self {
        Self::known(0).with_objects(0)
    }

    /// Sets the total size in bytes that the client announces. It must fit, but only the known bytes are reserved; if
    /// they are unknown, the announced size is reserved, up to the guard's [cap](crate::Guard::hint_cap).
    #[must_use]
    pub const fn expecting(mut self, bytes: u64) -> Self {
        if bytes > self.expected {
            self.expected = bytes;
        }
        self
    }

    /// Sets the number of objects that are created.
    #[must_use]
    pub const fn with_objects(mut self, objects: u64) -> Self {
        self.objects = objects;
        self
    }

    /// Says that the body of the request is not stored: it is neither bounded nor counted, whatever its length is. For example the
    /// XML of a WebDAV LOCK, which makes an empty file.
    ///
    /// The length that the demand was made with, and the size that is expected, are dropped. The copied bytes stay.
    #[must_use]
    pub const fn without_body(mut self) -> Self {
        self.bytes = Some(self.copied);
        self.expected = self.copied;
        self.framing = u64::MAX;
        self
    }

    /// Adds bytes that the service writes in addition to the body, such as for a COPY.
    ///
    /// They are reserved with the rest, and charged when the request has succeeded.
    #[must_use]
    pub const fn copying(mut self, copied: Amount) -> Self {
        let body = match self.bytes {
            Some(bytes) => bytes,
            // It grows with the length of the body.
            None => 0,
        };
        self.bytes = Some(body.saturating_add(copied.bytes));
        self.expected = self.expected.saturating_add(copied.bytes);
        self.objects = self.objects.saturating_add(copied.objects);
        self.copied = self.copied.saturating_add(copied.bytes);
        self
    }

    /// Sets the content that changes owners, for example by a MOVE. It is charged to the scopes, and is already on the
    /// volume.
    #[must_use]
    pub const fn moving(mut self, moved: Amount) -> Self {
        self.moved = moved;
        self
    }

    /// Sets the content that is replaced. Scopes are only charged for the difference.
    ///
    /// The full size is claimed on the volume, because the old content stays on the disk until the new content is
    /// complete. If it does not, see [`Self::in_place`].
    #[must_use]
    pub const fn replacing(mut self, replaced: Amount) -> Self {
        self.replaced = replaced;
        self
    }

    /// Sets the content that is overwritten in place. No object is created, and both the scopes and the volume are only
    /// asked for the difference.
    ///
    /// Use it for a file that is opened and overwritten, not for one that is renamed over another; if it is truncated first, see
    /// [`InPlace::truncated`]. The volume only
    /// gives credit if its filesystem writes in place: ext4 and tmpfs (feature `inodes`). A copy-on-write filesystem
    /// such as btrfs needs new blocks for the same content, and an unknown filesystem is treated like one.
    ///
    /// ```no_run
    /// use tower_storage_guard::{Demand, InPlace};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let old = std::fs::metadata("disk.img")?;
    /// // 64 KiB in the middle of an existing file.
    /// let patch = Demand::known(64 << 10).in_place(InPlace::range(&old, 1 << 20..(1 << 20) + (64 << 10)));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub const fn in_place(mut self, old: InPlace) -> Self {
        self.objects = 0;
        self.replaced = Amount::bytes(old.content);
        self.reach.in_place = old.allocated;
        self.reach.is_truncated = old.is_truncated;
        self
    }

    /// Sets how many bytes reach the volume for each hundred that are stored. Use 210 if a write-ahead log holds each
    /// page once more, and 300 for three replicas on the same volume. Scopes are charged without this factor.
    ///
    /// The example `sqlite` in the repository uses it for a database with a write-ahead log.
    ///
    /// Defaults to 100.
    #[must_use]
    pub const fn volume_percent(mut self, percent: u32) -> Self {
        self.reach.percent = percent;
        self
    }

    /// Returns the number of bytes. None if the length is unknown.
    pub const fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Returns the total size that the client announces, in bytes. It is at least the known number of bytes.
    pub const fn expected(&self) -> u64 {
        self.expected
    }

    /// Sets how many bytes of the body the service does not store.
    pub(crate) const fn with_framing(mut self, bytes: u64) -> Self {
        self.framing = bytes;
        self
    }

    /// The bytes of the body that the service does not store.
    #[cfg(test)]
    pub(crate) const fn framing(&self) -> u64 {
        self.framing
    }

    /// What a service stores of a body of which so much was read, with what it writes in addition.
    pub(crate) fn stored_of(&self, read: u64) -> u64 {
        if !self.stores_body() {
            return self.copied;
        }
        let without_framing = match self.bytes {
            Some(bytes) if self.framing > 0 => read.min(bytes - self.copied),
            _ => 0,
        };
        let body = read.saturating_sub(self.framing).max(without_framing);
        body.saturating_add(self.copied)
    }

    /// How much of what is reserved is for the body, with what frames it. The service copies the rest.
    #[inline]
    pub(crate) const fn room_for_body(&self, reserved: u64) -> u64 {
        if !self.stores_body() {
            return u64::MAX;
        }
        reserved
            .saturating_sub(self.copied)
            .saturating_add(self.framing)
    }

    /// Whether neither the length nor the announced size is known.
    pub(crate) const fn has_no_size(&self) -> bool {
        self.bytes.is_none() && self.expected == 0
    }

    /// Returns the number of objects that are created.
    pub const fn objects(&self) -> u64 {
        self.objects
    }

    /// Returns the bytes that the service writes in addition to the body.
    pub const fn copied(&self) -> u64 {
        self.copied
    }

    /// Returns whether the body of the request is stored.
    pub const fn stores_body(&self) -> bool {
        self.framing < u64::MAX
    }

    /// Returns the content that changes owners.
    pub const fn moved(&self) -> Amount {
        self.moved
    }

    /// Returns the content that is replaced.
    pub const fn replaced(&self) -> Amount {
        self.replaced
    }

    /// How the bytes reach the volume. Existing blocks only count if the filesystem writes in place.
    pub(crate) const fn reach(&self, writes_in_place: bool) -> Reach {
        let mut reach = self.reach;
        if !writes_in_place {
            reach.in_place = 0;
        }
        reach
    }

    /// Whether the claim of this demand on a volume is sufficient for the demand of an inner guard, now and for any
    /// further part of the body: both see the same body.
    pub(crate) const fn covers(&self, inner: &Self) -> bool {
        let at_first = match (self.bytes, inner.bytes) {
            (Some(own), Some(inner)) => own >= inner,
            (None, None) => self.expected >= inner.expected,
            // One guard has information that the other lacks, so the demands are not comparable.
            (Some(_), None) | (None, Some(_)) => false,
        };
        at_first
            && self.objects >= inner.objects
            && self.reach.percent >= inner.reach.percent
            && self.reach.in_place <= inner.reach.in_place
    }
}

impl Reach {
    /// Counts each byte once.
    pub(crate) const PLAIN: Self = Self {
        percent: 100,
        in_place: 0,
        is_truncated: false,
    };

    /// What has to be claimed beside what is needed, as it will be free for a moment.
    pub(crate) const fn freed(self) -> u64 {
        if self.is_truncated { self.in_place } else { 0 }
    }

    /// The same once that is claimed.
    pub(crate) const fn with_freed(mut self) -> Self {
        if self.is_truncated {
            self.in_place = 0;
        }
        self
    }

    /// The bytes on the volume for this many stored bytes. Never too few.
    #[inline]
    pub(crate) const fn on_volume(self, stored: u64) -> u64 {
        let written = if self.percent == 100 {
            stored
        } else {
            let exact = (stored as u128 * self.percent as u128).div_ceil(100);
            if exact > u64::MAX as u128 {
                u64::MAX
            } else {
                exact as u64
            }
        };
        written.saturating_sub(self.in_place)
    }

    /// The maximum number of bytes that can be stored in this many bytes of the volume. Never too many.
    pub(crate) const fn stored_in(self, on_volume: u64) -> u64 {
        let written = on_volume.saturating_add(self.in_place);
        match self.percent {
            100 => written,
            0 => u64::MAX,
            percent => {
                let exact = written as u128 * 100 / percent as u128;
                if exact > u64::MAX as u128 {
                    u64::MAX
                } else {
                    exact as u64
                }
            }
        }
    }
}

/// Existing content that will be overwritten in place. See [`Demand::in_place`].
///
/// It is read from the file's metadata, so that it never counts more blocks than the file has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InPlace {
    content: u64,
    allocated: u64,
    is_truncated: bool,
}

impl InPlace {
    /// Takes the whole of a file.
    pub fn whole(old: &Metadata) -> Self {
        Self {
            content: old.len(),
            allocated: allocated(old).min(old.len()),
            is_truncated: false,
        }
    }

    /// Says that the file is truncated before it is written, as by [`File::create`](std::fs::File::create).
    ///
    /// Its blocks are free for a moment then. They are claimed until the request has ended, so that no other request
    /// gets them in between. If little is free, other requests find no room until the file is truncated.
    #[must_use]
    pub const fn truncated(mut self) -> Self {
        self.is_truncated = true;
        self
    }

    /// Takes a range of a file, in bytes. The part after the file's end does not exist. If the file has holes, it is
    /// unknown whether the range is in one of them, and no block counts.
    pub fn range(old: &Metadata, range: Range<u64>) -> Self {
        let content = range.end.min(old.len()).saturating_sub(range.start);
        let has_holes = allocated(old) < old.len();
        Self {
            content,
            allocated: if has_holes { 0 } else { content },
            is_truncated: false,
        }
    }
}

/// The bytes of the file's own blocks.
fn allocated(file: &Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(file).saturating_mul(512);
    #[cfg(not(unix))]
    return {
        let _ = file;
        0
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_demand() -> impl Strategy<Value = Demand> {
        let length = prop::option::of(0u64..2_000);
        (
            length,
            0u64..2_000,
            0u64..3,
            prop::sample::select(vec![50, 100, 210]),
            0u64..500,
        )
            .prop_map(|(length, expected, objects, percent, allocated)| {
                let demand = length
                    .map_or(Demand::unknown(), Demand::known)
                    .expecting(expected);
                let content = allocated;
                let demand = demand.in_place(InPlace {
                    content,
                    allocated,
                    is_truncated: false,
                });
                demand.with_objects(objects).volume_percent(percent)
            })
    }

    proptest! {
        /// A claim is sufficient for what is stored, and what can be stored in a claim fits into it.
        #[test]
        fn bytes_reach_the_volume_and_back(
            stored in any::<u64>(), percent in 0u32..1_000, in_place in any::<u64>(), room in any::<u64>()
        ) {
            let reach = Reach { percent, in_place, is_truncated: false };
            let exact = (u128::from(stored) * u128::from(percent)).div_ceil(100);
            let needed = exact.saturating_sub(in_place.into());
            // Beyond the numeric range it saturates, and fits nowhere.
            let most = u128::from(u64::MAX - in_place);
            prop_assert_eq!(u128::from(reach.on_volume(stored)), needed.min(most));
            let fits = reach.stored_in(room);
            prop_assert!(reach.on_volume(fits) <= room, "{fits} bytes do not fit");
        }

        /// An inner guard claims nothing only if the outer one has claimed enough, and continues to.
        #[test]
        fn a_claim_that_covers_another_is_enough_for_it(
            own in any_demand(), inner in any_demand(), read in 0u64..3_000, in_place in any::<bool>(),
        ) {
            let claimed = |demand: &Demand| {
                let bytes = demand.bytes.unwrap_or(demand.expected).max(read);
                demand.reach(in_place).on_volume(bytes)
            };
            if own.covers(&inner) {
                prop_assert!(claimed(&own) >= claimed(&inner));
                prop_assert!(own.objects >= inner.objects);
            }
            prop_assert!(own.covers(&own));
        }

        /// Storing more never takes less.
        #[test]
        fn a_growth_never_shrinks_the_claim(less in any::<u64>(), more in any::<u64>(), percent in 0u32..1_000, in_place in any::<u64>()) {
            let reach = Reach { percent, in_place, is_truncated: false };
            prop_assert!(reach.on_volume(less.min(more)) <= reach.on_volume(less.max(more)));
        }
    }

    #[test]
    fn only_allocated_blocks_count() {
        use std::io::{Seek, SeekFrom, Write};

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        file.sync_all().unwrap();
        let dense = file.metadata().unwrap();
        assert_eq!(
            InPlace::whole(&dense),
            InPlace {
                content: 10_000,
                allocated: 10_000,
                is_truncated: false
            }
        );
        let range = InPlace::range(&dense, 9_000..12_000);
        assert_eq!(
            range,
            InPlace {
                content: 1_000,
                allocated: 1_000,
                is_truncated: false
            }
        );
        assert_eq!(InPlace::range(&dense, 20_000..30_000).content, 0);

        file.seek(SeekFrom::Start(1 << 30)).unwrap();
        file.write_all(b"end").unwrap();
        file.sync_all().unwrap();
        let sparse = file.metadata().unwrap();
        assert!(InPlace::whole(&sparse).allocated < 1 << 20);
        assert_eq!(InPlace::range(&sparse, 0..1_000).allocated, 0);
    }

    #[test]
    fn an_in_place_demand_creates_no_object() {
        let old = InPlace {
            content: 100,
            allocated: 60,
            is_truncated: false,
        };
        let demand = Demand::known(100).in_place(old);
        assert_eq!(
            (demand.objects(), demand.replaced()),
            (0, Amount::bytes(100))
        );
        assert_eq!(demand.reach(true).on_volume(100), 40);
        assert_eq!(demand.reach(false).on_volume(100), 100);
    }

    #[test]
    fn what_is_truncated_is_claimed_as_a_whole_though_only_the_rest_is_needed() {
        let old = InPlace {
            content: 100,
            allocated: 60,
            is_truncated: false,
        };
        let demand = Demand::known(150).in_place(old.truncated());
        let reach = demand.reach(true);
        assert_eq!((reach.on_volume(150), reach.freed()), (90, 60));
        assert_eq!(reach.with_freed().on_volume(150), 150);
        let elsewhere = demand.reach(false);
        assert_eq!((elsewhere.on_volume(150), elsewhere.freed()), (150, 0));
    }
}
