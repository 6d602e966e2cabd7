//! `diesel`, and `diesel-async`, which has the same errors. They keep the server's message and drop its code, so the
//! message is all that can be examined. It must match what the server writes from beginning to end:
//!
//! | message | is taken for |
//! |---|---|
//! | `could not …: No space left on device` | 53100 of PostgreSQL |
//! | `could not extend file "…": wrote only …` | 53100 of PostgreSQL |
//! | `temporary file size exceeds temp_file_limit (…kB)`, the name quoted or not | 53400 of PostgreSQL |
//! | `Disk full (…); waiting for someone to free some space...…` | 1021 of MySQL and MariaDB |
//! | `The table '…' is full` | 1114 of MySQL and MariaDB |
//! | `Can't create/write to file '…`, `Error writing file '…` | 1 and 3 of MySQL and MariaDB |
//! | ``Can't create table `…`` | 1005 of MariaDB |
//! | `Got error …` | 1030 of MySQL and MariaDB |
//! | `Local temporary space limit reached`, `Global …` | 200 of MariaDB |
//! | `database or disk is full` | 13 of SQLite |
//! | `string or blob too big` | 18 of SQLite |
//!
//! The codes are judged in `sqlstate.rs`, `mysql_codes.rs` and `sqlite_codes.rs`.
//!
//! Not a fault: errors that diesel identifies as something else (a violated constraint, for example); a server's
//! message in another language; and 4874 of SQLite, whose message is the same for every I/O error. A user's procedure
//! or trigger that raises one of these messages word for word is mistaken for the server.
//!
//! Where diesel holds another error and exposes only its source, or nothing, the classifier opens that error.

use std::{error::Error, sync::Arc};

use diesel::{
    ConnectionError,
    result::{DatabaseErrorKind, Error as DieselError},
};

use super::{
    Verdict,
    library::{Library, of_type},
    mysql_codes, sqlite_codes, sqlstate,
};

pub(super) const LIBRARY: Library = Library {
    look,
    inside,
    types: &[
        of_type::<DieselError>,
        of_type::<Arc<DieselError>>,
        of_type::<ConnectionError>,
    ],
};

fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref::<DieselError>() {
        match error {
            DieselError::QueryBuilderError(inner)
            | DieselError::DeserializationError(inner)
            | DieselError::SerializationError(inner) => Some(&**inner),
            // The rollback's own error comes after it.
            DieselError::RollbackErrorOnCommit { commit_error, .. } => Some(&**commit_error),
            _ => None,
        }
    } else if let Some(ConnectionError::CouldntSetupConfiguration(inner)) = error.downcast_ref() {
        Some(inner)
    } else if let Some(shared) = error.downcast_ref::<Arc<DieselError>>() {
        Some(&**shared)
    } else {
        let boxed = error.downcast_ref::<Box<DieselError>>()?;
        Some(&**boxed)
    }
}

fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
    match error.downcast_ref()? {
        // diesel forbids naming the variant, because kinds may be added. A new kind is not a fault.
        DieselError::DatabaseError(DatabaseErrorKind::Unknown, information) => {
            verdict(information.message())
        }
        _ => None,
    }
}

fn verdict(message: &str) -> Option<Verdict> {
    if let Some(code) = postgres(message) {
        sqlstate::verdict(code, message)
    } else if let Some(number) = mysql(message) {
        mysql_codes::verdict(number, message)
    } else {
        sqlite_codes::verdict(sqlite(message)?)
    }
}

/// `md.c`, `fd.c` and others: `%m` at the end is the operating system's error.
fn postgres(message: &str) -> Option<&'static str> {
    if message.starts_with("could not ") && message.ends_with(": No space left on device")
        || message.starts_with("could not extend file \"") && message.contains("\": wrote only ")
    {
        Some("53100")
    } else if TEMP_FILE_LIMIT
        .iter()
        .any(|start| message.starts_with(start))
        && message.ends_with("kB)")
    {
        Some("53400")
    } else {
        None
    }
}

/// Newer versions put the name in quotes.
const TEMP_FILE_LIMIT: [&str; 2] = [
    "temporary file size exceeds temp_file_limit (",
    "temporary file size exceeds \"temp_file_limit\" (",
];

/// `errmsg-utf8.txt` of MariaDB, `messages_to_clients.txt` of MySQL, `mysys/errors.c` of both.
fn mysql(message: &str) -> Option<u16> {
    if message.starts_with("Disk full (")
        && message.contains("); waiting for someone to free some space...")
    {
        Some(1021)
    } else if message.starts_with("The table '") && message.ends_with("' is full") {
        Some(1114)
    } else if message.starts_with("Can't create/write to file '")
        || message.starts_with("Error writing file '")
    {
        Some(3)
    } else if message.starts_with("Can't create table `") {
        Some(1005)
    } else if message.starts_with("Got error ")
        && (message.contains(" from storage engine") || message.ends_with(" during COMMIT"))
    {
        Some(1030)
    } else if mysql_codes::TEMPORARY_SPACE.contains(&message) {
        Some(200)
    } else {
        None
    }
}

/// `sqlite3ErrStr` in `main.c`.
fn sqlite(message: &str) -> Option<i32> {
    match message {
        "database or disk is full" => Some(13),
        "string or blob too big" => Some(18),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::fault::{Cause, classify};

    fn of_kind(kind: DatabaseErrorKind, message: &str) -> DieselError {
        DieselError::DatabaseError(kind, Box::new(message.to_owned()))
    }

    fn unknown(message: &str) -> DieselError {
        of_kind(DatabaseErrorKind::Unknown, message)
    }

    fn cause(error: &(dyn Error + 'static)) -> Option<Cause> {
        classify(error).map(|fault| fault.cause)
    }

    #[test]
    fn messages_of_servers_that_are_full() {
        for message in [
            r#"could not extend file "pg_tblspc/16384/PG_15_202209061/5/16385": No space left on device"#,
            r#"could not extend file "base/5/1": wrote only 4096 of 8192 bytes at block 7"#,
            r#"could not write to file "base/pgsql_tmp/pgsql_tmp1.0": No space left on device"#,
            r#"Disk full (/tmp/x); waiting for someone to free some space... (errno: 28 "No space left on device")"#,
            "The table 'photos' is full",
            r#"Error writing file '/tmp/x' (Errcode: 28 "No space left on device")"#,
            "Can't create/write to file '/tmp/x' (OS errno 28 - No space left on device)",
            r#"Got error 28 "No space left on device" from storage engine InnoDB"#,
            r#"Can't create table `test`.`a` (errno: 135 "No more room in record file")"#,
            "Got error 28 from storage engine",
            "Got error 28 - 'No space left on device' during COMMIT",
            "database or disk is full",
        ] {
            assert_eq!(
                cause(&unknown(message)),
                Some(Cause::DatabaseFull),
                "{message}"
            );
            // diesel's own kind takes precedence.
            let duplicate = of_kind(DatabaseErrorKind::UniqueViolation, message);
            assert_eq!(cause(&duplicate), None, "{message}");
        }
    }

    #[test]
    fn messages_of_servers_with_a_limit() {
        for message in [
            "temporary file size exceeds temp_file_limit (64kB)",
            "temporary file size exceeds \"temp_file_limit\" (64kB)",
            r#"Error writing file '/tmp/x' (Errcode: 122 "Internal (unspecified) error in handler")"#,
            "Local temporary space limit reached",
        ] {
            assert_eq!(
                cause(&unknown(message)),
                Some(Cause::QuotaExceeded),
                "{message}"
            );
        }
    }

    #[test]
    fn a_message_that_only_quotes_another_is_no_fault() {
        for message in [
            "",
            "No space left on device",
            r#"invalid input syntax for type integer: "could not extend file: No space left on device""#,
            "Could not find it: No space left on device",
            "could not obtain lock on row in relation \"photos\"",
            "could not extend file \"base/5/1\": Input/output error",
            "Duplicate entry 'The table 'photos' is full' for key 'PRIMARY'",
            "The table 'photos' is full of dust",
            "Disk full",
            r#"Error writing file '/tmp/x' (Errcode: 5 "Input/output error")"#,
            r#"Got error 168 "Unknown (generic) error from engine" from storage engine"#,
            "Got error 28 from a friend",
            "temporary file size exceeds",
            "disk I/O error",
            "out of memory",
            "string or blob too big",
            "no such table: database or disk is full",
            "canceling statement due to statement timeout",
            "Auf dem Gerät ist kein Speicherplatz mehr verfügbar",
        ] {
            assert_eq!(cause(&unknown(message)), None, "{message}");
        }
    }

    #[test]
    fn a_value_that_is_too_big_is_not_storage() {
        let too_big = unknown("string or blob too big");
        assert_eq!(look(&too_big), Some(Verdict::NotOurs));
    }

    #[test]
    fn a_wrapped_error_is_opened() {
        let full = || unknown("database or disk is full");
        for error in [
            Box::new(Arc::new(full())) as Box<dyn Error>,
            Box::new(Box::new(full())),
            Box::new(ConnectionError::CouldntSetupConfiguration(full())),
            Box::new(DieselError::QueryBuilderError(full().into())),
            Box::new(DieselError::RollbackErrorOnCommit {
                rollback_error: Box::new(DieselError::NotInTransaction),
                commit_error: Box::new(full()),
            }),
        ] {
            assert_eq!(cause(&*error), Some(Cause::DatabaseFull), "{error}");
        }
        let wrapped = anyhow::Error::from(full()).context("while storing");
        assert_eq!(cause(&*wrapped), Some(Cause::DatabaseFull));
    }

    #[test]
    fn connection_errors_are_opened() {
        let full = || io::Error::from(io::ErrorKind::StorageFull).into();
        for error in [
            DieselError::SerializationError(full()),
            DieselError::DeserializationError(full()),
        ] {
            assert_eq!(cause(&error), Some(Cause::DiskFull));
        }
    }

    #[test]
    fn other_errors_say_nothing() {
        for error in [
            DieselError::NotFound,
            DieselError::RollbackTransaction,
            DieselError::BrokenTransactionManager,
        ] {
            assert_eq!(cause(&error), None, "{error}");
        }
    }
}
