//! The end of the examples: a request that hangs does not keep them, and one that goes on is answered.

use std::any::Any;

use futures_util::future::join_all;
use test_support::{
    example::Server,
    tus::answered,
    uploads::{Begun, Uploads},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::quota_store::until_it_listens_no_more;

/// The servers of HTTP, and a request for each whose content hangs.
const HTTP: [(&str, &str); 4] = [
    ("axum-upload", "PUT /files/a HTTP/1.1"),
    ("webdav", "PUT /a HTTP/1.1"),
    (
        "tus-upload",
        "POST /files HTTP/1.1\r\ntus-resumable: 1.0.0\r\nupload-length: 10\r\n\
         content-type: application/offset+octet-stream",
    ),
    (
        "documents",
        "PUT /documents/a HTTP/1.1\r\ncontent-type: application/json",
    ),
];

/// A request that has arrived, with half of its ten bytes.
async fn begin(server: &Server, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.addr).await.unwrap();
    let head = format!("{head}\r\nhost: x\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    for line in ["HTTP/1.1 100 Continue", ""] {
        assert_eq!(answered(&mut stream).await, line);
    }
    stream.write_all(b"[[[[[").await.unwrap();
    stream
}

/// Each server with a request that hangs for as long as the second is kept.
async fn busy() -> Vec<(Server, Box<dyn Any>)> {
    let mut busy: Vec<(Server, Box<dyn Any>)> = Vec::new();
    for (example, head) in HTTP {
        let server = Server::start(example, &[]);
        let hanging = begin(&server, head).await;
        busy.push((server, Box::new(hanging)));
    }
    let server = Server::start("tonic-upload", &[]);
    let hanging: Begun = Uploads::new(&server).begin();
    assert!(hanging.send("a", vec![0; 1_000]).await);
    server.until_received(1_000).await;
    busy.push((server, Box::new(hanging)));
    busy
}

#[cfg(unix)]
#[tokio::test]
async fn a_request_that_hangs_is_cut_off() {
    let ends = busy().await.into_iter().map(async |(server, _hanging)| {
        server.terminate();
        let (status, _dir) = server.ended().await;
        assert!(status.success(), "{status}");
    });
    join_all(ends).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (server, _hanging) in busy().await {
        server.terminate();
        until_it_listens_no_more(&server).await;
        server.terminate();
        let (status, _dir) = server.ended().await;
        assert_eq!(status.code(), Some(1));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_request_that_goes_on_is_answered() {
    for (example, head) in HTTP {
        let server = Server::start(example, &[]);
        let mut stream = begin(&server, head).await;
        server.terminate();
        until_it_listens_no_more(&server).await;
        stream.write_all(b"]]]]]").await.unwrap();
        let status = answered(&mut stream).await;
        assert!(status.starts_with("HTTP/1.1 2"), "{example}: {status}");
        drop(stream);
        let (status, _dir) = server.ended().await;
        assert!(status.success(), "{status}");
    }
}
