//! The least code that can keep the guard's promise: the reference for what the guard costs.
//!
//! For a request that writes, it reads `Content-Length`, claims blocks and an inode before the inner call, shares one cell
//! between the body and the response, counts and bounds the bytes that are read, and settles the claim exactly once. It has
//! no probe, no quota, no protocol, one answer to all that it refuses, and it requires an `Unpin` body with a length.

use std::{
    hint::black_box,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicI64, AtomicU8, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Empty};
use pin_project_lite::pin_project;
use tower::{BoxError, Layer, Service};

/// The body was read to its end.
const READ: u8 = 1;
/// The claim was settled.
const ENDED: u8 = 2;

const BLOCK: u64 = 4096;
/// What has to stay free.
const HEADROOM: i64 = 1 << 20;

/// What is free on the volume, and what is settled but not yet seen by a probe.
// On a cache line of its own, as the guard's is.
#[repr(align(128))]
struct Ledger {
    bytes: AtomicI64,
    inodes: AtomicI64,
    settling_bytes: AtomicU64,
    settling_inodes: AtomicU64,
}

impl Ledger {
    fn claim(&self, blocks: u64) -> bool {
        take(&self.bytes, blocks as i64) && take(&self.inodes, 1)
    }

    fn settle(&self, blocks: u64) {
        self.settling_bytes.fetch_add(blocks, AcqRel);
        self.settling_inodes.fetch_add(1, AcqRel);
    }
}

fn take(free: &AtomicI64, amount: i64) -> bool {
    let taken = free.fetch_update(AcqRel, Relaxed, |free| {
        (free - amount >= HEADROOM).then_some(free - amount)
    });
    taken.is_ok()
}

/// What the body, the response and the handle of one request share.
struct Cell {
    ledger: Arc<Ledger>,
    blocks: u64,
    received: AtomicU64,
    state: AtomicU8,
    /// In the guard, a refusal after the inner call is written in the format that the client accepts.
    #[expect(dead_code, reason = "it is only carried")]
    accept: Option<HeaderValue>,
}

impl Cell {
    fn end(&self) {
        if self.state.fetch_or(ENDED, AcqRel) & ENDED == 0 {
            self.ledger.settle(self.blocks);
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if *self.state.get_mut() & ENDED == 0 {
            self.end();
        }
    }
}

/// What a handler finds in the request's extensions.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Cell>);

impl Handle {
    pub(crate) fn remaining(&self) -> u64 {
        self.0.blocks - self.0.received.load(Acquire)
    }
}

/// `WHOLE` puts a handle into the request's extensions, and keeps `Accept`.
#[derive(Clone)]
pub(crate) struct FloorLayer<const WHOLE: bool> {
    ledger: Arc<Ledger>,
}

impl<const WHOLE: bool> FloorLayer<WHOLE> {
    pub(crate) fn new() -> Self {
        Self {
            ledger: Arc::new(Ledger {
                bytes: AtomicI64::new(1 << 60),
                inodes: AtomicI64::new(1 << 60),
                settling_bytes: AtomicU64::new(0),
                settling_inodes: AtomicU64::new(0),
            }),
        }
    }
}

impl<S, const WHOLE: bool> Layer<S> for FloorLayer<WHOLE> {
    type Service = Floor<S, WHOLE>;

    fn layer(&self, inner: S) -> Self::Service {
        Floor {
            inner,
            ledger: Arc::clone(&self.ledger),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Floor<S, const WHOLE: bool> {
    inner: S,
    ledger: Arc<Ledger>,
}

impl<S, B, R, const WHOLE: bool> Service<Request<B>> for Floor<S, WHOLE>
where
    S: Service<Request<CountedBody<B>>, Response = Response<R>>,
    B: Body<Error: Into<BoxError>> + Unpin,
    R: Body,
{
    type Response = Response<Either<R, Empty<R::Data>>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let mut cell = None;
        let mut length = 0_u64;
        if writes(request.method()) {
            let headers = request.headers();
            let given = headers.get(CONTENT_LENGTH);
            length = given
                .and_then(|length| length.to_str().ok()?.parse().ok())
                .unwrap_or(0);
            let blocks = length.next_multiple_of(BLOCK);
            if !self.ledger.claim(blocks) {
                return ResponseFuture::Refused;
            }
            let accept = headers
                .get(ACCEPT)
                .filter(|accept| WHOLE && *accept != "*/*");
            let shared = Arc::new(Cell {
                ledger: Arc::clone(&self.ledger),
                blocks,
                received: AtomicU64::new(0),
                state: AtomicU8::new(0),
                accept: accept.cloned(),
            });
            if WHOLE {
                let handle = Handle(Arc::clone(&shared));
                request.extensions_mut().insert(handle);
            }
            cell = Some(shared);
        }
        let of_body = cell.clone();
        let request = request.map(|body| CountedBody {
            body,
            cell: of_body,
            left: length,
        });
        ResponseFuture::Called {
            future: self.inner.call(request),
            cell,
        }
    }
}

fn writes(method: &Method) -> bool {
    matches!(*method, Method::PUT | Method::POST | Method::PATCH)
}

pub(crate) struct CountedBody<B> {
    body: B,
    cell: Option<Arc<Cell>>,
    /// What the client may still send.
    left: u64,
}

impl<B: Body<Error: Into<BoxError>> + Unpin> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.get_mut();
        let polled = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(cell) = &this.cell {
            if let Some(Ok(frame)) = &polled
                && let Some(data) = frame.data_ref()
            {
                let length = data.remaining() as u64;
                if length > this.left {
                    return Poll::Ready(Some(Err("longer than claimed".into())));
                }
                this.left -= length;
                // Only the body writes it.
                cell.received
                    .store(cell.received.load(Relaxed) + length, Release);
            }
            if polled.is_none() || this.body.is_end_stream() {
                cell.state.fetch_or(READ, AcqRel);
                this.cell = None;
            }
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    #[project = Projected]
    pub(crate) enum ResponseFuture<F> {
        Called {
            #[pin]
            future: F,
            cell: Option<Arc<Cell>>,
        },
        Refused,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Result<Response<Either<R, Empty<R::Data>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match self.project() {
            Projected::Called { future, cell } => {
                let response = ready!(future.poll(cx))?;
                if let Some(cell) = cell.take() {
                    // Whether the body was read decides what is charged; here it is only looked at.
                    black_box(cell.state.load(Acquire) & READ);
                    cell.end();
                }
                response.map(Either::Left)
            }
            Projected::Refused => {
                let mut response = Response::new(Either::Right(Empty::new()));
                *response.status_mut() = StatusCode::INSUFFICIENT_STORAGE;
                response
            }
        };
        Poll::Ready(Ok(response))
    }
}
