//! A WebDAV server that never promises more than it can keep.
//!
//! ```sh
//! cargo run --release --example webdav -- --limit /photos=10MiB
//! rclone copy ./photos :webdav:photos --webdav-url http://127.0.0.1:4918
//! ```
//!
//! `--help` lists the flags.

use std::{
    net::SocketAddr,
    path::{Component, Path, PathBuf},
    process::ExitCode,
    str::FromStr,
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
use dav_server::{DavConfig, DavHandler, DavMethod, DavMethodSet, memls::MemLs};
use tokio::task::spawn_blocking;
use tower_storage_guard::{
    BoxError, Headroom, Reservation, Scope, Scopes, StorageGuardLayer, Volume,
    dav::{Dav, Depth, Folder, Tree},
    quota::{Limits, MemoryQuota},
    refusal,
};

use self::{
    files::Files,
    shared::run::{asked_to_stop, listen, report},
};

#[path = "shared/dav_files.rs"]
mod files;
mod shared;

/// Serves a folder by WebDAV, and lets in only what there is room for.
#[derive(Clone, Debug, Parser)]
struct Flags {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4918")]
    listen: SocketAddr,

    /// Where the files are; made if missing. Only one server may use it at a time
    #[arg(long, default_value = "./files")]
    dir: PathBuf,

    /// What stays free on the disk
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    keep_free: ByteSize,

    /// What a collection may hold, with all that is below it, such as /photos=10MiB. Repeatable
    #[arg(long = "limit", value_name = "PATH=SIZE")]
    limits: Vec<Limit>,
}

#[derive(Clone, Debug)]
struct Limit {
    /// As seen from the root.
    path: PathBuf,
    bytes: ByteSize,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, bytes) = text.rsplit_once('=').ok_or("expected PATH=SIZE")?;
        let path = path.strip_prefix('/').ok_or("the path begins with a /")?;
        let path = Path::new(path);
        if !path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err("the path must not lead elsewhere".to_owned());
        }
        let bytes = bytes.parse();
        Ok(Self {
            path: path.components().collect(),
            bytes: bytes.map_err(|error| format!("the size: {error}"))?,
        })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    report(serve(Flags::parse()).await)
}

async fn serve(flags: Flags) -> Result<(), BoxError> {
    let at = flags.listen;
    let app = spawn_blocking(move || app(&flags)).await??;
    axum::serve(listen(at).await?, app)
        .with_graceful_shutdown(asked_to_stop())
        .await?;
    Ok(())
}

/// Blocks.
fn app(flags: &Flags) -> Result<Router, BoxError> {
    let files =
        Files::open(&flags.dir).map_err(|error| format!("{}: {error}", flags.dir.display()))?;
    let volume = Volume::open(&flags.dir)?.keep_free(Headroom::bytes(flags.keep_free.as_u64()));
    let tree = Folder::new(&flags.dir);
    let collections = Collections::count(&tree, &flags.limits)?;
    let quota = collections.quota.clone();
    let guard = StorageGuardLayer::new(volume)
        .quota(quota)
        .dialect(refusal::Dav::default())
        .webdav(Dav::new(tree).scope_by(move |_head, path| collections.scopes(path)));

    // A part of a file is not written to its place in one step, and its price is not that of the whole.
    let mut methods = DavMethodSet::all();
    methods.remove(DavMethod::Patch);
    let dav = DavHandler::builder()
        .locksystem(MemLs::new())
        .methods(methods)
        .build_handler();
    Ok(Router::new()
        .fallback(handle)
        .layer(guard)
        .with_state((dav, files)))
}

async fn handle(
    State((dav, files)): State<(DavHandler, Files)>,
    reservation: Option<Reservation>,
    request: Request,
) -> Response {
    if request.headers().contains_key(CONTENT_RANGE) {
        return (StatusCode::BAD_REQUEST, "files are written whole").into_response();
    }
    if let (Some(reservation), "LOCK" | "PROPPATCH") = (&reservation, request.method().as_str()) {
        // Locks are kept in memory, and properties are not kept at all.
        reservation.stored(0);
    }
    let files = files.for_request(reservation);
    let config = DavConfig::new().filesystem(Box::new(files.clone()));
    let mut response = dav.handle_with(config, request).await.map(Body::new);
    if let Some(failure) = files.failure() {
        // For the guard to look at.
        response.extensions_mut().insert(failure);
    }
    response
}

/// Who has limits, and how much they hold.
struct Collections {
    quota: MemoryQuota,
    paths: Vec<PathBuf>,
}

impl Collections {
    fn count(tree: &Folder, limits: &[Limit]) -> Result<Self, BoxError> {
        let quota = MemoryQuota::new(Limits::UNLIMITED);
        for Limit { path, bytes } in limits {
            let scope = scope(path);
            quota.set_limits(&scope, Limits::bytes(bytes.as_u64()));
            if let Some(used) = tree.measure(path, Depth::Infinity)? {
                quota.set_used(&scope, used);
            }
        }
        let paths = limits.iter().map(|limit| limit.path.clone()).collect();
        Ok(Self { quota, paths })
    }

    /// Those that a path is in.
    fn scopes(&self, path: &Path) -> Scopes {
        let around = self
            .paths
            .iter()
            .filter(|limited| path.starts_with(limited));
        around.map(|limited| scope(limited)).collect()
    }
}

fn scope(path: &Path) -> Scope {
    Scope::from(format_args!("collection:/{}", path.display()))
}
