//! `clickhouse`.
//!
//! The server's answer is text only. It begins with the code of the exception, "Code: 243. DB::Exception: …". The
//! codes are those of `ErrorCodes.cpp` in the sources of ClickHouse, and of its table `system.errors`.
//!
//! | code | cause |
//! |---|---|
//! | 243 `NOT_ENOUGH_SPACE` | `DiskFull` |
//! | 75 `CANNOT_WRITE_TO_FILE_DESCRIPTOR`, 76 `CANNOT_OPEN_FILE`, 77 `CANNOT_CLOSE_FILE` with "errno: 28, strerror" | `DiskFull` |
//! | the same with "errno: 122, strerror" | `QuotaExceeded` |
//! | 1000 `POCO_EXCEPTION` with "File access error: no space left on device" | `DiskFull` |
//!
//! Not storage: 241 `MEMORY_LIMIT_EXCEEDED`, 201 `QUOTA_EXCEEDED` (a limit on queries, rows and bytes per interval),
//! 252 `TOO_MANY_PARTS` (merges that lag behind), 396 `TOO_MANY_ROWS_OR_BYTES`, 359
//! `TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT`.
//!
//! The text is only searched under those codes, because other exceptions repeat what the client has sent.

use std::error::Error;

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, of_type},
};

/// Judges the errors of one version.
macro_rules! version {
    ($clickhouse:ident) => {
        use super::*;

        use ::$clickhouse::error::Error as ClickhouseError;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside,
            types: &[of_type::<ClickhouseError>],
        };

        fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            match error.downcast_ref()? {
                ClickhouseError::Other(inner) => Some(&**inner),
                _ => None,
            }
        }

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            match error.downcast_ref()? {
                ClickhouseError::BadResponse(answer) => judge(answer),
                _ => None,
            }
        }

        #[cfg(test)]
        mod tests {
            tests!($clickhouse);
        }
    };
}

fn judge(answer: &str) -> Option<Verdict> {
    let answer = answer.strip_prefix("Code: ")?;
    // "243. DB::Exception: …", "243, e.displayText() = …" from servers before 21.1, and "243" from a header alone.
    let end = answer.find(['.', ',']).unwrap_or(answer.len());
    let (code, says) = answer.split_at(end);
    match code {
        "243" => Some(DISK_FULL),
        "75" | "76" | "77" if says.contains(", errno: 28, strerror: ") => Some(DISK_FULL),
        "75" | "76" | "77" if says.contains(", errno: 122, strerror: ") => Some(QUOTA_EXCEEDED),
        "1000" if says.contains("File access error: no space left on device") => Some(DISK_FULL),
        _ => None,
    }
}

const DISK_FULL: Verdict = Verdict::Fault(Fault::DISK_FULL);
const QUOTA_EXCEEDED: Verdict = Verdict::Fault(Fault::new(Cause::QuotaExceeded, Resource::Bytes));

#[cfg(test)]
macro_rules! tests {
    ($clickhouse:ident) => {
        use std::io;

        use super::*;
        use crate::fault::classify;

        fn answered(text: &str) -> Option<Verdict> {
            look(&ClickhouseError::BadResponse(text.to_owned()))
        }

        #[test]
        fn codes_decide() {
            for (text, verdict) in [
                (
                    "Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE) (version 25.8.1)",
                    Some(DISK_FULL),
                ),
                (
                    "Code: 243, e.displayText() = DB::Exception: Cannot reserve 1.00 MiB, not enough space",
                    Some(DISK_FULL),
                ),
                ("Code: 243", Some(DISK_FULL)),
                (
                    "Code: 75. DB::ErrnoException: Cannot write to file /a: , errno: 28, strerror: No space left on device",
                    Some(DISK_FULL),
                ),
                (
                    "Code: 76, e.displayText() = DB::ErrnoException: Cannot open file /a, errno: 28, strerror: No space left",
                    Some(DISK_FULL),
                ),
                (
                    "Code: 75. DB::ErrnoException: Cannot write to file /a: , errno: 122, strerror: Disk quota exceeded",
                    Some(QUOTA_EXCEEDED),
                ),
                (
                    "Code: 1000, e.displayText() = File access error: no space left on device: /a",
                    Some(DISK_FULL),
                ),
                (
                    "Code: 75. DB::ErrnoException: Cannot write to file /a: , errno: 5, strerror: I/O error",
                    None,
                ),
                (
                    "Code: 75. DB::ErrnoException: Cannot write to file /a: , errno: 280, strerror: ?",
                    None,
                ),
                (
                    "Code: 241. DB::Exception: Memory limit (for query) exceeded: would use 9.31 GiB",
                    None,
                ),
                (
                    "Code: 201. DB::Exception: Quota for user `u` for 1h has been exceeded: written_bytes",
                    None,
                ),
                ("Code: 252. DB::Exception: Too many parts (300)", None),
                ("Code: 159. DB::Exception: Timeout exceeded", None),
                ("Code: 2430. DB::Exception: ?", None),
                ("507 Insufficient Storage", None),
                // Text that the client has sent.
                (
                    "Code: 62. DB::Exception: Syntax error: failed at position 1 (Code: 243. , errno: 28, strerror: )",
                    None,
                ),
                ("Syntax error (Code: 243. )", None),
            ] {
                assert_eq!(answered(text), verdict, "{text}");
            }
        }

        #[test]
        fn the_answer_alone_is_looked_at() {
            let text = || "Code: 243. DB::Exception".to_owned();
            assert_eq!(look(&ClickhouseError::Custom(text())), None);
            assert_eq!(look(&io::Error::other(text())), None);
        }

        #[test]
        fn an_error_of_another_library_is_opened() {
            let other = |kind| ClickhouseError::Other(Box::new(io::Error::from(kind)));
            let found = classify(&other(io::ErrorKind::StorageFull));
            assert_eq!(found, Some(Fault::DISK_FULL));
            assert_eq!(classify(&other(io::ErrorKind::NotFound)), None);
        }
    };
}

#[cfg(feature = "clickhouse013")]
pub(super) mod clickhouse013 {
    version!(clickhouse013);
}

#[cfg(feature = "clickhouse014")]
pub(super) mod clickhouse014 {
    version!(clickhouse014);
}

#[cfg(feature = "clickhouse015")]
pub(super) mod clickhouse015 {
    version!(clickhouse015);
}
