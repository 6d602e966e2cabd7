//! A store of JSON documents in PostgreSQL, or in SQLite, that answers 507 when its database is full.
//!
//! ```sh
//! cargo run --release -p documents -- --max-size 1MiB
//! curl -X PUT -d '{"hello": "world"}' http://127.0.0.1:3000/documents/a
//! curl http://127.0.0.1:3000/documents/a
//! ```
//!
//! That is SQLite. With `--database-url postgres://…` it is PostgreSQL. `--help` lists the flags.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

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
use tower_storage_guard::{
    BoxError, Headroom, StorageGuardLayer, Volume, axum::Failure, quota::NoQuota,
};

use example_support::{
    claim::Claim,
    run::{listen, report, until_stopped},
};

/// Stores JSON documents, and says so when the database is full.
#[derive(Clone, Debug, Parser)]
struct Flags {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,

    /// A database of PostgreSQL, such as postgres://user@localhost/documents. Without it, SQLite is used
    #[arg(long, value_name = "URL", conflicts_with = "max_size")]
    database_url: Option<String>,

    /// Where the database of SQLite is; made if missing
    #[arg(long, default_value = "./documents")]
    dir: PathBuf,

    /// How large the database of SQLite may become
    #[arg(long, value_name = "SIZE")]
    max_size: Option<ByteSize>,

    /// What writes leave free on the disk of SQLite, so that documents can be removed: a removal is written to the log first
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "16MiB",
        conflicts_with = "database_url"
    )]
    keep_free: ByteSize,
}

#[tokio::main]
async fn main() -> ExitCode {
    report(serve(Flags::parse()).await)
}

async fn serve(flags: Flags) -> Result<(), BoxError> {
    let store = Store::open(&flags).await?;
    let guard = guard(&flags)?;
    let serving = axum::serve(listen(flags.listen).await?, app(store, guard));
    until_stopped(|stop| serving.with_graceful_shutdown(stop).into_future()).await
}

/// How many bytes reach the disk for each hundred of a document: SQLite writes each page to its log, and then to the file.
const WRITTEN: u32 = 210;

/// Recognises the errors that report a full database. Only PostgreSQL knows how much room it has, so nothing is reserved there.
/// Of the disk that SQLite is on, a part stays free.
fn guard(flags: &Flags) -> Result<StorageGuardLayer, BoxError> {
    if flags.database_url.is_some() {
        return Ok(StorageGuardLayer::quota_only(NoQuota));
    }
    let volume = Volume::open(&flags.dir)?;
    let keep_free = Headroom::bytes(flags.keep_free.as_u64());
    Ok(StorageGuardLayer::new(volume.keep_free(keep_free)))
}

fn app(store: Store, guard: StorageGuardLayer) -> Router {
    let guard = guard.price_by(|_, demand| demand.with_objects(0).volume_percent(WRITTEN));
    let document = get(read).put(write).delete(delete);
    Router::new()
        .route("/documents/{id}", document)
        .layer(guard)
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
    /// Creates the table if it is missing.
    async fn open(flags: &Flags) -> Result<Self, BoxError> {
        let store = match &flags.database_url {
            Some(url) => Self::Postgres(PgPool::connect(url).await?),
            None => {
                let _claim = Claim::of(&flags.dir)?;
                // Only needed for transactions: sqlx 0.9 loses what is committed on a connection after a rollback has failed.
                let pool = SqlitePoolOptions::new().after_release(|connection, _| {
                    Box::pin(async move {
                        connection.ping().await?;
                        Ok(!connection.is_in_transaction())
                    })
                });
                let pool = pool.connect_with(sqlite(flags)).await?;
                Self::Sqlite { pool, _claim }
            }
        };
        const TABLE: &str =
            "CREATE TABLE IF NOT EXISTS documents (id text PRIMARY KEY, content text NOT NULL)";
        execute!(&store, TABLE,);
        Ok(store)
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
    const PAGE: u32 = 4096;

    let options = SqliteConnectOptions::new()
        .filename(flags.dir.join("documents.db"))
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
