//! What a review of the calls found, so that it stays found.

use std::{
    convert::Infallible,
    future::pending,
    io::{self, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use test_support::eventually;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, Refused, ResponseBody, Scopes, StorageGuardLayer,
    quota::{Answer, Change, Limits, MemoryQuota, QuotaError, QuotaHold, QuotaSource},
};

use crate::grpc::{Guarded, LIMIT, USER};

const BOUND: Duration = Duration::from_secs(10);

type Frames<E> = mpsc::UnboundedSender<Result<Frame<Bytes>, E>>;
type Content = UnsyncBoxBody<Bytes, io::Error>;
type Replies = UnsyncBoxBody<Bytes, BoxError>;

/// A call whose every frame the test decides, both ways.
struct ByHand {
    send: Frames<io::Error>,
    /// What the handler has.
    body: MeteredBody<Content>,
    reply: Frames<BoxError>,
    /// What the client gets.
    answer: Response<ResponseBody<Replies>>,
}

fn post(path: &str, content_type: &str, content: Content) -> Request<Content> {
    Request::post(path)
        .header(CONTENT_TYPE, content_type)
        .body(content)
        .unwrap()
}

/// Content of as many frames as the test sends.
fn by_hand<E: 'static + Send>() -> (Frames<E>, UnsyncBoxBody<Bytes, E>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let frames = UnboundedReceiverStream::new(receiver);
    (sender, StreamBody::new(frames).boxed_unsync())
}

impl ByHand {
    async fn call<Q>(layer: &StorageGuardLayer<Q>, content_type: &'static str) -> Self
    where
        Q: QuotaSource<Hold: Send, Future: Send> + Clone + Send + Sync + 'static,
    {
        let (send, content) = by_hand();
        let (reply, replies) = by_hand();
        let (give, taken) = oneshot::channel();
        let both = std::sync::Mutex::new(Some((give, replies)));
        let both = Arc::new(both);
        let service = service_fn(move |request: Request<MeteredBody<Content>>| {
            let (give, replies) = both.lock().unwrap().take().unwrap();
            give.send(request.into_body()).ok().unwrap();
            let response = Response::builder().header(CONTENT_TYPE, content_type);
            let response = response.body(replies).unwrap();
            async { Ok::<_, Infallible>(response) }
        });
        let request = post("/test.v1.Store/Any", content_type, content);
        let answer = layer.layer(service).oneshot(request).await.unwrap();
        Self {
            send,
            body: taken.await.unwrap(),
            reply,
            answer,
        }
    }

    fn reply(&self, content: impl Into<Bytes>) {
        self.reply.send(Ok(Frame::data(content.into()))).unwrap();
    }

    /// The next frame that the client gets.
    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        let frame = self.answer.body_mut().frame();
        timeout(BOUND, frame).await.expect("it comes")
    }

    async fn data(&mut self) -> Bytes {
        self.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    /// Sends more than there is room for.
    async fn cut(&mut self) {
        let too_much = Bytes::from(vec![7; LIMIT as usize + 1]);
        self.send.send(Ok(Frame::data(too_much))).unwrap();
        let error = self.body.frame().await.unwrap().unwrap_err();
        assert!(error.is::<Refused>());
    }
}

fn trailers(status: &'static str) -> HeaderMap {
    let status = HeaderValue::from_static(status);
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status)])
}

fn web_frame(flags: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![flags];
    frame.put_u32(content.len() as u32);
    frame.extend(content);
    frame
}

/// Frames that a cut puts into the middle of a message are read as the rest of that message.
#[tokio::test]
async fn a_cut_within_a_message_of_grpc_web_is_no_part_of_it() {
    for is_text in [false, true] {
        let guarded = Guarded::new();
        let content_type = if is_text {
            "application/grpc-web-text"
        } else {
            "application/grpc-web"
        };
        let mut call = ByHand::call(&guarded.layer, content_type).await;
        let mut half = web_frame(0, &[7; 1_000])[..600].to_vec();
        if is_text {
            half = STANDARD.encode(half).into();
        }
        call.reply(half.clone());
        assert_eq!(call.data().await, half);
        call.cut().await;
        let end = call.frame().await.unwrap();
        assert!(
            end.is_err(),
            "{content_type}: {} bytes into the message",
            end.unwrap().into_data().unwrap().len()
        );
        assert!(call.frame().await.is_none());
        guarded.all_is_settled(0).await;
    }
}

/// Four characters are three bytes, or two, or one. Between them there is no place for others.
#[tokio::test]
async fn a_cut_within_four_characters_of_base64_is_an_error() {
    let guarded = Guarded::new();
    let mut call = ByHand::call(&guarded.layer, "application/grpc-web-text").await;
    let text = STANDARD.encode(web_frame(0, b"1234"));
    call.reply(text[..text.len() - 1].to_owned());
    call.data().await;
    call.cut().await;
    assert!(call.frame().await.unwrap().is_err());
    guarded.all_is_settled(0).await;
}

#[tokio::test]
async fn all_of_grpc_web_goes_on_to_the_client_behind_the_status() {
    let mut huge = format!("grpc-status:0\r\nlong:{}\r\n", "x".repeat(100 << 10));
    huge.push_str("last:1\r\n");
    let mut text = STANDARD
        .encode(web_frame(0x80, b"grpc-status:0\r\n"))
        .into_bytes();
    let padding = text.split_off(text.len() - 1);
    assert_eq!(padding, b"=");
    let mut two = STANDARD
        .encode(web_frame(0x80, b"grpc-status: 0\r\nx:\r\n"))
        .into_bytes();
    assert!(two.ends_with(b"=="));
    let second = two.split_off(two.len() - 1);
    for (content_type, pieces) in [
        (
            "application/grpc-web",
            web_frame(0x80, huge.as_bytes())
                .chunks(8 << 10)
                .map(<[u8]>::to_vec)
                .collect(),
        ),
        ("application/grpc-web-text", vec![text, padding]),
        ("application/grpc-web-text", vec![two, second]),
    ] {
        let guarded = Guarded::new();
        let ByHand {
            body,
            reply,
            answer,
            send,
        } = ByHand::call(&guarded.layer, content_type).await;
        drop((send, body));
        let whole = pieces.concat();
        for piece in pieces {
            reply.send(Ok(Frame::data(piece.into()))).unwrap();
        }
        drop(reply);
        let got = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            (got.len(), got == whole),
            (whole.len(), true),
            "{content_type}"
        );
        guarded.all_is_settled(0).await;
    }
}

/// A handler that pipes has the cut in its answer before the guard has looked.
#[tokio::test]
async fn a_cut_that_comes_as_the_answers_error_is_the_refusal() {
    let guarded = Guarded::new();
    let service = service_fn(async |request: Request<MeteredBody<Content>>| {
        let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
        Ok::<_, Infallible>(response.body(request.into_body()).unwrap())
    });
    let content = stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![7; 10_000]))));
    let content = StreamBody::new(content.take(20)).boxed_unsync();
    let request = post("/test.v1.Store/Any", "application/grpc", content);
    let answer = guarded.layer.layer(service).oneshot(request).await.unwrap();
    let answer = answer.into_body().collect().await.expect("no error");
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "8");
    guarded.all_is_settled(0).await;
}

/// Its length may be another in the end.
#[tokio::test]
async fn the_length_of_a_call_is_not_told_before_its_end() {
    let guarded = Guarded::new();
    for content_type in ["application/grpc", "application/grpc-web+proto"] {
        let service = service_fn(async |_: Request<MeteredBody<Content>>| {
            let response = Response::builder()
                .header(CONTENT_TYPE, content_type)
                .header("content-length", 4_000);
            let content = Full::new(Bytes::from(vec![0; 4_000]));
            let content = content.with_trailers(async { Some(Ok(trailers("0"))) });
            Ok::<_, Infallible>(response.body(content).unwrap())
        });
        let content = StreamBody::new(stream::empty()).boxed_unsync();
        let request = post("/test.v1.Store/Any", content_type, content);
        let answer = guarded.layer.layer(service).oneshot(request).await.unwrap();
        assert_eq!(answer.body().size_hint().exact(), None, "{content_type}");
        assert!(!answer.headers().contains_key("content-length"));
    }
}

/// The same failure is released when it comes in the trailers.
#[tokio::test]
async fn a_call_that_fails_in_its_head_is_not_charged_whatever_its_http_status() {
    let guarded = Guarded::new();
    let layer = guarded.layer.clone();
    let layer = layer.success_when(|head| head.status.is_success());
    let service = service_fn(async |request: Request<MeteredBody<Content>>| {
        request.into_body().collect().await.unwrap();
        let response = Response::builder()
            .header(CONTENT_TYPE, "application/grpc")
            .header("grpc-status", "5");
        Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
    });
    let content = Full::new(Bytes::from_static(&[7; 1_000]));
    let content = content.map_err(|never| match never {}).boxed_unsync();
    let request = post("/test.v1.Store/Any", "application/grpc", content);
    layer.layer(service).oneshot(request).await.unwrap();
    guarded.all_is_settled(0).await;
}

/// Whoever sends the request chooses its content type and its headers.
#[tokio::test]
async fn a_client_does_not_choose_whether_it_is_guarded() {
    let guarded = Guarded::new();
    // No calls are served here at all.
    let layer = StorageGuardLayer::quota_only(guarded.quota.clone()).scope_by(|_| USER);
    let app = axum::Router::new()
        .route(
            "/files",
            axum::routing::post(async |_: Bytes| StatusCode::CREATED),
        )
        .layer(layer);
    for (name, value) in [
        ("content-type", "image/png"),
        ("content-type", "application/grpc"),
        ("content-type", "application/grpc-web"),
        ("content-type", "application/connect+x"),
        ("connect-protocol-version", "1"),
    ] {
        let request = Request::post("/files")
            .header(name, value)
            .body(axum::body::Body::from(vec![7; LIMIT as usize + 1]))
            .unwrap();
        let answer = app.clone().oneshot(request).await.unwrap();
        assert_ne!(answer.status(), StatusCode::CREATED, "{name}: {value}");
    }
}

type Inner = ResponseBody<Replies>;

/// Reads all, and answers a message for each frame.
async fn echo<B>(request: Request<B>) -> Result<Response<Replies>, Infallible>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let replies = BodyStream::new(request.into_body());
    let ok = stream::iter([Ok(Frame::trailers(trailers("0")))]);
    let content = StreamBody::new(replies.chain(ok)).boxed_unsync();
    let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
    Ok(response.body(content).unwrap())
}

#[tokio::test]
async fn two_guards_settle_together() {
    for (outer, inner, frames) in [(LIMIT, LIMIT, 3), (20_000, LIMIT, 10), (LIMIT, 20_000, 10)] {
        let (first, second) = (Guarded::new(), Guarded::new());
        first.quota.set_limits(USER, Limits::bytes(outer));
        second.quota.set_limits(USER, Limits::bytes(inner));
        let inside = second.layer.layer(service_fn(echo));
        let service = first.layer.layer(inside);
        let content = stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![7; 5_000]))));
        let content = StreamBody::new(content.take(frames)).boxed_unsync();
        let request = post("/test.v1.Store/Any", "application/grpc", content);
        let answer: Response<ResponseBody<Inner>> = service.oneshot(request).await.unwrap();
        let collected = answer.into_body().collect().await.unwrap();
        let fits = frames == 3;
        let status = &collected.trailers().unwrap()["grpc-status"];
        assert_eq!(status, if fits { "0" } else { "8" });
        let used = if fits { 15_000 } else { 0 };
        first.all_is_settled(used).await;
        second.all_is_settled(used).await;
    }
}

/// A quota whose commits wait for the test.
#[derive(Clone)]
struct Slow {
    quota: MemoryQuota,
    commits: Arc<AtomicUsize>,
    open: Arc<tokio::sync::Semaphore>,
}

struct SlowHold<H>(H, Slow);

impl Slow {
    fn new(quota: MemoryQuota) -> Self {
        Self {
            quota,
            commits: Arc::default(),
            open: Arc::new(tokio::sync::Semaphore::new(0)),
        }
    }
}

impl QuotaSource for Slow {
    type Future = BoxFuture<'static, Result<Self::Hold, QuotaError>>;
    type Hold = SlowHold<<MemoryQuota as QuotaSource>::Hold>;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let (slow, held) = (self.clone(), self.quota.reserve(scopes, demand, expected));
        Answer::Later(async { Ok(SlowHold(held.await?, slow)) }.boxed())
    }

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        self.quota.give_back(scopes, amount);
    }
}

impl<H: QuotaHold> QuotaHold for SlowHold<H> {
    type Commit = BoxFuture<'static, ()>;
    type Grow = H::Grow;

    fn grow(&mut self, more: Amount) -> H::Grow {
        self.0.grow(more)
    }

    fn commit(self, change: Change) -> Self::Commit {
        let Self(hold, slow) = self;
        slow.commits.fetch_add(1, SeqCst);
        drop(hold.commit(change));
        async move { drop(slow.open.acquire().await) }.boxed()
    }
}

#[tokio::test]
async fn the_status_waits_for_its_charge_and_is_charged_once() {
    for is_dropped in [false, true] {
        let guarded = Guarded::new();
        let slow = Slow::new(guarded.quota.clone());
        let layer = guarded.layer.clone().quota(slow.clone());
        let mut call = ByHand::call(&layer, "application/grpc").await;
        call.send
            .send(Ok(Frame::data(vec![7; 1_000].into())))
            .unwrap();
        call.body.frame().await.unwrap().unwrap();
        let (send, _) = mpsc::unbounded_channel();
        drop(std::mem::replace(&mut call.send, send));
        assert!(call.body.frame().await.is_none());
        call.reply.send(Ok(Frame::trailers(trailers("0")))).unwrap();
        assert!(call.answer.body_mut().frame().now_or_never().is_none());
        assert!(!call.answer.body().is_end_stream());
        assert_eq!(slow.commits.load(SeqCst), 1);
        if is_dropped {
            drop(call);
        } else {
            let open = Arc::clone(&slow.open);
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                open.add_permits(1);
            });
            let last = call.frame().await.unwrap().unwrap();
            assert_eq!(last.into_trailers().unwrap(), trailers("0"));
            assert!(call.answer.body().is_end_stream());
            assert!(call.frame().await.is_none());
        }
        guarded.all_is_settled(1_000).await;
        assert_eq!(slow.commits.load(SeqCst), 1);
    }
}

/// Serves one connection over each version of HTTP.
async fn serve<S, R>(service: S) -> [std::net::SocketAddr; 2]
where
    S: tower::Service<Request<hyper::body::Incoming>, Response = Response<R>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut addrs = Vec::new();
    for is_two in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addrs.push(listener.local_addr().unwrap());
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let io = TokioIo::new(socket);
            if is_two {
                let server = http2::Builder::new(TokioExecutor::new());
                server.serve_connection(io, service).await.ok();
            } else {
                http1::Builder::new()
                    .serve_connection(io, service)
                    .await
                    .ok();
            }
        });
    }
    addrs.try_into().unwrap()
}

/// Content without end, as fast as it goes.
fn endless() -> UnsyncBoxBody<Bytes, Infallible> {
    let frame = || Ok(Frame::data(Bytes::from(vec![7; 16 << 10])));
    StreamBody::new(stream::repeat_with(frame)).boxed_unsync()
}

/// Over HTTP/2 the status of a cut arrives, though the client is still sending.
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

/// Over HTTP/1 the last frame of a cut arrives, though the client is still sending.
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
            let mut got = Vec::new();
            socket
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            let _ = io::Read::read_to_end(&mut socket, &mut got);
            String::from_utf8_lossy(&got).into_owned()
        });
        let got = got.await.unwrap();
        assert!(got.contains("grpc-status:8"), "{round}: {got}");
        guarded.all_is_settled(0).await;
    }
}

/// But for NO_ERROR, which hyper 1.12 takes for the end of a body, whoever sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_an_upload_does_not_look_whole_whatever_the_reset_says() {
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

#[tokio::test]
async fn an_answer_that_panics_or_is_not_read_is_released() {
    let guarded = Guarded::new();
    let call = ByHand::call(&guarded.layer, "application/grpc").await;
    assert_ne!(guarded.quota.usage(USER).held, Amount::ZERO);
    let ByHand { answer, body, .. } = call;
    drop(answer);
    eventually("it is released", || {
        guarded.quota.usage(USER).held == Amount::ZERO
    })
    .await;
    drop(body);
    guarded.all_is_settled(0).await;

    let service = service_fn(async |_: Request<MeteredBody<Content>>| {
        let content = stream::once(async { panic!("halfway") });
        let content = StreamBody::new(content.map(|()| Ok(Frame::data(Bytes::new()))));
        let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
        Ok::<_, Infallible>(response.body(content.boxed_unsync()).unwrap())
    });
    let content = StreamBody::new(stream::empty()).boxed_unsync();
    let request = post("/test.v1.Store/Any", "application/grpc", content);
    let answer: Response<Inner> = guarded.layer.layer(service).oneshot(request).await.unwrap();
    tokio::spawn(answer.into_body().collect())
        .await
        .unwrap_err();
    guarded.all_is_settled(0).await;
}

#[tokio::test]
async fn trailers_before_the_end_of_the_request_wait_for_it_and_a_cut_takes_their_place() {
    // The trailers come first; then the request ends, is broken off, or is cut.
    for (then, used) in [
        ("ends", 1_000),
        ("breaks", 0),
        ("cut", 0),
        ("dropped", 1_000),
    ] {
        let guarded = Guarded::new();
        let mut call = ByHand::call(&guarded.layer, "application/grpc").await;
        call.send
            .send(Ok(Frame::data(vec![7; 1_000].into())))
            .unwrap();
        call.body.frame().await.unwrap().unwrap();
        call.reply.send(Ok(Frame::trailers(trailers("0")))).unwrap();
        let last = call.frame().await.unwrap().unwrap();
        assert_eq!(last.into_trailers().unwrap(), trailers("0"));
        assert_eq!(guarded.quota.usage(USER).used, Amount::ZERO);
        drop(call.answer);
        match then {
            "ends" => {
                drop(call.send);
                assert!(call.body.frame().await.is_none());
                assert!(call.body.frame().await.is_none());
            }
            "breaks" => {
                call.send
                    .send(Err(io::ErrorKind::BrokenPipe.into()))
                    .unwrap();
                call.body.frame().await.unwrap().unwrap_err();
            }
            "cut" => {
                let too_much = Bytes::from(vec![7; LIMIT as usize]);
                call.send.send(Ok(Frame::data(too_much))).unwrap();
                call.body.frame().await.unwrap().unwrap_err();
            }
            _ => drop(call.body),
        }
        guarded.all_is_settled(used).await;
    }
}

/// As behind a refusal in the head: over HTTP/1 a client that is cut off while it sends may not see the end.
#[tokio::test]
async fn what_is_left_behind_a_cut_is_drained() {
    let guarded = Guarded::new();
    let mut call = ByHand::call(&guarded.layer, "application/grpc-web").await;
    call.cut().await;
    let last = call.data().await;
    assert_eq!(last[0], 0x80);
    assert!(call.frame().await.is_none());
    drop((call.answer, call.body));
    for _ in 0..10 {
        tokio::task::yield_now().await;
        assert!(!call.send.is_closed(), "nobody reads on");
    }
}

/// With a hint for each guess, the figure is found in a few calls.
#[tokio::test]
async fn a_limit_of_somebody_elses_cannot_be_guessed() {
    let guarded = Guarded::new();
    guarded.quota.adjust(USER, Amount::bytes(LIMIT).into());
    let layer = guarded.layer.clone();
    let layer = layer.scope_by(|_| tower_storage_guard::Scope::from(USER).undisclosed());
    let mut told = Vec::new();
    for guess in [LIMIT, LIMIT + 1] {
        let content = StreamBody::new(stream::empty()).boxed_unsync();
        let mut request = post("/test.v1.Store/Any", "application/grpc", content);
        request
            .headers_mut()
            .insert("x-upload-length", guess.into());
        let answer = layer
            .layer(service_fn(echo))
            .oneshot(request)
            .await
            .unwrap();
        let status = tonic::Status::from_header_map(answer.headers()).unwrap();
        let details = tonic_types::StatusExt::get_error_details(&status);
        told.push(details.error_info().unwrap().metadata.clone());
    }
    assert_eq!(told[0], told[1]);
}
