//! What an observer is told.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing::put};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use test_support::{
    eventually,
    service::{Incoming, Reply, answer, chunked, full, put as upload, read_all},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, Guard, Outage, Price, Probe, Reading, Scope, Scopes, StorageGuardLayer, Volume,
    axum::Failure,
    fault::{Cause, Fault, Resource},
    observer::{Event, Observer},
    quota::{Limits, MemoryQuota, Quota, quota_fn},
    test_util::{FakeQuota, FakeVolume},
};

const USER: &str = "user:42";

/// A line for each event, in the order in which they came.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    /// The lines since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Waits for a line, and returns all up to it.
    async fn until(&self, line: &str) -> Vec<String> {
        let is_there = || self.0.lock().unwrap().iter().any(|it| it == line);
        eventually(line, is_there).await;
        self.take()
    }
}

impl Observer for Log {
    fn observe(&self, event: &Event<'_>) {
        self.add(match event {
            Event::Admitted {
                volume,
                scopes,
                reserved,
                waited,
                ..
            } => {
                let Amount { bytes, objects } = reserved;
                let volume = volume.unwrap_or("none");
                let scopes: Vec<_> = scopes.iter().map(ToString::to_string).collect();
                let scopes = scopes.join(",");
                format!(
                    "admitted {volume} {scopes} {bytes}+{objects} {}",
                    waited.as_millis()
                )
            }
            Event::Refused {
                reason, internal, ..
            } => {
                let scope = internal
                    .scope()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                format!(
                    "refused {} {:?} {scope}",
                    reason.as_str(),
                    internal.needed()
                )
            }
            Event::Cut {
                reason, received, ..
            } => format!("cut {} {received}", reason.as_str()),
            Event::Stalled { received, .. } => format!("stalled {received}"),
            Event::Settled {
                reserved, stored, ..
            } => format!("settled {stored} of {reserved}"),
            Event::Released {
                reserved, received, ..
            } => {
                format!("released {received} of {reserved}")
            }
            Event::Drained { bytes, .. } => format!("drained {bytes}"),
            Event::Fault { fault, error, .. } => {
                format!(
                    "fault {:?} {:?}",
                    fault.cause,
                    error.map(ToString::to_string)
                )
            }
            Event::Suspect { error, .. } => format!("suspect {error}"),
            // Others come at any time.
            Event::Probed { .. } | Event::Horizon { .. } => return,
            Event::Full { volume, fault, .. } => format!("full {volume} {:?}", fault.resource),
            Event::Resumed { volume, .. } => format!("resumed {volume}"),
            Event::Stale { volume, .. } => format!("stale {volume}"),
            Event::Fresh { volume, .. } => format!("fresh {volume}"),
            Event::Moved { volume, .. } => format!("moved {volume}"),
            Event::QuotaSlow { took, .. } => format!("quota slow {}", took.as_millis()),
            Event::QuotaAway { .. } => "quota away".into(),
            Event::QuotaBack { after, .. } => format!("quota back {}", after.as_secs()),
            other => panic!("an event of this version: {other:?}"),
        });
    }
}

fn layer(
    log: &Log,
    disk: &FakeVolume,
    limit: u64,
) -> StorageGuardLayer<MemoryQuota, tower_storage_guard::setup::Scoped> {
    StorageGuardLayer::new(disk.volume().named("files"))
        .quota(MemoryQuota::new(Limits::bytes(limit)))
        .scope_by(|_| USER)
        .observer(log.clone())
}

#[tokio::test]
async fn a_request_is_admitted_and_settled_or_released() {
    let (log, disk) = (Log::default(), FakeVolume::new(1_000));
    let service = layer(&log, &disk, 500).layer(service_fn(read_all));
    let status = service
        .clone()
        .oneshot(upload(full(300)))
        .await
        .unwrap()
        .status();
    assert_eq!(status, 201);
    let admitted = "admitted files user:42 300+1 0";
    assert_eq!(log.take(), [admitted, "settled 300 of 300"]);

    let failing = layer(&log, &disk, 500).layer(service_fn(async |_: Request<Incoming>| {
        Ok::<Reply, Infallible>(answer(404))
    }));
    assert_eq!(
        failing.oneshot(upload(full(300))).await.unwrap().status(),
        404
    );
    assert_eq!(log.take(), [admitted, "released 0 of 300"]);
}

#[tokio::test]
async fn a_refusal_says_what_was_short() {
    let (log, disk) = (Log::default(), FakeVolume::new(1_000));
    let service = layer(&log, &disk, 500).layer(service_fn(read_all));
    for (bytes, told) in [
        (501, "refused quota_exceeded Some(501) user:42"),
        (1_001, "refused disk_full Some(1001) "),
    ] {
        let refused = service.clone().oneshot(upload(full(bytes))).await.unwrap();
        assert_eq!(refused.status(), 507);
        // The rest is drained on another task.
        assert_eq!(log.until(told).await, [told]);
        log.until(&format!("drained {bytes}")).await;
    }
}

/// An empty body without a length fits after all: only the decision that counts is told.
#[tokio::test]
async fn an_empty_body_on_a_full_disk_is_no_refusal() {
    let (log, disk) = (Log::default(), FakeVolume::new(1_000));
    let service = layer(&log, &disk, 500).layer(service_fn(read_all));
    disk.set_available(0);
    log.until("full files Bytes").await;
    let stored = service
        .clone()
        .oneshot(upload(chunked(0, 0)))
        .await
        .unwrap();
    assert_eq!(stored.status(), 201);
    let told = log.take();
    assert!(
        told.iter().all(|line| !line.starts_with("refused")),
        "{told:?}"
    );
    assert_eq!(
        service
            .oneshot(upload(chunked(1, 1)))
            .await
            .unwrap()
            .status(),
        507
    );
    assert!(
        log.take()
            .contains(&"refused disk_full Some(1) ".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_grow_is_cut() {
    let (log, disk) = (Log::default(), FakeVolume::new(1 << 30));
    let service = layer(&log, &disk, 100_000).layer(service_fn(read_all));
    let refused = service.oneshot(upload(chunked(3, 40_000))).await.unwrap();
    assert_eq!(refused.status(), 507);
    let told = log.take();
    let admitted = "admitted files user:42 65536+1 0";
    assert_eq!(told[0], admitted);
    assert_eq!(told[1], "cut quota_exceeded 80000");
    assert!(told[2].starts_with("released 80000 of "), "{told:?}");
    assert_eq!(told.len(), 3, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_has_stalled() {
    let (log, disk) = (Log::default(), FakeVolume::new(1 << 30));
    let service = layer(&log, &disk, 1_000).layer(service_fn(async |request: Request<_>| {
        let read = http_body_util::BodyExt::collect(request.into_body()).await;
        Ok::<_, Infallible>(answer(if read.is_ok() { 201 } else { 500 }))
    }));
    let (frames, sent) = mpsc::unbounded_channel::<io::Result<Frame<Bytes>>>();
    frames
        .send(Ok(Frame::data(Bytes::from_static(b"some"))))
        .unwrap();
    let content = StreamBody::new(UnboundedReceiverStream::new(sent));
    let request = Request::put("/a")
        .header("content-length", 100)
        .body(content)
        .unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), 408);
    let told = log.take();
    assert_eq!(told[1..], ["stalled 4", "released 4 of 4"], "{told:?}");
}

#[tokio::test]
async fn a_fault_and_a_suspect_are_told_with_their_errors() {
    let (log, disk) = (Log::default(), FakeVolume::new(1_000));
    let app = Router::new()
        .route(
            "/full",
            put(async || Err::<(), Failure>(io::Error::from(io::ErrorKind::StorageFull).into())),
        )
        .route(
            "/suspect",
            put(async || {
                Err::<(), Failure>(io::Error::other("ENOSPC: no space left on device").into())
            }),
        )
        .route(
            "/named",
            put(async || axum::Extension(Fault::new(Cause::DiskFull, Resource::Bytes))),
        )
        .route("/by-hand", put(async || StatusCode::INSUFFICIENT_STORAGE))
        .layer(layer(&log, &disk, 500));
    for (path, status, told) in [
        ("/full", 507, "fault DiskFull Some(\"no storage space\")"),
        ("/suspect", 500, "suspect ENOSPC: no space left on device"),
        ("/named", 507, "fault DiskFull None"),
        ("/by-hand", 507, "fault DiskFull None"),
    ] {
        let request = Request::put(path)
            .body(axum::body::Body::from("content"))
            .unwrap();
        assert_eq!(
            app.clone().oneshot(request).await.unwrap().status(),
            status,
            "{path}"
        );
        assert!(log.take().contains(&told.to_owned()), "{path}");
    }
}

/// The rest of a refused upload is read, so that the answer arrives.
#[tokio::test]
async fn what_was_drained_is_told() {
    let (log, disk) = (Log::default(), FakeVolume::new(1_000));
    let service = layer(&log, &disk, 10).layer(service_fn(read_all));
    assert_eq!(
        service.oneshot(upload(full(600))).await.unwrap().status(),
        507
    );
    let told = log.until("drained 600").await;
    assert_eq!(
        told,
        ["refused quota_exceeded Some(600) user:42", "drained 600"]
    );
}

#[tokio::test]
async fn the_edges_of_a_volume_are_told_once() {
    let (log, disk) = (Log::default(), FakeVolume::new(1_000));
    let volume = disk.volume().named("files").keep_free(100).resume_at(300);
    let guard = Guard::new(volume.clone()).observer(log.clone());
    disk.set_available(100);
    log.until("full files Bytes").await;
    // Nothing was refused yet, so nothing waits for the level to resume: to be observed changes nothing.
    disk.set_available(101);
    assert_eq!(log.until("resumed files").await, ["resumed files"]);
    disk.set_available(100);
    log.until("full files Bytes").await;
    assert!(guard.reserve(Scopes::NONE, Demand::known(1)).await.is_err());
    log.until("refused disk_full Some(1) ").await;
    for available in [99, 50, 200, 299] {
        disk.set_available(available);
    }
    disk.set_available(300);
    assert_eq!(log.until("resumed files").await, ["resumed files"]);
    disk.lose();
    assert_eq!(log.until("moved files").await, ["moved files"]);
    disk.set_available(301);
    assert_eq!(log.until("fresh files").await, ["fresh files"]);
}

/// A probe that fails when it should.
struct Failing(Arc<Mutex<bool>>);

impl Probe for Failing {
    fn read(&mut self) -> io::Result<Reading> {
        match *self.0.lock().unwrap() {
            true => Err(io::Error::other("the disk does not answer")),
            false => Ok(Reading::new(500, 1_000)),
        }
    }
}

#[tokio::test]
async fn a_probe_that_fails_makes_the_volume_stale() {
    let (log, fails) = (Log::default(), Arc::new(Mutex::new(false)));
    let volume = Volume::builder()
        .probe_every(Duration::from_millis(5))
        .from_probe(Failing(fails.clone()))
        .unwrap()
        .max_age(Duration::from_millis(100))
        .outage(Outage::Admit);
    let _guard = Guard::new(volume).observer(log.clone());
    *fails.lock().unwrap() = true;
    assert_eq!(log.until("stale volume").await, ["stale volume"]);
    *fails.lock().unwrap() = false;
    assert_eq!(log.until("fresh volume").await, ["fresh volume"]);
}

/// The state at each reading is told with it, by the name of the volume.
#[tokio::test]
async fn each_reading_is_told() {
    let disk = FakeVolume::new(1_000);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let readings = seen.clone();
    let guard = Guard::new(disk.volume().named("files").keep_free(10)).observer(
        move |event: &Event<'_>| {
            if let Event::Probed {
                volume: "files",
                status,
                ..
            } = event
            {
                let figures = [
                    status.total,
                    status.available,
                    status.claimed,
                    status.headroom,
                ];
                readings.lock().unwrap().push(figures);
            }
        },
    );
    let last = || seen.lock().unwrap().last().copied();
    eventually("the first", || last() == Some([1_000, 1_000, 0, 10])).await;
    let reservation = guard.reserve(Scopes::NONE, Demand::known(7)).await.unwrap();
    disk.set_available(600);
    eventually("the second", || last() == Some([1_000, 600, 7, 10])).await;
    drop(reservation);
    drop(guard);
    // The thread ends with the guard, so that the volume is not kept.
    let told = seen.lock().unwrap().len();
    disk.set_available(500);
    disk.set_available(400);
    assert!(seen.lock().unwrap().len() <= told + 1);
    eventually("the observer is gone", || Arc::strong_count(&seen) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_quota_source_that_is_away_is_told_once() {
    let (log, quota) = (Log::default(), FakeQuota::new(Limits::bytes(1_000)));
    let guard = Guard::quota_only(quota.clone()).observer(log.clone());
    let reserve = async || guard.reserve(USER, Demand::known(1)).await;
    quota.fail();
    for _ in 0..2 {
        assert!(reserve().await.is_err());
    }
    let refused = "refused capacity_unknown None ";
    assert_eq!(log.take(), ["quota away", refused, refused]);
    tokio::time::advance(Duration::from_secs(7)).await;
    quota.answer();
    drop(reserve().await.unwrap());
    let admitted = |waited| format!("admitted none user:42 1+1 {waited}");
    assert_eq!(
        log.take(),
        [
            "quota back 7".to_owned(),
            admitted(0),
            "released 0 of 1".into()
        ]
    );

    // It answers, but late.
    quota.wait();
    let late = async {
        quota.waiting().await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        quota.answer();
    };
    drop(tokio::join!(reserve(), late).0.unwrap());
    assert_eq!(
        log.take(),
        [
            "quota slow 1500".to_owned(),
            admitted(1_500),
            "released 0 of 1".into()
        ]
    );

    // It does not answer in time.
    quota.wait();
    assert!(reserve().await.is_err());
    assert_eq!(log.take(), ["quota slow 2000", "quota away", refused]);
}

/// A price without a bound reserves nothing.
#[tokio::test]
async fn a_free_request_reserves_nothing() {
    let (log, disk) = (Log::default(), FakeVolume::new(1_000));
    let service = StorageGuardLayer::new(disk.volume())
        .price_by(|_, _| Price::free())
        .observer(log.clone())
        .layer(service_fn(read_all));
    assert_eq!(
        service.oneshot(upload(full(30))).await.unwrap().status(),
        201
    );
    assert_eq!(log.take(), ["admitted volume  0+0 0", "settled 30 of 0"]);
}

#[tokio::test]
async fn a_job_is_told_of_as_a_request_is() {
    let log = Log::default();
    let second = Log::default();
    let guard = Guard::quota_only(MemoryQuota::new(Limits::bytes(100)))
        .observer((log.clone(), second.clone()));
    let job = guard.reserve(USER, Demand::known(60)).await.unwrap();
    assert!(job.grow(50).await.is_err());
    assert!(guard.try_reserve(USER, Demand::known(41)).is_err());
    job.grow(40).await.unwrap();
    job.stored(70);
    assert!(job.commit().await);
    let told = log.take();
    assert_eq!(
        told,
        [
            "admitted none user:42 60+1 0",
            "refused quota_exceeded Some(110) user:42",
            "refused quota_exceeded Some(41) user:42",
            "settled 70 of 100",
        ]
    );
    assert_eq!(second.take(), told);
}

/// The disk fills at 9,000 bytes a minute: each horizon is told once.
#[tokio::test(start_paused = true)]
async fn a_volume_that_fills_is_told_ahead() {
    let (disk, told) = (FakeVolume::new(1_000_000), Arc::new(Mutex::new(Vec::new())));
    let (minute, seen) = (Duration::from_secs(60), told.clone());
    let volume = disk
        .volume()
        .named("files")
        .horizons([30 * minute, 60 * minute]);
    let _guard = Guard::new(volume).observer(move |event: &Event<'_>| {
        if let Event::Horizon {
            volume: "files",
            horizon,
            forecast,
            ..
        } = event
        {
            seen.lock()
                .unwrap()
                .push((*horizon, forecast.time_to_full()));
        }
    });
    for gone in 1..=80 {
        tokio::time::advance(minute).await;
        disk.set_available(1_000_000 - 9_000 * gone);
    }
    // Full after 111 minutes and a little.
    let told = told.lock().unwrap();
    let horizons: Vec<_> = told.iter().map(|(horizon, _)| *horizon).collect();
    assert_eq!(horizons, [60 * minute]);
    let left = told[0].1.unwrap();
    assert!(left <= 60 * minute && left > 59 * minute, "{left:?}");
}

/// It is told too if the source answers at once that it cannot decide.
#[tokio::test]
async fn a_quota_function_that_fails_is_away() {
    let (log, fails) = (Log::default(), Arc::new(Mutex::new(true)));
    let answers = fails.clone();
    let quota = quota_fn(move |_: &Scope| match *answers.lock().unwrap() {
        true => Err(io::Error::other("no")),
        false => Ok(Quota {
            limits: Limits::bytes(1_000),
            used: Amount::ZERO,
        }),
    });
    let guard = Guard::quota_only(quota).observer(log.clone());
    for _ in 0..2 {
        assert!(guard.reserve(USER, Demand::known(1)).await.is_err());
    }
    let refused = "refused capacity_unknown None ";
    assert_eq!(log.take(), ["quota away", refused, refused]);
    *fails.lock().unwrap() = false;
    let reservation = guard.reserve(USER, Demand::known(1)).await.unwrap();
    let told = log.take();
    assert_eq!(told, ["quota back 0", "admitted none user:42 1+1 0"]);
    drop(reservation);
}

/// The soft limits of a source that is set later are told as well.
#[tokio::test]
async fn the_source_that_is_set_last_tells_of_its_soft_limits() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let crossed = told.clone();
    let limits = Limits::bytes(100).soft_bytes(50);
    let guard = Guard::new(FakeVolume::new(1_000).volume())
        .observer(move |event: &Event<'_>| {
            if let Event::SoftLimit { limit, used, .. } = event {
                crossed.lock().unwrap().push((*limit, *used));
            }
        })
        .quota(MemoryQuota::new(limits));
    let reservation = guard.reserve(USER, Demand::known(60)).await.unwrap();
    assert!(reservation.commit().await);
    assert_eq!(*told.lock().unwrap(), [(50, 60)]);
}
