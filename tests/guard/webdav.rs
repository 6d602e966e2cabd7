//! WebDAV requests to a large tree.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use test_support::{
    mounts::{fill_but, in_runtime, tmpfs, unmount, with_own_mounts},
    service::{Incoming, full, read_all},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Reservation, StorageGuardLayer, Volume,
    dav::{Depth, Folder, Tree, Walk, WebDav},
    quota::{Limits, MemoryQuota},
};

/// How many COPYs of a large tree come at once, and of how many files.
const COPIES: usize = 200;
const FILES: usize = 40_000;

/// In a process of its own, whose threads are counted.
#[test]
#[ignore = "has mounts of its own: run by `make test`"]
fn copies_of_a_large_tree_delay_no_upload() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let disk = tmpfs(folder.path(), "size=64m");
        for place in 0..COPIES {
            let folder = disk.join(format!("all/{place}"));
            fs::create_dir_all(&folder).unwrap();
            for file in 0..FILES / COPIES {
                fs::File::create(folder.join(file.to_string())).unwrap();
            }
        }
        in_runtime(are_priced_beside_uploads(&disk));
        unmount(&disk);
    });
}

async fn are_priced_beside_uploads(disk: &Path) {
    /// Counts what is measured.
    struct Counted(Folder, Arc<AtomicUsize>);

    impl Tree for Counted {
        fn measure(
            &self,
            path: &Path,
            depth: Depth,
            walk: &Walk<'_>,
        ) -> io::Result<Option<Amount>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.measure(path, depth, walk)
        }
    }

    let measured = Arc::new(AtomicUsize::new(0));
    let tree = Counted(Folder::new(disk), Arc::clone(&measured));
    let layer = StorageGuardLayer::quota_only(MemoryQuota::new(Limits::UNLIMITED));
    let service = layer.webdav(WebDav::new(tree)).layer(service_fn(read_all));
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let send = |method: &str, path: String, to: String| {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("destination", to).body(full(0)).unwrap();
        let answer = service.clone().oneshot(request);
        tokio::spawn(async { answer.await.unwrap().status().as_u16() })
    };
    // Half of them of the whole, and half of its parts.
    let copies: Vec<_> = (0..COPIES)
        .map(|number| match number % 2 {
            0 => send("COPY", "/all".into(), format!("/copy{number}")),
            _ => send("COPY", format!("/all/{number}"), format!("/copy{number}")),
        })
        .collect();
    let mut most = 0;
    for number in 0..20 {
        let start = Instant::now();
        assert_eq!(
            send("PUT", format!("/{number}"), "/".into()).await.unwrap(),
            201
        );
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
        most = most.max(threads());
    }
    for copy in copies {
        assert_eq!(copy.await.unwrap(), 201);
        most = most.max(threads());
    }
    // Four measure, and one that has just ended may not be idle yet when the next begins.
    assert!(most <= before + 12, "{most} threads, {before} before");
    // The whole twice, each part once, and what is at each destination.
    let measured = measured.load(Ordering::Relaxed);
    assert!(measured <= 2 + COPIES / 2 + COPIES + 20, "{measured}");
}

const MIB: usize = 1 << 20;

/// A service that truncates and writes, as `File::create` does, and writes parts into files.
async fn write(folder: PathBuf, request: Request<Incoming>) -> io::Result<StatusCode> {
    let path = folder.join(request.uri().path().trim_start_matches('/'));
    let reservation = request.extensions().get::<Reservation>().cloned();
    let mut file = match request.headers().get("content-range") {
        None => File::create(path)?,
        Some(range) => {
            let mut file = File::options().write(true).open(path)?;
            let first = range.to_str().unwrap().trim_start_matches("bytes ");
            let first = first.split('-').next().unwrap().parse().unwrap();
            file.seek(SeekFrom::Start(first))?;
            file
        }
    };
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let data = frame.map_err(io::Error::other)?.into_data().unwrap();
        file.write_all(&data)?;
        reservation.as_ref().unwrap().written(data.len() as u64);
    }
    Ok(StatusCode::CREATED)
}

/// 20 MiB over 20 MiB, and a part in the middle, on a disk with 1 MiB left, while others want what is freed for a moment.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn what_is_overwritten_in_place_needs_no_room() {
    with_own_mounts(|| {
        in_runtime(async {
            for in_place in [true, false] {
                let folder = tempfile::tempdir().unwrap();
                let disk = tmpfs(&folder.path().join("disk"), "size=32m");
                fs::write(disk.join("a"), vec![1; 20 * MIB]).unwrap();
                fill_but(&disk, MIB as u64);
                are_overwritten(&disk, in_place).await;
                unmount(&disk);
            }
        });
    });
}

async fn are_overwritten(disk: &Path, in_place: bool) {
    let quota = MemoryQuota::new(Limits::bytes(20 * MIB as u64));
    quota.set_used("user", Amount::new(20 * MIB as u64, 1));
    let mut dav = WebDav::new(Folder::new(disk)).scope_by(|_, path| match path.starts_with("a") {
        true => "user",
        false => "others",
    });
    if in_place {
        dav = dav.overwrites_in_place();
    }
    let volume = Volume::builder().probe_every(Duration::from_millis(5));
    let layer = StorageGuardLayer::new(volume.open(disk).unwrap());
    let layer = layer
        .quota(quota.clone())
        .patience(Duration::from_millis(100))
        .webdav(dav);
    let folder = disk.to_owned();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        let folder = folder.clone();
        async move {
            let written = write(folder, request).await;
            let mut answer = Response::new(full(0));
            *answer.status_mut() = written.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok::<_, Infallible>(answer)
        }
    }));
    let send = |method: &str, path: &str, range: Option<&str>, content: Vec<u8>| {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(range) = range {
            request = request.header("content-range", range);
        }
        let frames = content.chunks(MIB / 4).map(bytes::Bytes::copy_from_slice);
        let length = content.len();
        let frames: Vec<_> = frames
            .map(|data| Ok(http_body::Frame::data(data)))
            .collect();
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        let request = request
            .header("content-length", length)
            .body(body.boxed_unsync());
        let answer = service.clone().oneshot(request.unwrap());
        tokio::spawn(async { answer.await.unwrap().status().as_u16() })
    };
    let whole = send("PUT", "/a", None, vec![2; 20 * MIB]);
    let others = (0..8).map(|number| send("PUT", &format!("/b{number}"), None, vec![3; 2 * MIB]));
    let others = join_all(others.collect::<Vec<_>>()).await;
    assert!(
        others.iter().all(|status| *status.as_ref().unwrap() == 507),
        "{others:?}"
    );
    let middle = "bytes 5242880-15728639/*";
    let expected = if in_place { 201 } else { 507 };
    assert_eq!(whole.await.unwrap(), expected);
    let part = send("PATCH", "/a", Some(middle), vec![4; 10 * MIB]);
    assert_eq!(part.await.unwrap(), expected);
    assert_eq!(quota.usage("user").used, Amount::new(20 * MIB as u64, 1));
    assert_eq!(quota.usage("user").held, Amount::ZERO);
    let stored = fs::read(disk.join("a")).unwrap();
    let (edge, inside) = if in_place { (2, 4) } else { (1, 1) };
    assert!(
        stored[..5 * MIB]
            .iter()
            .chain(&stored[15 * MIB..])
            .all(|byte| *byte == edge)
    );
    assert!(stored[5 * MIB..15 * MIB].iter().all(|byte| *byte == inside));
    // More than there is, at the end of the file.
    let beyond = send(
        "PATCH",
        "/a",
        Some("bytes 20971520-23068671/*"),
        vec![5; 2 * MIB],
    );
    assert_eq!(beyond.await.unwrap(), 507);
}
