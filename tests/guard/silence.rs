//! Clients that stop sending: how long they hold room, and when it is taken back.

use std::{convert::Infallible, io, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::prelude::*;
use test_support::{
    disk::Disk,
    service::{Content, Incoming, USER, answer, read_all},
    silent::{Kept, fits},
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, yield_now},
    time::{Instant, sleep},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};
use tower_storage_guard::{
    Amount, Demand, Guard, Reservation, ResponseBody, StorageGuardLayer, TryReserveError,
    quota::{Limits, MemoryQuota, QuotaSource},
    setup::Charges,
};

const SECOND: Duration = Duration::from_secs(1);

type Answer = http::Response<ResponseBody<Full<Bytes>>>;
type Service = BoxCloneService<Request<Content>, Answer, Infallible>;

fn service<Q: QuotaSource, P: Charges<Q>>(layer: StorageGuardLayer<Q, P>) -> Service {
    BoxCloneService::new(layer.layer(service_fn(read_all)))
}

/// A client that sends when the test says so.
struct Client {
    frames: mpsc::UnboundedSender<io::Result<Frame<Bytes>>>,
    call: JoinHandle<Answer>,
}

impl Client {
    async fn begin(service: &Service, request: http::request::Builder) -> Self {
        let (frames, sent) = mpsc::unbounded_channel();
        let content = StreamBody::new(UnboundedReceiverStream::new(sent)).boxed_unsync();
        let call = service.clone().oneshot(request.body(content).unwrap());
        let call = tokio::spawn(async { call.await.unwrap() });
        rest().await;
        Self { frames, call }
    }

    /// An upload that announces its length.
    async fn upload(service: &Service, length: u64) -> Self {
        let request = Request::put("/files/a").header("content-length", length);
        Self::begin(service, request).await
    }

    async fn send(&self, bytes: u64) {
        let data = Bytes::from(vec![7; bytes as usize]);
        // One that was cut does not hear it.
        let _ = self.frames.send(Ok(Frame::data(data)));
        rest().await;
    }

    /// Ends its body, and returns the status of the answer and the reason in it.
    async fn end(self) -> (u16, Option<String>) {
        drop(self.frames);
        Self::hear(self.call).await
    }

    async fn hear(call: JoinHandle<Answer>) -> (u16, Option<String>) {
        let answer = call.await.unwrap();
        let status = answer.status().as_u16();
        let content = answer.into_body().collect().await.unwrap().to_bytes();
        let content: serde_json::Value = serde_json::from_slice(&content).unwrap_or_default();
        (status, content["reason"].as_str().map(str::to_owned))
    }
}

/// Lets all tasks run until they wait for something.
async fn rest() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn reason(status: u16, reason: &str) -> (u16, Option<String>) {
    (status, Some(reason.to_owned()))
}

fn stored() -> (u16, Option<String>) {
    (201, None)
}

fn full_disk() -> (u16, Option<String>) {
    reason(507, "disk_full")
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_answered_408() {
    let volume = Disk::new(1 << 20).volume();
    let service = service(StorageGuardLayer::new(volume.clone()));
    let begun = Instant::now();
    let client = Client::upload(&service, 1 << 20).await;
    client.send(1_000).await;
    sleep(29 * SECOND).await;
    assert!(!client.call.is_finished());
    let Client { frames, call } = client;
    assert_eq!(Client::hear(call).await, reason(408, "body_stalled"));
    assert_eq!(begun.elapsed().as_secs(), 30);
    drop(frames);
    Disk::until_settled(&volume).await;
}

/// Its room is free at once, even if the handler does something else first.
#[tokio::test(start_paused = true)]
async fn what_has_stalled_is_given_back_before_it_is_answered() {
    let quota = MemoryQuota::new(Limits::bytes(1_000));
    let layer = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let slow = layer.layer(service_fn(async |request: Request<Incoming>| {
        let read = request.into_body().collect().await;
        sleep(3_600 * SECOND).await;
        Ok(answer(if read.is_ok() { 201 } else { 500 }))
    }));
    let client = Client::upload(&BoxCloneService::new(slow), 1_000).await;
    client.send(10).await;
    assert_eq!(quota.usage(USER).held.bytes, 1_000);
    sleep(31 * SECOND).await;
    assert_eq!(quota.usage(USER).held.bytes, 10);
    assert_eq!(Client::hear(client.call).await.0, 408);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_trickles_is_cut_at_the_lowest_rate() {
    for (rate, bytes, every, is_cut) in [
        // As by default.
        (None, 1, 29, true),
        (None, 400, 1, true),
        (None, 600, 1, false),
        (Some(0), 1, 29, false),
        (Some(10_000), 9_000, 1, true),
        (Some(10_000), 11_000, 1, false),
    ] {
        let mut layer = StorageGuardLayer::new(Disk::new(1 << 30).volume());
        if let Some(rate) = rate {
            layer = layer.min_rate(rate);
        }
        let client = Client::upload(&service(layer), 100 << 20).await;
        let begun = Instant::now();
        while begun.elapsed() < 600 * SECOND && !client.call.is_finished() {
            client.send(bytes).await;
            sleep(every * SECOND).await;
        }
        let case = (rate, bytes, every, begun.elapsed());
        assert_eq!(client.call.is_finished(), is_cut, "{case:?}");
        if is_cut {
            assert_eq!(client.end().await, reason(408, "body_stalled"), "{case:?}");
        }
        if rate.is_none() && every == 29 {
            assert!(begun.elapsed() < 300 * SECOND, "{case:?}");
        }
    }
}

/// Neither before it reads, nor while it does something else.
#[tokio::test(start_paused = true)]
async fn the_time_of_the_handler_is_not_the_clients() {
    let layer = StorageGuardLayer::new(Disk::new(1 << 30).volume());
    let busy = layer.layer(service_fn(async |request: Request<Incoming>| {
        sleep(3_600 * SECOND).await;
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return Ok(answer(500));
            }
            sleep(60 * SECOND).await;
        }
        Ok(answer(201))
    }));
    let client = Client::upload(&BoxCloneService::new(busy), 3).await;
    for _ in 0..3 {
        client.send(1).await;
    }
    assert_eq!(client.end().await, stored());
}

#[tokio::test(start_paused = true)]
async fn named_calls_may_be_silent_unless_a_timeout_is_set() {
    let volume = Disk::new(1 << 30).volume();
    for (name, timeout, is_cut) in [
        ("test.v1.Store/Put", None, false),
        ("test.v1.Store/Put", Some(5), true),
        // Guarded as a POST: its client chose the content type.
        ("test.v1.Store/Other", None, true),
    ] {
        let mut layer = StorageGuardLayer::new(volume.clone());
        if name.ends_with("Put") {
            layer = layer.calls([name]).unwrap();
        }
        if let Some(timeout) = timeout {
            layer = layer.stall_timeout(timeout * SECOND);
        }
        let request = Request::post(format!("/{name}")).header("content-type", "application/grpc");
        let client = Client::begin(&service(layer), request).await;
        client.send(10).await;
        sleep(3_600 * SECOND).await;
        assert_eq!(client.call.is_finished(), is_cut, "{name}");
        if is_cut {
            let answer = client.call.await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["grpc-status"], "4");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_timeout_a_body_may_take_any_time() {
    let layer = StorageGuardLayer::new(Disk::new(1 << 30).volume()).stall_timeout(None);
    let client = Client::upload(&service(layer), 10).await;
    for _ in 0..10 {
        sleep(600 * SECOND).await;
        client.send(1).await;
    }
    assert_eq!(client.end().await, stored());
}

#[tokio::test(start_paused = true)]
async fn silence_holds_room_only_while_no_other_request_needs_it() {
    const ALL: u64 = 100 << 10;

    let volume = Disk::new(ALL).volume();
    let service = service(StorageGuardLayer::new(volume.clone()).patience(SECOND / 2));
    let silent = Client::upload(&service, ALL).await;
    silent.send(1_000).await;
    // Within the grace it keeps what it has.
    sleep(SECOND).await;
    assert_eq!(
        Client::upload(&service, 5_000).await.end().await,
        full_disk()
    );
    // No request needs it.
    sleep(5 * SECOND).await;
    assert_eq!(volume.status().claimed, ALL);
    // What would not fit anyway takes nothing.
    assert_eq!(Client::upload(&service, ALL).await.end().await, full_disk());
    assert_eq!(volume.status().claimed, ALL);

    let other = Client::upload(&service, 5_000).await;
    assert!(volume.status().claimed < 20_000);
    // The rest of it does not fit any more.
    silent.send(1_000).await;
    assert_eq!(Client::hear(silent.call).await, full_disk());
    other.send(5_000).await;
    assert_eq!(other.end().await, stored());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_on_gets_its_room_again() {
    const ALL: u64 = 100 << 10;

    let volume = Disk::new(ALL).volume();
    let service = service(StorageGuardLayer::new(volume.clone()));
    let silent = Client::upload(&service, ALL).await;
    sleep(5 * SECOND).await;
    let other = Client::upload(&service, ALL / 2).await;
    assert_eq!(volume.status().claimed, ALL / 2);
    // It leaves, and stores nothing.
    other.call.abort();
    rest().await;
    silent.send(1).await;
    assert_eq!(volume.status().claimed, ALL);
    silent.send(ALL - 1).await;
    assert_eq!(silent.end().await, stored());
}

/// The longest silent first, and no more of them than are needed.
#[tokio::test(start_paused = true)]
async fn no_more_is_taken_back_than_is_needed() {
    let quota = MemoryQuota::new(Limits::bytes(300));
    let layer = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let service = service(layer);
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(Client::upload(&service, 100).await);
        sleep(SECOND).await;
    }
    sleep(5 * SECOND).await;
    let other = Client::upload(&service, 50).await;
    assert_eq!(quota.usage(USER).held.bytes, 250);
    let first = silent.remove(0);
    first.send(1).await;
    // It has to be reserved again, and that takes from the next.
    assert!(!first.call.is_finished());
    assert_eq!(quota.usage(USER).held.bytes, 250);
    for client in silent.into_iter().rev().take(1) {
        client.send(100).await;
        assert_eq!(client.end().await, stored());
    }
    other.send(50).await;
    assert_eq!(other.end().await, stored());
    first.send(99).await;
    assert_eq!(first.end().await, stored());
}

/// Waits for a silence that begins while it waits.
#[tokio::test(start_paused = true)]
async fn who_waits_hears_of_a_silence() {
    let volume = Disk::new(1 << 20).volume();
    let service = service(StorageGuardLayer::new(volume).patience(10 * SECOND));
    let _silent = Client::upload(&service, 1 << 20).await;
    let begun = Instant::now();
    let other = Client::upload(&service, 1_000).await;
    other.send(1_000).await;
    assert_eq!(other.end().await, stored());
    assert_eq!(begun.elapsed().as_secs(), 2);
}

/// Any code that reserves, and any body that grows.
#[tokio::test(start_paused = true)]
async fn jobs_and_growths_take_back_too() {
    let volume = Disk::new(1 << 20).volume();
    let guard = Guard::new(volume.clone());
    let service = service(StorageGuardLayer::new(guard.clone()));
    let silent = Client::upload(&service, 1 << 20).await;
    sleep(SECOND).await;
    let refused = guard.try_reserve([USER; 0], Demand::known(1_000));
    assert!(matches!(refused, Err(TryReserveError::Refused(_))));
    sleep(5 * SECOND).await;
    drop(guard.try_reserve([USER; 0], Demand::known(1_000)).unwrap());
    silent.send(1).await;
    assert!(!silent.call.is_finished());

    // It has all of it again.
    sleep(5 * SECOND).await;
    let growing = Client::begin(&service, Request::put("/files/b")).await;
    growing.send(500 << 10).await;
    assert_eq!(growing.end().await, stored());
}

/// What a handler has reserved by itself is not its client's to lose.
#[tokio::test(start_paused = true)]
async fn what_the_handler_has_grown_by_stays() {
    let quota = MemoryQuota::new(Limits::bytes(1_000));
    let layer = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let copies = layer
        .clone()
        .layer(service_fn(async |request: Request<Incoming>| {
            let reservation = request.extensions().get::<Reservation>().unwrap().clone();
            reservation.grow(300).await.unwrap();
            read_all(request).await
        }));
    let silent = Client::upload(&BoxCloneService::new(copies), 700).await;
    silent.send(100).await;
    sleep(5 * SECOND).await;
    let other = Client::upload(&service(layer.clone()), 600).await;
    assert_eq!(quota.usage(USER).held.bytes, 1_000);
    assert_eq!(Client::upload(&service(layer), 1).await.end().await.0, 507);
    other.send(600).await;
    assert_eq!(other.end().await, stored());
    silent.send(1).await;
    assert_eq!(
        Client::hear(silent.call).await,
        reason(507, "quota_exceeded")
    );
}

/// A store hears of what was given back a little later than its next reservation may come.
#[cfg(feature = "store-sqlite")]
#[tokio::test]
async fn room_comes_back_through_a_store_too() {
    use tower_storage_guard::store::{LeasedQuota, SqliteStore, StoredQuota};

    async fn comes_back(quota: impl QuotaSource + Clone) {
        let layer = StorageGuardLayer::quota_only(quota)
            .scope_by(|_| USER)
            .patience(10 * SECOND)
            .stall_grace(SECOND / 20);
        let service = service(layer);
        let silent = Client::upload(&service, 1_000).await;
        silent.send(10).await;
        sleep(SECOND).await;
        let other = Client::upload(&service, 600).await;
        other.send(600).await;
        assert_eq!(other.end().await, stored());
        silent.send(1).await;
        let answer = Client::hear(silent.call).await;
        assert_eq!(answer, reason(507, "quota_exceeded"));
    }

    let folder = tempfile::tempdir().unwrap();
    let store = |name| SqliteStore::open(folder.path().join(name)).unwrap();
    let limits = Limits::bytes(1_000);
    comes_back(StoredQuota::builder(store("plain"), limits).build()).await;
    comes_back(LeasedQuota::new(
        StoredQuota::builder(store("leased"), limits).build(),
    ))
    .await;
}

/// One tick of the generated test.
const TICK: Duration = Duration::from_millis(500);
/// Visible from the fourth tick on.
const GRACE: Duration = Duration::from_millis(1_750);
const GRACE_TICKS: u64 = 4;
const LIMIT: u64 = 100;

#[derive(Clone, Copy, Debug)]
enum Act {
    Begin(u64),
    Send(usize, u64),
    Leave(usize),
    Wait,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (1..=LIMIT).prop_map(Act::Begin),
        4 => (any::<usize>(), 1..=LIMIT).prop_map(|(who, bytes)| Act::Send(who, bytes)),
        1 => any::<usize>().prop_map(Act::Leave),
        3 => Just(Act::Wait),
    ]
}

#[derive(Default)]
struct Model {
    requests: Vec<Kept>,
    used: u64,
    tick: u64,
}

impl Model {
    fn held(&self) -> u64 {
        self.requests.iter().map(|it| it.reserved).sum()
    }

    /// Whether so much fits, after it was taken back from the silent.
    fn fits(&mut self, bytes: u64) -> bool {
        let left = LIMIT - self.used - self.held();
        let since = self.tick.checked_sub(GRACE_TICKS);
        fits(bytes, left, since, self.requests.iter_mut())
    }

    /// A client sends. What was taken from it is reserved again, as a whole, or it is cut.
    fn goes_on(&mut self, who: usize) -> bool {
        self.requests[who].last = self.tick;
        let it = self.requests[who];
        let lacks = it.length - it.reserved;
        let goes_on = lacks == 0 || self.fits(lacks);
        if goes_on {
            self.requests[who].reserved = it.length;
        }
        goes_on
    }
}

async fn the_guard_does_as_the_model(acts: &[Act]) {
    let quota = MemoryQuota::new(Limits::bytes(LIMIT));
    let layer = StorageGuardLayer::quota_only(quota.clone())
        .scope_by(|_| USER)
        .patience(Duration::ZERO)
        .stall_grace(GRACE)
        .stall_timeout(None);
    let service = service(layer);
    let (mut model, mut clients) = (Model::default(), Vec::new());
    let refused = || reason(507, "quota_exceeded");
    for act in acts {
        match *act {
            Act::Begin(length) => {
                let is_admitted = model.fits(length);
                let client = Client::upload(&service, length).await;
                assert_eq!(!client.call.is_finished(), is_admitted, "{act:?}");
                if is_admitted {
                    model.requests.push(Kept {
                        length,
                        received: 0,
                        reserved: length,
                        last: model.tick,
                    });
                    clients.push(client);
                } else {
                    assert_eq!(client.end().await, refused());
                }
            }
            Act::Send(who, bytes) if !clients.is_empty() => {
                let who = who % clients.len();
                let goes_on = model.goes_on(who);
                let it = &mut model.requests[who];
                let bytes = bytes.min(it.length - it.received);
                it.received += bytes;
                clients[who].send(bytes).await;
                let is_over = it.received == it.length;
                if is_over || !goes_on {
                    let (it, client) = (model.requests.remove(who), clients.remove(who));
                    let answer = Client::end(client).await;
                    assert_eq!(
                        answer,
                        if goes_on { stored() } else { refused() },
                        "{act:?}"
                    );
                    model.used += if goes_on { it.length } else { 0 };
                }
            }
            Act::Leave(who) if !clients.is_empty() => {
                let who = who % clients.len();
                model.requests.remove(who);
                clients.remove(who).call.abort();
                rest().await;
            }
            Act::Send(..) | Act::Leave(_) | Act::Wait => {}
        }
        let usage = quota.usage(USER);
        let known = (model.held(), model.used);
        assert_eq!((usage.held.bytes, usage.used.bytes), known, "{act:?}");
        sleep(TICK).await;
        rest().await;
        model.tick += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(test_support::times(32)))]

    #[test]
    fn the_silent_and_those_that_need_room(acts in prop::collection::vec(any_act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(the_guard_does_as_the_model(&acts));
    }
}
