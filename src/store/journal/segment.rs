//! The bytes of one segment of the journal.
//!
//! A segment begins with a line of text that names its format. Records follow, each behind a frame of its length and a
//! CRC-32. The first record is the head: the generation of the segment, and a random salt that enters the checksums of
//! all later records. The salt keeps bytes behind the last record from being read as a record, whether an older
//! generation left them there or a client chose them as part of a scope's name.

use std::{collections::BTreeMap, sync::Arc};

use super::super::{HoldId, Settlement};
use crate::{
    quota::Change,
    scope::{Scope, Scopes},
};

/// What no store has confirmed, by its id.
pub(super) type Outstanding = BTreeMap<HoldId, Entry>;

#[derive(Clone, Debug)]
pub(super) enum Entry {
    Charge(Charge),
    Intent(Intended),
}

impl Entry {
    pub(super) fn charge(&self) -> Option<&Charge> {
        match self {
            Self::Charge(charge) => Some(charge),
            Self::Intent(_) => None,
        }
    }
}

/// A change that is about to be made. It is not known yet whether it was.
#[derive(Clone, Debug)]
pub(super) struct Intended {
    pub(super) scopes: Scopes,
    pub(super) note: Arc<[u8]>,
}

/// The sum of the charges that were noted under one id.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub(super) scopes: Scopes,
    pub(super) change: Change,
}

impl Charge {
    pub(super) fn settlement(&self, id: HoldId) -> Settlement {
        Settlement::new(id, self.scopes.clone(), self.change)
    }
}

/// One entry of the journal.
#[derive(Clone, Debug)]
pub(super) enum Record {
    /// A change is about to be made.
    Intent(HoldId, Intended),
    /// A charge was noted under this id, on top of those noted before. It ends an intent.
    Charge(HoldId, Charge),
    /// A store has confirmed all charges of this id, or an intended change was not made.
    Done(HoldId),
}

impl Record {
    pub(super) fn apply(self, outstanding: &mut Outstanding) {
        match self {
            Self::Intent(id, intended) => {
                outstanding.insert(id, Entry::Intent(intended));
            }
            Self::Charge(id, mut charge) => {
                if let Some(Entry::Charge(sum)) = outstanding.get(&id) {
                    charge.change = sum.change.then(charge.change);
                }
                outstanding.insert(id, Entry::Charge(charge));
            }
            Self::Done(id) => drop(outstanding.remove(&id)),
        }
    }
}

/// The first record of a segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) generation: u64,
    pub(super) salt: HoldId,
}

/// Begins the first line of a segment, in every format.
const NAME: &[u8] = b"tower-storage-guard journal ";
/// Ends it, in the format that is written here.
const FORMAT: &str = "3";
/// No format is longer than this.
const LONGEST_FORMAT: usize = 16;

const INTENT: u8 = b'?';
const CHARGE: u8 = b'+';
const DONE: u8 = b'-';
/// All that was outstanding when the segment was begun stands before this record.
const WHOLE: u8 = b'=';

/// A length of 8 bytes and a checksum of 4.
const FRAME: usize = 12;

impl Head {
    /// The beginning of a segment, up to the record that says that all that is outstanding is there.
    pub(super) fn begin(self, outstanding: &Outstanding) -> Vec<u8> {
        let mut bytes = [NAME, FORMAT.as_bytes(), b"\n"].concat();
        frame(&mut bytes, None, |body| {
            body.extend(self.generation.to_le_bytes());
            body.extend(self.salt.to_bytes());
        });
        for (id, entry) in outstanding {
            frame(&mut bytes, Some(self.salt), |body| match entry {
                Entry::Charge(charge) => noted(body, *id, charge),
                Entry::Intent(intended) => intends(body, *id, intended),
            });
        }
        frame(&mut bytes, Some(self.salt), |body| body.push(WHOLE));
        bytes
    }

    /// Records to append to that.
    pub(super) fn append(self, records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records {
            frame(&mut bytes, Some(self.salt), |body| match record {
                Record::Intent(id, intended) => intends(body, *id, intended),
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
    names(body, scopes);
}

fn intends(body: &mut Vec<u8>, id: HoldId, Intended { scopes, note }: &Intended) {
    body.push(INTENT);
    body.extend(id.to_bytes());
    prefixed(body, note);
    names(body, scopes);
}

fn names(body: &mut Vec<u8>, scopes: &Scopes) {
    for scope in scopes {
        prefixed(body, scope.as_str().as_bytes());
    }
}

fn prefixed(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend((bytes.len() as u64).to_le_bytes());
    body.extend(bytes);
}

fn frame(bytes: &mut Vec<u8>, salt: Option<HoldId>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; FRAME]);
    body(bytes);
    let (frame, body) = bytes[start..].split_at_mut(FRAME);
    frame[..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
    frame[8..].copy_from_slice(&checksum(salt, body).to_le_bytes());
}

/// CRC-32 of the salt, the length and the body. The length is included so that zeros, of which a new file consists, are
/// not a record.
fn checksum(salt: Option<HoldId>, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if let Some(salt) = salt {
        hasher.update(&salt.to_bytes());
    }
    hasher.update(&(body.len() as u64).to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// The content of a segment.
#[derive(Debug)]
pub(super) enum Segment {
    /// The segment was never begun, or its beginning was not written to the end.
    Empty,
    /// These charges and intents are outstanding.
    Whole(Head, Outstanding),
    /// Another version of this crate wrote it, in this format.
    OtherFormat(String),
}

impl Segment {
    /// Reads up to the first record that is not whole: its writer was killed before it could answer.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut rest = match format(bytes) {
            Some((FORMAT, rest)) => Reader(rest),
            Some((other, _)) => return Self::OtherFormat(other.into()),
            None => return Self::Empty,
        };
        let Some(head) = rest.head() else {
            return Self::Empty;
        };
        let (mut outstanding, mut is_whole) = (Outstanding::new(), false);
        while let Some(mut body) = rest.record(Some(head.salt)) {
            match body.parse() {
                Some(Some(record)) => record.apply(&mut outstanding),
                Some(None) => is_whole = true,
                None => break,
            }
        }
        match is_whole {
            true => Self::Whole(head, outstanding),
            false => Self::Empty,
        }
    }

    /// The error for a segment in another format.
    pub(super) fn other_format(found: &str) -> String {
        format!(
            "it was written by another version of this crate: its format is {found}, and this version reads {FORMAT}"
        )
    }
}

/// The format that the first line names, and the bytes behind that line. None where there is no whole first line.
fn format(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let format = bytes.strip_prefix(NAME)?;
    let end = format
        .iter()
        .take(LONGEST_FORMAT)
        .position(|byte| *byte == b'\n')?;
    let (format, rest) = (&format[..end], &format[end + 1..]);
    let is_number = !format.is_empty() && format.iter().all(u8::is_ascii_digit);
    let format = str::from_utf8(format).ok().filter(|_| is_number)?;
    Some((format, rest))
}

/// Bytes that have not been read yet.
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

    fn id(&mut self) -> Option<HoldId> {
        self.array().map(HoldId::from_bytes)
    }

    /// The body of the next record, if it is whole.
    fn record(&mut self, salt: Option<HoldId>) -> Option<Self> {
        let length = self.u64()?.try_into().ok()?;
        let expected = u32::from_le_bytes(self.array()?);
        let body = self.take(length)?;
        (checksum(salt, body) == expected).then_some(Self(body))
    }

    fn head(&mut self) -> Option<Head> {
        let mut body = self.record(None)?;
        Some(Head {
            generation: body.u64()?,
            salt: body.id()?,
        })
    }

    /// The record in a body. The inner option is `None` for [`WHOLE`].
    fn parse(&mut self) -> Option<Option<Record>> {
        let [kind] = self.array()?;
        match kind {
            INTENT => self.intent().map(Some),
            CHARGE => self.charge().map(Some),
            DONE => self.id().map(Record::Done).map(Some),
            WHOLE => Some(None),
            _ => None,
        }
    }

    fn charge(&mut self) -> Option<Record> {
        let id = self.id()?;
        let change = Change {
            bytes: i64::from_le_bytes(self.array()?),
            objects: i64::from_le_bytes(self.array()?),
        };
        let scopes = self.names()?;
        Some(Record::Charge(id, Charge { scopes, change }))
    }

    fn intent(&mut self) -> Option<Record> {
        let (id, note) = (self.id()?, self.prefixed()?.into());
        let scopes = self.names()?;
        Some(Record::Intent(id, Intended { scopes, note }))
    }

    fn prefixed(&mut self) -> Option<&'a [u8]> {
        let length = self.u64()?.try_into().ok()?;
        self.take(length)
    }

    /// The scopes, which are the rest of a body.
    fn names(&mut self) -> Option<Scopes> {
        let mut scopes = Vec::new();
        while !self.0.is_empty() {
            scopes.push(Scope::from(str::from_utf8(self.prefixed()?).ok()?));
        }
        Some(scopes.into())
    }
}
