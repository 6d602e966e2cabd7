//! Open uploads whose clients send nothing: how long they keep the room for the rest, and when it is taken back.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use test_support::{
    service::{Content, full},
    silent::{Kept, fits},
};
use tokio::{sync::mpsc, task::yield_now, time::sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_storage_guard::upload::{Chunks, Uploads};

use crate::several_requests::{Site, plain, tus};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: u64 = 100;

fn site(uploads: Uploads) -> Site {
    Site::set(1 << 20, LIMIT, uploads, |layer| {
        layer.patience(Duration::ZERO)
    })
}

/// A request beside the uploads.
async fn put(site: &Site, bytes: usize) -> u16 {
    site.status(plain("PUT", "/other", bytes)).await
}

async fn rest() {
    for _ in 0..20 {
        yield_now().await;
    }
}

/// Content that comes when the test sends it.
fn by_hand() -> (mpsc::UnboundedSender<usize>, Content) {
    let (send, sent) = mpsc::unbounded_channel();
    let frames = UnboundedReceiverStream::new(sent);
    let frames =
        futures_util::StreamExt::map(frames, |bytes| Ok(Frame::data(Bytes::from(vec![7; bytes]))));
    (send, StreamBody::new(frames).boxed_unsync())
}

#[tokio::test(start_paused = true)]
async fn an_upload_holds_its_rest_only_while_no_other_request_needs_it() {
    let site = site(Uploads::default());
    let file = site.begin(LIMIT).await.unwrap();
    assert_eq!(site.patch(&file, 0, full(10)).await, 204);
    sleep(59 * SECOND).await;
    assert_eq!(put(&site, 20).await, 507);
    // No request needs it.
    sleep(600 * SECOND).await;
    assert_eq!(site.held(), LIMIT);
    // Not even the rest would do.
    assert_eq!(put(&site, 91).await, 507);
    assert_eq!(site.held(), LIMIT);

    assert_eq!(put(&site, 20).await, 201);
    assert_eq!((site.used(), site.held()), (20, 10));
    let progress = site.uploads.get(&file).unwrap();
    assert_eq!(
        (progress.whole, progress.reserved, progress.received),
        (Some(LIMIT), 10, 10)
    );
    // The rest does not fit any more. Nothing is lost of what was received.
    assert_eq!(site.patch(&file, 10, full(90)).await, 507);
    assert_eq!(site.uploads.get(&file).unwrap().received, 10);
    let delete = tus("DELETE", &file).body(full(0)).unwrap();
    assert_eq!(site.status(delete).await, 204);
    assert_eq!((site.used(), site.held()), (20, 0));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_goes_on_reserves_its_rest_again() {
    let site = site(Uploads::default().stall_grace(10 * SECOND));
    let file = site.begin(60).await.unwrap();
    sleep(11 * SECOND).await;
    // It is refused after all, and the room is there again.
    let (send, content) = by_hand();
    let other = site.patch("/nowhere", 0, content);
    drop(send);
    assert_eq!(other.await, 409);
    let taken = Request::put("/x")
        .header("content-length", 90)
        .body(full(90))
        .unwrap();
    assert_eq!(site.status(taken).await, 201);
    assert_eq!(site.patch(&file, 0, full(10)).await, 507);
}

/// A request that brings nothing does not keep the room, however often it comes.
#[tokio::test(start_paused = true)]
async fn requests_without_content_do_not_keep_the_room() {
    let site = site(Uploads::default());
    let file = site.begin(LIMIT).await.unwrap();
    for _ in 0..7 {
        sleep(10 * SECOND).await;
        assert_eq!(site.patch(&file, 0, full(0)).await, 204);
        let head = tus("HEAD", &file).body(full(0)).unwrap();
        site.status(head).await;
    }
    assert_eq!(put(&site, 20).await, 201);
}

/// Two requests in flight, one after the other, that send nothing.
#[tokio::test(start_paused = true)]
async fn requests_in_flight_that_are_silent_do_not_keep_the_room() {
    let site = site(Uploads::default());
    let file = site.begin(LIMIT).await.unwrap();
    let (send, content) = by_hand();
    let patch = site.patch(&file, 0, content);
    let others = async {
        send.send(10).unwrap();
        rest().await;
        // Its client is cut at 30 seconds, and comes again.
        sleep(29 * SECOND).await;
        assert_eq!(put(&site, 20).await, 507);
        sleep(2 * SECOND).await;
    };
    assert_eq!(tokio::join!(patch, others).0, 408);
    assert_eq!(site.uploads.get(&file).unwrap().received, 10);

    let (send, content) = by_hand();
    let patch = site.patch(&file, 10, content);
    let others = async {
        sleep(28 * SECOND).await;
        assert_eq!(put(&site, 20).await, 507);
        sleep(SECOND + SECOND / 2).await;
        assert_eq!(put(&site, 20).await, 201);
        assert_eq!((site.used(), site.held()), (20, 10));
        // It goes on, and there is no room for its rest.
        send.send(1).unwrap();
    };
    assert_eq!(tokio::join!(patch, others).0, 507);
    assert_eq!(
        (site.used(), site.uploads.get(&file).unwrap().received),
        (20, 10)
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_that_goes_on_reserves_its_rest_again() {
    let site = site(Uploads::default().stall_grace(10 * SECOND));
    let file = site.begin(80).await.unwrap();
    let (send, content) = by_hand();
    let patch = site.patch(&file, 0, content);
    let others = async {
        send.send(10).unwrap();
        sleep(15 * SECOND).await;
        let second = site.begin(60).await.unwrap();
        assert_eq!(site.held(), 70);
        let delete = tus("DELETE", &second).body(full(0)).unwrap();
        assert_eq!(site.status(delete).await, 204);
        send.send(30).unwrap();
        rest().await;
        assert_eq!(site.held(), 80);
        send.send(40).unwrap();
        drop(send);
    };
    assert_eq!(tokio::join!(patch, others).0, 204);
    assert_eq!((site.used(), site.held()), (80, 0));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_sent_keeps_its_room() {
    for uploads in [
        Uploads::default(),
        Uploads::default().stall_grace(Duration::ZERO),
    ] {
        let site = site(uploads);
        let file = site.begin(LIMIT).await.unwrap();
        let (send, content) = by_hand();
        let patch = site.patch(&file, 0, content);
        let others = async {
            for _ in 0..LIMIT {
                send.send(1).unwrap();
                assert_eq!(put(&site, 20).await, 507);
                sleep(SECOND / 10).await;
            }
            drop(send);
        };
        assert_eq!(tokio::join!(patch, others).0, 204);
        assert_eq!((site.used(), site.held()), (LIMIT, 0));
    }
}

/// Chunks in any order, of which some are silent.
#[tokio::test(start_paused = true)]
async fn chunks_that_are_silent_give_back_what_they_have_drawn() {
    let site = site(Uploads::new(Chunks::under("/chunks")));
    let chunk = |name: &str, content| {
        let request = Request::put(format!("/chunks/1/{name}")).header("oc-total-length", 90);
        site.status(request.header("content-length", 30).body(content).unwrap())
    };
    assert_eq!(chunk("1", full(30)).await, 201);
    let ((one, first), (two, second)) = (by_hand(), by_hand());
    let others = async {
        one.send(10).unwrap();
        two.send(20).unwrap();
        sleep(29 * SECOND).await;
        // Their requests are new, but of the upload nothing has come for a while.
        assert_eq!(put(&site, 30).await, 507);
        sleep(2 * SECOND).await;
    };
    let statuses = tokio::join!(chunk("2", first), chunk("3", second), others);
    assert_eq!((statuses.0, statuses.1), (408, 408));
    sleep(30 * SECOND).await;
    assert_eq!(put(&site, 30).await, 201);
    // What may have been stored of them counts.
    assert_eq!((site.used(), site.held()), (30, 60));
    assert_eq!(chunk("2", full(30)).await, 507);
}

/// One tick of the generated test, and how many of them an upload may be silent.
const TICK: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(50);
const GRACE_TICKS: u64 = 3;

#[derive(Clone, Copy, Debug)]
enum Act {
    Begin(u64),
    Patch(usize, u64),
    Remove(usize),
    Put(u64),
    Wait,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (1..=LIMIT).prop_map(Act::Begin),
        4 => (any::<usize>(), 0..=LIMIT).prop_map(|(which, bytes)| Act::Patch(which, bytes)),
        1 => any::<usize>().prop_map(Act::Remove),
        1 => (1..30_u64).prop_map(Act::Put),
        2 => Just(Act::Wait),
    ]
}

/// What the model knows of an upload.
struct Known {
    path: String,
    kept: Kept,
}

#[derive(Default)]
struct Model {
    open: Vec<Known>,
    used: u64,
    tick: u64,
}

impl Model {
    fn held(&self) -> u64 {
        self.open.iter().map(|it| it.kept.reserved).sum()
    }

    /// Whether so much fits, after it was taken back from the silent ones, but for one.
    fn fits(&mut self, bytes: u64) -> bool {
        let left = LIMIT - self.used - self.held();
        let since = self.tick.checked_sub(GRACE_TICKS);
        let all = self.open.iter_mut().map(|it| &mut it.kept);
        fits(bytes, left, since, all)
    }
}

async fn the_guard_does_as_the_model(acts: &[Act]) {
    let site = site(Uploads::default().stall_grace(GRACE));
    let mut model = Model::default();
    for act in acts {
        match *act {
            Act::Begin(whole) => {
                let fits = model.fits(whole);
                let begun = site.begin(whole).await;
                assert_eq!(begun.is_ok(), fits, "{act:?}");
                let last = model.tick;
                model.open.extend(begun.map(|path| Known {
                    path,
                    kept: Kept {
                        length: whole,
                        received: 0,
                        reserved: whole,
                        last,
                    },
                }));
            }
            Act::Patch(which, bytes) if !model.open.is_empty() => {
                let which = which % model.open.len();
                let it = model.open[which].kept;
                let bytes = bytes.min(it.length - it.received);
                // A request without content needs nothing.
                let lacks = if bytes == 0 {
                    0
                } else {
                    it.length - it.reserved
                };
                let fits = lacks == 0 || model.fits(lacks);
                let Known { path, kept: it } = &mut model.open[which];
                let status = site.patch(path, it.received, full(bytes as usize)).await;
                assert_eq!(status, if fits { 204 } else { 507 }, "{act:?}");
                if fits {
                    it.reserved = if bytes == 0 { it.reserved } else { it.length };
                    it.received += bytes;
                    if bytes > 0 {
                        it.last = model.tick;
                    }
                    if it.received == it.length {
                        model.used += it.length;
                        model.open.remove(which);
                    }
                }
            }
            Act::Remove(which) if !model.open.is_empty() => {
                let it = model.open.remove(which % model.open.len());
                let delete = tus("DELETE", &it.path).body(full(0)).unwrap();
                assert_eq!(site.status(delete).await, 204);
            }
            Act::Put(bytes) => {
                let fits = model.fits(bytes);
                let status = put(&site, bytes as usize).await;
                assert_eq!(status, if fits { 201 } else { 507 }, "{act:?}");
                model.used += if fits { bytes } else { 0 };
            }
            Act::Patch(..) | Act::Remove(_) | Act::Wait => {}
        }
        let known = (model.used, model.held());
        assert_eq!((site.used(), site.held()), known, "{act:?}");
        assert_eq!(site.uploads.len(), model.open.len());
        sleep(TICK).await;
        model.tick += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(test_support::times(32)))]

    #[test]
    fn silent_uploads_and_those_that_need_room(acts in prop::collection::vec(any_act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(the_guard_does_as_the_model(&acts));
    }
}
