//! Whatever becomes of a request: what was set aside for it comes back, and what was acknowledged is charged.

use std::{
    convert::Infallible,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::State, routing::put};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, BoxError, MeteredBody, Probe, Reading, Reservation, Scopes, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota, Quota, QuotaSource, quota_future},
};

use crate::support::eventually;

const GIB: u64 = 1 << 30;
const USER: &str = "user:1";

/// A store with room for everything.
struct Endless;

impl Probe for Endless {
    fn read(&mut self) -> std::io::Result<Reading> {
        Ok(Reading::new(GIB, GIB).with_inodes(1 << 20, 1 << 20))
    }
}

fn volume() -> Volume {
    let volume = Volume::from_probe(Endless).unwrap();
    volume.probe_every(Duration::from_millis(5))
}

/// Nothing is set aside any more, and `acknowledged` is what is used.
async fn all_is_settled(volume: &Volume, quota: &MemoryQuota, acknowledged: u64) {
    eventually("nothing claimed", || {
        volume.refresh();
        let status = volume.status();
        (status.claimed, status.objects_claimed) == (0, 0)
    })
    .await;
    eventually("nothing held", || quota.usage(USER).held == Amount::ZERO).await;
    assert_eq!(quota.usage(USER).used.bytes, acknowledged);
}

/// Numbers that look random, and are the same every time.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    /// Below `end`. This is SplitMix64.
    fn roll(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % end
    }
}

/// What a handler does with its request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manner {
    Stores,
    /// Reports every frame as written.
    StoresAndReports,
    Fails,
    NeverReads,
    Panics,
    PanicsAtOnce,
    /// Reads in a task of its own, and answers before.
    ReadsBehindTheAnswer,
}

use Manner::*;

const MANNERS: [Manner; 7] = [
    Stores,
    StoresAndReports,
    Fails,
    NeverReads,
    Panics,
    PanicsAtOnce,
    ReadsBehindTheAnswer,
];

/// The service under guard. Answers 200 for what it has stored, and 202 for what it will.
///
/// What it has read behind its answer is added to `behind`.
async fn handle<B>(
    manner: Manner,
    behind: Arc<AtomicU64>,
    request: Request<MeteredBody<B>>,
) -> StatusCode
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let reservation = request.extensions().get::<Reservation>().cloned();
    let reservation = reservation.expect("guarded");
    let mut body = Box::pin(request.into_body());
    match manner {
        Stores | StoresAndReports => {
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else {
                    return StatusCode::BAD_REQUEST;
                };
                tokio::task::yield_now().await;
                if manner == StoresAndReports {
                    reservation.written(frame.data_ref().unwrap().len() as u64);
                }
            }
            StatusCode::OK
        }
        Fails => {
            let _ = body.frame().await;
            StatusCode::INTERNAL_SERVER_ERROR
        }
        NeverReads => {
            drop(body);
            tokio::task::yield_now().await;
            StatusCode::NO_CONTENT
        }
        // Like a panic, but for the message.
        PanicsAtOnce => resume_unwind(Box::new("at once")),
        Panics => {
            let _ = body.frame().await;
            resume_unwind(Box::new("halfway"))
        }
        ReadsBehindTheAnswer => {
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    let read = frame.data_ref().unwrap().len() as u64;
                    behind.fetch_add(read, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            });
            tokio::task::yield_now().await;
            StatusCode::ACCEPTED
        }
    }
}

/// An upload of the client's making: pieces of a kilobyte, between which it may pause.
#[derive(Clone, Debug)]
struct Client {
    manner: Manner,
    pieces: u64,
    is_chunked: bool,
    /// It leaves before this many polls of the answer.
    patience: u64,
}

const PIECE: u64 = 1000;

impl Client {
    fn random(dice: &mut Dice) -> Self {
        Self {
            manner: MANNERS[dice.roll(MANNERS.len() as u64) as usize],
            pieces: dice.roll(200),
            is_chunked: dice.roll(2) == 0,
            // Every other stays to the end.
            patience: if dice.roll(2) == 0 { dice.roll(100) } else { u64::MAX },
        }
    }

    fn size(&self) -> u64 {
        self.pieces * PIECE
    }

    fn request(&self) -> Request<Pieces> {
        let pieces = stream::iter(0..self.pieces).then(async |piece| {
            if piece % 3 == 0 {
                tokio::task::yield_now().await;
            }
            Ok(Frame::data(Bytes::from_static(&[7; PIECE as usize])))
        });
        let request = match self.is_chunked {
            true => Request::put("/"),
            false => Request::put("/").header("content-length", self.size()),
        };
        request.body(StreamBody::new(pieces.boxed())).unwrap()
    }
}

type Pieces = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// Polls a future so many times, and then drops it.
struct Leaving<F> {
    answer: Pin<Box<F>>,
    polls: u64,
}

impl<F: Future> Future for Leaving<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        self.answer.as_mut().poll(cx).map(Some)
    }
}

/// Sends all `clients` through `layer`, each as a task. Returns what was acknowledged and stored.
async fn all_at_once<Q>(layer: StorageGuardLayer<Q>, clients: Vec<Client>) -> u64
where
    Q: QuotaSource + Clone + Send + Sync + 'static,
    Q::Hold: Sync,
    Q::Future: Send,
{
    let behind = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for client in clients {
        let of_this = Arc::new(AtomicU64::new(0));
        let (manner, counter) = (client.manner, of_this.clone());
        let service = layer.layer(service_fn(move |request| {
            let counter = counter.clone();
            async move {
                let mut response = Response::new(Full::<Bytes>::default());
                *response.status_mut() = handle(manner, counter, request).await;
                Ok::<_, Infallible>(response)
            }
        }));
        tasks.push(tokio::spawn(async move {
            let answer = Leaving {
                polls: client.patience,
                answer: Box::pin(service.oneshot(client.request())),
            };
            let answer = answer.await.map(|answer| answer.unwrap());
            (client, answer.map(|answer| answer.status()), of_this)
        }));
    }
    let mut later = Vec::new();
    let mut acknowledged = 0;
    for task in tasks {
        match task.await {
            Ok((client, Some(StatusCode::OK), _)) => acknowledged += client.size(),
            Ok((_, Some(StatusCode::ACCEPTED), counter)) => later.push(counter),
            Ok((client, Some(StatusCode::NO_CONTENT), _)) => assert_eq!(client.manner, NeverReads),
            Ok((client, Some(status), _)) => {
                assert_eq!((client.manner, status.as_u16()), (Fails, 500));
            }
            Ok((_, None, _)) => {}
            Err(panicked) => assert!(panicked.is_panic()),
        }
    }
    drop(behind);
    for counter in later {
        // The task that reads has the other one.
        eventually("all is read", || Arc::strong_count(&counter) == 1).await;
        acknowledged += counter.load(Ordering::SeqCst);
    }
    acknowledged
}

fn crowd(seed: u64, size: usize) -> Vec<Client> {
    let mut dice = Dice(seed);
    (0..size).map(|_| Client::random(&mut dice)).collect()
}
