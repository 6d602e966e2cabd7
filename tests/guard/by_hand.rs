//! A guarded service and a quota that answer when the test tells them to.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use test_support::service::{Content, Incoming, answer, put};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_storage_guard::{
    Amount, Reservation, ResponseBody, StorageGuardLayer,
    quota::{FunctionQuota, Limits, Quota, QuotaSource, quota_future},
    setup::Charges,
};

/// Longer than any operation that ends at all.
const BOUND: Duration = Duration::from_secs(10);
/// Longer than [`BOUND`]: an operation that waits for this is late.
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) type Answer = Response<ResponseBody<Full<Bytes>>>;

/// A guarded service that passes its requests to the test, which answers them.
pub(crate) struct ByHand {
    service: BoxCloneService<Request<Content>, Answer, Infallible>,
    taken: mpsc::UnboundedReceiver<(Reservation, Incoming, oneshot::Sender<u16>)>,
}

impl ByHand {
    pub(crate) fn new<Q, P>(layer: StorageGuardLayer<Q, P>) -> Self
    where
        Q: QuotaSource + Clone,
        P: Charges<Q>,
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

    pub(crate) async fn enter(&mut self, content: Content) -> Inside {
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

/// A request that was admitted.
pub(crate) struct Inside {
    pub(crate) reservation: Reservation,
    pub(crate) body: Incoming,
    pub(crate) status: oneshot::Sender<u16>,
    pub(crate) call: JoinHandle<Answer>,
}

impl Inside {
    pub(crate) async fn answer(self, status: u16) -> Answer {
        drop(self.body);
        self.status.send(status).unwrap();
        in_time(self.call).await.unwrap()
    }
}

/// A quota source that waits for the test's answers.
pub(crate) fn asking() -> (FunctionQuota, Lookups) {
    let (ask, lookups) = mpsc::unbounded_channel();
    let quota = quota_future(move |_| {
        let (tell, told) = oneshot::channel();
        ask.send(tell).unwrap();
        told
    });
    (quota, Lookups(lookups))
}

pub(crate) struct Lookups(mpsc::UnboundedReceiver<oneshot::Sender<Quota>>);

impl Lookups {
    pub(crate) async fn tell(&mut self, limit: u64) {
        (self.next().await)(limit);
    }

    /// The next lookup, to be answered with the limit.
    pub(crate) async fn next(&mut self) -> impl FnOnce(u64) + use<> {
        let lookup = in_time(self.0.recv()).await.unwrap();
        move |limit| {
            let limits = Limits::bytes(limit);
            let used = Amount::ZERO;
            lookup.send(Quota { limits, used }).unwrap();
        }
    }
}

pub(crate) async fn send<S>(service: S, request: Request<Content>) -> u16
where
    S: Service<Request<Content>, Response = Answer, Error = Infallible>,
{
    let response = in_time(service.oneshot(request)).await.unwrap();
    response.status().as_u16()
}

pub(crate) async fn in_time<F: Future>(future: F) -> F::Output {
    let began = Instant::now();
    let output = timeout(BOUND, future).await.expect("it ends");
    // At the bound it is polled once more, whether or not it was woken.
    assert!(began.elapsed() < BOUND, "the task was not woken");
    output
}

/// Starts an operation that has to wait.
pub(crate) fn begin<F: Future>(future: Pin<&mut F>) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(future.poll(&mut cx).is_pending());
}
