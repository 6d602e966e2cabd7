//! Figures in decimal digits, as they are stored in Redis. See [`keys`](super::keys).

use std::{str::FromStr, time::Duration};

use super::{
    super::{Account, StoreError},
    LONGEST,
    script::not_ours,
};
use crate::{
    amount::Amount,
    quota::{Change, Limits, OverFor},
};

pub(super) fn of_amount(Amount { bytes, objects }: Amount) -> String {
    format!("{bytes} {objects}")
}

pub(super) fn of_change(Change { bytes, objects }: Change) -> String {
    format!("{bytes} {objects}")
}

pub(super) fn of_limits(limits: Limits) -> String {
    // Whole milliseconds, of which a script can make sums.
    let grace = limits.grace.map(|grace| grace.min(LONGEST).as_millis());
    let grace = grace.map_or_else(|| "-".into(), |grace| grace.to_string());
    let Limits {
        bytes,
        objects,
        soft_bytes,
        soft_objects,
        ..
    } = limits;
    let all = [bytes, objects, soft_bytes, soft_objects]
        .map(|limit| limit.map_or_else(|| "-".into(), |limit| limit.to_string()));
    format!("{} {grace}", all.join(" "))
}

pub(super) fn amount(text: &str) -> Result<Amount, StoreError> {
    let [bytes, objects] = read(text, clamped)?;
    Ok(Amount { bytes, objects })
}

pub(super) fn change(text: &str) -> Result<Change, StoreError> {
    let [bytes, objects] = read(text, |word| i64::from_str(word).ok())?;
    Ok(Change { bytes, objects })
}

pub(super) fn figure(text: &str) -> Result<u64, StoreError> {
    read(text, clamped).map(|[figure]| figure)
}

/// Clamped, because the sum of usage and holds may exceed 64 bits.
fn clamped(word: &str) -> Option<u64> {
    let figure = u128::from_str(word).ok()?;
    Some(u64::try_from(figure).unwrap_or(u64::MAX))
}

/// An account, from its fields, and from the milliseconds for which its timers have run.
pub(super) fn account(
    [used, held, own, unmatched, over]: [&str; 5],
) -> Result<Account, StoreError> {
    let own = match own {
        "" => None,
        own => Some(limits(own)?),
    };
    let [bytes, objects] = read(over, figure_or_none)?;
    Ok(Account {
        own,
        used: change(used)?,
        held: amount(held)?,
        unmatched: amount(unmatched)?,
        over: OverFor::new(
            bytes.map(Duration::from_millis),
            objects.map(Duration::from_millis),
        ),
    })
}

fn limits(text: &str) -> Result<Limits, StoreError> {
    // Older versions wrote no grace.
    let whole = match text.split(' ').count() {
        4 => format!("{text} -"),
        _ => text.to_owned(),
    };
    let [bytes, objects, soft_bytes, soft_objects, grace] = read(&whole, figure_or_none)?;
    Ok(Limits {
        soft_bytes,
        soft_objects,
        grace: grace.map(Duration::from_millis),
        ..Limits::new(bytes, objects)
    })
}

/// A time in milliseconds, or none.
pub(super) fn time(text: &str) -> Result<Option<Duration>, StoreError> {
    let [time] = read(text, figure_or_none)?;
    Ok(time.map(Duration::from_millis))
}

fn figure_or_none(word: &str) -> Option<Option<u64>> {
    match word {
        "-" => Some(None),
        figure => u64::from_str(figure).ok().map(Some),
    }
}

fn read<T, const N: usize>(
    text: &str,
    word: impl Fn(&str) -> Option<T>,
) -> Result<[T; N], StoreError> {
    let words: Option<Vec<T>> = text.split(' ').map(word).collect();
    words
        .and_then(|words| words.try_into().ok())
        .ok_or_else(|| not_ours(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let all = Limits::bytes(u64::MAX).objects(0).soft_objects(7);
        assert_eq!(of_limits(all), "18446744073709551615 0 - 7 -");
        let grace = all.grace(Duration::from_millis(9));
        for own in [all, grace, Limits::UNLIMITED] {
            let read = account([
                "-9223372036854775808 1",
                "18446744073709551615 2",
                &of_limits(own),
                "5 6",
                "8 -",
            ]);
            let expected = Account {
                own: Some(own),
                used: Change {
                    bytes: i64::MIN,
                    objects: 1,
                },
                held: Amount::new(u64::MAX, 2),
                unmatched: Amount::new(5, 6),
                over: OverFor::new(Some(Duration::from_millis(8)), None),
            };
            assert_eq!(read.unwrap(), expected);
        }
        let before = account(["0 0", "0 0", "1 2 3 4", "0 0", "- -"]).unwrap();
        let expected = Limits::bytes(1).objects(2).soft_bytes(3).soft_objects(4);
        assert_eq!(before.own, Some(expected));
        let amount = Amount::new(3, 4);
        assert_eq!(self::amount(&of_amount(amount)).unwrap(), amount);
    }

    #[test]
    fn what_is_not_ours_is_an_error() {
        for text in ["", "1", "1 2 3", "1 -", "1  2", "x y", "1.0 2"] {
            assert!(account(["0 0", text, "", "0 0", "- -"]).is_err(), "{text}");
        }
        for own in ["1 2 3", "1 2 3 4 5 6", "1 2 3 4 x"] {
            assert!(account(["0 0", "0 0", own, "0 0", "- -"]).is_err(), "{own}");
        }
        assert!(account(["0 0", "0 0", "", "0 0", "-"]).is_err());
    }
}
