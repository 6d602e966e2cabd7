//! The documents example, from the outside.

use std::{fs::File, io::Read};

use reqwest::{Method, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::Value;
use test_support::example::{Server, complaint};

fn start(flags: &[&str]) -> Server {
    Server::start("documents", flags)
}

/// A document that no database can compress.
fn document() -> String {
    let mut random = [0; 16 << 10];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut random)
        .unwrap();
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digits}\"")
}

async fn delete(server: &Server, path: &str) -> StatusCode {
    let request = server.request(Method::DELETE, path);
    request.send().await.unwrap().status()
}

async fn reason(answer: Response) -> Value {
    let content: Value = answer.json().await.unwrap();
    content["reason"].clone()
}

/// Writes until it is refused, and returns how many were written.
async fn fill(server: &Server) -> usize {
    for count in 0..10_000 {
        let answer = server.put(&format!("/documents/{count}"), document()).await;
        if answer.status() != StatusCode::CREATED {
            assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
            assert_eq!(reason(answer).await, "database_full");
            return count;
        }
    }
    panic!("it does not become full");
}

/// Fills the database, reads all of it, and deletes all of it.
async fn reads_and_deletes_go_on_when_it_is_full(server: &Server) {
    let count = fill(server).await;
    assert!(count > 10, "{count}");
    for path in (0..count).map(|n| format!("/documents/{n}")) {
        assert_eq!(server.get(&path).await.status(), StatusCode::OK);
        assert_eq!(delete(server, &path).await, StatusCode::NO_CONTENT);
        assert_eq!(server.get(&path).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn stores_reads_replaces_and_deletes() {
    let server = start(&[]);
    let path = "/documents/a%20%C3%A9";
    assert_eq!(server.get(path).await.status(), StatusCode::NOT_FOUND);
    for (content, expected) in [
        ("{\"n\": 1}", StatusCode::CREATED),
        ("[2]", StatusCode::NO_CONTENT),
    ] {
        assert_eq!(server.put(path, content).await.status(), expected);
        let answer = server.get(path).await;
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(answer.text().await.unwrap(), content);
    }
    assert_eq!(delete(&server, path).await, StatusCode::NO_CONTENT);
    assert_eq!(delete(&server, path).await, StatusCode::NOT_FOUND);
}

/// RFC 9110, section 14.5.
#[tokio::test]
async fn a_part_does_not_replace_the_whole() {
    let server = start(&[]);
    let path = "/documents/a";
    assert_eq!(
        server.put(path, "[1, 2]").await.status(),
        StatusCode::CREATED
    );
    let part = server.request(Method::PUT, path);
    let part = part.header("content-range", "bytes 0-2/6");
    let status = part.body("[3]").send().await.unwrap().status();
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(server.get(path).await.text().await.unwrap(), "[1, 2]");
}

#[tokio::test]
async fn an_invalid_document_is_a_client_error() {
    let server = start(&[]);
    let long = format!("/documents/{}", "a".repeat(256));
    for (path, content) in [
        ("/documents/a", "{"),
        ("/documents/a", ""),
        ("/documents/%00", "1"),
        (&*long, "1"),
    ] {
        let status = server.put(path, content).await.status();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
    }
}

#[tokio::test]
async fn a_full_sqlite_database() {
    let server = start(&["--max-size", "1MiB"]);
    reads_and_deletes_go_on_when_it_is_full(&server).await;
    // SQLite reuses the room at once.
    assert!(fill(&server).await > 10);
}

/// The disk of SQLite: writes leave room for removals, of which a program without a guard may take a part.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn documents_are_removed_when_the_disk_of_sqlite_is_full() {
    use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        in_runtime(async {
            let dir = tempfile::tempdir().unwrap();
            tmpfs(dir.path(), "size=24m");
            let server = Server::start_in(dir, "documents", &["--keep-free", "12MiB"]);
            let mut count = 0;
            let reason = loop {
                let answer = server.put(&format!("/documents/{count}"), document()).await;
                if answer.status() != StatusCode::CREATED {
                    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
                    break reason(answer).await;
                }
                count += 1;
            };
            assert_eq!(reason, "disk_full");
            assert!(count > 100, "{count}");
            for path in (0..count / 2).map(|n| format!("/documents/{n}")) {
                assert_eq!(delete(&server, &path).await, StatusCode::NO_CONTENT);
            }
            // Another program takes most of the headroom.
            fill_but(server.dir.path(), 5 << 20);
            for path in (count / 2..count).map(|n| format!("/documents/{n}")) {
                assert_eq!(delete(&server, &path).await, StatusCode::NO_CONTENT);
                assert_eq!(server.get(&path).await.status(), StatusCode::NOT_FOUND);
            }
        });
    });
}

#[test]
fn the_size_of_an_external_database_cannot_be_limited() {
    let (said, code) = complaint(
        "documents",
        [
            "--database-url",
            "postgres://localhost",
            "--max-size",
            "1MiB",
        ],
    );
    assert!(said.contains("cannot be used with"), "{said}");
    assert_eq!(code, Some(2));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "runs PostgreSQL, mounts filesystems: run by `make test`"]
fn a_full_postgres_database() {
    use test_support::{
        mounts::{in_runtime, with_own_mounts},
        postgres,
    };

    with_own_mounts(|| {
        in_runtime(async {
            let database = postgres::Server::new();
            database.add_small_tablespace("2m").await;
            database
                .execute("ALTER ROLE guard SET default_tablespace = small")
                .await;
            let server = start(&["--database-url", &database.url()]);
            reads_and_deletes_go_on_when_it_is_full(&server).await;
        });
    });
}
