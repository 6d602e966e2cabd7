//! Reservations made by any code, and guards that share a volume or a quota.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, pending},
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Waker},
    thread,
    time::Duration,
};

use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;
use test_support::{
    Dice,
    disk::Disk,
    eventually,
    service::{Incoming, Reply, USER, answer, chunked, full, layer, put, read_all},
};
use tokio::{task::yield_now, time::Instant};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, Guard, Headroom, MeteredBody, Outage, Price, Reason, Refused, Reservation,
    Scope, Scopes, StorageGuardLayer, TryReserveError, Volume,
    fault::Cause,
    quota::{
        Answer, Change, Limits, MemoryHold, MemoryQuota, Quota, QuotaError, QuotaSource, quota_fn,
        quota_future,
    },
};

const KIB: u64 = 1 << 10;

/// A guard of a volume with this much room, and of a quota with this limit.
fn guard(room: u64, limit: u64) -> (Volume, MemoryQuota, Guard<MemoryQuota>) {
    let volume = Disk::new(room).volume();
    let quota = MemoryQuota::new(Limits::bytes(limit));
    let guard = Guard::new(volume.clone()).quota(quota.clone());
    (volume, quota, guard)
}

#[tokio::test]
async fn a_commit_charges_and_anything_else_releases() {
    let (volume, quota, guard) = guard(1 << 20, 1_000);
    let usage = || (quota.usage(USER).used, quota.usage(USER).held);

    let job = guard.reserve(USER, Demand::known(600)).await.unwrap();
    assert_eq!(usage(), (Amount::ZERO, Amount::new(600, 1)));
    assert_eq!((job.reserved(), volume.status().claimed), (600, 600));
    assert!(job.commit().await);
    assert!(job.has_ended() && !job.commit().await);
    assert_eq!(usage(), (Amount::new(600, 1), Amount::ZERO));

    let job = guard.reserve(USER, Demand::known(400)).await.unwrap();
    job.written(100);
    job.stored(100);
    job.made(2);
    job.commit().await;
    assert_eq!(usage(), (Amount::new(700, 3), Amount::ZERO));

    let job = guard.reserve(USER, Demand::known(300)).await.unwrap();
    job.release();
    assert!(job.has_ended());
    assert!(job.grow(1).await.is_err());
    let job = guard.reserve(USER, Demand::known(300)).await.unwrap();
    drop((job.clone(), job));
    assert_eq!(usage(), (Amount::new(700, 3), Amount::ZERO));
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn it_grows_and_corrects_what_it_replaces() {
    let (volume, quota, guard) = guard(64 * KIB, 1_000);
    let job = guard
        .reserve(USER, Demand::known(500).replacing(Amount::new(500, 1)))
        .await
        .unwrap();
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    job.grow(900).await.unwrap();
    assert_eq!(volume.status().claimed, 1_400);
    let refused = job.replaces(Amount::new(300, 1)).await.unwrap_err();
    assert_eq!(refused.fault().unwrap().cause, Cause::QuotaExceeded);
    assert_eq!(refused.figures().unwrap().limit, 1_000);
    job.replaces(Amount::new(450, 1)).await.unwrap();
    let refused = job.grow(1 << 20).await.unwrap_err();
    assert_eq!(refused.fault().unwrap().cause, Cause::DiskFull);
    job.commit().await;
    assert_eq!(quota.usage(USER).used, Amount::new(950, 0));
}

/// A plain thread has no runtime.
#[tokio::test]
async fn the_last_handle_releases_on_any_thread() {
    let (volume, quota, guard) = guard(1 << 20, 1_000);
    let job = guard.reserve(USER, Demand::known(600)).await.unwrap();
    let unknown = guard.reserve(USER, Demand::unknown()).await.unwrap();
    thread::spawn(move || drop((job, unknown))).join().unwrap();
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[test]
fn without_a_runtime_a_guard_in_memory_decides_at_once() {
    let (_, quota, guard) = guard(1 << 20, 1_000);
    let job = guard.try_reserve(USER, Demand::known(600)).unwrap();
    let Err(TryReserveError::Refused(refused)) = guard.try_reserve(USER, Demand::known(401)) else {
        panic!("more than there is");
    };
    assert_eq!(refused.fault().unwrap().cause, Cause::QuotaExceeded);
    let Err(TryReserveError::Refused(refused)) = guard.try_reserve(USER, Demand::known(2 << 20))
    else {
        panic!("more than the disk has");
    };
    assert_eq!(refused.fault().unwrap().cause, Cause::DiskFull);
    // An exact fit.
    drop(guard.try_reserve(USER, Demand::known(400)).unwrap());
    drop(job);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn a_source_that_answers_later_would_block() {
    let volume = Disk::new(1 << 20).volume();
    let quota = quota_future(|_| async {
        Ok::<_, Infallible>(Quota {
            limits: Limits::bytes(1_000),
            used: Amount::ZERO,
        })
    });
    let guard = Guard::new(volume.clone()).quota(quota);
    let error = guard.try_reserve(USER, Demand::known(1)).unwrap_err();
    assert!(matches!(error, TryReserveError::WouldBlock), "{error}");
    assert_eq!(volume.status().claimed, 0);
    drop(guard.reserve(USER, Demand::known(1_000)).await.unwrap());
}

/// A source that never answers.
#[derive(Clone)]
struct Silent;

impl QuotaSource for Silent {
    type Hold = MemoryHold;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<MemoryHold, QuotaError>> + Send>>;

    fn reserve(&self, _: &Scopes, _: Amount, _: Amount) -> Answer<Self::Future> {
        Answer::Later(Box::pin(pending()))
    }

    fn charge(&self, _: &Scopes, _: Change) {}
}

#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_answer_is_an_outage() {
    let volume = Disk::new(1 << 20).volume();
    let guard = Guard::new(volume.clone()).quota(Silent);
    let refused = guard.reserve(USER, Demand::known(1)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Unavailable);
    assert_eq!(volume.status().claimed, 0);
    let guard = guard.quota_outage(Outage::Admit);
    let job = guard.reserve(USER, Demand::known(1)).await.unwrap();
    assert_eq!(volume.status().claimed, 1);
    job.commit().await;
}

/// What the source failed with is for logs. A full disk below it is not the client's.
#[tokio::test]
async fn an_outage_has_the_error_of_the_source() {
    let source = |asked: Arc<AtomicUsize>| {
        quota_fn(move |_: &Scope| match asked.fetch_add(1, SeqCst) {
            0 => Ok(Quota {
                limits: Limits::bytes(1_000),
                used: Amount::ZERO,
            }),
            _ => Err(io::Error::from(io::ErrorKind::StorageFull)),
        })
    };
    let is_outage = |refused: &Refused| {
        let error = refused.source().and_then(Error::source).unwrap();
        let error = error.downcast_ref::<io::Error>().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(refused.reason(), Reason::Unavailable);
        assert_eq!(tower_storage_guard::fault::classify(refused), None);
    };

    let broken = Guard::quota_only(source(Arc::new(AtomicUsize::new(1))));
    is_outage(&broken.reserve(USER, Demand::known(1)).await.unwrap_err());

    let breaks = Guard::quota_only(source(Arc::default()));
    let job = breaks.reserve(USER, Demand::known(1)).await.unwrap();
    is_outage(&job.grow(1).await.unwrap_err());
    assert_eq!(job.reserved(), 1);
}

/// Polled this many times, and then dropped.
fn polled<F: Future>(future: F, times: usize) {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..times {
        if future.as_mut().poll(&mut cx).is_ready() {
            return;
        }
    }
}

#[tokio::test]
async fn a_reserve_that_is_dropped_at_any_await_takes_nothing() {
    // It waits for room, and then for its source.
    let disk = Disk::new(1_000);
    let volume = disk.volume();
    let waiting = Guard::new(volume.clone()).quota(Silent);
    let blocker = Guard::new(volume.clone());
    let mut dice = Dice::new(7);
    for round in 0..200 {
        let held = blocker
            .reserve(Scopes::NONE, Demand::known(dice.roll(1_001)))
            .await;
        polled(
            waiting.reserve(USER, Demand::known(dice.roll(1_001))),
            1 + round % 4,
        );
        let job = blocker.reserve(Scopes::NONE, Demand::unknown()).await;
        if let Ok(job) = &job {
            polled(job.grow(dice.roll(2_000)), 1 + round % 3);
        }
        drop((held, job));
        Disk::until_settled(&volume).await;
    }
}

#[tokio::test]
async fn a_layer_and_a_job_share_one_guard() {
    let (volume, quota, guard) = guard(1_000, 1_000);
    let service = StorageGuardLayer::new(guard.clone())
        .scope_by(|_| USER)
        .patience(Duration::from_millis(20))
        .layer(service_fn(read_all));
    let job = guard.reserve(USER, Demand::known(600)).await.unwrap();
    let refused = service.clone().oneshot(put(full(401))).await.unwrap();
    assert_eq!(refused.status(), 507);
    let exact = service.clone().oneshot(put(full(400))).await.unwrap();
    assert_eq!(exact.status(), 201);
    job.release();
    assert_eq!(quota.usage(USER).used, Amount::new(400, 1));
    Disk::until_settled(&volume).await;
}

/// A body behind two guards.
type GuardedTwice = MeteredBody<Incoming>;

/// A handler that reports half of what it has read as stored.
async fn store_half(request: Request<GuardedTwice>) -> Result<Reply, Infallible> {
    let reservation = request.extensions().get::<Reservation>().unwrap().clone();
    let read = request.into_body().collect().await;
    let Ok(read) = read else {
        return Ok(answer(500));
    };
    let length = read.to_bytes().len() as u64;
    reservation.written(length / 2);
    reservation.stored(length / 2);
    Ok(answer(201))
}

#[tokio::test]
async fn two_guards_on_one_volume_claim_it_once_and_both_use_the_report() {
    let disk = Disk::new(100 * KIB);
    let volume = disk.volume();
    let outer = MemoryQuota::new(Limits::bytes(1 << 20));
    let inner = MemoryQuota::new(Limits::bytes(1 << 20));
    let guard = |quota: &MemoryQuota| {
        StorageGuardLayer::new(volume.clone())
            .quota(quota.clone())
            .scope_by(|_| USER)
            .patience(Duration::from_millis(20))
    };
    let service = ServiceBuilder::new()
        .layer(guard(&outer))
        .layer(guard(&inner))
        .service_fn(store_half);
    // If it were claimed twice, neither would fit.
    for content in [full(100 << 10), chunked(10, 10 << 10)] {
        let answer = service.clone().oneshot(put(content)).await.unwrap();
        assert_eq!(answer.status(), 201);
        eventually("nothing is claimed", || {
            volume.refresh();
            volume.status().claimed == 0
        })
        .await;
    }
    for quota in [outer, inner] {
        let usage = quota.usage(USER);
        assert_eq!(
            (usage.used, usage.held),
            (Amount::new(100 << 10, 2), Amount::ZERO)
        );
    }
    let refused = service.oneshot(put(full((100 << 10) + 1))).await.unwrap();
    assert_eq!(refused.status(), 507);
}

/// The outer guard only knows the body, or nothing at all; the inner one knows the full demand.
#[tokio::test]
async fn an_inner_guard_claims_what_the_outer_one_does_not_know() {
    let write_double = |outside: Price, inside: Demand| {
        let volume = Disk::new(10 * KIB).volume();
        let guard = || {
            StorageGuardLayer::new(volume.clone())
                .quota(MemoryQuota::new(Limits::UNLIMITED))
                .scope_by(|_| USER)
                .patience(Duration::from_millis(20))
        };
        ServiceBuilder::new()
            .layer(guard().price_by(move |_, _| outside.clone()))
            .layer(guard().price_by(move |_, _| inside))
            .service_fn(store_half)
    };
    let plain = || Price::from(Demand::known(1_000));
    let no_room = 11 * KIB;
    for (outside, inside) in [
        (Price::free(), Demand::known(no_room)),
        (plain(), Demand::known(no_room)),
        (plain(), Demand::known(1_000).volume_percent(1_200)),
        (plain(), Demand::unknown().expecting(no_room)),
        (Demand::unknown().into(), Demand::known(no_room)),
    ] {
        let case = format!("{outside:?}, {inside:?}");
        let service = write_double(outside, inside);
        let refused = service.oneshot(put(full(1_000))).await.unwrap();
        assert_eq!(refused.status(), 507, "{case}");
    }
    let fits = write_double(plain(), Demand::known(10 * KIB - 1_000));
    let stored = fits.oneshot(put(full(1_000))).await.unwrap();
    assert_eq!(stored.status(), 201);
}

#[tokio::test]
async fn a_quota_inside_of_a_disk_guard_reports_to_both() {
    let (volume, outer, disk) = layer(1 << 20);
    let inner = MemoryQuota::new(Limits::bytes(1_000));
    let service = ServiceBuilder::new()
        .layer(disk)
        .layer(StorageGuardLayer::quota_only(inner.clone()).scope_by(|_| "tenant"))
        .service_fn(store_half);
    let answer = service.clone().oneshot(put(full(1_000))).await.unwrap();
    assert_eq!(answer.status(), 201);
    assert_eq!(outer.usage(USER).used, Amount::new(500, 1));
    assert_eq!(inner.usage("tenant").used, Amount::new(500, 1));
    let refused = service.oneshot(put(full(501))).await.unwrap();
    assert_eq!(refused.status(), 507);
    // The outer guard releases what the inner one has refused.
    assert_eq!(outer.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn the_volume_claim_includes_the_write_factor() {
    let (volume, quota, guard) = guard(1_000, 10_000);
    let guard = guard.patience(Duration::from_millis(20));
    let demand = |bytes| Demand::known(bytes).volume_percent(210);
    let job = guard.reserve(USER, demand(476)).await.unwrap();
    // 476 x 2.1, rounded up. The scope is charged for the stored bytes.
    assert_eq!(volume.status().claimed, 1_000);
    assert_eq!(quota.usage(USER).held, Amount::new(476, 1));
    assert!(job.grow(1).await.is_err());
    job.release();
    Disk::until_settled(&volume).await;
    assert!(guard.reserve(USER, demand(477)).await.is_err());

    let job = guard.reserve(USER, demand(100)).await.unwrap();
    job.grow(100).await.unwrap();
    assert_eq!(volume.status().claimed, 420);
    job.written(200);
    job.commit().await;
    assert_eq!(quota.usage(USER).used, Amount::new(200, 1));
    Disk::until_settled(&volume).await;
    // Nothing reaches this volume.
    let job = guard
        .reserve(USER, Demand::known(5_000).volume_percent(0))
        .await
        .unwrap();
    assert_eq!(volume.status().claimed, 0);
    job.commit().await;
}

#[tokio::test]
async fn a_grant_with_a_write_factor_is_limited_to_the_available_room() {
    let disk = Disk::new(1_000);
    let guard = Guard::new(disk.volume()).patience(Duration::from_millis(20));
    let job = guard
        .reserve(Scopes::NONE, Demand::unknown().volume_percent(300))
        .await
        .unwrap();
    assert_eq!(job.reserved(), 333);
    assert_eq!(guard.volume().unwrap().status().claimed, 999);
}

#[tokio::test]
async fn headroom_is_kept() {
    let volume = Disk::new(1_000).volume().keep_free(Headroom::bytes(300));
    let guard = Guard::new(volume).patience(Duration::from_millis(20));
    assert!(
        guard
            .reserve(Scopes::NONE, Demand::known(701))
            .await
            .is_err()
    );
    assert!(
        guard
            .reserve(Scopes::NONE, Demand::known(700))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn settings_of_a_clone_are_its_own() {
    let (_, _, guard) = guard(1 << 20, 1_000);
    let strict = guard.clone().hint_cap(10);
    let hinted = Demand::unknown().expecting(500);
    assert_eq!(strict.reserve(USER, hinted).await.unwrap().reserved(), 10);
    assert_eq!(guard.reserve(USER, hinted).await.unwrap().reserved(), 500);
}

#[cfg(target_os = "linux")]
mod in_place {
    use std::{fs::File, io::Write, path::Path};

    use test_support::mounts::{
        fill_but, image, in_runtime, tmpfs, with_own_loop_mounts, with_own_mounts,
    };
    use tower_storage_guard::InPlace;

    use super::*;

    const FILE: usize = 1 << 20;

    /// Whether an overwrite of one MiB by one MiB, and a patch in its middle, are admitted on a disk without room.
    async fn on_a_full_disk(disk: &Path, left: u64) -> [bool; 3] {
        let mut file = File::create(disk.join("file")).unwrap();
        file.write_all(&vec![7; FILE]).unwrap();
        file.sync_all().unwrap();
        fill_but(disk, left);
        let old = file.metadata().unwrap();
        let guard = Guard::new(Volume::open(disk).unwrap()).patience(Duration::from_millis(50));
        let whole = Demand::known(FILE as u64).in_place(InPlace::whole(&old));
        let patch = Demand::known(64 << 10).in_place(InPlace::range(&old, 1_000..66_536));
        let longer = Demand::known((FILE + (64 << 10)) as u64).in_place(InPlace::whole(&old));
        let mut admitted = [false; 3];
        for (admitted, demand) in admitted.iter_mut().zip([whole, patch, longer]) {
            *admitted = guard.reserve(Scopes::NONE, demand).await.is_ok();
        }
        admitted
    }

    #[test]
    #[ignore = "mounts filesystems: run by `make test`"]
    fn writing_in_place_needs_no_room() {
        with_own_mounts(|| {
            in_runtime(async {
                let folder = tempfile::tempdir().unwrap();
                let disk = tmpfs(folder.path(), "size=8m");
                assert_eq!(on_a_full_disk(&disk, 0).await, [true, true, false]);
            });
        });
    }

    #[test]
    #[ignore = "mounts filesystems: run by `make test`"]
    fn on_ext4_too() {
        with_own_loop_mounts(|| {
            in_runtime(async {
                let folder = tempfile::tempdir().unwrap();
                let disk = image(folder.path(), 32, "mkfs.ext4", &["-q", "-m", "0"]);
                assert_eq!(on_a_full_disk(&disk, 32 << 10).await, [true, true, false]);
            });
        });
    }

    /// It needs new blocks for the same content.
    #[test]
    #[ignore = "mounts filesystems: run by `make test`"]
    fn a_copy_on_write_filesystem_gives_no_credit() {
        with_own_loop_mounts(|| {
            in_runtime(async {
                let folder = tempfile::tempdir().unwrap();
                let disk = image(folder.path(), 128, "mkfs.btrfs", &["-q"]);
                let mut file = File::create(disk.join("file")).unwrap();
                file.write_all(&vec![7; FILE]).unwrap();
                file.sync_all().unwrap();
                let old = file.metadata().unwrap();
                let guard = Guard::new(Volume::open(&disk).unwrap());
                let whole = Demand::known(FILE as u64).in_place(InPlace::whole(&old));
                let _job = guard.reserve(Scopes::NONE, whole).await.unwrap();
                assert_eq!(guard.volume().unwrap().status().claimed, FILE as u64);
            });
        });
    }
}

/// One growth asks the quota source, which does not answer, and another waits for its turn.
#[tokio::test(start_paused = true)]
async fn a_growth_that_waits_for_its_turn_ends_with_the_reservation() {
    let asked = AtomicBool::new(false);
    let quota = quota_future(move |_| {
        let was_asked = asked.swap(true, SeqCst);
        async move {
            if was_asked {
                pending::<()>().await;
            }
            let (limits, used) = (Limits::UNLIMITED, Amount::ZERO);
            Ok::<_, QuotaError>(Quota { limits, used })
        }
    });
    let guard = Guard::quota_only(quota);
    let reservation = guard.reserve(USER, Demand::known(1)).await.unwrap();
    let growths = [(); 2].map(|()| {
        let reservation = reservation.clone();
        tokio::spawn(async move { reservation.grow(1).await })
    });
    for _ in 0..10 {
        yield_now().await;
    }
    let begun = Instant::now();
    reservation.release();
    let [asks, waits] = growths;
    assert!(waits.await.unwrap().is_err());
    assert_eq!(begun.elapsed(), Duration::ZERO);
    asks.abort();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(test_support::times(200)) })]
    /// Advice is what a reservation would be answered, and takes nothing.
    #[test]
    fn advice_agrees_with_the_decision(
        available in 0..100u64, keep_free in 0..50u64, limit in 0..100u64, used in 0..50u64,
        bytes in 0..100u64, objects in 0..3u64, replaced in 0..50u64,
    ) {
        let volume = Disk::new(available).volume().keep_free(keep_free);
        let quota = MemoryQuota::new(Limits::bytes(limit).objects(1));
        quota.set_used(USER, Amount::new(used, 0));
        let guard = Guard::new(volume.clone()).quota(quota.clone());
        let demand = Demand::known(bytes).with_objects(objects).replacing(Amount::new(replaced, 0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let advice = runtime.block_on(guard.would_fit(USER, demand));
        prop_assert_eq!(volume.status().claimed, 0);
        prop_assert_eq!(quota.usage(USER).held, Amount::ZERO);
        match (guard.try_reserve(USER, demand), advice) {
            (Ok(_), Ok(())) => {}
            (Err(TryReserveError::Refused(refused)), Err(advice)) => {
                prop_assert_eq!(refused.reason(), advice.reason());
                prop_assert_eq!(refused.internal().needed(), advice.internal().needed());
            }
            (decided, advice) => prop_assert!(false, "{decided:?} {advice:?}"),
        }
    }
}
