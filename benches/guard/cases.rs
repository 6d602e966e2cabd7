//! The services that are measured, and their requests.
//!
//! `tests/guard/allocations.rs` counts the allocations of the same cases. The timed binary does not count: the counter
//! is an allocator of its own, and would make every allocation slower.

use std::{
    convert::Infallible,
    hint::black_box,
    io,
    path::PathBuf,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, USER_AGENT},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, service_fn};
use tower_http::limit::RequestBodyLimitLayer;
use tower_storage_guard::{
    Headroom, Probe, Reading, Reservation, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota},
    setup::Scoped,
};

use super::floor::{FloorLayer, Handle};

/// The length of an upload, in bytes.
const UPLOAD: usize = 1 << 10;

/// The frames of a long upload.
pub(crate) const FRAMES: usize = 1024;

/// Serves requests until none is left.
type Serve<B> = dyn FnMut(&mut Vec<Request<B>>);

/// A service, and its requests.
pub(crate) struct Case<B = Full<Bytes>> {
    pub(crate) name: &'static str,
    /// The allocations for one request, in addition to those of the first case of its group.
    pub(crate) allocations: u64,
    pub(crate) request: fn() -> Request<B>,
    serve: Box<Serve<B>>,
}

impl<B: 'static> Case<B> {
    fn new<S, R>(
        name: &'static str,
        allocations: u64,
        request: fn() -> Request<B>,
        mut service: S,
    ) -> Self
    where
        S: Service<Request<B>, Response = Response<R>> + 'static,
        R: Body,
    {
        Self::by(name, allocations, request, move |request| {
            serve(&mut service, request);
        })
    }

    /// A case whose requests are served like this.
    pub(crate) fn by(
        name: &'static str,
        allocations: u64,
        request: fn() -> Request<B>,
        mut serve: impl FnMut(Request<B>) + 'static,
    ) -> Self {
        Self {
            name,
            allocations,
            request,
            serve: Box::new(move |requests| requests.drain(..).for_each(&mut serve)),
        }
    }

    /// Sends the requests one by one, and reads the answers to their ends.
    pub(crate) fn serve(&mut self, requests: &mut Vec<Request<B>>) {
        (self.serve)(requests);
    }
}

/// Sends a request and reads the answer, as a server would. None of this waits, so the figures include no runtime.
#[inline]
pub(crate) fn serve<S, B, R>(service: &mut S, request: Request<B>)
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    let mut cx = Context::from_waker(Waker::noop());
    let response = answer(service, request, &mut cx);
    assert_eq!(response.status(), StatusCode::CREATED);
    let mut body = pin!(response.into_body());
    while !body.is_end_stream() {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => drop(black_box(frame)),
            Poll::Ready(None) => break,
            Poll::Pending => panic!("nothing here waits"),
        }
    }
}

/// Sends a request. The rest of the answer is not read yet.
#[inline]
pub(crate) fn answer<S, B, R>(
    service: &mut S,
    request: Request<B>,
    cx: &mut Context<'_>,
) -> Response<R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    assert!(service.poll_ready(cx).is_ready());
    let future = pin!(service.call(request));
    let Poll::Ready(Ok(response)) = future.poll(cx) else {
        panic!("nothing here waits or fails");
    };
    response
}

/// A handler that does not look at the body.
pub(crate) fn ignore<B: 'static>()
-> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: 'static>
+ Clone {
    service_fn(|request: Request<B>| {
        drop(black_box(request));
        std::future::ready(created())
    })
}

/// A handler that reads the body to its end.
fn read<B: Body + 'static>()
-> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: 'static>
+ Clone {
    service_fn(async |request: Request<B>| {
        consume(request.into_body()).await;
        created()
    })
}

/// As [`read`], for the handler that looks at its reservation.
pub(crate) fn read_with_reservation<B: Body + 'static>()
-> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: 'static>
+ Clone {
    service_fn(async |request: Request<B>| {
        let reservation = request.extensions().get::<Reservation>();
        assert_eq!(reservation.unwrap().remaining(), UPLOAD as u64);
        consume(request.into_body()).await;
        created()
    })
}

/// The same for the floor's handle, which counts blocks.
fn read_with_handle<B: Body + 'static>()
-> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: 'static>
+ Clone {
    service_fn(async |request: Request<B>| {
        let handle = request.extensions().get::<Handle>();
        assert!(handle.unwrap().remaining() >= UPLOAD as u64);
        consume(request.into_body()).await;
        created()
    })
}

/// A common hand-written check: is there room for Content-Length?
fn read_if_it_fits<B: Body + 'static>(
    folder: PathBuf,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: 'static>
+ Clone {
    let folder: Arc<PathBuf> = folder.into();
    service_fn(move |request: Request<B>| {
        let folder = Arc::clone(&folder);
        async move {
            let length = content_length(request.headers());
            if length > fs4::available_space(&*folder).unwrap() {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::INSUFFICIENT_STORAGE;
                return Ok(response);
            }
            consume(request.into_body()).await;
            created()
        }
    })
}

async fn consume<B: Body>(body: B) {
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        assert!(black_box(frame).is_ok());
    }
}

fn created() -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::from("stored"));
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

fn content_length(headers: &HeaderMap) -> u64 {
    let length = headers.get(CONTENT_LENGTH);
    length
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

/// The extensions that a router or a connection sets before a request reaches a handler.
#[derive(Clone)]
struct FromOutside(#[expect(dead_code, reason = "it is only carried")] Arc<str>);

/// A request as hyper passes it on: header values are slices of the connection's read buffer.
pub(crate) fn request<B>(
    method: Method,
    uri: &'static str,
    lines: &[(HeaderName, &str)],
    body: B,
) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_static(uri);
    request
        .extensions_mut()
        .insert(FromOutside("127.0.0.1:80".into()));

    let mut read = BytesMut::new();
    for (name, value) in lines {
        read.extend_from_slice(value.as_bytes());
        let value = HeaderValue::from_maybe_shared(read.split().freeze()).unwrap();
        request.headers_mut().insert(name, value);
    }
    request
}

fn by_curl<B: Body>(method: Method, body: B) -> Request<B> {
    let length = body.size_hint().exact().unwrap_or(0);
    let lines = [
        (HOST, "files.example.org"),
        (USER_AGENT, "curl/8.5.0"),
        (ACCEPT, "*/*"),
        (CONTENT_TYPE, "image/png"),
        (CONTENT_LENGTH, &length.to_string()),
    ];
    let upload = if length == 0 { 3 } else { lines.len() };
    request(method, "/files/a.png", &lines[..upload], body)
}

fn download() -> Request<Full<Bytes>> {
    by_curl(Method::GET, Full::default())
}

pub(crate) fn upload() -> Request<Full<Bytes>> {
    by_curl(Method::PUT, Full::from(&[7; UPLOAD][..]))
}

fn long_upload() -> Request<Frames> {
    by_curl(Method::PUT, Frames(FRAMES))
}

/// A body with this many frames left.
pub(crate) struct Frames(usize);

impl Frames {
    const EACH: &[u8] = &[7; 16];

    fn bytes(&self) -> u64 {
        (self.0 * Self::EACH.len()) as u64
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.0.checked_sub(1) else {
            return Poll::Ready(None);
        };
        self.0 = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(Self::EACH)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes())
    }
}

/// A disk that never fills up during the measurement.
struct LargeDisk;

impl Probe for LargeDisk {
    fn read(&mut self) -> io::Result<Reading> {
        Ok(Reading::new(1 << 60, 1 << 61).with_inodes(1 << 60, 1 << 61))
    }
}

pub(crate) fn volume() -> Volume {
    let volume = Volume::from_probe(LargeDisk).unwrap();
    volume.keep_free(Headroom::bytes(64 << 20).or_percent(5).inodes(1000))
}

pub(crate) fn disk_guard() -> StorageGuardLayer {
    StorageGuardLayer::new(volume())
}

pub(crate) fn whole_guard() -> StorageGuardLayer<MemoryQuota, Scoped> {
    let quota = MemoryQuota::new(Limits::bytes(1 << 60).objects(1 << 60));
    quota.set_used("user:42", tower_storage_guard::Amount::new(1, 1));
    disk_guard().quota(quota).scope_by(|_| "user:42")
}

/// Requests that read, and are not guarded.
pub(crate) fn downloads() -> [Case; 3] {
    let limit = RequestBodyLimitLayer::new(1 << 20);
    [
        Case::new("bare service", 0, download, ignore()),
        Case::new("guard", 0, download, disk_guard().layer(ignore())),
        Case::new(
            "tower-http `RequestBodyLimit`",
            0,
            download,
            limit.layer(ignore()),
        ),
    ]
}

/// Uploads, with the alternatives to the guard. The baseline comes first.
pub(crate) fn uploads() -> [Case; 5] {
    let limit = RequestBodyLimitLayer::new(1 << 20);
    let statvfs = read_if_it_fits(std::env::temp_dir());
    [
        Case::new("bare service", 0, upload, read()),
        Case::new(
            "tower-http `RequestBodyLimit`",
            0,
            upload,
            limit.layer(read()),
        ),
        Case::new("statvfs in the handler", 0, upload, statvfs),
        Case::new("disk guard", 3, upload, disk_guard().layer(read())),
        Case::new(
            "disk guard, memory quota, handle",
            3,
            upload,
            whole_guard().layer(read_with_reservation()),
        ),
    ]
}

/// The same uploads through the floor guard: without, and with what only the whole guard does.
pub(crate) fn floors() -> [Case; 2] {
    let floor = FloorLayer::<false>::new();
    let whole = FloorLayer::<true>::new();
    [
        Case::new("floor guard", 1, upload, floor.layer(read())),
        Case::new(
            "floor guard, Accept, handle",
            2,
            upload,
            whole.layer(read_with_handle()),
        ),
    ]
}

/// Uploads of [`FRAMES`] frames.
pub(crate) fn long_uploads() -> [Case<Frames>; 2] {
    [
        Case::new("bare service", 0, long_upload, read()),
        Case::new("disk guard", 3, long_upload, disk_guard().layer(read())),
    ]
}
