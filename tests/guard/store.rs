//! A server that stores uploads as files, as a user of the crate would write it, and its clients.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{self, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::put,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tower_storage_guard::{Reservation, StorageGuardLayer, axum::Failure};

/// A server on a port of its own. Its files are in `folder`, without any others.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) folder: PathBuf,
    address: SocketAddr,
}

/// How an upload reaches the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// Through the guard's admission.
    Guarded,
    /// Bypassing admission: the guard has to answer the disk's errors.
    Unchecked,
    /// Without a guard, with a common hand-written check.
    Usual,
    /// Guarded, by a handler that reports nothing: it is as it was before the guard.
    Untouched,
    /// The same handler, through `Reservation::writer`.
    Writer,
    /// The same handler, through `Reservation::async_writer`.
    AsyncWriter,
}

impl Store {
    pub(crate) async fn open(folder: impl Into<PathBuf>, layer: StorageGuardLayer) -> Self {
        let folder = folder.into();
        let at = |way: &str| format!("/{way}/{{name}}");
        let unchecked = layer.clone().applies_when(|_| false);
        let router = Router::new()
            .route(&at("unchecked"), put(upload).layer(unchecked))
            .route(&at("untouched"), put(untouched).layer(layer.clone()))
            .route(&at("writer"), put(by_writer).layer(layer.clone()))
            .route(
                &at("async-writer"),
                put(by_async_writer).layer(layer.clone()),
            )
            .route(&at("guarded"), put(upload).delete(delete).layer(layer))
            .route(&at("usual"), put(check_and_store))
            .with_state(folder.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { folder, address }
    }

    /// Uploads, as a client with a connection of its own.
    pub(crate) async fn put(&self, upload: &Upload) -> Answer {
        let way = match upload.way {
            Way::Guarded => "guarded",
            Way::Unchecked => "unchecked",
            Way::Usual => "usual",
            Way::Untouched => "untouched",
            Way::Writer => "writer",
            Way::AsyncWriter => "async-writer",
        };
        let pause = upload.pause;
        let pieces = stream::iter(upload.pieces()).then(move |piece| async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            Ok::<_, Infallible>(piece)
        });
        let url = format!("http://{}/{way}/{}", self.address, upload.name());
        let mut request = Request::put(url);
        if !upload.is_chunked {
            request = request.header("content-length", upload.size);
        }
        let request = request.body(Body::from_stream(pieces)).unwrap();
        Answer::of(send(request).await).await
    }

    pub(crate) async fn delete(&self, name: &str) {
        let url = format!("http://{}/guarded/{name}", self.address);
        let answer = send(Request::delete(url).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status(), 204);
    }

    /// The contents of the folder: names and sizes.
    pub(crate) fn files(&self) -> Vec<(String, u64)> {
        let mut files: Vec<_> = std::fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    entry.metadata().unwrap().len(),
                )
            })
            .collect();
        files.sort();
        files
    }

    /// Whether exactly these uploads are stored, complete and unchanged.
    pub(crate) fn holds_exactly<'a>(&self, uploads: impl IntoIterator<Item = &'a Upload>) {
        let mut names: Vec<_> = Vec::new();
        for upload in uploads {
            assert!(upload.is_stored_in(&self.folder), "torn: {upload:?}");
            names.push((upload.name(), upload.size));
        }
        names.sort();
        assert_eq!(self.files(), names);
    }
}

/// The content of an upload: every upload and every piece differ.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) number: u8,
    pub(crate) size: u64,
    pub(crate) way: Way,
    pub(crate) is_chunked: bool,
    /// The pause before each piece.
    pub(crate) pause: Option<Duration>,
}

/// Ends within a block.
const PIECE: u64 = 60_000;

impl Upload {
    pub(crate) fn new(number: u8, size: u64) -> Self {
        Self {
            number,
            size,
            way: Way::Guarded,
            is_chunked: false,
            pause: None,
        }
    }

    pub(crate) fn by(self, way: Way) -> Self {
        Self { way, ..self }
    }

    pub(crate) fn chunked(self, is_chunked: bool) -> Self {
        Self { is_chunked, ..self }
    }

    pub(crate) fn slowly(self, pause: Duration) -> Self {
        let pause = Some(pause);
        Self { pause, ..self }
    }

    fn name(&self) -> String {
        format!("upload-{}", self.number)
    }

    fn pieces(&self) -> impl Iterator<Item = Bytes> + Send + 'static {
        let (number, size) = (self.number, self.size);
        (0..size.div_ceil(PIECE)).map(move |piece| {
            let length = PIECE.min(size - piece * PIECE);
            vec![number.wrapping_mul(31).wrapping_add(piece as u8); length as usize].into()
        })
    }

    fn is_stored_in(&self, folder: &path::Path) -> bool {
        let stored = std::fs::read(folder.join(self.name())).unwrap();
        stored.len() as u64 == self.size
            && self
                .pieces()
                .zip(stored.chunks(PIECE as usize))
                .all(|(sent, kept)| sent == kept)
    }
}

/// The answer that a client received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: Option<String>,
    pub(crate) resource: Option<String>,
}

impl Answer {
    async fn of(response: Response<Incoming>) -> Self {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let field = |name: &str| json[name].as_str().map(ToOwned::to_owned);
        Self {
            status,
            reason: field("reason"),
            resource: field("resource"),
        }
    }

    pub(crate) fn plain(status: u16) -> Self {
        Self {
            status,
            reason: None,
            resource: None,
        }
    }

    /// 507 with this reason and resource.
    pub(crate) fn full(reason: &str, resource: &str) -> Self {
        Self {
            status: 507,
            reason: Some(reason.into()),
            resource: Some(resource.into()),
        }
    }
}

/// Over a connection of its own.
async fn send(request: Request<Body>) -> Response<Incoming> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    client.request(request).await.unwrap()
}

/// A file that exists only if it was kept: it is removed when the client disconnects, and this is dropped.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // Already renamed, once kept.
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn upload(
    State(folder): State<PathBuf>,
    Path(name): Path<String>,
    reservation: Option<Reservation>,
    mut body: Body,
) -> Result<StatusCode, Failure> {
    let stored = store(folder, name, &reservation, &mut body).await;
    if stored.is_err() && reservation.is_none() {
        // The guard only drains guarded requests, so that their answers arrive.
        while let Some(Ok(_)) = body.frame().await {}
    }
    stored
}

async fn store(
    folder: PathBuf,
    name: String,
    reservation: &Option<Reservation>,
    body: &mut Body,
) -> Result<StatusCode, Failure> {
    let part = Part(folder.join(format!("{name}.part")));
    let mut file = tokio::fs::File::create(&part.0).await?;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        file.write_all(&data).await?;
        // Before the flush it may not be on the disk yet, and an error would be lost.
        file.flush().await?;
        if let Some(reservation) = reservation {
            reservation.written(data.len() as u64);
        }
    }
    file.sync_all().await?;
    tokio::fs::rename(&part.0, folder.join(name)).await?;
    Ok(StatusCode::CREATED)
}

async fn untouched(
    State(folder): State<PathBuf>,
    Path(name): Path<String>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let part = Part(folder.join(format!("{name}.part")));
    let file = tokio::fs::File::create(&part.0).await?;
    receive(file, body).await?;
    tokio::fs::rename(&part.0, folder.join(name)).await?;
    Ok(StatusCode::CREATED)
}

async fn by_writer(
    State(folder): State<PathBuf>,
    Path(name): Path<String>,
    reservation: Reservation,
    body: Body,
) -> Result<StatusCode, Failure> {
    let part = Part(folder.join(format!("{name}.part")));
    let file = reservation.writer(tokio::fs::File::create(&part.0).await?);
    receive(file, body).await?;
    tokio::fs::rename(&part.0, folder.join(name)).await?;
    Ok(StatusCode::CREATED)
}

async fn by_async_writer(
    State(folder): State<PathBuf>,
    Path(name): Path<String>,
    reservation: Reservation,
    body: Body,
) -> Result<StatusCode, Failure> {
    let part = Part(folder.join(format!("{name}.part")));
    let file = reservation.async_writer(std::fs::File::create(&part.0)?);
    receive(file, body).await?;
    tokio::fs::rename(&part.0, folder.join(name)).await?;
    Ok(StatusCode::CREATED)
}

/// Writes as most handlers do: it flushes once, at the end.
async fn receive(mut file: impl AsyncWrite + Unpin, mut body: Body) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            file.write_all(&data).await?;
        }
    }
    file.flush().await?;
    Ok(())
}

/// The check that the guard replaces: do not write it like this.
async fn check_and_store(
    State(folder): State<PathBuf>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, StatusCode> {
    let full = |_| StatusCode::INSUFFICIENT_STORAGE;
    let length = headers["content-length"].to_str().unwrap();
    if fs4::available_space(&folder).unwrap() < length.parse().unwrap() {
        return Err(StatusCode::INSUFFICIENT_STORAGE);
    }
    let mut file = tokio::fs::File::create(folder.join(name))
        .await
        .map_err(full)?;
    let mut content = body.into_data_stream();
    let mut failed = None;
    while let Some(Ok(data)) = content.next().await {
        let written = file.write_all(&data).await;
        // Read to the end, so that the answer arrives.
        failed = failed.or(written.and(file.flush().await).err());
    }
    failed.map_or(Ok(StatusCode::CREATED), |error| Err(full(error)))
}

async fn delete(
    State(folder): State<PathBuf>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    tokio::fs::remove_file(folder.join(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
