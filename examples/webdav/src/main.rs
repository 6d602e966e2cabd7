//! A WebDAV server that never admits more than it can store.
//!
//! ```sh
//! cargo run --release -p webdav -- --limit /photos=10MiB
//! rclone copy ./photos :webdav:photos --webdav-url http://127.0.0.1:4918
//! ```
//!
//! `--help` lists the flags and the routes.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::Arc,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_RANGE},
    response::{IntoResponse, Response},
};
use bytesize::ByteSize;
use clap::Parser;
use dav_server::{DavConfig, DavHandler, DavMethod, DavMethodSet, davpath::DavPath, fs::FsError};
use example_support::{
    address::Address,
    claim::Claim,
    created::Created,
    flags::{self, Program},
    keep_free::KeepFree,
    log::LogFailures,
    run::{report, started, until_stopped},
};
use tokio::task::block_in_place;
use tower_storage_guard::{
    BoxError, Reservation, StorageGuardLayer, Volume,
    dav::{CollectionQuota, Folder, WebDav},
    quota::Limits,
};

use self::{files::Files, locks::Locks};

mod files;
mod locks;

/// Serves a folder by WebDAV, and lets in only what there is room for.
#[derive(Clone, Debug, Parser)]
struct Flags {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", required = false)]
    listen: Address,

    /// Where the files are; made if missing. Only one server may use it at a time
    #[arg(long, default_value = "./files")]
    dir: PathBuf,

    /// What stays free on the disk: a size, or a share such as 5%
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    keep_free: KeepFree,

    /// What a collection may hold, with all that is below it, such as /photos=10MiB. Repeatable
    #[arg(long = "limit", value_name = "PATH=SIZE")]
    limits: Vec<Limit>,
}

#[derive(Clone, Debug)]
struct Limit {
    /// Relative to the root.
    path: PathBuf,
    bytes: ByteSize,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, bytes) = text.rsplit_once('=').ok_or("expected PATH=SIZE")?;
        let path = path.strip_prefix('/').ok_or("the path begins with a /")?;
        let bytes = bytes.parse();
        Ok(Self {
            // `/a` and `/a/` are one.
            path: Path::new(path).components().collect(),
            bytes: bytes.map_err(|error| format!("the size: {error}"))?,
        })
    }
}

impl Flags {
    /// Checks what clap cannot: that no collection has two limits.
    fn check(&self) -> Result<(), BoxError> {
        let mut paths = HashSet::new();
        match self.limits.iter().find(|limit| !paths.insert(&limit.path)) {
            Some(Limit { path, .. }) => {
                Err(format!("--limit: there are two limits for /{}", path.display()).into())
            }
            None => Ok(()),
        }
    }
}

const PROGRAM: Program = Program {
    name: env!("CARGO_BIN_NAME"),
    listen: "127.0.0.1:4918",
    routes: "  \
  GET, HEAD            /PATH  reads a file
  PUT                  /PATH  stores a file
  MKCOL                /PATH  creates a collection
  COPY, MOVE, DELETE   /PATH  of a file, or of a collection with all that is below it
  PROPFIND, PROPPATCH  /PATH  properties, among them what is used and available
  LOCK, UNLOCK         /PATH  locks, which are kept in memory",
};

#[tokio::main]
async fn main() -> ExitCode {
    report(serve(flags::read(PROGRAM)).await)
}

async fn serve(flags: Flags) -> Result<(), BoxError> {
    flags.check()?;
    // Before anything is created.
    let listener = flags.listen.bind().await?;
    let mut created = Created::default();
    let server = block_in_place(|| Server::open(&flags, &mut created))?;
    // Otherwise the first requests would wait for it.
    server.collections.rescan().await?;
    started(&listener, created)?;
    let serving = axum::serve(listener, app(server));
    until_stopped(|stop| serving.with_graceful_shutdown(stop).into_future()).await
}

fn app(server: Server) -> Router {
    // Neither properties nor locks are kept on the disk.
    let dav = WebDav::new(server.tree.clone()).stores_body_when(|_| false);
    let guard = StorageGuardLayer::new(server.volume.clone())
        .quota(server.collections.clone())
        .webdav(dav);
    Router::new()
        .fallback(handle)
        .layer(guard)
        .layer(LogFailures::default())
        .with_state(server)
}

#[derive(Clone)]
struct Server {
    dav: DavHandler,
    files: Files,
    locks: Locks,
    tree: Folder,
    collections: CollectionQuota,
    volume: Volume,
    _claim: Claim,
}

impl Server {
    /// Creates missing folders, and removes leftovers. Blocks.
    fn open(flags: &Flags, created: &mut Created) -> Result<Self, BoxError> {
        let dir = &flags.dir;
        let claim = Claim::of(dir, created)?;
        let volume = flags.keep_free.guard(dir)?;
        let files = Files::open(dir, created)?;
        let tree = Folder::new(dir);
        let collections = CollectionQuota::new(tree.clone());
        for Limit { path, bytes } in &flags.limits {
            collections.set_limits(path, Limits::bytes(bytes.as_u64()))?;
        }
        // A part of a file is not written atomically, and its price is not that of the whole.
        let mut methods = DavMethodSet::all();
        methods.remove(DavMethod::Patch);
        Ok(Self {
            dav: DavHandler::builder().methods(methods).build_handler(),
            files,
            locks: Locks::new(),
            tree,
            collections,
            volume,
            _claim: claim,
        })
    }

    /// The files, as a request sees them.
    fn files_for(&self, request: &Request, reservation: Option<Reservation>) -> Files {
        let files = self.files.for_request(reservation);
        // dav-server asks for figures once in a request. They are those of its target, not of resources below it.
        match DavPath::from_uri(request.uri()) {
            Ok(path) if is_alone(request) && request.method().as_str() == "PROPFIND" => {
                let mut figures = self
                    .collections
                    .dav_quota(&self.volume, path.as_rel_ospath());
                if figures.available.is_some() && figures.used.is_none() {
                    // Only the disk limits it, so what is used of that counts (RFC 4331, section 4).
                    let disk = self.volume.status();
                    figures.used = Some(disk.total.saturating_sub(disk.available));
                }
                files.with_quota(path, figures)
            }
            _ => files,
        }
    }

    /// The same, with a copy of what a COPY is about.
    fn files_to_copy(&self, request: &Request, files: Files) -> Result<Files, FsError> {
        if request.method().as_str() != "COPY" {
            return Ok(files);
        }
        match DavPath::from_uri(request.uri()) {
            Ok(source) if files.has_to_copy(&source, is_alone(request)) => files.staging(&source),
            _ => Ok(files),
        }
    }
}

/// Whether a request is about a resource without those below it.
fn is_alone(request: &Request) -> bool {
    let depth = request.headers().get("depth");
    depth.is_some_and(|depth| depth == "0")
}

async fn handle(
    State(server): State<Server>,
    reservation: Option<Reservation>,
    request: Request,
) -> Response {
    if request.headers().contains_key(CONTENT_RANGE) {
        return (StatusCode::BAD_REQUEST, "files are written whole").into_response();
    }
    if let (Some(reservation), "LOCK" | "PROPPATCH") = (&reservation, request.method().as_str()) {
        // Locks are kept in memory, and properties are not kept.
        reservation.stored(0);
    }
    let files = server.files_for(&request, reservation);
    if request.method().as_str() == "LOCK"
        && DavPath::from_uri(request.uri()).is_ok_and(|path| !files.has_parent_of(&path))
    {
        // dav-server would remember the path for ever.
        return StatusCode::CONFLICT.into_response();
    }
    let mut response = match server.files_to_copy(&request, files.clone()) {
        Ok(files) => {
            let locks = server.locks.for_request(Arc::clone(files.failure()));
            let config = DavConfig::new()
                .filesystem(Box::new(files))
                .locksystem(Box::new(locks));
            server.dav.handle_with(config, request).await.map(Body::new)
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    if let Some(failure) = files.failure().get() {
        // For the guard to classify.
        response.extensions_mut().insert(failure.clone());
    }
    response
}
