//! What a review found, so that it stays found.

use std::{
    convert::Infallible,
    future::ready,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use test_support::service::{Content, Incoming, USER, answer, chunked, full, layer, put, read_all};
use test_support::{disk::Disk, eventually};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_storage_guard::{
    Amount, Demand, MeteredBody, Probe, Reading, Refused, Reservation, ResponseBody, Scope, Scopes,
    StorageGuardLayer, Volume,
    quota::{FunctionQuota, Limits, MemoryQuota, Quota, QuotaSource, quota_future},
};

/// Longer than anything takes that ends at all.
const BOUND: Duration = Duration::from_secs(10);
/// Longer than [`BOUND`]: what waits for it is late.
const HOUR: Duration = Duration::from_secs(3_600);

async fn in_time<F: Future>(future: F) -> F::Output {
    let began = Instant::now();
    let output = timeout(BOUND, future).await.expect("it ends");
    // At the bound it is polled once more, whether or not anybody has woken it.
    assert!(began.elapsed() < BOUND, "nobody woke it");
    output
}

/// Begins something that has to wait.
fn begin<F: Future>(future: Pin<&mut F>) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(future.poll(&mut cx).is_pending());
}

type Answer = Response<ResponseBody<Full<Bytes>>>;

/// A guarded service that hands out what is inside. The test answers.
struct ByHand {
    service: BoxCloneService<Request<Content>, Answer, Infallible>,
    taken: mpsc::UnboundedReceiver<(Reservation, Incoming, oneshot::Sender<u16>)>,
}

/// A request that was let in.
struct Inside {
    reservation: Reservation,
    body: Incoming,
    status: oneshot::Sender<u16>,
    call: JoinHandle<Answer>,
}

impl ByHand {
    fn new<Q>(layer: StorageGuardLayer<Q>) -> Self
    where
        Q: QuotaSource<Hold: Send, Future: Send> + Clone + Send + Sync + 'static,
    {
        let (give, taken) = mpsc::unbounded_channel();
        let service = layer.layer(service_fn(move |request: Request<Incoming>| {
            let (status, told) = oneshot::channel();
            let reservation = request.extensions().get::<Reservation>().unwrap().clone();
            let inside = (reservation, request.into_body(), status);
            give.send(inside).ok().unwrap();
            async { Ok(answer(told.await.unwrap_or(500))) }
        }));
        let service = BoxCloneService::new(service);
        Self { service, taken }
    }

    async fn enter(&mut self, content: Content) -> Inside {
        let call = self.service.clone().oneshot(put(content));
        let call = tokio::spawn(async { call.await.unwrap() });
        let (reservation, body, status) = in_time(self.taken.recv()).await.unwrap();
        Inside {
            reservation,
            body,
            status,
            call,
        }
    }
}

impl Inside {
    async fn answer(self, status: u16) -> Answer {
        drop(self.body);
        self.status.send(status).unwrap();
        in_time(self.call).await.unwrap()
    }
}

/// Once nobody uses the volume any more, it takes so much and not a byte more.
async fn takes_exactly(bytes: u64, volume: &Volume) {
    Disk::until_settled(volume).await;
    for (bytes, status) in [(bytes, 201), (bytes + 1, 507)] {
        let service = StorageGuardLayer::new(volume.clone())
            .price_by(move |_, _| Demand::known(bytes))
            .layer(service_fn(read_all));
        assert_eq!(send(service, put(full(0))).await, status);
    }
}

async fn send<S>(service: S, request: Request<Content>) -> u16
where
    S: Service<Request<Content>, Response = Answer, Error = Infallible>,
{
    let response = in_time(service.oneshot(request)).await.unwrap();
    response.status().as_u16()
}

/// A quota source that waits for the test's answers.
fn asking() -> (FunctionQuota, Lookups) {
    let (ask, lookups) = mpsc::unbounded_channel();
    let quota = quota_future(move |_| {
        let (tell, told) = oneshot::channel();
        ask.send(tell).unwrap();
        told
    });
    (quota, Lookups(lookups))
}

struct Lookups(mpsc::UnboundedReceiver<oneshot::Sender<Quota>>);

impl Lookups {
    async fn tell(&mut self, limit: u64) {
        (self.next().await)(limit);
    }

    /// The next one, to be told the limit.
    async fn next(&mut self) -> impl FnOnce(u64) + use<> {
        let lookup = in_time(self.0.recv()).await.unwrap();
        move |limit| {
            let limits = Limits::bytes(limit);
            let used = Amount::ZERO;
            lookup.send(Quota { limits, used }).unwrap();
        }
    }
}

/// A disk whose probe can be held up, and is counted.
#[derive(Clone, Default)]
struct Slow {
    reads: Arc<AtomicUsize>,
    way: Arc<tokio::sync::Mutex<()>>,
}

impl Probe for Slow {
    fn read(&mut self) -> io::Result<Reading> {
        self.reads.fetch_add(1, SeqCst);
        let _way = self.way.blocking_lock();
        Ok(Reading::new(1_000, 1_000))
    }
}

#[tokio::test]
async fn two_growths_that_find_no_room_are_both_refused() {
    // Where nobody can give any, nobody waits. Where somebody may, each does for its patience, in turn.
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

/// Polls a future on a thread that has no runtime, whenever it is woken.
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

    let volume = Disk::new(1_000).volume().probe_every(PATIENCE / 10);
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
    // What was set aside is given back there, too.
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
async fn body_and_handle_grow_at_once_and_the_books_are_right() {
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
        // What the body asked for again was for both.
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
    // The volume has claimed for both by then. They ask the quota one after the other.
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
async fn a_growth_that_nobody_polls_holds_up_neither_the_line_nor_the_door() {
    for at_the_door in [true, false] {
        let disk = Disk::new(1_000);
        let layer = StorageGuardLayer::new(disk.volume())
            .patience(Duration::from_millis(100))
            .grants(10, 10);
        let mut service = ByHand::new(layer);
        // Of unknown length, so that they are in line by their age.
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
async fn a_growth_beyond_the_volume_is_refused_at_once_and_sends_nobody_away() {
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

#[tokio::test]
async fn a_cut_that_the_answer_swallows_ends_it_in_error() {
    let (_, quota, layer) = layer(100);
    let service = layer.layer(service_fn(|request: Request<Incoming>| {
        // It echoes what it reads, and takes an error for the end.
        let echo = stream::unfold(request.into_body(), async |mut body| {
            let frame = body.frame().await?.ok()?;
            Some((Ok::<_, BoxError>(frame), body))
        });
        ready(Ok::<_, Infallible>(Response::new(
            StreamBody::new(echo).boxed_unsync(),
        )))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    assert_eq!(response.status(), 200);
    let error = in_time(response.into_body().collect()).await.unwrap_err();
    assert!(error.is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

#[tokio::test]
async fn an_idle_answer_is_woken_by_a_cut() {
    let (_, quota, layer) = layer(100);
    let (give, mut taken) = mpsc::unbounded_channel();
    let (polled, mut polls) = mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        give.send(request.into_body()).unwrap();
        let polled = polled.clone();
        let idle = stream::poll_fn(move |_| {
            polled.send(()).unwrap();
            Poll::<Option<Result<Frame<Bytes>, BoxError>>>::Pending
        });
        ready(Ok::<_, Infallible>(Response::new(
            StreamBody::new(idle).boxed_unsync(),
        )))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    let answer = tokio::spawn(response.into_body().collect());
    in_time(polls.recv()).await.unwrap();
    let body = taken.recv().await.unwrap();
    assert!(body.collect().await.unwrap_err().is::<Refused>());
    let error = in_time(answer).await.unwrap().unwrap_err();
    assert!(error.is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

#[tokio::test]
async fn a_cut_behind_a_whole_answer_is_not_charged() {
    let (volume, quota, layer) = layer(100);
    let (give, mut taken) = mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        give.send(request.into_body()).unwrap();
        ready(Ok::<_, Infallible>(answer(202)))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    response.into_body().collect().await.unwrap();
    let body = taken.recv().await.unwrap();
    assert!(body.collect().await.unwrap_err().is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_cut_while_the_answer_is_judged_is_refused() {
    let (_, quota, layer) = layer(100);
    let kept = Arc::new(Mutex::new(None));
    let judged = kept.clone();
    // What another thread might do just then.
    let layer = layer.success_when(move |_| {
        let body: Incoming = judged.lock().unwrap().take().unwrap();
        let read = body.collect().now_or_never().unwrap();
        assert!(read.unwrap_err().is::<Refused>());
        true
    });
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        *kept.lock().unwrap() = Some(request.into_body());
        ready(Ok::<_, Infallible>(answer(201)))
    }));
    assert_eq!(send(service, put(chunked(3, 50))).await, 507);
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn a_refusal_from_a_guard_inside_is_not_charged_whatever_its_status() {
    let (_, quota, outer) = layer(1_000);
    let (_, _, inner) = layer(10);
    let inner = inner.render_with(|_, _| Some(Response::new("refused".into())));
    let service = outer.layer(
        inner.layer(service_fn(|_: Request<MeteredBody<Incoming>>| async {
            Ok::<_, Infallible>(answer(201))
        })),
    );
    let response = service.oneshot(put(full(11))).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "refused");
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn a_volume_that_is_probed_rarely_takes_requests_during_the_next_probe() {
    let disk = Slow::default();
    let age = Duration::from_millis(1_500);
    let volume = Volume::from_probe(disk.clone()).unwrap();
    let volume = volume.probe_every(HOUR).max_age(age);
    eventually("older than a second", || volume.status().age > age).await;
    assert_eq!(disk.reads.load(SeqCst), 1);

    let _held_up = disk.way.lock().await;
    volume.refresh();
    eventually("a probe", || disk.reads.load(SeqCst) == 2).await;
    assert!(!volume.status().is_stale);
    let service = StorageGuardLayer::new(volume).layer(service_fn(read_all));
    assert_eq!(send(service, put(full(10))).await, 201);
}

#[tokio::test]
async fn a_request_that_a_second_look_lets_in_closes_nothing() {
    let disk = Disk::new(50);
    let volume = disk.volume().probe_every(HOUR).resume_at(500);
    disk.set_available(200);
    let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
    assert_eq!(send(service.clone(), put(full(100))).await, 201);
    assert!(!volume.status().is_full);
    assert_eq!(send(service, put(full(50))).await, 201);
}

#[tokio::test]
async fn a_hopeless_request_closes_nothing() {
    let volume = Disk::new(400).volume().resume_at(500);
    let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
    for content in [full(10), chunked(1, 10)] {
        let mut hopeless = put(content);
        let length = "100000000000000000".parse().unwrap();
        hopeless.headers_mut().insert("upload-length", length);
        assert_eq!(send(service.clone(), hopeless).await, 507);
        assert!(!volume.status().is_full);
        assert_eq!(send(service.clone(), put(full(100))).await, 201);
    }
}

#[tokio::test]
async fn a_later_chunk_needs_room_for_what_is_left() {
    for (total, offset) in [
        ("upload-length", "upload-offset"),
        ("oc-total-length", "oc-chunk-offset"),
    ] {
        let disk = Disk::new(300);
        let volume = disk.volume();
        let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
        let chunk = |at: u64| {
            let mut chunk = put(full(100));
            chunk.headers_mut().insert(total, 300.into());
            chunk.headers_mut().insert(offset, at.into());
            send(service.clone(), chunk)
        };
        for at in [0, 100, 200] {
            if at > 0 {
                assert_eq!(chunk(at - 1).await, 507, "{offset} {at}");
            }
            assert_eq!(chunk(at).await, 201, "{offset} {at}");
            disk.set_available(200 - at);
            Disk::until_settled(&volume).await;
        }
    }
}

#[tokio::test]
async fn a_handle_that_is_kept_does_not_keep_the_unread_body() {
    for status in [201, 404] {
        let volume = Disk::new(1_000).volume();
        let mut service = ByHand::new(StorageGuardLayer::new(volume));
        let (client, frames) = mpsc::unbounded_channel();
        let frames = stream::unfold(frames, async |mut frames| {
            Some((frames.recv().await?, frames))
        });
        let inside = service.enter(StreamBody::new(frames).boxed_unsync()).await;
        let reservation = inside.reservation.clone();
        let answer = inside.answer(status).await;
        answer.into_body().collect().await.unwrap();
        assert!(reservation.has_ended());
        in_time(client.closed()).await;
    }
}

#[tokio::test]
async fn what_is_replaced_to_and_fro_is_held_once() {
    let (_, quota, layer) = layer(1_000);
    let layer = layer.price_by(|_, demand| demand.replacing(Amount::bytes(100)));
    let inside = ByHand::new(layer).enter(full(100)).await;
    for _ in 0..15 {
        for replaced in [Amount::ZERO, Amount::bytes(100)] {
            inside.reservation.replaces(replaced).await.unwrap();
            assert_eq!(quota.usage(USER).held, Amount::new(100, 1));
        }
    }
    // It is nothing in the end, and what is held goes further.
    inside.reservation.grow(100).await.unwrap();
    assert_eq!(quota.usage(USER).held, Amount::new(100, 1));
    inside.reservation.stored(200);
    inside.answer(201).await;
    assert_eq!(quota.usage(USER).used, Amount::new(100, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn a_volume_that_is_dropped_leaves_no_thread() {
    let disk = Slow::default();
    for _ in 0..50 {
        let volume = Volume::from_probe(disk.clone()).unwrap();
        drop(volume.probe_every(HOUR));
    }
    // Every thread owns its probe.
    let probes = || Arc::strong_count(&disk.reads) - 1;
    eventually("no probe is left", || probes() == 0).await;
}

#[tokio::test]
async fn a_request_for_nothing_is_let_in_though_the_reading_is_too_old() {
    let disk = Slow::default();
    let volume = Volume::from_probe(disk.clone()).unwrap();
    let volume = volume.max_age(Duration::ZERO);
    let _held_up = disk.way.lock().await;
    volume.refresh();
    eventually("too old", || volume.status().is_stale).await;
    let service = StorageGuardLayer::new(volume)
        .price_by(|_, demand| demand.with_objects(0))
        .layer(service_fn(read_all));
    assert_eq!(send(service.clone(), put(full(0))).await, 201);
    assert_eq!(send(service, put(full(1))).await, 503);
}

/// The cut comes within the answer's own poll, which then goes idle.
#[tokio::test]
async fn an_answer_that_goes_idle_over_a_cut_ends_in_error() {
    let (_, _, layer) = layer(100);
    let service = layer.layer(service_fn(|request: Request<Incoming>| {
        let mut body = request.into_body();
        let idle = stream::poll_fn(move |cx| {
            while let Poll::Ready(Some(Ok(_))) = http_body::Body::poll_frame(pin!(&mut body), cx) {}
            Poll::<Option<Result<Frame<Bytes>, BoxError>>>::Pending
        });
        ready(Ok::<_, Infallible>(Response::new(
            StreamBody::new(idle).boxed_unsync(),
        )))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    let error = in_time(response.into_body().collect()).await.unwrap_err();
    assert!(error.is::<Refused>());
}

/// 150 bytes are let in where the limit is 120.
#[tokio::test]
async fn a_growth_does_not_count_on_what_a_correction_has_only_asked_for() {
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

/// two growths in the quota's line.
#[tokio::test]
async fn a_growth_does_not_count_on_what_another_has_only_asked_for() {
    let volume = Disk::new(100_000).volume();
    let (quota, mut lookups) = asking();
    let layer = StorageGuardLayer::new(volume)
        .quota(quota)
        .scope_by(|_| USER)
        .quota_timeout(HOUR)
        .patience(Duration::from_millis(200));
    let mut service = ByHand::new(layer);
    let (inside, ()) = tokio::join!(service.enter(full(100)), lookups.tell(1_000));
    // Company, so that waiting may help.
    let (other, ()) = tokio::join!(service.enter(full(100)), lookups.tell(1_000));
    let (grown, ()) = tokio::join!(other.reservation.grow(100), lookups.tell(1_000));
    grown.unwrap();
    // 300 are held; 100 more do not fit for now.
    let mut small = pin!(inside.reservation.grow(100));
    begin(small.as_mut());
    lookups.tell(350).await;
    begin(small.as_mut());
    // Another asks for its 500, and for those 100 too.
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

/// A grant of 64 KiB is more than the limit. That says nothing of the 30 KiB that there is room for.
#[tokio::test]
async fn a_grant_larger_than_the_limit_is_no_reason_to_cut() {
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

/// By the 64 KiB that a grant is, the user's own limit would be the one. By the byte that is needed, it is not.
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
    let refusal = error.downcast_ref::<Refused>().unwrap().refusal();
    assert_eq!(refusal.scope(), Some(&Scope::from("all")));
    let figures = refusal.figures().unwrap();
    assert_eq!(
        (figures.limit, figures.used, figures.required),
        (1_200, 1_200, 1)
    );
    assert!(refusal.is_temporary());
}
