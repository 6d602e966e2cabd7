use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_storage_guard::{
    quota::{Limits, MemoryQuota},
    *,
};

struct Disk(Arc<AtomicU64>);
impl Probe for Disk {
    fn read(&mut self) -> std::io::Result<Reading> {
        Ok(Reading::new(
            (32 << 20) - self.0.load(Ordering::SeqCst),
            32 << 20,
        ))
    }
}

fn disk() -> (Arc<AtomicU64>, Volume) {
    let used = Arc::new(AtomicU64::new(0));
    let volume = Volume::from_probe(Disk(used.clone())).unwrap();
    (used, volume)
}

async fn stampede(chunked: bool) {
    let (used, volume) = disk();
    let quota = MemoryQuota::new(Limits::bytes(1 << 30));
    let disk = used.clone();
    let service = ServiceBuilder::new()
        .layer(
            StorageGuardLayer::new(volume.clone())
                .quota(quota.clone())
                .scope_by(|_| "user:1"),
        )
        .service(service_fn(move |request: Request<MeteredBody<_>>| {
            let disk = disk.clone();
            async move {
                let reservation = request.extensions().get::<Reservation>().unwrap().clone();
                let mut body = request.into_body();
                let mut wrote = 0;
                while let Some(frame) = body.frame().await {
                    let Ok(frame) = frame else {
                        disk.fetch_sub(wrote, Ordering::SeqCst);
                        return Ok::<_, Infallible>(
                            Response::builder()
                                .status(500)
                                .body(Full::<Bytes>::default())
                                .unwrap(),
                        );
                    };
                    let n = frame.data_ref().map_or(0, |d: &Bytes| d.len()) as u64;
                    let now = disk.fetch_add(n, Ordering::SeqCst) + n;
                    assert!(now <= 32 << 20);
                    wrote += n;
                    reservation.written(n);
                    tokio::time::sleep(Duration::from_micros(100)).await;
                }
                Ok(Response::new(Full::default()))
            }
        }));
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let service = service.clone();
        let chunks =
            futures_util::stream::iter((0..64).map(|_| {
                Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(vec![0; 64 << 10])))
            }));
        let mut request = Request::put("/").body(StreamBody::new(chunks)).unwrap();
        if !chunked {
            request
                .headers_mut()
                .insert("content-length", (4 << 20).into());
        }
        tasks.push(tokio::spawn(service.oneshot(request)));
    }
    let mut counts = std::collections::BTreeMap::new();
    for task in tasks {
        let response = task.await.unwrap().unwrap();
        *counts.entry(response.status().as_u16()).or_insert(0) += 1;
    }
    println!("{chunked} {counts:?} {:?}", volume.status());
    assert_eq!(counts[&200], 8);
    assert_eq!(counts[&507], 8);
    assert_eq!(quota.usage("user:1").used.bytes, 32 << 20);
    assert_eq!(quota.usage("user:1").held.bytes, 0);
    volume.refresh();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(volume.status().claimed, 0);
    assert_eq!(volume.status().objects_claimed, 0);
    let _ = StatusCode::OK;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known() {
    stampede(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown() {
    let start = std::time::Instant::now();
    stampede(true).await;
    println!("{:?}", start.elapsed());
}
