//! SQLite.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tower_storage_guard::{BoxError, store::SqliteStore};

use super::{Engine, FEW, Raw};

pub(crate) struct Sqlite {
    folder: TempDir,
}

impl Engine for Sqlite {
    const NAME: &str = "SQLite";
    type Store = SqliteStore;
    type Raw = RawSqlite;

    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder }
    }

    async fn store(&self) -> SqliteStore {
        SqliteStore::open(self.path()).expect("a file")
    }

    async fn raw(&self) -> RawSqlite {
        RawSqlite::open(&self.folder.path().join("raw.db")).expect("a file")
    }

    async fn fill(&self, scopes: u32) {
        // It creates the tables.
        drop(self.store().await);
        let file = Connection::open(self.path()).expect("the file");
        file.execute(
            "WITH RECURSIVE numbers (number) AS (
                SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number + 1 < ?1
            )
            INSERT INTO accounts (scope, used_bytes, used_objects)
            SELECT 'user:' || number, 1, 1 FROM numbers",
            [scopes],
        )
        .expect("room");
        file.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .expect("no reader blocks the checkpoint");
    }

    async fn size(&self) -> u64 {
        fs::metadata(self.path()).expect("the file").len()
    }

    async fn by_its_own_tool(&self, _: usize, _: bool) -> Option<f64> {
        None
    }
}

impl Sqlite {
    fn path(&self) -> PathBuf {
        self.folder.path().join("quota.db")
    }
}

/// One thread, with a connection for writes that may be lost in a power failure, and one for writes that may not.
pub(crate) struct RawSqlite {
    jobs: mpsc::Sender<Job>,
}

/// The number, whether it is a charge, and the channel of the waiting task.
type Job = (u32, bool, oneshot::Sender<rusqlite::Result<usize>>);

impl RawSqlite {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let hold = numbers(path, "NORMAL")?;
        let charge = numbers(path, "FULL")?;
        let (jobs, asked) = mpsc::channel::<Job>();
        thread::spawn(move || {
            let [mut hold, mut charge] = [&hold, &charge].map(|file| {
                let update = "UPDATE numbers SET used = used + 1 WHERE number = ?1";
                file.prepare(update).expect("the numbers are there")
            });
            for (number, is_charge, answer) in asked {
                let update = if is_charge { &mut charge } else { &mut hold };
                let _ = answer.send(update.execute([number]));
            }
        });
        Ok(Self { jobs })
    }
}

fn numbers(path: &Path, synchronous: &str) -> rusqlite::Result<Connection> {
    let file = Connection::open(path)?;
    file.busy_timeout(Duration::from_secs(5))?;
    file.pragma_update(None, "journal_mode", "WAL")?;
    file.pragma_update(None, "synchronous", synchronous)?;
    file.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY, used INTEGER NOT NULL);
        WITH RECURSIVE all_of_them (number) AS (
            SELECT 0 UNION ALL SELECT number + 1 FROM all_of_them WHERE number + 1 < {FEW}
        )
        INSERT OR IGNORE INTO numbers SELECT number, 0 FROM all_of_them;"
    ))?;
    Ok(file)
}

impl Raw for RawSqlite {
    async fn add(&self, number: u32, is_charge: bool) -> Result<(), BoxError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send((number, is_charge, answer))?;
        match answered.await?? {
            1 => Ok(()),
            _ => Err("no such number".into()),
        }
    }
}
