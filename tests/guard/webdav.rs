//! WebDAV requests to a large tree.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::Request;
use test_support::{
    mounts::{in_runtime, tmpfs, unmount, with_own_mounts},
    service::{full, read_all},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, StorageGuardLayer,
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
