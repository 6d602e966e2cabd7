//! Clients that ask before they send: `grpc.health.v1`, and an axum route.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use test_support::{disk::Disk, eventually};
use tokio::{net::TcpListener, sync::Mutex, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint, Server},
};
use tonic_health::{
    pb::{
        HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
        health_client::HealthClient,
    },
    server::{HealthReporter, health_reporter},
};
use tower::ServiceExt;
use tower_storage_guard::{
    Headroom, Outage, Probe, Readiness, Reading, StorageGuardLayer, Volume, tonic::health,
};

/// Far above the time that a change should take.
const BOUND: Duration = Duration::from_secs(10);

/// A client of a health service on a port of its own, and the reporter that sets its statuses.
#[derive(Clone)]
struct Health {
    reporter: HealthReporter,
    client: HealthClient<Channel>,
}

impl Health {
    async fn start() -> Self {
        let (reporter, service) = health_reporter();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Endpoint::try_from(format!("http://{address}")).unwrap();
        Self {
            reporter,
            client: HealthClient::new(channel.connect().await.unwrap()),
        }
    }

    /// Reports, and follows what is reported.
    async fn follow(&self, service: &'static str, volumes: impl Into<Readiness>) -> Followed {
        let report = health::report(self.reporter.clone(), service, volumes.into());
        let task = tokio::spawn(report);
        let start = Instant::now();
        // Before the task is first polled, the name is unknown.
        let messages = loop {
            let mut client = self.client.clone();
            match client.watch(request(service)).await {
                Ok(messages) => break messages.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::NotFound),
            }
            assert!(start.elapsed() < BOUND, "{service:?} is not reported");
        };
        Followed {
            health: self.clone(),
            service,
            messages,
            task,
        }
    }

    async fn check(&self, service: &str) -> ServingStatus {
        let mut client = self.client.clone();
        let checked = client.check(request(service)).await.unwrap();
        checked.into_inner().status()
    }
}

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

/// A service whose status is reported.
struct Followed {
    health: Health,
    service: &'static str,
    messages: Streaming<HealthCheckResponse>,
    task: tokio::task::JoinHandle<std::convert::Infallible>,
}

impl Followed {
    /// The next status that is reported to watching clients, and to checking ones.
    async fn next(&mut self) -> ServingStatus {
        let message = timeout(BOUND, self.messages.message()).await;
        let message = message.unwrap_or_else(|_| panic!("{}: no news", self.service));
        let status = message.unwrap().unwrap().status();
        assert_eq!(self.health.check(self.service).await, status);
        status
    }
}

#[tokio::test]
async fn writes_are_served_while_there_is_room_above_the_headroom() {
    let disk = Disk::new(1_001).with_inodes(11);
    let volume = disk.volume().keep_free(Headroom::bytes(1_000).inodes(10));
    let health = Health::start().await;
    let mut writes = health.follow("upload.v1.Uploads", volume.clone()).await;
    assert_eq!(writes.next().await, ServingStatus::Serving);
    for (bytes, inodes, status) in [
        (1_000, 11, ServingStatus::NotServing),
        (2_000, 11, ServingStatus::Serving),
        (2_000, 10, ServingStatus::NotServing),
        (1_001, 11, ServingStatus::Serving),
        (0, 0, ServingStatus::NotServing),
        (u64::MAX, 1_000, ServingStatus::Serving),
    ] {
        disk.set_available(bytes);
        disk.set_inodes(inodes);
        volume.refresh();
        assert_eq!(
            writes.next().await,
            status,
            "{bytes} bytes, {inodes} inodes"
        );
        // The server as a whole still serves.
        assert_eq!(health.check("").await, ServingStatus::Serving);
    }
}

/// No request asks for readings here: the volume takes them by itself.
#[tokio::test]
async fn a_disk_that_fills_up_by_itself_is_seen() {
    let disk = Disk::new(1);
    let volume = disk.probed_every(Duration::from_millis(5));
    let health = Health::start().await;
    let mut writes = health.follow("writes", volume).await;
    for _ in 0..20 {
        assert_eq!(writes.next().await, ServingStatus::Serving);
        disk.set_available(0);
        assert_eq!(writes.next().await, ServingStatus::NotServing);
        disk.set_available(1);
    }
}

#[tokio::test]
async fn a_status_is_set_when_it_changes_and_at_no_other_time() {
    let disk = Disk::new(1).with_inodes(1);
    let volume = disk.volume();
    let health = Health::start().await;
    let mut writes = health.follow("writes", volume.clone()).await;
    assert_eq!(writes.next().await, ServingStatus::Serving);
    // Other code sets the status, although it should not. It stands until there is a change.
    let other = ServingStatus::Unknown;
    let set = tonic_health::ServingStatus::Unknown;
    health.reporter.set_service_status("writes", set).await;
    assert_eq!(writes.next().await, other);
    for available in 2..20 {
        disk.set_available(available);
        Disk::until(&volume, |status| status.available == available).await;
        assert_eq!(health.check("writes").await, other);
    }
    disk.set_available(0);
    volume.refresh();
    assert_eq!(writes.next().await, ServingStatus::NotServing);
    health.reporter.set_service_status("writes", set).await;
    assert_eq!(writes.next().await, other);
    // A change of the reason is not a change of the status.
    disk.set_inodes(0);
    disk.set_available(1);
    Disk::until(&volume, |status| {
        (status.available, status.inodes_available) == (1, Some(0))
    })
    .await;
    assert_eq!(health.check("writes").await, other);
    disk.set_inodes(1);
    volume.refresh();
    assert_eq!(writes.next().await, ServingStatus::Serving);
}

#[tokio::test]
async fn several_volumes_are_served_by_one_name_or_each_by_its_own() {
    let (first, second) = (Disk::new(1), Disk::new(1));
    let (one, two) = (first.volume(), second.volume());
    let strict = one.clone().keep_free(1);
    let health = Health::start().await;
    let both = Readiness::new(one.clone()).and(two.clone());
    let mut both = health.follow("both", both).await;
    let mut alone = health.follow("alone", one.clone()).await;
    let mut strict = health.follow("strict", strict).await;
    assert_eq!(both.next().await, ServingStatus::Serving);
    assert_eq!(alone.next().await, ServingStatus::Serving);
    assert_eq!(strict.next().await, ServingStatus::NotServing);
    second.set_available(0);
    two.refresh();
    assert_eq!(both.next().await, ServingStatus::NotServing);
    assert_eq!(health.check("alone").await, ServingStatus::Serving);
    first.set_available(2);
    one.refresh();
    assert_eq!(strict.next().await, ServingStatus::Serving);
    second.set_available(1);
    two.refresh();
    assert_eq!(both.next().await, ServingStatus::Serving);
    first.set_available(0);
    one.refresh();
    for reported in [&mut both, &mut alone, &mut strict] {
        assert_eq!(reported.next().await, ServingStatus::NotServing);
    }
}

#[tokio::test]
async fn the_last_status_stays_after_the_reporter_ends() {
    let disk = Disk::new(1);
    let volume = disk.volume();
    let health = Health::start().await;
    let mut writes = health.follow("writes", volume.clone()).await;
    assert_eq!(writes.next().await, ServingStatus::Serving);
    assert!(!writes.task.is_finished());
    writes.task.abort();
    let aborted = (&mut writes.task).await.unwrap_err();
    assert!(aborted.is_cancelled());
    disk.set_available(0);
    Disk::until(&volume, |status| status.available == 0).await;
    assert_eq!(health.check("writes").await, ServingStatus::Serving);
}

/// Far above the time of a probe that does not hang.
const MAX_AGE: Duration = Duration::from_millis(400);

/// A disk that hangs while the test holds the lock.
struct Gated(Disk, Arc<Mutex<()>>);

impl Probe for Gated {
    fn read(&mut self) -> io::Result<Reading> {
        let _open = self.1.blocking_lock();
        self.0.read()
    }
}

/// A probe that hangs publishes nothing: only the clock reveals it.
#[tokio::test]
async fn a_probe_that_hangs_serves_no_writes() {
    let (disk, gate) = (Disk::new(1), Arc::<Mutex<()>>::default());
    let volume = Volume::from_probe(Gated(disk.clone(), gate.clone())).unwrap();
    let volume = volume.max_age(MAX_AGE);
    let admitting = volume.clone().outage(Outage::Admit);
    let health = Health::start().await;
    let mut writes = health.follow("writes", volume.clone()).await;
    let mut admitted = health.follow("admitted", admitting).await;
    assert_eq!(writes.next().await, ServingStatus::Serving);
    assert_eq!(admitted.next().await, ServingStatus::Serving);
    for _ in 0..2 {
        let hangs = gate.lock().await;
        volume.refresh();
        assert_eq!(writes.next().await, ServingStatus::NotServing);
        assert!(volume.status().is_stale);
        assert_eq!(health.check("admitted").await, ServingStatus::Serving);
        drop(hangs);
        assert_eq!(writes.next().await, ServingStatus::Serving);
    }
    // Full, and then unknown, with the policy to admit.
    disk.set_available(0);
    volume.refresh();
    assert_eq!(writes.next().await, ServingStatus::NotServing);
    assert_eq!(admitted.next().await, ServingStatus::NotServing);
    let _hangs = gate.lock().await;
    volume.refresh();
    assert_eq!(admitted.next().await, ServingStatus::Serving);
    assert_eq!(health.check("writes").await, ServingStatus::NotServing);
}

/// The answer of a route: its status, whether caches may store it, and its content.
async fn ask(router: &Router, method: &str, path: &str) -> (StatusCode, String, String) {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    let kept = answer.headers()["cache-control"].to_str().unwrap().into();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, kept, String::from_utf8(body.into()).unwrap())
}

fn answer(status: StatusCode, word: &str) -> (StatusCode, String, String) {
    (status, "no-store".into(), word.into())
}

#[tokio::test]
async fn a_route_reports_whether_writes_are_taken() {
    let ready = || answer(StatusCode::OK, "ready");
    let not = |reason| answer(StatusCode::SERVICE_UNAVAILABLE, reason);

    let (disk, gate) = (Disk::new(1).with_inodes(1), Arc::<Mutex<()>>::default());
    let volume = Volume::from_probe(Gated(disk.clone(), gate.clone())).unwrap();
    let volume = volume.max_age(MAX_AGE);
    let other = Disk::new(0);
    let both = Readiness::new(volume.clone()).and(other.volume());
    // Inside the guard as well: it neither guards a GET, nor treats the answer as a fault.
    let app = Router::new()
        .route("/ready", get(Readiness::new(volume.clone())))
        .route("/both", get(both))
        .layer(StorageGuardLayer::new(volume.clone()));

    assert_eq!(ask(&app, "GET", "/ready").await, ready());
    assert_eq!(ask(&app, "GET", "/both").await, not("disk_full"));
    disk.set_available(0);
    Disk::until(&volume, |status| status.available == 0).await;
    assert_eq!(ask(&app, "GET", "/ready").await, not("disk_full"));
    let head = answer(StatusCode::SERVICE_UNAVAILABLE, "");
    assert_eq!(ask(&app, "HEAD", "/ready").await, head);
    disk.set_available(1);
    disk.set_inodes(0);
    Disk::until(&volume, |status| status.available == 1).await;
    assert_eq!(ask(&app, "GET", "/ready").await, not("disk_full"));

    let hangs = gate.lock().await;
    volume.refresh();
    eventually("stale", || volume.status().is_stale).await;
    assert_eq!(ask(&app, "GET", "/ready").await, not("capacity_unknown"));
    assert_eq!(ask(&app, "GET", "/both").await, not("capacity_unknown"));
    disk.set_inodes(1);
    drop(hangs);
    Disk::until(&volume, |status| !status.is_stale).await;
    assert_eq!(ask(&app, "GET", "/ready").await, ready());
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_tmpfs_that_is_full_is_not_ready() {
    use test_support::mounts::{tmpfs, with_own_mounts};

    with_own_mounts(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=1m,nr_inodes=16");
            let volume = Volume::builder().probe_every(Duration::from_millis(10));
            let volume = volume.open(&disk).unwrap();
            let health = Health::start().await;
            let mut writes = health.follow("writes", volume.clone()).await;
            let app = Router::new().route("/ready", get(Readiness::new(volume.clone())));
            let ready = answer(StatusCode::OK, "ready");
            let full = answer(StatusCode::SERVICE_UNAVAILABLE, "disk_full");
            assert_eq!(writes.next().await, ServingStatus::Serving);
            assert_eq!(ask(&app, "GET", "/ready").await, ready);

            // A write needs a block above the headroom.
            let free = volume.status().available;
            let block = fs4::allocation_granularity(&disk).unwrap();
            let one_left = volume.clone().keep_free(free - block);
            assert_eq!(one_left.takes_writes(), Ok(()));
            let none_left = volume.clone().keep_free(free - block + 1);
            assert!(none_left.takes_writes().is_err());

            // Bytes, and then inodes.
            let filler = disk.join("filler");
            let written = std::fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
            assert_eq!(written.kind(), io::ErrorKind::StorageFull);
            assert_eq!(writes.next().await, ServingStatus::NotServing);
            assert_eq!(ask(&app, "GET", "/ready").await, full);
            std::fs::remove_file(&filler).unwrap();
            assert_eq!(writes.next().await, ServingStatus::Serving);
            assert_eq!(ask(&app, "GET", "/ready").await, ready);

            let made = (0..).map(|number| std::fs::File::create(disk.join(number.to_string())));
            let failed = made.take(100).find_map(Result::err).unwrap();
            assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
            assert_eq!(writes.next().await, ServingStatus::NotServing);
            assert_eq!(ask(&app, "GET", "/ready").await, full);
            std::fs::remove_file(disk.join("0")).unwrap();
            assert_eq!(writes.next().await, ServingStatus::Serving);
            assert_eq!(ask(&app, "GET", "/ready").await, ready);
        });
    });
}
