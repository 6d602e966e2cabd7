//! Streams of HTTP/2 that the client resets: the handler gets an error, never a clean end.

use std::{convert::Infallible, future::pending};

use bytes::BufMut;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use tower::{Layer, service_fn};
use tower_storage_guard::MeteredBody;

use crate::{
    calls_by_hand::{BOUND, Replies, serve},
    grpc::Guarded,
};

/// Except for NO_ERROR, which hyper 1.12 treats as the end of a body, whichever side sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_an_upload_does_not_look_complete_after_any_reset() {
    // PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM and CANCEL.
    for reason in [1, 2, 7, 8].into_iter().cycle().take(40) {
        let guarded = Guarded::new();
        let (report, mut reported) = mpsc::unbounded_channel();
        let service = service_fn(
            move |request: Request<MeteredBody<hyper::body::Incoming>>| {
                let report = report.clone();
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(frame) = body.frame().await {
                        let _ = report.send(frame.map(|_| "more").map_err(drop));
                    }
                    let _ = report.send(Ok("the end"));
                });
                pending::<Result<Response<Replies>, Infallible>>()
            },
        );
        let [_, addr] = serve(guarded.layer.layer(service)).await;
        let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut frame = |kind: u8, flags: u8, stream: u32, content: &[u8]| {
            out.put_uint(content.len() as u64, 3);
            out.put_slice(&[kind, flags]);
            out.put_u32(stream);
            out.put_slice(content);
        };
        frame(4, 0, 0, &[]);
        // POST and http by their index; the rest in letters.
        let mut head = vec![0x83, 0x86];
        for (name, value) in [
            (":path", "/test.v1.Store/Any"),
            (":authority", "a"),
            ("content-type", "application/grpc"),
        ] {
            head.push(0);
            for text in [name, value] {
                head.push(text.len() as u8);
                head.extend(text.as_bytes());
            }
        }
        frame(1, 4, 1, &head);
        frame(0, 0, 1, &[7; 100]);
        socket.write_all(&out).await.unwrap();
        let first = timeout(BOUND, reported.recv()).await.unwrap();
        assert_eq!(first, Some(Ok("more")));
        let mut reset = vec![0, 0, 4, 3, 0, 0, 0, 0, 1];
        reset.put_u32(reason);
        socket.write_all(&reset).await.unwrap();
        let end = timeout(BOUND, reported.recv()).await.unwrap();
        assert_eq!(end, Some(Err(())), "{reason}");
        guarded.all_is_settled(0).await;
        let _ = socket.read(&mut [0; 1_000]).await;
    }
}
