//! Reserve and release, by one thread and by two on one volume.
//!
//! The ledger is private, and stays so: a guard with a volume and one without differ only in the volume, so the
//! difference of their times is its cost. Both threads have a guard of their own; only the volume is shared.

use std::{
    hint::black_box,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bench_support::median;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use tower::{Layer, Service};
use tower_storage_guard::{StorageGuardLayer, quota::NoQuota};

use super::cases::{ignore, serve, volume};

/// In nanoseconds.
pub(crate) struct Threads {
    /// A compare-and-swap and its reversal.
    pub(crate) pair: f64,
    /// Reserve and release, by one thread.
    pub(crate) alone: f64,
    /// The same, while another thread does the same on the same volume.
    pub(crate) shared: f64,
}

/// Large enough that the time to wake a thread is negligible.
const BATCH: u32 = 4096;

pub(crate) fn measure(rounds: usize) -> Threads {
    let volume = volume();
    let guarded = || StorageGuardLayer::new(volume.clone()).layer(ignore());
    let unguarded = || StorageGuardLayer::quota_only(NoQuota).layer(ignore());
    let rounds = rounds.max(8);

    let mut pairs = Vec::with_capacity(rounds);
    let mut alone = Vec::with_capacity(rounds);
    let (mut with, mut without) = (guarded(), unguarded());
    for _ in 0..rounds {
        pairs.push(nanoseconds(time_pairs()));
        let with = nanoseconds(time(&mut with));
        alone.push(with - nanoseconds(time(&mut without)));
    }

    let barrier = Barrier::new(2);
    let run = || {
        let (mut with, mut without) = (guarded(), unguarded());
        (0..rounds)
            .map(|_| [span(&barrier, &mut without), span(&barrier, &mut with)])
            .collect::<Vec<_>>()
    };
    let (one, other) = thread::scope(|scope| {
        let other = scope.spawn(run);
        (run(), other.join().expect("it does not panic"))
    });
    let shared = one.iter().zip(&other).filter_map(|(one, other)| {
        let [without, with] = [0, 1].map(|which| together(one[which], other[which]));
        Some(with? - without?)
    });
    Threads {
        pair: median(pairs),
        alone: median(alone),
        shared: median(shared),
    }
}

fn time_pairs() -> Duration {
    let free = AtomicU64::new(0);
    let start = Instant::now();
    for _ in 0..BATCH {
        for (from, to) in [(0, 1), (1, 0)] {
            let free = black_box(&free);
            let swapped = free.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
            assert!(swapped.is_ok());
        }
    }
    start.elapsed()
}

/// The minimal request, so that two threads contend for the ledger as often as possible.
fn time<S, R>(service: &mut S) -> Duration
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>>,
    R: http_body::Body,
{
    let start = Instant::now();
    for _ in 0..BATCH {
        let mut request = Request::new(Full::from("content"));
        *request.method_mut() = Method::PUT;
        serve(service, request);
    }
    start.elapsed()
}

type Span = (Instant, Instant);

fn span<S, R>(barrier: &Barrier, service: &mut S) -> Span
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>>,
    R: http_body::Body,
{
    barrier.wait();
    let start = Instant::now();
    let took = time(service);
    (start, start + took)
}

/// The time for a request, if both threads ran nearly all of the time, because the machine has other load.
fn together(one: Span, other: Span) -> Option<f64> {
    let both = one
        .1
        .min(other.1)
        .saturating_duration_since(one.0.max(other.0));
    let (one, other) = (one.1 - one.0, other.1 - other.0);
    (both.as_secs_f64() >= 0.8 * one.max(other).as_secs_f64())
        .then(|| nanoseconds((one + other) / 2))
}

fn nanoseconds(batch: Duration) -> f64 {
    batch.as_nanos() as f64 / f64::from(BATCH)
}
