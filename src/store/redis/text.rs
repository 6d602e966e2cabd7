//! Figures in decimal digits, as they are stored in Redis. See [`keys`](super::keys).

use std::str::FromStr;

use super::{
    super::{Account, Ceilings, StoreError},
    script::not_ours,
};
use crate::{
    amount::Amount,
    quota::{Change, Limits},
};

pub(super) fn of_amount(Amount { bytes, objects }: Amount) -> String {
    format!("{bytes} {objects}")
}

pub(super) fn of_change(Change { bytes, objects }: Change) -> String {
    format!("{bytes} {objects}")
}

pub(super) fn of_ceilings(Ceilings { hard, soft }: Ceilings) -> String {
    [hard.bytes, hard.objects, soft.bytes, soft.objects]
        .map(|limit| limit.map_or_else(|| "-".into(), |limit| limit.to_string()))
        .join(" ")
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

pub(super) fn account(
    used: &str,
    held: &str,
    limits: &str,
    unmatched: &str,
) -> Result<Account, StoreError> {
    let own = match limits {
        "" => None,
        limits => Some(ceilings(limits)?),
    };
    Ok(Account {
        own,
        used: change(used)?,
        held: amount(held)?,
        unmatched: amount(unmatched)?,
    })
}

fn ceilings(text: &str) -> Result<Ceilings, StoreError> {
    let limit = |word: &str| match word {
        "-" => Some(None),
        limit => u64::from_str(limit).ok().map(Some),
    };
    let [hard_bytes, hard_objects, soft_bytes, soft_objects] = read(text, limit)?;
    Ok(Ceilings {
        hard: Limits::new(hard_bytes, hard_objects),
        soft: Limits::new(soft_bytes, soft_objects),
    })
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
        let all = Ceilings {
            hard: Limits::bytes(u64::MAX).objects(0),
            soft: Limits::UNLIMITED.objects(7),
        };
        assert_eq!(of_ceilings(all), "18446744073709551615 0 - 7");
        for own in [all, Ceilings::default()] {
            let read = account(
                "-9223372036854775808 1",
                "18446744073709551615 2",
                &of_ceilings(own),
                "5 6",
            );
            let expected = Account {
                own: Some(own),
                used: Change {
                    bytes: i64::MIN,
                    objects: 1,
                },
                held: Amount::new(u64::MAX, 2),
                unmatched: Amount::new(5, 6),
            };
            assert_eq!(read.unwrap(), expected);
        }
        let amount = Amount::new(3, 4);
        assert_eq!(self::amount(&of_amount(amount)).unwrap(), amount);
    }

    #[test]
    fn what_is_not_ours_is_an_error() {
        for text in ["", "1", "1 2 3", "1 -", "1  2", "x y", "1.0 2"] {
            assert!(account("0 0", text, "", "0 0").is_err(), "{text}");
        }
        assert!(account("0 0", "0 0", "1 2 3", "0 0").is_err());
    }
}
