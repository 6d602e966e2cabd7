//! The connection, and everything that may happen to its file.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior,
};

use super::super::{StoreError, sql::milliseconds};

const SCHEMA: &str = include_str!("schema.sql");
/// The version of the schema, which is kept in the file.
const VERSION: i64 = 3;
/// What a file of version 2 misses.
const SINCE_2: &str = "
    ALTER TABLE accounts ADD COLUMN grace INTEGER;
    ALTER TABLE accounts ADD COLUMN over_bytes INTEGER;
    ALTER TABLE accounts ADD COLUMN over_objects INTEGER;";

/// How much of the disk is set aside in the file, and in its log: the file cannot grow on a full disk.
const ROOM: i64 = 1 << 20;
/// The log is written back to the file when it has this many pages, of 4 KiB each. It then begins again in the blocks that it has.
const MOST_IN_LOG: i64 = 250;
/// After this many steps that write, the room is looked after.
const STEPS: u32 = 1_000;

/// A larger difference between the machine's clock and a process's monotonic clock means that the former was set. In
/// milliseconds.
const SLACK: u64 = 1_000;

/// What a step does, and so how durable it has to be.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum StepKind {
    /// Writes nothing.
    Read,
    /// Writes what a power failure may take, as the request is lost with it. The disk is not waited for.
    Hold,
    /// Writes what must not be lost.
    Charge,
}

pub(super) struct Engine {
    path: PathBuf,
    /// None after a failure that a new connection may not have.
    open: Option<Open>,
    /// The file's time at the last step, and when that was by the monotonic clock.
    last: Option<(Instant, i64)>,
    /// Steps that have written.
    steps: u32,
}

struct Open {
    connection: Connection,
    file: Identity,
}

impl Engine {
    pub(super) fn open(path: PathBuf, deadline: Instant) -> Result<Self, StoreError> {
        let mut engine = Self {
            path,
            open: None,
            last: None,
            steps: 0,
        };
        engine.connection(deadline)?;
        Ok(engine)
    }

    /// Runs `work` in one transaction, with the time. Runs it twice if a new connection may help.
    pub(super) fn run<T>(
        &mut self,
        kind: StepKind,
        deadline: Instant,
        work: impl Fn(&Transaction<'_>, i64) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let attempt = match self.attempt(kind, deadline, &work) {
            // The tables were dropped or the file was replaced. Opening the file creates what is missing.
            Err(Failure::Broken(_)) => {
                self.open = None;
                self.attempt(kind, deadline, &work)
            }
            result => result,
        };
        if let Err(Failure::Broken(_)) = attempt {
            self.open = None;
        }
        Ok(attempt?)
    }

    fn attempt<T>(
        &mut self,
        kind: StepKind,
        deadline: Instant,
        work: &impl Fn(&Transaction<'_>, i64) -> rusqlite::Result<T>,
    ) -> Result<T, Failure> {
        let last = self.last;
        let connection = self.connection(deadline)?;
        connection.busy_timeout(rest(deadline))?;
        // With any of these, a crash of the process loses nothing. A step that writes uses BEGIN IMMEDIATE: SQLite does
        // not wait when a read transaction upgrades.
        let (synchronous, behavior) = match kind {
            StepKind::Read => ("NORMAL", TransactionBehavior::Deferred),
            StepKind::Hold => ("NORMAL", TransactionBehavior::Immediate),
            StepKind::Charge => ("FULL", TransactionBehavior::Immediate),
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        let transaction = connection.transaction_with_behavior(behavior)?;
        // The time is read after the wait for the lock.
        let now = time(&transaction, kind, last)?;
        let output = work(&transaction, now)?;
        transaction.commit()?;
        self.last = Some((Instant::now(), now));
        if kind != StepKind::Read {
            self.steps = self.steps.wrapping_add(1);
            if self.steps.is_multiple_of(STEPS)
                && let Some(open) = &mut self.open
            {
                // The step is done, whatever becomes of this.
                let _ = set_room_aside(&mut open.connection);
            }
        }
        Ok(output)
    }

    /// The connection, to the file that is there now.
    fn connection(&mut self, deadline: Instant) -> Result<&mut Connection, Failure> {
        let open = match self.open.take() {
            // Writes to a file that was deleted would be lost.
            Some(open) if identity(&self.path).is_ok_and(|file| file == open.file) => open,
            // Closed first: SQLite must not have one file open twice.
            old => {
                drop(old);
                let connection = connect(&self.path, deadline)?;
                let file = identity(&self.path).map_err(|error| {
                    let unread = StoreError::unavailable("cannot read the quota's file");
                    Failure::Broken(unread.with_source(error))
                })?;
                Open { connection, file }
            }
        };
        Ok(&mut self.open.insert(open).connection)
    }
}

enum Failure {
    /// The file is locked, or the disk is full. A new connection would not help, and this one can still read.
    Passing(StoreError),
    /// Any other failure.
    Broken(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull) => {
                Self::Passing(failed(error))
            }
            _ => Self::Broken(failed(error)),
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let (Failure::Passing(error) | Failure::Broken(error)) = failure;
        error
    }
}

fn failed(error: rusqlite::Error) -> StoreError {
    StoreError::unavailable("SQLite failed").with_source(error)
}

/// Checks that there are quotas in the file. Writes nothing to it.
pub(super) fn check(path: &Path, deadline: Instant) -> Result<(), StoreError> {
    let file = fs::metadata(path).map_err(|error| {
        StoreError::misconfigured("cannot read the quota's file").with_source(error)
    })?;
    if !file.is_file() {
        return Err(StoreError::misconfigured(
            "the path of the quota's file leads to no file",
        ));
    }
    match holds_quotas(path, deadline).map_err(failed)? {
        true => Ok(()),
        false => Err(StoreError::misconfigured("there are no quotas in the file")),
    }
}

fn holds_quotas(path: &Path, deadline: Instant) -> rusqlite::Result<bool> {
    // Opened for writing, because the index of the log may have to be created to read the log.
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
    Ok(tables == 3 && version > 0)
}

fn connect(path: &Path, deadline: Instant) -> Result<Connection, Failure> {
    loop {
        match prepared(path, deadline) {
            // SQLite does not wait by itself while another connection prepares the same file.
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
    // With a log, readers do not wait for writers, and a commit is one write.
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        let error = format!("the quota's file cannot have a log beside it: its mode is {mode}");
        return Err(Failure::Broken(StoreError::misconfigured(error)));
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if ![0, 2, VERSION].contains(&version) {
        let error = format!(
            "the quota's file is of version {version}, and this version of the crate reads {VERSION}"
        );
        return Err(Failure::Broken(StoreError::unreadable(error)));
    }
    if version == 2 {
        transaction.execute_batch(SINCE_2)?;
    }
    transaction.execute_batch(SCHEMA)?;
    // Nothing is written if nothing is missing.
    if version < VERSION {
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    connection.pragma_update(None, "wal_autocheckpoint", MOST_IN_LOG)?;
    set_room_aside(&mut connection)?;
    Ok(connection)
}

/// Makes pages that are free in the file, and lets the log grow by as much. On a disk that is full already there is what there
/// is.
fn set_room_aside(connection: &mut Connection) -> rusqlite::Result<()> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let free = pragma("page_size")?.saturating_mul(pragma("freelist_count")?);
    let path = connection.path().map(|path| format!("{path}-wal"));
    let log = path.and_then(|path| fs::metadata(path).ok());
    if free >= ROOM / 2 && log.is_some_and(|log| log.len() >= ROOM as u64) {
        return Ok(());
    }
    let grown = grow(connection);
    match grown.as_ref().map_err(rusqlite::Error::sqlite_error_code) {
        Err(Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy)) => Ok(()),
        _ => grown,
    }
}

fn grow(connection: &mut Connection) -> rusqlite::Result<()> {
    // What it has written is dropped again, and a crash of the machine may take it.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let filled = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    filled.execute_batch("CREATE TABLE room (content BLOB NOT NULL)")?;
    filled.execute("INSERT INTO room VALUES (zeroblob(?1))", [ROOM])?;
    filled.execute_batch("DROP TABLE room")?;
    filled.commit()
}

fn rest(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The file's time. The machine's clock may be set while holds are in flight, so it is corrected by the clock of a process
/// that has seen it before, which only measures how much time has passed. The file has the correction, for all processes.
fn time(
    tx: &Transaction<'_>,
    kind: StepKind,
    last: Option<(Instant, i64)>,
) -> rusqlite::Result<i64> {
    let clock = wall_clock();
    let ahead = tx
        .prepare_cached("SELECT ahead FROM clock")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let time = clock.saturating_sub(ahead.unwrap_or(0));
    let Some((at, then)) = last else {
        return Ok(time);
    };
    let expected = then.saturating_add(milliseconds(at.elapsed()));
    if time.abs_diff(expected) <= SLACK {
        return Ok(time);
    }
    if kind != StepKind::Read {
        tx.execute(
            "INSERT OR REPLACE INTO clock (one, ahead) VALUES (1, ?1)",
            [clock.saturating_sub(expected)],
        )?;
    }
    Ok(expected)
}

/// Milliseconds since 1970, by the clock of the machine.
fn wall_clock() -> i64 {
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

/// Elsewhere a file cannot be deleted while it is open.
#[cfg(not(unix))]
type Identity = ();

#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<Identity> {
    fs::metadata(path).map(drop)
}
