//! The error numbers of MySQL and MariaDB, for every library that speaks to them (MySQL: "Server Error Message
//! Reference" and "Global Error Message Reference"; MariaDB: "MariaDB Error Codes").
//!
//! | number | cause |
//! |---|---|
//! | 1021 `ER_DISK_FULL` | `database_full` |
//! | 1114 `ER_RECORD_FILE_FULL` | `database_full`: a tablespace, or the filesystem under it |
//! | 1 `EE_CANTCREATEFILE`, 3 `EE_WRITE`, 1026 `ER_ERROR_ON_WRITE`, with system error 28 | `database_full` |
//! | 1 and 3 with system error 122 | `quota_exceeded`: the disk quota of the server's user |
//! | 1005 `ER_CANT_CREATE_TABLE`, with error 28 or 135 (`HA_ERR_RECORD_FILE_FULL`) | `database_full` |
//! | 1030 `ER_GET_ERRNO`, 1180 `ER_ERROR_DURING_COMMIT`, with error 28 | `database_full` |
//! | 200 to 202, where a "temporary space limit" is reached (MariaDB 11.5) | `quota_exceeded` |
//!
//! 1114 is also returned for a table of the MEMORY engine that has reached `max_heap_table_size`, which is a limit on
//! memory. The error does not distinguish the two.
//!
//! Not faults: 1037, 1038, 1041 (memory), 1206 (the lock table), 1118, 1153 and 1197 (limits of the program), 1226
//! (rate limits), 1205 (timeouts) and 1290 (read-only). Error 122 of 1030, 1026 and 1180 is not a fault either,
//! because it is also an engine's internal error (`HA_ERR_INTERNAL_ERROR`). 126 (an index is corrupt) and 1878 (a
//! temporary file could not be written) are not, because MariaDB returns them for a full disk and for other reasons.
//!
//! MyISAM and Aria do not answer when the disk is full: they wait until there is room ("How MySQL Handles a Full
//! Disk"). InnoDB may terminate the server: limit the size of its tablespace, and it answers 1114.
//!
//! The system error is in the message only. Servers whose `lc_messages` is not English may translate it, and then
//! their errors are not recognised.

use super::{Cause, Fault, Resource, Verdict};

pub(super) fn verdict(number: u16, message: &str) -> Option<Verdict> {
    match number {
        1021 | 1114 => Some(DATABASE_FULL),
        1 | 3 => match system_error(message)? {
            ENOSPC => Some(DATABASE_FULL),
            EDQUOT => Some(QUOTA_EXCEEDED),
            _ => None,
        },
        1005 if matches!(
            system_error(message),
            Some(ENOSPC | HA_ERR_RECORD_FILE_FULL)
        ) =>
        {
            Some(DATABASE_FULL)
        }
        1026 if system_error(message) == Some(ENOSPC) => Some(DATABASE_FULL),
        1030 | 1180 if got_error(message) == Some(ENOSPC) => Some(DATABASE_FULL),
        200..=202 if TEMPORARY_SPACE.contains(&message) => Some(QUOTA_EXCEEDED),
        _ => None,
    }
}

const DATABASE_FULL: Verdict = Verdict::Fault(Fault::new(Cause::DatabaseFull, Resource::Bytes));
const QUOTA_EXCEEDED: Verdict = Verdict::Fault(Fault::new(Cause::QuotaExceeded, Resource::Bytes));

// Of Linux. 28 is the same everywhere, and no system has another meaning of 122 for a file.
const ENOSPC: u16 = 28;
const EDQUOT: u16 = 122;
/// The engines' code (`my_base.h`) for what 1114 is elsewhere.
const HA_ERR_RECORD_FILE_FULL: u16 = 135;

/// These have no documented number.
pub(super) const TEMPORARY_SPACE: [&str; 2] = [
    "Local temporary space limit reached",
    "Global temporary space limit reached",
];

/// The last one, because file names come before it.
fn system_error(message: &str) -> Option<u16> {
    // MariaDB and its older relatives; MySQL 8.
    let (_, after) = ["(errno: ", "(Errcode: ", "(OS errno "]
        .into_iter()
        .find_map(|before| message.rsplit_once(before))?;
    leading_number(after)
}

fn got_error(message: &str) -> Option<u16> {
    leading_number(message.strip_prefix("Got error ")?)
}

fn leading_number(text: &str) -> Option<u16> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_or_tablespace_is_a_full_database() {
        for number in [1021, 1114] {
            assert_eq!(verdict(number, ""), Some(DATABASE_FULL), "{number}");
        }
    }

    #[test]
    fn the_system_error_decides_where_writing_failed() {
        for (number, message, expected) in [
            (
                3,
                r#"Error writing file '/tmp/MYfd=30' (Errcode: 28 "No space left on device")"#,
                Some(DATABASE_FULL),
            ),
            (
                1026,
                r#"Error writing file 'binlog' (errno: 28 "No space left on device")"#,
                Some(DATABASE_FULL),
            ),
            (
                1,
                "Can't create/write to file '/tmp/x' (OS errno 28 - No space left on device)",
                Some(DATABASE_FULL),
            ),
            (
                1005,
                r#"Can't create table `test`.`a` (errno: 28 "No space left on device")"#,
                Some(DATABASE_FULL),
            ),
            (
                1005,
                r#"Can't create table `test`.`a` (errno: 135 "No more room in record file")"#,
                Some(DATABASE_FULL),
            ),
            (
                1005,
                r#"Can't create table `test`.`a` (errno: 150 "Foreign key constraint is incorrectly formed")"#,
                None,
            ),
            // MariaDB's message for EDQUOT.
            (
                3,
                r#"Error writing file '/tmp/x' (Errcode: 122 "Internal (unspecified) error in handler")"#,
                Some(QUOTA_EXCEEDED),
            ),
            (
                1026,
                r#"Error writing file 'x' (errno: 122 "Internal (unspecified) error in handler")"#,
                None,
            ),
            (
                3,
                r#"Error writing file '/tmp/x' (Errcode: 5 "Input/output error")"#,
                None,
            ),
            (3, "Error writing file '/tmp/x' (errno: 280 - x)", None),
            // A file name is not used for the decision.
            (
                3,
                r#"Error writing file '(errno: 28 )' (errno: 5 "Input/output error")"#,
                None,
            ),
            (3, "", None),
            (3, "(errno: )", None),
            (3, "(errno: 28", None),
        ] {
            assert_eq!(verdict(number, message), expected, "{number} {message}");
        }
    }

    #[test]
    fn an_engine_that_got_error_28_is_full() {
        for (number, message, expected) in [
            (
                1030,
                r#"Got error 28 "No space left on device" from storage engine InnoDB"#,
                Some(DATABASE_FULL),
            ),
            (
                1030,
                "Got error 28 from storage engine",
                Some(DATABASE_FULL),
            ),
            (
                1180,
                "Got error 28 - 'No space left on device' during COMMIT",
                Some(DATABASE_FULL),
            ),
            (
                1030,
                r#"Got error 122 "Internal (unspecified) error in handler" from storage engine Aria"#,
                None,
            ),
            (
                1030,
                r#"Got error 168 "Unknown (generic) error from engine" from storage engine"#,
                None,
            ),
            (1030, "", None),
        ] {
            assert_eq!(verdict(number, message), expected, "{number} {message}");
        }
    }

    #[test]
    fn the_limit_of_temporary_space_is_a_quota() {
        for message in TEMPORARY_SPACE {
            assert_eq!(verdict(200, message), Some(QUOTA_EXCEEDED));
            assert_eq!(verdict(1200, message), None);
        }
        assert_eq!(verdict(200, "something else"), None);
    }

    #[test]
    fn other_numbers_are_undecided() {
        // Memory, the lock table, limits of the program, a rate limit, a timeout, read-only, a duplicate key.
        let numbers = [
            0, 13, 28, 122, 1037, 1038, 1041, 1062, 1118, 1153, 1197, 1205, 1206, 1226, 1290,
        ];
        for number in numbers {
            let message = "Got error 28 (errno: 28 \"No space left on device\")";
            assert_eq!(verdict(number, message), None, "{number}");
        }
    }
}
