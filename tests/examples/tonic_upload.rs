//! The gRPC example, from the outside.

use std::fs;

use futures_util::{future::join_all, stream};
use test_support::{
    example::Server,
    uploads::{Uploads, chunk, name, nothing},
};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

const MIB: usize = 1 << 20;
/// The size of one of many uploads. A few of these with their framing are not a whole number of MiB.
const LARGE: usize = 4 * MIB - (64 << 10);
const KIB: usize = 1 << 10;
const USERS: [&str; 4] = [
    "--user",
    "ann:to:ken:1000KiB",
    "--user",
    "bob:secret:500KiB",
];

fn start(flags: &[&str]) -> (Server, Uploads) {
    start_in(tempfile::tempdir().unwrap(), flags)
}

fn start_in(dir: tempfile::TempDir, flags: &[&str]) -> (Server, Uploads) {
    let server = Server::start_in(dir, "tonic-upload", flags);
    let client = Uploads::new(&server);
    (server, client)
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Content that is different at every position.
fn content(size: usize) -> Vec<u8> {
    (0..size as u32).map(|i| (i ^ i >> 8) as u8).collect()
}

#[tokio::test]
async fn stores_reads_and_deletes() {
    let (server, client) = start(&[]);
    for size in [0, 5, 64 << 10, (64 << 10) + 1, 3 * MIB] {
        let content = content(size);
        for is_small in [false, true] {
            let stored = if is_small {
                client.put_small("b é", content.clone()).await
            } else {
                client.put("b é", content.clone()).await
            };
            assert_eq!(stored.unwrap(), size as u64);
            let pieces = client.get_pieces("b é").await.unwrap();
            assert!(pieces.iter().all(|piece| piece.len() <= 64 << 10));
            assert_eq!(pieces.len(), size.div_ceil(64 << 10));
            assert!(pieces.concat() == content, "{size}");
        }
    }
    client.put("a", "").await.unwrap();
    assert_eq!(server.names(), ["a", "b é"]);
    client.until_used(1 << 30, 3 * MIB as u64).await;

    client.delete("b é").await.unwrap();
    assert_eq!(code(client.delete("b é").await), Code::NotFound);
    assert_eq!(code(client.get("b é").await), Code::NotFound);
    assert_eq!(server.names(), ["a"]);
    client.until_used(1 << 30, 0).await;
}

#[tokio::test]
async fn the_name_comes_first_and_once() {
    let (server, client) = start(&["--quota", "1000"]);
    for (parts, message) in [
        (vec![], "the name comes first"),
        (vec![nothing()], "the name comes first"),
        (vec![chunk("a"), name("a")], "the name comes first"),
        (vec![name("a"), name("a")], "there is one name"),
        (vec![name("a"), chunk("a"), name("b")], "there is one name"),
        (
            vec![name("a"), chunk("a"), nothing()],
            "there is nothing in a message",
        ),
        (
            vec![name("../a"), chunk("a")],
            "a name must have 1 to 255 bytes and no slash, and not begin with a dot",
        ),
    ] {
        let status = client.put_parts(stream::iter(parts)).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, message)
        );
    }
    // Empty, but it exists.
    let parts = [name("a"), chunk(""), chunk("x"), chunk("")];
    assert_eq!(client.put_parts(stream::iter(parts)).await.unwrap(), 1);
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), ["a"]);
    client.until_used(1000, 1).await;
}

#[tokio::test]
async fn names_cannot_lead_elsewhere() {
    let (server, client) = start(&[]);
    let (long, wide) = ("x".repeat(256), "é".repeat(128));
    for name in [
        "", ".", "..", ".hidden", "../a", "a/b", "a/", "a/../b", "/etc", "a\0", &long, &wide,
    ] {
        for code in [
            code(client.put(name, "x").await),
            code(client.put_small(name, "x").await),
            code(client.get(name).await),
            code(client.delete(name).await),
        ] {
            assert_eq!(code, Code::InvalidArgument, "{name:?}");
        }
    }
    client.put("a..b~%\\", "x").await.unwrap();
    client.put(&"x".repeat(255), "x").await.unwrap();
    assert_eq!(server.names().len(), 2);
}

#[cfg(unix)]
#[tokio::test]
async fn links_and_folders_are_no_files() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "secret").unwrap();
    let (server, client) = start(&[]);
    std::os::unix::fs::symlink(outside.path(), server.dir.path().join("link")).unwrap();
    fs::create_dir(server.dir.path().join("folder")).unwrap();
    for name in ["link", "folder"] {
        let put = client.put(name, "x").await;
        assert_eq!(code(put), Code::FailedPrecondition);
        let put = client.put_small(name, "x").await;
        assert_eq!(code(put), Code::FailedPrecondition);
        assert_eq!(code(client.get(name).await), Code::NotFound);
        assert_eq!(code(client.delete(name).await), Code::NotFound);
    }
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "secret");
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), ["folder", "link"]);
    client.until_used(1 << 30, 0).await;
}

#[tokio::test]
async fn a_message_has_a_limit() {
    let (server, client) = start(&[]);
    let small = client.put_small("a", content(4 * MIB)).await;
    assert_eq!(code(small), Code::OutOfRange);
    let parts = [name("a"), chunk(content(4 * MIB))];
    let large = client.put_parts(stream::iter(parts)).await;
    assert_eq!(code(large), Code::OutOfRange);
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), [""; 0]);
    client.until_used(1 << 30, 0).await;
}

#[tokio::test]
async fn strangers_are_turned_away() {
    // There is no room at all, and unauthenticated clients do not learn that.
    let (server, client) = start(&[&USERS[..], &["--keep-free", "100%"]].concat());
    for authorization in [
        None,
        Some("Bearer wrong"),
        Some("Bearer "),
        Some("Basic to:ken"),
        Some("to:ken"),
    ] {
        let client = client.authorized(authorization.map(ToOwned::to_owned));
        for status in [
            client.put(".a", content(2 * MIB)).await.unwrap_err(),
            client.put_small(".a", content(2 * MIB)).await.unwrap_err(),
            client.get(".a").await.unwrap_err(),
            client.delete(".a").await.unwrap_err(),
        ] {
            assert_eq!(
                (status.code(), status.message()),
                (Code::Unauthenticated, "who are you?")
            );
        }
    }
    assert_eq!(server.names(), ["ann", "bob"]);
    let bob = client.authorized(Some("bearer secret".to_owned()));
    assert_eq!(code(bob.put("a", "x").await), Code::ResourceExhausted);
    assert_eq!(code(bob.get("a").await), Code::NotFound);

    // Load balancers may ask whether uploads are accepted.
    let channel = Channel::from_shared(format!("http://{}", server.addr)).unwrap();
    let mut health = HealthClient::new(channel.connect_lazy());
    for (service, serving) in [
        ("", ServingStatus::Serving),
        ("upload.v1.Uploads", ServingStatus::NotServing),
    ] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), serving, "{service:?}");
    }
}

#[tokio::test]
async fn users_have_folders_and_limits_of_their_own() {
    let (server, client) = start(&[&USERS[..], &["--quota", "1450KiB"]].concat());
    let (ann, bob) = (client.bearing("to:ken"), client.bearing("secret"));
    let is_too_much = async |client: &Uploads, size: usize, scope: &str| {
        for refused in [
            client.put("b", content(size * KIB)).await.unwrap_err(),
            client
                .put_small("b", content(size * KIB))
                .await
                .unwrap_err(),
        ] {
            assert_eq!(refused.code(), Code::ResourceExhausted, "{scope}");
            assert_eq!(refused.message(), "Storage quota exceeded");
            let quota = refused.get_details_quota_failure().unwrap();
            assert_eq!(quota.violations[0].subject, scope);
        }
    };
    ann.put("a", content(900 * KIB)).await.unwrap();
    is_too_much(&ann, 101, "user:ann").await;
    is_too_much(&bob, 501, "user:bob").await;
    assert_eq!(code(bob.get("a").await), Code::NotFound);
    assert_eq!(code(bob.delete("a").await), Code::NotFound);
    bob.put("a", content(480 * KIB)).await.unwrap();
    is_too_much(&ann, 80, "everyone").await;

    assert!(ann.get("a").await.unwrap() == content(900 * KIB));
    assert!(bob.get("a").await.unwrap() == content(480 * KIB));
    let (all_of_ann, all_of_bob) = (1000 << 10, 500 << 10);
    ann.until_used(all_of_ann, 900 << 10).await;
    bob.until_used(all_of_bob, 480 << 10).await;
    ann.delete("a").await.unwrap();
    ann.until_used(all_of_ann, 0).await;
    bob.until_used(all_of_bob, 480 << 10).await;
    assert_eq!(server.names(), ["ann", "bob"]);
}

#[tokio::test]
async fn a_refused_upload_leaves_nothing() {
    let (server, client) = start(&["--quota", "1MiB"]);
    let limit = MIB as u64;
    client.put("a", content(MIB / 2)).await.unwrap();
    for is_small in [false, true] {
        // Much too large, and too large in addition to the other.
        for size in [3 * MIB, MIB / 2] {
            let refused = if is_small {
                client.put_small("b", content(size)).await
            } else {
                client.put("b", content(size)).await
            };
            assert_eq!(code(refused), Code::ResourceExhausted, "{is_small} {size}");
            server.until_nothing_is_left_behind().await;
            assert_eq!(server.names(), ["a"]);
            client.until_used(limit, limit / 2).await;
        }
    }
    client.put("b", content(MIB / 4)).await.unwrap();
    client.put_small("c", content(MIB / 8)).await.unwrap();
    client.until_used(limit, limit / 8 * 7).await;
}

/// The name is unknown at admission: its frame has to fit. From then on, the difference counts.
#[tokio::test]
async fn an_overwrite_is_charged_for_its_difference() {
    let (server, client) = start(&["--quota", "1000KiB"]);
    let limit = 1000 << 10;
    for (size, result, charged) in [
        (800, Code::Ok, 800),
        // In addition to the existing file, none of these has room.
        (980, Code::Ok, 980),
        (980, Code::Ok, 980),
        (1000, Code::ResourceExhausted, 980),
        (10, Code::Ok, 10),
        (0, Code::Ok, 0),
        (7, Code::Ok, 7),
    ] {
        let put = client.put("a", content(size * KIB)).await;
        assert_eq!(code(put), result, "{size}");
        assert!(client.get("a").await.unwrap() == content(charged * KIB));
        client.until_used(limit, (charged * KIB) as u64).await;
    }
    // A message is received completely before its name is known.
    client.put_small("a", content(600 * KIB)).await.unwrap();
    let put = client.put_small("a", content(600 * KIB)).await;
    assert_eq!(code(put), Code::ResourceExhausted);
    client.put_small("a", content(300 * KIB)).await.unwrap();
    client.until_used(limit, 300 << 10).await;
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), ["a"]);
}

#[tokio::test]
async fn a_full_quota_still_serves_reads_and_deletes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), content(1000)).unwrap();
    let (server, client) = start_in(dir, &["--quota", "1000"]);
    for put in [
        client.put("a", content(1000)).await,
        client.put_small("a", content(1000)).await,
        client.put("b", "").await,
    ] {
        assert_eq!(code(put), Code::ResourceExhausted);
    }
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), ["a"]);
    assert_eq!(client.get("a").await.unwrap(), content(1000));
    client.delete("a").await.unwrap();
    client.put("a", content(900)).await.unwrap();
    client.until_used(1000, 900).await;
}

#[tokio::test]
async fn a_full_disk_still_serves_reads_and_deletes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "hello").unwrap();
    let (server, client) = start_in(dir, &["--keep-free", "100%"]);
    for refused in [
        client.put("b", "x").await.unwrap_err(),
        client.put_small("b", "x").await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let info = refused.get_details_error_info().unwrap();
        assert_eq!(info.reason, "DISK_FULL");
    }
    assert_eq!(client.get("a").await.unwrap(), b"hello");
    client.delete("a").await.unwrap();
    assert_eq!(server.names(), [""; 0]);
}

#[tokio::test]
async fn the_price_of_an_overwrite_is_checked_again() {
    let (server, client) = start(&["--quota", "1000KiB"]);
    let limit = 1000 << 10;
    client.put("a", content(900 * KIB)).await.unwrap();
    // It continues with the difference as its price.
    let upload = client.begin();
    assert!(upload.send("a", content(900 * KIB)).await);
    server.until_received(900 << 10).await;
    // Now it is no longer an overwrite, and there is no room for another file.
    client.delete("a").await.unwrap();
    client.put("b", content(200 * KIB)).await.unwrap();
    assert_eq!(code(upload.end().await), Code::ResourceExhausted);
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), ["b"]);
    client.until_used(limit, 200 << 10).await;
}

#[tokio::test]
async fn an_interrupted_upload_leaves_nothing() {
    let (server, client) = start(&["--quota", "1MiB"]);
    for is_connection in [false, true] {
        for half in [0, MIB / 2] {
            let uploads = Uploads::new(&server);
            let upload = uploads.begin();
            // Complete messages, so that it resembles an end.
            assert!(upload.send("a", content(half)).await);
            server.until_received(half as u64).await;
            if is_connection {
                drop(uploads);
            }
            drop(upload);
            server.until_nothing_is_left_behind().await;
            client.until_used(MIB as u64, 0).await;
            assert_eq!(server.names(), [""; 0]);
        }
    }
    client.put("a", content(MIB / 10 * 9)).await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn finishes_what_is_in_flight_before_it_ends() {
    let (server, client) = start(&[]);
    let upload = client.begin();
    assert!(upload.send("a", content(MIB / 2)).await);
    server.until_received(MIB as u64 / 2).await;
    server.terminate();
    // It accepts no new connections.
    while tokio::net::TcpStream::connect(&server.addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(upload.send_more(content(MIB / 2)).await);
    assert_eq!(upload.end().await.unwrap(), MIB as u64);
    let (status, dir) = server.ended().await;
    assert_eq!(status.code(), Some(0));
    let size = fs::metadata(dir.path().join("a")).unwrap().len();
    assert_eq!(size, MIB as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_uploads_the_eight_that_fit_are_stored() {
    let (server, client) = start(&["--quota", "32MiB"]);
    let stored = stampede(&server, "QUOTA_EXCEEDED").await;
    assert_eq!(stored, 8);
    client.until_used(32 << 20, (8 * LARGE) as u64).await;
}

/// Sixteen uploads at once, each over a connection of its own. Returns how many were acknowledged, which are all that
/// are stored.
async fn stampede(server: &Server, reason: &str) -> usize {
    let uploads = (0..16_u8).map(|i| async move {
        let (client, name) = (Uploads::new(server), format!("{i:02}"));
        match client.put(&name, vec![i; LARGE]).await {
            Ok(stored) => {
                assert_eq!(stored, LARGE as u64);
                let there = client.get(&name).await.unwrap();
                assert!(there == vec![i; LARGE], "{i} is torn");
                Some(name)
            }
            Err(refused) => {
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
                let info = refused.get_details_error_info().unwrap();
                assert_eq!(info.reason, reason);
                None
            }
        }
    });
    let stored = join_all(uploads).await;
    let stored: Vec<_> = stored.into_iter().flatten().collect();
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), stored);
    stored.len()
}

#[cfg(target_os = "linux")]
mod on_a_tmpfs {
    use super::*;
    use test_support::mounts::{fill_but, in_runtime, run, tmpfs, with_own_mounts};

    fn start_on_tmpfs(options: &str, quota: &str) -> (Server, Uploads) {
        let dir = tempfile::tempdir().unwrap();
        tmpfs(dir.path(), options);
        // The whole disk is available to uploads.
        let flags = ["--keep-free", "0", "--quota-store", "memory:"];
        start_in(dir, &[&flags[..], &["--quota", quota]].concat())
    }

    #[test]
    #[ignore = "mounts filesystems: run by `make test`"]
    fn a_disk_that_fills_up() {
        with_own_mounts(|| {
            in_runtime(async {
                let (server, client) = start_on_tmpfs("size=32m", "48MiB");
                client.put("a", content(MIB)).await.unwrap();
                let upload = client.begin();
                assert!(upload.send("b", content(MIB)).await);
                server.until_received(MIB as u64).await;
                // Written by a program without a guard.
                fill_but(server.dir.path(), MIB as u64);
                // It may be refused before all of this is sent.
                upload.send_more(content(4 * MIB)).await;
                let refused = upload.end().await.unwrap_err();
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
                let info = refused.get_details_error_info().unwrap();
                assert_eq!(info.reason, "DISK_FULL");
                server.until_nothing_is_left_behind().await;
                assert_eq!(server.names(), ["a", "filler"]);

                fs::remove_file(server.dir.path().join("filler")).unwrap();
                fill_but(server.dir.path(), 0);
                for put in [
                    client.put("b", content(MIB)).await,
                    client.put_small("b", content(MIB)).await,
                ] {
                    assert_eq!(code(put), Code::ResourceExhausted);
                }
                server.until_nothing_is_left_behind().await;
                assert!(client.get("a").await.unwrap() == content(MIB));
                client.delete("a").await.unwrap();
                client.put("b", content(MIB / 2)).await.unwrap();
                assert_eq!(server.names(), ["b", "filler"]);
            });
        });
    }

    #[test]
    #[ignore = "mounts filesystems: run by `make test`"]
    fn a_stampede_of_streams() {
        with_own_mounts(|| {
            in_runtime(async {
                let (server, client) = start_on_tmpfs("size=32m", "48MiB");
                let stored = stampede(&server, "DISK_FULL").await;
                println!("whole files: {stored}");
                // On a busy machine, one or two uploads too many may be refused now and then.
                assert!((6..=8).contains(&stored), "{stored}");

                // The ledger is as before: one after the other, those that fit are admitted.
                let mut all = stored;
                while client
                    .put(&format!("more {all}"), content(LARGE))
                    .await
                    .is_ok()
                {
                    all += 1;
                }
                assert_eq!(all, 8);
                server.until_nothing_is_left_behind().await;
                assert_eq!(server.names().len(), 8);

                // So is the quota. An upload that the disk would hold shows that.
                let remount = ["-o", "remount,size=128m"].map(std::path::Path::new);
                run("mount", remount.into_iter().chain([server.dir.path()]));
                client.until_used(48 << 20, (8 * LARGE) as u64).await;
            });
        });
    }
}
