//! The connection, and all that may happen to its file.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use tower::BoxError;

use super::super::sql::milliseconds;

const SCHEMA: &str = include_str!("schema.sql");
/// Of the schema. Kept in the file.
const VERSION: i64 = 1;

/// What a step does, and what it may cost.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Kind {
    /// Writes nothing.
    Look,
    /// Writes what may be lost with the power, as its request is lost too. The disk need not be waited for.
    Hold,
    /// Writes what must not be lost.
    Charge,
}

pub(super) struct Engine {
    path: PathBuf,
    /// None after a failure that another connection may not have.
    open: Option<Open>,
}

struct Open {
    connection: Connection,
    file: Identity,
}

impl Engine {
    pub(super) fn open(path: &Path, deadline: Instant) -> Result<Self, BoxError> {
        let path = path.to_owned();
        let mut engine = Self { path, open: None };
        engine.connection(deadline)?;
        Ok(engine)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in one transaction, with the time. Twice where a new connection may help.
    pub(super) fn run<T>(
        &mut self,
        kind: Kind,
        deadline: Instant,
        work: impl Fn(&Transaction<'_>, i64) -> rusqlite::Result<T>,
    ) -> Result<T, BoxError> {
        match self.attempt(kind, deadline, &work) {
            // Tables that somebody has dropped, or a file that was swapped: opening it heals that.
            Err(Failure::Broken(_)) => {
                self.open = None;
                self.attempt(kind, deadline, &work)
            }
            result => result,
        }
        .map_err(|failure| match failure {
            Failure::Passing(error) => error,
            Failure::Broken(error) => {
                self.open = None;
                error
            }
        })
    }

    fn attempt<T>(
        &mut self,
        kind: Kind,
        deadline: Instant,
        work: &impl Fn(&Transaction<'_>, i64) -> rusqlite::Result<T>,
    ) -> Result<T, Failure> {
        let connection = self.connection(deadline)?;
        connection.busy_timeout(rest(deadline))?;
        // Neither lets a crash of the process lose anything.
        let synchronous = match kind {
            Kind::Look | Kind::Hold => "NORMAL",
            Kind::Charge => "FULL",
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        // Whoever is going to write locks first: one who has read cannot wait for the lock.
        let behavior = match kind {
            Kind::Look => TransactionBehavior::Deferred,
            Kind::Hold | Kind::Charge => TransactionBehavior::Immediate,
        };
        let transaction = connection.transaction_with_behavior(behavior)?;
        // After the wait for the lock.
        let output = work(&transaction, now())?;
        transaction.commit()?;
        Ok(output)
    }

    /// The connection, to the file that is there now.
    fn connection(&mut self, deadline: Instant) -> Result<&mut Connection, Failure> {
        let open = match self.open.take() {
            // One that has been deleted would be written to in vain.
            Some(open) if identity(&self.path).is_ok_and(|file| file == open.file) => open,
            // Closed first: SQLite must not have one file open twice.
            old => {
                drop(old);
                let connection = connect(&self.path, deadline)?;
                let file = identity(&self.path).map_err(|error| Failure::Broken(error.into()))?;
                Open { connection, file }
            }
        };
        Ok(&mut self.open.insert(open).connection)
    }
}

enum Failure {
    /// Somebody else has locked the file, or the disk is full. No new connection helps, and this one can still look.
    Passing(BoxError),
    /// Whatever else.
    Broken(BoxError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull) => {
                Self::Passing(error.into())
            }
            _ => Self::Broken(error.into()),
        }
    }
}

impl From<Failure> for BoxError {
    fn from(failure: Failure) -> Self {
        let (Failure::Passing(error) | Failure::Broken(error)) = failure;
        error
    }
}

/// Whether quotas are in the file already. Writes nothing to it.
pub(super) fn look(path: &Path, deadline: Instant) -> Result<(), BoxError> {
    if !fs::metadata(path)?.is_file() {
        return Err("it is no file".into());
    }
    // With leave to write: to read the log, an index of it may have to be made.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(rest(deadline))?;
    let tables: i64 = connection.query_row(
        "SELECT count(*) FROM sqlite_master
        WHERE type = 'table' AND name IN ('accounts', 'holds', 'settled')",
        [],
        |row| row.get(0),
    )?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match tables == 3 && version > 0 {
        true => Ok(()),
        false => Err("there are no quotas in the file".into()),
    }
}

fn connect(path: &Path, deadline: Instant) -> Result<Connection, Failure> {
    loop {
        match prepared(path, deadline) {
            // SQLite does not wait by itself for others that prepare the same file.
            Err(Failure::Passing(_)) if !rest(deadline).is_zero() => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn prepared(path: &Path, deadline: Instant) -> Result<Connection, Failure> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(rest(deadline))?;
    // Who reads does not wait for who writes, and a commit is one write to the log.
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        let error = format!("the quota's file cannot have a log beside it: its mode is {mode}");
        return Err(Failure::Broken(error.into()));
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > VERSION {
        let error = format!("the quota's file is of version {version}, and {VERSION} is known");
        return Err(Failure::Broken(error.into()));
    }
    transaction.execute_batch(SCHEMA)?;
    // Nothing is written where all is there.
    if version < VERSION {
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(connection)
}

fn rest(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Milliseconds since 1970, by the machine's clock.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    milliseconds(since.unwrap_or_default())
}

/// Which file it is.
#[cfg(unix)]
type Identity = (u64, u64);

#[cfg(unix)]
fn identity(path: &Path) -> std::io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;

    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Elsewhere no file is deleted while it is open.
#[cfg(not(unix))]
type Identity = ();

#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<Identity> {
    fs::metadata(path).map(drop)
}
