//! How a reservation grows: several growths at once, waiting for room, grants, and corrections of what is replaced.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use test_support::{
    disk::Disk,
    eventually,
    service::{USER, chunked, full, layer, put, read_all},
};
use tokio::{sync::oneshot, time::timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, Guard, Probe, Reading, Refused, Scope, Scopes, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota},
    refusal::Refusal,
};

use crate::by_hand::{ByHand, HOUR, Inside, asking, begin, in_time, send};

/// Once no request uses the volume any more, it takes exactly this many bytes.
async fn takes_exactly(bytes: u64, volume: &Volume) {
    Disk::until_settled(volume).await;
    for (bytes, status) in [(bytes, 201), (bytes + 1, 507)] {
        let service = StorageGuardLayer::new(volume.clone())
            .price_by(move |_, _| Demand::known(bytes))
            .layer(service_fn(read_all));
        assert_eq!(send(service, put(full(0))).await, status);
    }
}

#[tokio::test]
async fn two_growths_that_find_no_room_are_both_refused() {
    // If no reservation can give room back, none waits. If one may, each waits for its patience, in turn.
    for (has_company, patience) in [(false, HOUR), (true, Duration::from_millis(50))] {
        let volume = Disk::new(1_000).volume();
        let layer = StorageGuardLayer::new(volume.clone()).patience(patience);
        let mut service = ByHand::new(layer);
        let inside = service.enter(full(10)).await;
        let other = service.enter(full(10)).await;
        if has_company {
            other.reservation.grow(10).await.unwrap();
        }
        let claimed = volume.status().claimed;
        let grow = || inside.reservation.grow(5_000);
        let (one, two) = in_time(async { tokio::join!(grow(), grow()) }).await;
        assert!(one.is_err() && two.is_err());
        assert_eq!(inside.reservation.reserved(), 10);
        assert_eq!(volume.status().claimed, claimed);
        for inside in [inside, other] {
            assert_eq!(inside.answer(500).await.status(), 500);
        }
        takes_exactly(1_000, &volume).await;
    }
}

/// Polls a future on a thread without a runtime, whenever it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut cx) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// There is no timer, but each reading wakes it.
#[tokio::test]
async fn a_growth_that_waits_outside_of_the_runtime_gives_up_too() {
    const PATIENCE: Duration = Duration::from_millis(50);

    let volume = Disk::new(1_000).probed_every(PATIENCE / 10);
    let layer = StorageGuardLayer::new(volume.clone()).patience(PATIENCE);
    let mut service = ByHand::new(layer);
    let inside = service.enter(full(10)).await;
    let other = service.enter(full(10)).await;
    other.reservation.grow(10).await.unwrap();
    let (tell, told) = oneshot::channel();
    let reservation = inside.reservation.clone();
    let began = Instant::now();
    thread::spawn(move || tell.send(block_on(reservation.grow(5_000))));
    assert!(in_time(told).await.unwrap().is_err());
    assert!(began.elapsed() >= PATIENCE / 2);
    assert_eq!(inside.reservation.reserved(), 10);
    // The reservation is released there, too.
    let body = inside.body;
    thread::spawn(move || drop(body)).join().unwrap();
    drop((inside.reservation, inside.status));
    assert_eq!(in_time(inside.call).await.unwrap().status(), 500);
    other.answer(500).await;
    takes_exactly(1_000, &volume).await;
}

#[tokio::test]
async fn two_growths_that_wait_for_room_both_get_it() {
    let disk = Disk::new(1_000);
    let volume = disk.volume();
    let quota = MemoryQuota::new(Limits::UNLIMITED);
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota.clone())
        .scope_by(|_| USER)
        .patience(HOUR);
    let mut service = ByHand::new(layer);
    let inside = service.enter(full(10)).await;
    let company = service.enter(full(10)).await;
    company.reservation.grow(10).await.unwrap();
    let grow = || inside.reservation.grow(5_000);
    let both = async { tokio::join!(grow(), grow()) };
    let room = async { disk.set_available(20_000) };
    let ((one, two), ()) = in_time(async { tokio::join!(both, room) }).await;
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(inside.reservation.reserved(), 10_010);
    assert_eq!(volume.status().claimed, 10_030);
    assert_eq!(quota.usage(USER).held, Amount::new(10_030, 2));

    inside.reservation.stored(10_010);
    inside.answer(201).await;
    company.answer(500).await;
    assert_eq!(quota.usage(USER).used, Amount::new(10_010, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    takes_exactly(20_000, &volume).await;
}

#[tokio::test]
async fn of_two_growths_only_one_gets_the_room_for_one() {
    for (available, limit) in [(1_000, 5_000), (5_000, 1_000)] {
        let volume = Disk::new(available).volume();
        let quota = MemoryQuota::new(Limits::bytes(limit));
        let layer = StorageGuardLayer::new(volume.clone())
            .quota(quota.clone())
            .scope_by(|_| USER)
            .patience(HOUR);
        let inside = ByHand::new(layer).enter(full(10)).await;
        let grow = || inside.reservation.grow(600);
        let (one, two) = in_time(async { tokio::join!(grow(), grow()) }).await;
        assert!(one.is_ok() != two.is_ok());
        assert_eq!(inside.reservation.reserved(), 610);
        assert_eq!(volume.status().claimed, 610);
        assert_eq!(quota.usage(USER).held, Amount::new(610, 1));
        inside.answer(201).await;
        assert_eq!(quota.usage(USER).held, Amount::ZERO);
        takes_exactly(available, &volume).await;
    }
}

#[tokio::test]
async fn body_and_handle_grow_concurrently_without_miscounting() {
    let volume = Disk::new(10_000).volume();
    let (quota, mut lookups) = asking();
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota)
        .scope_by(|_| USER)
        .quota_timeout(HOUR)
        .grants(100, 100);
    let mut service = ByHand::new(layer);
    let (mut inside, ()) = tokio::join!(service.enter(chunked(1, 150)), lookups.tell(1_000));
    {
        // It needs 50 and wants 100, for which there will be no room.
        let mut frame = pin!(inside.body.frame());
        let mut growth = pin!(inside.reservation.grow(50));
        begin(frame.as_mut());
        begin(growth.as_mut());
        lookups.tell(199).await;
        begin(frame.as_mut());
        lookups.tell(1_000).await;
        in_time(frame).await.unwrap().unwrap();
        assert_eq!(inside.reservation.reserved(), 150);
        // The second request of the body covered both.
        in_time(growth).await.unwrap();
    }
    assert_eq!(inside.reservation.reserved(), 200);
    assert_eq!(volume.status().claimed, 200);
    assert_eq!(inside.answer(201).await.status(), 201);
    takes_exactly(10_000, &volume).await;
}

/// On a volume that no other test uses.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn growths_at_once_do_not_share_a_block() {
    let volume = Volume::open("/dev/shm").unwrap();
    let (quota, mut lookups) = asking();
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota)
        .scope_by(|_| USER);
    let mut service = ByHand::new(layer);
    let (inside, ()) = tokio::join!(service.enter(full(1)), lookups.tell(u64::MAX));
    let block = volume.status().claimed;
    let grow = || inside.reservation.grow(block - 1);
    let both = async { tokio::join!(grow(), grow()) };
    // The volume has claims for both by then. They ask the quota one after the other.
    let told = async {
        lookups.tell(u64::MAX).await;
        lookups.tell(u64::MAX).await;
    };
    let ((one, two), ()) = in_time(async { tokio::join!(both, told) }).await;
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(inside.reservation.reserved(), 2 * block - 1);
    assert_eq!(volume.status().claimed, 2 * block);
    inside.answer(500).await;
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn an_unpolled_growth_blocks_neither_the_queue_nor_admission() {
    for at_the_door in [true, false] {
        let disk = Disk::new(1_000);
        let layer = StorageGuardLayer::new(disk.volume())
            .patience(Duration::from_millis(100))
            .grants(10, 10);
        let mut service = ByHand::new(layer);
        // Of unknown length, so that they are queued by their age.
        let older = service.enter(chunked(1, 10)).await;
        let younger = service.enter(chunked(1, 10)).await;
        let mut stalled = pin!(older.reservation.grow(5_000));
        begin(stalled.as_mut());
        disk.set_available(1 << 20);
        if at_the_door {
            service.enter(full(10)).await;
        } else {
            in_time(younger.reservation.grow(10)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_growth_beyond_the_volume_is_refused_at_once_without_eviction() {
    let volume = Disk::new(1_000).volume();
    let layer = StorageGuardLayer::new(volume).patience(HOUR).grants(10, 10);
    let mut service = ByHand::new(layer);
    let older = service.enter(chunked(1, 10)).await;
    let younger = service.enter(chunked(1, 10)).await;
    let grow = |inside: &Inside, bytes| {
        let reservation = inside.reservation.clone();
        async move { reservation.grow(bytes).await }
    };
    let both = async { tokio::join!(grow(&older, 1 << 41), grow(&younger, 10)) };
    let (hopeless, modest) = in_time(both).await;
    assert!(hopeless.is_err());
    assert!(modest.is_ok());
    service.enter(full(10)).await;
}

/// The error this guards against: 150 bytes are admitted although the limit is 120.
#[tokio::test]
async fn a_growth_does_not_use_what_a_correction_only_requested() {
    for limit in [120, 20] {
        let volume = Disk::new(10_000).volume();
        let (quota, mut lookups) = asking();
        let layer = StorageGuardLayer::new(volume)
            .quota(quota)
            .scope_by(|_| USER)
            .quota_timeout(HOUR)
            .price_by(|_, demand| demand.replacing(Amount::bytes(100)));
        let mut service = ByHand::new(layer);
        let (inside, ()) = tokio::join!(service.enter(full(100)), lookups.tell(limit));
        let mut correction = pin!(inside.reservation.replaces(Amount::ZERO));
        begin(correction.as_mut());
        let asked = lookups.next().await;
        let mut growth = pin!(inside.reservation.grow(50));
        let first = timeout(Duration::from_millis(100), growth.as_mut()).await;
        println!("limit {limit}: growth before any answer: {first:?}");
        asked(limit);
        let corrected = in_time(correction).await;
        println!("limit {limit}: correction {:?}", corrected.is_ok());
        let grown = match first {
            Ok(grown) => grown,
            Err(_) => {
                let (grown, ()) = tokio::join!(growth, lookups.tell(limit));
                grown
            }
        };
        let replaced = if corrected.is_ok() { 0 } else { 100 };
        assert!(
            inside.reservation.reserved() - replaced <= limit,
            "limit {limit}: {} reserved, {replaced} replaced, {:?}",
            inside.reservation.reserved(),
            grown.is_ok()
        );
    }
}

/// Two growths are queued for the quota.
#[tokio::test]
async fn a_growth_does_not_use_what_another_only_requested() {
    let volume = Disk::new(100_000).volume();
    let (quota, mut lookups) = asking();
    let layer = StorageGuardLayer::new(volume)
        .quota(quota)
        .scope_by(|_| USER)
        .quota_timeout(HOUR)
        .patience(Duration::from_millis(200));
    let mut service = ByHand::new(layer);
    let (inside, ()) = tokio::join!(service.enter(full(100)), lookups.tell(1_000));
    // Another reservation, so that waiting may help.
    let (other, ()) = tokio::join!(service.enter(full(100)), lookups.tell(1_000));
    let (grown, ()) = tokio::join!(other.reservation.grow(100), lookups.tell(1_000));
    grown.unwrap();
    // 300 are held; 100 more do not fit for now.
    let mut small = pin!(inside.reservation.grow(100));
    begin(small.as_mut());
    lookups.tell(350).await;
    begin(small.as_mut());
    // Another growth asks for its 500, and for those 100 too.
    let mut large = pin!(inside.reservation.grow(500));
    begin(large.as_mut());
    let asked = lookups.next().await;
    let first = timeout(Duration::from_secs(1), small.as_mut()).await;
    println!("small, before any answer: {first:?}");
    asked(350);
    let large = timeout(Duration::from_secs(2), large)
        .await
        .map(|large| large.is_ok());
    println!("large {large:?}");
    assert!(
        inside.reservation.reserved() + 200 <= 350,
        "{} reserved",
        inside.reservation.reserved()
    );
}

#[tokio::test]
async fn repeated_corrections_are_held_once() {
    let (_, quota, layer) = layer(1_000);
    let layer = layer.price_by(|_, demand| demand.replacing(Amount::bytes(100)));
    let inside = ByHand::new(layer).enter(full(100)).await;
    for _ in 0..15 {
        for replaced in [Amount::ZERO, Amount::bytes(100)] {
            inside.reservation.replaces(replaced).await.unwrap();
            assert_eq!(quota.usage(USER).held, Amount::new(100, 1));
        }
    }
    // It replaces nothing in the end, so that the hold covers more.
    inside.reservation.grow(100).await.unwrap();
    assert_eq!(quota.usage(USER).held, Amount::new(100, 1));
    inside.reservation.stored(200);
    inside.answer(201).await;
    assert_eq!(quota.usage(USER).used, Amount::new(100, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

/// A grant of 64 KiB exceeds the limit, although there is room for the 30 KiB.
#[tokio::test]
async fn a_grant_larger_than_the_limit_causes_no_cut() {
    let quota = MemoryQuota::new(Limits::bytes(60 << 10));
    let layer = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let mut service = ByHand::new(layer);
    let other = service.enter(full(40 << 10)).await;
    let mut inside = service.enter(chunked(30, 1 << 10)).await;
    assert_eq!(inside.reservation.reserved(), 20 << 10);
    other.answer(500).await;
    let mut read = 0;
    while let Some(frame) = inside.body.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(read, 30 << 10);
    assert_eq!(inside.answer(201).await.status(), 201);
    assert_eq!(quota.usage(USER).used.bytes, 30 << 10);
}

/// For the grant of 64 KiB, the user's own limit would be exceeded first. For the byte that is needed, it is not.
#[tokio::test]
async fn the_scope_that_is_full_is_named() {
    let quota = MemoryQuota::new(Limits::UNLIMITED);
    quota.set_limits("own", Limits::bytes(500));
    quota.set_limits("all", Limits::bytes(1_200));
    quota.set_used("all", Amount::bytes(900));
    let layer = StorageGuardLayer::quota_only(quota)
        .scope_by(|_| Scopes::from(["own", "all"].map(Scope::from)));
    let mut service = ByHand::new(layer);
    let mut inside = service.enter(chunked(301, 1)).await;
    let error = loop {
        if let Err(error) = inside.body.frame().await.unwrap() {
            break error;
        }
    };
    let refusal = error.downcast_ref::<Refused>().unwrap();
    assert_eq!(refusal.scope(), Some(&Scope::from("all")));
    let figures = refusal.figures().unwrap();
    assert_eq!(
        (figures.limit, figures.used, figures.required),
        (1_200, 900, 301)
    );
    assert!(refusal.is_temporary());
}

/// Whatever is full, and however the rest of the guard is set up.
#[tokio::test]
async fn an_empty_body_without_a_length_fits() {
    let quota = MemoryQuota::new(Limits::bytes(100).objects(2));
    quota.set_used(USER, Amount::bytes(100));
    let full_quota = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let full_disk = StorageGuardLayer::new(Disk::new(0).volume()).scope_by(|_| Scopes::NONE);
    let full_disk = full_disk.patience(Duration::from_millis(50));
    for content in [chunked(0, 1), chunked(2, 0)] {
        assert_eq!(
            send(full_quota.clone().layer(service_fn(read_all)), put(content)).await,
            201
        );
    }
    assert_eq!(quota.usage(USER).used, Amount::new(100, 2));
    // It still is an object.
    let third = put(chunked(0, 1));
    assert_eq!(
        send(full_quota.clone().layer(service_fn(read_all)), third).await,
        507
    );
    for (content, status) in [(chunked(0, 1), 201), (chunked(1, 1), 507)] {
        assert_eq!(
            send(full_disk.clone().layer(service_fn(read_all)), put(content)).await,
            status
        );
    }
    // Reading it would ask for it: the client waits for `100 Continue`.
    let mut waits = put(chunked(0, 1));
    waits
        .headers_mut()
        .insert("expect", "100-continue".parse().unwrap());
    assert_eq!(
        send(full_disk.layer(service_fn(read_all)), waits).await,
        507
    );
}

/// What the client is told of a body without a length: what is known of it, and what others use.
#[tokio::test]
async fn figures_state_what_is_known() {
    let silent = || {
        let body = futures_util::stream::pending::<std::io::Result<Frame<Bytes>>>();
        StreamBody::new(body).boxed_unsync()
    };
    for (used, content, required) in [
        // Nothing is left, and the first data is larger than one byte.
        (100, chunked(5, 7), 7),
        (100, silent(), 1),
        // 40 bytes are reserved when the seventh frame comes.
        (60, chunked(9, 7), 42),
    ] {
        let quota = MemoryQuota::new(Limits::bytes(100));
        quota.set_used(USER, Amount::bytes(used));
        let layer = StorageGuardLayer::quota_only(quota).scope_by(|_| USER);
        let layer = layer.patience(Duration::from_millis(50));
        let service = layer.layer(service_fn(read_all));
        let answer = in_time(service.oneshot(put(content))).await.unwrap();
        assert_eq!(answer.status(), 507);
        let refusal = answer.extensions().get::<Refusal>().unwrap();
        let figures = refusal.figures().unwrap();
        assert_eq!(
            (figures.limit, figures.used, figures.required),
            (100, used, required)
        );
        assert!(figures.limit - figures.used < figures.required);
    }
}

/// A disk whose readings are counted.
#[derive(Clone)]
struct Watched {
    available: Arc<AtomicU64>,
    readings: Arc<AtomicU64>,
}

impl Probe for Watched {
    fn read(&mut self) -> io::Result<Reading> {
        self.readings.fetch_add(1, SeqCst);
        Ok(Reading::new(self.available.load(SeqCst), 1 << 30))
    }
}

/// What a request leaves on the disk only shows in a reading that begins after its end.
#[tokio::test]
async fn the_last_that_waits_gets_what_another_has_left() {
    let disk = Watched {
        available: Arc::new(1_000.into()),
        readings: Arc::default(),
    };
    let volume = Volume::from_probe(disk.clone()).unwrap();
    let guard = Guard::new(volume.clone()).patience(HOUR);
    let reserve = || guard.try_reserve(Scopes::NONE, Demand::unknown());
    let waiting = reserve().unwrap();
    assert_eq!(waiting.reserved(), 1_000);
    waiting.written(1_000);
    disk.available.store(10, SeqCst);
    Disk::until(&volume, |status| status.claimed == 0).await;
    let other = reserve().unwrap();
    other.written(other.reserved());
    disk.available.store(0, SeqCst);
    // All that is reserved is on the disk.
    Disk::until(&volume, |status| status.claimed == 0).await;

    let reservation = waiting.clone();
    let growing = tokio::spawn(async move { reservation.grow(100).await });
    let before = disk.readings.load(SeqCst);
    eventually("readings without room", || {
        volume.refresh();
        disk.readings.load(SeqCst) >= before + 3
    })
    .await;
    assert!(!growing.is_finished());
    // The other has removed its file.
    disk.available.store(500, SeqCst);
    drop(other);
    in_time(growing).await.unwrap().unwrap();
    assert_eq!(waiting.reserved(), 1_000 + 100);
}
