//! Guards a plain hyper server, without a web framework.
//!
//! ```sh
//! cargo run --example hyper
//! curl -i -T README.md http://127.0.0.1:3011/files/a # 201
//! curl -i -T README.md -H 'Content-Length: 1000000000000000' http://127.0.0.1:3011/files/b # 507
//! ```

use std::{env, fs, path::PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tempfile::NamedTempFile;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tower::{Layer, service_fn};
use tower_storage_guard::{BoxError, Headroom, MeteredBody};
use tower_storage_guard::{Reservation, StorageGuardLayer, Volume};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:3011".to_owned());
    let dir = PathBuf::from(args.next().unwrap_or_default()).join("uploads");
    fs::create_dir_all(&dir)?;
    let volume = Volume::open(&dir)?.keep_free(Headroom::bytes(64 << 20));
    let inner = service_fn(move |request| put_file(request, dir.clone()));
    let service = TowerToHyperService::new(StorageGuardLayer::new(volume).layer(inner));
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let stream = TokioIo::new(listener.accept().await?.0);
        tokio::spawn(http1::Builder::new().serve_connection(stream, service.clone()));
    }
}

type PutResult = Result<Response<Full<Bytes>>, BoxError>;

/// The guard turns the error of a full disk into 507. On any other error, hyper closes the connection.
async fn put_file(request: Request<MeteredBody<Incoming>>, dir: PathBuf) -> PutResult {
    let respond = |status| Ok(Response::builder().status(status).body(Full::default())?);
    let (head, mut body) = request.into_parts();
    // The name must not lead out of the folder. Names of temporary files begin with a dot.
    let name = head.uri.path().strip_prefix("/files/").unwrap_or_default();
    let is_plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':']);
    let is_part = head.headers.contains_key("content-range");
    if head.method != Method::PUT || is_part || !is_plain {
        return respond(StatusCode::BAD_REQUEST);
    }
    let reservation: &Reservation = head.extensions.get().ok_or("the guard does not apply")?;
    // Tells the guard what is on the disk already, so that it is not counted twice.
    let mut file = reservation.async_writer(NamedTempFile::new_in(&dir)?);
    while let Some(frame) = body.frame().await {
        let data = frame?.into_data().unwrap_or_default();
        file.write_all(&data).await?;
    }
    // It writes in the background: only its end reports that the disk was full.
    file.into_inner().await?.persist(dir.join(name))?;
    respond(StatusCode::CREATED)
}
