//! Uploads of several requests, with a service that keeps the content in memory.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use test_support::service::{Content, Incoming, Reply, USER, chunked, full};
use test_support::{Dice, disk::Disk, times};
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_storage_guard::{
    Amount, Reservation, ResponseBody, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota},
    setup::Scoped,
    upload::{Chunks, Progress, Uploads},
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// The content that the service has: for tus by upload, for chunks by chunk.
type Kept = Arc<Mutex<Everything>>;
#[derive(Default)]
struct Everything {
    begun: usize,
    kept: HashMap<String, u64>,
}

type Guarded = BoxCloneService<Request<Content>, Response<ResponseBody<Full<Bytes>>>, Infallible>;

type Layered = StorageGuardLayer<MemoryQuota, Scoped>;

/// A guarded service, and the state that a test can inspect.
pub(crate) struct Site {
    service: Guarded,
    quota: MemoryQuota,
    pub(crate) uploads: Uploads,
    volume: Volume,
    disk: Disk,
}

impl Site {
    /// With this much room on the volume, and this much for the user.
    fn new(room: u64, limit: u64) -> Self {
        let uploads = Uploads::default().and(Chunks::under("/chunks"));
        Self::with(room, limit, uploads)
    }

    fn with(room: u64, limit: u64, uploads: Uploads) -> Self {
        Self::set(room, limit, uploads, |layer| layer)
    }

    /// With other settings of its layer.
    pub(crate) fn set(
        room: u64,
        limit: u64,
        uploads: Uploads,
        set: impl FnOnce(Layered) -> Layered,
    ) -> Self {
        let (disk, quota) = (Disk::new(room), MemoryQuota::new(Limits::bytes(limit)));
        let volume = disk.volume();
        let layer = StorageGuardLayer::new(volume.clone())
            .quota(quota.clone())
            .scope_by(|_| USER)
            .uploads(&uploads);
        let kept = Kept::default();
        let service = set(layer).layer(service_fn(move |request| keep(kept.clone(), request)));
        Self {
            service: BoxCloneService::new(service),
            quota,
            uploads,
            volume,
            disk,
        }
    }

    async fn send(&self, request: Request<Content>) -> Response<ResponseBody<Full<Bytes>>> {
        let mut service = self.service.clone();
        service.ready().await.unwrap().call(request).await.unwrap()
    }

    pub(crate) async fn status(&self, request: Request<Content>) -> u16 {
        self.send(request).await.status().as_u16()
    }

    /// Begins an upload by tus. Returns its path, or the status.
    pub(crate) async fn begin(&self, whole: u64) -> Result<String, u16> {
        self.begin_with(whole, full(0)).await
    }

    async fn begin_with(&self, whole: u64, content: Content) -> Result<String, u16> {
        let request = tus("POST", "/files").header("upload-length", whole);
        let answer = self.send(request.body(content).unwrap()).await;
        assert_eq!(answer.headers()["tus-resumable"], "1.0.0");
        match answer.status().as_u16() {
            201 => Ok(place_of(&answer)),
            status => Err(status),
        }
    }

    pub(crate) async fn patch(&self, path: &str, offset: u64, content: Content) -> u16 {
        let request = tus("PATCH", path).header("upload-offset", offset);
        self.status(request.body(content).unwrap()).await
    }

    pub(crate) fn used(&self) -> u64 {
        self.quota.usage(USER).used.bytes
    }

    pub(crate) fn held(&self) -> u64 {
        self.quota.usage(USER).held.bytes
    }
}

/// The path of the new upload.
fn place_of<B>(answer: &Response<B>) -> String {
    let location: Uri = answer.headers()["location"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    location.path().to_owned()
}

pub(crate) fn tus(method: &str, path: &str) -> http::request::Builder {
    let request = Request::builder().method(method).uri(path);
    request.header("tus-resumable", "1.0.0")
}

pub(crate) fn plain(method: &str, path: &str, bytes: usize) -> Request<Content> {
    let request = Request::builder().method(method).uri(path);
    request
        .header("content-length", bytes)
        .body(full(bytes))
        .unwrap()
}

/// A body that breaks off after this many bytes.
fn broken(bytes: usize) -> Content {
    let frames = [
        Ok(Frame::data(Bytes::from(vec![7; bytes]))),
        Err(io::ErrorKind::ConnectionReset.into()),
    ];
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// tus at `/files`, chunks at `/chunks`, and everything else is discarded.
async fn keep(kept: Kept, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let number =
        |name: &str| -> Option<u64> { head.headers.get(name)?.to_str().ok()?.parse().ok() };
    let reservation: Option<&Reservation> = head.extensions.get();
    let before = number("upload-offset").unwrap_or(0);
    let is_tus = path.starts_with("/files");
    if head.method == "PATCH" && kept.lock().unwrap().kept.get(&path) != Some(&before) {
        return Ok(reply(409));
    }
    let (came, is_whole) = read(body, reservation).await;
    let Everything { begun, kept } = &mut *kept.lock().unwrap();
    let mut answer = match head.method.as_str() {
        "POST" if is_tus => {
            let place = format!("/files/{begun}");
            *begun += 1;
            kept.insert(place.clone(), came);
            let mut answer = reply(201);
            // As tusd does it.
            let location = format!("http://files.example{place}");
            answer
                .headers_mut()
                .insert("location", location.parse().unwrap());
            answer
        }
        "PATCH" => {
            // Received content is kept.
            kept.insert(path, before + came);
            reply(if is_whole { 204 } else { 500 })
        }
        "DELETE" => {
            kept.retain(|kept, _| *kept != path && !kept.starts_with(&format!("{path}/")));
            reply(204)
        }
        "PUT" if is_whole => {
            kept.insert(path, came);
            reply(201)
        }
        "PUT" => reply(500),
        _ => reply(201),
    };
    if is_tus && matches!(head.method.as_str(), "POST" | "PATCH") {
        let headers = answer.headers_mut();
        headers.insert("tus-resumable", "1.0.0".parse().unwrap());
        headers.insert("upload-offset", (before + came).into());
    }
    Ok(answer)
}

/// How much was received, and whether it was everything.
async fn read(mut body: Incoming, reservation: Option<&Reservation>) -> (u64, bool) {
    let mut came = 0;
    loop {
        match body.frame().await {
            None => return (came, true),
            Some(Err(_)) => return (came, false),
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                reservation
                    .expect("what brings content is guarded")
                    .written(bytes);
                came += bytes;
            }
        }
    }
}

fn reply(status: u16) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::from_u16(status).unwrap();
    reply
}

/// The whole is charged with its last request, so that is the first one that warns.
#[tokio::test]
async fn the_last_request_warns_of_a_soft_limit() {
    let site = Site::set(1_000, 100, Uploads::default(), Layered::storage_warning);
    let limits = Limits::bytes(100).soft_bytes(8);
    site.quota.set_limits(USER, limits);
    let path = site.begin(10).await.unwrap();
    for (offset, warns) in [(0, false), (5, true)] {
        let request = tus("PATCH", &path).header("upload-offset", offset);
        let answer = site.send(request.body(full(5)).unwrap()).await;
        let warning = answer.headers().get("storage-warning");
        assert_eq!(warning.is_some(), warns, "{:?}", answer.headers());
    }
    assert_eq!(site.used(), 10);
}

#[tokio::test]
async fn the_whole_is_held_at_the_first_request_and_charged_at_the_last() {
    let site = Site::new(1_000, 100);
    let file = site.begin(100).await.unwrap();
    assert_eq!((site.used(), site.held()), (0, 100));
    assert_eq!(site.quota.usage(USER).held.objects, 1);
    assert_eq!(site.begin(1).await, Err(507));
    for (offset, bytes) in [(0, 30), (30, 0), (30, 69)] {
        assert_eq!(site.patch(&file, offset, full(bytes)).await, 204);
        assert_eq!((site.used(), site.held()), (0, 100));
    }
    assert_eq!(site.uploads.get(&file).unwrap().received, 99);
    assert_eq!(site.patch(&file, 99, full(1)).await, 204);
    assert_eq!(site.quota.usage(USER).used, Amount::new(100, 1));
    assert_eq!((site.held(), site.uploads.len()), (0, 0));
    // The upload is unknown by now, and the service answers for itself.
    assert_eq!(site.patch(&file, 99, full(0)).await, 409);
    assert_eq!(site.used(), 100);
}

#[tokio::test]
async fn an_upload_complete_in_its_first_request_is_charged_with_it() {
    let site = Site::new(1_000, 100);
    site.begin_with(40, full(40)).await.unwrap();
    assert_eq!((site.used(), site.held()), (40, 0));
    site.begin(0).await.unwrap();
    assert_eq!(site.quota.usage(USER).used, Amount::new(40, 2));
    // With only a part of the content, the upload stays open.
    let file = site.begin_with(60, full(20)).await.unwrap();
    assert_eq!((site.used(), site.held()), (40, 60));
    assert_eq!(site.patch(&file, 20, full(40)).await, 204);
    assert_eq!((site.used(), site.held()), (100, 0));
}

#[tokio::test]
async fn an_interrupted_upload_is_resumed_at_its_offset() {
    // It fits exactly on both, so that nothing may be counted twice.
    let site = Site::new(100, 100);
    let file = site.begin(100).await.unwrap();
    assert_eq!(site.patch(&file, 0, broken(60)).await, 500);
    assert_eq!((site.used(), site.held()), (0, 100));
    // A client that has not asked for the offset.
    assert_eq!(site.patch(&file, 0, full(100)).await, 409);
    assert_eq!(site.patch(&file, 60, full(40)).await, 204);
    assert_eq!((site.used(), site.held()), (100, 0));
}

#[tokio::test]
async fn content_that_is_sent_again_is_claimed_again() {
    let site = Site::new(100, 100);
    let put = |name: &str, content: Content| {
        let request = Request::put(format!("/chunks/1/{name}"));
        request.header("oc-total-length", 60).body(content).unwrap()
    };
    assert_eq!(site.status(put("1", full(40))).await, 201);
    // It is on the disk, and the ledger has seen it there.
    site.disk.set_available(60);
    Disk::until(&site.volume, |status| status.claimed == 20).await;
    // What it replaces stays until the new content is complete. There is exactly enough room for both and the rest.
    assert_eq!(site.status(put("1", full(40))).await, 201);
    Disk::until(&site.volume, |status| status.claimed == 20).await;
    site.disk.set_available(59);
    Disk::until(&site.volume, |status| status.available == 59).await;
    assert_eq!(site.status(put("1", full(40))).await, 507);
    // That is no reason to refuse new content.
    assert_eq!(site.status(put("2", full(20))).await, 201);
    assert_eq!((site.used(), site.held()), (0, 60));
    assert_eq!(site.status(plain("MOVE", "/chunks/1/.file", 0)).await, 201);
    assert_eq!((site.used(), site.held()), (60, 0));
}

#[tokio::test]
async fn a_part_fits_however_full_the_volume_has_become() {
    let site = Site::new(100, 1_000);
    let file = site.begin(100).await.unwrap();
    assert_eq!(site.begin(1).await, Err(507));
    assert_eq!(site.patch(&file, 0, full(50)).await, 204);
    site.disk.set_available(50);
    // A reading may come between the part and that.
    Disk::until(&site.volume, |status| {
        (status.available, status.claimed) == (50, 50)
    })
    .await;
    assert_eq!(site.begin(1).await, Err(507));
    assert_eq!(site.patch(&file, 50, full(50)).await, 204);
    site.disk.set_available(0);
    Disk::until_settled(&site.volume).await;
}

#[tokio::test]
async fn an_upload_of_unknown_length_grows_with_its_parts() {
    let site = Site::new(1_000, 100);
    let request = tus("POST", "/files").header("upload-defer-length", "1");
    let answer = site.send(request.body(full(0)).unwrap()).await;
    let file = place_of(&answer);
    assert_eq!(site.held(), 0);
    assert_eq!(site.patch(&file, 0, full(70)).await, 204);
    assert_eq!((site.used(), site.held()), (0, 70));
    // More than there is room for, and so is the length that is finally announced.
    assert_eq!(site.patch(&file, 70, full(31)).await, 507);
    let with_length = |whole: u64, bytes| {
        let request = tus("PATCH", &file).header("upload-offset", 70);
        let request = request.header("upload-length", whole);
        request.body(full(bytes)).unwrap()
    };
    assert_eq!(site.status(with_length(101, 10)).await, 507);
    assert_eq!((site.used(), site.held()), (0, 70));
    assert_eq!(site.status(with_length(90, 10)).await, 204);
    assert_eq!((site.used(), site.held()), (0, 90));
    assert_eq!(site.patch(&file, 80, full(10)).await, 204);
    assert_eq!((site.used(), site.held()), (90, 0));
}

/// Where no byte is left, a step whose body has no length and is empty needs none.
#[tokio::test]
async fn empty_steps_of_unknown_length_fit() {
    let site = Site::new(1_000, 100);
    let create = |content| {
        let request = tus("POST", "/files").header("upload-defer-length", "1");
        request.body(content).unwrap()
    };
    let answer = site.send(create(full(0))).await;
    let file = place_of(&answer);
    assert_eq!(site.patch(&file, 0, full(100)).await, 204);
    assert_eq!((site.used(), site.held()), (0, 100));
    for (content, status) in [(chunked(0, 1), 201), (chunked(5, 1), 507)] {
        assert_eq!(site.status(create(content)).await, status);
    }
    for (content, status) in [(chunked(0, 1), 204), (chunked(5, 1), 507)] {
        assert_eq!(site.patch(&file, 100, content).await, status);
    }
    assert_eq!((site.used(), site.held()), (0, 100));
}

#[tokio::test]
async fn a_body_of_unknown_length_draws_as_it_comes() {
    let site = Site::new(100, 100);
    let file = site.begin(100).await.unwrap();
    let parts = |frames: usize| {
        let frames =
            stream::iter(0..frames).map(|_| Ok(Frame::data(Bytes::from_static(b"tenletters"))));
        StreamBody::new(frames).boxed_unsync()
    };
    assert_eq!(site.patch(&file, 0, parts(4)).await, 204);
    assert_eq!(site.patch(&file, 40, parts(7)).await, 507);
    assert_eq!((site.used(), site.held()), (0, 100));
    // The service has kept the content before the cut.
    assert_eq!(site.patch(&file, 100, full(0)).await, 204);
    assert_eq!((site.used(), site.held()), (100, 0));
}

#[tokio::test]
async fn an_aborted_upload_is_released() {
    let site = Site::new(100, 100);
    let file = site.begin(100).await.unwrap();
    assert_eq!(site.patch(&file, 0, full(60)).await, 204);
    let delete = tus("DELETE", &file).body(full(0)).unwrap();
    assert_eq!(site.status(delete).await, 204);
    assert_eq!((site.used(), site.held(), site.uploads.len()), (0, 0, 0));
    assert_eq!(site.quota.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&site.volume).await;

    // By the service itself, without a request.
    let file = site.begin(100).await.unwrap();
    assert!(site.uploads.release(&file));
    assert!(!site.uploads.release(&file));
    assert_eq!(site.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_upload_expires() {
    let uploads = Uploads::default().expire_after(HOUR);
    let site = Site::with(100, 100, uploads);
    let file = site.begin(100).await.unwrap();
    assert_eq!(site.held(), 100);
    assert_eq!(
        site.uploads.get(&file),
        site.uploads.get(&format!("{file}/")),
        "a slash at the end names the same"
    );
    sleep(HOUR - MINUTE).await;
    assert_eq!(site.held(), 100);
    sleep(2 * MINUTE).await;
    assert_eq!(site.held(), 0);
    assert_eq!(site.uploads.len(), 0);
    // Later content is charged by itself.
    assert_eq!(site.patch(&file, 0, full(10)).await, 204);
    assert_eq!((site.used(), site.held()), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn every_part_keeps_an_upload_for_longer() {
    let site = Site::with(100, 100, Uploads::default().expire_after(HOUR));
    let file = site.begin(100).await.unwrap();
    let other = site.begin(0).await;
    assert!(other.is_ok());
    for offset in 0..3 {
        sleep(HOUR - MINUTE).await;
        assert_eq!(site.patch(&file, offset, full(1)).await, 204);
    }
    sleep(HOUR - MINUTE).await;
    assert_eq!(site.held(), 100);
    sleep(2 * MINUTE).await;
    assert_eq!((site.held(), site.uploads.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_that_expires_earlier_than_the_others_does_not_wait_for_them() {
    let uploads = Uploads::new(Chunks::under("/chunks"));
    let long = Site::with(100, 100, uploads.clone().expire_after(HOUR));
    let short = Site::with(100, 100, uploads.clone().expire_after(MINUTE));
    let never = Site::with(100, 100, uploads.clone().expire_after(Duration::MAX));
    for (site, name) in [(&long, "long"), (&short, "short"), (&never, "never")] {
        let put = Request::put(format!("/chunks/{name}/1")).header("oc-total-length", 100);
        assert_eq!(site.status(put.body(full(10)).unwrap()).await, 201);
        // The task has seen it.
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(uploads.len(), 3);
    sleep(MINUTE).await;
    assert_eq!((long.held(), short.held(), never.held()), (100, 0, 100));
    sleep(HOUR).await;
    assert_eq!((long.held(), never.held()), (0, 100));
    sleep(10_000 * HOUR).await;
    assert_eq!((uploads.len(), never.held()), (1, 100));
}

#[tokio::test(start_paused = true)]
async fn the_task_that_expires_uploads_ends_with_them() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let site = Site::with(100, 100, Uploads::default().expire_after(HOUR));
    let file = site.begin(50).await.unwrap();
    assert_eq!(site.patch(&file, 0, full(50)).await, 204);
    site.begin(50).await.unwrap();
    assert_eq!(tasks(), 1);
    let quota = site.quota.clone();
    sleep(MINUTE).await;
    assert_eq!((quota.usage(USER).held.bytes, tasks()), (50, 1));
    // Without the service no request can continue an open upload.
    drop(site);
    sleep(MINUTE).await;
    assert_eq!((quota.usage(USER).held.bytes, tasks()), (0, 0));
}

#[test]
fn uploads_outlive_the_runtime_that_they_began_on() {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap()
    };
    let site = Site::with(100, 100, Uploads::default().expire_after(HOUR));
    runtime().block_on(site.begin(60)).unwrap();
    assert_eq!(site.held(), 60);
    runtime().block_on(async {
        site.begin(40).await.unwrap();
        assert_eq!(site.held(), 100);
        sleep(HOUR + MINUTE).await;
        assert_eq!((site.held(), site.uploads.len()), (0, 0));
    });
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_request_ends_on_a_plain_thread_expires() {
    let (quota, uploads) = (MemoryQuota::new(Limits::bytes(100)), Uploads::default());
    let layer = StorageGuardLayer::quota_only(quota.clone())
        .scope_by(|_| USER)
        .uploads(&uploads);
    let (give, mut taken) = tokio::sync::mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        give.send(request.into_body()).unwrap();
        let mut answer = reply(201);
        let headers = answer.headers_mut();
        headers.insert("upload-complete", "?0".parse().unwrap());
        headers.insert("location", "/up/1".parse().unwrap());
        std::future::ready(Ok::<_, Infallible>(answer))
    }));
    let first = Request::post("/new").header("upload-complete", "?0");
    let first = first.header("upload-length", 100).body(full(30)).unwrap();
    let answer = service.oneshot(first).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let body = taken.recv().await.unwrap();
    assert_eq!(uploads.len(), 0);
    std::thread::spawn(|| drop(body)).join().unwrap();
    assert_eq!((uploads.len(), quota.usage(USER).held.bytes), (1, 100));
    sleep(HOUR + MINUTE).await;
    assert_eq!((uploads.len(), quota.usage(USER).held.bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_flight_does_not_expire() {
    let uploads = Uploads::default().expire_after(MINUTE / 10);
    let site = Site::with(100, 100, uploads);
    let file = site.begin(100).await.unwrap();
    let (frames, rest) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames_of = stream::unfold(rest, |mut rest| async {
        let frame = rest.recv().await?;
        Some((Ok(Frame::data(frame)), rest))
    });
    let patch = site.patch(&file, 0, StreamBody::new(frames_of).boxed_unsync());
    let slow = async {
        frames.send(Bytes::from(vec![7; 50])).await.unwrap();
        sleep(MINUTE / 3).await;
        assert_eq!(site.held(), 100);
        frames.send(Bytes::from(vec![7; 50])).await.unwrap();
        drop(frames);
    };
    assert_eq!(tokio::join!(patch, slow).0, 204);
    assert_eq!((site.used(), site.held()), (100, 0));
}

#[tokio::test]
async fn a_first_request_that_fails_leaves_nothing() {
    let site = Site::new(1_000, 100);
    assert_eq!(site.begin(101).await, Err(507));
    assert_eq!(site.begin(u64::MAX).await, Err(507));
    let first = Request::put("/chunks/1/1").header("oc-total-length", 100);
    assert_eq!(site.status(first.body(broken(10)).unwrap()).await, 500);
    assert_eq!((site.used(), site.held(), site.uploads.len()), (0, 0, 0));
}

#[tokio::test]
async fn chunks_come_in_any_order_and_more_than_once() {
    let site = Site::new(1_000, 100);
    let folder = Request::builder().method("MKCOL").uri("/chunks/1/");
    let folder = folder.header("oc-total-length", 90).body(full(0)).unwrap();
    assert_eq!(site.status(folder).await, 201);
    assert_eq!(site.held(), 90);
    for (name, bytes) in [("3", 30), ("1", 20), ("3", 30), ("2", 30), ("1", 30)] {
        let path = format!("/chunks/1/{name}");
        assert_eq!(site.status(plain("PUT", &path, bytes)).await, 201);
    }
    // For content larger than announced, room for the difference is reserved, or it is refused.
    assert_eq!(site.status(plain("PUT", "/chunks/1/4", 11)).await, 507);
    assert_eq!(site.status(plain("PUT", "/chunks/1/4", 10)).await, 201);
    assert_eq!((site.used(), site.held()), (0, 100));
    assert_eq!(site.status(plain("MOVE", "/chunks/1/.file", 0)).await, 201);
    assert_eq!(site.quota.usage(USER).used, Amount::new(100, 1));
    assert_eq!(site.held(), 0);

    // An upload without an announced length is charged chunk by chunk.
    let site = Site::new(1_000, 100);
    assert_eq!(site.status(plain("PUT", "/chunks/2/1", 10)).await, 201);
    assert_eq!((site.used(), site.held()), (10, 0));
    assert_eq!(site.status(plain("DELETE", "/chunks/1", 0)).await, 204);
}

/// The guard remembers them in memory.
#[tokio::test]
async fn uploads_and_chunks_are_limited_in_number() {
    let uploads = Uploads::default().and(Chunks::under("/chunks"));
    let site = Site::with(1_000, 1_000, uploads.max_open(5));
    let chunk = |folder: &str, name: &str| {
        let request = Request::put(format!("/chunks/{folder}/{name}"));
        let request = request.header("oc-total-length", 50);
        site.status(request.body(full(1)).unwrap())
    };
    let path = site.begin(10).await.unwrap();
    // An upload, and its first part.
    assert_eq!(chunk("a", "1").await, 201);
    assert_eq!(chunk("a", "2").await, 201);
    assert_eq!(chunk("a", "3").await, 201);
    assert_eq!(chunk("a", "4").await, 503);
    assert_eq!(chunk("b", "1").await, 503);
    assert_eq!(site.begin(10).await, Err(503));
    assert_eq!((site.held(), site.uploads.len()), (60, 2));
    // What is open goes on.
    assert_eq!(chunk("a", "3").await, 201);
    assert_eq!(site.patch(&path, 0, full(10)).await, 204);
    assert_eq!(site.status(plain("GET", "/chunks/a/4", 0)).await, 201);
    assert_eq!(chunk("a", "4").await, 201);
    assert_eq!(site.begin(10).await, Err(503));
    assert_eq!(site.status(plain("MOVE", "/chunks/a/.file", 0)).await, 201);
    for _ in 0..4 {
        site.begin(10).await.unwrap();
    }
    assert_eq!(site.used(), 14);
    assert_eq!(site.held(), 40);
}

#[tokio::test]
async fn the_key_of_an_upload_is_limited_in_length() {
    let uploads = Uploads::new(Chunks::under("/chunks"));
    let site = Site::with(1_000, 1_000, uploads);
    let put = async |folder: usize, name: usize| {
        let path = format!("/chunks/{}/{}", "f".repeat(folder), "n".repeat(name));
        let request = Request::put(path).header("oc-total-length", 50);
        site.status(request.body(full(1)).unwrap()).await
    };
    let longest = 4_096 - "/chunks/".len();
    assert_eq!(put(longest, 4_096).await, 201);
    assert_eq!(put(longest + 1, 1).await, 400);
    assert_eq!(put(1, 4_097).await, 400);
    assert_eq!(site.uploads.len(), 1);
}

#[tokio::test]
async fn chunks_that_come_at_once_hold_the_whole_once() {
    let site = Site::new(1_000, 100);
    let chunk = |name: u64| {
        let request = Request::put(format!("/chunks/1/{name}"));
        let request = request.header("oc-total-length", 100);
        site.status(request.body(full(25)).unwrap())
    };
    let all = tokio::join!(chunk(1), chunk(2), chunk(3), chunk(4));
    assert_eq!(all, (201, 201, 201, 201));
    assert_eq!((site.used(), site.held()), (0, 100));
    let delete = Request::delete("/chunks/1").body(full(0)).unwrap();
    assert_eq!(site.status(delete).await, 204);
    assert_eq!(site.held(), 0);
}

#[tokio::test]
async fn uploads_of_the_ietf_protocol_end_with_upload_complete() {
    let kept = |status: u16, complete: &'static str| {
        move |request: Request<Incoming>| async move {
            request.into_body().collect().await.unwrap();
            let mut answer = reply(status);
            let headers = answer.headers_mut();
            headers.insert("upload-complete", complete.parse().unwrap());
            headers.insert("location", "../up/1".parse().unwrap());
            Ok::<_, Infallible>(answer)
        }
    };
    let (quota, uploads) = (MemoryQuota::new(Limits::bytes(100)), Uploads::default());
    let layer = StorageGuardLayer::quota_only(quota.clone())
        .scope_by(|_| USER)
        .uploads(&uploads);
    let request = |method: &str, path: &str, complete: &str| {
        let request = Request::builder().method(method).uri(path);
        request.header("upload-complete", complete)
    };

    let first = request("POST", "/new/file", "?0").header("upload-length", 100);
    let first = first.body(full(30)).unwrap();
    let answer = layer.layer(service_fn(kept(201, "?0"))).oneshot(first);
    assert_eq!(answer.await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(quota.usage(USER).held.bytes, 100);
    let Progress {
        whole, received, ..
    } = uploads.get("/up/1").unwrap();
    assert_eq!((whole, received), (Some(100), 30));

    let last = request("PATCH", "/up/1", "?1").header("upload-offset", 30);
    let last = last.body(full(70)).unwrap();
    let answer = layer.layer(service_fn(kept(200, "?1"))).oneshot(last);
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    assert_eq!(quota.usage(USER).used, Amount::new(100, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    quota.set_used(USER, Amount::ZERO);

    // All at once.
    let whole = request("POST", "/new/file", "?1").body(full(40)).unwrap();
    let answer = layer.layer(service_fn(kept(200, "?1"))).oneshot(whole);
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    assert_eq!(quota.usage(USER).used, Amount::new(40, 1));
    assert_eq!(uploads.len(), 0);
}

#[tokio::test]
async fn a_service_without_uploads_is_charged_for_the_received_bytes() {
    let (quota, uploads) = (MemoryQuota::new(Limits::bytes(100)), Uploads::default());
    let layer = StorageGuardLayer::quota_only(quota.clone())
        .scope_by(|_| USER)
        .uploads(&uploads);
    let service = layer.layer(service_fn(async |request: Request<Incoming>| {
        request.into_body().collect().await.unwrap();
        let mut answer = reply(201);
        let headers = answer.headers_mut();
        headers.insert("location", "/notes/7".parse().unwrap());
        Ok::<_, Infallible>(answer)
    }));
    let request = tus("POST", "/notes").header("upload-length", 100);
    let request = request.body(full(10)).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), 201);
    assert_eq!(quota.usage(USER).used, Amount::new(10, 1));
    assert_eq!(uploads.len(), 0);
}

/// Random operations, compared with a model: open uploads are held, complete ones are used, and nothing else.
#[tokio::test]
async fn figures_agree_with_a_model_at_every_quiet_point() {
    const LIMIT: u64 = 500;
    for seed in 0..u64::from(times(40)) {
        let mut dice = Dice::new(seed);
        let site = Site::new(1 << 20, LIMIT);
        // By path: the total length, and the received length.
        let mut open: Vec<(String, u64, u64)> = Vec::new();
        let mut used = 0;
        for _ in 0..80 {
            let held: u64 = open.iter().map(|(_, whole, _)| whole).sum();
            match dice.roll(8) {
                0 | 1 => {
                    let whole = 1 + dice.roll(200);
                    let begun = site.begin(whole).await;
                    assert_eq!(begun.is_ok(), used + held + whole <= LIMIT, "seed {seed}");
                    open.extend(begun.map(|path| (path, whole, 0)));
                }
                2 if !open.is_empty() => {
                    let which = dice.roll(open.len() as u64) as usize;
                    let (path, ..) = open.swap_remove(which);
                    let delete = tus("DELETE", &path).body(full(0)).unwrap();
                    assert_eq!(site.status(delete).await, 204);
                }
                3.. if !open.is_empty() => {
                    let which = dice.roll(open.len() as u64) as usize;
                    let (path, whole, there) = &mut open[which];
                    let bytes = dice.roll(*whole - *there + 1);
                    let breaks = dice.roll(3) == 0;
                    let content = match breaks {
                        true => broken(bytes as usize),
                        false => full(bytes as usize),
                    };
                    let status = site.patch(path, *there, content).await;
                    assert_eq!(status, if breaks { 500 } else { 204 }, "seed {seed}");
                    *there += bytes;
                    if !breaks && there == whole {
                        used += *whole;
                        open.swap_remove(which);
                    }
                }
                _ => {}
            }
            let held = open.iter().map(|(_, whole, _)| whole).sum();
            assert_eq!((site.used(), site.held()), (used, held), "seed {seed}");
            assert_eq!(site.uploads.len(), open.len());
        }
    }
}

/// Requests of other clients for the same upload do not change its charge.
#[tokio::test]
async fn a_part_that_is_refused_is_not_counted_in_the_place_of_one_in_flight() {
    let patch = |offset: u64| {
        let request = tus("PATCH", "/files/0").header("upload-offset", offset);
        request.body(full(0)).unwrap()
    };
    for offset in [0, 7, u64::MAX] {
        let site = Site::new(100, 100);
        let file = site.begin(100).await.unwrap();
        assert_eq!(site.patch(&file, 0, full(40)).await, 204);
        let (frames, mut rest) = tokio::sync::mpsc::channel::<Bytes>(1);
        let frames_of = stream::poll_fn(move |cx| rest.poll_recv(cx).map(|frame| frame.map(Ok)));
        let content = StreamBody::new(frames_of.map(|frame| frame.map(Frame::data)));
        let last = site.patch(&file, 40, content.boxed_unsync());
        let between = async {
            frames.send(Bytes::from(vec![7; 30])).await.unwrap();
            assert_eq!(site.status(patch(offset)).await, 409);
            frames.send(Bytes::from(vec![7; 30])).await.unwrap();
            drop(frames);
        };
        assert_eq!(tokio::join!(last, between).0, 204);
        assert_eq!((site.used(), site.held()), (100, 0), "at {offset}");
        Disk::until_settled(&site.volume).await;
    }
}

#[tokio::test]
async fn no_offset_is_too_large() {
    let site = Site::new(1_000, 100);
    let chunk = || {
        let request = Request::put("/chunks/1/1").header("oc-total-length", 50);
        request.body(full(20)).unwrap()
    };
    assert_eq!(site.status(chunk()).await, 201);
    // A client may address by one protocol what it began by another.
    for offset in [u64::MAX, 0] {
        site.patch("/chunks/1", offset, full(0)).await;
        assert_eq!(site.status(chunk()).await, 201);
    }
    assert_eq!(site.uploads.get("/chunks/1").unwrap().received, 20);
    assert_eq!(site.status(plain("MOVE", "/chunks/1/.file", 0)).await, 201);
    assert_eq!((site.used(), site.held()), (20, 0));
}

#[tokio::test]
async fn an_upload_has_one_key_in_every_spelling() {
    let site = Site::new(1_000, 100);
    let file = site.begin(30).await.unwrap();
    for (offset, alias) in [
        (0, "/files/0?a=b"),
        (10, "/files/%30"),
        (20, "/%66iles/0/?"),
    ] {
        let known = site.uploads.get(&file).unwrap();
        assert_eq!(known.received, offset);
        let status = site.patch(alias, offset, full(10)).await;
        // The service here ignores queries.
        if status != 204 {
            assert_eq!((site.used(), site.held()), (0, 30), "{alias}");
            assert_eq!(site.patch(&file, offset, full(10)).await, 204);
        }
    }
    assert_eq!(site.used(), 30);

    let site = Site::new(1_000, 100);
    let put = Request::put("/chunks/a@b/1").header("oc-total-length", 30);
    assert_eq!(site.status(put.body(full(30)).unwrap()).await, 201);
    assert_eq!(
        site.status(plain("MOVE", "/%63hunks/a%40b/%2Efile", 0))
            .await,
        201
    );
    assert_eq!((site.used(), site.held()), (30, 0));
}

#[tokio::test]
async fn a_report_for_a_part_is_replaced_with_the_part() {
    let (quota, uploads) = (
        MemoryQuota::new(Limits::bytes(100)),
        Uploads::new(Chunks::under("/chunks")),
    );
    let layer = StorageGuardLayer::quota_only(quota.clone())
        .scope_by(|_| USER)
        .uploads(&uploads);
    let service = layer.layer(service_fn(async |request: Request<Incoming>| {
        // The content is compressed.
        let (head, body) = request.into_parts();
        let came = body.collect().await.unwrap().to_bytes().len() as u64;
        if came > 0 {
            let reservation: &Reservation = head.extensions.get().unwrap();
            reservation.stored(came / 2);
        }
        Ok::<_, Infallible>(reply(201))
    }));
    for _ in 0..3 {
        let put = Request::put("/chunks/1/1").header("oc-total-length", 40);
        let put = put.body(full(40)).unwrap();
        assert_eq!(service.clone().oneshot(put).await.unwrap().status(), 201);
    }
    let last = plain("MOVE", "/chunks/1/.file", 0);
    assert_eq!(service.oneshot(last).await.unwrap().status(), 201);
    assert_eq!(quota.usage(USER).used, Amount::new(20, 1));
}

/// A service that answers so, and reads after its answer.
fn answers_first(
    headers: &'static [(&'static str, &'static str)],
) -> impl Fn(Request<Incoming>) -> std::future::Ready<Result<Reply, Infallible>> + Clone {
    move |request| {
        let mut answer = reply(201);
        for (name, value) in headers {
            answer.headers_mut().insert(*name, value.parse().unwrap());
        }
        tokio::spawn(async move {
            sleep(Duration::from_secs(20)).await;
            request.into_body().collect().await.unwrap();
        });
        std::future::ready(Ok(answer))
    }
}

#[tokio::test(start_paused = true)]
async fn content_read_after_the_answer_counts() {
    let guard = |idle| {
        let quota = MemoryQuota::new(Limits::bytes(100));
        let uploads = Uploads::default().expire_after(idle);
        let layer = StorageGuardLayer::quota_only(quota.clone())
            .scope_by(|_| USER)
            .uploads(&uploads);
        (quota, uploads, layer)
    };
    let first = |content_type: &'static str| {
        let request = Request::post("/new").header("upload-complete", "?0");
        let request = request.header("content-type", content_type);
        request.body(chunked(4, 10)).unwrap()
    };

    // A service that does not know uploads. Its client must not store for free.
    let (quota, uploads, layer) = guard(MINUTE);
    let service = layer.layer(service_fn(answers_first(&[])));
    let answer = service.oneshot(first("image/png")).await.unwrap();
    answer.into_body().collect().await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(quota.usage(USER).used, Amount::new(40, 1));
    assert_eq!(uploads.len(), 0);

    // The same of a call.
    let (quota, uploads, layer) = guard(MINUTE);
    let service = layer.layer(service_fn(async |request: Request<Incoming>| {
        request.into_body().collect().await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = stream::iter([Ok::<_, Infallible>(Frame::<Bytes>::trailers(trailers))]);
        let mut answer = Response::new(StreamBody::new(frames));
        let grpc = "application/grpc".parse().unwrap();
        answer.headers_mut().insert("content-type", grpc);
        Ok::<_, Infallible>(answer)
    }));
    let answer = service.oneshot(first("application/grpc")).await.unwrap();
    answer.into_body().collect().await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(40, 1));
    assert_eq!(uploads.len(), 0);

    // An open upload expires all the same.
    let (quota, uploads, layer) = guard(MINUTE);
    let service = layer.layer(service_fn(answers_first(&[
        ("upload-complete", "?0"),
        ("location", "/up/1"),
    ])));
    let answer = service.oneshot(first("image/png")).await.unwrap();
    answer.into_body().collect().await.unwrap();
    sleep(MINUTE / 2).await;
    assert_eq!(uploads.len(), 1);
    sleep(MINUTE).await;
    assert_eq!(uploads.len(), 0);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn the_last_request_counts_even_where_others_like_it_are_not_guarded() {
    let (quota, uploads) = (
        MemoryQuota::new(Limits::bytes(100)),
        Uploads::new(Chunks::under("/chunks")),
    );
    let layer = StorageGuardLayer::quota_only(quota.clone())
        .scope_by(|_| USER)
        .applies_when(|head| head.method == "PUT")
        .uploads(&uploads);
    let service = layer.layer(service_fn(async |request: Request<Incoming>| {
        let status = if request.method() == "DELETE" {
            207
        } else {
            201
        };
        request.into_body().collect().await.unwrap();
        Ok::<_, Infallible>(reply(status))
    }));
    let send = |request| service.clone().oneshot(request);
    let put = Request::put("/chunks/1/1").header("oc-total-length", 40);
    send(put.body(full(40)).unwrap()).await.unwrap();
    // Some of the content still exists.
    send(plain("DELETE", "/chunks/1", 0)).await.unwrap();
    assert_eq!(quota.usage(USER).held.bytes, 40);
    send(plain("MOVE", "/chunks/1/.file", 0)).await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(40, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn a_commit_by_the_handler_is_charged_after_the_client_has_left() {
    let (quota, uploads) = (
        MemoryQuota::new(Limits::bytes(100)),
        Uploads::default().and(Chunks::under("/chunks")),
    );
    let layer = StorageGuardLayer::quota_only(quota.clone())
        .scope_by(|_| USER)
        .uploads(&uploads);
    let service = layer.layer(service_fn(async |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        body.collect().await.unwrap();
        if !head.uri.path().ends_with("/1") {
            head.extensions.get::<Reservation>().unwrap().commit().await;
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(reply(201))
    }));
    // The client disconnects before the answer.
    let left = |request| {
        let answer = service.clone().oneshot(request);
        tokio::time::timeout(Duration::from_millis(20), answer)
    };
    let put = Request::put("/chunks/1/1").header("oc-total-length", 40);
    assert!(left(put.body(full(40)).unwrap()).await.is_ok());
    assert!(left(plain("MOVE", "/chunks/1/.file", 0)).await.is_err());
    assert_eq!(quota.usage(USER).used, Amount::new(40, 1));
    // Or never intended an upload of several requests.
    let put = Request::put("/note").header("upload-complete", "?1");
    let put = put.header("upload-length", 10).body(full(10)).unwrap();
    assert!(left(put).await.is_err());
    assert_eq!(quota.usage(USER).used, Amount::new(50, 2));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    assert_eq!(uploads.len(), 0);
}
