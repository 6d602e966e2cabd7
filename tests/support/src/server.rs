//! A guarded server on a socket, over a disk whose free space the test sets.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
    routing::{get, put},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tower::{BoxError, Service};
use tower_storage_guard::{Probe, Reading, StorageGuardLayer, Volume};

/// A disk with this many bytes free, whatever is written.
struct Disk(u64);

impl Probe for Disk {
    fn read(&mut self) -> io::Result<Reading> {
        Ok(Reading::new(self.0, 1 << 40))
    }
}

pub fn volume(free: u64) -> Volume {
    Volume::from_probe(Disk(free)).unwrap()
}

/// A server that runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Server {
    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `PUT /a` reads its upload to the end, and `GET /` shows that the connection still works.
pub fn routes() -> Router {
    Router::new()
        .route("/", get(async || "still here"))
        .route("/a", put(read_all))
}

pub async fn read_all(mut body: Body) -> StatusCode {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    StatusCode::CREATED
}

/// Serves [`routes`] under a guard, over a disk with this many bytes free.
pub async fn start(free: u64) -> Server {
    serve(routes().layer(StorageGuardLayer::new(volume(free)))).await
}

/// Serves HTTP/1 and HTTP/2 on one socket.
pub async fn serve<S, R>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<R>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    R: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let accepted = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            accepted.fetch_add(1, Ordering::SeqCst);
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                // Clients may disconnect.
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Server {
        address,
        connections,
        task,
    }
}
