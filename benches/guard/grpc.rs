//! gRPC: a tonic service, as its server calls it.

use std::{
    pin::{Pin, pin},
    sync::{Arc, LazyLock},
    task::{Context, Poll, Wake, Waker},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http::{
    Method, Request, Response, Version,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use http_body::{Body, Frame};
use prost::Message;
use tonic::{Status, Streaming, body::Body as TonicBody};
use tower::{Layer, Service};
use tower_storage_guard::{StorageGuardLayer, quota::MemoryQuota, setup::Scoped};

use super::{
    cases::{Case, answer, request, whole_guard},
    proto::{
        DeleteReply, GetReply, GetRequest, PutReply, PutRequest, PutSmallRequest,
        put_request::Part,
        uploads_server::{Uploads, UploadsServer},
    },
};

/// The messages of a stream.
pub(crate) const MESSAGES: usize = 1000;

/// The size of a message.
const CONTENT: Bytes = Bytes::from_static(&[7; 1 << 10]);

/// The guard's allocations for a call: cell, body and handle, as for any upload; its places in the queue, because its
/// length is unknown; the parts of the request that are kept until the trailers; and the settlement after these.
const CALL: u64 = 6;

/// How often a stream of [`MESSAGES`] exceeds its reservation.
const GROWTHS: u64 = 10;

/// The guard's allocations for each: the growth, and the scopes to grow in.
const GROWTH: u64 = 2;

/// The guard's allocations for the first: what few bodies and few reservations have.
const FIRST_GROWTH: u64 = 2;

/// The guard's allocation for an answer that waits: what few reservations have.
const WAIT: u64 = 1;

/// Unary calls: without a guard, a call that the guard ignores, and one that it guards.
pub(crate) fn unary_calls() -> [Case<TonicBody>; 3] {
    let others = guard("upload.v1.Uploads/Put");
    let guard = guard("upload.v1.Uploads/PutSmall");
    [
        case("tonic service", 0, put_small, service()),
        case("guard, not named", 0, put_small, others.layer(service())),
        case("guard", CALL, put_small, guard.layer(service())),
    ]
}

/// Calls with a stream of [`MESSAGES`] from the client.
pub(crate) fn client_streams() -> [Case<TonicBody>; 2] {
    let guard = guard("upload.v1.Uploads/Put");
    let allocations = CALL + FIRST_GROWTH + GROWTHS * GROWTH;
    [
        case("tonic service", 0, put, service()),
        case("guard", allocations, put, guard.layer(service())),
    ]
}

/// Calls with a stream of [`MESSAGES`] to the client.
pub(crate) fn server_streams() -> [Case<TonicBody>; 2] {
    let guard = guard("upload.v1.Uploads/Get");
    [
        case("tonic service", 0, get, service()),
        case("guard", CALL + WAIT, get, guard.layer(service())),
    ]
}

fn guard(call: &str) -> StorageGuardLayer<MemoryQuota, Scoped> {
    whole_guard().calls([call]).unwrap()
}

fn service() -> UploadsServer<Store> {
    UploadsServer::new(Store)
}

fn case<S, R>(
    name: &'static str,
    allocations: u64,
    request: fn() -> Request<TonicBody>,
    mut service: S,
) -> Case<TonicBody>
where
    S: Service<Request<TonicBody>, Response = Response<R>> + 'static,
    R: Body,
{
    Case::by(name, allocations, request, move |request| {
        call(&mut service, request);
    })
}

/// Makes a call, and reads the answer to its trailers.
fn call<S, R>(service: &mut S, request: Request<TonicBody>)
where
    S: Service<Request<TonicBody>, Response = Response<R>>,
    R: Body,
{
    static WAKER: LazyLock<Waker> = LazyLock::new(|| Arc::new(Task).into());
    let mut cx = Context::from_waker(&WAKER);
    let mut body = pin!(answer(service, request, &mut cx).into_body());
    let mut went_well = false;
    while !body.is_end_stream() {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let status = frame.trailers_ref().and_then(|all| all.get("grpc-status"));
                went_well = status.is_some_and(|status| status == "0");
            }
            Poll::Ready(_) => break,
            // The next message waits once, and is ready at once.
            Poll::Pending => {}
        }
    }
    assert!(went_well);
}

/// A task that runs anyway. Storing its waker costs as much as any task's.
struct Task;

impl Wake for Task {
    fn wake(self: Arc<Self>) {}

    fn wake_by_ref(self: &Arc<Self>) {}
}

/// Stores nothing.
struct Store;

#[tonic::async_trait]
impl Uploads for Store {
    type GetStream = Replies;

    async fn put(
        &self,
        request: tonic::Request<Streaming<PutRequest>>,
    ) -> Result<tonic::Response<PutReply>, Status> {
        let mut messages = request.into_inner();
        let mut stored = 0;
        while let Some(message) = messages.message().await? {
            if let Some(Part::Chunk(chunk)) = message.part {
                stored += chunk.len() as u64;
            }
        }
        assert_eq!(stored, (MESSAGES * CONTENT.len()) as u64);
        Ok(tonic::Response::new(PutReply { stored }))
    }

    async fn put_small(
        &self,
        request: tonic::Request<PutSmallRequest>,
    ) -> Result<tonic::Response<PutReply>, Status> {
        let stored = request.into_inner().data.len() as u64;
        Ok(tonic::Response::new(PutReply { stored }))
    }

    async fn get(&self, _: tonic::Request<GetRequest>) -> Result<tonic::Response<Replies>, Status> {
        let replies = Replies {
            left: MESSAGES,
            waits: 0,
        };
        Ok(tonic::Response::new(replies))
    }

    async fn delete(
        &self,
        _: tonic::Request<GetRequest>,
    ) -> Result<tonic::Response<DeleteReply>, Status> {
        Err(Status::unimplemented("nothing is kept"))
    }
}

/// A stream whose sender waits before each message, as for a disk.
///
/// tonic puts messages that are ready at once into one frame. So the stream is pending twice: the first time tonic
/// sends what it has, and the second time it waits itself.
struct Replies {
    left: usize,
    waits: u8,
}

impl Stream for Replies {
    type Item = Result<GetReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(waits) = self.waits.checked_sub(1) {
            self.waits = waits;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(left) = self.left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        (self.left, self.waits) = (left, 2);
        Poll::Ready(Some(Ok(GetReply { chunk: CONTENT })))
    }
}

fn put_small() -> Request<TonicBody> {
    static MESSAGE: LazyLock<Bytes> = LazyLock::new(|| {
        frame(&PutSmallRequest {
            name: "a.png".to_owned(),
            data: CONTENT,
        })
    });
    by_tonic("/upload.v1.Uploads/PutSmall", &MESSAGE, 1)
}

fn put() -> Request<TonicBody> {
    static MESSAGE: LazyLock<Bytes> = LazyLock::new(|| {
        frame(&PutRequest {
            part: Some(Part::Chunk(CONTENT)),
        })
    });
    by_tonic("/upload.v1.Uploads/Put", &MESSAGE, MESSAGES)
}

fn get() -> Request<TonicBody> {
    static MESSAGE: LazyLock<Bytes> = LazyLock::new(|| {
        frame(&GetRequest {
            name: "a.png".to_owned(),
        })
    });
    by_tonic("/upload.v1.Uploads/Get", &MESSAGE, 1)
}

/// A call as tonic's server passes it on: its length is unknown, and its body is boxed.
fn by_tonic(path: &'static str, message: &Bytes, messages: usize) -> Request<TonicBody> {
    let lines = [
        (TE, "trailers"),
        (CONTENT_TYPE, "application/grpc"),
        (USER_AGENT, "tonic/0.14.2"),
    ];
    let body = TonicBody::new(Messages {
        message: message.clone(),
        left: messages,
    });
    let mut request = request(Method::POST, path, &lines, body);
    *request.version_mut() = Version::HTTP_2;
    request
}

/// A message on the wire, with its length before it.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

/// A body with this many messages left, one in a frame.
struct Messages {
    message: Bytes,
    left: usize,
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.left.checked_sub(1).map(|left| {
            self.left = left;
            Ok(Frame::data(self.message.clone()))
        }))
    }
}
