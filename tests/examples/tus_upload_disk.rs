//! A disk that is really full.

use std::fs;

use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

use super::*;

fn start_on_tmpfs(options: &str) -> Server {
    let dir = tempfile::tempdir().unwrap();
    tmpfs(dir.path(), options);
    let flags = ["--keep-free", "0", "--quota", "1GiB"];
    Server::start_in(dir, "tus-upload", &flags)
}

#[track_caller]
fn is_disk_full(refused: &Value) {
    assert_eq!(refused["reason"], "disk_full", "{refused}");
    assert!(refused.get("used").is_none(), "{refused}");
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_second_upload_is_refused_while_the_first_completes() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = start_on_tmpfs("size=16m");
            let whole = content(1, 10 * MIB);
            let first = create(&server, 10 * MIB).await;
            is_disk_full(&refusal(creation(&server, 7 * MIB)).await);
            let half = &whole[..5 << 20];
            assert_eq!(append(&server, &first, 0, half).await, 5 * MIB);
            // It has received half of its reservation, which is not counted twice.
            is_disk_full(&refusal(creation(&server, 7 * MIB)).await);
            let second = create(&server, 6 * MIB).await;
            is_disk_full(&refusal(creation(&server, 1)).await);
            for (path, from, part) in [
                (&second, 0, &content(2, 6 * MIB)[..]),
                (&first, 5 * MIB, &whole[5 << 20..]),
            ] {
                let end = from + part.len() as u64;
                assert_eq!(append(&server, path, from, part).await, end);
            }
            assert!(read(&server, &first).await == whole);
            assert!(read(&server, &second).await == content(2, 6 * MIB));
            assert_eq!(fs4::available_space(server.dir.path()).unwrap(), 0);
        });
    });
}

/// The received part of an upload in flight is already on the disk.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_large_part_on_its_way_is_counted_once() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = start_on_tmpfs("size=16m");
            let first = create(&server, 10 * MIB).await;
            let sent = content(1, 8 * MIB);
            let mut part = begin(&server, &first, 0, 10 * MIB, &sent).await;
            let second = create(&server, 6 * MIB).await;
            let half = content(2, 6 * MIB);
            assert_eq!(append(&server, &second, 0, &half).await, 6 * MIB);
            part.write_all(&content(1, 10 * MIB)[8 << 20..])
                .await
                .unwrap();
            assert_eq!(answered(&mut part).await, "HTTP/1.1 204 No Content");
            assert!(read(&server, &first).await == content(1, 10 * MIB));
        });
    });
}

/// Written by a program without a guard.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn an_upload_goes_on_when_there_is_room_again() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = start_on_tmpfs("size=16m");
            let whole = content(1, 4 * MIB);
            let path = create(&server, 4 * MIB).await;
            assert_eq!(append(&server, &path, 0, &whole[..1 << 20]).await, MIB);
            fill_but(server.dir.path(), MIB);
            is_disk_full(&refusal(part(&server, &path, MIB, &whole[1 << 20..])).await);
            let there = offset(&server, &path).await;
            assert!((MIB..=2 * MIB).contains(&there), "{there}");
            fs::remove_file(server.dir.path().join("filler")).unwrap();
            let rest = &whole[there as usize..];
            assert_eq!(append(&server, &path, there, rest).await, 4 * MIB);
            assert!(read(&server, &path).await == whole);
        });
    });
}
