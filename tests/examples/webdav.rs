//! The WebDAV example, from the outside.

use std::{ffi::OsStr, fs};

use futures_util::stream;
use reqwest::{Method, StatusCode};
use test_support::{
    eventually,
    example::{Server, complaint},
    mounts::{fill_but, in_runtime, tmpfs, with_own_mounts},
    webdav::*,
};

#[tokio::test]
async fn an_exact_fit_is_stored_and_one_more_byte_is_refused() {
    let server = start(&["/photos=100KiB"]);
    assert_eq!(send(&server, "MKCOL", "/photos/", &[]).await, 201);
    let exact = content(1, 100 * KIB);
    let larger = content(2, 100 * KIB + 1);
    for is_announced in [true, false] {
        let body = |content: &[u8]| match is_announced {
            true => content.to_vec().into(),
            false => unannounced(content),
        };
        assert_eq!(put(&server, "/photos/a", body(&larger)).await, 507);
        assert_eq!(names(&server), [""; 0]);
        assert_eq!(put(&server, "/photos/a", body(&exact)).await, 201);
        // Full: existing files may be replaced by the same size or less, and otherwise stay.
        assert_eq!(put(&server, "/photos/a", body(&exact)).await, 204);
        assert_eq!(put(&server, "/photos/a", body(&larger)).await, 507);
        assert!(files(&server)["photos/a"] == exact);
        assert_eq!(put(&server, "/photos/b", body(b"x")).await, 507);
        // Elsewhere there is no limit.
        assert_eq!(put(&server, "/b", body(&larger)).await, 201);
        assert_eq!(names(&server), ["b", "photos/a"]);

        assert_eq!(
            put(&server, "/photos/a", body(&exact[..99 * KIB])).await,
            204
        );
        assert_eq!(put(&server, "/photos/c", body(&exact[..KIB])).await, 201);
        assert_eq!(put(&server, "/photos/d", body(b"x")).await, 507);
        for name in ["/photos/a", "/photos/c", "/b"] {
            assert_eq!(send(&server, "DELETE", name, &[]).await, 204);
        }
    }
}

#[tokio::test]
async fn a_refusal_has_a_webdav_condition() {
    let server = start(&["/photos=1000"]);
    send(&server, "MKCOL", "/photos/", &[]).await;
    let put = server.request(Method::PUT, "/photos/a");
    let put = put.header("user-agent", "rclone/v1.60.1");
    let answer = put.body(content(1, 1001)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    let text = answer.text().await.unwrap();
    assert!(text.contains("quota-not-exceeded"), "{text}");
}

#[tokio::test]
async fn limits_are_nested_and_counted_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("photos/small")).unwrap();
    fs::write(dir.path().join("photos/small/a"), [7; 600]).unwrap();
    // Left behind by a killed server.
    fs::create_dir(dir.path().join(".uploads")).unwrap();
    fs::write(dir.path().join(".uploads/half"), [7; 600]).unwrap();
    let server = start_in(dir, &["/photos=2000", "/photos/small=1000"]);
    assert_eq!(names(&server), ["photos/small/a"]);

    assert_eq!(put(&server, "/photos/small/b", vec![7; 401]).await, 507);
    assert_eq!(put(&server, "/photos/small/b", vec![7; 400]).await, 201);
    assert_eq!(put(&server, "/photos/c", vec![7; 1001]).await, 507);
    assert_eq!(put(&server, "/photos/c", vec![7; 1000]).await, 201);
    // The inner one has room again, and the outer one has none.
    assert_eq!(put(&server, "/photos/small/a", "").await, 204);
    assert_eq!(put(&server, "/photos/d", vec![7; 600]).await, 201);
    assert_eq!(put(&server, "/photos/small/a", vec![7; 600]).await, 507);
    assert_eq!(
        names(&server),
        ["photos/c", "photos/d", "photos/small/a", "photos/small/b"]
    );
}

/// The guard has read the disk before another program fills it.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_copy_that_finds_the_disk_full_harms_nothing() {
    with_own_mounts(|| {
        in_runtime(async {
            let dir = tempfile::tempdir().unwrap();
            tmpfs(dir.path(), "size=16m");
            let server = start_in(dir, &["/photos=12MiB"]);
            for folder in ["/photos/", "/tree/", "/photos/old/"] {
                assert_eq!(send(&server, "MKCOL", folder, &[]).await, 201);
            }
            for (file, size) in [
                ("/tree/a", 3 * MIB),
                ("/tree/b", 3 * MIB),
                ("/photos/old/a", MIB),
            ] {
                assert_eq!(put(&server, file, content(size, size)).await, 201);
            }
            let there = files(&server);
            let left = |bytes: u64| fill_but(server.dir.path(), bytes);
            for (from, to, room) in [
                ("/tree/a", "/photos/old/a", 2 << 20),
                ("/tree/", "/photos/old", 4 << 20),
                ("/tree/b", "/photos/new", 1 << 20),
            ] {
                left(room);
                let status = send(&server, "COPY", from, &[("destination", to)]).await;
                assert_eq!(status, 507, "{from} to {to}");
                fs::remove_file(server.dir.path().join("filler")).unwrap();
                assert!(files(&server) == there, "{from} to {to}");
            }
            // Nothing is charged for it, and there is room again: a request that finds none waits for a new reading.
            let over = [("destination", "/photos/old")];
            assert_eq!(send(&server, "COPY", "/tree/", &over).await, 204);
            assert_eq!(put(&server, "/photos/rest", content(1, MIB)).await, 201);
            assert!(files(&server)["photos/old/b"] == there["tree/b"]);
        });
    });
}

#[tokio::test]
async fn a_copy_is_refused_whole_before_it_starts() {
    let server = start(&["/photos=1000"]);
    for folder in ["/photos/", "/tree/", "/tree/sub/"] {
        assert_eq!(send(&server, "MKCOL", folder, &[]).await, 201);
    }
    for (file, size) in [("/tree/a", 400), ("/tree/sub/b", 400), ("/tree/c", 200)] {
        assert_eq!(put(&server, file, content(size, size)).await, 201);
    }
    assert_eq!(put(&server, "/photos/old", "x").await, 201);
    let there = files(&server);
    let to = format!("http://{}/photos/tree", server.addr);
    let to = [("destination", to.as_str())];
    assert_eq!(send(&server, "COPY", "/tree/", &to).await, 507);
    assert_eq!(send(&server, "MOVE", "/tree/", &to).await, 507);
    assert!(!server.dir.path().join("photos/tree").exists());
    // Not even the resource that it would overwrite is removed.
    let over = [("destination", "/photos/old")];
    assert_eq!(send(&server, "PUT", "/large", &[]).await, 201);
    assert_eq!(put(&server, "/large", content(1, 1001)).await, 204);
    assert_eq!(send(&server, "COPY", "/large", &over).await, 507);
    assert_eq!(send(&server, "DELETE", "/large", &[]).await, 204);
    assert!(files(&server) == there);

    assert_eq!(send(&server, "DELETE", "/photos/old", &[]).await, 204);
    assert_eq!(send(&server, "COPY", "/tree/", &to).await, 201);
    assert_eq!(put(&server, "/photos/more", "x").await, 507);
    // A rename inside is free, and a move to elsewhere makes room.
    let renamed = [("destination", "/photos/renamed")];
    assert_eq!(send(&server, "MOVE", "/photos/tree/", &renamed).await, 201);
    let out = [("destination", "/out")];
    assert_eq!(send(&server, "MOVE", "/photos/renamed/", &out).await, 201);
    assert_eq!(put(&server, "/photos/more", content(1, 1000)).await, 201);
}

#[tokio::test]
async fn locks_and_listings_take_no_room() {
    let server = start(&["/photos=1000"]);
    send(&server, "MKCOL", "/photos/", &[]).await;
    let lock = r#"<?xml version="1.0"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockinfo>"#;
    for _ in 0..10 {
        let method = Method::from_bytes(b"LOCK").unwrap();
        let request = server.request(method, "/photos/a").body(lock);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        let token = answer.headers()["lock-token"].to_str().unwrap().to_owned();
        let held = [("lock-token", token.as_str())];
        assert_eq!(put(&server, "/photos/a", "mine").await, 423);
        assert_eq!(send(&server, "UNLOCK", "/photos/a", &held).await, 204);
        let depth = [("depth", "1")];
        assert_eq!(send(&server, "PROPFIND", "/photos/", &depth).await, 207);
    }
    assert_eq!(put(&server, "/photos/a", content(1, 1000)).await, 204);
    // Clients lock files that they overwrite, which has to work on a full volume.
    let method = Method::from_bytes(b"LOCK").unwrap();
    let request = server.request(method, "/photos/a").body(lock);
    let answer = request.send().await.unwrap();
    let token = answer.headers()["lock-token"].to_str().unwrap().to_owned();
    let request = server.request(Method::PUT, "/photos/a");
    let request = request.header("if", format!("({token})"));
    let answer = request.body(content(2, 1000)).send().await.unwrap();
    assert_eq!(answer.status(), 204);
}

/// The token in the answer to a LOCK.
#[cfg(target_os = "linux")]
fn token_in(answer: &str) -> &str {
    let begin = answer.find("urn:uuid:").unwrap();
    answer[begin..].split('<').next().unwrap()
}

/// The locks are in the server's memory.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn locks_are_limited_in_number_size_and_time() {
    const MOST: usize = 1_000;
    let server = start(&[]);
    let lock = async |path: &str, owner: &str, timeout: &str| {
        let body = format!(
            r#"<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:shared/></D:lockscope><D:locktype><D:write/></D:locktype><D:owner>{owner}</D:owner></D:lockinfo>"#
        );
        let request = server.request(Method::from_bytes(b"LOCK").unwrap(), path);
        let request = request.header("timeout", timeout).body(body);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.text().await.unwrap())
    };
    let before = server.memory();
    // 50 KB of text, and as much memory in small pieces.
    for owner in ["x".repeat(50_000), "<a/>".repeat(1_000)] {
        for _ in 0..500 {
            let (status, body) = lock("/a", &owner, "Infinite").await;
            assert_eq!(status, 507, "{body}");
        }
    }
    assert_eq!(lock("/missing/a", "me", "Infinite").await.0, 409);
    let owner = "<D:href>https://example.com/me</D:href>";
    let (status, first) = lock("/a", owner, "Infinite").await;
    assert_eq!(status, 201, "{first}");
    assert!(first.contains("Second-600"), "{first}");
    for _ in 2..MOST {
        assert_eq!(lock("/a", owner, "Infinite").await.0, 200);
    }
    assert_eq!(lock("/b", owner, "Second-3").await.0, 201);
    let (status, body) = lock("/c", owner, "Infinite").await;
    assert_eq!(status, 507, "{body}");
    assert!(body.contains("quota_exceeded"), "{body}");
    let more = server.memory().saturating_sub(before);
    assert!(more < 16 * MIB, "{more} bytes more");
    // One that is looked for at another path stays, and counts.
    let token = format!("<{}>", token_in(&first));
    let held = [("lock-token", token.as_str())];
    assert_eq!(send(&server, "UNLOCK", "/b", &held).await, 409);
    assert_eq!(lock("/c", owner, "Infinite").await.0, 507);
    assert_eq!(send(&server, "UNLOCK", "/a", &held).await, 204);
    assert_eq!(lock("/a", owner, "Infinite").await.0, 200);
    // One ends, and another takes its place.
    while lock("/c", owner, "Infinite").await.0 == 507 {}
    assert_eq!(lock("/d", owner, "Infinite").await.0, 507);
    assert_eq!(put(&server, "/b", "free").await, 204);
    assert_eq!(put(&server, "/c", "locked").await, 423);
}

#[tokio::test]
async fn an_upload_that_is_broken_off_leaves_the_old_content() {
    let server = start(&["/photos=1MiB"]);
    send(&server, "MKCOL", "/photos/", &[]).await;
    let old = content(1, MIB / 2);
    assert_eq!(put(&server, "/photos/a", old.clone()).await, 201);

    let parts = [Ok(content(2, 64 * KIB)), Err("the client is gone")];
    let body = reqwest::Body::wrap_stream(stream::iter(parts));
    let request = server.request(Method::PUT, "/photos/a").body(body);
    request.send().await.unwrap_err();
    eventually("no upload", || names(&server) == ["photos/a"]).await;
    assert!(files(&server)["photos/a"] == old);

    // Shorter than announced, and longer.
    for announced in [KIB, 3 * KIB] {
        let request = server.request(Method::PUT, "/photos/a");
        let request = request.header("x-expected-entity-length", announced);
        let body = unannounced(&content(3, 2 * KIB));
        let answer = request.body(body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        assert!(files(&server)["photos/a"] == old);
    }
    assert_eq!(put(&server, "/photos/b", content(4, MIB / 2)).await, 201);
    assert_eq!(put(&server, "/photos/c", "x").await, 507);
}

#[tokio::test]
async fn files_are_written_whole() {
    let server = start(&[]);
    assert_eq!(put(&server, "/a", "old content").await, 201);
    let range = [("content-range", "bytes 0-2/11")];
    assert_eq!(send(&server, "PUT", "/a", &range).await, 400);
    let range = [
        ("content-type", "application/x-sabredav-partialupdate"),
        ("x-update-range", "bytes=0-2"),
    ];
    assert_eq!(send(&server, "PATCH", "/a", &range).await, 405);
    assert_eq!(files(&server)["a"], b"old content");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_paths_are_answered_as_without_the_guard() {
    let server = start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let plain = unguarded(dir.path()).await;
    let unless_there = ("if-none-match", "*");
    let if_there = ("if-match", "*");
    for (method, path, header, status) in [
        ("MKCOL", "/folder/", None, 201),
        ("PUT", "/file", None, 201),
        ("PUT", "/folder", None, 403),
        ("PUT", "/folder/", None, 403),
        ("PUT", "/missing/a", None, 409),
        ("PUT", "/file/a", None, 403),
        ("PUT", "/file", Some(unless_there), 412),
        ("PUT", "/new", Some(if_there), 412),
        ("PUT", "/new", Some(unless_there), 201),
        ("PUT", "/new", Some(if_there), 204),
    ] {
        for addr in [&server.addr, &plain] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let request = server
                .client
                .request(method, format!("http://{addr}{path}"));
            let request = match header {
                Some((name, value)) => request.header(name, value),
                None => request,
            };
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), status, "{path}, {header:?}, {addr}");
        }
    }
    assert_eq!(names(&server), ["file", "new"]);
}

#[tokio::test]
async fn uploads_in_progress_are_invisible() {
    let server = start(&[]);
    assert_eq!(put(&server, "/a", "x").await, 201);
    for path in [
        "/.uploads",
        "/.uploads/",
        "/.uploads/a",
        "//.uploads/a",
        "/%2Euploads/a",
    ] {
        let to = [("destination", path)];
        for status in [
            put(&server, path, "x").await,
            send(&server, "GET", path, &[]).await,
            send(&server, "MKCOL", path, &[]).await,
            send(&server, "DELETE", path, &[]).await,
            send(&server, "COPY", "/a", &to).await,
            send(&server, "MOVE", "/a", &to).await,
        ] {
            // `//host/path` may be read as a host, so the guard refuses it as a destination.
            assert!([400, 403, 404, 409].contains(&status), "{path}: {status}");
        }
    }
    let method = Method::from_bytes(b"PROPFIND").unwrap();
    let list = server.request(method, "/").header("depth", "1");
    let list = list.send().await.unwrap().text().await.unwrap();
    assert!(list.contains("/a<") && !list.contains("uploads"), "{list}");
    assert_eq!(names(&server), ["a"]);
    assert_eq!(put(&server, "/a", "y").await, 204);
}

#[tokio::test]
async fn ends_when_it_is_asked_to() {
    let server = start(&[]);
    assert_eq!(put(&server, "/a", "x").await, 201);
    server.terminate();
    let (status, _dir) = server.ended().await;
    assert!(status.success());
}

/// The properties of RFC 4331: available, used.
async fn quota(server: &Server, path: &str, depth: &str) -> [Option<u64>; 2] {
    let method = Method::from_bytes(b"PROPFIND").unwrap();
    let request = server.request(method, path).header("depth", depth);
    let body = r#"<?xml version="1.0"?><D:propfind xmlns:D="DAV:"><D:prop><D:quota-available-bytes/><D:quota-used-bytes/></D:prop></D:propfind>"#;
    let text = request
        .body(body)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    ["available", "used"].map(|name| {
        let tag = format!("quota-{name}-bytes>");
        let (_, value) = text.split_once(&tag)?;
        Some(value.split_once('<').unwrap().0.parse().unwrap())
    })
}

#[tokio::test]
async fn a_listing_reports_the_quota() {
    let server = start(&["/photos=1000", "/photos/small=100"]);
    for folder in ["/photos/", "/photos/small/"] {
        assert_eq!(send(&server, "MKCOL", folder, &[]).await, 201);
    }
    assert_eq!(put(&server, "/photos/a", content(1, 300)).await, 201);
    for path in ["/photos", "/photos/", "/photos/a"] {
        assert_eq!(
            quota(&server, path, "0").await,
            [Some(700), Some(300)],
            "{path}"
        );
    }
    assert_eq!(
        quota(&server, "/photos/small", "0").await,
        [Some(100), Some(0)]
    );
    assert_eq!(put(&server, "/photos/b", content(1, 701)).await, 507);
    assert_eq!(put(&server, "/photos/b", content(1, 650)).await, 201);
    // The outer one is closer to its limit.
    assert_eq!(
        quota(&server, "/photos/small", "0").await,
        [Some(50), Some(0)]
    );
    // The disk alone.
    let [left, used] = quota(&server, "/", "0").await;
    let (left, used) = (left.unwrap(), used.unwrap());
    let total = fs4::total_space(server.dir.path()).unwrap();
    assert!(
        left > 1000 && used >= 950 && left + used <= total,
        "{left}, {used}"
    );
    // dav-server would show the same figure for all resources below.
    assert_eq!(quota(&server, "/photos/", "1").await, [None, None]);
}

#[test]
fn says_what_is_wrong_with_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    for (limit, words, exit) in [
        ("/photos", "expected PATH=SIZE", 2),
        ("photos=1", "the path begins with a /", 2),
        ("/photos=much", "the size: ", 2),
        ("/../photos=1", "does not lead out of the tree", 1),
    ] {
        let flags = [OsStr::new("--limit"), limit.as_ref()];
        let flags = flags
            .into_iter()
            .chain(["--dir".as_ref(), dir.path().as_os_str()]);
        let (said, code) = complaint("webdav", flags);
        assert!(
            said.starts_with("error: ") && said.contains(words),
            "{said}"
        );
        assert_eq!(code, Some(exit), "{said}");
    }
}
