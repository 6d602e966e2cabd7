//! The small examples of the root package, from the outside.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use futures_util::{future::join_all, stream};
use reqwest::{
    Body, Client, Method, RequestBuilder, StatusCode,
    multipart::{Form, Part},
};
use serde_json::Value;
use tempfile::TempDir;
use test_support::{eventually, example::path_of};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::axum_upload::status_line;

const MIB: usize = 1 << 20;

/// A running example, with a folder of its own. Killed when dropped.
struct Small {
    child: Child,
    /// `127.0.0.1:PORT`
    addr: String,
    client: Client,
    dir: TempDir,
}

impl Small {
    fn start(example: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), example)
    }

    fn start_in(dir: TempDir, example: &str) -> Self {
        let mut child = Command::new(path_of(&format!("examples/{example}")))
            .arg("127.0.0.1:0")
            .arg(dir.path())
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        // There is no line if the server cannot start: its error is on stderr then.
        BufReader::new(out).read_line(&mut line).unwrap();
        let addr = line.trim_end().strip_prefix("listening on http://");
        Self {
            addr: addr.expect("the server says where it listens").to_owned(),
            child,
            client: Client::new(),
            dir,
        }
    }

    /// Kills it, and leaves its folder.
    fn killed(mut self) -> TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.addr);
        self.client.request(method, url)
    }

    async fn put(&self, path: &str, content: impl Into<Body>) -> StatusCode {
        let request = self.request(Method::PUT, path).body(content);
        request.send().await.unwrap().status()
    }

    async fn put_as(&self, user: &str, path: &str, content: impl Into<Body>) -> StatusCode {
        let request = self.request(Method::PUT, path).header("x-user", user);
        request.body(content).send().await.unwrap().status()
    }

    async fn post(&self, path: &str, files: &[(&'static str, &'static str)]) -> StatusCode {
        let form = files.iter().fold(Form::new(), |form, (name, content)| {
            form.part("file", Part::text(*content).file_name(*name))
        });
        let request = self.request(Method::POST, path).multipart(form);
        request.send().await.unwrap().status()
    }

    /// Declares a body that is larger than any disk, and returns the status line of the response.
    async fn declare_too_much(&self, method: Method, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.addr).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\n\
             host: {}\r\n\
             content-type: multipart/form-data; boundary=x\r\n\
             content-length: {}\r\n\r\n",
            self.addr,
            1_u64 << 60,
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        status_line(&mut stream).await
    }

    fn uploads(&self) -> PathBuf {
        self.dir.path().join("uploads")
    }

    /// The names of everything in the folder of uploads, hidden or not.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.uploads()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.uploads().join(name)).unwrap()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Content that differs from part to part.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

#[tokio::test]
async fn disks_are_guarded_with_and_without_a_framework() {
    for example in ["minimal", "hyper"] {
        let server = Small::start(example);
        let large = content(3 * MIB);
        let status = server.put("/files/a", large.clone()).await;
        assert_eq!(status, StatusCode::CREATED, "{example}");
        assert_eq!(server.put("/files/b", "").await, StatusCode::CREATED);
        assert_eq!(server.put("/files/b", "new").await, StatusCode::CREATED);

        for path in ["/files/c", "/files/a"] {
            let line = server.declare_too_much(Method::PUT, path).await;
            assert_eq!(line, "HTTP/1.1 507 Insufficient Storage", "{example}");
        }
        assert_eq!(server.names(), ["a", "b"], "{example}");
        assert!(server.read("a") == large, "{example}");
        assert_eq!(server.read("b"), b"new", "{example}");
    }
}

/// RFC 9110, section 14.5.
#[tokio::test]
async fn a_part_does_not_replace_the_whole() {
    for example in ["minimal", "hyper", "quota"] {
        let server = Small::start(example);
        assert_eq!(
            server.put_as("ann", "/files/a", "foobar").await,
            201,
            "{example}"
        );
        let part = server.request(Method::PUT, "/files/a");
        let part = part
            .header("x-user", "ann")
            .header("content-range", "bytes 0-2/6");
        assert_eq!(
            part.body("bar").send().await.unwrap().status(),
            400,
            "{example}"
        );
        let name = server.names().pop().unwrap();
        assert_eq!(server.read(&name), b"foobar", "{example}");
    }
}

#[tokio::test]
async fn names_do_not_lead_out_of_the_folder() {
    for example in ["minimal", "hyper", "quota"] {
        let server = Small::start(example);
        for name in [".a", "..%2Fa", ".%2Fa"] {
            let status = server.put_as("ann", &format!("/files/{name}"), "x").await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{example} {name}");
        }
        for name in ["a%2Fb", "a%5Cb", "%2Fa"] {
            let status = server.put_as("ann", &format!("/files/{name}"), "x").await;
            // hyper does not decode paths: an encoded slash is a part of the name.
            let expected = match example {
                "hyper" => StatusCode::CREATED,
                _ => StatusCode::BAD_REQUEST,
            };
            assert_eq!(status, expected, "{example} {name}");
        }
        let expected = match example {
            "hyper" => vec!["%2Fa", "a%2Fb", "a%5Cb"],
            _ => vec![],
        };
        assert_eq!(server.names(), expected, "{example}");
        assert_eq!(fs::read_dir(server.dir.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_quota_is_used_to_its_last_byte() {
    let server = Small::start("quota");
    let put = async |path, size| server.put_as("ann", path, content(size)).await;
    assert_eq!(
        put("/files/a", MIB + 1).await,
        StatusCode::INSUFFICIENT_STORAGE
    );
    assert_eq!(put("/files/a", 600_000).await, StatusCode::CREATED);
    let rest = MIB - 600_000;
    assert_eq!(
        put("/files/b", rest + 1).await,
        StatusCode::INSUFFICIENT_STORAGE
    );
    assert_eq!(put("/files/b", rest).await, StatusCode::CREATED);

    // The quota is full: only an overwrite by the same size is admitted.
    assert_eq!(put("/files/b", rest).await, StatusCode::CREATED);
    assert_eq!(
        put("/files/b", rest + 1).await,
        StatusCode::INSUFFICIENT_STORAGE
    );
    assert_eq!(put("/files/c", 1).await, StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(server.names(), ["ann~a", "ann~b"]);
    assert!(server.read("ann~b") == content(rest));

    // Each user has a quota, and files, of their own.
    let status = server.put_as("bob", "/files/a", "hello").await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(server.read("bob~a"), b"hello");

    assert_eq!(put("/files/a", 1).await, StatusCode::CREATED);
    let left = MIB - rest - 1;
    assert_eq!(
        put("/files/d", left + 1).await,
        StatusCode::INSUFFICIENT_STORAGE
    );
    assert_eq!(put("/files/d", left).await, StatusCode::CREATED);
    for user in ["", "../bob", "a~b"] {
        let status = server.put_as(user, "/files/c", "x").await;
        let expected = if user.is_empty() {
            StatusCode::CREATED
        } else {
            StatusCode::BAD_REQUEST
        };
        assert_eq!(status, expected, "{user}");
    }
    assert_eq!(server.put("/files/c", "x").await, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn usage_is_what_is_there() {
    let server = Small::start("quota");
    let stored = |server: &Small| -> u64 {
        let sizes = server.names().into_iter().map(|name| server.read(&name));
        sizes.map(|content| content.len() as u64).sum()
    };
    // All at once, on the same three names. The quota has room for all of them.
    let puts = (0..60_usize).map(|i| {
        let path = format!("/files/{}", i % 3);
        let server = &server;
        async move { server.put_as("ann", &path, content(i * 199)).await }
    });
    for status in join_all(puts).await {
        assert_eq!(status, StatusCode::CREATED);
    }
    assert_eq!(server.names(), ["ann~0", "ann~1", "ann~2"]);

    // A new process counts the files.
    let server = Small::start_in(server.killed(), "quota");
    assert!(stored(&server) > 0);
    let left = MIB - stored(&server) as usize;
    let too_much = server.put_as("ann", "/files/3", content(left + 1)).await;
    assert_eq!(too_much, StatusCode::INSUFFICIENT_STORAGE);
    let exact = server.put_as("ann", "/files/3", content(left)).await;
    assert_eq!(exact, StatusCode::CREATED);
}

#[tokio::test]
async fn a_form_is_stored_whole_or_not_at_all() {
    let server = Small::start("multipart");
    let files = [("a", "hello"), ("b c.txt", ""), ("d", "world")];
    assert_eq!(server.post("/forms/1", &files).await, StatusCode::CREATED);
    let line = server.declare_too_much(Method::POST, "/forms/2").await;
    assert_eq!(line, "HTTP/1.1 507 Insufficient Storage");
    for bad in [".x", "../x", "a/b", "a\\b", "a", ""] {
        let files = [("a", "hello"), (bad, "world")];
        let status = server.post("/forms/2", &files).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let status = server.post("/forms/..%2Fx", &files).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        server.post("/forms/1", &[("a", "other")]).await,
        StatusCode::CONFLICT
    );

    // A page of another site may not store through a user's browser.
    for (name, value) in [
        ("origin", "https://other.example"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let form = Form::new().part("file", Part::bytes(b"x".as_slice()).file_name("x"));
        let request = server.request(Method::POST, "/forms/3").header(name, value);
        let answer = request.multipart(form).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{name}");
    }

    assert_eq!(server.names(), ["1"]);
    assert_eq!(fs::read_dir(server.uploads().join("1")).unwrap().count(), 3);
    for (name, content) in files {
        assert_eq!(server.read(&format!("1/{name}")), content.as_bytes());
    }
    // Above axum's default limit.
    let large = content(3 * MIB);
    let part = Part::bytes(large.clone()).file_name("large");
    let request = server.request(Method::POST, "/forms/2");
    let answer = request.multipart(Form::new().part("file", part)).send();
    assert_eq!(answer.await.unwrap().status(), StatusCode::CREATED);
    assert!(server.read("2/large") == large);
}

#[tokio::test]
async fn a_source_of_its_own_limits_all_together() {
    let server = Small::start("own_quota_source");
    let put = async |id: u32, size| server.put(&format!("/{id}"), content(size)).await;
    assert_eq!(put(1, MIB + 1).await, StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(put(1, MIB - 10).await, StatusCode::OK);
    // A refusal takes nothing.
    for _ in 0..2 {
        assert_eq!(put(2, 11).await, StatusCode::INSUFFICIENT_STORAGE);
    }
    assert_eq!(put(2, 10).await, StatusCode::OK);
    assert_eq!(put(3, 1).await, StatusCode::INSUFFICIENT_STORAGE);
    // Zero always fits.
    assert_eq!(put(3, 0).await, StatusCode::OK);
    let at = |name| fs::read(server.dir.path().join(name)).unwrap();
    assert!(at("1") == content(MIB - 10));
    assert!(at("2") == content(10));
}

#[tokio::test]
async fn a_job_and_uploads_share_the_volume() {
    let server = Small::start("background_job");
    let reports = || {
        let entries = fs::read_dir(server.dir.path()).unwrap();
        let sizes = entries.map(|entry| entry.unwrap().metadata().unwrap().len());
        sizes.sum::<u64>()
    };
    // The job writes until there is no room for another report.
    eventually("reports", || reports() == MIB as u64).await;
    assert_eq!(
        server.put("/.x", "x").await,
        StatusCode::INSUFFICIENT_STORAGE
    );
    assert_eq!(
        server.put("/x", "x").await,
        StatusCode::INSUFFICIENT_STORAGE
    );
    assert_eq!(server.put("/x", "").await, StatusCode::CREATED);
    assert_eq!(server.put("/.x", "").await, StatusCode::BAD_REQUEST);
    assert_eq!(reports(), MIB as u64);
}

#[tokio::test]
async fn without_a_layer_a_refusal_has_the_same_body() {
    let server = Small::start("without_tower");
    assert_eq!(
        server.put("/", content(MIB - 10)).await,
        StatusCode::CREATED
    );
    for is_chunked in [false, true] {
        let content = content(11);
        let content = match is_chunked {
            true => Body::wrap_stream(stream::iter([Ok::<_, std::io::Error>(content)])),
            false => content.into(),
        };
        let request = server.request(Method::PUT, "/").body(content);
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::INSUFFICIENT_STORAGE);
        let said: Value = refused.json().await.unwrap();
        assert_eq!(said["reason"], "quota_exceeded", "{said}");
    }
    assert_eq!(server.put("/", content(10)).await, StatusCode::CREATED);
}

/// What is free in the database of the example `sqlite`, in pages.
fn free_pages(server: &Small) -> u64 {
    let database = rusqlite::Connection::open(server.dir.path().join("items.db")).unwrap();
    let count = |name| {
        let count = database.pragma_query_value(None, name, |row| row.get::<_, u32>(0));
        u64::from(count.unwrap())
    };
    256 - count("page_count") + count("freelist_count")
}

#[tokio::test]
async fn a_database_is_filled_to_its_last_page() {
    let server = Small::start("sqlite");
    let item = content(60_000);
    let put = async |number: u32| {
        let path = format!("/items/{number}");
        server.put(&path, item.clone()).await
    };
    let mut stored = 0;
    while put(stored).await == StatusCode::CREATED {
        stored += 1;
    }
    // An item takes 15 pages, and four are reserved for the trees.
    let free = free_pages(&server);
    assert!(stored >= 14 && free <= 18, "{stored} stored, {free} free");

    // It is refused at the door, with the guard's reason and not with that of SQLite, before any of it is sent.
    let refused = server.request(Method::PUT, "/items/x").body(item.clone());
    let said: Value = refused.send().await.unwrap().json().await.unwrap();
    assert_eq!(said["reason"], "disk_full", "{said}");
    let line = server.declare_too_much(Method::PUT, "/items/x").await;
    assert_eq!(line, "HTTP/1.1 507 Insufficient Storage");
    // What is small enough still fits.
    let pages = free.saturating_sub(4) as usize;
    assert_eq!(
        server.put("/items/small", content(pages * 4000)).await,
        StatusCode::CREATED
    );

    // The file does not become smaller, but its free pages count.
    for number in [0, 1] {
        let removed = server.request(Method::DELETE, &format!("/items/{number}"));
        assert_eq!(
            removed.send().await.unwrap().status(),
            StatusCode::NO_CONTENT
        );
    }
    assert_eq!(put(0).await, StatusCode::CREATED);
    for number in (2..stored).chain([0]) {
        let path = format!("/items/{number}");
        let kept = server.request(Method::GET, &path).send().await.unwrap();
        assert!(kept.bytes().await.unwrap() == item, "{path}");
    }
}

/// The disk is smaller than the database may be.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_database_on_a_full_disk() {
    use test_support::mounts::{in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=1536k");
            let server = Small::start_in(tempfile::tempdir_in(disk).unwrap(), "sqlite");
            let item = content(60_000);
            let put = async |number: u32| {
                let request = server.request(Method::PUT, &format!("/items/{number}"));
                request.body(item.clone()).send().await.unwrap()
            };
            let mut stored = 0;
            let refused = loop {
                let answer = put(stored).await;
                if answer.status() != StatusCode::CREATED {
                    break answer;
                }
                stored += 1;
            };
            assert!((6..14).contains(&stored), "{stored} stored");
            let said: Value = refused.json().await.unwrap();
            assert_eq!(said["reason"], "disk_full", "{said}");
            for number in 0..stored {
                let path = format!("/items/{number}");
                let kept = server.request(Method::GET, &path).send().await.unwrap();
                assert!(kept.bytes().await.unwrap() == item, "{path}");
                let removed = server.request(Method::DELETE, &path).send().await;
                assert_eq!(removed.unwrap().status(), StatusCode::NO_CONTENT, "{path}");
            }
        });
    });
}

/// The command in each file's docs names the file, and the features that it needs.
#[test]
fn their_docs_say_how_to_run_them() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let manifest = fs::read_to_string(format!("{root}/Cargo.toml")).unwrap();
    let mut examples = 0;
    for file in fs::read_dir(format!("{root}/examples")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let entry = format!("[[example]]\nname = \"{name}\"\nrequired-features = [\"");
        let features = match manifest.split_once(&entry) {
            Some((_, rest)) => format!("--features {} ", rest.split('"').next().unwrap()),
            None => String::new(),
        };
        let command = format!("cargo run {features}--example {name}");
        let docs = fs::read_to_string(&path).unwrap();
        let says = |line: &str| {
            line.trim_start_matches("//! ")
                .replace('`', "")
                .starts_with(&command)
        };
        assert!(docs.lines().any(says), "{name}: {command}");
        examples += 1;
    }
    assert!(examples >= 7, "{examples}");
}
