//! Records of several clients in SQLite with a write-ahead log, by sqlx, on the guarded disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path as UrlPath, State},
    http::StatusCode,
    routing::post,
};
use futures_util::future::join_all;
use reqwest::Client;
use sqlx::{
    Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use test_support::{
    mounts::{in_runtime, tmpfs, with_own_mounts},
    server::{Server, serve},
};
use tower_storage_guard::{Probe, Reading, StorageGuardLayer, Volume, axum::Failure};

use crate::clients::{CLIENTS, status_of, with};

const DATABASE: &str = "records.db";
/// Records of one request, which are stored in one transaction.
const RECORDS: usize = 16;
/// The size of a record, in bytes.
const RECORD: usize = 16 << 10;
/// Requests of each client, one after the other.
const BATCHES: u8 = 6;

fn options(disk: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(disk.join(DATABASE))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
}

async fn app(disk: &Path, pool: SqlitePoolOptions) -> Router {
    let pool = pool.max_connections(4);
    let pool = pool.connect_with(options(disk)).await.unwrap();
    let table = "CREATE TABLE records (client, batch, number, content, PRIMARY KEY (client, batch, number))";
    sqlx::query(table).execute(&pool).await.unwrap();
    Router::new()
        .route("/records/{client}/{batch}", post(add))
        .layer(DefaultBodyLimit::disable())
        .with_state(pool)
}

async fn add(
    State(pool): State<SqlitePool>,
    UrlPath((client, batch)): UrlPath<(u8, u8)>,
    content: Bytes,
) -> Result<StatusCode, Failure> {
    let mut transaction = pool.begin().await?;
    for (number, record) in content.chunks(RECORD).enumerate() {
        sqlx::query("INSERT INTO records VALUES (?, ?, ?, ?)")
            .bind(client)
            .bind(batch)
            .bind(number as i64)
            .bind(record)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(StatusCode::CREATED)
}

async fn unguarded(disk: &Path) -> Server {
    serve(app(disk, SqlitePoolOptions::new()).await).await
}

async fn guarded(disk: &Path) -> Server {
    // See the documentation of `fault`: sqlx loses what is committed on a connection after a full disk.
    let pool = SqlitePoolOptions::new().after_release(|connection, _| {
        Box::pin(async move {
            connection.ping().await?;
            Ok(!connection.is_in_transaction())
        })
    });
    let app = app(disk, pool).await;
    // Each page is written to the log, and to the database.
    let guard =
        StorageGuardLayer::new(Room::volume(disk)).price_by(|_, demand| demand.volume_percent(210));
    serve(app.layer(guard)).await
}

/// The room of the disk, less what the log still owes to the database: statvfs does not know of it.
struct Room {
    database: rusqlite::Connection,
    path: PathBuf,
}

impl Room {
    fn volume(disk: &Path) -> Volume {
        let path = disk.join(DATABASE);
        let database = rusqlite::Connection::open(&path).unwrap();
        Volume::from_probe(Self { database, path }).unwrap()
    }
}

impl Probe for Room {
    fn read(&mut self) -> io::Result<Reading> {
        let pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        let database = self.database.query_row(pages, [], |row| row.get(0));
        let database: u32 = database.map_err(io::Error::other)?;
        let in_log = u64::from(database).saturating_sub(fs::metadata(&self.path)?.len());
        let disk = fs4::statvfs(&self.path)?;
        let available = disk.available_space().saturating_sub(in_log);
        Ok(Reading::new(available, disk.total_space()))
    }
}

fn batch(client: u8, batch: u8) -> Vec<u8> {
    (0..RECORDS * RECORD)
        .map(|at| (at % 251) as u8 ^ client ^ (batch << 4))
        .collect()
}

/// The answers to all batches of all clients.
async fn stampede(server: &Server, is_chunked: bool) -> Vec<((u8, u8), Option<u16>)> {
    let clients = (0..CLIENTS).map(async |client| {
        let mut answers = Vec::new();
        let connection = Client::new();
        for number in 0..BATCHES {
            let url = format!("{}/records/{client}/{number}", server.url());
            let request = with(connection.post(url), batch(client, number), is_chunked);
            answers.push(((client, number), status_of(request).await));
        }
        answers
    });
    join_all(clients).await.concat()
}

/// Whether a batch is stored. Panics if only a part of it is.
async fn is_stored(database: &mut SqliteConnection, (client, number): (u8, u8)) -> bool {
    let select = "SELECT content FROM records WHERE client = ? AND batch = ? ORDER BY number";
    let rows: Vec<Vec<u8>> = sqlx::query_scalar(select)
        .bind(client)
        .bind(number)
        .fetch_all(database)
        .await
        .unwrap();
    let content = rows.concat();
    assert!(
        content.is_empty() || content == batch(client, number),
        "torn: {client} {number}"
    );
    !content.is_empty()
}

/// How many batches were acknowledged, and how many of these are stored. What was not is not.
async fn stored(disk: &Path, answers: &[((u8, u8), Option<u16>)]) -> (usize, usize) {
    let mut database = SqliteConnection::connect_with(&options(disk))
        .await
        .unwrap();
    let (mut acknowledged, mut kept) = (0, 0);
    for (batch, answer) in answers {
        let is_stored = is_stored(&mut database, *batch).await;
        if *answer == Some(201) {
            acknowledged += 1;
            kept += usize::from(is_stored);
        } else {
            assert!(!is_stored, "{batch:?} was answered {answer:?}");
        }
    }
    (acknowledged, kept)
}

/// Whether there is room to move what is in the log to the database. Until then nothing can be deleted either.
async fn can_checkpoint(disk: &Path) -> bool {
    let mut database = SqliteConnection::connect_with(&options(disk))
        .await
        .unwrap();
    let checkpoint = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)");
    checkpoint.execute(&mut database).await.is_ok()
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn before() {
    with_own_mounts(|| {
        for is_chunked in [false, true] {
            // Which requests fail is up to the machine, so one of three runs has to show it: sqlx loses some of what was
            // acknowledged, and the disk is so full that nothing can be deleted.
            let mut runs = (0..3).map(|_| without_a_guard(is_chunked));
            assert!(runs.any(|(is_lost, is_stuck)| is_lost && is_stuck));
        }
    });
}

/// Whether something was lost that had been acknowledged, and whether the log could not be moved to the database.
fn without_a_guard(is_chunked: bool) -> (bool, bool) {
    let mut found = (false, false);
    in_runtime(async {
        let folder = tempfile::tempdir().unwrap();
        let disk = tmpfs(folder.path(), "size=8m");
        let server = unguarded(&disk).await;
        let answers = stampede(&server, is_chunked).await;
        let (acknowledged, kept) = stored(&disk, &answers).await;
        assert!(answers.iter().any(|(_, answer)| *answer == Some(500)));
        found = (kept < acknowledged, !can_checkpoint(&disk).await);
    });
    found
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn after() {
    with_own_mounts(|| {
        for is_chunked in [false, true] {
            in_runtime(async {
                let folder = tempfile::tempdir().unwrap();
                let disk = tmpfs(folder.path(), "size=8m");
                let server = guarded(&disk).await;
                let answers = stampede(&server, is_chunked).await;
                let (acknowledged, kept) = stored(&disk, &answers).await;
                assert_eq!(kept, acknowledged);
                let is_told = |answer: &Option<u16>| matches!(answer, Some(201 | 507));
                assert!(
                    answers.iter().all(|(_, answer)| is_told(answer)),
                    "{answers:?}"
                );
                // 8 MiB have room for 15 batches that are written twice.
                assert!((14..=15).contains(&kept), "{kept} are stored");
                assert!(can_checkpoint(&disk).await);
            });
        }
    });
}
