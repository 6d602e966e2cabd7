//! Guards a disk: an upload that does not fit on it is refused with 507 before the handler runs.
//!
//! ```sh
//! cargo run --example minimal
//! curl -i -T README.md http://127.0.0.1:3010/files/a # 201
//! curl -i -T README.md -H 'Content-Length: 1000000000000000' http://127.0.0.1:3010/files/b # 507
//! ```

use std::{env, fs, path::PathBuf};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Router, body::Body, routing::put};
use futures_util::TryStreamExt;
use tempfile::NamedTempFile;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tower_storage_guard::fault::Source;
use tower_storage_guard::{BoxError, Headroom, Reservation, StorageGuardLayer, Volume};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:3010".to_owned());
    let dir = PathBuf::from(args.next().unwrap_or_default()).join("uploads");
    fs::create_dir_all(&dir)?;
    let volume = Volume::open(&dir)?.keep_free(Headroom::bytes(64 << 20));
    let app = Router::new()
        .route("/files/{name}", put(put_file))
        .layer(StorageGuardLayer::new(volume))
        .with_state(dir);
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

type PutResult = Result<StatusCode, (StatusCode, Extension<Source>)>;

async fn put_file(
    State(dir): State<PathBuf>,
    Path(name): Path<String>,
    Extension(reservation): Extension<Reservation>,
    headers: HeaderMap,
    body: Body,
) -> PutResult {
    // The name must not lead out of the folder. Names of temporary files begin with a dot.
    let is_plain = !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']);
    // A part would replace the whole file.
    if !is_plain || headers.contains_key("content-range") {
        return Ok(StatusCode::BAD_REQUEST);
    }
    let target = dir.join(name);
    store(body, reservation, target).await.map_err(|error| {
        // The guard inspects the error in the response, and answers 507 if the disk was full.
        let source = Extension(Source::new(error));
        (StatusCode::INTERNAL_SERVER_ERROR, source)
    })
}

async fn store(
    body: Body,
    reservation: Reservation,
    target: PathBuf,
) -> Result<StatusCode, BoxError> {
    let file = NamedTempFile::new_in(target.parent().unwrap_or(&target))?;
    // Tells the guard what is on the disk already, so that it is not counted twice.
    let mut file = reservation.async_writer(file);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.try_next().await? {
        file.write_all(&chunk).await?;
    }
    // It writes in the background: only its end reports that the disk was full.
    file.into_inner().await?.persist(target)?;
    Ok(StatusCode::CREATED)
}
