//! What `/metrics` of the upload example shows of disks that are full, hang, or are replaced.

use std::{
    fs::{self, File},
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{future::join_all, stream::unfold};
use reqwest::Body;
use test_support::{
    eventually,
    example::Server,
    mounts::{Passed, fill_but, in_runtime, tmpfs, unmount, with_own_mounts},
};
use tokio::{io::AsyncWriteExt, sync::mpsc, time::interval};

use crate::{
    axum_upload::begin_upload_of,
    metrics::{announce, scrape, until, until_so, value},
};

/// A series of the server's volume.
fn of_volume(name: &str) -> String {
    format!(r#"{name}{{volume="uploads"}}"#)
}

/// Waits until a gauge of the volume that is 0 or 1 is as expected.
async fn until_is(server: &Server, gauge: &str, expected: f64) {
    until_so(server, &of_volume(gauge), |value| value == expected).await;
}

#[test]
#[ignore = "mounts a filesystem: run by `make test`"]
fn a_disk_that_fills_up_is_shown() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let disk = tmpfs(folder.path(), "size=64m,nr_inodes=1000");
        in_runtime(async {
            let dir = tempfile::tempdir_in(&disk).unwrap();
            let flags = ["--metrics", "--keep-free", "1MiB"];
            let server = Server::start_in(dir, "axum-upload", &flags);
            let text = until(&server, &of_volume("volume_inodes"), 1_000.0).await;
            let left = value(&text, &of_volume("volume_available_inodes")).unwrap();
            assert!(left > 900.0 && left < 1_000.0, "{left}");
            requests_in_flight(&server).await;
            a_fault(&server, &disk).await;
            until_is(&server, "volume_full", 1.0).await;
            assert_eq!(server.put("/files/c", "content").await.status(), 507);
            fs::remove_file(disk.join("filler")).unwrap();
            until_is(&server, "volume_full", 0.0).await;
            assert_eq!(server.put("/files/c", "content").await.status(), 201);
        });
        unmount(&disk);
    });
}

/// One has most of the disk, and another waits until it is known whether that is still being sent.
async fn requests_in_flight(server: &Server) {
    const MOST: usize = 40 << 20;
    let mut one = begin_upload_of(server, "a", MOST, MOST).await;
    let (claimed, waiting) = (
        of_volume("volume_claimed_bytes"),
        of_volume("volume_waiting_requests"),
    );
    // What is written is not claimed any more.
    let text = until(server, &claimed, (MOST / 2) as f64).await;
    let inodes = value(&text, &of_volume("volume_claimed_inodes"));
    assert!(inodes >= Some(1.0), "{inodes:?}");
    // It is not silent, so nothing is taken back from it.
    let sending = async {
        loop {
            one.write_all(&[0; 100]).await.unwrap();
            scrape(server).await;
        }
    };
    let refused = async {
        loop {
            assert_eq!(announce(server, MOST as u64).await, "507");
        }
    };
    tokio::select! {
        _ = until(server, &waiting, 1.0) => {}
        () = async { tokio::join!(sending, refused); } => {}
    }
    drop(one);
    server
        .status_when("", |status| status["everyone"]["held"] == 0)
        .await;
    server.until_nothing_is_left_behind().await;
}

/// The disk is filled by another process while an upload is being written.
async fn a_fault(server: &Server, disk: &std::path::Path) {
    let faults = r#"faults_total{cause="disk_full",resource="bytes"}"#;
    assert_eq!(value(&scrape(server).await, faults), Some(0.0));
    let (sender, chunks) = mpsc::channel::<io::Result<Bytes>>(1);
    let chunk = Bytes::from(vec![7; 30_000]);
    let sending = async {
        sender.send(Ok(chunk.clone())).await.unwrap();
        server.until_received(30_000).await;
        // Less than the rest takes.
        fill_but(disk, 16 << 10);
        sender.send(Ok(chunk)).await.unwrap();
        drop(sender);
    };
    let next = async |mut chunks: mpsc::Receiver<_>| Some((chunks.recv().await?, chunks));
    let body = Body::wrap_stream(unfold(chunks, next));
    let (answer, ()) = tokio::join!(server.put("/files/b", body), sending);
    assert_eq!(answer.status(), 507);
    assert_eq!(value(&scrape(server).await, faults), Some(1.0));
}

/// The folder, in which the quotas' journal is too, is passed through by a process that is stopped meanwhile.
#[test]
#[ignore = "mounts a filesystem, and needs bindfs: run by `make test`"]
fn a_disk_that_hangs_or_is_replaced_is_shown() {
    with_own_mounts(|| {
        let mounted = tempfile::tempdir().unwrap();
        let at = mounted.path().to_owned();
        let passed = Passed::through(&at);
        let quotas = tempfile::tempdir().unwrap();
        let store = format!("sqlite:{}", quotas.path().join("quotas.db").display());
        in_runtime(async {
            let flags = ["--metrics", "--quota-store", &store, "--quota-leases"];
            let server = Server::start_in(mounted, "axum-upload", &flags);
            assert_eq!(server.put("/files/a", "content").await.status(), 201);
            until_is(&server, "volume_stale", 0.0).await;
            let stopped = passed.stop();
            // What it is going to do has to be in the journal first.
            let delete = server.request(reqwest::Method::DELETE, "/files/a");
            let hanging = async {
                until(&server, "journal_away", 1.0).await;
                until_is(&server, "volume_stale", 1.0).await;
                until_is(&server, "volume_moved", 0.0).await;
                drop(stopped);
            };
            let (deleted, ()) = tokio::join!(delete.send(), hanging);
            assert_eq!(deleted.unwrap().status(), 204);
            until_is(&server, "volume_stale", 0.0).await;
            until_so(&server, "journal_away", |value| value == 0.0).await;

            tmpfs(&at, "size=8m");
            until_is(&server, "volume_moved", 1.0).await;
            assert_eq!(server.put("/files/b", "content").await.status(), 503);
            unmount(&at);
            until_is(&server, "volume_moved", 0.0).await;
            eventually("an upload", || server.names().is_empty()).await;
            assert_eq!(server.put("/files/b", "content").await.status(), 201);
        });
    });
}

/// A trend needs ten readings of a quarter of a minute each.
#[test]
#[ignore = "mounts a filesystem, and takes minutes: run by `make soak`"]
fn a_disk_that_will_be_full_is_shown_which_takes_minutes() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let disk = tmpfs(folder.path(), "size=256m");
        in_runtime(async {
            let dir = tempfile::tempdir_in(&disk).unwrap();
            let server = Server::start_in(dir, "axum-upload", &["--metrics"]);
            let is_over = AtomicBool::new(false);
            let writing = async |name: &str| {
                while !is_over.load(Relaxed) {
                    let answer = server.put(name, vec![7; 20_000]).await;
                    assert!(answer.status().is_success());
                }
            };
            // Full within half an hour.
            let mut grown = File::create(disk.join("grown")).unwrap();
            let mut is_settling = false;
            let watching = async {
                let horizons = of_volume("volume_horizons_total");
                let start = Instant::now();
                let mut turns = interval(Duration::from_millis(200));
                let text = loop {
                    let text = scrape(&server).await;
                    is_settling |= value(&text, &of_volume("volume_settling_bytes")) > Some(0.0);
                    if value(&text, &horizons) == Some(2.0) {
                        break text;
                    }
                    assert!(start.elapsed() < Duration::from_secs(400), "{text}");
                    grown.write_all(&[7; 50_000]).unwrap();
                    turns.tick().await;
                };
                is_over.store(true, Relaxed);
                text
            };
            let names = ["/files/a", "/files/b", "/files/c", "/files/d"];
            let (text, _) = tokio::join!(watching, join_all(names.map(writing)));
            let time = value(&text, &of_volume("volume_time_to_full_seconds"));
            assert!(time > Some(60.0) && time < Some(3_600.0), "{time:?}");
            assert!(is_settling, "{text}");
        });
        unmount(&disk);
    });
}
