//! A file server on plain hyper: it authenticates in its handler, and opens files so that they are truncated.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header::AUTHORIZATION};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use reqwest::Client;
use test_support::{
    mounts::{fill_but, with_own_mounts},
    server::{Server, serve},
};
use tokio::{fs::File, io::AsyncWrite};
use tokio_util::io::StreamReader;
use tower::{Layer, service_fn};
use tower_storage_guard::{
    BoxError, InPlace, Reservation, StorageGuardLayer, Volume, fault::Source,
};

use crate::clients::{
    Left, assert_all_that_fit, assert_some_are_torn, content, left, on_a_small_disk, settled,
    stampede, status_of, with,
};

type Reply = Response<Full<Bytes>>;

async fn handle<B>(folder: Arc<Path>, request: Request<B>) -> Result<Reply, Infallible>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let path = path_of(&folder, request.uri());
    let done = match *request.method() {
        _ if !is_known(request.headers()) => Ok(StatusCode::UNAUTHORIZED),
        Method::PUT => put(&path, request).await.map(|()| StatusCode::CREATED),
        Method::DELETE => fs::remove_file(path).map(|()| StatusCode::NO_CONTENT),
        _ => Ok(StatusCode::METHOD_NOT_ALLOWED),
    };
    let mut reply = Reply::default();
    *reply.status_mut() = done.unwrap_or_else(|error| {
        // For the guard, if there is one.
        reply.extensions_mut().insert(Source::new(error));
        StatusCode::INTERNAL_SERVER_ERROR
    });
    Ok(reply)
}

fn path_of(folder: &Path, uri: &Uri) -> PathBuf {
    folder.join(uri.path().rsplit('/').next().unwrap_or_default())
}

fn is_known(headers: &HeaderMap) -> bool {
    headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value == "Bearer secret")
}

async fn put<B>(path: &Path, request: Request<B>) -> io::Result<()>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let reservation: Option<Reservation> = request.extensions().get().cloned();
    let file = File::create(path).await?;
    let Some(reservation) = reservation else {
        return receive(request.into_body(), file).await;
    };
    // What the guard takes: a line, and no torn file behind a body that was cut.
    let received = receive(request.into_body(), reservation.writer(file)).await;
    received.or_else(|error| fs::remove_file(path).and(Err(error)))
}

async fn receive<B>(body: B, mut file: impl AsyncWrite + Unpin) -> io::Result<()>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let content = body.into_data_stream().map_err(io::Error::other);
    let mut content = std::pin::pin!(StreamReader::new(content));
    tokio::io::copy(&mut content, &mut file).await?;
    Ok(())
}

async fn unguarded(folder: &Path) -> Server {
    let folder = Arc::<Path>::from(folder);
    serve(service_fn(move |request| {
        handle(Arc::clone(&folder), request)
    }))
    .await
}

async fn guarded(folder: &Path) -> (Volume, Server) {
    let volume = Volume::open(folder).unwrap();
    let folder = Arc::<Path>::from(folder);
    let old = Arc::clone(&folder);
    let guard = StorageGuardLayer::new(volume.clone())
        // The handler answers those that it does not know: they learn nothing about storage, and reserve nothing.
        .applies_when(|head| head.method == Method::PUT && is_known(&head.headers))
        // It truncates what is there, and writes into the blocks that are free then.
        .price_by(
            move |head, demand| match fs::metadata(path_of(&old, &head.uri)) {
                Ok(old) => demand.in_place(InPlace::whole(&old).truncated()),
                Err(_) => demand,
            },
        );
    let service = guard.layer(service_fn(move |request| {
        handle(Arc::clone(&folder), request)
    }));
    (volume, serve(service).await)
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
                let (_, server) = guarded(&disk).await;
                let answers = stampede(&server.url(), is_chunked).await;
                let left = left(&disk);
                assert_all_that_fit(&answers, &left);
                // Without a length, a file is truncated before it is known that the new content does not fit.
                assert!(is_chunked || !left.contains(&Left::Nothing), "{left:?}");
            });
        }
    });
}

/// As it was before the guard, although a second file of this size finds no room.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_file_is_overwritten_on_a_full_disk() {
    with_own_mounts(|| {
        on_a_small_disk(async |disk| {
            fs::write(disk.join("0"), content(7)).unwrap();
            fill_but(&disk, 0);
            let (volume, server) = guarded(&disk).await;
            let put = |client: u8, is_chunked| {
                let url = format!("{}/files/{client}", server.url());
                let request = Client::new().put(url).bearer_auth("secret");
                status_of(with(request, content(client), is_chunked))
            };
            for is_chunked in [false, true] {
                assert_eq!(put(0, is_chunked).await, Some(201), "{is_chunked}");
                assert_eq!(put(1, false).await, Some(507));
            }
            settled(&volume).await;
            assert_eq!(left(&disk)[..2], [Left::Whole, Left::Old]);
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn strangers_learn_nothing_of_a_full_disk() {
    with_own_mounts(|| {
        on_a_small_disk(async |disk| {
            fill_but(&disk, 0);
            let (volume, server) = guarded(&disk).await;
            let url = format!("{}/files/0", server.url());
            let put = || {
                let request = Client::new().put(&url).bearer_auth("secret");
                with(request, content(0), false)
            };
            // Its answer does not wait for the content, so a long one would end the connection before the answer is read.
            let stranger = Client::new().put(&url).bearer_auth("guess");
            assert_eq!(
                status_of(with(stranger, vec![0; 10], false)).await,
                Some(401)
            );
            assert_eq!(status_of(put()).await, Some(507));
            assert_eq!(fs::read(disk.join("0")).unwrap(), b"old");
            // Room is made while the disk is full.
            let delete = Client::new().delete(format!("{}/files/filler", server.url()));
            assert_eq!(status_of(delete.bearer_auth("secret")).await, Some(204));
            settled(&volume).await;
            assert_eq!(status_of(put()).await, Some(201));
        });
    });
}
