//! Guards an SQLite database: an item that does not fit into it, or on its disk, is refused with 507 before it is sent.
//!
//! ```sh
//! cargo run --features store-sqlite --example sqlite
//! curl -i -T README.md http://127.0.0.1:3015/items/a # 201
//! head -c 1999999 /dev/zero | curl -i -T - http://127.0.0.1:3015/items/b # 507
//! ```

use std::sync::{Arc, Mutex};
use std::{env, fs, io, path::PathBuf};

use axum::extract::{Path, State};
use axum::{Extension, Router, body::Bytes, http::StatusCode, routing::put};
use rusqlite::Connection;
use tokio::{net::TcpListener, task::spawn_blocking};
use tower_storage_guard::fault::Source;
use tower_storage_guard::{Amount, BoxError, Probe, Reading, StorageGuardLayer, Volume};

/// How large the database may become, in pages.
const MAX_PAGES: u32 = 256;
const PAGE: u32 = 4096;
/// What is written for each hundred bytes that are stored: each page once to the write-ahead log, and once to the database. The rest
/// is for the headers of both.
const WRITTEN_PERCENT: u32 = 210;
/// Pages of the trees, beside those that are filled with an item.
const TREES: Amount = Amount::bytes(4 * PAGE as u64);
/// Stays free on the disk, because a DELETE writes to the log too.
const FOR_DELETES: u64 = 128 << 10;

type Database = Arc<Mutex<Connection>>;

fn open(path: &PathBuf) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "page_size", PAGE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Not kept in the file: each connection has to set it.
    connection.pragma_update(None, "max_page_count", MAX_PAGES)?;
    Ok(connection)
}

/// Reads how much room there is in the database and on its disk, in bytes that can be written: the demand of a request counts them too.
struct Room {
    connection: Connection,
    path: PathBuf,
}

impl Probe for Room {
    fn read(&mut self) -> io::Result<Reading> {
        const PAGES: &str = "SELECT page_count, freelist_count, max_page_count, page_size
            FROM pragma_page_count, pragma_freelist_count, pragma_max_page_count, pragma_page_size";
        let columns = self.connection.query_row(PAGES, [], |row| {
            let columns = [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?];
            Ok(columns.map(|column: u32| u64::from(column)))
        });
        let [pages, unused, most, page] = columns.map_err(io::Error::other)?;
        let written = |pages: u64| pages * page * u64::from(WRITTEN_PERCENT) / 100;
        let in_database = written(most.saturating_sub(pages - unused));

        let disk = fs4::statvfs(&self.path)?;
        // What is in the log goes to the database, whose file grows by it.
        let in_log = (pages * page).saturating_sub(fs::metadata(&self.path)?.len());
        let free = disk.available_space().saturating_sub(in_log + FOR_DELETES);
        // A page that was freed is written to the log, and makes the file no larger.
        let on_disk = (free + unused * page).min(2 * free);
        let total = written(most).min(disk.total_space());
        Ok(Reading::new(in_database.min(on_disk), total))
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:3015".to_owned());
    let path = PathBuf::from(args.next().unwrap_or_default()).join("items.db");
    let connection = open(&path)?;
    connection.execute(
        "CREATE TABLE IF NOT EXISTS items (name TEXT PRIMARY KEY, content BLOB)",
        [],
    )?;
    let room = Room {
        connection: open(&path)?,
        path,
    };
    let guard = StorageGuardLayer::new(Volume::from_probe(room)?)
        .price_by(|_, demand| demand.copying(TREES).volume_percent(WRITTEN_PERCENT));
    let app = Router::new()
        .route(
            "/items/{name}",
            put(put_item).get(get_item).delete(delete_item),
        )
        .layer(guard)
        .with_state(Arc::new(Mutex::new(connection)));
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

/// The guard inspects the error in the response, and answers 507 if the database is full all the same.
type Failed = (StatusCode, Extension<Source>);

/// Runs a statement on a thread that may wait for the disk.
async fn on<T: Send + 'static>(
    database: Database,
    run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Failed> {
    let done = spawn_blocking(move || run(&database.lock().expect("no statement panics")));
    let done = done.await.map_err(BoxError::from);
    done.and_then(|done| Ok(done?)).map_err(|error| {
        let source = Extension(Source::new(error));
        (StatusCode::INTERNAL_SERVER_ERROR, source)
    })
}

async fn put_item(
    State(database): State<Database>,
    Path(name): Path<String>,
    content: Bytes,
) -> Result<StatusCode, Failed> {
    const PUT: &str = "INSERT OR REPLACE INTO items VALUES (?, ?)";
    on(database, move |items| {
        items.execute(PUT, (name, &content[..]))
    })
    .await?;
    Ok(StatusCode::CREATED)
}

async fn get_item(
    State(database): State<Database>,
    Path(name): Path<String>,
) -> Result<Vec<u8>, Failed> {
    const GET: &str = "SELECT content FROM items WHERE name = ?";
    on(database, move |items| {
        items.query_row(GET, [name], |row| row.get(0))
    })
    .await
}

/// Not guarded: it makes room.
async fn delete_item(
    State(database): State<Database>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failed> {
    const DELETE: &str = "DELETE FROM items WHERE name = ?";
    on(database, move |items| items.execute(DELETE, [name])).await?;
    Ok(StatusCode::NO_CONTENT)
}
