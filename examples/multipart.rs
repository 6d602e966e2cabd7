//! Stores the files of a form in a folder of their own: all of them or none.
//!
//! ```sh
//! cargo run --features axum --example multipart
//! curl -i -F a=@README.md -F b=@DESIGN.md http://127.0.0.1:3016/forms/1 # 201
//! curl -i -F a=@README.md -H 'Content-Length: 1000000000000000' http://127.0.0.1:3016/forms/2 # 507
//! ```

use std::{env, fs, path::PathBuf};

use axum::extract::{DefaultBodyLimit, Multipart, Path, State};
use axum::{Router, http::StatusCode, response::Result, routing::post};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tower_http::csrf::CsrfLayer;
use tower_storage_guard::{BoxError, Reservation, StorageGuardLayer, Volume, axum::Failure};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:3016".to_owned());
    let dir = PathBuf::from(args.next().unwrap_or_default()).join("uploads");
    fs::create_dir_all(&dir)?;
    let guard = StorageGuardLayer::new(Volume::open(&dir)?.keep_free(64 << 20));
    let app = Router::new()
        .route("/forms/{id}", post(post_form))
        // Pages of other sites may not send forms through a browser that has access.
        .layer((CsrfLayer::new(), DefaultBodyLimit::disable(), guard))
        .with_state(dir);
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

async fn post_form(
    State(dir): State<PathBuf>,
    Path(id): Path<u32>,
    reservation: Reservation,
    mut form: Multipart,
) -> Result<StatusCode> {
    let target = dir.join(id.to_string());
    if target.exists() {
        return Err(StatusCode::CONFLICT.into());
    }
    // Removed, with all that is in it, if the upload ends early.
    let folder = tempfile::tempdir_in(dir).map_err(Failure::from)?;
    let (mut bytes, mut files) = (0, 0);
    while let Some(mut field) = form.next_field().await? {
        let name = field.file_name().unwrap_or_default();
        let path = folder.path().join(name);
        // The name must not lead out of the folder, and a form has each name once.
        if name.starts_with('.') || name.contains(['/', '\\', ':', '\0']) || path.exists() {
            return Err(StatusCode::BAD_REQUEST.into());
        }
        let file = fs::File::create(path).map_err(Failure::from)?;
        // Tells the guard what is on the disk already, so that it is not counted twice.
        let mut file = reservation.async_writer(file);
        while let Some(chunk) = field.chunk().await? {
            file.write_all(&chunk).await.map_err(Failure::from)?;
            bytes += chunk.len() as u64;
        }
        // It writes in the background: only a flush reports that the disk was full.
        file.flush().await.map_err(Failure::from)?;
        files += 1;
    }
    fs::rename(folder.path(), target).map_err(Failure::from)?;
    // The defaults would be the length of the whole form, and one object.
    reservation.stored(bytes);
    reservation.made(files);
    Ok(StatusCode::CREATED)
}
