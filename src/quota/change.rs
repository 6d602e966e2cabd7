//! A change of usage.

use std::mem;

use crate::amount::Amount;

/// By how much a scope's usage changes. Signed, because replacing content with something smaller gives back.
///
/// ```
/// use tower_storage_guard::{Amount, quota::Change};
///
/// let overwrite = Change::between(Amount::new(30, 1), Amount::new(100, 1));
/// assert_eq!(overwrite, Change { bytes: -70, objects: 0 });
///
/// let delete = Change::between(Amount::ZERO, Amount::new(100, 1));
/// assert_eq!(delete, Change { bytes: -100, objects: -1 });
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Change {
    /// Bytes more, or less when negative.
    pub bytes: i64,
    /// Objects more, or less when negative.
    pub objects: i64,
}

impl Change {
    /// No change.
    pub const ZERO: Self = Self {
        bytes: 0,
        objects: 0,
    };

    /// Returns the change when `stored` takes the place of `replaced`. Stops at the ends of [`i64`].
    pub fn between(stored: Amount, replaced: Amount) -> Self {
        Self {
            bytes: difference(stored.bytes, replaced.bytes),
            objects: difference(stored.objects, replaced.objects),
        }
    }

    /// `self` followed by `other`. Stops at the ends of [`i64`].
    pub(crate) fn then(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            objects: self.objects.saturating_add(other.objects),
        }
    }

    /// The part that adds; a negative part counts as zero.
    pub(crate) fn gain(self) -> Amount {
        Amount::new(gain(self.bytes), gain(self.objects))
    }

    /// The part that removes.
    pub(crate) fn loss(self) -> Amount {
        let loss = |change: i64| change.min(0).unsigned_abs();
        Amount::new(loss(self.bytes), loss(self.objects))
    }

    /// Stops it where it is as far below zero as `held` is above. Returns what was cut off.
    #[inline]
    pub(crate) fn stop_below(&mut self, held: Amount) -> Amount {
        // Nearly always it is not below zero.
        if self.bytes | self.objects >= 0 {
            return Amount::ZERO;
        }
        let stop = |change: &mut i64, held: u64| {
            let stopped = (*change).max(0i64.saturating_sub_unsigned(held));
            stopped.abs_diff(mem::replace(change, stopped))
        };
        Amount::new(
            stop(&mut self.bytes, held.bytes),
            stop(&mut self.objects, held.objects),
        )
    }
}

/// The change when this is stored and nothing is replaced.
impl From<Amount> for Change {
    fn from(stored: Amount) -> Self {
        Self::between(stored, Amount::ZERO)
    }
}

#[inline]
fn difference(stored: u64, replaced: u64) -> i64 {
    match stored.checked_sub(replaced) {
        Some(more) => i64::try_from(more).unwrap_or(i64::MAX),
        None => 0i64.saturating_sub_unsigned(replaced - stored),
    }
}

fn gain(change: i64) -> u64 {
    change.max(0).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_at_the_ends() {
        let all = Amount::new(u64::MAX, u64::MAX);
        let (most, least) = (Change::from(all), Change::between(Amount::ZERO, all));
        assert_eq!(
            most,
            Change {
                bytes: i64::MAX,
                objects: i64::MAX
            }
        );
        assert_eq!(
            least,
            Change {
                bytes: i64::MIN,
                objects: i64::MIN
            }
        );
        assert_eq!(most.then(most), most);
        assert_eq!(least.then(least), least);
        assert_eq!(Change::between(all, all), Change::ZERO);
        assert_eq!(least.gain(), Amount::ZERO);
        assert_eq!(most.gain(), Amount::new(i64::MAX as u64, i64::MAX as u64));
    }

    #[test]
    fn usage_is_below_zero_by_what_is_held_at_most() {
        for (change, held, stopped, beyond) in [
            (5, 3, 5, 0),
            (0, 0, 0, 0),
            (-2, 3, -2, 0),
            (-5, 3, -3, 2),
            (-5, 0, 0, 5),
            (i64::MIN, 0, 0, 1 << 63),
            (i64::MIN, 1, -1, i64::MAX as u64),
            (i64::MIN, u64::MAX, i64::MIN, 0),
        ] {
            let mut used = Change {
                bytes: change,
                objects: -1,
            };
            let cut = used.stop_below(Amount::new(held, 1));
            assert_eq!((used.bytes, used.objects), (stopped, -1), "{change} {held}");
            assert_eq!(cut, Amount::new(beyond, 0), "{change} {held}");
        }
    }
}
