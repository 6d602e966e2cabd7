//! Clients that are still sending when their call is refused or cut must see its status.

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody, combinators::UnsyncBoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;
use tower::{Layer, service_fn};
use tower_storage_guard::MeteredBody;

use crate::{
    calls_by_hand::{BOUND, ByHand, echo, serve, trailers, web_frame},
    grpc::{Guarded, LIMIT},
};

/// Endless content, at full speed.
fn endless() -> UnsyncBoxBody<Bytes, Infallible> {
    let frame = || Ok(Frame::data(Bytes::from(vec![7; 16 << 10])));
    StreamBody::new(stream::repeat_with(frame)).boxed_unsync()
}

/// Over HTTP/2 the status of a cut arrives although the client is still sending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_on_sees_the_status() {
    for (how, is_behind) in [("door", false), ("cut", false), ("cut", true)] {
        for round in 0..10 {
            let guarded = Guarded::new();
            let service = service_fn(move |request: Request<MeteredBody<_>>| async move {
                let mut body = request.into_body();
                if is_behind {
                    return echo(Request::new(body)).await;
                }
                while let Some(Ok(_)) = body.frame().await {}
                drop(body);
                let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
                let content = stream::iter([Ok(Frame::trailers(trailers("13")))]);
                Ok(response
                    .body(StreamBody::new(content).boxed_unsync())
                    .unwrap())
            });
            let [_, addr] = serve(guarded.layer.layer(service)).await;
            let socket = tokio::net::TcpStream::connect(addr).await.unwrap();
            let io = TokioIo::new(socket);
            let (mut client, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let mut request = Request::post(format!("http://{addr}/test.v1.Store/Any"))
                .header(CONTENT_TYPE, "application/grpc");
            if how == "door" {
                request = request.header("x-upload-length", LIMIT + 1);
            }
            let answered = client.send_request(request.body(endless()).unwrap());
            let answer = timeout(BOUND, answered).await.unwrap();
            let answer = answer.unwrap_or_else(|e| panic!("{how} {is_behind} {round}: {e:?}"));
            let status = if is_behind {
                let content = timeout(BOUND, answer.into_body().collect()).await.unwrap();
                let content =
                    content.unwrap_or_else(|e| panic!("{how} {is_behind} {round}: {e:?}"));
                content.trailers().unwrap()["grpc-status"].clone()
            } else {
                answer.headers()["grpc-status"].clone()
            };
            assert_eq!(status, "8", "{how} {is_behind}");
            guarded.all_is_settled(0).await;
        }
    }
}

/// Over HTTP/1 the last frame of a cut arrives although the client is still sending.
#[tokio::test]
async fn a_client_of_grpc_web_that_sends_on_sees_the_last_frame() {
    for round in 0..20 {
        let guarded = Guarded::new();
        let service = service_fn(async |request: Request<MeteredBody<_>>| {
            let body: MeteredBody<hyper::body::Incoming> = request.into_body();
            let first = stream::iter([Ok(Frame::data(web_frame(0, b"first").into()))]);
            let read = BodyStream::new(body).filter_map(async |frame| frame.err().map(Err));
            let response = Response::builder().header(CONTENT_TYPE, "application/grpc-web");
            let content = StreamBody::new(first.chain(read)).boxed_unsync();
            Ok::<_, Infallible>(response.body(content).unwrap())
        });
        let [addr, _] = serve(guarded.layer.layer(service)).await;
        let got = tokio::task::spawn_blocking(move || {
            let mut socket = TcpStream::connect(addr).unwrap();
            let head = concat!(
                "POST /test.v1.Store/Any HTTP/1.1\r\n",
                "host: a\r\n",
                "content-type: application/grpc-web\r\n",
                "content-length: 8000000\r\n\r\n",
            );
            let hint = head.replace("content-length: 8000000", "transfer-encoding: chunked");
            socket.write_all(hint.as_bytes()).unwrap();
            let mut chunk = b"10000\r\n".to_vec();
            chunk.extend(vec![7; 1 << 16]);
            chunk.extend(b"\r\n");
            for _ in 0..100 {
                if socket.write_all(&chunk).is_err() {
                    break;
                }
            }
            let _ = socket.write_all(b"0\r\n\r\n");
            socket.set_read_timeout(Some(BOUND)).unwrap();
            let (mut got, mut piece) = (String::new(), [0; 4096]);
            // The connection may stay open after it.
            while !got.contains("grpc-status:8") {
                match socket.read(&mut piece) {
                    Ok(read @ 1..) => got.push_str(&String::from_utf8_lossy(&piece[..read])),
                    _ => break,
                }
            }
            got
        });
        let got = got.await.unwrap();
        assert!(got.contains("grpc-status:8"), "{round}: {got}");
        guarded.all_is_settled(0).await;
    }
}

/// As after a refusal in the head: over HTTP/1 a client whose connection is closed while it sends may not see the
/// end.
#[tokio::test]
async fn the_rest_of_a_cut_request_is_drained() {
    let guarded = Guarded::new();
    let mut call = ByHand::call(&guarded.layer, "application/grpc-web").await;
    call.cut().await;
    let last = call.data().await;
    assert_eq!(last[0], 0x80);
    assert!(call.frame().await.is_none());
    drop((call.answer, call.body));
    for _ in 0..10 {
        tokio::task::yield_now().await;
        assert!(!call.send.is_closed(), "the body is no longer read");
    }
}
