//! gRPC: a tonic server under guard, as its clients see it.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http::{Request, uri::PathAndQuery};
use http_body_util::{BodyExt, StreamBody};
use hyper::{rt::Executor, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use test_support::{Dice, eventually, proto::GetReply as Message};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Response, Status, Streaming,
    body::Body,
    client,
    server::{self, NamedService},
    transport::{Channel, Server},
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_storage_guard::{
    Amount, Probe, Reading, StorageGuardLayer, Volume,
    fault::Cause,
    quota::{Limits, MemoryQuota},
    setup::Scoped,
    tonic::{reservation, status},
};

use crate::calls_by_hand::{echo, post};

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const USER: &str = "user:1";
/// The quota of a user, in bytes.
pub(crate) const LIMIT: u64 = 100_000;
/// The content of a message, in bytes. Its field and its prefix take eight more.
pub(crate) const CONTENT: usize = 10_000;
pub(crate) const FRAMING: u64 = 8;

/// A disk with a settable amount of room.
#[derive(Clone)]
pub(crate) struct Room(Arc<AtomicU64>);

impl Probe for Room {
    fn read(&mut self) -> io::Result<Reading> {
        Ok(Reading::new(self.0.load(Ordering::Acquire), GIB))
    }
}

/// The setup of every test: a volume, a quota, and a guard on both.
pub(crate) struct Guarded {
    room: Room,
    volume: Volume,
    pub(crate) quota: MemoryQuota,
    pub(crate) layer: StorageGuardLayer<MemoryQuota, Scoped>,
}

impl Guarded {
    pub(crate) fn new() -> Self {
        Self::with_room(GIB)
    }

    /// With this many bytes on the volume.
    pub(crate) fn with_room(bytes: u64) -> Self {
        let room = Room(Arc::new(AtomicU64::new(bytes)));
        let volume = Volume::builder().probe_every(Duration::from_millis(5));
        let volume = volume.from_probe(room.clone()).unwrap();
        let quota = MemoryQuota::new(Limits::bytes(LIMIT));
        let layer = StorageGuardLayer::new(volume.clone())
            .quota(quota.clone())
            .scope_by(|_| USER)
            .grants(1 << 10, 1 << 12)
            .calls([Store::NAME])
            .unwrap();
        Self {
            room,
            volume,
            quota,
            layer,
        }
    }

    /// From now on nothing fits on the volume.
    async fn fill(&self) {
        self.room.0.store(0, Ordering::Release);
        eventually("the probe sees it", || {
            self.volume.refresh();
            self.volume.status().available == 0
        })
        .await;
    }

    /// Waits until nothing is reserved any more, and checks that this much is used.
    pub(crate) async fn all_is_settled(&self, used: u64) {
        eventually("nothing is claimed", || {
            self.volume.refresh();
            let status = self.volume.status();
            (status.claimed, status.objects_claimed) == (0, 0)
        })
        .await;
        eventually("nothing is held", || {
            self.quota.usage(USER).held == Amount::ZERO
        })
        .await;
        assert_eq!(self.quota.usage(USER).used.bytes, used);
    }

    async fn serve(&self) -> Caller {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::builder()
            .layer(self.layer.clone())
            .add_service(Behaving::<true>)
            .add_service(Behaving::<false>);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Caller::to(addr).await
    }
}

/// A service that stores nothing, and behaves as the method says. The guard knows one of its two names.
#[derive(Clone)]
pub(crate) struct Behaving<const NAMED: bool>;

pub(crate) type Store = Behaving<true>;

impl<const NAMED: bool> NamedService for Behaving<NAMED> {
    const NAME: &'static str = if NAMED {
        "test.v1.Store"
    } else {
        "test.v1.Reads"
    };
}

impl<const NAMED: bool> Service<Request<Body>> for Behaving<NAMED> {
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;
    type Response = http::Response<Body>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        serve(request).map(Ok).boxed()
    }
}

async fn serve(request: Request<Body>) -> http::Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let mut grpc = server::Grpc::new(ProstCodec::<Message, Message>::default());
    match &*method {
        "Sink" => {
            let sink = service_fn(|request: tonic::Request<Streaming<Message>>| async {
                drop(reservation(&request)?);
                let mut messages = request.into_inner();
                while messages.message().await?.is_some() {}
                Ok(Response::new(Message::default()))
            });
            grpc.client_streaming(sink, request).await
        }
        "Small" | "NotFound" | "RateLimit" | "DiskFull" | "Wrapped" => {
            let unary = service_fn(|_| async { reply(&method) });
            grpc.unary(unary, request).await
        }
        _ => {
            let stream = service_fn(|request: tonic::Request<Streaming<Message>>| {
                let replies = replies(&method, request.into_inner());
                async { Ok(Response::new(replies)) }
            });
            grpc.streaming(stream, request).await
        }
    }
}

fn reply(method: &str) -> Result<Response<Message>, Status> {
    Err(match method {
        "Small" => return Ok(Response::new(Message::default())),
        "NotFound" => Status::not_found("no such thing"),
        "RateLimit" => Status::resource_exhausted("too many calls"),
        "DiskFull" => disk_full(),
        // A text is not a storage fault.
        "Wrapped" => status(format!("{:?}", io::ErrorKind::StorageFull)),
        _ => unreachable!("{method}"),
    })
}

fn replies(
    method: &str,
    mut messages: Streaming<Message>,
) -> BoxStream<'static, Result<Message, Status>> {
    match method {
        // The answer reads the request.
        "Echo" => messages.boxed(),
        // A task reads it.
        "EchoElsewhere" => {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                while let Some(message) = messages.next().await {
                    if sender.send(message).await.is_err() {
                        return;
                    }
                }
            });
            ReceiverStream::new(receiver).boxed()
        }
        "One" => messages.take(1).boxed(),
        "OneThenAborted" => {
            let aborted = stream::iter([Err(Status::aborted("no more"))]);
            messages.take(1).chain(aborted).boxed()
        }
        "OneThenDiskFull" => {
            let full = stream::iter([Err(disk_full())]);
            messages.take(1).chain(full).boxed()
        }
        // Answers at once, and reads everything after the answer.
        "Behind" => {
            tokio::spawn(async move { while let Ok(Some(_)) = messages.message().await {} });
            stream::empty().boxed()
        }
        _ => unreachable!("{method}"),
    }
}

fn disk_full() -> Status {
    status(io::Error::from(io::ErrorKind::StorageFull))
}

/// A tonic client.
#[derive(Clone)]
pub(crate) struct Caller {
    grpc: client::Grpc<BoxCloneSyncService<Request<Body>, http::Response<Body>, Status>>,
    addr: SocketAddr,
}

impl Caller {
    pub(crate) async fn to(addr: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{addr}")).unwrap();
        let channel = channel.connect().await.unwrap().map_err(failed);
        let grpc = client::Grpc::new(BoxCloneSyncService::new(channel));
        Self { grpc, addr }
    }

    /// On a connection of its own, which is closed when its tasks are aborted.
    async fn alone(&self) -> (Self, Tasks) {
        let tasks = Tasks::default();
        let socket = TokioIo::new(TcpStream::connect(self.addr).await.unwrap());
        let handshake = hyper::client::conn::http2::handshake(tasks.clone(), socket);
        let (requests, connection) = handshake.await.unwrap();
        tasks.execute(connection);
        let channel = service_fn(move |request| {
            let answered = requests.clone().send_request(request);
            async move { Ok(answered.await.map_err(failed)?.map(Body::new)) }
        });
        let addr = self.addr;
        let origin = format!("http://{addr}").parse().unwrap();
        let grpc = client::Grpc::with_origin(BoxCloneSyncService::new(channel), origin);
        (Self { grpc, addr }, tasks)
    }

    pub(crate) async fn unary(
        &self,
        path: &'static str,
        request: tonic::Request<Message>,
    ) -> Result<Response<Message>, Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static(path);
        grpc.unary(request, path, ProstCodec::default()).await
    }

    async fn sink(
        &self,
        messages: impl Stream<Item = Message> + Send + 'static,
    ) -> Result<(), Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.v1.Store/Sink");
        let request = tonic::Request::new(messages);
        let reply: Response<Message> = grpc
            .client_streaming(request, path, ProstCodec::default())
            .await?;
        drop(reply);
        Ok(())
    }

    async fn stream(
        &self,
        path: &'static str,
        messages: impl Stream<Item = Message> + Send + 'static,
    ) -> Result<Streaming<Message>, Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static(path);
        let request = tonic::Request::new(messages);
        let reply = grpc.streaming(request, path, ProstCodec::default()).await?;
        Ok(reply.into_inner())
    }
}

/// The tasks of a connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<AbortHandle>>>);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let task = tokio::spawn(task).abort_handle();
        self.0.lock().unwrap().push(task);
    }
}

impl Tasks {
    fn abort(&self) {
        self.0.lock().unwrap().iter().for_each(AbortHandle::abort);
    }
}

fn failed(error: impl Into<BoxError>) -> Status {
    Status::from_error(error.into())
}

pub(crate) fn message() -> Message {
    Message {
        chunk: Bytes::from(vec![7; CONTENT]),
    }
}

/// The size of this many messages on the wire, in bytes.
pub(crate) fn on_the_wire(messages: u64) -> u64 {
    messages * (CONTENT as u64 + FRAMING)
}

/// Messages that the test sends one by one. They end when the test drops this.
fn by_hand() -> (mpsc::Sender<Message>, ReceiverStream<Message>) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, ReceiverStream::new(receiver))
}

fn reason(status: &Status) -> String {
    let details = status.check_error_details().unwrap();
    details.error_info().expect("there is one").reason.clone()
}

#[tokio::test]
async fn a_call_that_fits_is_charged_by_its_trailers() {
    let guarded = Guarded::new();
    let caller = guarded.serve().await;
    let request = tonic::Request::new(message());
    caller.unary("/test.v1.Store/Small", request).await.unwrap();
    guarded.all_is_settled(on_the_wire(1)).await;
}

#[tokio::test]
async fn a_hint_is_refused_at_the_door() {
    let guarded = Guarded::new();
    let caller = guarded.serve().await;
    let mut request = tonic::Request::new(message());
    let too_much = (LIMIT + 1).to_string().parse().unwrap();
    request.metadata_mut().insert("x-upload-length", too_much);

    let refused = caller.unary("/test.v1.Store/Small", request).await;
    let status = refused.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "Storage quota exceeded");
    let details = status.check_error_details().unwrap();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "QUOTA_EXCEEDED");
    assert_eq!(info.metadata["limit_bytes"], LIMIT.to_string());
    assert_eq!(info.metadata["required_bytes"], (LIMIT + 1).to_string());
    assert_eq!(details.quota_failure().unwrap().violations[0].subject, USER);
    assert!(details.retry_info().is_none());
    guarded.all_is_settled(0).await;
}

/// With a hint for each guess, a client could find the figure in a few calls.
#[tokio::test]
async fn the_limit_of_another_scope_cannot_be_guessed() {
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

#[tokio::test]
async fn retry_info_is_sent_if_configured() {
    let mut guarded = Guarded::new();
    let after = Duration::from_millis(1_500);
    guarded.layer = guarded.layer.retry_after(Cause::DiskFull, after);
    let caller = guarded.serve().await;
    guarded.fill().await;
    let request = tonic::Request::new(message());
    let refused = caller.unary("/test.v1.Store/Small", request).await;
    let details = refused.unwrap_err().check_error_details().unwrap();
    let retry = details.retry_info().unwrap().retry_delay;
    assert_eq!(retry, Some(Duration::from_secs(2)));
}

#[tokio::test]
async fn only_named_calls_are_refused() {
    let guarded = Guarded::new();
    let caller = guarded.serve().await;
    guarded.fill().await;
    let request = || tonic::Request::new(message());
    let refused = caller.unary("/test.v1.Store/Small", request()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "Server storage capacity reached");
    assert_eq!(reason(&refused), "DISK_FULL");
    caller
        .unary("/test.v1.Reads/Small", request())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_handlers_own_errors_pass_and_are_not_charged() {
    let guarded = Guarded::new();
    let caller = guarded.serve().await;
    for (path, code, message) in [
        ("/test.v1.Store/NotFound", Code::NotFound, "no such thing"),
        // Not about storage: the guard passes it on unchanged.
        (
            "/test.v1.Store/RateLimit",
            Code::ResourceExhausted,
            "too many calls",
        ),
        (
            "/test.v1.Reads/RateLimit",
            Code::ResourceExhausted,
            "too many calls",
        ),
        // The client learns nothing about the error.
        ("/test.v1.Store/Wrapped", Code::Internal, "Internal error"),
    ] {
        let request = tonic::Request::new(self::message());
        let status = caller.unary(path, request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message), "{path}");
        assert!(status.details().is_empty());
    }
    guarded.all_is_settled(0).await;
}

#[tokio::test]
async fn storage_faults_of_every_origin_are_the_standard_refusal() {
    let mut guarded = Guarded::new();
    let grpc = tower_storage_guard::refusal::Grpc::default().domain("files.example.com");
    guarded.layer = guarded.layer.grpc(grpc);
    let caller = guarded.serve().await;
    for path in ["/test.v1.Store/DiskFull", "/test.v1.Reads/DiskFull"] {
        let request = tonic::Request::new(message());
        let status = caller.unary(path, request).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}");
        assert_eq!(status.message(), "Server storage capacity reached");
        let details = status.check_error_details().unwrap();
        let info = details.error_info().unwrap();
        assert_eq!(
            (&*info.reason, &*info.domain),
            ("DISK_FULL", "files.example.com")
        );
    }
    guarded.all_is_settled(0).await;
}

#[tokio::test]
async fn a_client_stream_is_cut_where_it_no_longer_fits() {
    let guarded = Guarded::new();
    let caller = guarded.serve().await;
    let sent = caller.sink(stream::iter(vec![message(); 9])).await;
    sent.unwrap();
    guarded.all_is_settled(on_the_wire(9)).await;

    let status = caller.sink(stream::repeat(message()).take(20)).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "Storage quota exceeded");
    assert_eq!(reason(&status), "QUOTA_EXCEEDED");
    guarded.all_is_settled(on_the_wire(9)).await;
}

#[tokio::test]
async fn a_cut_after_the_head_is_in_the_trailers() {
    for path in ["/test.v1.Store/Echo", "/test.v1.Store/EchoElsewhere"] {
        let guarded = Guarded::new();
        let caller = guarded.serve().await;
        let messages = stream::repeat(message()).take(20);
        let mut replies = caller.stream(path, messages).await.unwrap();
        let mut whole = 0;
        let status = loop {
            match replies.message().await {
                Ok(Some(reply)) => {
                    assert_eq!(reply, message());
                    whole += 1;
                }
                Ok(None) => panic!("{path}: a clean end"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}");
        assert_eq!(reason(&status), "QUOTA_EXCEEDED", "{path}");
        assert!((1..=9).contains(&whole), "{path}: {whole}");
        // Other calls on the connection continue.
        let request = tonic::Request::new(message());
        caller.unary("/test.v1.Store/Small", request).await.unwrap();
        guarded.all_is_settled(on_the_wire(1)).await;
    }
}

#[tokio::test]
async fn the_client_ends_first() {
    for path in ["/test.v1.Store/Echo", "/test.v1.Store/EchoElsewhere"] {
        let guarded = Guarded::new();
        let caller = guarded.serve().await;
        let (sender, messages) = by_hand();
        let mut replies = caller.stream(path, messages).await.unwrap();
        for _ in 0..3 {
            sender.send(message()).await.unwrap();
            assert!(replies.message().await.unwrap().is_some());
        }
        assert_ne!(guarded.quota.usage(USER).held, Amount::ZERO);
        assert_eq!(guarded.quota.usage(USER).used, Amount::ZERO);
        drop(sender);
        assert!(replies.message().await.unwrap().is_none());
        // It is charged before the client receives the answer.
        assert_eq!(guarded.quota.usage(USER).used.bytes, on_the_wire(3));
        guarded.all_is_settled(on_the_wire(3)).await;
    }
}

#[tokio::test]
async fn the_server_ends_first() {
    let guarded = Guarded::new();
    let caller = guarded.serve().await;
    let (sender, messages) = by_hand();
    let mut replies = caller.stream("/test.v1.Store/One", messages).await.unwrap();
    sender.send(message()).await.unwrap();
    assert!(replies.message().await.unwrap().is_some());
    assert!(replies.message().await.unwrap().is_none());
    guarded.all_is_settled(on_the_wire(1)).await;
}

#[tokio::test]
async fn the_server_ends_first_and_reads_on() {
    let guarded = Guarded::new();
    let caller = guarded.serve().await;
    let (sender, messages) = by_hand();
    let path = "/test.v1.Store/Behind";
    let mut replies = caller.stream(path, messages).await.unwrap();
    assert!(replies.message().await.unwrap().is_none());
    for _ in 0..2 {
        sender.send(message()).await.unwrap();
    }
    assert_eq!(guarded.quota.usage(USER).used, Amount::ZERO);
    drop(sender);
    eventually("it is charged", || {
        guarded.quota.usage(USER).used.bytes == on_the_wire(2)
    })
    .await;
    guarded.all_is_settled(on_the_wire(2)).await;
}

#[tokio::test]
async fn a_call_that_fails_after_the_head_is_not_charged() {
    for (path, code) in [
        ("/test.v1.Store/OneThenAborted", Code::Aborted),
        ("/test.v1.Store/OneThenDiskFull", Code::ResourceExhausted),
    ] {
        let guarded = Guarded::new();
        let caller = guarded.serve().await;
        let (sender, messages) = by_hand();
        let mut replies = caller.stream(path, messages).await.unwrap();
        sender.send(message()).await.unwrap();
        assert!(replies.message().await.unwrap().is_some());
        let status = replies.message().await.unwrap_err();
        assert_eq!(status.code(), code);
        if code == Code::ResourceExhausted {
            assert_eq!(reason(&status), "DISK_FULL");
        }
        guarded.all_is_settled(0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_not_charged() {
    for path in ["/test.v1.Store/Echo", "/test.v1.Store/EchoElsewhere"] {
        let guarded = Guarded::new();
        let caller = guarded.serve().await;
        let (sender, messages) = by_hand();
        let mut replies = caller.stream(path, messages).await.unwrap();
        sender.send(message()).await.unwrap();
        assert!(replies.message().await.unwrap().is_some());
        drop(replies);
        drop(sender);
        guarded.all_is_settled(0).await;
    }
}

/// tonic treats a reset as the end of the stream. A handler that reads in a task of its own would store half an
/// upload as a complete one.
#[tokio::test]
async fn half_an_upload_does_not_look_complete() {
    async fn how_it_ended(path: &'static str, guarded: &Guarded) -> Result<Option<Message>, Code> {
        let (reports, mut reported) = mpsc::channel(1);
        let service = service_fn(move |request: Request<_>| {
            let reports = reports.clone();
            let upload = service_fn(move |request: tonic::Request<Streaming<Message>>| {
                let (mut messages, reports) = (request.into_inner(), reports.clone());
                tokio::spawn(async move {
                    for _ in 0..2 {
                        let read = messages.message().await;
                        let report = read.map_err(|status| status.code());
                        reports.send(report).await.unwrap();
                    }
                });
                pending::<Result<Response<Message>, Status>>()
            });
            async move {
                let mut grpc = server::Grpc::new(ProstCodec::<Message, Message>::default());
                Ok::<_, Infallible>(grpc.client_streaming(upload, request).await)
            }
        });
        let service = TowerToHyperService::new(guarded.layer.layer(service));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let server = http2::Builder::new(TokioExecutor::new());
            server.serve_connection(TokioIo::new(socket), service).await
        });
        let caller = Caller::to(addr).await;
        let (sender, messages) = by_hand();
        let call = tokio::spawn(async move { caller.stream(path, messages).await.map(drop) });
        sender.send(message()).await.unwrap();
        assert_eq!(reported.recv().await.unwrap(), Ok(Some(message())));
        call.abort();
        reported.recv().await.unwrap()
    }

    let guarded = Guarded::new();
    let unguarded = how_it_ended("/test.v1.Reads/Upload", &guarded).await;
    assert_eq!(unguarded, Ok(None), "tonic has learned better");
    let end = how_it_ended("/test.v1.Store/Upload", &guarded).await;
    assert_eq!(end, Err(Code::Unknown));
    guarded.all_is_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cancelled_streams_leave_nothing() {
    let guarded = Guarded::new();
    guarded.quota.set_limits(USER, Limits::UNLIMITED);
    let caller = guarded.serve().await;
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..200 {
        let caller = caller.clone();
        streams.spawn(async move {
            let mut dice = Dice::new(number);
            let (sent, cancelled_after) = (dice.roll(8), Duration::from_micros(dice.roll(30_000)));
            let pauses = Duration::from_micros(dice.roll(3_000));
            let messages = stream::iter(0..sent).then(move |_| async move {
                tokio::time::sleep(pauses).await;
                message()
            });
            // It does not end by itself.
            let messages = messages.chain(stream::pending());
            let (path, alone) = match number % 3 {
                // A call without an answer yet is reset.
                0 => {
                    let call = caller.sink(messages);
                    let _ = tokio::time::timeout(cancelled_after, call).await;
                    return;
                }
                // With an answer, hyper's client keeps the stream open for as long as there may be more to send.
                1 => ("/test.v1.Store/Echo", caller.alone().await),
                _ => ("/test.v1.Store/EchoElsewhere", caller.alone().await),
            };
            let (caller, connection) = alone;
            let call = async {
                let mut replies = caller.stream(path, messages).await.unwrap();
                while let Ok(Some(_)) = replies.message().await {}
            };
            let _ = tokio::time::timeout(cancelled_after, call).await;
            connection.abort();
        });
    }
    streams.join_all().await;
    guarded.all_is_settled(0).await;
}
