//! The files of a journal: two segments that alternate, and a lock.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::Path,
};

use fs4::{FileExt, TryLockError};

use super::{
    super::HoldId,
    segment::{Head, Outstanding, Record, Segment},
};

pub(super) struct Segments {
    files: [File; 2],
    /// The index of the newest segment that is whole.
    newest: usize,
    generation: u64,
    /// Where to append. None before a segment is begun, and after a failure, which may have left half a record.
    end: Option<End>,
    /// How much of the disk is allocated for each file.
    size: u64,
    // Declared last, so that it is unlocked after the other files are closed.
    _lock: File,
}

#[derive(Clone, Copy)]
struct End {
    head: Head,
    at: u64,
    /// Where to begin another segment.
    limit: u64,
}

impl Segments {
    /// Opens the files, creates those that are missing, and reads the outstanding charges.
    pub(super) fn open(directory: &Path, size: u64) -> io::Result<(Self, Outstanding)> {
        fs::create_dir_all(directory)?;
        let lock = open(&directory.join("journal.lock"))?;
        FileExt::try_lock(&lock).map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process or another Journal has it open",
            ),
        })?;
        let mut files = [
            open(&directory.join("journal.0"))?,
            open(&directory.join("journal.1"))?,
        ];
        let (mut newest, mut generation, mut outstanding) = (0, 0, Outstanding::new());
        for (number, file) in files.iter_mut().enumerate() {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            match Segment::read(&bytes) {
                Segment::Whole(head, left) if head.generation > generation => {
                    (newest, generation, outstanding) = (number, head.generation, left);
                }
                Segment::Whole(..) | Segment::Empty => {}
                Segment::OtherFormat(found) => {
                    let why = Segment::other_format(&found);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
            set_aside(file, size)?;
        }
        let segments = Self {
            files,
            newest,
            generation,
            end: None,
            size,
            _lock: lock,
        };
        Ok((segments, outstanding))
    }

    /// Appends records. Returns whether it could: otherwise a segment has to be begun.
    pub(super) fn append(&mut self, records: &[Record]) -> bool {
        let Some(end) = self.end else { return false };
        let bytes = end.head.append(records);
        let at = end.at + bytes.len() as u64;
        let is_written = at <= end.limit && self.files[self.newest].write_all(&bytes).is_ok();
        self.end = is_written.then_some(End { at, ..end });
        is_written
    }

    /// Begins another segment with all outstanding charges. The previous segment counts until this one is whole.
    pub(super) fn begin(&mut self, outstanding: &Outstanding) -> io::Result<()> {
        self.end = None;
        let head = Head {
            generation: self.generation + 1,
            salt: HoldId::unique(),
        };
        let bytes = head.begin(outstanding);
        let (at, next) = (bytes.len() as u64, 1 - self.newest);
        let file = &mut self.files[next];
        if at <= self.size && file.metadata()?.len() > self.size {
            // The file has grown, and the room is no longer needed.
            file.set_len(self.size)?;
        }
        file.rewind()?;
        file.write_all(&bytes)?;
        (self.newest, self.generation) = (next, head.generation);
        // Room for as much again, so that outstanding charges are not copied with every write.
        let limit = self.size.max(at.saturating_mul(2));
        self.end = Some(End { head, at, limit });
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path)
}

/// Allocates this much of the disk for a file.
fn set_aside(file: &mut File, size: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length >= size {
        return Ok(());
    }
    match file.allocate(size) {
        // The filesystem cannot allocate, so zeros are written.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            file.seek(io::SeekFrom::Start(length))?;
            io::copy(&mut io::repeat(0).take(size - length), file).map(drop)
        }
        allocated => allocated,
    }
}

#[cfg(test)]
impl Segments {
    /// Appends to this file, as if a segment had been begun in it.
    pub(super) fn that_go_on_in(mut self, file: File) -> Self {
        let head = Head {
            generation: self.generation,
            salt: HoldId::unique(),
        };
        self.files[self.newest] = file;
        self.end = Some(End {
            head,
            at: 0,
            limit: u64::MAX,
        });
        self
    }
}
