//! The cost of WebDAV requests, for any service.

use std::{convert::Infallible, fs, path::Path, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request};
use tempfile::TempDir;
use test_support::disk::Disk;
use test_support::service::{Content, Incoming, chunked, full, read_all};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Scopes, StorageGuardLayer, Volume,
    dav::{Depth, Folder, Tree, Walk, WebDav},
    quota::{Limits, MemoryQuota, Usage},
    refusal::{Asked, Dialect, Refusal},
};

/// Whatever the method, the client and the prefix are.
#[tokio::test]
async fn refusals_are_in_the_dialect_of_webdav_unless_another_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), [0; 10]).unwrap();
    let volume = Disk::new(0).volume();
    let guard = |prefix| {
        let dav = WebDav::new(Folder::new(root.path())).prefix(prefix);
        let layer = StorageGuardLayer::new(volume.clone()).patience(Duration::ZERO);
        layer.webdav(dav).layer(service_fn(read_all))
    };
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let (xml, json, html) = (
        "application/xml; charset=\"utf-8\"",
        "application/json",
        "text/html; charset=utf-8",
    );
    for (prefix, method, path, accept, form) in [
        ("", "PUT", "/b", "*/*", xml),
        ("", "PUT", "/b", "image/png", xml),
        ("", "PUT", "/b", "application/xml, application/json", xml),
        ("", "PUT", "/b", "application/json", json),
        ("", "PUT", "/b", "application/json, text/plain, */*", json),
        ("", "POST", "/b", browser, html),
        ("", "MKCOL", "/b", "*/*", xml),
        ("", "PUT", "/a%00", "*/*", xml),
        ("/dav", "PUT", "/dav/b", "*/*", xml),
        ("/dav", "PUT", "/%64av/b", "*/*", xml),
        // Another service's.
        ("/dav", "PUT", "/b", "*/*", json),
        ("/dav", "MKCOL", "/b", "*/*", xml),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("accept", accept);
        let answer = guard(prefix)
            .oneshot(request.body(full(5)).unwrap())
            .await
            .unwrap();
        let status = if path == "/a%00" { 400 } else { 507 };
        assert_eq!(answer.status(), status, "{method} {path}");
        assert_eq!(
            answer.headers()["content-type"],
            form,
            "{method} {path} {accept}"
        );
    }
    // A dialect of the user's own comes first, wherever it is added.
    let dav = WebDav::new(Folder::new(root.path()));
    let own = StorageGuardLayer::new(volume.clone()).patience(Duration::ZERO);
    let own = own.webdav(dav).dialect(Own).layer(service_fn(read_all));
    let answer = own
        .oneshot(Request::put("/b").body(full(5)).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), 418);
}

struct Own;

impl Dialect for Own {
    fn hears(&self, _: &request::Parts) -> bool {
        true
    }

    fn render(&self, _: &Refusal, _: &Asked) -> Response<Bytes> {
        let mut answer = Response::default();
        *answer.status_mut() = StatusCode::IM_A_TEAPOT;
        answer
    }
}

/// A tree, and quotas of 100 bytes for each of its top folders.
struct Server {
    root: TempDir,
    disk: Disk,
    volume: Volume,
    quota: MemoryQuota,
}

impl Server {
    /// `ann` has 60 bytes in four objects, `bob` has 10 in one.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("ann/photos")).unwrap();
        fs::create_dir(root.path().join("bob")).unwrap();
        for (file, size) in [
            ("ann/a", 20),
            ("ann/photos/b", 30),
            ("ann/photos/c d", 10),
            ("bob/a", 10),
        ] {
            fs::write(root.path().join(file), vec![7; size]).unwrap();
        }
        let disk = Disk::new(1_000);
        let volume = disk.volume();
        let quota = MemoryQuota::new(Limits::bytes(100));
        quota.set_used("ann", Amount::new(60, 4));
        quota.set_used("bob", Amount::new(10, 1));
        Self {
            root,
            disk,
            volume,
            quota,
        }
    }

    /// Sends a request to a service that answers with this status.
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        content: usize,
        answer: u16,
    ) -> u16 {
        self.send_to(
            Folder::new(self.root.path()),
            method,
            path,
            headers,
            content,
            answer,
        )
        .await
    }

    async fn send_to(
        &self,
        tree: impl Tree,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        content: usize,
        answer: u16,
    ) -> u16 {
        self.send_content(tree, method, path, headers, full(content), answer)
            .await
    }

    async fn send_content(
        &self,
        tree: impl Tree,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        content: Content,
        answer: u16,
    ) -> u16 {
        let dav = WebDav::new(tree)
            .prefix("/dav")
            .scope_by(|_, path: &Path| -> Scopes {
                let owner = path.iter().next();
                owner.map(|owner| owner.to_str().unwrap()).into()
            });
        let layer = StorageGuardLayer::new(self.volume.clone())
            .quota(self.quota.clone())
            .webdav(dav);
        let service = layer.layer(service_fn(move |request: Request<Incoming>| async move {
            let mut read = read_all(request).await?;
            *read.status_mut() = StatusCode::from_u16(answer).unwrap();
            Ok::<_, Infallible>(read)
        }));
        let mut request = Request::builder().method(method).uri(format!("/dav{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(content).unwrap();
        service.oneshot(request).await.unwrap().status().as_u16()
    }

    async fn set_available(&self, bytes: u64) {
        self.disk.set_available(bytes);
        Disk::until(&self.volume, |status| status.available == bytes).await;
    }

    fn used(&self, scope: &str) -> (u64, u64) {
        let Usage { used, held, .. } = self.quota.usage(scope);
        assert_eq!(held, Amount::ZERO, "{scope}");
        (used.bytes, used.objects)
    }
}

#[tokio::test]
async fn a_put_costs_what_it_adds() {
    let server = Server::new();
    assert_eq!(server.send("PUT", "/ann/new", &[], 40, 201).await, 201);
    assert_eq!(server.used("ann"), (100, 5));
    // The 20 bytes that are replaced make room.
    assert_eq!(server.send("PUT", "/ann/a", &[], 21, 204).await, 507);
    assert_eq!(server.send("PUT", "/ann/a", &[], 20, 204).await, 204);
    assert_eq!(server.used("ann"), (100, 5));
    assert_eq!(server.send("PUT", "/ann/a", &[], 5, 204).await, 204);
    assert_eq!(server.used("ann"), (85, 5));
    assert_eq!(server.send("PUT", "/ann/x", &[], 1, 403).await, 403);
    assert_eq!(server.used("ann"), (85, 5));
}

#[tokio::test]
async fn a_collection_is_an_object() {
    let server = Server::new();
    assert_eq!(server.send("MKCOL", "/bob/new/", &[], 0, 201).await, 201);
    assert_eq!(server.used("bob"), (10, 2));
}

#[tokio::test]
async fn a_copy_is_charged_to_its_destination() {
    let server = Server::new();
    let to = ("destination", "http://localhost/dav/bob/photos");
    assert_eq!(server.send("COPY", "/ann/photos", &[to], 0, 201).await, 201);
    assert_eq!((server.used("ann"), server.used("bob")), ((60, 4), (50, 4)));

    let shallow = [to, ("depth", "0")];
    assert_eq!(
        server.send("COPY", "/ann/photos", &shallow, 0, 201).await,
        201
    );
    assert_eq!(server.used("bob"), (50, 5));

    // It replaces ten bytes.
    let over = [("destination", "/dav/bob/a")];
    assert_eq!(server.send("COPY", "/ann/a", &over, 0, 204).await, 204);
    assert_eq!(server.used("bob"), (60, 5));
    // Refused as a whole, before it starts.
    assert_eq!(server.send("COPY", "/ann", &[to], 0, 201).await, 507);
    assert_eq!(server.used("bob"), (60, 5));
}

#[tokio::test]
async fn a_copy_needs_room_on_the_volume() {
    let server = Server::new();
    server.set_available(30).await;
    server.quota.set_limits("bob", Limits::UNLIMITED);
    let to = [("destination", "/dav/bob/b")];
    assert_eq!(server.send("COPY", "/ann/photos", &to, 0, 201).await, 507);
    assert_eq!(server.send("COPY", "/ann/a", &to, 0, 201).await, 201);
    // A rename needs no room.
    assert_eq!(server.send("MOVE", "/ann/photos", &to, 0, 201).await, 201);
}

#[tokio::test]
async fn a_move_inside_one_scope_is_free() {
    let server = Server::new();
    server.quota.set_limits("ann", Limits::bytes(1));
    let to = [("destination", "/dav/ann/renamed")];
    assert_eq!(server.send("MOVE", "/ann/photos", &to, 0, 201).await, 201);
    assert_eq!(server.used("ann"), (60, 4));
    // As Nextcloud ends an upload of several requests.
    server.set_available(0).await;
    let total = [to[0], ("oc-total-length", "500")];
    assert_eq!(
        server.send("MOVE", "/ann/photos", &total, 0, 201).await,
        201
    );
    assert_eq!(server.used("ann"), (60, 4));
    // What it overwrites is removed.
    let over = [("destination", "/dav/ann/a")];
    assert_eq!(
        server.send("MOVE", "/ann/photos/b", &over, 0, 204).await,
        204
    );
    assert_eq!(server.used("ann"), (40, 3));
}

#[tokio::test]
async fn a_move_between_scopes_changes_owners() {
    let server = Server::new();
    let to = [("destination", "/dav/bob/photos")];
    assert_eq!(server.send("MOVE", "/ann/photos", &to, 0, 409).await, 409);
    assert_eq!((server.used("ann"), server.used("bob")), ((60, 4), (10, 1)));
    assert_eq!(server.send("MOVE", "/ann/photos", &to, 0, 201).await, 201);
    assert_eq!((server.used("ann"), server.used("bob")), ((20, 1), (50, 4)));
    server.quota.set_limits("bob", Limits::bytes(69));
    assert_eq!(server.send("MOVE", "/ann/a", &to, 0, 201).await, 507);
    assert_eq!((server.used("ann"), server.used("bob")), ((20, 1), (50, 4)));
}

#[tokio::test]
async fn an_overwrite_that_the_service_will_refuse_is_priced_and_released() {
    let server = Server::new();
    let to = [("destination", "/dav/bob/a"), ("overwrite", "F")];
    for method in ["COPY", "MOVE"] {
        // The service answers this itself, and also a missing source.
        assert_eq!(server.send(method, "/ann/a", &to, 0, 412).await, 412);
        assert_eq!(server.send(method, "/ann/none", &to, 0, 404).await, 404);
    }
    // It may read the header differently.
    server.quota.set_limits("bob", Limits::bytes(1));
    for method in ["COPY", "MOVE"] {
        assert_eq!(server.send(method, "/ann/a", &to, 0, 204).await, 507);
    }
    assert_eq!((server.used("ann"), server.used("bob")), ((60, 4), (10, 1)));
}

/// A client that stalls it would decide when what it was priced by is removed or copied.
#[tokio::test]
async fn what_has_no_content_is_malformed_with_some() {
    let server = Server::new();
    let to = [("destination", "/dav/ann/new")];
    for method in ["DELETE", "COPY", "MOVE"] {
        for content in [full(1), chunked(1, 1), chunked(0, 0)] {
            let tree = Folder::new(server.root.path());
            let sent = server.send_content(tree, method, "/ann/a", &to, content, 204);
            assert_eq!(sent.await, 400, "{method}");
        }
        assert_eq!(server.send(method, "/ann/none", &to, 0, 404).await, 404);
    }
    assert_eq!((server.used("ann"), server.used("bob")), ((60, 4), (10, 1)));
}

/// Some of what it was to replace may still exist.
#[tokio::test]
async fn a_copy_in_part_is_not_credited() {
    let server = Server::new();
    let to = [("destination", "/dav/bob/a")];
    assert_eq!(server.send("COPY", "/ann/a", &to, 0, 207).await, 207);
    assert_eq!(server.used("bob"), (30, 2));
}

/// The bytes between the end of a file and the part are reserved beside those of the part.
#[tokio::test]
async fn a_part_beyond_the_end_costs_the_gap() {
    let server = Server::new();
    // 20 bytes are there, so the gap is 15. 40 bytes are left.
    for (first, status) in [("bytes 35-59/*", 204), ("bytes 36-60/*", 507)] {
        for (content, has_length) in [(full(25), true), (chunked(5, 5), false)] {
            server.quota.set_used("ann", Amount::new(60, 4));
            let part = [("content-range", first)];
            let tree = Folder::new(server.root.path());
            let sent = server.send_content(tree, "PUT", "/ann/a", &part, content, 204);
            assert_eq!(sent.await, status, "{first} {has_length}");
            let used = if status == 204 { 100 } else { 60 };
            assert_eq!(server.used("ann"), (used, 4), "{first} {has_length}");
        }
    }
}

#[tokio::test]
async fn paths_of_other_services_are_not_judged() {
    let server = Server::new();
    let root = server.root.path();
    let dav = WebDav::new(Folder::new(root)).prefix("/dav");
    let layer = StorageGuardLayer::new(server.volume.clone()).webdav(dav);
    let service = layer.layer(service_fn(read_all));
    for (uri, header, status) in [
        ("/api/group%2Fproject", ("depth", "deep"), 201),
        ("/api/a", ("content-range", "items 0-9/20"), 201),
        ("/dav/group%2Fproject", ("depth", "0"), 400),
        ("/dav/a", ("depth", "deep"), 400),
        ("/dav/a", ("content-range", "items 0-9/20"), 400),
        ("/dav/a", ("content-range", "Bytes 0-9/20"), 201),
        ("/api/../dav/a", ("depth", "deep"), 400),
    ] {
        let request = Request::put(uri).header(header.0, header.1).body(full(1));
        let answer = service.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{uri} {header:?}");
    }
}

#[tokio::test]
async fn a_delete_gives_back_and_is_never_refused() {
    let server = Server::new();
    server.set_available(0).await;
    server.quota.set_limits("ann", Limits::bytes(1));
    assert_eq!(server.send("DELETE", "/ann/photos", &[], 0, 423).await, 423);
    assert_eq!(server.used("ann"), (60, 4));
    // Some of it still exists.
    assert_eq!(server.send("DELETE", "/ann/photos", &[], 0, 207).await, 207);
    assert_eq!(server.used("ann"), (60, 4));
    assert_eq!(server.send("DELETE", "/ann/photos", &[], 0, 204).await, 204);
    assert_eq!(server.used("ann"), (20, 1));
    // Its size is unknown.
    assert_eq!(
        server
            .send_to(Broken, "DELETE", "/ann/a", &[], 0, 204)
            .await,
        204
    );
    assert_eq!(server.used("ann"), (20, 1));
}

#[tokio::test]
async fn a_lock_creates_a_missing_resource() {
    let server = Server::new();
    assert_eq!(server.send("LOCK", "/ann/none", &[], 0, 201).await, 201);
    assert_eq!(server.used("ann"), (60, 5));
    assert_eq!(server.send("PROPPATCH", "/ann/a", &[], 41, 207).await, 507);
    assert_eq!(server.send("PROPPATCH", "/ann/a", &[], 40, 207).await, 207);
    assert_eq!(server.used("ann"), (100, 5));
    // The quota is full, and existing files can be locked in order to be overwritten.
    server.set_available(0).await;
    assert_eq!(server.send("LOCK", "/ann/a", &[], 1_000, 200).await, 200);
    // Its body describes the lock, and the new file is empty.
    assert_eq!(server.send("LOCK", "/ann/more", &[], 10, 201).await, 201);
    assert_eq!(server.used("ann"), (100, 6));
    let limits = Limits::bytes(100).objects(6);
    server.quota.set_limits("ann", limits);
    assert_eq!(server.send("LOCK", "/ann/third", &[], 10, 201).await, 507);
    assert_eq!(server.used("ann"), (100, 6));
}

/// Of a service that keeps no properties: the lengths of bodies that it does not store do not matter.
#[tokio::test]
async fn a_body_that_is_not_stored_costs_nothing() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), [0; 10]).unwrap();
    let quota = MemoryQuota::new(Limits::bytes(10).objects(2));
    quota.set_used("user", Amount::new(10, 1));
    let dav = WebDav::new(Folder::new(root.path())).scope_by(|_, _| "user");
    let layer = StorageGuardLayer::new(Disk::new(0).volume()).quota(quota.clone());
    let service = layer
        .webdav(dav.stores_body_when(|_| false))
        .layer(service_fn(read_all));
    let send = async |method: &str, path: &str, content: Content| {
        let request = Request::builder().method(method).uri(path).body(content);
        let answer = service.clone().oneshot(request.unwrap()).await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!(send("PROPPATCH", "/a", full(1_000)).await, 201);
    assert_eq!(send("PROPPATCH", "/a", chunked(100, 10)).await, 201);
    assert_eq!(quota.usage("user").used, Amount::new(10, 1));
    // It makes a collection, and its body sets properties.
    assert_eq!(send("MKCOL", "/b", full(1_000)).await, 201);
    assert_eq!(quota.usage("user").used, Amount::new(10, 2));
    assert_eq!(send("MKCOL", "/c", full(0)).await, 507);
    // Content is content.
    assert_eq!(send("PUT", "/a", full(11)).await, 507);
    assert_eq!(quota.usage("user"), {
        let mut usage = Usage::default();
        (usage.limits, usage.used) = (Limits::bytes(10).objects(2), Amount::new(10, 2));
        usage
    });
}

#[tokio::test]
async fn a_part_replaces_an_unknown_amount() {
    let server = Server::new();
    let part = [("content-range", "bytes 0-4/20")];
    assert_eq!(server.send("PUT", "/ann/a", &part, 5, 204).await, 204);
    assert_eq!(server.used("ann").0, 65);
}

struct Broken;

impl Tree for Broken {
    fn measure(&self, _: &Path, _: Depth, _: &Walk<'_>) -> std::io::Result<Option<Amount>> {
        panic!("a tree of the user's own")
    }
}

#[tokio::test]
async fn an_unknown_price_is_an_outage() {
    let server = Server::new();
    let status = server.send_to(Broken, "PUT", "/ann/a", &[], 1, 201).await;
    assert_eq!(status, 503);
    assert_eq!(server.used("ann"), (60, 4));
}

#[tokio::test]
async fn paths_that_lead_elsewhere_are_the_services_to_refuse() {
    let server = Server::new();
    for path in ["/../etc", "/ann/%2e%2e/bob/a", "/ann/a%00"] {
        assert_eq!(server.send("DELETE", path, &[], 0, 400).await, 400);
    }
    assert_eq!((server.used("ann"), server.used("bob")), ((60, 4), (10, 1)));
}
