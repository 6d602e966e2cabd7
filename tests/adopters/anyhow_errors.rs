//! A service whose error is `anyhow::Error`, made by a `?` deep in it, with no context.

use std::{fs, io::Write, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use reqwest::Client;
use test_support::{
    mounts::{fill_but, with_own_mounts},
    server::{Server, serve},
};
use tower::{Layer, service_fn};
use tower_storage_guard::{BoxError, Reservation, StorageGuardLayer, Volume};

use crate::clients::{
    Left, assert_all_that_fit, assert_some_are_torn, left, on_a_small_disk, stampede, status_of,
};

type Reply = Response<Full<Bytes>>;

async fn handle<B>(folder: Arc<Path>, request: Request<B>) -> anyhow::Result<Reply>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let name = request.uri().path().rsplit('/').next().unwrap_or_default();
    let path = folder.join(name);
    let mut reply = Reply::default();
    if request.method() == Method::PUT {
        put(&path, request).await?;
        *reply.status_mut() = StatusCode::CREATED;
    } else {
        // A GET is not guarded, but it may store something.
        deep(&path)?;
    }
    Ok(reply)
}

/// Writes a preview.
fn deep(path: &Path) -> anyhow::Result<()> {
    deeper(path)?;
    Ok(())
}

fn deeper(path: &Path) -> anyhow::Result<()> {
    fs::write(path.with_extension("preview"), [7; 100_000])?;
    Ok(())
}

async fn put<B>(path: &Path, request: Request<B>) -> anyhow::Result<()>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let reservation: Option<Reservation> = request.extensions().get().cloned();
    let file = fs::File::create(path)?;
    let Some(reservation) = reservation else {
        return receive(request.into_body(), file).await;
    };
    let received = receive(request.into_body(), reservation.writer(file)).await;
    if received.is_err() {
        fs::remove_file(path)?;
    }
    received
}

async fn receive<B>(body: B, mut file: impl Write) -> anyhow::Result<()>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut body = std::pin::pin!(body);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame
            .map_err(|error| anyhow::anyhow!(error.into()))?
            .into_data()
        {
            tokio::task::block_in_place(|| file.write_all(&data))?;
        }
    }
    Ok(())
}

async fn unguarded(folder: &Path) -> Server {
    let folder = Arc::<Path>::from(folder);
    serve(service_fn(move |request| {
        handle(Arc::clone(&folder), request)
    }))
    .await
}

async fn guarded(folder: &Path) -> Server {
    let guard = StorageGuardLayer::new(Volume::open(folder).unwrap());
    let folder = Arc::<Path>::from(folder);
    serve(guard.layer(service_fn(move |request| {
        handle(Arc::clone(&folder), request)
    })))
    .await
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn before() {
    with_own_mounts(|| {
        for is_chunked in [false, true] {
            on_a_small_disk(async |disk| {
                let server = unguarded(&disk).await;
                let answers = stampede(&server.url(), is_chunked).await;
                assert_some_are_torn(&answers, &left(&disk));
            });
        }
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn after() {
    with_own_mounts(|| {
        for is_chunked in [false, true] {
            on_a_small_disk(async |disk| {
                let server = guarded(&disk).await;
                let answers = stampede(&server.url(), is_chunked).await;
                let left = left(&disk);
                assert_all_that_fit(&answers, &left);
                assert!(is_chunked || !left.contains(&Left::Nothing), "{left:?}");
            });
        }
    });
}

/// hyper closes the connection on the error of a service.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn an_error_from_deep_inside_without_a_context() {
    with_own_mounts(|| {
        on_a_small_disk(async |disk| {
            fill_but(&disk, 0);
            let get = |server: &Server| Client::new().get(format!("{}/files/0", server.url()));
            assert_eq!(status_of(get(&unguarded(&disk).await)).await, None);
            assert_eq!(status_of(get(&guarded(&disk).await)).await, Some(507));
            // Any other error is passed on as before.
            fs::remove_file(disk.join("filler")).unwrap();
            let _ = fs::remove_file(disk.join("0.preview"));
            fs::create_dir(disk.join("0.preview")).unwrap();
            assert_eq!(status_of(get(&guarded(&disk).await)).await, None);
        });
    });
}
