//! What the SQL engines share: signed numbers of 64 bits, and the decision on a reservation.

use std::time::Duration;

use super::{Account, Reserve, Reserved};
use crate::{
    amount::Amount,
    quota::{Ceiling, Change, Crossed, Exceeded, Limits, over},
};

/// The largest number that an engine can count to. A limit above it has no effect.
const COUNTABLE: u64 = i64::MAX as u64;

/// How long an engine may take for one call.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Limits as they are stored: hard bytes, hard objects, soft bytes, soft objects, and the grace in milliseconds. NULL is none,
/// and a limit above [`i64::MAX`] is stored as the negative number with the same bits.
pub(super) type Columns = [Option<i64>; 5];

pub(super) fn columns(limits: Limits) -> Columns {
    let soft = [limits.soft_bytes, limits.soft_objects];
    let [bytes, objects, soft_bytes, soft_objects] =
        [limits.bytes, limits.objects, soft[0], soft[1]].map(|limit| limit.map(u64::cast_signed));
    let grace = limits.grace.map(milliseconds);
    [bytes, objects, soft_bytes, soft_objects, grace]
}

pub(super) fn limits(columns: Columns) -> Limits {
    let [bytes, objects, soft_bytes, soft_objects, _] =
        columns.map(|limit| limit.map(i64::cast_unsigned));
    Limits {
        soft_bytes,
        soft_objects,
        grace: columns[4].map(lives),
        ..Limits::new(bytes, objects)
    }
}

/// Clamped to the largest signed number.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// In milliseconds, clamped to a century so that sums of times do not overflow.
pub(super) fn milliseconds(duration: Duration) -> i64 {
    const CENTURY: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);
    i64::try_from(duration.min(CENTURY).as_millis()).unwrap_or(i64::MAX)
}

/// An amount that an engine has stored as signed numbers. A negative number, which this crate never stores, reads as zero.
pub(super) fn amount(bytes: i64, objects: i64) -> Amount {
    Change { bytes, objects }.gain()
}

/// A number of rows, clamped to what an engine can count.
pub(super) fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A time in milliseconds of an engine. A negative number reads as zero.
pub(super) fn lives(milliseconds: i64) -> Duration {
    Duration::from_millis(milliseconds.max(0).unsigned_abs())
}

/// Decides on a reservation whose scopes have these accounts, in their order. Knows of no baseline.
pub(super) fn judge(reserve: &Reserve, accounts: &[Account]) -> Result<Reserved, Exceeded> {
    let need = reserve.amount.max(reserve.expected);
    let mut reserved = Reserved::default();
    for (index, (scope, account)) in reserve.scopes.iter().zip(accounts).enumerate() {
        let mut limits = account.own.unwrap_or_else(|| reserve.default_at(index));
        // As the engine compares.
        limits.grace = limits.grace.map(|grace| lives(milliseconds(grace)));
        let used = account.used.gain();
        let in_force = limits.in_force(used, account.over);
        ceiling(in_force).admit(scope, used + account.held, need)?;
        let above = over(scope, &limits, used, account.over, Crossed::default());
        reserved.over.extend(above);
    }
    Ok(reserved)
}

fn ceiling(limits: Limits) -> Ceiling {
    let Ceiling(most) = limits.into();
    Ceiling(Amount::new(
        most.bytes.min(COUNTABLE),
        most.objects.min(COUNTABLE),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{quota::OverFor, store::HoldId};

    fn asked(bytes: u64, limits: Limits) -> Reserve {
        Reserve {
            id: HoldId::unique(),
            scopes: "s".into(),
            amount: Amount::bytes(bytes),
            expected: Amount::ZERO,
            defaults: vec![limits],
            time_to_live: Duration::MAX,
        }
    }

    #[test]
    fn limits_come_back_as_they_were() {
        for limit in [None, Some(0), Some(COUNTABLE), Some(u64::MAX)] {
            let limits = Limits {
                soft_objects: limit,
                grace: Some(Duration::from_millis(3)),
                ..Limits::new(limit, Some(1))
            };
            assert_eq!(super::limits(columns(limits)), limits);
        }
    }

    #[test]
    fn what_cannot_be_counted_is_refused_and_nothing_wraps() {
        let held = |bytes| Account {
            held: Amount::bytes(bytes),
            ..Account::default()
        };
        let unlimited = |bytes| asked(bytes, Limits::UNLIMITED);
        assert!(judge(&unlimited(COUNTABLE), &[held(0)]).is_ok());
        assert!(judge(&unlimited(COUNTABLE), &[held(1)]).is_err());
        assert!(judge(&unlimited(u64::MAX), &[held(0)]).is_err());
        let used = Account {
            used: Change {
                bytes: i64::MIN,
                objects: 0,
            },
            ..held(COUNTABLE)
        };
        assert!(judge(&unlimited(1), &[used]).is_err());
    }

    #[test]
    fn a_grace_ends_with_a_millisecond_of_the_engine() {
        let grace = Duration::from_micros(1_900);
        let limits = Limits::bytes(100).soft_bytes(10).grace(grace);
        let judged = |over: u64| {
            let over = OverFor::new(Some(Duration::from_millis(over)), None);
            let account = Account::new(Amount::bytes(11).into(), Amount::ZERO).with_over(over);
            judge(&asked(1, limits), &[account])
        };
        assert_eq!(judged(0).unwrap().over.len(), 1);
        assert_eq!(judged(1).unwrap_err().limit, 10);
    }

    #[test]
    fn no_time_is_too_long() {
        assert_eq!(milliseconds(Duration::from_secs(1)), 1_000);
        assert!(milliseconds(Duration::MAX) > 0);
    }
}
