//! Filesystems that hang or fail: no request waits for one.

use std::{
    convert::Infallible,
    ffi::OsStr,
    io,
    sync::{Arc, Condvar, Mutex, mpsc},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, ReplyAttr, ReplyEntry, ReplyStatfs,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use test_support::{
    eventually,
    mounts::{unmount, with_own_mounts},
};
use tokio::{sync::oneshot, task::JoinHandle};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    MeteredBody, Outage, Probe, Reading, Reservation, StorageGuardLayer, Volume,
    volume::VolumeBuilder,
};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 1024;

/// The filesystem's behaviour when statvfs is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mood {
    Fine,
    Hangs,
    Fails,
}

/// Controls a filesystem's behaviour, and counts the calls stuck in it.
#[derive(Clone, Debug)]
struct Switch(Arc<(Mutex<(Mood, usize)>, Condvar)>);

impl Switch {
    fn new() -> Self {
        Self(Arc::new((Mutex::new((Mood::Fine, 0)), Condvar::new())))
    }

    fn set(&self, mood: Mood) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().0 = mood;
        changed.notify_all();
    }

    /// The number of calls stuck in it now.
    fn stuck(&self) -> usize {
        self.0.0.lock().unwrap().1
    }

    /// Hangs, fails, or returns.
    fn pass(&self) -> io::Result<()> {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.1 += 1;
        while state.0 == Mood::Hangs {
            state = changed.wait(state).unwrap();
        }
        state.1 -= 1;
        match state.0 {
            Mood::Fails => Err(io::Error::other("as it was told")),
            _ => Ok(()),
        }
    }
}

/// A failing test must end even if a call hangs.
struct FineInTheEnd(Switch);

impl Drop for FineInTheEnd {
    fn drop(&mut self) {
        self.0.set(Mood::Fine);
    }
}

impl Probe for Switch {
    fn read(&mut self) -> io::Result<Reading> {
        self.pass()?;
        Ok(Reading::new(BLOCKS * BLOCK, BLOCKS * BLOCK))
    }
}

/// An empty folder.
impl Filesystem for Switch {
    fn statfs(&self, _: &fuser::Request, _: INodeNo, reply: ReplyStatfs) {
        match self.pass() {
            Ok(()) => reply.statfs(
                BLOCKS,
                BLOCKS,
                BLOCKS,
                BLOCKS,
                BLOCKS,
                BLOCK as u32,
                255,
                BLOCK as u32,
            ),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn getattr(&self, _: &fuser::Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let folder = FileAttr {
            ino: INodeNo::ROOT,
            size: 0,
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        };
        reply.attr(&Duration::ZERO, &folder);
    }

    fn lookup(&self, _: &fuser::Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }
}

/// Far above the time for any request, and far below the time of a hang.
const AT_ONCE: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(600);

/// Uploads, and returns status, reason and duration.
async fn upload(volume: &Volume, bytes: u64) -> (u16, Option<String>, Duration) {
    async fn store(
        request: Request<MeteredBody<Full<Bytes>>>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        drop(request);
        Ok(Response::default())
    }
    let layer = StorageGuardLayer::new(volume.clone()).patience(PATIENCE);
    let request = Request::put("/").header("content-length", bytes);
    let request = request.body(Full::default()).unwrap();
    let start = Instant::now();
    let answer = layer
        .layer(service_fn(store))
        .oneshot(request)
        .await
        .unwrap();
    let took = start.elapsed();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, json["reason"].as_str().map(ToOwned::to_owned), took)
}

/// The guarantees for a filesystem in trouble, for every kind of trouble.
async fn costs_no_request(volume: Volume, switch: Switch, trouble: Mood) {
    let _end = FineInTheEnd(switch.clone());
    // One filesystem and one probe: the volumes differ in how long they trust a reading, and in their policy after
    // that.
    let trusting = volume.clone().max_age(Duration::from_secs(3600));
    let refusing = volume.clone().max_age(Duration::from_millis(200));
    let admitting = refusing.clone().outage(Outage::Admit);
    for volume in [&trusting, &refusing, &admitting] {
        assert_eq!(upload(volume, 1).await.0, 200);
        assert!(!volume.status().is_stale);
    }

    switch.set(trouble);
    if trouble == Mood::Hangs {
        eventually("stuck", || switch.stuck() == 1).await;
        // The values of the last reading.
        let (status, reason, took) = upload(&trusting, BLOCKS * BLOCK).await;
        assert_eq!((status, reason.as_deref()), (200, None), "{took:?}");
    }
    let too_much = BLOCKS * BLOCK + 1;
    let (status, reason, took) = upload(&trusting, too_much).await;
    assert_eq!((status, reason.as_deref()), (507, Some("disk_full")));
    assert!(took < PATIENCE + AT_ONCE, "{took:?}");

    // Requests that fit are admitted on the last reading.
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let (status, _, took) = upload(&trusting, 1).await;
        assert_eq!(status, 200);
        longest = longest.max(took);
    }
    println!("{trouble:?}: the longest of 200 took {longest:?}");
    assert!(longest < AT_ONCE, "{longest:?}");

    eventually("stale", || refusing.status().is_stale).await;
    assert!(!trusting.status().is_stale);
    let (status, reason, took) = upload(&refusing, 1).await;
    assert_eq!((status, reason.as_deref()), (503, Some("capacity_unknown")));
    assert!(took < AT_ONCE, "{took:?}");
    let (status, _, took) = upload(&admitting, too_much).await;
    assert_eq!(status, 200);
    assert!(took < AT_ONCE, "{took:?}");

    if trouble == Mood::Hangs {
        // By now it has been hanging for longer than any request's patience, so no request even waits for it.
        let hung = || switch.stuck() == 1 && volume.status().age > PATIENCE;
        eventually("hung for long", hung).await;
        let (status, _, took) = upload(&trusting, too_much).await;
        assert_eq!(status, 507);
        assert!(took < AT_ONCE, "{took:?}");
        assert_eq!(switch.stuck(), 1);
    }

    switch.set(Mood::Fine);
    eventually("recovered", || {
        let status = refusing.status();
        !status.is_stale && status.claimed == 0 && status.objects_claimed == 0
    })
    .await;
    for volume in [&trusting, &refusing, &admitting] {
        assert_eq!(upload(volume, 1).await.0, 200);
        assert_eq!(upload(volume, too_much).await.0, 507);
    }
}

fn often() -> VolumeBuilder {
    Volume::builder().probe_every(Duration::from_millis(10))
}

async fn with_probe(trouble: Mood) {
    let switch = Switch::new();
    let volume = often().from_probe(switch.clone()).unwrap();
    costs_no_request(volume, switch, trouble).await;
}

#[tokio::test]
async fn a_probe_that_hangs() {
    with_probe(Mood::Hangs).await;
}

#[tokio::test]
async fn a_probe_that_fails() {
    with_probe(Mood::Fails).await;
}

#[test]
fn a_volume_is_not_opened_on_a_failing_probe() {
    let switch = Switch::new();
    switch.set(Mood::Fails);
    assert!(Volume::from_probe(switch).is_err());
}

/// A real mount, and a real statvfs.
fn with_fuse(trouble: Mood) {
    let folder = tempfile::tempdir().unwrap();
    let switch = Switch::new();
    let fuse = fuser::spawn_mount(switch.clone(), folder.path(), &fuser::Config::default());
    let fuse = fuse.expect("/dev/fuse is needed");
    let volume = often().open(folder.path()).unwrap();
    assert_eq!(volume.status().total, BLOCKS * BLOCK);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::select! {
            () = costs_no_request(volume, switch, trouble) => {}
            () = only_one_probes() => {}
        }
    });
    unmount(folder.path());
    fuse.join().unwrap();
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_filesystem_that_hangs() {
    with_own_mounts(|| with_fuse(Mood::Hangs));
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_filesystem_that_fails() {
    with_own_mounts(|| with_fuse(Mood::Fails));
}

/// A probe may take long while the filesystem works. The reading before it counts, and so does a price from elsewhere.
#[tokio::test]
async fn a_probe_that_takes_long_refuses_no_price() {
    let switch = Switch::new();
    let volume = often().from_probe(switch.clone()).unwrap();
    let _end = FineInTheEnd(switch.clone());
    switch.set(Mood::Hangs);
    let is_late = || switch.stuck() == 1 && volume.status().age > 2 * PATIENCE;
    eventually("late", is_late).await;
    for outage in [Outage::Refuse, Outage::Admit] {
        let guarded = StorageGuardLayer::new(volume.clone().outage(outage))
            .patience(PATIENCE)
            .price_by_async(|_, demand| async move { demand })
            .layer(service_fn(async |_: Request<MeteredBody<Full<Bytes>>>| {
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }));
        let upload = Request::put("/").body(Full::from("content")).unwrap();
        assert_eq!(guarded.oneshot(upload).await.unwrap().status(), 200);
    }
}

#[cfg(feature = "webdav")]
mod under_webdav {
    use tower_storage_guard::{
        dav::{Folder, WebDav},
        quota::NoQuota,
        setup::Charges,
    };

    use test_support::mounts::in_runtime;

    use super::*;

    /// How many requests arrive while it hangs.
    const MANY: usize = 600;

    /// Requests that are priced by what is on the filesystem hang with it no more than others, and cost one thread.
    #[test]
    #[ignore = "mounts filesystems: run by `make test`"]
    fn a_filesystem_that_hangs_under_webdav() {
        with_own_mounts(|| {
            let folder = tempfile::tempdir().unwrap();
            let switch = Switch::new();
            let fuse = fuser::spawn_mount(switch.clone(), folder.path(), &fuser::Config::default());
            let fuse = fuse.expect("/dev/fuse is needed");
            let volume = often().open(folder.path()).unwrap();
            let layer = StorageGuardLayer::new(volume.clone())
                .patience(PATIENCE)
                .webdav(WebDav::new(Folder::new(folder.path())));
            in_runtime(prices_do_not_hang(layer, volume, switch));
            unmount(folder.path());
            fuse.join().unwrap();
        });
    }

    async fn prices_do_not_hang<P: Charges<NoQuota>>(
        layer: StorageGuardLayer<NoQuota, P>,
        volume: Volume,
        switch: Switch,
    ) {
        let _end = FineInTheEnd(switch.clone());
        let service = layer.layer(service_fn(async |_: Request<MeteredBody<Full<Bytes>>>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));
        let send = |method: &str, number: usize| {
            let request = Request::builder().method(method).uri(format!("/{number}"));
            let call = service
                .clone()
                .oneshot(request.body(Full::default()).unwrap());
            async move {
                let start = Instant::now();
                (call.await.unwrap().status().as_u16(), start.elapsed())
            }
        };
        assert_eq!(send("PUT", 0).await.0, 200);
        let before = threads();
        switch.set(Mood::Hangs);
        eventually("stuck", || switch.stuck() == 1).await;
        // Half of them while it is not known yet.
        for half in [0..MANY / 2, MANY / 2..MANY] {
            let puts = futures_util::future::join_all(half.map(|number| send("PUT", number))).await;
            for (status, took) in puts {
                assert_eq!(status, 503);
                assert!(took < 3 * PATIENCE + AT_ONCE, "{took:?}");
            }
            // One measurement hangs, and the others wait for it.
            assert!(threads() <= before + 1, "{} of {before}", threads());
            let (status, took) = send("DELETE", 0).await;
            assert_eq!(status, 200);
            assert!(took < 3 * PATIENCE + AT_ONCE, "{took:?}");
            assert_eq!(switch.stuck(), 1);
        }
        switch.set(Mood::Fine);
        eventually("recovered", || volume.status().age < PATIENCE / 2).await;
        assert_eq!(send("PUT", 0).await.0, 200);
    }

    fn threads() -> usize {
        std::fs::read_dir("/proc/self/task").unwrap().count()
    }
}

/// The probing threads of this process. Linux keeps 15 characters of a thread's name.
fn probing_threads() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim_end() == "storage-guard-p")
        .count()
}

/// Checks continuously, and fails if there is ever more than one.
async fn only_one_probes() {
    loop {
        assert_eq!(probing_threads(), 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A disk whose readings are taken step by step.
struct Stepped {
    disk: Arc<Mutex<u64>>,
    begun: mpsc::Sender<()>,
    go: mpsc::Receiver<()>,
}

impl Probe for Stepped {
    fn read(&mut self) -> io::Result<Reading> {
        // If these fail, the test has ended.
        let _ = self.begun.send(());
        let _ = self.go.recv();
        Ok(Reading::new(100 - *self.disk.lock().unwrap(), 100))
    }
}

/// An upload that is admitted, and ends when told.
struct Held {
    answer: JoinHandle<u16>,
    inside: oneshot::Receiver<Reservation>,
    end: oneshot::Sender<u16>,
}

impl Held {
    fn begin(layer: &StorageGuardLayer, bytes: u64) -> Self {
        let (let_in, inside) = oneshot::channel();
        let (end, ends) = oneshot::channel();
        // Called once, although a service could be called more often.
        let hooks = Arc::new(Mutex::new(Some((let_in, ends))));
        let service = service_fn(move |request: Request<MeteredBody<Full<Bytes>>>| {
            let (let_in, ends) = hooks.lock().unwrap().take().unwrap();
            async move {
                let reservation = request.extensions().get::<Reservation>().unwrap();
                let_in.send(reservation.clone()).unwrap();
                let answer = Response::builder().status(ends.await.unwrap());
                Ok::<_, Infallible>(answer.body(Full::<Bytes>::default()).unwrap())
            }
        });
        let request = Request::put("/").header("content-length", bytes);
        let request = request.body(Full::default()).unwrap();
        let answer = layer.layer(service).oneshot(request);
        let answer = tokio::spawn(async { answer.await.unwrap().status().as_u16() });
        Self {
            answer,
            inside,
            end,
        }
    }
}

/// Bytes written during a reading count twice until the next one. No request is refused for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_that_counts_twice_causes_no_refusal() {
    let disk = Arc::new(Mutex::new(0));
    let ((begun, has_begun), (step, go)) = (mpsc::channel(), mpsc::channel());
    let stepped = Stepped {
        disk: disk.clone(),
        begun,
        go,
    };
    step.send(()).unwrap();
    let volume = Volume::from_probe(stepped).unwrap();
    has_begun.recv().unwrap();
    let layer = StorageGuardLayer::new(volume).patience(Duration::from_secs(60));

    let writes = Held::begin(&layer, 60);
    let writing = writes.inside.await.unwrap();
    let fails = Held::begin(&layer, 40);
    drop(fails.inside.await.unwrap());
    let waits = Held::begin(&layer, 40);
    has_begun.recv().unwrap();
    *disk.lock().unwrap() = 60;
    writing.written(60);
    step.send(()).unwrap();
    // It requests another reading instead of giving up.
    has_begun.recv().unwrap();
    step.send(()).unwrap();
    fails.end.send(500).unwrap();
    assert_eq!(fails.answer.await.unwrap(), 500);
    drop(waits.inside.await.expect("is admitted"));
    for (end, answer) in [(waits.end, waits.answer), (writes.end, writes.answer)] {
        end.send(200).unwrap();
        assert_eq!(answer.await.unwrap(), 200);
    }
}
