//! Limits what each user stores. An overwrite is charged for the difference in size.
//!
//! ```sh
//! cargo run --features axum --example quota
//! curl -i -T README.md -H 'X-User: ann' http://127.0.0.1:3013/files/a # 201
//! head -c 1M /dev/zero | curl -i -X PUT --data-binary @- -H 'X-User: ann' http://127.0.0.1:3013/files/b # 507
//! ```

use std::{env, path::PathBuf};

use axum::http::{StatusCode, request::Parts};
use axum::{Router, body::Bytes, routing::put};
use tempfile::NamedTempFile;
use tokio::{fs, net::TcpListener, sync::Mutex};
use tower_storage_guard::axum::Failure;
use tower_storage_guard::quota::{Limits, MemoryQuota};
use tower_storage_guard::{Amount, BoxError, Reservation, StorageGuardLayer, Volume};

/// Locked while an upload replaces a file.
static REPLACING: Mutex<()> = Mutex::const_new(());

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:3013".to_owned());
    let dir = PathBuf::from(args.next().unwrap_or_default()).join("uploads");
    fs::create_dir_all(&dir).await?;
    env::set_current_dir(dir)?;
    let quota = MemoryQuota::new(Limits::bytes(1 << 20));
    let mut files = fs::read_dir(".").await?;
    while let Some(file) = files.next_entry().await? {
        if let Some((user, _)) = file.file_name().to_string_lossy().split_once('~') {
            quota.adjust(user, size_of(file.path()).await.into());
        }
    }
    let guard = StorageGuardLayer::new(Volume::open(".")?)
        .quota(quota)
        .scope_by(|head| target(head).map(|(user, _)| user))
        .price_by_async(|head, demand| {
            let path = target(head).map_or_else(PathBuf::new, |(_, path)| path);
            async move { demand.replacing(size_of(path).await) }
        });
    let file = put(put_file).layer(guard);
    let app = Router::new().route("/files/{name}", file);
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

/// The user and the file's path. Authentication belongs in a layer outside of the guard: here, any client
/// may claim to be any user.
fn target(head: &Parts) -> Option<(String, PathBuf)> {
    let user = head.headers.get("x-user")?.to_str().ok()?;
    let name = head.uri.path().rsplit('/').next()?;
    // Names must not lead out of the folder. Encoded names are refused, because they are not decoded here.
    let is_bad = |name: &str| name.starts_with('.') || name.contains(['/', '\\', ':', '%', '~']);
    // A part would replace the whole file.
    let is_part = head.headers.contains_key("content-range");
    let path = PathBuf::from(format!("{user}~{name}"));
    (!is_part && !is_bad(user) && !is_bad(name)).then(|| (user.to_owned(), path))
}

async fn size_of(path: PathBuf) -> Amount {
    let file = fs::metadata(path).await;
    file.map_or(Amount::ZERO, |file| Amount::new(file.len(), 1))
}

async fn put_file(head: Parts, held: Reservation, body: Bytes) -> Result<StatusCode, Failure> {
    let Some((_, path)) = target(&head) else {
        return Ok(StatusCode::BAD_REQUEST);
    };
    let temporary = NamedTempFile::new_in(".")?.into_temp_path();
    fs::write(&temporary, body).await?;
    let _replacing = REPLACING.lock().await;
    // The size may have changed since the guard looked at it: another upload may have replaced the file.
    held.replaces(size_of(path.clone()).await).await?;
    // Without an `await` after the rename, the handler cannot be cancelled before the guard charges.
    temporary.persist(path)?;
    Ok(StatusCode::CREATED)
}
