//! The servers: without a layer, with the limit of tower-http, with the guard, and with one that is observed.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    routing::{get, put},
};
use bench_support::callgrind;
use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::{
    net::TcpListener,
    runtime,
    sync::{mpsc, oneshot},
};
use tower_http::limit::RequestBodyLimitLayer;
use tower_storage_guard::{
    Headroom, Probe, Reading, Reservation, StorageGuardLayer, Volume,
    metrics::Metrics,
    quota::{Limits, MemoryQuota},
    tracing::Tracing,
};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

pub(crate) const VARIANTS: [&str; 5] = [
    "no layer",
    "`RequestBodyLimit`",
    "disk guard",
    "disk guard, memory quota, handle",
    "the same, with metrics and tracing",
];

/// How often each variant is counted below valgrind, each time over so many requests.
pub(crate) const COUNTS: usize = 5;
pub(crate) const REQUESTS: u32 = 200;

/// A server for each of [`VARIANTS`].
pub(crate) struct Servers {
    pub(crate) addresses: [SocketAddr; VARIANTS.len()],
}

impl Servers {
    /// Starts them on one thread, which ends with the process.
    pub(crate) fn start() -> Self {
        let (sender, receiver) = oneshot::channel();
        thread::spawn(move || {
            let runtime = runtime();
            runtime.block_on(async {
                let mut addresses = vec![];
                for router in routers() {
                    addresses.push(serve(router).await);
                }
                sender.send(addresses).expect("a benchmark");
                std::future::pending::<()>().await;
            });
        });
        let addresses = receiver.blocking_recv().expect("servers");
        let addresses = addresses.try_into().expect("one for each variant");
        Self { addresses }
    }
}

/// Runs them below valgrind. The first line of the output is their ports, and that of a server whose every request ends a
/// count.
pub(crate) fn run_counted() {
    let runtime = runtime();
    // The loop of the runtime counts as well, as the servers of an application need it.
    callgrind::counted(|| {
        runtime.block_on(async {
            let mut ports = vec![];
            for router in routers() {
                ports.push(serve(router).await.port().to_string());
            }
            let (sender, mut receiver) = mpsc::channel(1);
            let control = Router::new().route("/", get(end_count)).with_state(sender);
            ports.push(serve(control).await.port().to_string());
            println!("{}", ports.join(" "));
            receiver.recv().await;
        });
    });
}

/// Ends a count, and after the last one the process.
async fn end_count(State(end): State<mpsc::Sender<()>>) -> StatusCode {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    let ended = ENDED.fetch_add(1, Relaxed);
    // Each variant warms up first.
    let (variant, count) = (ended / (COUNTS + 1), ended % (COUNTS + 1));
    let name = if count == 0 { "warm-up" } else { "server" };
    callgrind::end_of_count(&format!("{name}/{variant}"), REQUESTS, 0);
    if (variant + 1, count) == (VARIANTS.len(), COUNTS) {
        end.send(()).await.expect("a process that waits for it");
    }
    StatusCode::CREATED
}

/// Takes warnings, as logs do, and drops them: none is sent here.
pub(crate) fn log_warnings() {
    tracing_subscriber::registry()
        .with(LevelFilter::WARN)
        .init();
}

fn runtime() -> runtime::Runtime {
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// In the order of [`VARIANTS`].
fn routers() -> [Router; VARIANTS.len()] {
    let bare = || Router::new().route("/files/{name}", put(upload));
    let quota = MemoryQuota::new(Limits::bytes(1 << 60).objects(1 << 60));
    let whole = guard().quota(quota).scope_by(|_| "user:42");
    let with_handle = || Router::new().route("/files/{name}", put(upload_with_handle));
    // As an application has them: an exporter, and logs of what is worth a warning.
    let metrics = Metrics::with_recorder(PrometheusBuilder::new().build_recorder());
    let observed = whole.clone().observer((metrics, Tracing::new()));
    [
        bare(),
        bare().layer(RequestBodyLimitLayer::new(1 << 30)),
        bare().layer(guard()),
        with_handle().layer(whole),
        with_handle().layer(observed),
    ]
}

/// A disk that never fills up: what handlers say they have stored, they do not store.
struct LargeDisk;

impl Probe for LargeDisk {
    fn read(&mut self) -> io::Result<Reading> {
        Ok(Reading::new(1 << 60, 1 << 61).with_inodes(1 << 60, 1 << 61))
    }
}

fn guard() -> StorageGuardLayer {
    let volume = Volume::from_probe(LargeDisk).expect("a reading");
    let headroom = Headroom::bytes(64 << 20).or_percent(5).inodes(1000);
    StorageGuardLayer::new(volume.keep_free(headroom))
}

/// Reads the body to its end.
async fn upload(request: Request) -> StatusCode {
    let mut body = pin!(request.into_body());
    while let Some(frame) = body.frame().await {
        if std::hint::black_box(frame).is_err() {
            return StatusCode::BAD_REQUEST;
        }
    }
    StatusCode::CREATED
}

async fn upload_with_handle(request: Request) -> StatusCode {
    let reservation = request.extensions().get::<Reservation>();
    std::hint::black_box(reservation.expect("the guard's").remaining());
    upload(request).await
}
