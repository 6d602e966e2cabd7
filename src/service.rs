//! [`StorageGuard`]: the way of a request.

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, SizeHint};
use tower::{BoxError, Service};

use crate::{
    body::{MeteredBody, ResponseBody, WhenDropped},
    future::{Held, ResponseFuture},
    guard::Guard,
    head::Lines,
    layer::StorageGuardLayer,
    quota::{NoQuota, QuotaSource},
    refusal::{Asked, Refusal},
    settings::Settings,
    steps::FoundStep,
};

/// A service under guard. See [`StorageGuardLayer`].
#[must_use]
pub struct StorageGuard<S, Q = NoQuota> {
    inner: S,
    settings: Arc<Settings<Q>>,
}

impl<S, Q> StorageGuard<S, Q> {
    /// A layer that reserves from a guard, or from a volume.
    pub fn layer(guard: impl Into<Guard<Q>>) -> StorageGuardLayer<Q> {
        StorageGuardLayer::new(guard)
    }

    pub(crate) fn new(inner: S, settings: Arc<Settings<Q>>) -> Self {
        Self { inner, settings }
    }

    /// The guarded service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The guarded service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The guarded service, without its guard.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B, R, Q> Service<Request<B>> for StorageGuard<S, Q>
where
    S: Service<Request<MeteredBody<B>>, Response = Response<R>> + Clone,
    S::Error: 'static,
    B: Body + Send + 'static,
    R: Body,
    R::Data: From<Bytes>,
    R::Error: Into<BoxError>,
    Q: QuotaSource,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, Q>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = Arc::clone(&self.settings);
        let http = &settings.http;
        let (head, body) = request.into_parts();
        let asked = Asked::hear(&head, &http.responder.answers);
        let step = http.steps.as_ref().and_then(|steps| steps.find(&head));
        // Room is reserved for it already, whatever decides about other requests.
        let is_open = step.as_ref().is_some_and(|step| step.is_open());
        let writes = step.as_ref().is_some_and(|step| step.is_write());
        let has_content = || !body.is_end_stream();
        let applies = is_open || http.applies.to(&head, &asked, writes, has_content);
        if !applies {
            let request = Request::from_parts(head, MeteredBody::open(body));
            return ResponseFuture::open(settings, asked, self.inner.call(request));
        }
        // The clone may not be ready: it stays, and the one that is ready goes with the request.
        let clone = self.inner.clone();
        let service = mem::replace(&mut self.inner, clone);
        let lines = Lines::read(&head.headers, &http.hints);
        let length = body.size_hint();
        let held = Held {
            service,
            drain: WhenDropped::of(head.version, lines.expects_continue),
            is_named_call: http.applies.is_named_call(&head, &asked),
            head,
            body: Some(Box::pin(body)),
            protocol: asked.protocol(),
            visit: None,
            may_be_empty: false,
        };
        begin(settings, asked, held, &lines, &length, step)
    }
}

/// What the request wants, and who is charged for it.
#[inline(always)]
fn begin<S, B, Q>(
    settings: Arc<Settings<Q>>,
    mut asked: Asked,
    mut held: Held<S, B>,
    lines: &Lines,
    length: &SizeHint,
    step: Option<Box<dyn FoundStep>>,
) -> ResponseFuture<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource,
{
    let head = &held.head;
    let demand = lines.demand(&head.method, &head.headers, length);
    let Ok(mut demand) = demand else {
        return ResponseFuture::refused(settings, asked, held, Refusal::invalid_length());
    };
    if let Some(visit) = step.and_then(|step| step.visit(demand)) {
        visit.mark(&mut asked);
        let whole = visit.whole(demand);
        held.visit = Some(visit);
        match whole {
            Some(whole) => demand = whole,
            None => return ResponseFuture::drawn(settings, asked, held, demand),
        }
    }
    ResponseFuture::priced(settings, asked, held, demand)
}

impl<S: Clone, Q> Clone for StorageGuard<S, Q> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            settings: Arc::clone(&self.settings),
        }
    }
}

impl<S: fmt::Debug, Q> fmt::Debug for StorageGuard<S, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageGuard")
            .field("inner", &self.inner)
            .field("settings", &self.settings)
            .finish()
    }
}
