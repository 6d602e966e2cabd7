//! The upload example, from the outside.

#[cfg(target_os = "linux")]
use std::time::Instant;
use std::{fs, iter, time::Duration};

use futures_util::{
    future::join_all,
    stream::{self, StreamExt},
};
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE,
    WWW_AUTHENTICATE,
};
use reqwest::{
    Body, Client, Method, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use test_support::example::Server;
#[cfg(target_os = "linux")]
use test_support::mounts::{Passed, in_runtime, with_own_mounts};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const MIB: usize = 1 << 20;
const USERS: [&str; 4] = ["--user", "ann:to:ken:1000", "--user", "bob:secret:500"];

fn start(flags: &[&str]) -> Server {
    Server::start("axum-upload", flags)
}

/// The usage of all users together, with nothing in flight.
pub(crate) async fn used(server: &Server) -> u64 {
    let is_calm = |status: &Value| status["everyone"]["held"] == 0;
    let status = server.status_when("", is_calm).await;
    status["everyone"]["used"].as_u64().unwrap()
}

pub(crate) async fn listed(server: &Server, token: &str) -> Value {
    let request = server.request(Method::GET, "/files").bearer_auth(token);
    request.send().await.unwrap().json().await.unwrap()
}

/// A browser sends a form to any site without asking it first.
#[tokio::test]
async fn forms_of_other_sites_are_not_stored() {
    let server = Server::start("axum-upload", &[]);
    let own = format!("http://{}", server.addr);
    for (name, value, status) in [
        ("origin", "https://other.example", 403),
        ("origin", "null", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-site", 403),
        ("sec-fetch-site", "same-origin", 201),
        ("origin", &own, 201),
        // Not a browser.
        ("accept", "*/*", 201),
    ] {
        let file = reqwest::multipart::Part::bytes(b"x".to_vec()).file_name("x");
        let form = reqwest::multipart::Form::new().part("file", file);
        let request = server.request(Method::POST, "/files").header(name, value);
        let answer = request.multipart(form).send().await.unwrap();
        assert_eq!(answer.status(), status, "{name}: {value}");
        let stored = usize::from(status == 201);
        assert_eq!(server.names().len(), stored, "{name}: {value}");
        server
            .request(Method::DELETE, "/files/x")
            .send()
            .await
            .unwrap();
    }
}

/// RFC 9110, section 14.5.
#[tokio::test]
async fn a_part_does_not_replace_the_whole() {
    let server = Server::start("axum-upload", &[]);
    assert_eq!(server.put("/files/a", "foobar").await.status(), 201);
    let part = server.request(Method::PUT, "/files/a");
    let part = part.header("content-range", "bytes 0-2/6");
    assert_eq!(part.body("bar").send().await.unwrap().status(), 400);
    assert_eq!(server.get("/files/a").await.text().await.unwrap(), "foobar");
}

#[tokio::test]
async fn stores_lists_reads_and_deletes() {
    let server = start(&[]);
    assert_eq!(listed(&server, "").await, json!([]));

    let answer = server.put("/files/b%20%C3%A9", "hello").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.text().await.unwrap(), "");
    let answer = server.put("/files/a", "").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let files = json!([{ "name": "a", "size": 0 }, { "name": "b é", "size": 5 }]);
    assert_eq!(listed(&server, "").await, files);

    for method in [Method::GET, Method::HEAD] {
        let request = server.request(method.clone(), "/files/b%20%C3%A9");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[CONTENT_LENGTH], "5");
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/octet-stream");
        let content = if method == Method::GET { "hello" } else { "" };
        assert_eq!(answer.text().await.unwrap(), content);
    }

    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let request = server.request(Method::DELETE, "/files/b%20%C3%A9");
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    for method in [Method::GET, Method::HEAD] {
        let request = server.request(method, "/files/b%20%C3%A9");
        let status = request.send().await.unwrap().status();
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    assert_eq!(server.names(), ["a"]);
    let request = server.request(Method::PATCH, "/files/a").body("x");
    let status = request.send().await.unwrap().status();
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(server.get("/x").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_page_needs_nothing_else() {
    let server = start(&[]);
    let answer = server.get("/").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
    let policy = answer.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    let page = answer.text().await.unwrap();
    assert!(page.contains(r#"action="/files" method="post" enctype="multipart/form-data""#));
    for outside in ["http:", "https:", "\"//", "import", "style=", "onclick"] {
        assert!(!page.contains(outside), "{outside}");
    }
    for (path, media_type) in [
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        assert!(page.contains(&format!("\"{path}\"")), "{path}");
        let answer = server.get(path).await;
        assert_eq!(answer.headers()[CONTENT_TYPE], media_type);
        assert!(!answer.text().await.unwrap().contains("@import"), "{path}");
    }
}

/// The names of files are not trusted, and the page has them in elements, in attributes and in paths.
#[tokio::test]
async fn the_page_shows_names_as_they_are() {
    let server = start(&[]);
    server
        .put("/files/%3Cb%3E%26%22%27%20%23%3F.txt", "hello")
        .await;
    assert_eq!(server.names(), ["<b>&\"' #?.txt"]);
    let page = server.get("/").await.text().await.unwrap();
    let name = "&lt;b&gt;&amp;&quot;&#39; #?.txt";
    assert!(page.contains(&format!(">{name}</a>")), "{page}");
    assert!(page.contains(&format!("title=\"{name}\"")), "{page}");
    assert!(
        page.contains(r#"href="/files/%3Cb%3E%26%22%27%20%23%3F%2Etxt""#),
        "{page}"
    );
}

/// What the form of the page does without scripts.
#[tokio::test]
async fn a_full_disk_still_deletes_by_a_form() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a b"), "hello").unwrap();
    let server = Server::start_in(dir, "axum-upload", &["--keep-free", "100%"]);
    let no_redirects = reqwest::redirect::Policy::none();
    let client = Client::builder().redirect(no_redirects).build().unwrap();
    let delete = client.post(format!("http://{}/delete/a%20b", server.addr));
    for (site, status) in [("cross-site", 403), ("same-origin", 303)] {
        let delete = delete.try_clone().unwrap().header("sec-fetch-site", site);
        assert_eq!(delete.send().await.unwrap().status(), status, "{site}");
    }
    assert!(server.names().is_empty());
    // It may have been deleted by another client meanwhile.
    assert_eq!(delete.send().await.unwrap().status(), 303);
}

#[tokio::test]
async fn a_browser_signs_in_with_a_cookie() {
    let server = start(&USERS);
    let no_redirects = reqwest::redirect::Policy::none();
    let client = Client::builder().redirect(no_redirects).build().unwrap();
    let sign_in = async |token: &str, site: &str| {
        let form = client.post(format!("http://{}/sign-in", server.addr));
        let form = form.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let form = form
            .header("sec-fetch-site", site)
            .body(format!("token={token}"));
        form.send().await.unwrap()
    };
    assert_eq!(
        sign_in("to%3Aken", "cross-site").await.status(),
        StatusCode::FORBIDDEN
    );
    let wrong = sign_in("wrong", "same-origin").await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(wrong.headers().get(SET_COOKIE).is_none());
    let signed_in = sign_in("to%3Aken", "same-origin").await;
    assert_eq!(signed_in.status(), StatusCode::SEE_OTHER);
    let cookie = signed_in.headers()[SET_COOKIE].to_str().unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");

    let get = async |path: &str, cookie: &str| {
        let request = server.request(Method::GET, path).header(COOKIE, cookie);
        request.send().await.unwrap()
    };
    for (cookie, status) in [
        (pair, 200),
        (&*format!("a=b; {pair}; c=d"), 200),
        ("", 401),
        ("a=b", 401),
        (&*format!("{pair}x"), 401),
        (&*format!("x{pair}"), 401),
    ] {
        for path in ["/files", "/room", "/status"] {
            assert_eq!(get(path, cookie).await.status(), status, "{path}: {cookie}");
        }
    }
    let page = get("/", pair).await.text().await.unwrap();
    assert!(page.contains(">ann</span>"), "{page}");
    // A header says more than a cookie.
    let request = server.request(Method::GET, "/files").header(COOKIE, pair);
    let answer = request.bearer_auth("wrong").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

/// The quota of all users together is shown where it is the one that would refuse.
#[tokio::test]
async fn the_page_shows_the_figures_that_matter() {
    let users = [
        "--user",
        "ann:a:600",
        "--user",
        "bob:b:600",
        "--quota",
        "1000",
    ];
    let server = start(&users);
    let room = async |token: &str| {
        let request = server.request(Method::GET, "/room").bearer_auth(token);
        request.send().await.unwrap().text().await.unwrap()
    };
    let put = server.request(Method::PUT, "/files/a").bearer_auth("a");
    assert!(
        put.body(vec![0; 500])
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    let anns = room("a").await;
    assert!(
        anns.contains(r#"id="user" data-of="your quota" data-left="100" data-limit="600""#),
        "{anns}"
    );
    assert!(!anns.contains("All users together"), "{anns}");
    let bobs = room("b").await;
    assert!(
        bobs.contains(r#"id="user" data-of="your quota" data-left="600" data-limit="600""#),
        "{bobs}"
    );
    assert!(
        bobs.contains(r#"id="everyone" data-of="the quota of all users together" data-left="500""#),
        "{bobs}"
    );
    assert!(!bobs.contains("ann"), "{bobs}");
}

#[tokio::test]
async fn the_status_shows_the_disk_and_the_scopes() {
    let server = start(&["--keep-free", "10MB", "--quota", "2MiB"]);
    server.put("/files/a", vec![1; 300]).await;
    let status: Value = server.get("/status").await.json().await.unwrap();
    assert_eq!(status["volume"]["headroom"], 10_000_000);
    assert!(status["volume"]["available"].as_u64() > Some(0));
    assert!(status["volume"]["claimed"].is_u64());
    assert_eq!(status["user"], Value::Null);
    let everyone = json!({ "scope": "everyone", "limit": 2 * MIB, "used": 300, "held": 0 });
    assert_eq!(status["everyone"], everyone);
}

#[tokio::test]
async fn an_overwrite_is_charged_for_its_difference() {
    let server = start(&["--quota", "1000KiB"]);
    for (size, status, charged) in [
        (800, StatusCode::CREATED, 800),
        (1000, StatusCode::NO_CONTENT, 1000),
        (1001, StatusCode::INSUFFICIENT_STORAGE, 1000),
        (10, StatusCode::NO_CONTENT, 10),
        (0, StatusCode::NO_CONTENT, 0),
        (7, StatusCode::NO_CONTENT, 7),
    ] {
        for is_chunked in [false, true] {
            // The same again: an overwrite always replaces.
            let status = match status {
                StatusCode::CREATED if is_chunked => StatusCode::NO_CONTENT,
                status => status,
            };
            let (content, charged) = (vec![b'x'; size * 1024], charged * 1024);
            let body = if is_chunked {
                chunked(content)
            } else {
                content.into()
            };
            let answer = server.put("/files/a", body).await;
            assert_eq!(answer.status(), status, "{size} {is_chunked}");
            assert_eq!(used(&server).await, charged, "{size} {is_chunked}");
            let stored = server.get("/files/a").await.bytes().await.unwrap();
            assert_eq!(stored.len() as u64, charged);
        }
    }
}

/// As the upload itself is priced, in the folder of the user who asks.
#[tokio::test]
async fn tells_beforehand_what_would_be_admitted() {
    let server = start(&USERS);
    let put = server.request(Method::PUT, "/files/a%20b");
    let put = put.bearer_auth("to:ken").body(vec![b'x'; 900]);
    assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
    for (token, name, size, status) in [
        ("to:ken", "/a%20b", 1000, 204),
        ("to:ken", "/a%20b", 1001, 507),
        ("to:ken", "/b", 100, 204),
        ("to:ken", "/b", 101, 507),
        ("to:ken", "", 101, 507),
        ("to:ken", "/.b", 1, 400),
        ("secret", "/a%20b", 500, 204),
        ("secret", "/a%20b", 501, 507),
    ] {
        for method in [Method::HEAD, Method::GET] {
            let request = server.request(method, &format!("/preflight{name}"));
            let request = request.header("upload-length", size).bearer_auth(token);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), status, "{token} {name}: {size}");
        }
    }
    let files = json!([
        { "name": "b", "size": 101 },
        { "name": "a b", "size": 950 },
        { "name": "a b", "size": 51 },
        { "name": ".b", "size": 50 },
        { "name": "c", "size": 1 },
    ]);
    assert_eq!(
        listed_beforehand(&server, "to:ken", files).await,
        ["quota_exceeded", "", "quota_exceeded", "", "quota_exceeded"]
    );
    let status = server.status_when("to:ken", |_| true).await;
    assert_eq!(status["user"]["held"], 0);

    let request = server.request(Method::POST, "/preflight");
    let request = request.header("origin", "https://other.example");
    let answer = request.bearer_auth("to:ken").body("{}").send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::FORBIDDEN);
}

/// Why each of these files would be refused. Empty if it would not be.
async fn listed_beforehand(server: &Server, token: &str, files: Value) -> Vec<String> {
    let request = server
        .request(Method::POST, "/preflight")
        .bearer_auth(token);
    let answer = request.json(&json!({ "files": files })).send().await;
    let answer: Value = answer.unwrap().json().await.unwrap();
    let files = answer["files"].as_array().unwrap().iter();
    let reason = |file: &Value| file["reason"].as_str().unwrap_or_default().to_owned();
    files.map(reason).collect()
}

#[tokio::test]
async fn the_price_of_an_overwrite_is_checked_again() {
    let server = start(&["--quota", "1000"]);
    let put = async |name, size| server.put(name, vec![0; size]).await.status();
    assert_eq!(put("/files/a", 900).await, StatusCode::CREATED);
    // Admitted for its difference, which is zero.
    let mut stream = begin_upload_of(&server, "a", 900, 0).await;
    // Now it is no longer an overwrite, and there is no room for another file.
    let delete = server.request(Method::DELETE, "/files/a");
    assert_eq!(
        delete.send().await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(put("/files/b", 200).await, StatusCode::CREATED);
    stream.write_all(&[0; 450]).await.unwrap();
    let line = status_line(&mut stream).await;
    assert_eq!(line, "HTTP/1.1 507 Insufficient Storage");
    assert_eq!(used(&server).await, 200);
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), ["b"]);
}

#[tokio::test]
async fn a_delete_gives_back() {
    let server = start(&["--quota", "1000"]);
    let put = async |name| server.put(name, vec![0; 600]).await.status();
    assert_eq!(put("/files/a").await, StatusCode::CREATED);
    assert_eq!(put("/files/b").await, StatusCode::INSUFFICIENT_STORAGE);
    let delete = server.request(Method::DELETE, "/files/a");
    assert_eq!(
        delete.send().await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(used(&server).await, 0);
    assert_eq!(put("/files/b").await, StatusCode::CREATED);
}

/// All operations on the same three names at once: the usage matches the files at the end.
#[tokio::test]
async fn the_count_stays_right_under_contention() {
    let server = start(&[]);
    let work = (0..120_usize).map(|i| {
        let path = format!("/files/{}", i % 3);
        let server = &server;
        async move {
            let content = vec![0; i * 997 % 70_000];
            match i % 5 {
                0 => {
                    let delete = server.request(Method::DELETE, &path);
                    assert!(delete.send().await.unwrap().status().as_u16() < 500);
                }
                1 => assert!(
                    server
                        .put(&path, chunked(content))
                        .await
                        .status()
                        .is_success()
                ),
                2 => {
                    let parts = [("f", "0", content.clone()), ("g", "1", content)];
                    let answer = post(server, form(parts), "*/*").await;
                    assert_eq!(answer.status(), StatusCode::CREATED);
                }
                _ => assert!(server.put(&path, content).await.status().is_success()),
            }
        }
    });
    stream::iter(work)
        .buffer_unordered(16)
        .collect::<()>()
        .await;
    let files = listed(&server, "").await;
    let sizes = files.as_array().unwrap().iter();
    let total = sizes
        .map(|file| file["size"].as_u64().unwrap())
        .sum::<u64>();
    assert_eq!(used(&server).await, total);
    assert_eq!(server.names().len(), files.as_array().unwrap().len());
}

#[tokio::test]
async fn says_why_there_is_no_room() {
    let server = start(&["--quota", "1000"]);
    server.put("/files/a", vec![0; 600]).await;
    let answer = server.put("/files/b", vec![0; 600]).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
    assert_eq!(
        answer.text().await.unwrap(),
        concat!(
            r#"{"error":"Insufficient Storage","message":"Storage quota exceeded","#,
            r#""reason":"quota_exceeded","resource":"bytes","temporary":true,"#,
            r#""limit":1000,"used":600,"required":600}"#
        )
    );
    assert_eq!(server.names(), ["a"]);
}

#[tokio::test]
async fn a_full_disk_still_serves_reads_and_deletes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "hello").unwrap();
    let server = Server::start_in(dir, "axum-upload", &["--keep-free", "100%"]);
    let answer = server.put("/files/b", "x").await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    let refusal: Value = answer.json().await.unwrap();
    assert_eq!(refusal["reason"], "disk_full");
    let files = json!([{ "name": "a", "size": 5 }, { "name": "b", "size": 1 }]);
    assert_eq!(
        listed_beforehand(&server, "", files).await,
        ["disk_full", "disk_full"]
    );
    assert_eq!(
        listed(&server, "").await,
        json!([{ "name": "a", "size": 5 }])
    );
    for (method, status) in [
        (Method::HEAD, StatusCode::OK),
        (Method::GET, StatusCode::OK),
        (Method::DELETE, StatusCode::NO_CONTENT),
    ] {
        let request = server.request(method, "/files/a");
        assert_eq!(request.send().await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn users_have_folders_and_limits_of_their_own() {
    let server = start(&[&USERS[..], &["--quota", "1200"]].concat());
    let put = async |token, name, size| {
        let request = server.request(Method::PUT, name).bearer_auth(token);
        request.body(vec![b'x'; size]).send().await.unwrap()
    };
    assert_eq!(
        put("to:ken", "/files/a", 900).await.status(),
        StatusCode::CREATED
    );
    // Too much for ann, for all users together, and for bob.
    for (token, size, figures) in [
        ("to:ken", 101, (1000, 900, 101)),
        ("secret", 301, (1200, 900, 301)),
        ("secret", 501, (500, 0, 501)),
    ] {
        let answer = put(token, "/files/b", size).await;
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
        let refusal: Value = answer.json().await.unwrap();
        let number = |name: &str| refusal[name].as_u64().unwrap();
        assert_eq!(
            (number("limit"), number("used"), number("required")),
            figures
        );
    }
    assert_eq!(
        put("secret", "/files/a", 300).await.status(),
        StatusCode::CREATED
    );

    assert_eq!(
        listed(&server, "to:ken").await,
        json!([{ "name": "a", "size": 900 }])
    );
    assert_eq!(
        listed(&server, "secret").await,
        json!([{ "name": "a", "size": 300 }])
    );
    let status = server.status_when("secret", |_| true).await;
    let bob = json!({ "scope": "user:bob", "limit": 500, "used": 300, "held": 0 });
    assert_eq!(status["user"], bob);
    assert_eq!(status["everyone"]["used"], 1200);

    let delete = server
        .request(Method::DELETE, "/files/a")
        .bearer_auth("to:ken");
    assert_eq!(
        delete.send().await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    let status = server.status_when("to:ken", |_| true).await;
    assert_eq!(status["user"]["used"], 0);
    assert_eq!(status["everyone"]["used"], 300);
    assert_eq!(server.names(), ["ann", "bob"]);
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let server = start(&USERS);
    for (method, path) in [
        (Method::GET, "/files"),
        (Method::POST, "/files"),
        (Method::GET, "/files/a"),
        (Method::HEAD, "/files/a"),
        (Method::PUT, "/files/a"),
        // Far too large: authentication is checked first. It is also checked before invalid names.
        (Method::PUT, "/files/.b"),
        (Method::DELETE, "/files/a"),
        (Method::POST, "/delete/a"),
        (Method::GET, "/preflight/a"),
        (Method::POST, "/preflight"),
        (Method::GET, "/room"),
        (Method::GET, "/status"),
    ] {
        for authorization in [
            None,
            Some("Bearer wrong"),
            Some("Bearer "),
            Some("Basic to:ken"),
        ] {
            let mut request = server.request(method.clone(), path);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            if matches!(method, Method::PUT | Method::POST) {
                request = request.body(vec![0; 2000]);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_eq!(answer.headers()[WWW_AUTHENTICATE], "Bearer");
        }
    }
    // The page to sign in with, which has no figures.
    let page = server.get("/").await;
    assert_eq!(page.status(), StatusCode::OK);
    let page = page.text().await.unwrap();
    assert!(
        page.contains("action=\"/sign-in\"") && !page.contains("iB"),
        "{page}"
    );
    let ready = server.get("/ready").await;
    assert_eq!(ready.status(), StatusCode::OK);
    assert_eq!(ready.text().await.unwrap(), "ready");
}

/// The folder is passed through by a process that is stopped meanwhile.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts a filesystem, and needs bindfs: run by `make test`"]
fn a_disk_that_hangs_costs_few_threads_and_no_answer() {
    with_own_mounts(|| {
        let mounted = tempfile::tempdir().unwrap();
        let disk = Passed::through(mounted.path());
        in_runtime(async {
            let server = Server::start_in(mounted, "axum-upload", &[]);
            uploads_are_answered(&server, &disk).await;
        });
    });
}

#[cfg(target_os = "linux")]
async fn uploads_are_answered(server: &Server, disk: &Passed) {
    const MANY: usize = 600;
    let put = async |number: usize| {
        let start = Instant::now();
        let answer = server.put(&format!("/files/{number}"), "content").await;
        (answer.status().as_u16(), start.elapsed())
    };
    assert_eq!(put(0).await.0, 201);
    let before = server.threads();
    let stopped = disk.stop();
    // Half of them while it is not known yet.
    for half in [0..MANY / 2, MANY / 2..MANY] {
        for (status, took) in join_all(half.map(put)).await {
            assert_eq!(status, 503);
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        let files = json!([{ "name": "0", "size": 1 }, { "name": "1", "size": 1 }]);
        assert_eq!(
            listed_beforehand(server, "", files).await,
            ["capacity_unknown", "capacity_unknown"]
        );
        let threads = server.threads();
        assert!(threads <= before + 2, "{threads} of {before}");
    }
    until(async || server.get("/ready").await.status() == 503).await;
    drop(stopped);
    until(async || put(0).await.0 == 204).await;
}

#[cfg(target_os = "linux")]
async fn until(is_so: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
async fn names_cannot_lead_elsewhere() {
    let server = start(&[]);
    let long = "x".repeat(256);
    let wide = "%C3%A9".repeat(128);
    let names = [
        "",
        ".",
        "..",
        ".hidden",
        "%2Ehidden",
        "%2e%2e",
        "..%2Fa",
        "%2e%2e%2fa",
        "a%2Fb",
        "a%2F",
        "%2Fetc",
        "a/b",
        "a/",
        "a/../b",
        "//a",
        "a%00",
        "%00",
        "%FF",
        &long,
        &wide,
    ];
    for name in names {
        for method in ["PUT", "GET", "HEAD", "DELETE"] {
            // A client library would normalise the path.
            let head = format!(
                "{method} /files/{name} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let mut stream = TcpStream::connect(&server.addr).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            assert_eq!(
                status_line(&mut stream).await,
                "HTTP/1.1 400 Bad Request",
                "{method} {name}"
            );
        }
    }
    for name in ["../a", ".a", "a/b", ""] {
        let answer = post(&server, form([("f", name, vec![1])]), "*/*").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{name}");
    }
    let answer = server
        .put(&format!("/files/{}", "x".repeat(255)), "x")
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let answer = server.put("/files/a..b~%25%5C", "x").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(server.names().len(), 2);
    assert_eq!(used(&server).await, 2);
}

#[cfg(unix)]
#[tokio::test]
async fn links_and_folders_are_no_files() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "secret").unwrap();
    let server = start(&[]);
    std::os::unix::fs::symlink(outside.path(), server.dir.path().join("link")).unwrap();
    fs::create_dir(server.dir.path().join("folder")).unwrap();
    for path in ["/files/link", "/files/folder"] {
        assert_eq!(server.put(path, "x").await.status(), StatusCode::CONFLICT);
        assert_eq!(server.get(path).await.status(), StatusCode::NOT_FOUND);
        let delete = server.request(Method::DELETE, path).send().await.unwrap();
        assert_eq!(delete.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "secret");
    assert_eq!(listed(&server, "").await, json!([]));
    assert_eq!(server.names(), ["folder", "link"]);
    assert_eq!(used(&server).await, 0);
}

#[tokio::test]
async fn an_interrupted_upload_leaves_nothing() {
    let server = start(&[]);
    let mut stream = begin_upload(&server, "a").await;
    assert_eq!(server.names().len(), 1, "the temporary file");
    assert_eq!(listed(&server, "").await, json!([]));
    // Instead of closing properly.
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(used(&server).await, 0);
    server.until_nothing_is_left_behind().await;

    // The same without Content-Length.
    let half = stream::iter([Ok(vec![0; MIB]), Err(std::io::Error::other("cut"))]);
    let request = server.request(Method::PUT, "/files/a");
    assert!(request.body(Body::wrap_stream(half)).send().await.is_err());
    assert_eq!(used(&server).await, 0);
    server.until_nothing_is_left_behind().await;
}

#[tokio::test]
async fn a_form_stores_all_of_its_files_or_none() {
    let server = start(&["--quota", "1000"]);
    let answer = post(
        &server,
        form([("f", "a", vec![1; 100]), ("f", "b", vec![2; 200])]),
        "*/*",
    )
    .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let files = json!([{ "name": "a", "size": 100 }, { "name": "b", "size": 200 }]);
    assert_eq!(answer.json::<Value>().await.unwrap(), files);
    assert_eq!(listed(&server, "").await, files);
    // The stored bytes, without the form around them.
    assert_eq!(used(&server).await, 300);

    // The last of two files with one name stays, and the earlier content is given back.
    let twice = form([("f", "a", vec![3; 50]), ("f", "a", vec![4; 60])]);
    let answer = post(&server, twice, "*/*").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(used(&server).await, 260);
    let stored = server.get("/files/a").await.bytes().await.unwrap();
    assert_eq!(stored, vec![4; 60]);

    let no_room = form([("f", "c", vec![1; 10]), ("f", "d", vec![2; 740])]);
    let answer = post(&server, no_room, "*/*").await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    let bad_name = form([("f", "c", vec![1; 10]), ("f", "..", vec![2; 10])]);
    let answer = post(&server, bad_name, "*/*").await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let no_file = Form::new().text("f", "a");
    let answer = post(&server, no_file, "*/*").await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(used(&server).await, 260);
    assert_eq!(listed(&server, "").await.as_array().unwrap().len(), 2);
    server.until_nothing_is_left_behind().await;
}

#[tokio::test]
async fn a_browser_is_redirected_to_the_page() {
    let server = start(&["--quota", "1000"]);
    let accept = "text/html,application/xhtml+xml,*/*;q=0.8";
    let answer = post(&server, form([("f", "a", vec![1; 100])]), accept).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(answer.headers()[LOCATION], "/");
    assert_eq!(used(&server).await, 100);
    let answer = post(&server, form([("f", "b", vec![1; 1000])]), accept).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(answer.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
    let page = answer.text().await.unwrap();
    assert!(
        page.contains("1.2 KiB more are needed, and 900 B of 1000 B are left."),
        "{page}"
    );
    assert!(page.contains("href=\"/\""), "{page}");
    let answer = post(&server, form([("f", ".c", vec![1; 10])]), accept).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let page = answer.text().await.unwrap();
    assert!(
        page.contains("<p class=\"why\">A name must have "),
        "{page}"
    );
    assert!(page.contains("href=\"/\""), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_uploads_the_eight_that_fit_are_stored() {
    for is_chunked in [false, true] {
        let server = start(&["--quota", "32MiB"]);
        let stored = stampede(&server, &[""], is_chunked).await;
        assert_eq!(stored, 8, "chunked: {is_chunked}");
        assert_eq!(used(&server).await, 32 * MIB as u64);
        server.until_nothing_is_left_behind().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_uploads_by_two_users_those_that_fit_are_stored() {
    let users = [
        "--user",
        "ann:a:16MiB",
        "--user",
        "bob:b:16MiB",
        "--quota",
        "24MiB",
    ];
    for is_chunked in [false, true] {
        let server = start(&users);
        let stored = stampede(&server, &["a", "b"], is_chunked).await;
        if !is_chunked {
            assert_eq!(stored, 6);
        }
        let mut own = 0;
        for token in ["a", "b"] {
            let is_calm =
                |status: &Value| status["user"]["held"] == 0 && status["everyone"]["held"] == 0;
            let status = server.status_when(token, is_calm).await;
            assert_eq!(status["everyone"]["used"], stored * 4 * MIB);
            let used = status["user"]["used"].as_u64().unwrap() as usize;
            assert!(used <= 16 * MIB);
            own += used;
        }
        assert_eq!(own, stored * 4 * MIB);
    }
}

/// The quotas are in SQLite on the disk that the files are on, and nothing is kept free: room for the quotas' own files is set aside
/// first.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_stampede_on_the_disk_that_the_quotas_are_on() {
    use test_support::mounts::{in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        in_runtime(async {
            for is_chunked in [true, false] {
                let dir = tempfile::tempdir().unwrap();
                // Eight files of 4 MiB, the journal, the quotas and their log: a ninth does not fit.
                tmpfs(dir.path(), "size=38m");
                let flags = [
                    "--keep-free",
                    "0",
                    "--quota",
                    "1GiB",
                    "--quota-store",
                    "sqlite:",
                ];
                let server = Server::start_in(dir, "axum-upload", &flags);
                let stored = stampede_for(&server, &[""], is_chunked, "disk_full").await;
                assert_eq!(stored, 8, "chunked: {is_chunked}");
                server.until_nothing_is_left_behind().await;
            }
        });
    });
}

/// Sixteen uploads of 4 MiB at once. Returns how many were acknowledged, which are all that are stored.
async fn stampede(server: &Server, tokens: &[&str], is_chunked: bool) -> usize {
    stampede_for(server, tokens, is_chunked, "quota_exceeded").await
}

async fn stampede_for(server: &Server, tokens: &[&str], is_chunked: bool, reason: &str) -> usize {
    let uploads = (0..16_usize).map(|i| async move {
        let (token, content) = (tokens[i % tokens.len()], vec![i as u8; 4 * MIB]);
        let path = format!("/files/{i:02}");
        let body = if is_chunked {
            chunked(content)
        } else {
            content.into()
        };
        let request = server.request(Method::PUT, &path).bearer_auth(token);
        let answer = request.body(body).send().await.unwrap();
        let status = answer.status();
        if status == StatusCode::CREATED {
            let request = server.request(Method::GET, &path).bearer_auth(token);
            let stored = request.send().await.unwrap().bytes().await.unwrap();
            assert!(stored == vec![i as u8; 4 * MIB], "{i} is torn");
            return true;
        }
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
        let refusal: Value = answer.json().await.unwrap();
        assert_eq!(refusal["reason"], reason);
        false
    });
    let stored = join_all(uploads)
        .await
        .into_iter()
        .filter(|stored| *stored)
        .count();
    let mut files = Vec::new();
    for token in tokens {
        files.extend(listed(server, token).await.as_array().unwrap().clone());
    }
    assert_eq!(files.len(), stored);
    assert!(files.iter().all(|file| file["size"] == 4 * MIB));
    stored
}

#[cfg(unix)]
#[tokio::test]
async fn finishes_what_is_in_flight_before_it_ends() {
    let server = start(&[]);
    let mut stream = begin_upload(&server, "a").await;
    server.terminate();
    // It accepts no new connections.
    while TcpStream::connect(&server.addr).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stream.write_all(&vec![0; MIB / 2]).await.unwrap();
    assert_eq!(status_line(&mut stream).await, "HTTP/1.1 201 Created");
    let (status, dir) = server.ended().await;
    assert_eq!(status.code(), Some(0));
    let size = fs::metadata(dir.path().join("a")).unwrap().len();
    assert_eq!(size, MIB as u64);
}

#[tokio::test]
async fn a_restart_counts_the_existing_files() {
    let flags = ["--quota", "1000", "--quota-store", "memory:"];
    let server = start(&flags);
    server.put("/files/a", vec![0; 700]).await;
    let stream = begin_upload_of(&server, "b", 200, 200).await;
    // Killed in the middle of an upload.
    let dir = server.killed();
    drop(stream);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);

    let server = Server::start_in(dir, "axum-upload", &flags);
    assert_eq!(server.names(), ["a"]);
    assert_eq!(used(&server).await, 700);
    let answer = server.put("/files/b", vec![0; 301]).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
}

#[tokio::test]
async fn users_are_counted_each_and_together() {
    let dir = tempfile::tempdir().unwrap();
    for (user, size) in [("ann", 100), ("bob", 20)] {
        fs::create_dir(dir.path().join(user)).unwrap();
        fs::write(dir.path().join(user).join("a"), vec![0; size]).unwrap();
        fs::write(dir.path().join(user).join(".upload-1-1"), "torn").unwrap();
    }
    let server = Server::start_in(dir, "axum-upload", &USERS);
    let status = server.status_when("secret", |_| true).await;
    assert_eq!(status["user"]["used"], 20);
    assert_eq!(status["everyone"]["used"], 120);
    for user in ["ann", "bob"] {
        assert_eq!(
            fs::read_dir(server.dir.path().join(user)).unwrap().count(),
            1
        );
    }
}

/// Sends the head and the first half of an upload, and returns once it is in flight.
async fn begin_upload(server: &Server, name: &str) -> TcpStream {
    begin_upload_of(server, name, MIB, MIB).await
}

pub(crate) async fn begin_upload_of(
    server: &Server,
    name: &str,
    size: usize,
    held: usize,
) -> TcpStream {
    let mut stream = TcpStream::connect(&server.addr).await.unwrap();
    let head = format!("PUT /files/{name} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![0; size / 2]).await.unwrap();
    let is_held = |status: &Value| status["everyone"]["held"] == held;
    server.status_when("", is_held).await;
    // The hold comes first, then the temporary file.
    server.until_received(size as u64 / 2).await;
    stream
}

pub(crate) async fn status_line(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') {
        if stream.read_buf(&mut answer).await.unwrap() == 0 {
            break;
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// A body whose length is not announced.
fn chunked(content: Vec<u8>) -> Body {
    let chunks: Vec<_> = content.chunks(64 << 10).map(<[u8]>::to_vec).collect();
    Body::wrap_stream(stream::iter(
        chunks.into_iter().map(Ok::<_, std::io::Error>),
    ))
}

fn form<const N: usize>(files: [(&'static str, &str, Vec<u8>); N]) -> Form {
    iter::empty()
        .chain(files)
        .fold(Form::new(), |form, (field, name, content)| {
            form.part(field, Part::bytes(content).file_name(name.to_owned()))
        })
}

async fn post(server: &Server, form: Form, accept: &str) -> reqwest::Response {
    let no_redirects = reqwest::redirect::Policy::none();
    let client = Client::builder().redirect(no_redirects).build().unwrap();
    let request = client.post(format!("http://{}/files", server.addr));
    let request = request.header(ACCEPT, accept).multipart(form);
    request.send().await.unwrap()
}
