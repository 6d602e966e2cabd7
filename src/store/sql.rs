//! What the SQL engines share: signed numbers of 64 bits, and the decision on a reservation.

use std::time::Duration;

use super::{Account, Ceilings, Reserve, Reserved};
use crate::{
    amount::Amount,
    quota::{Ceiling, Change, Exceeded, Limits},
    scope::Scope,
};

/// The largest number that an engine can count to. A limit above it has no effect.
const COUNTABLE: u64 = i64::MAX as u64;

/// How long an engine may take for one call.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Limits as they are stored: hard bytes, hard objects, soft bytes, soft objects. NULL is unlimited, and a limit above
/// [`i64::MAX`] is stored as the negative number with the same bits.
pub(super) type Columns = [Option<i64>; 4];

pub(super) fn columns(limits: Ceilings) -> Columns {
    let Ceilings { hard, soft } = limits;
    [hard.bytes, hard.objects, soft.bytes, soft.objects].map(|limit| limit.map(u64::cast_signed))
}

pub(super) fn ceilings(columns: Columns) -> Ceilings {
    let [bytes, objects, soft_bytes, soft_objects] =
        columns.map(|limit| limit.map(i64::cast_unsigned));
    Ceilings {
        hard: Limits::new(bytes, objects),
        soft: Limits::new(soft_bytes, soft_objects),
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

/// How long a hold lives, in milliseconds of an engine. A negative number reads as zero.
pub(super) fn lives(milliseconds: i64) -> Duration {
    Duration::from_millis(milliseconds.max(0).unsigned_abs())
}

/// Decides on a reservation whose scopes have these accounts, in their order. Knows of no baseline.
pub(super) fn judge(reserve: &Reserve, accounts: &[Account]) -> Result<Reserved, Exceeded> {
    let need = reserve.amount.max(reserve.expected);
    let mut reserved = Reserved::default();
    for (index, (scope, account)) in reserve.scopes.iter().zip(accounts).enumerate() {
        let before = counted(account);
        let limits = account.own.unwrap_or_else(|| reserve.default_at(index));
        ceiling(limits.hard).admit(scope, before, need)?;
        let account = Account {
            held: account.held + reserve.amount,
            ..*account
        };
        if passes(limits.soft, before, counted(&account)) {
            reserved.warnings.push((Scope::clone(scope), account));
        }
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

fn counted(account: &Account) -> Amount {
    account.used.gain() + account.held
}

fn passes(soft: Limits, before: Amount, after: Amount) -> bool {
    let passes =
        |soft: Option<u64>, before, after| soft.is_some_and(|soft| (before..after).contains(&soft));
    passes(soft.bytes, before.bytes, after.bytes)
        || passes(soft.objects, before.objects, after.objects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::HoldId;

    fn asked(bytes: u64, limits: Limits) -> Reserve {
        Reserve {
            id: HoldId::unique(),
            scopes: "s".into(),
            amount: Amount::bytes(bytes),
            expected: Amount::ZERO,
            defaults: vec![Ceilings {
                hard: limits,
                soft: Limits::bytes(10),
            }],
            time_to_live: Duration::MAX,
        }
    }

    #[test]
    fn limits_come_back_as_they_were() {
        for limit in [None, Some(0), Some(COUNTABLE), Some(u64::MAX)] {
            let limits = Ceilings {
                hard: Limits {
                    bytes: limit,
                    objects: Some(1),
                },
                soft: Limits {
                    bytes: None,
                    objects: limit,
                },
            };
            assert_eq!(ceilings(columns(limits)), limits);
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
    fn a_soft_limit_is_passed_once() {
        let warns = |before, more| {
            let account = Account {
                used: Amount::bytes(before).into(),
                ..Account::default()
            };
            let judged = judge(&asked(more, Limits::UNLIMITED), &[account]);
            !judged.unwrap().warnings.is_empty()
        };
        assert!(!warns(0, 10));
        assert!(warns(10, 1));
        assert!(!warns(11, 1));
    }

    #[test]
    fn no_time_is_too_long() {
        assert_eq!(milliseconds(Duration::from_secs(1)), 1_000);
        assert!(milliseconds(Duration::MAX) > 0);
    }
}
