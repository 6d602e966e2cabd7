//! A store of JSON documents in PostgreSQL, or in SQLite, that answers 507 when its database is full.
//!
//! ```sh
//! cargo run --release -p documents -- --max-size 1MiB
//! curl -X PUT -d '{"hello": "world"}' http://127.0.0.1:3001/documents/a
//! curl http://127.0.0.1:3001/documents/a
//! ```
//!
//! That is SQLite. With `--database-url postgres://…` it is PostgreSQL. `--help` lists the flags and the routes.

use std::{fmt::Display, path::PathBuf, process::ExitCode, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_RANGE, CONTENT_TYPE},
    },
    response::{ErrorResponse, IntoResponse, Response},
    routing::get,
};
use bytesize::ByteSize;
use clap::Parser;
use serde::{Deserialize, de::IgnoredAny};
use sqlx::{
    Connection, PgPool, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tokio::task::block_in_place;
use tower_storage_guard::{BoxError, StorageGuardLayer, Volume, axum::Failure, quota::NoQuota};

use example_support::{
    address::Address,
    claim::Claim,
    created::Created,
    database,
    flags::{self, Program},
    keep_free::{KeepFree, read_again},
    log::LogFailures,
    run::{report, started, until_stopped},
};

/// Stores JSON documents, and says so when the database is full.
#[derive(Clone, Debug, Parser)]
struct Flags {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", required = false)]
    listen: Address,

    /// A database of PostgreSQL, such as postgres://user@localhost/documents. Without it, SQLite is used
    #[arg(long, value_name = "URL", conflicts_with = "max_size")]
    database_url: Option<String>,

    /// Where the database of SQLite is; made if missing
    #[arg(long, default_value = "./documents")]
    dir: PathBuf,

    /// How large the database of SQLite may become
    #[arg(long, value_name = "SIZE", value_parser = max_size)]
    max_size: Option<ByteSize>,

    /// What writes leave free on the disk of SQLite, a size or a share such as 5%, so that documents can be removed: a removal is
    /// written to the log first
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "16MiB",
        conflicts_with = "database_url"
    )]
    keep_free: KeepFree,
}

impl Flags {
    /// The file of SQLite.
    fn database(&self) -> PathBuf {
        self.dir.join("documents.db")
    }
}

/// The size of a page of SQLite.
const PAGE: u32 = 4096;

/// A size that the table fits into. SQLite takes 0 pages for no limit.
fn max_size(text: &str) -> Result<ByteSize, String> {
    const LEAST: ByteSize = ByteSize(4 * PAGE as u64);

    let size: ByteSize = text.parse()?;
    match size >= LEAST {
        true => Ok(size),
        false => Err(format!("the least is {LEAST}")),
    }
}

const PROGRAM: Program = Program {
    name: env!("CARGO_BIN_NAME"),
    listen: "127.0.0.1:3001",
    routes: "  \
  GET    /documents/ID  reads a document
  PUT    /documents/ID  stores a document
  DELETE /documents/ID  removes a document",
};

#[tokio::main]
async fn main() -> ExitCode {
    report(serve(flags::read(PROGRAM)).await)
}

async fn serve(flags: Flags) -> Result<(), BoxError> {
    // Before anything is created.
    let listener = flags.listen.bind().await?;
    let mut created = Created::default();
    let (store, guard) = match &flags.database_url {
        Some(url) => {
            // Only PostgreSQL knows how much room it has, so nothing is reserved there.
            let guard = StorageGuardLayer::quota_only(NoQuota);
            (Store::of_postgres(url).await?, guard)
        }
        None => {
            let (claim, volume) = block_in_place(|| prepare(&flags, &mut created))?;
            // Of the disk that SQLite is on, a part stays free.
            let store = Store::of_sqlite(&flags, claim).await?;
            read_again(&volume).await;
            (store, StorageGuardLayer::new(volume))
        }
    };
    store.create_table().await?;
    started(&listener, created)?;
    let serving = axum::serve(listener, app(store, guard));
    until_stopped(|stop| serving.with_graceful_shutdown(stop).into_future()).await
}

/// Claims the folder of SQLite, and guards its disk. Blocks.
fn prepare(flags: &Flags, created: &mut Created) -> Result<(Claim, Volume), BoxError> {
    let claim = Claim::of(&flags.dir, created)?;
    let volume = flags.keep_free.guard(&flags.dir)?;
    created.will_be_database(&flags.database());
    Ok((claim, volume))
}

/// How many bytes reach the disk for each hundred of a document: SQLite writes each page to its log, and then to the file.
const WRITTEN: u32 = 210;

fn app(store: Store, guard: StorageGuardLayer) -> Router {
    let guard = guard.price_by(|_, demand| demand.with_objects(0).volume_percent(WRITTEN));
    let document = get(read).put(write).delete(delete);
    Router::new()
        .route("/documents/{id}", document)
        .layer(guard)
        .layer(LogFailures::default())
        .with_state(Arc::new(store))
}

async fn write(
    State(store): State<Arc<Store>>,
    Path(id): Path<Id>,
    headers: HeaderMap,
    document: String,
) -> Result<StatusCode, ErrorResponse> {
    if headers.contains_key(CONTENT_RANGE) {
        // A part would replace the whole (RFC 9110, section 14.5).
        return Err(bad_request("documents are written whole").into());
    }
    serde_json::from_str::<IgnoredAny>(&document).map_err(bad_request)?;
    let written = store.write(&id.0, &document).await.map_err(failed)?;
    Ok(match written {
        Written::New => StatusCode::CREATED,
        Written::Replaced => StatusCode::NO_CONTENT,
    })
}

async fn read(State(store): State<Arc<Store>>, Path(id): Path<Id>) -> Result<Response, Failure> {
    Ok(match store.read(&id.0).await? {
        Some(document) => ([(CONTENT_TYPE, "application/json")], document).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

async fn delete(
    State(store): State<Arc<Store>>,
    Path(id): Path<Id>,
) -> Result<StatusCode, Failure> {
    Ok(if store.delete(&id.0).await? {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    })
}

/// A database error, kept for the guard to classify.
fn failed(error: sqlx::Error) -> ErrorResponse {
    Failure::from(error).into()
}

fn bad_request(error: impl Display) -> Response {
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}

/// The key of a document. Every database can index it, and accepts its characters.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Id(String);

impl TryFrom<String> for Id {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        if id.len() > 255 || id.contains('\0') {
            return Err("an id has at most 255 bytes, and none of them is zero");
        }
        Ok(Self(id))
    }
}

/// The documents, in one table.
enum Store {
    Postgres(PgPool),
    /// In a folder that no other server uses.
    Sqlite {
        pool: SqlitePool,
        _claim: Claim,
    },
}

enum Written {
    New,
    Replaced,
}

/// Runs a statement that both databases understand, and returns the number of affected rows.
macro_rules! execute {
    ($store:expr, $sql:expr, $($value:expr),*) => {
        match $store {
            Store::Postgres(pool) => {
                sqlx::query($sql)$(.bind($value))*.execute(pool).await?.rows_affected()
            }
            Store::Sqlite { pool, .. } => {
                sqlx::query($sql)$(.bind($value))*.execute(pool).await?.rows_affected()
            }
        }
    };
}

impl Store {
    async fn of_postgres(url: &str) -> Result<Self, BoxError> {
        let options = database::parse(url).map_err(|error| format!("--database-url: {error}"))?;
        let connected = database::connect(&options).await;
        let connected =
            connected.map_err(|error| format!("{}: {error}", database::name(&options)))?;
        connected.close().await?;
        Ok(Self::Postgres(PgPool::connect_lazy_with(options)))
    }

    async fn of_sqlite(flags: &Flags, claim: Claim) -> Result<Self, BoxError> {
        // Only needed for transactions: sqlx 0.9 loses what is committed on a connection after a rollback has failed.
        let pool = SqlitePoolOptions::new().after_release(|connection, _| {
            Box::pin(async move {
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        });
        let path = flags.database();
        let named = |error| format!("{}: {error}", path.display());
        let pool = pool.connect_with(sqlite(flags)).await.map_err(named)?;
        Ok(Self::Sqlite {
            pool,
            _claim: claim,
        })
    }

    async fn create_table(&self) -> sqlx::Result<()> {
        const TABLE: &str =
            "CREATE TABLE IF NOT EXISTS documents (id text PRIMARY KEY, content text NOT NULL)";
        execute!(self, TABLE,);
        Ok(())
    }

    async fn write(&self, id: &str, document: &str) -> sqlx::Result<Written> {
        const UPDATE: &str = "UPDATE documents SET content = $2 WHERE id = $1";
        const INSERT: &str = "INSERT INTO documents (id, content) VALUES ($1, $2) \
            ON CONFLICT (id) DO UPDATE SET content = excluded.content";
        if execute!(self, UPDATE, id, document) > 0 {
            return Ok(Written::Replaced);
        }
        execute!(self, INSERT, id, document);
        Ok(Written::New)
    }

    async fn read(&self, id: &str) -> sqlx::Result<Option<String>> {
        const SELECT: &str = "SELECT content FROM documents WHERE id = $1";
        match self {
            Self::Postgres(pool) => {
                sqlx::query_scalar(SELECT)
                    .bind(id)
                    .fetch_optional(pool)
                    .await
            }
            Self::Sqlite { pool, .. } => {
                sqlx::query_scalar(SELECT)
                    .bind(id)
                    .fetch_optional(pool)
                    .await
            }
        }
    }

    async fn delete(&self, id: &str) -> sqlx::Result<bool> {
        Ok(execute!(self, "DELETE FROM documents WHERE id = $1", id) > 0)
    }
}

/// A database of a limited size, whose readers do not wait for writers.
fn sqlite(flags: &Flags) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new()
        .filename(flags.database())
        .create_if_missing(true)
        .page_size(PAGE)
        .journal_mode(SqliteJournalMode::Wal);
    match flags.max_size {
        Some(size) => options.pragma(
            "max_page_count",
            (size.as_u64() / u64::from(PAGE)).to_string(),
        ),
        None => options,
    }
}
