//! The upload examples, whose quotas outlive the process.

use std::{fs, path::Path, time::Duration};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::{eventually, example::Server, uploads::Uploads};
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    axum_upload::{begin_upload_of, listed, status_line, used},
    quota_admin,
};

/// With an SQLite file beside the uploads, unless the flags name another store.
fn start_in(dir: TempDir, flags: &[&str]) -> Server {
    let has_store = flags.contains(&"--quota-store");
    let default: &[&str] = if has_store { &[] } else { &SQLITE };
    Server::start_in(dir, "axum-upload", &[default, flags].concat())
}

const SQLITE: [&str; 2] = ["--quota-store", "sqlite:"];

/// The path of that file.
fn beside(dir: &Path) -> String {
    format!("sqlite:{}", dir.join(".quotas.db").display())
}

/// Puts a file of this many bytes, and returns the status.
async fn put(server: &Server, name: &str, size: usize) -> StatusCode {
    let answer = server.put(&format!("/files/{name}"), vec![0; size]).await;
    answer.status()
}

async fn delete(server: &Server, name: &str) {
    let delete = server.request(Method::DELETE, &format!("/files/{name}"));
    let answer = delete.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

async fn is_refused_at(server: &Server, limit: u64, used: u64) {
    let room = limit - used;
    let answer = server.put("/files/x", vec![0; room as usize + 1]).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    let refusal: Value = answer.json().await.unwrap();
    let figures = ["limit", "used", "required"].map(|name| refusal[name].as_u64().unwrap());
    assert_eq!(figures, [limit, used, room + 1]);
    assert_eq!(put(server, "x", room as usize).await, StatusCode::CREATED);
    delete(server, "x").await;
    assert_eq!(self::used(server).await, used);
}

/// On any store: the flag of the server, and the tool's name for the same store.
async fn survives_a_kill(flags: &[&str], store: impl Fn(&Path) -> String) {
    let flags = &[&["--quota", "1000"], flags].concat();
    let server = start_in(tempfile::tempdir().unwrap(), flags);
    for (name, size) in [("a", 400), ("b", 200), ("gone", 100)] {
        assert_eq!(put(&server, name, size).await, StatusCode::CREATED);
    }
    // The next start does not scan.
    fs::remove_file(server.dir.path().join("gone")).unwrap();
    let dir = server.killed();
    let store = store(dir.path());

    let server = start_in(dir, flags);
    assert_eq!(used(&server).await, 700);
    is_refused_at(&server, 1000, 700).await;

    // In the middle of an upload. Its hold persists for a while, unless an operator removes it.
    let stream = begin_upload_of(&server, "c", 250, 250).await;
    let server = start_in(server.killed(), flags);
    drop(stream);
    assert_eq!(server.names(), ["a", "b"]);
    let status = server.status_when("", |_| true).await;
    assert_eq!(status["everyone"]["held"], 250);
    assert_eq!(
        put(&server, "c", 51).await,
        StatusCode::INSUFFICIENT_STORAGE
    );
    let holds = quota_admin::json(&store, &["holds", "everyone"]);
    let id = holds[0]["id"].as_str().unwrap();
    quota_admin::answer(&store, &["drop", id]);
    is_refused_at(&server, 1000, 700).await;

    // Files that are deleted by hand are corrected by a rescan while the server runs.
    let path = server.dir.path().to_str().unwrap();
    let rescan = ["rescan", "everyone", "--directory", path];
    let rescan = quota_admin::json(&store, &rescan);
    assert_eq!(rescan["certain"], true, "{rescan}");
    assert_eq!(rescan["corrected"], json!({ "bytes": -100, "objects": -1 }));
    is_refused_at(&server, 1000, 600).await;
}

#[tokio::test]
async fn usage_survives_a_kill_without_a_scan() {
    survives_a_kill(&[], beside).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs postgresql"]
async fn usage_survives_a_kill_in_postgresql() {
    let database = test_support::postgres::Server::new();
    let url = database.url();
    survives_a_kill(&["--quota-store", &url], |_| url.clone()).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server"]
async fn usage_survives_a_kill_in_redis() {
    let database = test_support::redis::Server::start();
    let url = database.url();
    survives_a_kill(&["--quota-store", &url], |_| url.clone()).await;
}

/// On any store, of which `empty` deletes everything while the server runs.
async fn an_emptied_store_is_counted_again(flags: &[&str], empty: impl AsyncFn(&Path)) {
    let flags = &[&["--quota", "1000"], flags].concat();
    let mut server = start_in(tempfile::tempdir().unwrap(), flags);
    assert_eq!(put(&server, "a", 400).await, StatusCode::CREATED);
    for times in 1..=3 {
        empty(server.dir.path()).await;
        // The first upload finds it, and none is admitted before the files are counted.
        let answer = server.put("/files/b", vec![0; 500]).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        // Not over another file: what needs no more room is admitted without the store.
        let counted = async { while !put(&server, "c", 1).await.is_success() {} };
        timeout(Duration::from_secs(10), counted).await.unwrap();
        delete(&server, "c").await;
        assert!(put(&server, "b", 200).await.is_success());
        is_refused_at(&server, 1000, 600).await;
        assert_eq!(server.names(), ["a", "b"]);
        if times == 2 {
            // While the server is stopped.
            let dir = server.killed();
            empty(dir.path()).await;
            server = start_in(dir, flags);
            is_refused_at(&server, 1000, 600).await;
        }
    }
}

#[tokio::test]
async fn a_deleted_file_of_quotas_is_counted_again() {
    an_emptied_store_is_counted_again(&[], async |dir| {
        for name in [".quotas.db", ".quotas.db-wal", ".quotas.db-shm"] {
            let _ = fs::remove_file(dir.join(name));
        }
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_flushed_redis_is_counted_again() {
    let database = test_support::redis::Server::start();
    let url = database.url();
    let flush = async |_: &Path| database.ask::<()>("FLUSHALL").await.unwrap();
    an_emptied_store_is_counted_again(&["--quota-store", &url], flush).await;
    flush(Path::new("")).await;
    an_emptied_store_is_counted_again(&["--quota-store", &url, "--quota-leases"], flush).await;
}

/// What the journal has left is of files that are counted.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_journal_for_an_emptied_store_is_not_charged_again() {
    let mut database = test_support::redis::Server::start();
    let url = database.url();
    let flags = ["--quota", "1000", "--quota-store", &url];
    let mut dir = tempfile::tempdir().unwrap();
    for times in 1..=8 {
        let server = start_in(dir, &flags);
        let mut stream = begin_upload_of(&server, "a", 400, 400).await;
        database.kill();
        stream.write_all(&[0; 200]).await.unwrap();
        assert_eq!(status_line(&mut stream).await, "HTTP/1.1 201 Created");
        dir = server.killed();
        database.start_again();
        database.ask::<()>("FLUSHALL").await.unwrap();
        let server = start_in(dir, &flags);
        is_refused_at(&server, 1000, 400).await;
        dir = server.killed();
        fs::remove_file(dir.path().join("a")).unwrap();
        database.ask::<()>("FLUSHALL").await.unwrap();
        println!("{times} of 8");
    }
}

#[tokio::test]
async fn a_new_store_counts_existing_files_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), [0; 300]).unwrap();
    let server = start_in(dir, &[]);
    assert_eq!(used(&server).await, 300);
    // The quotas' file is invisible to clients.
    assert!(server.dir.path().join(".quotas.db").exists());
    let files = listed(&server, "").await;
    assert_eq!(files, json!([{ "name": "a", "size": 300 }]));
    let file = server.get("/files/.quotas.db").await;
    assert_eq!(file.status(), StatusCode::BAD_REQUEST);

    let dir = server.killed();
    fs::write(dir.path().join("b"), [0; 500]).unwrap();
    let server = start_in(dir, &[]);
    assert_eq!(used(&server).await, 300);
    // Nor when no charged file is left.
    let delete = server.request(Method::DELETE, "/files/a").send().await;
    assert_eq!(delete.unwrap().status(), StatusCode::NO_CONTENT);
    let server = start_in(server.killed(), &[]);
    assert_eq!(used(&server).await, 0);
}

#[tokio::test]
async fn a_new_user_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    for (user, size) in [("ann", 100), ("bob", 20)] {
        fs::create_dir(dir.path().join(user)).unwrap();
        fs::write(dir.path().join(user).join("a"), vec![0; size]).unwrap();
    }
    let used = async |server: &Server, token| {
        let status = server.status_when(token, |_| true).await;
        ["user", "everyone"].map(|whose| status[whose]["used"].as_u64().unwrap())
    };
    let ann = ["--user", "ann:a:1000"];
    let server = start_in(dir, &ann);
    assert_eq!(used(&server, "a").await, [100, 100]);
    let dir = server.killed();
    fs::write(dir.path().join("ann").join("b"), [0; 7]).unwrap();
    let both = [&ann[..], &["--user", "bob:b:1000"]].concat();
    // Later files in her folder are not the start's concern.
    let server = start_in(dir, &both);
    assert_eq!(used(&server, "a").await, [100, 120]);
    let server = start_in(server.killed(), &both);
    assert_eq!(used(&server, "b").await, [20, 120]);
}

#[tokio::test]
async fn in_memory_there_is_no_file() {
    let start_in = |dir, flags: &[&str]| Server::start_in(dir, "axum-upload", flags);
    let server = start_in(tempfile::tempdir().unwrap(), &[]);
    assert_eq!(put(&server, "a", 5).await, StatusCode::CREATED);
    assert_eq!(fs::read_dir(server.dir.path()).unwrap().count(), 1);
    let server = start_in(server.killed(), &["--quota-store", "memory:"]);
    assert_eq!(used(&server).await, 5);
}

#[cfg(unix)]
#[tokio::test]
async fn the_end_waits_for_the_last_charge() {
    let server = start_in(tempfile::tempdir().unwrap(), &[]);
    let mut stream = begin_upload_of(&server, "a", 100, 100).await;
    let lock = locked(&server);
    stream.write_all(&[0; 50]).await.unwrap();
    assert_eq!(status_line(&mut stream).await, "HTTP/1.1 201 Created");
    drop(stream);
    server.terminate();
    until_it_listens_no_more(&server).await;
    lock.execute_batch("ROLLBACK").unwrap();
    let (status, dir) = server.ended().await;
    assert_eq!(status.code(), Some(0));
    let account = quota_admin::json(&beside(dir.path()), &["show", "everyone"]);
    assert_eq!(account["used"], json!({ "bytes": 100, "objects": 1 }));
    assert_eq!(account["held"]["bytes"], 0);
}

#[cfg(unix)]
#[tokio::test]
async fn the_end_does_not_wait_forever() {
    let server = start_in(tempfile::tempdir().unwrap(), &[]);
    let mut stream = begin_upload_of(&server, "a", 100, 100).await;
    let lock = locked(&server);
    stream.write_all(&[0; 50]).await.unwrap();
    assert_eq!(status_line(&mut stream).await, "HTTP/1.1 201 Created");
    drop(stream);
    server.terminate();
    let (status, _dir) = server.ended().await;
    assert_eq!(status.code(), Some(1));
    drop(lock);
}

#[tokio::test]
async fn a_grpc_server_keeps_them_too() {
    let flags = [&SQLITE[..], &["--quota", "1000"]].concat();
    let server = Server::start("tonic-upload", &flags);
    let client = Uploads::new(&server);
    client.put("a", vec![0; 400]).await.unwrap();
    client.put_small("gone", vec![0; 300]).await.unwrap();
    fs::remove_file(server.dir.path().join("gone")).unwrap();
    let server = Server::start_in(server.killed(), "tonic-upload", &flags);
    Uploads::new(&server).until_used(1000, 700).await;
    let store = beside(server.dir.path());
    let path = server.dir.path().to_str().unwrap();
    quota_admin::answer(&store, &["rescan", "everyone", "--directory", path]);
    Uploads::new(&server).until_used(1000, 400).await;
}

/// Locks the quotas' file against writes.
fn locked(server: &Server) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(server.dir.path().join(".quotas.db")).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

pub(crate) async fn until_it_listens_no_more(server: &Server) {
    let is_gone = || std::net::TcpStream::connect(&server.addr).is_err();
    eventually("no upload is admitted any more", is_gone).await;
}
