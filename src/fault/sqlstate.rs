//! PostgreSQL's error codes, for every library that speaks to it (its documentation: appendix "PostgreSQL Error
//! Codes"). Servers that speak its protocol use the same ones.
//!
//! | code | cause |
//! |---|---|
//! | 53100 `disk_full` | `database_full`: the filesystem of a tablespace, or that of the write-ahead log |
//! | 53400 `configuration_limit_exceeded`, with `temp_file_limit` in its message | `quota_exceeded` |
//!
//! 53400 alone is no fault, because too few replication slots or background workers have that code too. Neither are
//! 53000 `insufficient_resources` (which does not name the resource), 53200 `out_of_memory`, 53300
//! `too_many_connections`, 54xxx (limits of the program) and 57014 `query_canceled`. A disk quota of the server's
//! user is XX000 `internal_error`, as many other failures are (`errcode_for_file_access` in `elog.c`).

use super::{Cause, Fault, Resource, Verdict};

pub(super) fn verdict(code: &str, message: &str) -> Option<Verdict> {
    match code {
        "53100" => Some(DATABASE_FULL),
        // The name of a setting is the same in every language.
        "53400" if message.contains("temp_file_limit") => Some(QUOTA_EXCEEDED),
        _ => None,
    }
}

const DATABASE_FULL: Verdict = Verdict::Fault(Fault::new(Cause::DatabaseFull, Resource::Bytes));
const QUOTA_EXCEEDED: Verdict = Verdict::Fault(Fault::new(Cause::QuotaExceeded, Resource::Bytes));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_tablespace_is_a_full_database() {
        assert_eq!(verdict("53100", ""), Some(DATABASE_FULL));
    }

    #[test]
    fn the_limit_of_temporary_files_is_a_quota_in_any_language() {
        for message in [
            "temporary file size exceeds \"temp_file_limit\" (64kB)",
            "Größe der temporären Datei überschreitet temp_file_limit (64kB)",
        ] {
            assert_eq!(verdict("53400", message), Some(QUOTA_EXCEEDED), "{message}");
        }
        assert_eq!(verdict("53400", "all replication slots are in use"), None);
    }

    #[test]
    fn other_codes_say_nothing() {
        for code in [
            "", "13", "23505", "53000", "53200", "53300", "54000", "57014", "58030", "XX000",
        ] {
            let message = "No space left on device: temp_file_limit";
            assert_eq!(verdict(code, message), None, "{code}");
        }
    }
}
