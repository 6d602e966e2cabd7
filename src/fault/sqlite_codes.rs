//! SQLite's extended result codes, for every library that reaches it ("Result and Error Codes" of its
//! documentation).
//!
//! | code | cause |
//! |---|---|
//! | 13 `SQLITE_FULL` | `database_full`: the disk, or `max_page_count`; nobody can tell which |
//! | 4874 `SQLITE_IOERR_SHMSIZE` | `database_full`: no room for the "shm" file of a database in WAL mode |
//!
//! No fault are 18 `SQLITE_TOOBIG`, a limit of the program (HTTP 413); 7 `SQLITE_NOMEM`, which is memory; and the
//! codes that a disk quota or a lack of inodes hides behind among others: 778 `SQLITE_IOERR_WRITE`,
//! 14 `SQLITE_CANTOPEN`.

use super::{Cause, Fault, Resource, Verdict};

pub(super) fn verdict(code: i32) -> Option<Verdict> {
    match code {
        13 | 4874 => Some(DATABASE_FULL),
        18 => Some(Verdict::NotOurs),
        _ => None,
    }
}

const DATABASE_FULL: Verdict = Verdict::Fault(Fault::new(Cause::DatabaseFull, Resource::Bytes));

#[cfg(all(test, not(storage_guard_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_full_database_is_a_fault() {
        assert_eq!(verdict(13), Some(DATABASE_FULL));
        assert_eq!(verdict(4874), Some(DATABASE_FULL));
    }

    #[test]
    fn a_value_that_is_too_big_is_a_limit_of_the_program() {
        assert_eq!(verdict(18), Some(Verdict::NotOurs));
    }

    #[test]
    fn other_codes_say_nothing() {
        // NOMEM, READONLY, IOERR, CORRUPT, CANTOPEN, IOERR_WRITE, IOERR_SHMOPEN, CONSTRAINT_UNIQUE
        for code in [
            0,
            7,
            8,
            10,
            11,
            14,
            778,
            4618,
            2067,
            -13,
            i32::MIN,
            i32::MAX,
        ] {
            assert_eq!(verdict(code), None, "{code}");
        }
    }
}
