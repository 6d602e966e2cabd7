//! A closure as the service, under bare hyper: in the task of a connection all of its types have to be `Send`.

use std::convert::Infallible;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client, server};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use test_support::service::{answer, layer};
use tokio::io::{DuplexStream, duplex};
use tower::{Layer, service_fn};
use tower_storage_guard::MeteredBody;

/// The statuses of an upload that fits, and of one that does not.
async fn upload(stream: DuplexStream) -> [u16; 2] {
    let stream = TokioIo::new(stream);
    let (mut sender, connection) = client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut statuses = [0; 2];
    for (status, bytes) in statuses.iter_mut().zip([10, 11]) {
        sender.ready().await.unwrap();
        let upload = Request::put("/").body(Full::<Bytes>::from(vec![0; bytes]));
        let response = sender.send_request(upload.unwrap()).await.unwrap();
        *status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
    }
    statuses
}

#[tokio::test]
async fn a_closure_serves_a_connection() {
    let (_, _, layer) = layer(10);
    let (stream, end) = duplex(1 << 16);
    let service = layer.layer(service_fn(|r: Request<MeteredBody<Incoming>>| async move {
        let read = r.into_body().collect().await;
        Ok::<_, Infallible>(answer(if read.is_ok() { 201 } else { 500 }))
    }));
    let service = TowerToHyperService::new(service);
    let stream = TokioIo::new(stream);
    tokio::spawn(server::conn::http1::Builder::new().serve_connection(stream, service));
    assert_eq!(upload(end).await, [201, 507]);
}

/// All of it in one async block, where the compiler has to prove `Send` for the closure by itself.
#[tokio::test]
async fn a_closure_serves_a_connection_inside_of_a_task() {
    let (_, _, layer) = layer(10);
    let (stream, end) = duplex(1 << 16);
    tokio::spawn(async move {
        let service = layer.layer(service_fn(|r: Request<MeteredBody<Incoming>>| async move {
            let read = r.into_body().collect().await;
            Ok::<_, Infallible>(answer(if read.is_ok() { 201 } else { 500 }))
        }));
        let service = TowerToHyperService::new(service);
        let stream = TokioIo::new(stream);
        server::conn::http1::Builder::new()
            .serve_connection(stream, service)
            .await
    });
    assert_eq!(upload(end).await, [201, 507]);
}
