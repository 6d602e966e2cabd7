//! Disks that are really full, and stampedes on them.

use std::{
    convert::Infallible,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::put};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use test_support::{
    eventually,
    mounts::{
        fill_but, image, in_runtime, run, tmpfs, unmount, with_own_loop_mounts, with_own_mounts,
        with_small_files,
    },
    times,
};
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{MeteredBody, StorageGuardLayer, Volume, axum::Failure};

use crate::store::{Answer, Store, Upload, Way};

const MIB: u64 = 1 << 20;

fn guard(folder: impl AsRef<Path>) -> (Volume, StorageGuardLayer) {
    let volume = Volume::open(folder).unwrap();
    (volume.clone(), StorageGuardLayer::new(volume))
}

/// The answers on a full disk, at admission and from the write, and the recovery when there is room again.
async fn is_refused_until_there_is_room(
    store: &Store,
    volume: &Volume,
    resource: &str,
    makes_room: &str,
) {
    // The error alone does not name the resource: the reading does.
    volume.refresh();
    let is_seen = || {
        let status = volume.status();
        resource == "bytes" || status.inodes_available == Some(0)
    };
    eventually("the reading that shows it", is_seen).await;
    let before = store.files();
    let full = Answer::full("disk_full", resource);
    for upload in [
        Upload::new(1, 4 * MIB),
        Upload::new(1, 4 * MIB).chunked(true),
        Upload::new(1, 4 * MIB).by(Way::Unchecked),
        Upload::new(1, 4 * MIB).by(Way::Unchecked).chunked(true),
    ] {
        assert_eq!(store.put(&upload).await, full, "{upload:?}");
        assert_eq!(store.files(), before, "left by {upload:?}");
    }
    store.delete(makes_room).await;
    // xfs frees the blocks of a deleted file a little later. The guard has not read since.
    let has_room =
        || fs4::available_space(&store.folder).unwrap() > 4 * MIB || resource == "objects";
    eventually("room on the disk itself", has_room).await;
    let upload = Upload::new(2, 4 * MIB);
    assert_eq!(store.put(&upload).await, Answer::plain(201));
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_tmpfs() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=32m");
            let (volume, layer) = guard(&disk);
            let store = Store::open(&disk, layer).await;
            fill_but(&disk, MIB);
            is_refused_until_there_is_room(&store, &volume, "bytes", "filler").await;
            store.holds_exactly([&Upload::new(2, 4 * MIB)]);
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_ext4() {
    with_own_loop_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = image(folder.path(), 64, "mkfs.ext4", &["-q", "-m", "0"]);
            let (volume, layer) = guard(&disk);
            let store = Store::open(&disk, layer).await;
            fill_but(&disk, MIB);
            is_refused_until_there_is_room(&store, &volume, "bytes", "filler").await;
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_xfs() {
    with_own_loop_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            // The smallest filesystem that mkfs.xfs makes.
            let disk = image(folder.path(), 320, "mkfs.xfs", &["-q"]);
            let (volume, layer) = guard(&disk);
            let store = Store::open(&disk, layer).await;
            fill_but(&disk, MIB);
            is_refused_until_there_is_room(&store, &volume, "bytes", "filler").await;
        });
    });
}

/// Makes empty files until there are no inodes left. One is enough to make room.
fn take_all_inodes(folder: &Path) {
    for number in 0.. {
        if let Err(error) = File::create(folder.join(format!("filler-{number}"))) {
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
            return;
        }
    }
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_tmpfs_without_inodes() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=32m,nr_inodes=32");
            let (volume, layer) = guard(&disk);
            let store = Store::open(&disk, layer).await;
            take_all_inodes(&disk);
            is_refused_until_there_is_room(&store, &volume, "objects", "filler-0").await;
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn an_ext4_without_inodes() {
    with_own_loop_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = image(folder.path(), 64, "mkfs.ext4", &["-q", "-N", "64"]);
            let (volume, layer) = guard(&disk);
            let store = Store::open(&disk, layer).await;
            take_all_inodes(&disk);
            is_refused_until_there_is_room(&store, &volume, "objects", "filler-0").await;
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_btrfs_at_the_quota_of_its_subvolume() {
    with_own_loop_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = image(folder.path(), 256, "mkfs.btrfs", &["-q"]);
            let subvolume = disk.join("subvolume");
            let btrfs = |args: &[&str]| {
                let args = args.iter().map(Path::new);
                run("btrfs", args.chain([subvolume.as_path()]));
            };
            run("btrfs", [Path::new("quota"), Path::new("enable"), &disk]);
            btrfs(&["subvolume", "create"]);
            btrfs(&["qgroup", "limit", "2M"]);
            let (volume, layer) = guard(&subvolume);
            // statvfs shows the whole filesystem, so the request is admitted.
            assert!(volume.status().available > 64 * MIB);
            let store = Store::open(&subvolume, layer).await;
            for way in [Way::Guarded, Way::Unchecked] {
                for is_chunked in [false, true] {
                    let upload = Upload::new(1, 4 * MIB).by(way).chunked(is_chunked);
                    let exceeded = Answer::full("quota_exceeded", "bytes");
                    assert_eq!(store.put(&upload).await, exceeded, "{upload:?}");
                    assert_eq!(store.files(), [], "left by {upload:?}");
                }
            }
            btrfs(&["qgroup", "limit", "none"]);
            let upload = Upload::new(2, 4 * MIB);
            assert_eq!(store.put(&upload).await, Answer::plain(201));
            store.holds_exactly([&upload]);
        });
    });
}

/// statvfs on btrfs does not follow writes before the filesystem commits, which may take half a minute.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn space_stored_on_btrfs_does_not_become_free_again() {
    with_own_loop_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = image(folder.path(), 256, "mkfs.btrfs", &["-q"]);
            let (volume, layer) = guard(&disk);
            let before = volume.status().available;
            let service = layer.layer(service_fn(
                async |request: Request<MeteredBody<Full<Bytes>>>| {
                    // No fsync: the filesystem must have no reason of its own to commit.
                    std::fs::write(disk.join("file"), vec![1; 16 << 20]).unwrap();
                    read(request).await
                },
            ));
            let upload = Request::put("/").body(Full::from(vec![1; 16 << 20]));
            let answer = service.oneshot(upload.unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            eventually("settled", || {
                volume.refresh();
                volume.status().claimed == 0
            })
            .await;
            let after = volume.status().available;
            assert!(before - after >= 16 * MIB, "{before} bytes, then {after}");
        });
    });
}

/// The status and reason that a handler's error results in.
async fn answer_of<H, F>(handler: H) -> (u16, serde_json::Value)
where
    H: FnOnce(Bytes) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let (_, layer) = guard(std::env::temp_dir());
    let router = Router::new().route("/", put(handler)).layer(layer);
    let upload = Request::put("/")
        .body(Body::from(vec![0; 3 << 19]))
        .unwrap();
    let answer = router.oneshot(upload).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn dev_full() {
    async fn write(content: Bytes) -> Result<(), Failure> {
        File::create("/dev/full")?.write_all(&content)?;
        Ok(())
    }
    let (status, body) = answer_of(write).await;
    assert_eq!(
        (status, &body["reason"], &body["resource"]),
        (507, &"disk_full".into(), &"bytes".into())
    );
}

/// A file too large for this program, EFBIG, is no full disk.
#[test]
fn a_limit_of_the_program_is_not_the_disks() {
    with_small_files(|| {
        in_runtime(async {
            async fn write(content: Bytes) -> Result<(), Failure> {
                let folder = tempfile::tempdir()?;
                let written = File::create(folder.path().join("file"))?.write_all(&content);
                let error = written.unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
                Err(error.into())
            }
            let (status, body) = answer_of(write).await;
            assert_eq!((status, &body["reason"]), (413, &"file_too_large".into()));
            assert_eq!(body["temporary"], false);
        });
    });
}

/// `umount -l` works while files are open. By default, a probe that fails is waited for ten seconds.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_lazy_unmount_is_seen_by_the_next_reading() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            for has_folder_below in [true, false] {
                let mount = folder.path().join("mount");
                std::fs::create_dir_all(&mount).unwrap();
                if has_folder_below {
                    std::fs::create_dir_all(mount.join("files")).unwrap();
                } else {
                    let _ = std::fs::remove_dir(mount.join("files"));
                }
                tmpfs(&mount, "size=8m");
                let disk = mount.join("files");
                std::fs::create_dir(&disk).unwrap();
                let volume = Volume::open(&disk).unwrap();
                // The kernel may give this mount the number of the one before, which was lost.
                eventually("read again", || !volume.status().is_stale).await;
                let store = Store::open(&disk, StorageGuardLayer::new(volume.clone())).await;
                assert_eq!(store.put(&Upload::new(1, 1)).await.status, 201);
                let open = std::fs::File::create(disk.join("open")).unwrap();

                run("umount", ["-l".as_ref(), mount.as_os_str()]);
                let begun = Instant::now();
                eventually("stale", || volume.status().is_stale).await;
                let took = begun.elapsed();
                assert!(took < Duration::from_millis(1_900), "{took:?}");
                for number in 2..20 {
                    let answer = store.put(&Upload::new(number, 1)).await;
                    assert_eq!(answer.status, 503);
                }
                let below = std::fs::read_dir(&mount).unwrap();
                assert_eq!(below.count(), usize::from(has_folder_below));
                drop(open);
            }
        });
    });
}

/// The disk below has unlimited room. It is not the guarded one.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_mount_that_is_gone() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=8m");
            let volume = Volume::builder().probe_every(Duration::from_millis(20));
            let volume = volume
                .open(&disk)
                .unwrap()
                .max_age(Duration::from_millis(200));
            let store = Store::open(&disk, StorageGuardLayer::new(volume.clone())).await;
            let large = Upload::new(1, 16 * MIB);
            assert_eq!(store.put(&large).await, Answer::full("disk_full", "bytes"));

            unmount(&disk);
            eventually("stale", || volume.status().is_stale).await;
            assert!(fs4::available_space(&disk).unwrap() > 16 * MIB);
            assert_eq!(volume.status().total, 8 * MIB);
            for upload in [Upload::new(2, 1), large.clone()] {
                let answer = store.put(&upload).await;
                assert_eq!(
                    (answer.status, answer.reason.as_deref()),
                    (503, Some("capacity_unknown"))
                );
            }
            assert_eq!(store.files(), []);
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn paths_on_one_filesystem_share_a_ledger() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let [disk, bound, other] =
                ["disk", "bound", "other"].map(|name| folder.path().join(name));
            let (disk, other) = (tmpfs(&disk, "size=32m"), tmpfs(&other, "size=32m"));
            let [left, right] = ["left", "right"].map(|name| disk.join(name));
            for folder in [&left, &right, &bound] {
                std::fs::create_dir(folder).unwrap();
            }
            run("mount", [Path::new("--bind"), &right, &bound]);
            let [left, right, bound, other] = [left, right, bound, other].map(guard);

            // None of it is on the disk, so it only shows in the ledger.
            let (arriving, body) = mpsc::channel::<Result<http_body::Frame<Bytes>, Infallible>>(1);
            let body = futures_util::stream::unfold(body, async |mut body| {
                Some((body.recv().await?, body))
            });
            let request = Request::put("/").header("content-length", 24 * MIB);
            let request = request.body(StreamBody::new(Box::pin(body))).unwrap();
            let upload = tokio::spawn(left.1.layer(service_fn(read)).oneshot(request));
            eventually("in flight", || left.0.status().claimed == 24 * MIB).await;

            for same in [&right, &bound] {
                assert_eq!(same.0.status().claimed, 24 * MIB);
                assert_eq!(status_of(same, 9 * MIB).await, 507);
                assert_eq!(status_of(same, 4 * MIB).await, 200);
            }
            assert_eq!(other.0.status().claimed, 0);
            assert_eq!(status_of(&other, 32 * MIB).await, 200);

            drop(arriving);
            assert_eq!(upload.await.unwrap().unwrap().status(), 200);
        });
    });
}

async fn read<B>(request: Request<MeteredBody<B>>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: http_body::Body,
    B::Error: Into<tower_storage_guard::BoxError>,
{
    let mut body = std::pin::pin!(request.into_body());
    while body.as_mut().frame().await.is_some() {}
    Ok(Response::default())
}

async fn status_of((_, layer): &(Volume, StorageGuardLayer), bytes: u64) -> u16 {
    let request = Request::put("/")
        .header("content-length", bytes)
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = layer
        .layer(service_fn(read))
        .oneshot(request)
        .await
        .unwrap();
    answer.status().as_u16()
}

/// Sixteen uploads of 4 MiB at once, of which eight fit.
struct Stampede {
    is_chunked: bool,
    way: Way,
    /// The pauses between the pieces of each, and between their starts.
    pause: Option<Duration>,
}

impl Stampede {
    async fn run(&self, store: &Store) -> Vec<Upload> {
        let uploads = (0..16).map(|number| {
            let upload = Upload::new(number, 4 * MIB).chunked(self.is_chunked);
            let upload = upload.by(self.way);
            match self.pause {
                Some(pause) => upload.slowly(pause),
                None => upload,
            }
        });
        let answers = join_all(uploads.map(async |upload| {
            tokio::time::sleep(self.pause.unwrap_or_default() * u32::from(upload.number)).await;
            (store.put(&upload).await, upload)
        }))
        .await;
        let mut stored = Vec::new();
        for (answer, upload) in answers {
            match answer.status {
                201 => stored.push(upload),
                _ => assert_eq!(answer, Answer::full("disk_full", "bytes")),
            }
        }
        store.holds_exactly(&stored);
        stored
    }
}

/// As many complete files as fit, in every repetition.
///
/// With known lengths, the number is certain.
async fn stampedes(disk: PathBuf, times: u32, stampede: Stampede) {
    let whole = run_stampedes(disk, times, &stampede).await;
    println!("whole files: {whole:?}");
    if stampede.is_chunked {
        // On a busy machine, one upload too many may be refused in about one of a hundred runs.
        let best = whole.iter().filter(|whole| **whole == 8).count();
        assert!(
            whole.iter().all(|whole| (7..=8).contains(whole)),
            "{whole:?}"
        );
        assert!(
            2 * best > whole.len() || best + 1 == whole.len(),
            "{whole:?}"
        );
    } else {
        assert!(whole.iter().all(|whole| *whole == 8), "{whole:?}");
    }
}

/// How many files are whole, in each repetition.
async fn run_stampedes(disk: PathBuf, times: u32, stampede: &Stampede) -> Vec<usize> {
    let (volume, layer) = guard(&disk);
    let store = Store::open(&disk, layer).await;
    let mut whole = Vec::new();
    for _ in 0..times {
        // A reading from before the last files were deleted would only make requests wait.
        volume.refresh();
        eventually("empty", || {
            volume.refresh();
            volume.status().available == 32 * MIB && volume.status().claimed == 0
        })
        .await;
        whole.push(stampede.run(&store).await.len());
        for (name, _) in store.files() {
            std::fs::remove_file(disk.join(name)).unwrap();
        }
    }
    whole
}

/// Counted block by block as it arrives: no block may count twice.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_chunked_upload_that_fits_exactly() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=8m");
            // Often enough that readings are taken while blocks are half full.
            let often = Volume::builder().probe_every(Duration::from_millis(5));
            let _often = often.open(&disk).unwrap();
            let (_, layer) = guard(&disk);
            let store = Store::open(&disk, layer).await;
            let larger = Upload::new(1, 8 * MIB + 1).chunked(true);
            assert_eq!(store.put(&larger).await, Answer::full("disk_full", "bytes"));
            let exact = Upload::new(2, 8 * MIB).chunked(true);
            let exact = exact.slowly(Duration::from_millis(1));
            assert_eq!(store.put(&exact).await, Answer::plain(201));
            store.holds_exactly([&exact]);
        });
    });
}

macro_rules! stampede {
    ($name:ident, times: $times:expr, chunked: $chunked:expr, pause: $pause:expr, way: $way:expr) => {
        #[test]
        #[ignore = "mounts filesystems: run by `make test`"]
        fn $name() {
            with_own_mounts(|| {
                let folder = tempfile::tempdir().unwrap();
                let disk = tmpfs(folder.path(), "size=32m");
                let stampede = Stampede {
                    is_chunked: $chunked,
                    way: $way,
                    pause: $pause,
                };
                in_runtime(stampedes(disk, times($times), stampede));
            });
        }
    };
}

const PAUSE: Option<Duration> = Some(Duration::from_millis(5));

stampede!(a_stampede, times: 10, chunked: false, pause: None, way: Way::Guarded);
stampede!(a_chunked_stampede, times: 10, chunked: true, pause: None, way: Way::Guarded);
stampede!(a_slow_stampede, times: 2, chunked: false, pause: PAUSE, way: Way::Guarded);
stampede!(a_slow_chunked_stampede, times: 2, chunked: true, pause: PAUSE, way: Way::Guarded);
stampede!(a_chunked_stampede_by_async_writer, times: 10, chunked: true, pause: None, way: Way::AsyncWriter);
stampede!(a_slow_chunked_stampede_by_async_writer, times: 2, chunked: true, pause: PAUSE, way: Way::AsyncWriter);

/// What a handler stores that was not changed for the guard, and what it stores through a writer that reports with its next
/// call. What is not reported counts twice.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_chunked_stampede_that_reports_late_or_never() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let disk = tmpfs(folder.path(), "size=32m");
        in_runtime(async {
            let mut stored = Vec::new();
            for way in [Way::Untouched, Way::Writer] {
                let stampede = Stampede {
                    is_chunked: true,
                    way,
                    pause: None,
                };
                let whole = run_stampedes(disk.clone(), times(5), &stampede).await;
                println!("whole files, {way:?}: {whole:?}");
                stored.push(whole.iter().sum::<usize>());
            }
            assert!(stored[0] < stored[1], "{stored:?}");
        });
    });
}

/// The same stampede on a common hand-written check: all pass it before any has written.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_stampede_on_the_usual_check() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let disk = tmpfs(folder.path(), "size=32m");
        in_runtime(async {
            let store = Store::open(&disk, guard(&disk).1).await;
            let uploads = (0..16).map(|number| Upload::new(number, 4 * MIB).by(Way::Usual));
            join_all(uploads.map(async |upload| store.put(&upload).await)).await;
            let files = store.files();
            let whole = files.iter().filter(|(_, size)| *size == 4 * MIB).count();
            let torn = files.len() - whole;
            println!("the usual check: {whole} whole, {torn} torn");
            assert!(whole < 8 && torn > 0);
        });
    });
}

/// Uploads of any size, in any order: those that fit are stored, and those that are refused did not fit.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn any_sizes_in_any_order() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let disk = tmpfs(folder.path(), "size=8m");
        let sizes = prop::collection::vec((0..3 * MIB, any::<bool>()), 1..12);
        let config = Config {
            cases: 16,
            failure_persistence: None,
            ..Config::default()
        };
        let result = TestRunner::new(config).run(&(sizes, any::<bool>()), |(uploads, at_once)| {
            in_runtime(any_sizes(disk.clone(), uploads, at_once));
            Ok(())
        });
        result.unwrap();
    });
}

/// The size of an upload on a tmpfs, in whole pages.
fn taken(upload: &Upload) -> u64 {
    upload.size.next_multiple_of(4096)
}

async fn any_sizes(disk: PathBuf, uploads: Vec<(u64, bool)>, at_once: bool) {
    let capacity = 8 * MIB;
    let (_, layer) = guard(&disk);
    let store = Store::open(&disk, layer).await;
    let uploads: Vec<_> = (0..)
        .zip(uploads)
        .map(|(number, (size, is_chunked))| Upload::new(number, size).chunked(is_chunked))
        .collect();
    let mut answers = Vec::new();
    if at_once {
        answers = join_all(uploads.iter().map(|upload| store.put(upload))).await;
    } else {
        let mut free = capacity;
        for upload in &uploads {
            let answer = store.put(upload).await;
            assert_eq!(
                answer.status == 201,
                taken(upload) <= free,
                "{upload:?} into {free}"
            );
            if answer.status == 201 {
                free -= taken(upload);
            }
            answers.push(answer);
        }
    }
    let is_stored = |(answer, _): &(&Answer, _)| answer.status == 201;
    let (stored, refused): (Vec<_>, Vec<_>) = answers.iter().zip(&uploads).partition(is_stored);
    let full: u64 = stored.iter().map(|(_, upload)| taken(upload)).sum();
    assert!(full <= capacity);
    store.holds_exactly(stored.iter().map(|(_, upload)| *upload));
    for (answer, upload) in &refused {
        assert_eq!(**answer, Answer::full("disk_full", "bytes"), "{upload:?}");
    }
    // A refused upload did not fit beside the admitted ones. All admitted uploads with a length are stored in the
    // end; one without a length may have been cut later, and left room that no request knew of.
    if refused.iter().all(|(_, upload)| !upload.is_chunked) {
        for (_, upload) in refused {
            assert!(full + taken(upload) > capacity, "{upload:?} beside {full}");
        }
    }
    for (name, _) in store.files() {
        std::fs::remove_file(disk.join(name)).unwrap();
    }
}
