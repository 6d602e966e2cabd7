//! Limits on directories, with a service that stores real files.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, StatusCode, header::ACCEPT};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::service::{Content, Incoming, Reply, answer, full};
use test_support::{disk::Disk, eventually};
use tokio::sync::{Semaphore, watch};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Scopes, StorageGuardLayer, Volume,
    dav::{CollectionQuota, CollectionQuotaBuilder, DavQuota, Depth, Folder, Tree, Walk, WebDav},
    quota::{Change, Limits, QuotaError, QuotaHold, QuotaSource, SoftLimitHook},
};

/// A folder of files, its collections, and a guarded service that carries out the requests.
struct Server {
    root: TempDir,
    volume: Volume,
    collections: CollectionQuota,
    paths: Vec<&'static str>,
    gate: Arc<Gate>,
}

/// A folder that changes while it is being scanned.
struct Slow(Folder);

impl Tree for Slow {
    fn measure(&self, path: &Path, depth: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>> {
        let found = self.0.measure(path, depth, walk);
        std::thread::sleep(Duration::from_micros(300));
        found
    }
}

/// The gate at which marked requests stop halfway.
struct Gate {
    arrived: watch::Sender<usize>,
    open: Semaphore,
}

impl Server {
    fn new(limits: &[(&'static str, Limits)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        Self::over(root, limits)
    }

    fn over(root: TempDir, limits: &[(&'static str, Limits)]) -> Self {
        Self::built(root, limits, |builder| builder)
    }

    fn built(
        root: TempDir,
        limits: &[(&'static str, Limits)],
        set: impl FnOnce(CollectionQuotaBuilder) -> CollectionQuotaBuilder,
    ) -> Self {
        let mut builder = set(CollectionQuota::builder(Slow(Folder::new(root.path()))));
        for (path, limits) in limits {
            fs::create_dir_all(root.path().join(path)).unwrap();
            builder = builder.limit(path, *limits).unwrap();
        }
        let collections = builder.build();
        Self {
            root,
            volume: Disk::new(1 << 30).volume(),
            collections,
            paths: limits.iter().map(|(path, _)| *path).collect(),
            gate: Arc::new(Gate {
                arrived: watch::Sender::new(0),
                open: Semaphore::new(0),
            }),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn service(
        &self,
    ) -> impl Service<
        Request<Content>,
        Response = http::Response<
            tower_storage_guard::ResponseBody<http_body_util::Full<bytes::Bytes>>,
        >,
        Error = Infallible,
        Future: Send,
    > + Clone
    + use<> {
        let tree = Folder::new(self.root.path());
        let layer = StorageGuardLayer::new(self.volume.clone())
            .quota(self.collections.clone())
            .webdav(WebDav::new(tree));
        let (root, gate) = (self.root.path().to_owned(), Arc::clone(&self.gate));
        layer.layer(service_fn(move |request: Request<Incoming>| {
            let (root, gate) = (root.clone(), Arc::clone(&gate));
            async move { Ok::<_, Infallible>(serve(&root, &gate, request).await) }
        }))
    }

    async fn send(&self, request: Request<Content>) -> u16 {
        self.service()
            .oneshot(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    }

    async fn put(&self, path: &str, bytes: usize) -> u16 {
        self.send(put(path, bytes)).await
    }

    async fn transfer(&self, method: &str, from: &str, to: &str) -> u16 {
        self.send(transfer(method, from, to)).await
    }

    async fn delete(&self, path: &str) -> u16 {
        self.send(plain("DELETE", path)).await
    }

    fn usage(&self, path: &str) -> (u64, u64) {
        let usage = self.collections.usage(path).expect("scanned");
        assert_eq!(usage.held, Amount::ZERO, "{path}");
        (usage.used.bytes, usage.used.objects)
    }

    /// The result of a new scan.
    fn walk(&self, path: &str) -> (u64, u64) {
        let tree = Folder::new(self.root.path());
        let found = tree
            .measure(Path::new(path), Depth::Infinity, &Walk::whole())
            .unwrap();
        let found = found.unwrap_or_default();
        (found.bytes, found.objects)
    }

    /// While no request is in flight.
    fn is_exact(&self) {
        for path in &self.paths {
            assert_eq!(self.usage(path), self.walk(path), "{path:?}");
        }
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        until(|| is_so(self)).await;
    }
}

async fn until(is_so: impl Fn() -> bool) {
    eventually("it is so", is_so).await;
}

fn plain(method: &str, path: &str) -> Request<Content> {
    let request = Request::builder().method(method).uri(format!("/{path}"));
    request.body(full(0)).unwrap()
}

fn put(path: &str, bytes: usize) -> Request<Content> {
    Request::put(format!("/{path}")).body(full(bytes)).unwrap()
}

fn transfer(method: &str, from: &str, to: &str) -> Request<Content> {
    let mut request = plain(method, from);
    request
        .headers_mut()
        .insert("destination", format!("/{to}").parse().unwrap());
    request
}

/// Starts to write, and stops halfway until the gate opens.
fn stopping(mut request: Request<Content>) -> Request<Content> {
    request.headers_mut().insert("x-stop", "1".parse().unwrap());
    request
}

fn failing(mut request: Request<Content>) -> Request<Content> {
    request.headers_mut().insert("x-fail", "1".parse().unwrap());
    request
}

async fn serve(root: &Path, gate: &Gate, request: Request<Incoming>) -> Reply {
    let path = |uri: &str| root.join(uri.trim_matches('/'));
    let (head, body) = request.into_parts();
    let target = path(head.uri.path());
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
    let destination = header("destination").map(path);
    let half_way = async || {
        if header("x-stop").is_some() {
            gate.arrived.send_modify(|arrived| *arrived += 1);
            gate.open.acquire().await.unwrap().forget();
        } else {
            tokio::task::yield_now().await;
        }
    };
    let done = match head.method.as_str() {
        "PUT" => {
            let Ok(content) = body.collect().await else {
                return answer(500);
            };
            let content = content.to_bytes();
            let name = target.file_name().unwrap().to_str().unwrap();
            let partial = target.with_file_name(format!("{name}.part"));
            let (first, second) = content.split_at(content.len() / 2);
            let written = fs::write(&partial, first);
            half_way().await;
            if header("x-fail").is_some() {
                let _ = fs::remove_file(&partial);
                return answer(500);
            }
            let stored = written
                .and_then(|()| fs::write(&partial, [first, second].concat()))
                .and_then(|()| fs::rename(&partial, &target));
            if stored.is_err() {
                // Onto a folder, for example.
                let _ = fs::remove_file(&partial);
            }
            stored
        }
        "MKCOL" => fs::create_dir(&target),
        "DELETE" => {
            let removed = remove(&target);
            half_way().await;
            removed
        }
        method => {
            let to = destination.unwrap();
            if to.starts_with(&target) || target.starts_with(&to) {
                return answer(403);
            }
            if !target.exists() || !to.parent().unwrap().is_dir() {
                return answer(409);
            }
            let made_way = match to.exists() {
                true => remove(&to),
                false => Ok(()),
            };
            half_way().await;
            made_way.and_then(|()| match method {
                "COPY" => copy(&target, &to),
                _ => fs::rename(&target, &to),
            })
        }
    };
    answer(if done.is_ok() { 201 } else { 409 })
}

fn remove(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// A hook may ask the collections: they are not locked.
#[tokio::test]
async fn a_collection_has_a_soft_limit() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits::bytes(100).soft_bytes(8).grace(Duration::ZERO);
    let collections = CollectionQuota::builder(Folder::new(root.path()))
        .limit("", limits)
        .unwrap()
        .build();
    let (asked, (sender, told)) = (collections.clone(), mpsc::channel());
    collections.on_soft_limit(SoftLimitHook::new(move |over| {
        let usage = asked.usage("").unwrap();
        sender
            .send((over.used, usage.over.bytes.is_some()))
            .unwrap();
    }));
    let scopes = collections.scopes("file");
    let hold = collections
        .reserve(&scopes, Amount::bytes(9), Amount::ZERO)
        .await
        .unwrap();
    hold.commit(Amount::bytes(9).into()).await;
    assert_eq!(told.try_recv(), Ok((9, true)));
    assert_eq!(collections.over_soft_limits(&scopes).len(), 1);
    let available = || collections.dav_quota(None, "file").available;
    assert_eq!(available(), Some(0), "its grace has passed");
    collections.charge(&scopes, Change::between(Amount::ZERO, Amount::bytes(1)));
    assert_eq!(collections.over_soft_limits(&scopes), []);
    assert_eq!(available(), Some(92));
    collections.charge(&scopes, Amount::bytes(1).into());
    assert_eq!(told.try_recv(), Ok((9, true)));
}

#[tokio::test]
async fn a_file_has_to_fit_into_all_collections_around_it() {
    let server = Server::new(&[
        ("photos", Limits::bytes(100)),
        ("photos/2024", Limits::bytes(60).objects(3)),
    ]);
    assert_eq!(server.put("photos/2024/a", 60).await, 201);
    assert_eq!(server.put("photos/2024/b", 1).await, 507);
    assert_eq!(server.put("photos/b", 41).await, 507);
    assert_eq!(server.put("photos/b", 40).await, 201);
    assert_eq!(server.put("elsewhere", 1_000).await, 201);
    assert_eq!(server.delete("photos/b").await, 201);
    // Objects: the collection itself, and its members.
    assert_eq!(server.put("photos/2024/b", 0).await, 201);
    assert_eq!(server.put("photos/2024/c", 0).await, 507);
    assert_eq!(server.usage("photos/2024"), (60, 3));
    server.is_exact();
}

#[tokio::test]
async fn a_refusal_names_the_collection_limit() {
    let server = Server::new(&[("photos", Limits::bytes(100))]);
    server.collections.rescan().await.unwrap();
    let body = async |server: &Server| {
        let mut upload = put("photos/a", 101);
        let json = HeaderValue::from_static("application/json");
        upload.headers_mut().insert(ACCEPT, json);
        let answer = server.service().oneshot(upload).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<Value>(&body).unwrap()
    };
    let refused = body(&server).await;
    assert_eq!(refused["reason"], json!("collection_limit_reached"));
    assert_eq!(refused["limit"], json!(100));

    let limits = &[("photos", Limits::bytes(100))];
    let server = Server::built(server.root, limits, CollectionQuotaBuilder::undisclosed);
    server.collections.rescan().await.unwrap();
    let refused = body(&server).await;
    assert_eq!(refused["reason"], json!("collection_limit_reached"));
    assert_eq!(refused["limit"], Value::Null);
}

#[tokio::test]
async fn changes_that_bypass_the_server_are_found() {
    let server = Server::new(&[("", Limits::UNLIMITED), ("a", Limits::bytes(100))]);
    assert_eq!(server.put("a/x", 50).await, 201);
    fs::write(server.path("a/y"), [7; 50]).unwrap();
    // Not seen yet.
    assert_eq!(server.put("a/z", 50).await, 201);
    server.collections.rescan().await.unwrap();
    server.is_exact();
    assert_eq!(server.put("a/w", 1).await, 507);
    fs::remove_dir_all(server.path("a")).unwrap();
    server.collections.rescan().await.unwrap();
    assert_eq!((server.usage("a"), server.usage("")), ((0, 0), (0, 1)));
}

#[tokio::test]
async fn it_is_found_on_schedule_too() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::built(root, &[("a", Limits::bytes(100))], |builder| {
        builder.rescan_every(Duration::from_millis(5))
    });
    server.collections.rescan().await.unwrap();
    fs::write(server.path("a/x"), [7; 50]).unwrap();
    server.until(|server| server.usage("a") == (50, 2)).await;
}

#[tokio::test]
async fn an_upload_in_flight_is_not_counted_twice() {
    for request in [put("a/x", 60), failing(put("a/x", 60))] {
        let server = Server::new(&[("a", Limits::bytes(100))]);
        fs::write(server.path("a/old"), [7; 40]).unwrap();
        server.collections.rescan().await.unwrap();
        let upload = tokio::spawn(server.service().oneshot(stopping(request)));
        let mut arrived = server.gate.arrived.subscribe();
        arrived.wait_for(|arrived| *arrived == 1).await.unwrap();
        assert!(server.path("a/x.part").exists());

        // Half of it is there. No scan runs before it is at rest.
        let rescan = server.collections.rescan();
        tokio::pin!(rescan);
        let soon = Duration::from_millis(100);
        assert!(tokio::time::timeout(soon, &mut rescan).await.is_err());
        let usage = server.collections.usage("a").unwrap();
        assert_eq!(
            (usage.used, usage.held),
            (Amount::new(40, 2), Amount::new(60, 1))
        );
        assert_eq!(server.put("a/y", 1).await, 507);

        server.gate.open.add_permits(1);
        upload.await.unwrap().unwrap();
        rescan.await.unwrap();
        server.is_exact();
    }
}

/// A tree whose scans the test stops, fails and counts.
#[derive(Clone)]
struct Odd {
    tree: Arc<dyn Fn() -> io::Result<Option<Amount>> + Send + Sync>,
    measured: Arc<AtomicU64>,
}

impl Odd {
    fn new(tree: impl Fn() -> io::Result<Option<Amount>> + Send + Sync + 'static) -> Self {
        Self {
            tree: Arc::new(tree),
            measured: Arc::default(),
        }
    }
}

impl Tree for Odd {
    fn measure(&self, _: &Path, _: Depth, _: &Walk<'_>) -> io::Result<Option<Amount>> {
        self.measured.fetch_add(1, SeqCst);
        (self.tree)()
    }
}

/// A scan whose end the test controls.
fn stepped() -> (Odd, Arc<AtomicU64>, mpsc::Sender<Amount>) {
    let (sender, amounts) = mpsc::channel();
    let amounts = Mutex::new(amounts);
    let odd = Odd::new(move || {
        let amount = amounts.lock().unwrap().recv();
        amount.map(Some).map_err(io::Error::other)
    });
    let measured = Arc::clone(&odd.measured);
    (odd, measured, sender)
}

fn reserve(
    collections: &CollectionQuota,
    scopes: impl Into<Scopes>,
    demand: Amount,
) -> Option<Result<tower_storage_guard::dav::CollectionHold, QuotaError>> {
    let reserved = collections.reserve(&scopes.into(), demand, Amount::ZERO);
    reserved.now().ok()
}

#[tokio::test]
async fn a_scan_disturbed_by_requests_is_discarded() {
    let (tree, measured, sender) = stepped();
    let collections = CollectionQuota::builder(tree)
        .limit("a", Limits::bytes(100))
        .unwrap()
        .build();
    let scopes = collections.scopes("a/x");
    let begun = async |number| until(|| measured.load(SeqCst) == number).await;
    sender.send(Amount::bytes(10)).unwrap();
    until(|| collections.usage("a").is_some()).await;

    // A request that began before it and ended in it, a request within it, and a give-back.
    drop(collections.rescan());
    begun(2).await;
    let hold = reserve(&collections, scopes.clone(), Amount::bytes(20))
        .unwrap()
        .unwrap();
    sender.send(Amount::bytes(11)).unwrap();
    // Retried at rest, for a second.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(measured.load(SeqCst), 2);
    let _ = hold.commit(Change::from(Amount::bytes(20))).await;
    begun(3).await;
    drop(
        reserve(&collections, scopes.clone(), Amount::bytes(20))
            .unwrap()
            .unwrap(),
    );
    sender.send(Amount::bytes(30)).unwrap();
    begun(4).await;
    collections.charge(&scopes, Change::between(Amount::ZERO, Amount::bytes(5)));
    sender.send(Amount::bytes(28)).unwrap();
    begun(5).await;
    assert_eq!(collections.usage("a").unwrap().used, Amount::bytes(25));
    // A refusal is no disturbance.
    assert!(
        reserve(&collections, scopes, Amount::bytes(76))
            .unwrap()
            .is_err()
    );
    sender.send(Amount::bytes(14)).unwrap();
    until(|| collections.usage("a").unwrap().used == Amount::bytes(14)).await;
}

/// A scan beside requests in flight corrects the figure to within what they write.
#[tokio::test]
async fn a_stalled_upload_does_not_stop_scans() {
    let server = Server::new(&[("a", Limits::bytes(1_000))]);
    for name in ["big", "kept"] {
        assert_eq!(server.put(&format!("a/{name}"), 300).await, 201);
    }
    let upload = tokio::spawn(server.service().oneshot(stopping(put("a/x", 60))));
    let mut arrived = server.gate.arrived.subscribe();
    arrived.wait_for(|arrived| *arrived == 1).await.unwrap();

    let used = || server.collections.usage("a").unwrap().used.bytes;
    // Another program puts 200 bytes beside the guard, of which the scan cannot tell the upload, which it may see twice.
    fs::write(server.path("a/beside"), [7; 200]).unwrap();
    let rescan = server.collections.rescan();
    until(|| used() >= 700).await;
    assert_eq!(server.put("a/y", 260).await, 507);

    // It removes 500 bytes beside the guard.
    fs::remove_file(server.path("a/beside")).unwrap();
    fs::remove_file(server.path("a/big")).unwrap();
    until(|| used() <= 360).await;
    assert!(used() >= 300);
    assert_eq!(server.put("a/y", 200).await, 201);

    server.gate.open.add_permits(1);
    upload.await.unwrap().unwrap();
    rescan.await.unwrap();
    server.is_exact();
}

/// What a request of the user's own pricing replaces is only known when it ends.
#[tokio::test]
async fn what_a_scan_has_seen_is_not_credited_again() {
    let (tree, measured, sender) = stepped();
    let collections = CollectionQuota::builder(tree)
        .limit("a", Limits::bytes(100))
        .unwrap()
        .build();
    let scopes = collections.scopes("a/x");
    sender.send(Amount::bytes(90)).unwrap();
    until(|| collections.usage("a").is_some()).await;
    let hold = reserve(&collections, scopes.clone(), Amount::bytes(1));
    let hold = hold.unwrap().unwrap();
    // 80 of 90 bytes are replaced by one, on the disk, and the request is still in flight.
    drop(collections.rescan());
    for (number, scanned) in [(2, 11), (3, 11)] {
        until(|| measured.load(SeqCst) == number).await;
        sender.send(Amount::bytes(scanned)).unwrap();
    }
    until(|| measured.load(SeqCst) == 4).await;
    assert_eq!(collections.usage("a").unwrap().used, Amount::bytes(90));
    let replaced = Change::between(Amount::bytes(1), Amount::bytes(80));
    let () = hold.commit(replaced).await;
    assert_eq!(collections.usage("a").unwrap().used, Amount::bytes(11));
    drop(sender);
}

/// A scan misses what is moved to where it has looked already, and what is replaced while it looks; or it sees the old and the
/// new.
#[tokio::test]
async fn what_a_scan_may_have_missed_is_not_given_up() {
    let requests = || {
        [
            transfer("MOVE", "a/x", "a/y"),
            put("a/x", 80),
            transfer("COPY", "a/z", "a/x"),
        ]
    };
    for (request, found) in requests()
        .into_iter()
        .map(|request| (request, 10))
        .chain(requests().map(|request| (request, 170)))
    {
        let (tree, measured, sender) = stepped();
        let collections = CollectionQuota::builder(tree)
            .limit("a", Limits::bytes(100))
            .unwrap()
            .build();
        sender.send(Amount::new(90, 2)).unwrap();
        until(|| collections.usage("a").is_some()).await;
        drop(collections.rescan());
        until(|| measured.load(SeqCst) == 2).await;
        // It begins and ends while the scan runs.
        let there = Sizes(vec![
            ("a/x", Amount::new(80, 1)),
            ("a/z", Amount::new(80, 1)),
        ]);
        let service = priced_by(&collections, there);
        let method = request.method().clone();
        let answer = service.oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 201, "{method}");
        sender.send(Amount::new(found, 2)).unwrap();
        until(|| measured.load(SeqCst) == 3).await;
        let used = collections.usage("a").unwrap().used.bytes;
        assert_eq!(used, 90, "{method} {found}");
        sender.send(Amount::new(90, 2)).unwrap();
    }
}

#[tokio::test]
async fn a_removal_in_flight_disturbs_a_scan() {
    let server = Server::new(&[("a", Limits::bytes(100)), ("b", Limits::bytes(100))]);
    assert_eq!(server.put("a/x", 60).await, 201);
    assert_eq!(server.put("a/y", 30).await, 201);
    let rest = [
        (plain("DELETE", "a/x"), (30, 2)),
        (transfer("MOVE", "a/y", "b/y"), (0, 1)),
    ];
    for (number, (request, left)) in (1..).zip(rest) {
        let removal = tokio::spawn(server.service().oneshot(stopping(request)));
        let mut arrived = server.gate.arrived.subscribe();
        arrived
            .wait_for(|arrived| *arrived == number)
            .await
            .unwrap();
        // It may be gone from the disk, but is still charged.
        let rescan = server.collections.rescan();
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.gate.open.add_permits(1);
        assert_eq!(removal.await.unwrap().unwrap().status(), 201);
        assert_eq!(server.usage("a"), left);
        server.is_exact();
        rescan.await.unwrap();
        server.is_exact();
    }
}

#[tokio::test]
async fn a_copy_that_brings_a_collection_along_is_scanned() {
    let server = Server::new(&[("a/b", Limits::bytes(100)), ("", Limits::UNLIMITED)]);
    fs::create_dir_all(server.path("c/b")).unwrap();
    fs::write(server.path("c/b/x"), [7; 70]).unwrap();
    server.collections.rescan().await.unwrap();
    for (method, from, to) in [("COPY", "c", "a"), ("MOVE", "a", "d"), ("MOVE", "d", "a")] {
        assert_eq!(server.transfer(method, from, to).await, 201);
        if to == "a" {
            // Known as soon as it has been scanned, and no request is admitted before.
            assert_eq!(server.put("a/b/y", 31).await, 507);
        }
        server
            .until(|server| server.collections.usage("a/b").is_some())
            .await;
        server
            .until(|server| server.usage("a/b") == server.walk("a/b"))
            .await;
        server.is_exact();
    }
    assert_eq!(server.delete("a").await, 201);
    server.until(|server| server.usage("a/b") == (0, 0)).await;
    server.is_exact();
}

fn guard(
    collections: &CollectionQuota,
) -> impl Service<Request<Content>, Response = http::Response<impl Send>, Error = Infallible> + Clone
{
    priced_by(collections, Odd::new(|| Ok(None)))
}

fn priced_by(
    collections: &CollectionQuota,
    tree: impl Tree,
) -> impl Service<Request<Content>, Response = http::Response<impl Send>, Error = Infallible> + Clone
{
    let dav = WebDav::new(tree);
    let layer = StorageGuardLayer::new(Disk::new(1 << 30).volume())
        .quota(collections.clone())
        .quota_timeout(Duration::from_millis(200))
        .webdav(dav);
    layer.layer(service_fn(async |request: Request<Incoming>| {
        let read = request.into_body().collect().await;
        Ok::<_, Infallible>(answer(if read.is_ok() { 201 } else { 500 }))
    }))
}

async fn send(collections: &CollectionQuota, request: Request<Content>) -> StatusCode {
    guard(collections).oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn a_tree_that_hangs_is_an_outage_and_blocks_no_thread() {
    let (tree, _, sender) = stepped();
    let collections = CollectionQuota::builder(tree)
        .limit("a", Limits::bytes(100))
        .unwrap()
        .build();
    // Only the timer runs on this thread.
    let start = Instant::now();
    assert_eq!(send(&collections, put("a/x", 1)).await, 503);
    assert!((200..5_000).contains(&start.elapsed().as_millis()));
    assert_eq!(send(&collections, put("b/x", 1)).await, 201);
    assert_eq!(send(&collections, plain("DELETE", "a/x")).await, 201);
    assert_eq!(
        send(&collections, put("a/x", 0).map(|_| full(0))).await,
        503
    );
    assert_eq!(collections.usage("a"), None);
    assert_eq!(collections.dav_quota(None, "a"), DavQuota::default());
    // The delete has spoiled this one.
    sender.send(Amount::bytes(1)).unwrap();
    sender.send(Amount::bytes(40)).unwrap();
    until(|| collections.usage("a").is_some()).await;
    assert_eq!(send(&collections, put("a/x", 61)).await, 507);
    assert_eq!(send(&collections, put("a/x", 60)).await, 201);
    // Once the usage is known, a hang affects no request.
    drop(collections.rescan());
    assert_eq!(send(&collections, plain("DELETE", "a/x")).await, 201);
    assert_eq!(send(&collections, put("a/x", 1)).await, 507);
    sender.send(Amount::ZERO).unwrap();
}

#[tokio::test]
async fn a_waiting_request_is_admitted_once_the_usage_is_known() {
    let (tree, measured, sender) = stepped();
    let collections = CollectionQuota::builder(tree)
        .limit("a", Limits::bytes(100))
        .unwrap()
        .build();
    let scopes = collections.scopes("a/x");
    let wait = |bytes| {
        let answer = collections.reserve(&scopes, Amount::bytes(bytes), Amount::ZERO);
        tokio::spawn(async move { answer.await.map(drop) })
    };
    let (fits, does_not) = (wait(50), wait(51));
    until(|| measured.load(SeqCst) == 1).await;
    sender.send(Amount::bytes(50)).unwrap();
    fits.await.unwrap().unwrap();
    assert!(matches!(
        does_not.await.unwrap(),
        Err(QuotaError::Exceeded(_))
    ));
    let usage = collections.usage("a").unwrap();
    assert_eq!((usage.used, usage.held), (Amount::bytes(50), Amount::ZERO));
}

#[tokio::test]
async fn a_tree_that_fails_is_an_outage_and_heals() {
    for panics in [false, true] {
        let broken = Arc::new(AtomicU64::new(1));
        let is_broken = Arc::clone(&broken);
        let tree = Odd::new(move || match is_broken.load(SeqCst) {
            0 => Ok(Some(Amount::bytes(40))),
            _ if panics => panic!("a tree of the user's own"),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        });
        let collections = CollectionQuota::builder(tree)
            .limit("a", Limits::bytes(100))
            .unwrap()
            .build();
        assert!(collections.rescan().await.is_err());
        let start = Instant::now();
        assert_eq!(send(&collections, put("a/x", 1)).await, 503);
        // No request waits for the retry.
        assert!(start.elapsed() < Duration::from_millis(150));
        assert_eq!(send(&collections, put("b/x", 1)).await, 201);
        broken.store(0, SeqCst);
        until(|| collections.usage("a").is_some()).await;
        assert_eq!(send(&collections, put("a/x", 61)).await, 507);
        assert_eq!(send(&collections, put("a/x", 60)).await, 201);
        // A known figure stays known.
        broken.store(1, SeqCst);
        let error = collections.rescan().await.unwrap_err();
        assert!(panics || error.kind() == io::ErrorKind::PermissionDenied);
        assert_eq!(collections.usage("a").unwrap().used.bytes, 100);
        assert_eq!(send(&collections, put("a/x", 1)).await, 507);
    }
}

#[tokio::test]
async fn deletes_do_not_keep_a_collection_out_of_service() {
    let tree = Odd::new(|| {
        std::thread::sleep(Duration::from_millis(5));
        Ok(Some(Amount::bytes(70)))
    });
    let measured = Arc::clone(&tree.measured);
    let collections = CollectionQuota::builder(tree)
        .limit("a", Limits::bytes(100))
        .unwrap()
        .build();
    let scopes = collections.scopes("a/x");
    let start = Instant::now();
    while collections.usage("a").is_none() {
        assert!(start.elapsed() < Duration::from_secs(20));
        collections.charge(&scopes, Change::between(Amount::ZERO, Amount::ZERO));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // No busy loop in any case.
    while start.elapsed() < Duration::from_secs(1) {
        collections.charge(&scopes, Change::between(Amount::ZERO, Amount::ZERO));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(measured.load(SeqCst) <= 7);
    assert_eq!(collections.usage("a").unwrap().used, Amount::bytes(70));
}

#[tokio::test]
async fn the_thread_ends_with_the_last_handle() {
    let alive = Arc::new(());
    let weak = Arc::downgrade(&alive);
    let tree = Odd::new(move || {
        let _ = &alive;
        Ok(None)
    });
    let collections = CollectionQuota::builder(tree)
        .limit("a", Limits::UNLIMITED)
        .unwrap()
        .build();
    let other = collections.clone();
    collections.rescan().await.unwrap();
    let hold = reserve(&other, other.scopes("a"), Amount::bytes(1))
        .unwrap()
        .unwrap();
    drop(collections);
    drop(other);
    let _ = hold.commit(Change::ZERO).await;
    until(|| weak.strong_count() == 0).await;
}

#[tokio::test]
async fn paths_that_lead_elsewhere_are_no_collections() {
    let collections = CollectionQuota::new(Odd::new(|| Ok(None)));
    for path in ["..", "a/../../b"] {
        let error = collections.set_limits(path, Limits::UNLIMITED).unwrap_err();
        assert!(error.to_string().contains("names no collection"), "{error}");
    }
    for path in ["", "/a/./b/", "c"] {
        collections.set_limits(path, Limits::UNLIMITED).unwrap();
    }
    let scopes = |path: &str| {
        let scopes = collections.scopes(path);
        scopes
            .iter()
            .map(|scope| scope.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(scopes("a/b/x"), ["collection:/a/b", "collection:/"]);
    assert_eq!(scopes("/a/b"), ["collection:/a/b", "collection:/"]);
    assert_eq!(scopes("a"), ["collection:/"]);
    assert_eq!(scopes("cc"), ["collection:/"]);
    assert!(collections.usage("none").is_none());
}

#[tokio::test]
async fn other_scopes_are_charged_beside() {
    let tree = Odd::new(|| Ok(None));
    let collections = CollectionQuota::builder(tree)
        .limit("a", Limits::bytes(100))
        .unwrap()
        .build();
    collections.quota().set_limits("user:42", Limits::bytes(50));
    collections.rescan().await.unwrap();
    let scopes: Scopes = collections
        .scopes("a/x")
        .iter()
        .cloned()
        .chain(["user:42".into()])
        .collect();
    let Err(QuotaError::Exceeded(full)) =
        reserve(&collections, scopes.clone(), Amount::bytes(51)).unwrap()
    else {
        panic!("it does not fit");
    };
    assert_eq!(
        (full.scope.as_str(), full.cause.reason()),
        ("user:42", "quota_exceeded")
    );
    assert_eq!(
        collections.dav_quota_with(None, "a/x", "user:42").available,
        Some(50)
    );
    let mut hold = reserve(&collections, scopes, Amount::bytes(50))
        .unwrap()
        .unwrap();
    assert_eq!(
        collections.dav_quota_with(None, "a/x", "user:42").available,
        Some(0)
    );
    assert_eq!(collections.dav_quota(None, "a/x").available, Some(50));
    assert_eq!(collections.dav_quota(None, "a/x").used, Some(50));
    let Err(QuotaError::Exceeded(full)) = hold.grow(Amount::bytes(51)).await else {
        panic!("it does not fit");
    };
    assert_eq!(full.cause.reason(), "collection_limit_reached");
}

/// A client that performs random operations on names of its own.
struct Client {
    random: u64,
    number: u64,
}

impl Client {
    fn new(number: u64, seed: u64) -> Self {
        let random = (number * 1_000 + seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self { random, number }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    fn name(&mut self, is_shared: bool) -> String {
        let owner = if is_shared { 0 } else { self.number };
        let dirs = ["", "a/", "a/b/", "e/"];
        let mut name = dirs[self.below(4) as usize].to_owned();
        if self.below(3) == 0 {
            name += &format!("d{owner}{}/", self.below(2));
        }
        match self.below(3) {
            0 => name + &format!("d{owner}{}", self.below(2)),
            _ => name + &format!("f{owner}{}", self.below(3)),
        }
    }

    fn request(&mut self, is_shared: bool) -> Request<Content> {
        let (name, other) = (self.name(is_shared), self.name(is_shared));
        let size = self.below(400) as usize;
        match self.below(12) {
            0..3 => put(&name, size),
            3 => failing(put(&name, size)),
            4..6 => plain("MKCOL", &name),
            6..8 => transfer("COPY", &name, &other),
            8..10 => transfer("MOVE", &name, &other),
            _ => plain("DELETE", &name),
        }
    }
}

fn crowd(seed: u64, is_shared: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let server = Server::new(&[
            ("", Limits::UNLIMITED),
            ("a", Limits::bytes(2_000)),
            ("a/b", Limits::bytes(1_200).objects(9)),
            ("e", Limits::bytes(1_500)),
        ]);
        server.collections.rescan().await.unwrap();
        let service = server.service();
        let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
        for round in 0..6 {
            let clients = (1..=4).map(|number| {
                let (service, collections) = (service.clone(), server.collections.clone());
                let mut client = Client::new(number, seed * 10 + round);
                tokio::spawn(async move {
                    let mut statuses = Vec::new();
                    for step in 0..40 {
                        if step < 25 && client.below(3) == 0 {
                            // Not until the end, so that errors of a scan would show there.
                            drop(collections.rescan());
                        }
                        let request = client.request(is_shared);
                        let sent = service.clone().oneshot(request);
                        if is_shared && client.below(8) == 0 {
                            // The client disconnects.
                            let soon = Duration::from_micros(client.below(300));
                            let _ = tokio::time::timeout(soon, sent).await;
                            continue;
                        }
                        statuses.push(sent.await.unwrap().status().as_u16());
                    }
                    statuses
                })
            });
            for client in clients.collect::<Vec<_>>() {
                for status in client.await.unwrap() {
                    *statuses.entry(status).or_default() += 1;
                }
            }
            if is_shared {
                // What a client that has left wrote half is only found by a scan.
                server.collections.rescan().await.unwrap();
            }
            server.is_exact();
            for path in ["a", "a/b", "e"] {
                let usage = server.collections.usage(path).unwrap();
                let most = usage.limits.bytes.unwrap();
                assert!(
                    is_shared || usage.used.bytes <= most,
                    "{path} is over its limit"
                );
            }
        }
        println!("{statuses:?}");
        for status in [201, 409, 500, 507] {
            assert!(statuses.contains_key(&status), "never {status}");
        }
        assert_eq!(statuses.get(&503), None);
    });
}

#[test]
fn usage_is_what_a_walk_counts_after_any_operations() {
    for seed in 0..4 {
        crowd(seed, false);
    }
}

#[test]
fn a_rescan_corrects_the_result_of_races() {
    for seed in 0..2 {
        crowd(seed, true);
    }
}

/// A tree with this usage in each collection.
struct Sizes(Vec<(&'static str, Amount)>);

impl Tree for Sizes {
    fn measure(&self, path: &Path, _: Depth, _: &Walk<'_>) -> io::Result<Option<Amount>> {
        let found = self.0.iter().find(|(known, _)| Path::new(known) == path);
        Ok(found.map(|(_, amount)| *amount))
    }
}

#[derive(Clone, Debug)]
struct Case {
    collections: Vec<(&'static str, Limits, Amount)>,
    user: Limits,
    room: Option<u64>,
    inodes: Option<u64>,
    headroom: u64,
    /// Uploads in flight.
    held: Vec<(&'static str, u64)>,
    path: &'static str,
}

const PLACES: [&str; 4] = ["", "a", "a/b", "c"];

fn any_case() -> impl Strategy<Value = Case> {
    let place = || (0..PLACES.len()).prop_map(|place| PLACES[place]);
    let limits = || {
        (
            prop::option::weighted(0.8, 0..300_u64),
            prop::option::weighted(0.3, 0..9_u64),
        )
            .prop_map(|(bytes, objects)| Limits::new(bytes, objects))
    };
    let amount = (0..200_u64, 1..6_u64).prop_map(|(bytes, objects)| Amount::new(bytes, objects));
    let collection = (place(), limits(), amount);
    (
        prop::collection::vec(collection, 0..4),
        limits(),
        prop::option::weighted(0.8, 0..400_u64),
        prop::option::weighted(0.3, 0..6_u64),
        0..100_u64,
        prop::collection::vec((place(), 0..80_u64), 0..4),
        place(),
    )
        .prop_map(
            |(mut collections, user, room, inodes, headroom, held, path)| {
                collections.sort_by_key(|(path, ..)| *path);
                collections.dedup_by_key(|(path, ..)| *path);
                Case {
                    collections,
                    user,
                    room,
                    inodes,
                    headroom,
                    held,
                    path,
                }
            },
        )
}

async fn is_enforced(case: Case) {
    let sizes = case
        .collections
        .iter()
        .map(|(path, _, used)| (*path, *used));
    let collections = CollectionQuota::new(Sizes(sizes.collect()));
    for (path, limits, _) in &case.collections {
        collections.set_limits(path, *limits).unwrap();
    }
    collections.quota().set_limits("user:42", case.user);
    collections.rescan().await.unwrap();
    let volume = case.room.map(|room| {
        let disk = Disk::new(room);
        let disk = match case.inodes {
            Some(inodes) => disk.with_inodes(inodes),
            None => disk,
        };
        disk.volume().keep_free(case.headroom)
    });
    let layer = match &volume {
        Some(volume) => StorageGuardLayer::new(volume.clone()),
        None => StorageGuardLayer::quota_only(tower_storage_guard::quota::NoQuota),
    };
    let dav = WebDav::new(Sizes(Vec::new())).scope_by(|_, _| "user:42");
    let parked = watch::Sender::new(0);
    let park = parked.clone();
    let service = layer
        .quota(collections.clone())
        .patience(Duration::from_millis(1))
        .webdav(dav)
        .layer(service_fn(move |request: Request<Incoming>| {
            let park = park.clone();
            async move {
                if request.headers().contains_key("x-stop") {
                    park.send_modify(|parked| *parked += 1);
                    std::future::pending::<()>().await;
                }
                let read = request.into_body().collect().await;
                Ok::<_, Infallible>(answer(if read.is_ok() { 201 } else { 500 }))
            }
        }));
    let mut held = Vec::new();
    let mut arrived = parked.subscribe();
    for (path, bytes) in &case.held {
        let request = stopping(put(&format!("{path}/x"), *bytes as usize));
        let mut upload = tokio::spawn(service.clone().oneshot(request));
        tokio::select! {
            _ = &mut upload => {}
            _ = arrived.changed() => held.push(upload),
        }
    }
    let place = format!("{}/new", case.path);
    let DavQuota {
        available, used, ..
    } = collections.dav_quota_with(volume.as_ref(), place.trim_start_matches('/'), "user:42");
    let nearest = collections.scopes(place.trim_start_matches('/'));
    let nearest = nearest.iter().next().map(|scope| {
        let usage = collections.quota().usage(scope);
        usage.used.bytes + usage.held.bytes
    });
    assert_eq!(used, nearest);
    let is_limited = volume.is_some()
        || collections
            .scopes(place.trim_start_matches('/'))
            .iter()
            .map(|scope| scope.as_str())
            .chain(["user:42"])
            .any(|scope| {
                let limits = collections.quota().usage(scope).limits;
                limits.bytes.is_some() || limits.objects == Some(0)
            });
    let Some(available) = available else {
        assert!(!is_limited);
        return;
    };
    let send = async |bytes: u64| {
        let request = put(place.trim_start_matches('/'), bytes as usize);
        service
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(send(available + 1).await, 507, "{available} and one");
    if available > 0 {
        assert_eq!(send(available).await, 201, "{available}");
    }
    held.into_iter().for_each(|upload| upload.abort());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(test_support::times(150)) })]
    #[test]
    fn what_propfind_shows_is_what_is_enforced(case in any_case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(is_enforced(case));
    }
}
