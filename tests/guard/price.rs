//! Prices of requests that concern more than their own body.

use std::{convert::Infallible, io};
#[cfg(target_os = "linux")]
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use test_support::disk::Disk;
#[cfg(target_os = "linux")]
use test_support::mounts::{in_runtime, tmpfs, unmount, with_own_mounts};
use test_support::service::{Content, Incoming, full, read_all};
use tower::{Layer, ServiceExt, service_fn};
#[cfg(target_os = "linux")]
use tower_storage_guard::dav::{Depth, Folder, Tree, Walk, WebDav};
use tower_storage_guard::{
    Amount, Demand, Price, Scopes, StorageGuardLayer, Volume,
    quota::{Answer, Limits, MemoryQuota, QuotaError, QuotaSource},
};

const ANN: &str = "user:ann";
const BOB: &str = "user:bob";

fn quota() -> MemoryQuota {
    let quota = MemoryQuota::new(Limits::UNLIMITED);
    quota.set_limits(ANN, Limits::bytes(100));
    quota.set_limits(BOB, Limits::bytes(100));
    quota
}

/// Sends a request of this price, which the service answers with this status.
async fn send<Q>(volume: &Volume, quota: Q, price: impl Into<Price>, status: u16) -> u16
where
    Q: QuotaSource + Clone + Send + Sync + 'static,
{
    let price = price.into();
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota)
        .applies_when(|_| true)
        // The price names them.
        .scope_by(|_| Scopes::NONE)
        .price_by(move |_, _| price.clone());
    let service = layer.layer(service_fn(move |request: Request<Incoming>| async move {
        let mut answer = read_all(request).await?;
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok::<_, Infallible>(answer)
    }));
    let request: Request<Content> = Request::builder().body(full(0)).unwrap();
    let answer: Response<_> = service.oneshot(request).await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn a_copy_is_charged_when_it_is_complete() {
    let (disk, quota) = (Disk::new(1_000), quota());
    let volume = disk.volume();
    let copy = |bytes| {
        let demand = Demand::nothing().copying(Amount::new(bytes, 2));
        Price::from(demand).charged_to(ANN)
    };
    assert_eq!(send(&volume, quota.clone(), copy(60), 500).await, 500);
    assert_eq!(quota.usage(ANN).used, Amount::ZERO);
    assert_eq!(send(&volume, quota.clone(), copy(60), 201).await, 201);
    assert_eq!(quota.usage(ANN).used, Amount::new(60, 2));
    assert_eq!(send(&volume, quota.clone(), copy(41), 201).await, 507);
    assert_eq!(send(&volume, quota.clone(), copy(40), 201).await, 201);
    assert_eq!(quota.usage(ANN).used, Amount::new(100, 4));
    assert_eq!(quota.usage(ANN).held, Amount::ZERO);
    // The volume has to have room too.
    let elsewhere = Demand::nothing().copying(Amount::bytes(1_001));
    assert_eq!(send(&volume, quota, elsewhere, 201).await, 507);
}

#[tokio::test]
async fn a_move_charges_the_new_scope_and_gives_back_to_the_old() {
    // It is already on the volume, however full that is.
    let (volume, quota) = (Disk::new(0).volume(), quota());
    quota.set_used(BOB, Amount::new(70, 3));
    let file = Amount::new(60, 1);
    let price = || {
        Price::from(Demand::nothing().moving(file))
            .charged_to(ANN)
            .giving_back(BOB, file)
    };
    assert_eq!(send(&volume, quota.clone(), price(), 403).await, 403);
    assert_eq!(quota.usage(ANN).used, Amount::ZERO);
    assert_eq!(quota.usage(BOB).used, Amount::new(70, 3));
    assert_eq!(send(&volume, quota.clone(), price(), 201).await, 201);
    assert_eq!(quota.usage(ANN).used, file);
    assert_eq!(quota.usage(BOB).used, Amount::new(10, 2));
    // No room for another.
    assert_eq!(send(&volume, quota.clone(), price(), 201).await, 507);
    assert_eq!(quota.usage(BOB).used, Amount::new(10, 2));
    assert_eq!(quota.usage(ANN).held, Amount::ZERO);
}

/// A quota source during an outage, which still receives give-backs.
#[derive(Clone)]
struct Away(MemoryQuota);

impl QuotaSource for Away {
    type Future = <MemoryQuota as QuotaSource>::Future;
    type Hold = <MemoryQuota as QuotaSource>::Hold;

    fn reserve(&self, _: &Scopes, _: Amount, _: Amount) -> Answer<Self::Future> {
        let down = io::Error::from(io::ErrorKind::ConnectionRefused);
        Answer::Now(Err(QuotaError::Unavailable(down.into())))
    }

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        self.0.give_back(scopes, amount);
    }
}

#[tokio::test]
async fn a_removal_is_never_refused() {
    let (volume, quota) = (Disk::new(0).volume(), quota());
    quota.set_used(ANN, Amount::new(200, 10));
    let source = Away(quota.clone());
    let delete = || Price::from(Demand::nothing()).giving_back(ANN, Amount::new(150, 4));
    assert_eq!(send(&volume, source.clone(), delete(), 404).await, 404);
    assert_eq!(quota.usage(ANN).used, Amount::new(200, 10));
    assert_eq!(send(&volume, source, delete(), 204).await, 204);
    assert_eq!(quota.usage(ANN).used, Amount::new(50, 6));
}

/// How many COPYs of a large tree come at once, and of how many files.
#[cfg(target_os = "linux")]
const COPIES: usize = 200;
#[cfg(target_os = "linux")]
const FILES: usize = 40_000;

/// In a process of its own, whose threads are counted.
#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
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
