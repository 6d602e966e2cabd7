//! A refusal must arrive: what clients see of it, down to single bytes.

use std::{
    convert::Infallible,
    future::ready,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::StatusCode, routing::put};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, Version};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use test_support::server::{routes, serve, start, volume};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Demand, MeteredBody, Probe, Reading, StorageGuardLayer, Volume,
    axum::Failure,
    quota::{Limits, MemoryQuota},
};

const MIB: usize = 1 << 20;

/// More than the buffers of both kernels hold.
const LARGE: usize = 16 * MIB;

/// A client whose every byte the test controls.
struct Raw(BufStream<TcpStream>);

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Raw {
    async fn connect(address: std::net::SocketAddr) -> Self {
        Self(BufStream::new(TcpStream::connect(address).await.unwrap()))
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn answer(&mut self) -> Answer {
        self.answer_to(Method::PUT).await
    }

    async fn answer_to(&mut self, method: Method) -> Answer {
        in_time(async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.expect("an answer"));
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1);
            let length = length.map_or(0, |rest| {
                rest.split("\r\n").next().unwrap().parse().unwrap()
            });
            let mut body = vec![0; if method == Method::HEAD { 0 } else { length }];
            self.0.read_exact(&mut body).await.expect("all of it");
            Answer {
                status: head[9..12].parse().unwrap(),
                head,
                body: String::from_utf8(body).unwrap(),
            }
        })
        .await
    }

    /// Another request on the same connection works.
    async fn is_usable(&mut self) {
        self.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = self.answer().await;
        assert_eq!((answer.status, &*answer.body), (200, "still here"));
    }

    /// The server has closed the connection, and has not sent more.
    async fn is_closed(&mut self) {
        let mut rest = Vec::new();
        let read = in_time(self.0.read_to_end(&mut rest)).await;
        assert!(read.is_err() || rest.is_empty(), "{rest:?}");
    }
}

impl Answer {
    #[track_caller]
    fn is_refusal(&self) {
        assert_eq!(self.status, 507, "{self:?}");
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(body["error"], "Insufficient Storage");
        // If the end waits for the drain, a client that stops sending at the status never sees it.
        assert!(self.head.contains("content-length: "), "{self:?}");
    }
}

/// A bound that is only reached if something hangs.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    let bounded = tokio::time::timeout(Duration::from_secs(20), future).await;
    bounded.expect("in time")
}

fn head(path: &str, length: usize, more: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n{more}\r\n")
}

fn chunked(path: &str, length: usize) -> Vec<u8> {
    let head = format!("PUT {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut bytes = head.into_bytes();
    for _ in 0..length / 65_536 {
        bytes.extend_from_slice(b"10000\r\n");
        bytes.extend_from_slice(&[0; 65_536]);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[tokio::test]
async fn under_expect_the_answer_comes_at_once_without_100_continue() {
    let server = start(0).await;
    for value in ["100-continue", "100-Continue"] {
        let mut client = Raw::connect(server.address).await;
        let expect = format!("expect: {value}\r\n");
        client.send(head("/a", LARGE, &expect)).await;
        // A "100 Continue" would be read here as the answer.
        client.answer().await.is_refusal();
        client.is_closed().await;
    }
}

#[tokio::test]
async fn under_expect_an_admitted_upload_is_asked_for() {
    let server = start(LARGE as u64).await;
    let mut client = Raw::connect(server.address).await;
    client
        .send(head("/a", 10, "expect: 100-continue\r\n"))
        .await;
    assert_eq!(client.answer().await.status, 100);
    client.send([0; 10]).await;
    assert_eq!(client.answer().await.status, 201);
    client.is_usable().await;
}

#[tokio::test]
async fn under_expect_a_body_that_was_asked_for_is_drained_when_it_is_cut() {
    let server = start(MIB as u64).await;
    let mut client = Raw::connect(server.address).await;
    let upload = chunked("/a", LARGE);
    let end = upload
        .windows(4)
        .position(|part| part == b"\r\n\r\n")
        .unwrap();
    client.send(&upload[..end]).await;
    client.send("\r\nexpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 100);
    client.send(&upload[end + 4..]).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
}

#[tokio::test]
async fn a_client_that_sends_everything_and_then_reads_sees_the_answer() {
    let server = start(0).await;
    let mut client = Raw::connect(server.address).await;
    client.send(head("/a", LARGE, "")).await;
    client.send(vec![0; LARGE]).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
}

#[tokio::test]
async fn a_client_that_stops_sending_sees_the_whole_answer_at_once() {
    let server = start(0).await;
    let mut client = Raw::connect(server.address).await;
    let started = Instant::now();
    client.send(head("/a", LARGE, "")).await;
    client.answer().await.is_refusal();
    assert!(started.elapsed() < Duration::from_secs(3));
    // It may still send.
    client.send(vec![0; LARGE]).await;
    client.is_closed().await;
}

#[tokio::test]
async fn axum_serve_is_no_different() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = routes().layer(StorageGuardLayer::new(volume(0)));
    let server = tokio::spawn(async { axum::serve(listener, app).await });
    let mut client = Raw::connect(address).await;
    client.send(head("/a", LARGE, "")).await;
    client.send(vec![0; LARGE]).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
    server.abort();
}

#[tokio::test]
async fn http_1_0_sees_it_too() {
    let server = start(0).await;
    let mut client = Raw::connect(server.address).await;
    let head = head("/a", LARGE, "").replace("HTTP/1.1", "HTTP/1.0");
    client.send(head).await;
    client.send(vec![0; LARGE]).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start(0).await;
    for refused in [body_of(MIB), chunked("/a", MIB)] {
        let mut client = Raw::connect(server.address).await;
        let mut requests = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec();
        requests.extend_from_slice(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
        requests.extend_from_slice(&refused);
        // Not answered any more: its client sends it again, on a new connection.
        requests.extend_from_slice(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        client.send(requests).await;
        assert_eq!(client.answer().await.body, "still here");
        assert_eq!(client.answer_to(Method::HEAD).await.status, 200);
        client.answer().await.is_refusal();
        client.is_closed().await;
    }
}

/// A request with its content.
fn body_of(length: usize) -> Vec<u8> {
    let mut request = head("/a", length, "").into_bytes();
    request.resize(request.len() + length, 0);
    request
}

#[tokio::test]
async fn a_refused_request_without_a_body_has_nothing_to_drain() {
    let layer = StorageGuardLayer::new(volume(0)).applies_when(|_| true);
    // An empty object needs no bytes; this asks for some.
    let layer = layer.price_by(|_, _| Demand::known(1));
    let server = serve(routes().layer(layer)).await;
    let mut client = Raw::connect(server.address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.answer().await.is_refusal();
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.answer_to(Method::HEAD).await.status, 507);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.answer().await.is_refusal();
}

#[tokio::test]
async fn the_drain_is_bounded_in_bytes() {
    let layer = StorageGuardLayer::new(volume(0)).drain(MIB as u64, Duration::from_secs(600));
    let server = serve(routes().layer(layer)).await;
    let mut client = Raw::connect(server.address).await;
    client.send(head("/a", usize::MAX >> 1, "")).await;
    client.answer().await.is_refusal();
    let part = vec![0; MIB];
    let mut sent = 0;
    in_time(async {
        while client.0.write_all(&part).await.is_ok() && client.0.flush().await.is_ok() {
            sent += 1;
        }
    })
    .await;
    assert!(sent < 64, "{sent} MiB");
}

#[tokio::test]
async fn the_drain_is_bounded_in_time() {
    let layer = StorageGuardLayer::new(volume(0)).drain(1 << 30, Duration::from_millis(50));
    let server = serve(routes().layer(layer)).await;
    let mut client = Raw::connect(server.address).await;
    client.send(head("/a", LARGE, "")).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
}

/// Reports when it is dropped.
struct Gone(Option<oneshot::Sender<()>>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

/// How long a refused body is kept if it sends a byte at this interval.
async fn drained_for(version: Version, every: Duration) -> Duration {
    let (gone, is_gone) = oneshot::channel();
    let body = stream::unfold(Gone(Some(gone)), move |gone| async move {
        tokio::time::sleep(every).await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from("a"))), gone))
    });
    let store = service_fn(async |_: Request<MeteredBody<_>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut request = Request::put("/").version(version);
    request = request.header("content-length", LARGE);
    let guarded = StorageGuardLayer::new(volume(0)).layer(store);
    // The stream of an async block, and so the body, is not Unpin.
    let request = request.body(StreamBody::new(body)).unwrap();
    let answer = guarded.oneshot(request).await.unwrap();
    let answered = tokio::time::Instant::now();
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    // Consumes the answer as the transport does.
    answer.into_body().collect().await.unwrap();
    is_gone.await.unwrap();
    answered.elapsed()
}

#[tokio::test(start_paused = true)]
async fn the_drain_waits_for_a_slow_client_and_not_for_one_that_stalls() {
    let seconds = async |version, every| {
        let every = Duration::from_secs(every);
        drained_for(version, every).await.as_secs_f64().round() as u64
    };
    assert_eq!(seconds(Version::HTTP_11, 3600).await, 5);
    assert_eq!(seconds(Version::HTTP_11, 4).await, 30);
    assert_eq!(seconds(Version::HTTP_2, 3600).await, 1);
}

#[tokio::test]
async fn a_body_that_is_always_ready_is_drained_no_longer_than_others() {
    let store = service_fn(async |_: Request<MeteredBody<_>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let layer = StorageGuardLayer::new(volume(0)).drain(u64::MAX, Duration::from_millis(50));
    let (gone, is_gone) = oneshot::channel();
    let parts = stream::unfold(Gone(Some(gone)), async |gone| {
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from("a"))), gone))
    });
    let request = Request::put("/").header("content-length", LARGE);
    let request = request.body(StreamBody::new(parts)).unwrap();
    let answer = layer.layer(store).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    in_time(is_gone).await.unwrap();
}

/// However many requests are refused.
#[tokio::test(start_paused = true)]
async fn the_drain_is_bounded_in_all() {
    const PART: usize = 64 << 10;
    let store = service_fn(async |_: Request<MeteredBody<_>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let layer = StorageGuardLayer::new(volume(0)).drain_in_all(3, MIB as u64);
    let guarded = layer.layer(store);
    let drained = Arc::new(AtomicUsize::new(0));
    let mut all = Vec::new();
    let began = tokio::time::Instant::now();
    for _ in 0..4 {
        let (gone, is_gone) = oneshot::channel();
        let drained = Arc::clone(&drained);
        let parts = stream::unfold(Gone(Some(gone)), move |gone| {
            drained.fetch_add(PART, SeqCst);
            let part = Frame::data(Bytes::from_static(&[0; PART]));
            ready(Some((Ok::<_, Infallible>(part), gone)))
        });
        let request = Request::put("/").header("content-length", LARGE);
        let request = request.body(StreamBody::new(parts)).unwrap();
        let answer = guarded.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
        answer.into_body().collect().await.unwrap();
        all.push(is_gone);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (drained, took) = (drained.load(SeqCst), began.elapsed());
    let expected = (took.as_secs_f64() * MIB as f64) as usize;
    assert!(
        // The first is refused after a moment.
        (expected - MIB..=expected + 4 * PART).contains(&drained),
        "{drained} bytes in {took:?}"
    );
    let is_gone: Vec<_> = all.iter_mut().map(|gone| gone.try_recv().is_ok()).collect();
    assert_eq!(is_gone, [false, false, false, true]);
}

#[test]
fn outside_of_a_runtime_nothing_is_drained() {
    let store = service_fn(async |_: Request<MeteredBody<_>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let guarded = StorageGuardLayer::new(volume(0)).layer(store);
    let (gone, mut is_gone) = oneshot::channel();
    let parts = stream::unfold((16, Gone(Some(gone))), async |(left, gone)| {
        let part = Frame::data(Bytes::from_static(&[0; 65_536]));
        (left > 0).then_some((Ok::<_, Infallible>(part), (left - 1, gone)))
    });
    let request = Request::put("/").header("content-length", MIB);
    let request = request.body(StreamBody::new(parts)).unwrap();
    let answer = poll_to_end(guarded.oneshot(request)).unwrap();
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert!(is_gone.try_recv().is_ok());
    let length = answer.body().size_hint().exact().unwrap();
    let mut body = std::pin::pin!(answer.into_body());
    let content = poll_to_end(body.frame()).unwrap().unwrap();
    assert_eq!(content.data_ref().unwrap().len() as u64, length);
    assert!(body.is_end_stream());
    assert!(poll_to_end(body.frame()).is_none());
}

fn poll_to_end<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One service for each way to end in a refusal.
fn faulty() -> Router {
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    routes()
        .route(
            "/at-once",
            put(async move || Err::<(), _>(Failure::from(full()))),
        )
        .route(
            "/in-the-middle",
            put(async move |mut body: Body| {
                body.frame().await;
                Err::<(), _>(Failure::from(full()))
            }),
        )
        .route("/inner", put(async || StatusCode::INSUFFICIENT_STORAGE))
}

#[tokio::test]
async fn refusals_of_every_origin_arrive() {
    let server = serve(faulty().layer(StorageGuardLayer::new(volume(1 << 30)))).await;
    for path in ["/at-once", "/in-the-middle", "/inner"] {
        let mut client = Raw::connect(server.address).await;
        client.send(head(path, LARGE, "")).await;
        client.send(vec![0; LARGE]).await;
        client.answer().await.is_refusal();
        client.is_closed().await;
        let mut client = Raw::connect(server.address).await;
        client.send(chunked(path, LARGE)).await;
        client.answer().await.is_refusal();
        client.is_closed().await;
    }
}

#[tokio::test]
async fn a_refusal_in_mid_stream_arrives() {
    let server = start(MIB as u64).await;
    let mut client = Raw::connect(server.address).await;
    client.send(chunked("/a", LARGE)).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
}

#[tokio::test]
async fn a_refusal_by_the_quota_arrives() {
    let layer = StorageGuardLayer::quota_only(MemoryQuota::new(Limits::bytes(MIB as u64)));
    let server = serve(routes().layer(layer.scope_by(|_| "user:1"))).await;
    let mut client = Raw::connect(server.address).await;
    client.send(head("/a", LARGE, "")).await;
    client.send(vec![0; LARGE]).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
    let mut client = Raw::connect(server.address).await;
    client.send(chunked("/a", LARGE)).await;
    client.answer().await.is_refusal();
    client.is_closed().await;
}

/// Answers once and never again.
struct Hung(bool);

impl Probe for Hung {
    fn read(&mut self) -> io::Result<Reading> {
        if std::mem::replace(&mut self.0, true) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Reading::new(1 << 30, 1 << 40))
    }
}

#[tokio::test]
async fn an_outage_arrives() {
    let stale = Volume::from_probe(Hung(false)).unwrap();
    let stale = stale.max_age(Duration::from_millis(1));
    while !stale.status().is_stale {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let server = serve(routes().layer(StorageGuardLayer::new(stale))).await;
    let mut client = Raw::connect(server.address).await;
    client.send(head("/a", LARGE, "")).await;
    client.send(vec![0; LARGE]).await;
    assert_eq!(client.answer().await.status, 503);
    client.is_closed().await;
}

#[tokio::test]
async fn a_failed_service_is_answered_by_the_guard() {
    let fail = service_fn(async |_: Request<MeteredBody<Incoming>>| {
        Err::<Response<Full<Bytes>>, _>(io::Error::from(io::ErrorKind::StorageFull))
    });
    let server = serve(StorageGuardLayer::new(volume(1 << 30)).layer(fail)).await;
    for _ in 0..2 {
        let mut client = Raw::connect(server.address).await;
        client.send(head("/", LARGE, "")).await;
        client.send(vec![0; LARGE]).await;
        client.answer().await.is_refusal();
        client.is_closed().await;
    }
}

/// Whatever they say: a proxy would take the rest for the next request.
#[tokio::test]
async fn early_answers_of_a_handler_arrive_and_close_the_connection() {
    const STATUSES: [u16; 6] = [200, 201, 303, 409, 415, 500];
    let mut app = routes();
    for status in STATUSES {
        let early = StatusCode::from_u16(status).unwrap();
        app = app.route(&format!("/at-once/{status}"), put(async move || early));
        let in_the_middle = put(async move |mut body: Body| {
            body.frame().await;
            early
        });
        app = app.route(&format!("/in-the-middle/{status}"), in_the_middle);
        let while_it_is_read = put(async move |mut body: Body| {
            tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
            early
        });
        app = app.route(&format!("/read-behind/{status}"), while_it_is_read);
    }
    let server = serve(app.layer(StorageGuardLayer::new(volume(1 << 30)))).await;
    for status in STATUSES {
        for way in ["at-once", "in-the-middle", "read-behind"] {
            let path = format!("/{way}/{status}");
            let of_known_length = {
                let mut request = head(&path, LARGE, "").into_bytes();
                request.resize(request.len() + LARGE, 0);
                request
            };
            for request in [of_known_length, chunked(&path, LARGE)] {
                let mut client = Raw::connect(server.address).await;
                client.send(request).await;
                let answer = client.answer().await;
                assert_eq!(answer.status, status, "{path}");
                assert!(
                    answer.head.contains("\r\nconnection: close\r\n"),
                    "{answer:?}"
                );
                client.is_closed().await;
            }
            // Without content nothing is left.
            let mut client = Raw::connect(server.address).await;
            client.send(head(&path, 0, "")).await;
            assert_eq!(client.answer().await.status, status, "{path}");
            client.is_usable().await;
        }
    }
}

#[tokio::test]
async fn an_invalid_length_is_answered() {
    let store = service_fn(async |_: Request<MeteredBody<Full<Bytes>>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let guarded = StorageGuardLayer::new(volume(1 << 30)).layer(store);
    let request = Request::put("/").header("content-length", "many");
    let request = request.body(Full::from("content")).unwrap();
    assert_eq!(guarded.oneshot(request).await.unwrap().status(), 400);
}

#[tokio::test]
async fn over_http_2_the_other_streams_go_on() {
    let server = start(2 * MIB as u64).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let upload = |length: usize| {
        let (parts, body) = mpsc::channel::<Bytes>(1);
        let body = stream::unfold(body, async |mut body| {
            let part = body.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(part)), body))
        });
        let request = Request::put(server.url() + "/a").header("content-length", length);
        (
            parts,
            request.body(StreamBody::new(Box::pin(body))).unwrap(),
        )
    };
    let (parts, request) = upload(MIB);
    let admitted = tokio::spawn(sender.send_request(request));
    parts.send(Bytes::from(vec![0; MIB / 2])).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..10 {
        let (parts, request) = upload(LARGE);
        let answer = in_time(sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
        let body = in_time(answer.into_body().collect()).await.unwrap();
        assert!(!body.to_bytes().is_empty());
        held.push(parts);
    }
    parts.send(Bytes::from(vec![0; MIB / 2])).await.unwrap();
    drop(parts);
    let answer = in_time(admitted).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
}

/// What clients that stall hold by default for half a minute.
const SHORT: Duration = Duration::from_secs(6);

/// A server whose clients may be silent for [`SHORT`], and lose their place after a tenth of it.
async fn impatient(free: u64) -> (Volume, test_support::server::Server) {
    let volume = volume(free);
    let layer = StorageGuardLayer::new(volume.clone())
        .patience(SHORT)
        .stall_timeout(SHORT)
        .stall_grace(SHORT / 10);
    (volume, serve(routes().layer(layer)).await)
}

async fn claimed(volume: &Volume, bytes: usize) {
    let is_so = || volume.status().claimed == bytes as u64;
    test_support::eventually("claimed", is_so).await;
}

#[tokio::test]
async fn a_head_without_its_body_holds_no_room_that_others_need() {
    let (volume, server) = impatient(100 * MIB as u64).await;
    let mut silent = Raw::connect(server.address).await;
    silent.send(head("/a", 100 * MIB, "")).await;
    claimed(&volume, 100 * MIB).await;

    let began = Instant::now();
    let mut other = Raw::connect(server.address).await;
    other.send(body_of(MIB)).await;
    assert_eq!(other.answer().await.status, 201);
    assert!(began.elapsed() < SHORT / 2, "{:?}", began.elapsed());

    let answer = silent.answer().await;
    assert_eq!(answer.status, 408);
    assert!(answer.body.contains("body_stalled"), "{answer:?}");
    assert!(
        answer.head.contains("\r\nconnection: close\r\n"),
        "{answer:?}"
    );
    silent.is_closed().await;
    claimed(&volume, 0).await;
}

#[tokio::test]
async fn many_streams_of_one_connection_hold_no_room_that_others_need() {
    const STREAMS: usize = 190;
    const EACH: usize = 5 * MIB;

    let (volume, server) = impatient((STREAMS * EACH) as u64).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut silent = Vec::new();
    for _ in 0..STREAMS {
        let body = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let request = Request::put(format!("{}/a", server.url())).header("content-length", EACH);
        client.ready().await.unwrap();
        let request = request.body(StreamBody::new(body)).unwrap();
        silent.push(tokio::spawn(client.send_request(request)));
    }
    claimed(&volume, STREAMS * EACH).await;

    let mut other = Raw::connect(server.address).await;
    other.send(body_of(20 * MIB)).await;
    assert_eq!(other.answer().await.status, 201);
    for silent in silent {
        let answer = in_time(silent).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    }
    claimed(&volume, 0).await;
}
