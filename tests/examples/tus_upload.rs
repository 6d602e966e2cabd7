//! The tus example, from the outside: request by request, and by tuspy.

use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use test_support::{
    eventually,
    example::{Server, complaint},
    tus::*,
};
use tokio::io::AsyncWriteExt;

#[cfg(target_os = "linux")]
#[path = "tus_upload_disk.rs"]
mod disk;

#[tokio::test]
async fn says_what_it_can() {
    let server = start(&[]);
    for path in ["/files", "/files/", "/files/a"] {
        // For this one request, tus does not require the version.
        let answer = send(server.request(Method::OPTIONS, path)).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.headers()["tus-version"], "1.0.0");
        let extensions =
            "creation,creation-with-upload,creation-defer-length,termination,expiration";
        assert_eq!(answer.headers()["tus-extension"], extensions);
    }
}

#[tokio::test]
async fn parts_arrive_as_one_file() {
    let server = start(&[]);
    let whole = content(1, 300 * KIB);
    let metadata = "name YQ==,is_confidential";
    let answer = send(creation(&server, 300 * KIB).header("upload-metadata", metadata)).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(answer.headers().contains_key("upload-expires"));
    let path = answer.headers()[LOCATION].to_str().unwrap().to_owned();
    let name = path.strip_prefix("/files/").unwrap();
    assert_eq!(name.len(), 32);

    for (from, to) in [
        (0, 100 * KIB),
        (100 * KIB, 100 * KIB),
        (100 * KIB, 300 * KIB),
    ] {
        let answer = send(request(&server, "HEAD", &path)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(number(&answer, "upload-offset"), from);
        assert_eq!(number(&answer, "upload-length"), 300 * KIB);
        assert_eq!(answer.headers()["upload-metadata"], metadata);
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(server.get(&path).await.status(), StatusCode::NOT_FOUND);
        let part = &whole[from as usize..to as usize];
        assert_eq!(append(&server, &path, from, part).await, to);
    }
    assert!(read(&server, &path).await == whole);
    assert_eq!(server.names(), [".uploads", name]);
    assert_eq!(growing(&server), 0);

    // Clients ask again, and may send an empty part again.
    let answer = send(request(&server, "HEAD", &path)).await;
    assert_eq!(number(&answer, "upload-offset"), 300 * KIB);
    assert_eq!(answer.headers()["upload-metadata"], metadata);
    assert!(!answer.headers().contains_key("upload-expires"));
    assert_eq!(append(&server, &path, 300 * KIB, b"").await, 300 * KIB);
    assert_eq!(status(part(&server, &path, 300 * KIB, b"x")).await, 413);
    assert_eq!(delete(&server, &path).await, 204);
    assert_eq!(delete(&server, &path).await, 404);
    assert_eq!(server.names(), [".uploads"]);
    assert_eq!(used(&server).await, 0);
}

#[tokio::test]
async fn client_errors_are_reported_and_change_nothing() {
    let server = start(&["--quota", "1000"]);
    let path = create(&server, 100).await;
    assert_eq!(append(&server, &path, 0, &[1; 50]).await, 50);

    let create = || request(&server, "POST", "/files");
    let patch = || request(&server, "PATCH", &path);
    let typed = || patch().header(CONTENT_TYPE, PART).body("x");
    let other = format!("{path}0");
    let encoded = path.replace("/files/", "/files/%2e%2e%2f");
    for (request, expected) in [
        (create(), 400),
        (create().header("upload-length", "-1"), 400),
        (create().header("upload-length", "+1"), 400),
        (create().header("upload-length", "x"), 400),
        (create().header("upload-defer-length", "2"), 400),
        (creation(&server, 1).header("upload-defer-length", "1"), 400),
        (patch().header("upload-offset", 50).body("x"), 415),
        (
            patch()
                .header("upload-offset", 50)
                .header(CONTENT_TYPE, "text/plain"),
            415,
        ),
        (typed(), 400),
        (typed().header("upload-offset", "x"), 400),
        (typed().header("upload-offset", 49), 409),
        (typed().header("upload-offset", 51), 409),
        (
            typed()
                .header("upload-offset", 50)
                .header("upload-length", 99),
            400,
        ),
        (part(&server, &path, 50, &[1; 51]), 413),
        (part(&server, &other, 0, b"x"), 404),
        (part(&server, &format!("{path}?a"), 50, b"x"), 404),
        (part(&server, &encoded, 50, b"x"), 404),
        (self::request(&server, "HEAD", &other), 404),
        (self::request(&server, "DELETE", &other), 404),
        (self::request(&server, "PUT", &path), 405),
        (self::request(&server, "POST", "/elsewhere"), 404),
    ] {
        let said = format!("{request:?}");
        assert_eq!(status(request).await, expected, "{said}");
        assert_eq!(offset(&server, &path).await, 50, "{said}");
        assert_eq!(growing(&server), 1, "{said}");
    }
    assert_eq!(append(&server, &path, 50, &[2; 50]).await, 100);
    assert_eq!(read(&server, &path).await, [[1; 50], [2; 50]].concat());
    until_used(&server, 100).await;
}

#[tokio::test]
async fn another_version_is_rejected() {
    let server = start(&[]);
    let path = create(&server, 1).await;
    for version in [None, Some("0.2.2"), Some("2.0.0")] {
        for method in [Method::POST, Method::HEAD, Method::PATCH, Method::DELETE] {
            let path = if method == Method::POST {
                "/files"
            } else {
                &path
            };
            let request = server.request(method, path).header("upload-length", 1);
            let answer = send(match version {
                Some(version) => request.header("tus-resumable", version),
                None => request,
            })
            .await;
            assert_eq!(answer.status(), StatusCode::PRECONDITION_FAILED);
            assert_eq!(answer.headers()["tus-version"], "1.0.0");
        }
    }
    assert_eq!(growing(&server), 1);
}

#[tokio::test]
async fn a_header_may_name_the_method() {
    let server = start(&["--quota", "1000"]);
    let path = create(&server, 600).await;
    let meant =
        |method: &str| request(&server, "POST", &path).header("x-http-method-override", method);
    let patch = meant("PATCH").header("upload-offset", 0);
    let patch = patch.header(CONTENT_TYPE, PART).body(vec![1; 10]);
    assert_eq!(status(patch).await, 204);
    assert_eq!(offset(&server, &path).await, 10);
    assert_eq!(used(&server).await, 600);
    assert_eq!(status(meant("DELETE")).await, 204);
    assert_eq!(used(&server).await, 0);
}

#[tokio::test]
async fn a_creation_may_bring_the_first_part() {
    let server = start(&["--quota", "1000"]);
    let with = |length: u64, content: &[u8]| {
        let creation = creation(&server, length).header(CONTENT_TYPE, PART);
        creation.body(content.to_vec())
    };
    let answer = send(with(600, &[1; 200])).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(number(&answer, "upload-offset"), 200);
    assert_eq!(used(&server).await, 600);
    let first = answer.headers()[LOCATION].to_str().unwrap().to_owned();

    let answer = send(with(400, &[2; 400])).await;
    assert_eq!(number(&answer, "upload-offset"), 400);
    assert!(!answer.headers().contains_key("upload-expires"));
    let second = answer.headers()[LOCATION].to_str().unwrap();
    assert_eq!(read(&server, second).await, [2; 400]);
    assert_eq!(used(&server).await, 1000);

    assert_eq!(append(&server, &first, 200, &[1; 400]).await, 600);
    assert_eq!(read(&server, &first).await, [1; 600]);
    assert_eq!(used(&server).await, 1000);

    // More than announced: nothing of it is kept.
    assert_eq!(delete(&server, &first).await, 204);
    assert_eq!(status(with(3, b"four")).await, 413);
    assert_eq!((growing(&server), used(&server).await), (0, 400));
}

#[tokio::test]
async fn an_empty_file_is_whole_at_once() {
    let server = start(&[]);
    let path = create(&server, 0).await;
    assert_eq!(offset(&server, &path).await, 0);
    assert_eq!(read(&server, &path).await, b"");
    assert_eq!((growing(&server), used(&server).await), (0, 0));
}

#[tokio::test]
async fn a_length_may_come_later() {
    let server = start(&["--quota", "1000"]);
    let defer = || request(&server, "POST", "/files").header("upload-defer-length", 1);
    let path = created(defer()).await;
    let answer = send(request(&server, "HEAD", &path)).await;
    assert_eq!(answer.headers()["upload-defer-length"], "1");
    assert!(!answer.headers().contains_key("upload-length"));

    assert_eq!(append(&server, &path, 0, &[1; 300]).await, 300);
    let with = |offset: u64, length: u64, content: &[u8]| {
        part(&server, &path, offset, content).header("upload-length", length)
    };
    // Less than was received.
    assert_eq!(status(with(300, 299, b"")).await, 400);
    // More than there is room for.
    let refused = send(with(300, 1001, &[2; 100])).await;
    assert_eq!(refused.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(status(with(300, 900, &[2; 100])).await, 204);
    // The whole length is held now.
    assert_eq!(used(&server).await, 900);
    assert_eq!(status(with(400, 901, &[3; 1])).await, 400);
    assert_eq!(append(&server, &path, 400, &[3; 500]).await, 900);
    let whole = [vec![1; 300], vec![2; 100], vec![3; 500]].concat();
    assert_eq!(read(&server, &path).await, whole);
    assert_eq!(used(&server).await, 900);
    // There is room for this much of another upload, whose length is unknown.
    let path = created(defer()).await;
    assert_eq!(append(&server, &path, 0, &[1; 100]).await, 100);
    assert_eq!(status(part(&server, &path, 100, b"x")).await, 507);
    assert_eq!(offset(&server, &path).await, 100);
}

#[tokio::test]
async fn an_interrupted_part_keeps_the_received_bytes() {
    let server = start(&["--quota", "300KiB"]);
    let whole = content(1, 300 * KIB);
    let path = create(&server, 300 * KIB).await;
    for (from, to) in [(0, 100), (100, 150), (150, 150)] {
        let (from, to) = (from * KIB, to * KIB);
        let sent = &whole[from as usize..to as usize];
        let stream = begin(&server, &path, from, 300 * KIB - from, sent).await;
        drop(stream);
        assert_eq!(offset(&server, &path).await, to);
        assert_eq!(used(&server).await, 300 * KIB);
    }
    let rest = &whole[150 << 10..];
    assert_eq!(append(&server, &path, 150 * KIB, rest).await, 300 * KIB);
    assert!(read(&server, &path).await == whole);
    until_used(&server, 300 * KIB).await;
    assert_eq!(delete(&server, &path).await, 204);
    until_used(&server, 0).await;
}

/// The whole content has arrived, but not the end of the request: the file is neither renamed nor charged before a
/// client learns of it.
#[tokio::test]
async fn an_upload_interrupted_at_its_very_end_is_resumed() {
    let server = start(&["--quota", "1000"]);
    let path = create(&server, 900).await;
    let mut stream = begin_framed(&server, &path, 0, "transfer-encoding: chunked").await;
    stream.write_all(b"384\r\n").await.unwrap();
    stream.write_all(&content(1, 900)).await.unwrap();
    stream.write_all(b"\r\n").await.unwrap();
    eventually("that it is stored", || grown(&server) == 900).await;
    drop(stream);
    let there = offset(&server, &path).await;
    assert_eq!(there, 899);
    assert_eq!(server.get(&path).await.status(), StatusCode::NOT_FOUND);
    let rest = &content(1, 900)[899..];
    assert_eq!(append(&server, &path, there, rest).await, 900);
    assert_eq!(read(&server, &path).await, content(1, 900));
    until_used(&server, 900).await;
}

#[tokio::test]
async fn a_later_request_goes_before_one_that_hangs() {
    let server = start(&["--quota", "1000"]);
    let path = create(&server, 900).await;
    let mut hanging = begin(&server, &path, 0, 900, &[1; 100]).await;
    assert_eq!(offset(&server, &path).await, 100);
    assert_eq!(answered(&mut hanging).await, "HTTP/1.1 423 Locked");

    let mut hanging = begin(&server, &path, 100, 800, &[2; 100]).await;
    assert_eq!(append(&server, &path, 200, &[3; 600]).await, 800);
    assert_eq!(answered(&mut hanging).await, "HTTP/1.1 423 Locked");
    assert_eq!(used(&server).await, 900);
    let mut hanging = begin(&server, &path, 800, 100, &[4; 50]).await;
    assert_eq!(delete(&server, &path).await, 204);
    assert_eq!(answered(&mut hanging).await, "HTTP/1.1 423 Locked");
    until_used(&server, 0).await;
    assert_eq!(growing(&server), 0);
}

#[tokio::test]
async fn an_exact_fit_is_stored_in_parts_and_one_more_byte_is_refused() {
    let server = start(&["--quota", "1000KiB"]);
    let refused = refusal(creation(&server, 1000 * KIB + 1)).await;
    assert_eq!(refused["reason"], "quota_exceeded");
    assert_eq!(refused["temporary"], false);
    assert_eq!(growing(&server), 0);

    let whole = content(1, 1000 * KIB);
    let path = create(&server, 1000 * KIB).await;
    for from in [0, 1, 400 * KIB - 1, 999 * KIB].windows(2) {
        let part = &whole[from[0] as usize..from[1] as usize];
        assert_eq!(append(&server, &path, from[0], part).await, from[1]);
        let refused = refusal(creation(&server, 1)).await;
        assert_eq!(refused["used"], 1000 * KIB);
        assert_eq!(refused["temporary"], true);
    }
    let rest = &whole[999 << 10..];
    assert_eq!(append(&server, &path, 999 * KIB, rest).await, 1000 * KIB);
    assert!(read(&server, &path).await == whole);
    assert_eq!(refusal(creation(&server, 1)).await["used"], 1000 * KIB);
}

#[tokio::test]
async fn an_open_upload_is_held_whole_until_it_is_given_up() {
    let server = start(&["--quota", "1000"]);
    let first = create(&server, 600).await;
    assert_eq!(refusal(creation(&server, 401)).await["used"], 600);
    assert_eq!(append(&server, &first, 0, &[1; 300]).await, 300);
    // Exactly the same as before.
    assert_eq!(refusal(creation(&server, 401)).await["used"], 600);
    let second = create(&server, 400).await;
    assert_eq!(refusal(creation(&server, 1)).await["used"], 1000);

    assert_eq!(delete(&server, &first).await, 204);
    assert_eq!(status(request(&server, "HEAD", &first)).await, 404);
    assert_eq!(growing(&server), 1);
    let third = create(&server, 600).await;
    for (path, size) in [(&second, 400), (&third, 600)] {
        assert_eq!(append(&server, path, 0, &vec![1; size]).await, size as u64);
    }
    assert_eq!(used(&server).await, 1000);
    assert_eq!(delete(&server, &third).await, 204);
    assert_eq!(used(&server).await, 400);
}

#[tokio::test]
async fn an_idle_upload_expires() {
    let server = start(&["--quota", "1000", "--expire-after", "2"]);
    let idle = create(&server, 600).await;
    assert_eq!(append(&server, &idle, 0, &[1; 300]).await, 300);
    let whole = create(&server, 400).await;
    assert_eq!(append(&server, &whole, 0, &[2; 400]).await, 400);
    refusal(creation(&server, 600)).await;
    eventually("that it is gone", || growing(&server) == 0).await;
    until_used(&server, 400).await;
    assert_eq!(status(request(&server, "HEAD", &idle)).await, 404);
    assert_eq!(status(part(&server, &idle, 300, &[1; 300])).await, 404);

    // A complete upload stays.
    assert_eq!(offset(&server, &whole).await, 400);
    assert_eq!(read(&server, &whole).await, [2; 400]);

    // While parts arrive, it stays.
    let path = create(&server, 600).await;
    for at in 0..6 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(
            append(&server, &path, at * 100, &[3; 100]).await,
            at * 100 + 100
        );
    }
    assert_eq!(used(&server).await, 1000);
}

/// An open connection without data does not keep an upload.
#[tokio::test]
async fn an_upload_that_hangs_expires() {
    let server = start(&["--quota", "1000", "--expire-after", "1"]);
    let path = create(&server, 600).await;
    let mut hanging = begin(&server, &path, 0, 600, &[1; 300]).await;
    assert_eq!(answered(&mut hanging).await, "HTTP/1.1 423 Locked");
    assert_eq!(status(request(&server, "HEAD", &path)).await, 404);
    assert_eq!(growing(&server), 0);
    until_used(&server, 0).await;
}

#[tokio::test]
async fn unauthenticated_and_other_users_reach_nothing() {
    let server = start(&USERS);
    for token in ["", "wrong"] {
        for (method, path) in [
            ("POST", "/files"),
            ("PATCH", "/files/a"),
            ("DELETE", "/files/a"),
        ] {
            let request = request(&server, method, path).bearer_auth(token);
            assert_eq!(status(request.header("upload-length", 1)).await, 401);
        }
    }
    let anns = created(creation(&server, 600).bearer_auth("a")).await;
    let bobs = created(creation(&server, 500).bearer_auth("b")).await;
    let refused = refusal(creation(&server, 401).bearer_auth("a")).await;
    assert_eq!(
        (&refused["limit"], &refused["used"]),
        (&1000.into(), &600.into())
    );

    // Bob knows the path, but gets no access.
    for request in [
        request(&server, "HEAD", &anns),
        part(&server, &anns, 0, &[1; 600]),
        request(&server, "DELETE", &anns),
    ] {
        assert_eq!(status(request.bearer_auth("b")).await, 404);
    }
    let append = part(&server, &anns, 0, &[1; 600]).bearer_auth("a");
    assert_eq!(status(append).await, 204);
    let append = part(&server, &bobs, 0, &[1; 500]).bearer_auth("b");
    assert_eq!(status(append).await, 204);
    for (token, used) in [("a", 600), ("b", 500)] {
        let refused = refusal(creation(&server, 1001).bearer_auth(token)).await;
        assert_eq!(refused["used"], used);
    }
}

#[tokio::test]
async fn a_restart_counts_complete_uploads_and_removes_the_rest() {
    let server = start(&["--quota", "1000"]);
    let whole = create(&server, 300).await;
    append(&server, &whole, 0, &[1; 300]).await;
    let open = create(&server, 400).await;
    append(&server, &open, 0, &[1; 100]).await;
    server.terminate();
    let (ended, dir) = server.ended().await;
    assert_eq!(ended.code(), Some(0));

    let flags = ["--keep-free", "0", "--quota", "1000"];
    let server = Server::start_in(dir, "tus-upload", &flags);
    assert_eq!(growing(&server), 0);
    assert_eq!(used(&server).await, 300);
    assert_eq!(status(part(&server, &open, 100, &[1; 300])).await, 404);
    assert_eq!(offset(&server, &whole).await, 300);
    assert_eq!(delete(&server, &whole).await, 204);
    assert_eq!(used(&server).await, 0);
}

/// A failed request does not change the offset.
#[tokio::test]
async fn a_failed_request_does_not_change_what_is_charged() {
    let server = start(&["--quota", "1000"]);
    let path = create(&server, 900).await;
    let mut last = begin(&server, &path, 0, 900, &[1; 800]).await;
    // Not even one that arrives while the last part is in flight.
    let wrong = request(&server, "PATCH", &path).header("upload-offset", 0);
    assert_eq!(status(wrong.body("x")).await, 415);
    last.write_all(&[2; 100]).await.unwrap();
    assert_eq!(answered(&mut last).await, "HTTP/1.1 204 No Content");
    until_used(&server, 900).await;
}

#[tokio::test]
async fn an_offset_that_is_too_large_is_a_conflict() {
    let server = start(&["--quota", "1000"]);
    let path = create(&server, 900).await;
    for offset in ["901", "1000000", "18446744073709551615"] {
        let request = request(&server, "PATCH", &path).header("upload-offset", offset);
        let request = request.header(CONTENT_TYPE, PART).body("x");
        assert_eq!(status(request).await, 409, "{offset}");
    }
    assert_eq!(append(&server, &path, 0, &[1; 900]).await, 900);
    until_used(&server, 900).await;
}

/// They are in the server's memory, also when they are complete.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn metadata_are_limited() {
    let server = start(&[]);
    let before = server.memory();
    for number in 0..1_000 {
        let long = format!("name {}", "YWFh".repeat(15_000));
        let answer = send(creation(&server, 0).header("upload-metadata", long)).await;
        assert_eq!(answer.status().as_u16(), 431);
        let some = format!("name{number} {}", "YWFh".repeat(1_000));
        let path = created(creation(&server, 0).header("upload-metadata", &some)).await;
        let answer = send(request(&server, "HEAD", &path)).await;
        assert_eq!(answer.headers()["upload-metadata"], some);
    }
    let more = server.memory().saturating_sub(before);
    assert!(more < 16 << 20, "{more} bytes more");
}

/// Regardless of its other headers.
#[tokio::test]
async fn a_creation_is_one() {
    let server = start(&["--quota", "1000"]);
    let request = creation(&server, 900).header("upload-offset", 0);
    let answer = send(request).await;
    if answer.status() == StatusCode::CREATED {
        assert_eq!(used(&server).await, 900);
    } else {
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        assert_eq!(used(&server).await, 0);
    }
}

/// A late length is announced once, even if the part that brings it breaks off.
#[tokio::test]
async fn a_late_length_outlives_its_part() {
    let server = start(&["--quota", "1000", "--expire-after", "1"]);
    let defer = request(&server, "POST", "/files").header("upload-defer-length", 1);
    let path = created(defer).await;
    let framing = "content-length: 900\r\nupload-length: 900";
    let mut stream = begin_framed(&server, &path, 0, framing).await;
    stream.write_all(&[1; 300]).await.unwrap();
    eventually("that it is stored", || grown(&server) == 300).await;
    drop(stream);
    let answer = send(request(&server, "HEAD", &path)).await;
    assert_eq!(number(&answer, "upload-length"), 900);
    assert_eq!(number(&answer, "upload-offset"), 300);
    assert_eq!(append(&server, &path, 300, &[2; 600]).await, 900);
    // It is charged, and not only held.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(used(&server).await, 900);
}

/// The answer to the last part may get lost, and the client may send the part again.
#[tokio::test]
async fn a_complete_upload_is_not_charged_again() {
    let server = start(&["--quota", "1000"]);
    let defer = request(&server, "POST", "/files").header("upload-defer-length", 1);
    let path = created(defer).await;
    assert_eq!(append(&server, &path, 0, &[1; 400]).await, 400);
    for _ in 0..2 {
        let last = part(&server, &path, 400, b"").header("upload-length", 400);
        assert_eq!(status(last).await, 204);
        until_used(&server, 400).await;
    }
}

#[test]
fn says_why_it_cannot_start() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--dir", dir.path().to_str().unwrap(), "--expire-after", "0"];
    let (said, code) = complaint("tus-upload", flags);
    assert!(said.contains("--expire-after"), "{said}");
    assert_eq!(code, Some(2));
}
