//! However a request ends, its reservation is released, and acknowledged uploads are charged.

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
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use test_support::{Dice, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, Probe, Reading, Reservation, Scopes, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota, Quota, QuotaSource, quota_future},
    setup::Charges,
};

const GIB: u64 = 1 << 30;
const USER: &str = "user:1";

/// A store with unlimited room.
struct Endless;

impl Probe for Endless {
    fn read(&mut self) -> std::io::Result<Reading> {
        Ok(Reading::new(GIB, GIB).with_inodes(1 << 20, 1 << 20))
    }
}

fn volume() -> Volume {
    let volume = Volume::builder().probe_every(Duration::from_millis(5));
    volume.from_probe(Endless).unwrap()
}

/// Waits until nothing is reserved any more, and checks that `acknowledged` is what is used.
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
    /// Reads in a task of its own, and answers before the task ends.
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

/// The guarded service. Answers 200 for what it has stored, and 202 for what it will store.
///
/// The bytes that it has read after its answer are added to `behind`.
async fn handle<B>(manner: Manner, behind: Arc<AtomicU64>, request: Request<B>) -> StatusCode
where
    B: http_body::Body<Data = Bytes, Error: Send> + Send + 'static,
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
        // Like a panic, but without its message.
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

/// A client's upload: pieces of a kilobyte, with optional pauses between them.
#[derive(Clone, Debug)]
struct Client {
    manner: Manner,
    pieces: u64,
    is_chunked: bool,
    /// The client disconnects before this many polls of the answer.
    patience: u64,
}

const PIECE: u64 = 1000;

impl Client {
    fn random(dice: &mut Dice) -> Self {
        Self {
            manner: MANNERS[dice.roll(MANNERS.len() as u64) as usize],
            pieces: dice.roll(200),
            is_chunked: dice.roll(2) == 0,
            // Every other client stays to the end.
            patience: if dice.roll(2) == 0 {
                dice.roll(100)
            } else {
                u64::MAX
            },
        }
    }

    fn size(&self) -> u64 {
        self.pieces * PIECE
    }

    fn request(&self) -> Request<Pieces> {
        let request = match self.is_chunked {
            true => Request::put("/"),
            false => Request::put("/").header("content-length", self.size()),
        };
        let pieces = Pieces {
            left: self.pieces,
            has_paused: false,
        };
        request.body(pieces).unwrap()
    }
}

/// The body of a request, which arrives in pieces.
struct Pieces {
    left: u64,
    has_paused: bool,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_multiple_of(3) && !self.has_paused {
            self.has_paused = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_paused = false;
        let Some(left) = self.left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(
            &[7; PIECE as usize],
        )))))
    }
}

/// Polls a future this many times, and then drops it.
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

/// Sends all `clients` through `layer`, each in a task. Returns the bytes that were acknowledged and stored, and the
/// number of refusals.
async fn all_at_once<Q, P>(layer: StorageGuardLayer<Q, P>, clients: Vec<Client>) -> (u64, usize)
where
    Q: QuotaSource + Clone,
    P: Charges<Q>,
{
    let mut tasks = Vec::new();
    for client in clients {
        let of_this = Arc::new(AtomicU64::new(0));
        let (manner, counter) = (client.manner, of_this.clone());
        let service = layer.layer(service_fn(move |request: Request<MeteredBody<Pieces>>| {
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
    let (mut acknowledged, mut refused) = (0, 0);
    for task in tasks {
        match task.await {
            Ok((_, Some(StatusCode::INSUFFICIENT_STORAGE), _)) => refused += 1,
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
    for counter in later {
        // The task that reads has the other one.
        eventually("all is read", || Arc::strong_count(&counter) == 1).await;
        acknowledged += counter.load(Ordering::SeqCst);
    }
    (acknowledged, refused)
}

fn crowd(seed: u64, size: usize) -> Vec<Client> {
    let mut dice = Dice::new(seed);
    (0..size).map(|_| Client::random(&mut dice)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_this_process() {
    let (volume, quota) = (volume(), MemoryQuota::new(Limits::bytes(GIB)));
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota.clone())
        .scope_by(|_| USER);
    let (acknowledged, refused) = all_at_once(layer, crowd(1, 4000)).await;
    assert_eq!(refused, 0);
    assert!(acknowledged > 100 * PIECE);
    all_is_settled(&volume, &quota, acknowledged).await;
}

/// With so little room that requests also queue for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_crowd() {
    let volume = volume();
    let quota = MemoryQuota::new(Limits::bytes(20 * 200 * PIECE));
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota.clone())
        .scope_by(|_| USER)
        .grants(1, 4 * PIECE)
        .patience(Duration::from_millis(20));
    let mut crowd = crowd(2, 1000);
    // After 202 it is unknown how much was cut.
    crowd.retain(|client| client.manner != ReadsBehindTheAnswer);
    let (acknowledged, refused) = all_at_once(layer, crowd).await;
    assert!(refused > 100, "{refused}");
    let limit = 20 * 200 * PIECE;
    assert!(
        (limit / 2..=limit).contains(&acknowledged),
        "{acknowledged}"
    );
    all_is_settled(&volume, &quota, acknowledged).await;
}

/// A slow quota source, and clients that disconnect before it answers.
#[tokio::test(start_paused = true)]
async fn while_the_quota_is_asked() {
    const LIMIT: u64 = 1000 * 200 * PIECE;

    let volume = volume();
    let rows = Arc::new(AtomicU64::new(0));
    let (used, dice) = (rows.clone(), Arc::new(Mutex::new(Dice::new(3))));
    let quota = quota_future(move |_| {
        let (used, takes) = (used.clone(), dice.lock().unwrap().roll(2500));
        async move {
            tokio::time::sleep(Duration::from_millis(takes)).await;
            Ok::<_, Infallible>(Quota {
                limits: Limits::bytes(LIMIT),
                used: Amount::bytes(used.load(Ordering::SeqCst)),
            })
        }
    });
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota.clone())
        .scope_by(|_| USER)
        .quota_timeout(Duration::from_secs(2));
    let mut tasks = Vec::new();
    let mut dice = Dice::new(4);
    for client in crowd(5, 2000) {
        let (rows, waits) = (rows.clone(), dice.roll(4000));
        let size = client.size();
        let manner = client.manner;
        let service = layer.layer(service_fn(move |request: Request<MeteredBody<Pieces>>| {
            let rows = rows.clone();
            async move {
                let status = handle(manner, Arc::default(), request).await;
                if status == StatusCode::OK {
                    rows.fetch_add(size, Ordering::SeqCst);
                }
                let mut response = Response::new(Full::<Bytes>::default());
                *response.status_mut() = status;
                Ok::<_, Infallible>(response)
            }
        }));
        tasks.push(tokio::spawn(async move {
            let answer = service.oneshot(client.request());
            let answer = tokio::time::timeout(Duration::from_millis(waits), answer).await;
            let status = answer.ok().map(|answer| answer.unwrap().status().as_u16());
            (size, status)
        }));
    }
    let mut acknowledged = 0;
    let (mut left, mut unknown) = (0, 0);
    for task in tasks {
        match task.await {
            Ok((size, Some(200))) => acknowledged += size,
            Ok((_, Some(503))) => unknown += 1,
            Ok((_, None)) => left += 1,
            _ => {}
        }
    }
    assert!(left > 100 && unknown > 100, "{left} {unknown}");
    assert_eq!(rows.load(Ordering::SeqCst), acknowledged);
    // A task that reads after its answer may still be growing: at most for this long, by the paused clock.
    tokio::time::sleep(Duration::from_secs(60)).await;
    eventually("nothing claimed", || {
        volume.refresh();
        let status = volume.status();
        (status.claimed, status.objects_claimed) == (0, 0)
    })
    .await;
    println!("{left} left, {unknown} unknown");
    let user = Scopes::from(USER);
    let rest = LIMIT - acknowledged;
    assert!(
        quota
            .reserve(&user, Amount::bytes(rest + 1), Amount::ZERO)
            .await
            .is_err()
    );
    assert!(
        quota
            .reserve(&user, Amount::bytes(rest), Amount::ZERO)
            .await
            .is_ok()
    );
}

/// Uploads over a connection of its own. Returns the status, if the client waits for it.
async fn over_tcp(
    address: std::net::SocketAddr,
    client: Client,
    sends: u64,
    pause: Option<Duration>,
) -> Option<u16> {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let (manner, stays) = (client.manner as usize, sends == client.pieces);
    let length = match client.is_chunked {
        true => "transfer-encoding: chunked".to_owned(),
        false => format!("content-length: {}", client.size()),
    };
    let head =
        format!("PUT /{manner} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n{length}\r\n\r\n");
    let mut piece = [7; PIECE as usize].to_vec();
    if client.is_chunked {
        piece = [format!("{PIECE:x}\r\n").as_bytes(), &piece, b"\r\n"].concat();
    }
    connection.write_all(head.as_bytes()).await.ok()?;
    for _ in 0..sends {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        connection.write_all(&piece).await.ok()?;
    }
    if !stays {
        return None;
    }
    if client.is_chunked {
        connection.write_all(b"0\r\n\r\n").await.ok()?;
    }
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.ok()?;
    str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_real_connections() {
    let (volume, quota) = (volume(), MemoryQuota::new(Limits::bytes(GIB)));
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota.clone())
        .scope_by(|_| USER);
    let behind = Arc::new(AtomicU64::new(0));
    let mut router = Router::new();
    for manner in MANNERS {
        let handler = async move |State(behind): State<Arc<AtomicU64>>, request: Request<Body>| {
            handle(manner, behind, request).await
        };
        router = router.route(&format!("/{}", manner as usize), put(handler));
    }
    let router = router.with_state(behind.clone()).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async { axum::serve(listener, router).await });

    let mut dice = Dice::new(6);
    let mut clients = crowd(7, 1500);
    let mut acknowledged = 0;
    while !clients.is_empty() {
        // Limited by the number of open files.
        let some = clients.split_off(clients.len().saturating_sub(100));
        let answers = some.into_iter().map(|client| {
            let leaves = client.patience != u64::MAX && client.manner != ReadsBehindTheAnswer;
            let sends = if leaves {
                dice.roll(client.pieces.max(1))
            } else {
                client.pieces
            };
            let pause = (dice.roll(4) == 0).then_some(Duration::from_millis(1));
            over_tcp(address, client.clone(), sends, pause)
                .map(move |status| (client, sends, status))
        });
        for (client, sends, status) in futures_util::future::join_all(answers).await {
            let is_whole = sends == client.pieces;
            match client.manner {
                Stores | StoresAndReports if is_whole => {
                    assert_eq!(status, Some(200), "{client:?}");
                    acknowledged += client.size();
                }
                Stores | StoresAndReports => assert_eq!(status, None, "{client:?}"),
                _ => assert_ne!(status, Some(200), "{client:?}"),
            }
        }
    }
    eventually("all is read", || {
        quota.usage(USER).used.bytes == acknowledged + behind.load(Ordering::SeqCst)
    })
    .await;
    all_is_settled(
        &volume,
        &quota,
        acknowledged + behind.load(Ordering::SeqCst),
    )
    .await;
    server.abort();
}
