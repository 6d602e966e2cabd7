//! SQLite's extended result codes.
//!
//! | code | verdict |
//! |---|---|
//! | 13 `SQLITE_FULL` | `database_full` |
//! | 4874 `SQLITE_IOERR_SHMSIZE` | `disk_full` |
//! | 18 `SQLITE_TOOBIG` | not storage: a limit of the program, HTTP 413 |
//! | everything else | undecided |
//!
//! 13 is returned both for a database at its `max_page_count` and for a full disk, and the error does not distinguish
//! them. An AUTOINCREMENT table whose rowids are used up returns it too.
//!
//! 4874 is returned in WAL mode when the file of the shared index cannot be extended. SQLite writes a byte to each
//! new page there to detect a full disk. The code does not include the reason, so a disk that breaks during this
//! write is taken for a full disk.
//!
//! The other I/O codes are undecided, although a full disk can cause some of them: 778 `SQLITE_IOERR_WRITE` and 1034
//! `SQLITE_IOERR_FSYNC` are returned for a disk quota and for a broken disk; 14 `SQLITE_CANTOPEN` for a journal that
//! finds no inode, and for every other file that cannot be opened. 7 `SQLITE_NOMEM` and 3082 `SQLITE_IOERR_NOMEM` are
//! memory.
//!
//! "Result and Error Codes" in SQLite's documentation; `unixWrite` and `unixShmMap` in its source.

use super::{Cause, Fault, Resource, Verdict};

const FULL: i32 = 13;
const TOOBIG: i32 = 18;
const IOERR_SHMSIZE: i32 = 4874;

/// The verdict for an extended result code.
pub(super) fn verdict(code: i32) -> Option<Verdict> {
    match code {
        FULL => Some(Verdict::Fault(Fault::new(
            Cause::DatabaseFull,
            Resource::Bytes,
        ))),
        IOERR_SHMSIZE => Some(Verdict::Fault(Fault::DISK_FULL)),
        TOOBIG => Some(Verdict::NotOurs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_codes_decide_and_no_other() {
        let database_full = Fault::new(Cause::DatabaseFull, Resource::Bytes);
        for code in i32::from(i16::MIN)..=i32::from(i16::MAX) {
            let expected = match code {
                13 => Some(Verdict::Fault(database_full)),
                // SQLITE_IOERR (10) with 19 above.
                4874 => Some(Verdict::Fault(Fault::DISK_FULL)),
                18 => Some(Verdict::NotOurs),
                _ => None,
            };
            assert_eq!(verdict(code), expected, "{code}");
        }
    }
}
