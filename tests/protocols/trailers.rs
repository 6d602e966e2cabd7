//! The end of a gRPC call: the status that its client gets, and what is charged or released.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use test_support::eventually;
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, ResponseBody, Scopes,
    quota::{Answer, Change, Limits, MemoryQuota, QuotaError, QuotaHold, QuotaSource},
};

use crate::{
    calls_by_hand::{ByHand, Content, Replies, echo, post, trailers},
    grpc::{Guarded, LIMIT, USER},
};

type Inner = ResponseBody<Replies>;

/// A quota whose commits wait for the test.
#[derive(Clone)]
struct Slow {
    quota: MemoryQuota,
    commits: Arc<AtomicUsize>,
    open: Arc<tokio::sync::Semaphore>,
}

impl Slow {
    fn new(quota: MemoryQuota) -> Self {
        Self {
            quota,
            commits: Arc::default(),
            open: Arc::new(tokio::sync::Semaphore::new(0)),
        }
    }
}

impl QuotaSource for Slow {
    type Future = BoxFuture<'static, Result<Self::Hold, QuotaError>>;
    type Hold = SlowHold<<MemoryQuota as QuotaSource>::Hold>;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let (slow, held) = (self.clone(), self.quota.reserve(scopes, demand, expected));
        Answer::Later(async { Ok(SlowHold(held.await?, slow)) }.boxed())
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        self.quota.charge(scopes, change);
    }
}

struct SlowHold<H>(H, Slow);

impl<H: QuotaHold> QuotaHold for SlowHold<H> {
    type Commit = BoxFuture<'static, ()>;
    type Grow = H::Grow;

    fn grow(&mut self, more: Amount) -> H::Grow {
        self.0.grow(more)
    }

    fn shrink_to(&mut self, to: Amount) {
        self.0.shrink_to(to);
    }

    fn commit(self, change: Change) -> Answer<Self::Commit> {
        let Self(hold, slow) = self;
        slow.commits.fetch_add(1, SeqCst);
        drop(hold.commit(change));
        Answer::Later(async move { drop(slow.open.acquire().await) }.boxed())
    }
}

/// If a handler pipes the request, the cut is in its answer before the guard has checked.
#[tokio::test]
async fn a_cut_that_comes_as_the_answers_error_is_the_refusal() {
    let guarded = Guarded::new();
    let service = service_fn(async |request: Request<MeteredBody<Content>>| {
        let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
        Ok::<_, Infallible>(response.body(request.into_body()).unwrap())
    });
    let content = stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![7; 10_000]))));
    let content = StreamBody::new(content.take(20)).boxed_unsync();
    let request = post("/test.v1.Store/Any", "application/grpc", content);
    let answer = guarded.layer.layer(service).oneshot(request).await.unwrap();
    let answer = answer.into_body().collect().await.expect("no error");
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "8");
    guarded.all_is_settled(0).await;
}

/// The length may change at the end.
#[tokio::test]
async fn the_length_of_a_call_is_not_announced() {
    let guarded = Guarded::new();
    for content_type in ["application/grpc", "application/grpc-web+proto"] {
        let service = service_fn(async |_: Request<MeteredBody<Content>>| {
            let response = Response::builder()
                .header(CONTENT_TYPE, content_type)
                .header("content-length", 4_000);
            let content = Full::new(Bytes::from(vec![0; 4_000]));
            let content = content.with_trailers(async { Some(Ok(trailers("0"))) });
            Ok::<_, Infallible>(response.body(content).unwrap())
        });
        let content = StreamBody::new(stream::empty()).boxed_unsync();
        let request = post("/test.v1.Store/Any", content_type, content);
        let answer = guarded.layer.layer(service).oneshot(request).await.unwrap();
        assert_eq!(answer.body().size_hint().exact(), None, "{content_type}");
        assert!(!answer.headers().contains_key("content-length"));
    }
}

/// The same failure releases when it is in the trailers.
#[tokio::test]
async fn a_call_that_fails_in_its_head_is_not_charged_whatever_its_http_status() {
    let guarded = Guarded::new();
    let layer = guarded.layer.clone();
    let layer = layer.success_when(|head| head.status.is_success());
    let service = service_fn(async |request: Request<MeteredBody<Content>>| {
        request.into_body().collect().await.unwrap();
        let response = Response::builder()
            .header(CONTENT_TYPE, "application/grpc")
            .header("grpc-status", "5");
        Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
    });
    let content = Full::new(Bytes::from_static(&[7; 1_000]));
    let content = content.map_err(|never| match never {}).boxed_unsync();
    let request = post("/test.v1.Store/Any", "application/grpc", content);
    layer.layer(service).oneshot(request).await.unwrap();
    guarded.all_is_settled(0).await;
}

#[tokio::test]
async fn trailers_before_the_end_of_the_request_wait_for_it_and_a_cut_takes_their_place() {
    // The trailers come first; then the request ends, is broken off, or is cut.
    for (then, used) in [
        ("ends", 1_000),
        ("breaks", 0),
        ("cut", 0),
        ("dropped", 1_000),
    ] {
        let guarded = Guarded::new();
        let mut call = ByHand::call(&guarded.layer, "application/grpc").await;
        call.send
            .send(Ok(Frame::data(vec![7; 1_000].into())))
            .unwrap();
        call.body.frame().await.unwrap().unwrap();
        call.reply.send(Ok(Frame::trailers(trailers("0")))).unwrap();
        let last = call.frame().await.unwrap().unwrap();
        assert_eq!(last.into_trailers().unwrap(), trailers("0"));
        assert_eq!(guarded.quota.usage(USER).used, Amount::ZERO);
        drop(call.answer);
        match then {
            "ends" => {
                drop(call.send);
                assert!(call.body.frame().await.is_none());
                assert!(call.body.frame().await.is_none());
            }
            "breaks" => {
                call.send
                    .send(Err(io::ErrorKind::BrokenPipe.into()))
                    .unwrap();
                call.body.frame().await.unwrap().unwrap_err();
            }
            "cut" => {
                let too_much = Bytes::from(vec![7; LIMIT as usize]);
                call.send.send(Ok(Frame::data(too_much))).unwrap();
                call.body.frame().await.unwrap().unwrap_err();
            }
            _ => drop(call.body),
        }
        guarded.all_is_settled(used).await;
    }
}

#[tokio::test]
async fn the_status_waits_for_its_charge_and_is_charged_once() {
    for is_dropped in [false, true] {
        let guarded = Guarded::new();
        let slow = Slow::new(guarded.quota.clone());
        let layer = guarded.layer.clone().quota(slow.clone());
        let mut call = ByHand::call(&layer, "application/grpc").await;
        call.send
            .send(Ok(Frame::data(vec![7; 1_000].into())))
            .unwrap();
        call.body.frame().await.unwrap().unwrap();
        let (send, _) = mpsc::unbounded_channel();
        drop(std::mem::replace(&mut call.send, send));
        assert!(call.body.frame().await.is_none());
        call.reply.send(Ok(Frame::trailers(trailers("0")))).unwrap();
        assert!(call.answer.body_mut().frame().now_or_never().is_none());
        assert!(!call.answer.body().is_end_stream());
        assert_eq!(slow.commits.load(SeqCst), 1);
        if is_dropped {
            drop(call);
        } else {
            let open = Arc::clone(&slow.open);
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                open.add_permits(1);
            });
            let last = call.frame().await.unwrap().unwrap();
            assert_eq!(last.into_trailers().unwrap(), trailers("0"));
            assert!(call.answer.body().is_end_stream());
            assert!(call.frame().await.is_none());
        }
        guarded.all_is_settled(1_000).await;
        assert_eq!(slow.commits.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn an_answer_that_panics_or_is_not_read_is_released() {
    let guarded = Guarded::new();
    let call = ByHand::call(&guarded.layer, "application/grpc").await;
    assert_ne!(guarded.quota.usage(USER).held, Amount::ZERO);
    let ByHand { answer, body, .. } = call;
    drop(answer);
    eventually("it is released", || {
        guarded.quota.usage(USER).held == Amount::ZERO
    })
    .await;
    drop(body);
    guarded.all_is_settled(0).await;

    let service = service_fn(async |_: Request<MeteredBody<Content>>| {
        let content = stream::once(async { panic!("halfway") });
        let content = StreamBody::new(content.map(|()| Ok(Frame::data(Bytes::new()))));
        let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
        Ok::<_, Infallible>(response.body(content.boxed_unsync()).unwrap())
    });
    let content = StreamBody::new(stream::empty()).boxed_unsync();
    let request = post("/test.v1.Store/Any", "application/grpc", content);
    let answer: Response<Inner> = guarded.layer.layer(service).oneshot(request).await.unwrap();
    tokio::spawn(answer.into_body().collect())
        .await
        .unwrap_err();
    guarded.all_is_settled(0).await;
}

#[tokio::test]
async fn two_guards_settle_together() {
    for (outer, inner, frames) in [(LIMIT, LIMIT, 3), (20_000, LIMIT, 10), (LIMIT, 20_000, 10)] {
        let (first, second) = (Guarded::new(), Guarded::new());
        first.quota.set_limits(USER, Limits::bytes(outer));
        second.quota.set_limits(USER, Limits::bytes(inner));
        let inside = second.layer.layer(service_fn(echo));
        let service = first.layer.layer(inside);
        let content = stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![7; 5_000]))));
        let content = StreamBody::new(content.take(frames)).boxed_unsync();
        let request = post("/test.v1.Store/Any", "application/grpc", content);
        let answer: Response<ResponseBody<Inner>> = service.oneshot(request).await.unwrap();
        let collected = answer.into_body().collect().await.unwrap();
        let fits = frames == 3;
        let status = &collected.trailers().unwrap()["grpc-status"];
        assert_eq!(status, if fits { "0" } else { "8" });
        let used = if fits { 15_000 } else { 0 };
        first.all_is_settled(used).await;
        second.all_is_settled(used).await;
    }
}
