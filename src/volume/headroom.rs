//! The space that must stay free.

use crate::amount::Amount;

/// The headroom of a volume: bytes, a share of the total, or both, and inodes.
///
/// ```
/// use tower_storage_guard::Headroom;
///
/// // 64 MiB, or 5 % of the volume if that is more; and a thousand inodes.
/// let headroom = Headroom::bytes(64 << 20).or_percent(5).inodes(1_000);
/// assert_eq!(headroom.of(1 << 40, 0).bytes, (1u64 << 40).div_ceil(20));
/// assert_eq!(headroom.of(1 << 20, 0).bytes, 64 << 20);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Headroom {
    bytes: u64,
    percent: u8,
    inodes: u64,
}

impl Headroom {
    /// No headroom.
    pub const NONE: Self = Self {
        bytes: 0,
        percent: 0,
        inodes: 0,
    };

    /// Keeps this many bytes free.
    pub const fn bytes(bytes: u64) -> Self {
        Self {
            bytes,
            ..Self::NONE
        }
    }

    /// Keeps a share of the volume's total size free, in percent. More than 100 counts as 100.
    pub const fn percent(percent: u8) -> Self {
        Self::NONE.or_percent(percent)
    }

    /// Also keeps a share of the total size free, in percent. The larger of the two applies.
    #[must_use]
    pub const fn or_percent(mut self, percent: u8) -> Self {
        self.percent = if percent > 100 { 100 } else { percent };
        self
    }

    /// Also keeps this many bytes free. The larger of the two applies.
    #[must_use]
    pub const fn or_bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Also keeps this many inodes free, if the filesystem counts them.
    #[must_use]
    pub const fn inodes(mut self, inodes: u64) -> Self {
        self.inodes = inodes;
        self
    }

    /// Returns the headroom on a volume of `total` bytes and `inodes` inodes (0: not known).
    ///
    /// The share is rounded up to whole bytes.
    #[inline]
    pub fn of(self, total: u64, inodes: u64) -> Amount {
        let percent = u64::from(self.percent);
        // Cannot overflow: at most 100 hundredths.
        let share = total / 100 * percent + (total % 100 * percent).div_ceil(100);
        Amount::new(
            self.bytes.max(share),
            if inodes == 0 { 0 } else { self.inodes },
        )
    }
}

/// An absolute number of bytes.
impl From<u64> for Headroom {
    fn from(bytes: u64) -> Self {
        Self::bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn inodes_stay_free_only_where_they_are_counted() {
        let headroom = Headroom::NONE.inodes(10);
        assert_eq!(headroom.of(1_000, 100), Amount::objects(10));
        assert_eq!(headroom.of(1_000, 0), Amount::ZERO);
    }

    #[test]
    fn more_than_all_is_all() {
        assert_eq!(Headroom::percent(200).of(1_000, 0).bytes, 1_000);
    }

    proptest! {
        #[test]
        fn the_share_is_exact_and_rounded_up(total: u64, percent in 0..=100u8) {
            let exact = (u128::from(total) * u128::from(percent)).div_ceil(100);
            prop_assert_eq!(u128::from(Headroom::percent(percent).of(total, 0).bytes), exact);
        }

        #[test]
        fn the_larger_wins(total: u64, bytes: u64, percent in 0..=100u8) {
            let share = Headroom::percent(percent).of(total, 0).bytes;
            let both = Headroom::bytes(bytes).or_percent(percent);
            prop_assert_eq!(both, Headroom::percent(percent).or_bytes(bytes));
            prop_assert_eq!(both.of(total, 0).bytes, bytes.max(share));
        }
    }
}
