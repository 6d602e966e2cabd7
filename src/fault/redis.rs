//! Redis and Valkey, by `redis`.
//!
//! | code | text | cause |
//! |---|---|---|
//! | `OOM` | `… used memory > 'maxmemory'` | `database_full`: `maxmemory` is the size that the data set may have |
//! | `MISCONF` | `Errors writing to the AOF file: …`, `Redis is configured to persist data to AOF, but … AOF error: …`: no space | `disk_full` |
//! | `MISCONF` | the same: over quota | `quota_exceeded` |
//! | `MISCONF` | `Redis is configured to save RDB snapshots, but …` | `database_full`: see below |
//!
//! Valkey and KeyDB use their own names instead.
//!
//! Each of them is recognised by itself, in a pipeline, for a command that was to be queued in a transaction, as the
//! reason of an `EXECABORT`, and raised in a script. If a pipeline has several errors, one of these is enough.
//!
//! After a failed snapshot, the server replies that it cannot persist and accepts no more writes. It does not report
//! the reason: usually the disk is full, but the folder may also not be writable. In both cases the server cannot
//! store, which is what 507 means. So it is a fault, with the cause that does not name a disk.
//!
//! When a write to the append-only file is cut short, Redis reports that no space was left, whatever the reason: a
//! limit on file sizes causes this too.
//!
//! Not storage: any other reason for which the append-only file cannot be written (`File too large`,
//! `Permission denied`, `Input/output error`), `BUSY`, `LOADING`, `READONLY`, `CLUSTERDOWN`, `NOREPLICAS`, too many
//! clients, a string above `proto-max-bulk-len`.
//!
//! Redis: "Key eviction", "Redis persistence", `server.c` (`createSharedObjects`), `script.c`, `multi.c`
//! (`execCommandAbort`).

use std::error::Error;

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, of_type},
};

/// Judges the errors of a version before 1.0, which know one error of a pipeline: the first.
#[cfg(any(feature = "redis027", feature = "redis029", feature = "redis032"))]
macro_rules! version_0 {
    ($redis:ident, tests: [$($of_io:ident)?]) => {
        use super::*;

        use ::$redis::RedisError;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside: |_| None,
            types: &[of_type::<RedisError>],
        };

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            let error = error.downcast_ref::<RedisError>()?;
            server_error(error.code()?, error.detail()?)
        }

        #[cfg(test)]
        mod tests {
            tests!($redis, ClientError);
            $($of_io!($redis);)?
        }
    };
}

/// Judges the errors of a version since 1.0.
#[cfg(feature = "redis1")]
macro_rules! version {
    ($redis:ident) => {
        use super::*;

        use ::$redis::{RedisError, ServerError};

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            // `source()` leads to an `io::Error`, in an `Arc` that the walk opens.
            inside: |_| None,
            types: &[of_type::<RedisError>, of_type::<ServerError>],
        };

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            let judge = |error: &ServerError| server_error(error.code(), error.details()?);
            if let Some(error) = error.downcast_ref::<ServerError>() {
                return judge(error);
            }
            // A pipeline has one error for each failed command, and no source. They are shared: this copies none.
            let error = error.downcast_ref::<RedisError>()?;
            let errors = error.clone().into_server_errors()?;
            errors.iter().find_map(|(_, error)| judge(error))
        }

        #[cfg(test)]
        mod tests {
            tests!($redis, Client);
            tests_of_io!($redis);
            tests_of_server_errors!($redis);
        }
    };
}

/// An error that the server has answered with, by the code before its text.
fn server_error(name: &str, text: &str) -> Option<Verdict> {
    match name {
        "EXECABORT" => reply(text.strip_prefix("Transaction discarded because of: ")?),
        "ERR" => reply(raised_in_script(text)?),
        _ => code(name, text),
    }
}

/// The reply to the command in a script that Redis 6 or older ran: `Error running script (call to f_<hash>):
/// @user_script:<line>: @user_script: <line>: -<reply>`. An error that a script raises itself has another form. Since
/// Redis 7 a script fails with the code of the command.
fn raised_in_script(text: &str) -> Option<&str> {
    let text = text.strip_prefix("Error running script (call to f_")?;
    let (_hash, text) = text.split_once("): @user_script:")?;
    let (called, text) = text.split_once(": @user_script: ")?;
    let (raised, reply) = text.split_once(": -")?;
    let is_line = |line: &str| line.bytes().all(|byte| byte.is_ascii_digit());
    (is_line(called) && is_line(raised)).then_some(reply)
}

/// Parses an error reply, without its `-`.
fn reply(reply: &str) -> Option<Verdict> {
    let (name, text) = reply.split_once(' ')?;
    code(name, text)
}

fn code(name: &str, text: &str) -> Option<Verdict> {
    let cause = match name {
        // Not any `OOM`: a module or a script may use the code as well.
        "OOM" => text
            .contains("used memory > 'maxmemory'")
            .then_some(Cause::DatabaseFull),
        "MISCONF" => misconf(text),
        _ => None,
    }?;
    Some(Verdict::Fault(Fault::new(cause, Resource::Bytes)))
}

fn misconf(text: &str) -> Option<Cause> {
    if let Some(reason) = text.strip_prefix("Errors writing to the AOF file: ") {
        return append(reason);
    }
    let (_server, aim) = text.split_once(" is configured to ")?;
    if aim.starts_with("save RDB snapshots, but ") {
        return Some(Cause::DatabaseFull);
    }
    let (_, reason) = aim
        .strip_prefix("persist data to AOF, but ")?
        .split_once("AOF error: ")?;
    append(reason)
}

/// The reason that the append-only file cannot be written: `strerror` of the server's system. Redis uses the C locale
/// for messages, so only the C library matters. In a script, more text follows.
fn append(reason: &str) -> Option<Cause> {
    let is_any = |texts: &[&str]| texts.iter().any(|text| reason.starts_with(text));
    if is_any(&["No space left on device"]) {
        Some(Cause::DiskFull)
    } else if is_any(&[
        "Disk quota exceeded",
        "Disc quota exceeded",
        "Quota exceeded",
    ]) {
        Some(Cause::QuotaExceeded)
    } else {
        None
    }
}

#[cfg(test)]
macro_rules! tests {
    ($redis:ident, $client:ident) => {
        use std::io;

        use ::$redis::{ErrorKind, parse_redis_value};

        use super::*;
        use crate::fault::{Classifier, classify};

        const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";
        const SNAPSHOT: &str = "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to \
            disk. Commands that may modify the data set are disabled";
        const APPEND: &str = "MISCONF Errors writing to the AOF file: ";

        /// The error that the library makes of a server's reply.
        fn error(reply: &str) -> RedisError {
            let value = parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
            value.extract_error().unwrap_err()
        }

        fn cause(reply: &str) -> Option<Cause> {
            let error = error(reply);
            let found = classify(&error);
            assert_eq!(classify(&io::Error::other(error)), found, "{reply}");
            found.map(|fault| fault.cause)
        }

        #[test]
        fn a_data_set_at_its_limit() {
            assert_eq!(cause(OOM), Some(Cause::DatabaseFull));
            let script = "OOM allow-oom flag is not set on the script, can not run it when used memory > 'maxmemory'";
            assert_eq!(cause(script), Some(Cause::DatabaseFull));
            let called = format!("{OOM} script: 9b1f, on @user_script:1.");
            assert_eq!(cause(&called), Some(Cause::DatabaseFull));
        }

        #[test]
        fn persistence_that_fails() {
            assert_eq!(cause(SNAPSHOT), Some(Cause::DatabaseFull));
            let valkey = SNAPSHOT.replace("Redis", "Valkey");
            assert_eq!(cause(&valkey), Some(Cause::DatabaseFull));
            for (reason, expected) in [
                ("No space left on device", Some(Cause::DiskFull)),
                (
                    "No space left on device script: 9b1f, on @user_script:1.",
                    Some(Cause::DiskFull),
                ),
                ("Disk quota exceeded", Some(Cause::QuotaExceeded)),
                ("Disc quota exceeded", Some(Cause::QuotaExceeded)),
                ("Quota exceeded", Some(Cause::QuotaExceeded)),
                ("File too large", None),
                ("Permission denied", None),
                ("Input/output error", None),
                ("Read-only file system", None),
            ] {
                assert_eq!(cause(&format!("{APPEND}{reason}")), expected, "{reason}");
                let script = "MISCONF Redis is configured to persist data to AOF, but it's currently unable to persist to \
                    disk. Writable scripts are blocked. AOF error: ";
                assert_eq!(cause(&format!("{script}{reason}")), expected, "{reason}");
            }
        }

        #[test]
        fn the_reason_of_an_aborted_transaction() {
            let aborted = |reason: &str| cause(&format!("EXECABORT Transaction discarded {reason}"));
            assert_eq!(
                aborted(&format!("because of: {OOM}")),
                Some(Cause::DatabaseFull)
            );
            assert_eq!(
                aborted(&format!("because of: {APPEND}No space left on device")),
                Some(Cause::DiskFull)
            );
            assert_eq!(aborted("because of: NOAUTH Authentication required."), None);
            assert_eq!(aborted("because of previous errors."), None);
        }

        #[test]
        fn a_script_of_redis_6() {
            let script = |text: &str| {
                cause(&format!(
                    "ERR Error running script (call to f_9b1f): {text}"
                ))
            };
            let raised = |reply: &str| script(&format!("@user_script:1: @user_script: 12: -{reply} "));
            assert_eq!(raised(OOM), Some(Cause::DatabaseFull));
            assert_eq!(raised(SNAPSHOT), Some(Cause::DatabaseFull));
            assert_eq!(
                raised("NOREPLICAS Not enough good replicas to write."),
                None
            );
            // Raised by the script itself.
            assert_eq!(
                script(&format!("@user_script:1: user_script:1: -{OOM}")),
                None
            );
            let pretended = format!("@user_script:1: user_script:1: a: @user_script: 1: -{OOM}");
            assert_eq!(script(&pretended), None);
            assert_eq!(cause(&format!("ERR -{OOM}")), None);
        }

        #[test]
        fn what_is_not_storage() {
            for reply in [
                "OOM Not enough memory available to execute the query",
                "MISCONF",
                "MISCONF something else",
                "MISCONF Redis is configured to do something else, but it can't",
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                "ERR max number of clients reached",
                "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
                "ERR OOM command not allowed when used memory > 'maxmemory'.",
                "BUSY Redis is busy running a script.",
                "LOADING Redis is loading the dataset in memory",
                "READONLY You can't write against a read only replica.",
                "CLUSTERDOWN The cluster is down",
                "NOREPLICAS Not enough good replicas to write.",
            ] {
                assert_eq!(cause(reply), None, "{reply}");
            }
            let named = (ErrorKind::$client, "OOM", OOM.to_owned());
            assert_eq!(classify(&RedisError::from(named)), None);
        }

        #[test]
        fn a_service_may_fail_with_it() {
            let full = Fault::new(Cause::DatabaseFull, Resource::Bytes);
            let classifier = Classifier::default();
            assert_eq!(classifier.classify_any(&error(OOM)), Some(full));
        }
    };
}

/// Versions before 0.32 do not show it.
#[cfg(all(test, any(feature = "redis032", feature = "redis1")))]
macro_rules! tests_of_io {
    ($redis:ident) => {
        #[test]
        fn an_io_error_within_is_reached() {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            assert_eq!(classify(&RedisError::from(full)), Some(Fault::DISK_FULL));
            let reset = io::Error::from(io::ErrorKind::ConnectionReset);
            assert_eq!(classify(&RedisError::from(reset)), None);
        }
    };
}

#[cfg(all(test, feature = "redis1"))]
macro_rules! tests_of_server_errors {
    ($redis:ident) => {
        #[test]
        fn an_error_of_the_server_alone() {
            let full = Fault::new(Cause::DatabaseFull, Resource::Bytes);
            let aborted = format!("EXECABORT Transaction discarded because of: {OOM}");
            for (reply, expected) in [
                (OOM, Some(full)),
                (SNAPSHOT, Some(full)),
                (&aborted, Some(full)),
                ("BUSY Redis is busy running a script.", None),
                (
                    "EXECABORT Transaction discarded because of previous errors.",
                    None,
                ),
            ] {
                let of_server: ServerError = error(reply).try_into().unwrap();
                assert_eq!(classify(&of_server), expected, "{reply}");
                assert_eq!(
                    Classifier::default().classify_any(&of_server),
                    expected,
                    "{reply}"
                );
            }
        }
    };
}

#[cfg(feature = "redis027")]
pub(super) mod redis027 {
    version_0!(redis027, tests: []);
}

#[cfg(feature = "redis029")]
pub(super) mod redis029 {
    version_0!(redis029, tests: []);
}

#[cfg(feature = "redis032")]
pub(super) mod redis032 {
    version_0!(redis032, tests: [tests_of_io]);
}

#[cfg(feature = "redis1")]
pub(super) mod redis1 {
    version!(redis);
}
