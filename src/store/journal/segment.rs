//! What a segment of the journal is in bytes.
//!
//! Records, one after the other: a length, a checksum, and so many bytes. The first is the head, with the generation and
//! with the salt of all other checksums. So nothing behind the end is taken for a record: not what an older generation
//! has left there, nor what somebody has put into a name.

use std::collections::BTreeMap;

use super::super::{HoldId, Settlement};
use crate::{
    quota::Change,
    scope::{Scope, Scopes},
};

/// What no store has confirmed, by its id.
pub(super) type Outstanding = BTreeMap<HoldId, Charge>;

/// What the charges that were noted under one id add up to.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub(super) scopes: Scopes,
    pub(super) change: Change,
}

impl Charge {
    pub(super) fn settlement(&self, id: HoldId) -> Settlement {
        Settlement {
            id,
            scopes: self.scopes.clone(),
            change: self.change,
            keep: None,
        }
    }
}

/// What is written, one by one.
#[derive(Clone, Debug)]
pub(super) enum Record {
    /// Noted: one of the charges of this id.
    Charge(HoldId, Charge),
    /// A store has confirmed all charges of this id.
    Done(HoldId),
}

impl Record {
    pub(super) fn apply(self, outstanding: &mut Outstanding) {
        match self {
            Self::Charge(id, Charge { scopes, change }) => {
                let none = Charge {
                    scopes,
                    change: Change::ZERO,
                };
                let sum = outstanding.entry(id).or_insert(none);
                sum.change = sum.change.then(change);
            }
            Self::Done(id) => drop(outstanding.remove(&id)),
        }
    }
}

/// What the bytes begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) generation: u64,
    pub(super) salt: HoldId,
}

/// Of this version.
const MAGIC: &[u8] = b"tower-storage-guard journal 1";
/// Of any.
const ANY_VERSION: usize = MAGIC.len() - 1;

const CHARGE: u8 = b'+';
const DONE: u8 = b'-';
/// All that was outstanding when the segment was begun stands before this.
const WHOLE: u8 = b'=';

/// A length and a checksum.
const FRAME: usize = 16;

impl Head {
    /// A segment with all that is outstanding.
    pub(super) fn begin(self, outstanding: &Outstanding) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame(&mut bytes, None, |body| {
            body.extend(MAGIC);
            body.extend(self.generation.to_le_bytes());
            body.extend(self.salt.to_bytes());
        });
        for (id, charge) in outstanding {
            frame(&mut bytes, Some(self.salt), |body| noted(body, *id, charge));
        }
        frame(&mut bytes, Some(self.salt), |body| body.push(WHOLE));
        bytes
    }

    /// What goes behind that.
    pub(super) fn append(self, records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records {
            frame(&mut bytes, Some(self.salt), |body| match record {
                Record::Charge(id, charge) => noted(body, *id, charge),
                Record::Done(id) => {
                    body.push(DONE);
                    body.extend(id.to_bytes());
                }
            });
        }
        bytes
    }
}

fn noted(body: &mut Vec<u8>, id: HoldId, Charge { scopes, change }: &Charge) {
    body.push(CHARGE);
    body.extend(id.to_bytes());
    body.extend(change.bytes.to_le_bytes());
    body.extend(change.objects.to_le_bytes());
    for scope in scopes {
        let name = scope.as_str();
        body.extend((name.len() as u64).to_le_bytes());
        body.extend(name.as_bytes());
    }
}

fn frame(bytes: &mut Vec<u8>, salt: Option<HoldId>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; FRAME]);
    body(bytes);
    let (frame, body) = bytes[start..].split_at_mut(FRAME);
    frame[..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
    frame[8..].copy_from_slice(&checksum(salt, body).to_le_bytes());
}

/// FNV-1a of 64 bits.
fn checksum(salt: Option<HoldId>, body: &[u8]) -> u64 {
    let salt = salt.map(HoldId::to_bytes).into_iter().flatten();
    salt.chain(body.iter().copied())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// What a segment says.
#[derive(Debug)]
pub(super) enum Segment {
    /// Nothing: it was never begun, or not to the end.
    Nothing,
    /// This is outstanding.
    Whole(Head, Outstanding),
    /// It is not for us to read.
    OtherVersion,
}

impl Segment {
    /// Reads up to the first record that is not whole: whoever wrote it had not been answered.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut rest = Reader(bytes);
        let Some(mut head) = rest.record(None) else {
            return Self::Nothing;
        };
        match head.take(MAGIC.len()) {
            Some(MAGIC) => {}
            Some(other) if other[..ANY_VERSION] == MAGIC[..ANY_VERSION] => {
                return Self::OtherVersion;
            }
            _ => return Self::Nothing,
        }
        let (Some(generation), Some(salt)) = (head.u64(), head.id()) else {
            return Self::Nothing;
        };
        let (mut outstanding, mut is_whole) = (Outstanding::new(), false);
        while let Some(mut body) = rest.record(Some(salt)) {
            match body.parse() {
                Some(Some(record)) => record.apply(&mut outstanding),
                Some(None) => is_whole = true,
                None => break,
            }
        }
        match is_whole {
            true => Self::Whole(Head { generation, salt }, outstanding),
            false => Self::Nothing,
        }
    }
}

/// What is still to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn id(&mut self) -> Option<HoldId> {
        self.array().map(HoldId::from_bytes)
    }

    /// So many bytes as they say.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let count = self.u64()?.try_into().ok()?;
        self.take(count)
    }

    /// The next record, if it is whole.
    fn record(&mut self, salt: Option<HoldId>) -> Option<Self> {
        let length = self.u64()?.try_into().ok()?;
        let expected = self.u64()?;
        let body = self.take(length)?;
        (checksum(salt, body) == expected).then_some(Self(body))
    }

    /// What a record says. Nothing in it where it says that all is there.
    fn parse(&mut self) -> Option<Option<Record>> {
        let [kind] = self.array()?;
        match kind {
            CHARGE => self.charge().map(Some),
            DONE => self.id().map(Record::Done).map(Some),
            WHOLE => Some(None),
            _ => None,
        }
    }

    fn charge(&mut self) -> Option<Record> {
        let id = self.id()?;
        let change = Change {
            bytes: self.i64()?,
            objects: self.i64()?,
        };
        let mut scopes = Vec::new();
        while !self.0.is_empty() {
            let name = str::from_utf8(self.counted()?).ok()?;
            scopes.push(Scope::from(name));
        }
        let scopes = Scopes::from(scopes);
        Some(Record::Charge(id, Charge { scopes, change }))
    }
}

#[cfg(test)]
pub(super) fn of_another_version() -> Vec<u8> {
    let mut bytes = Vec::new();
    frame(&mut bytes, None, |body| {
        body.extend(&MAGIC[..ANY_VERSION]);
        body.push(b'2');
    });
    bytes
}
