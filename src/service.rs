//! [`StorageGuard`]: the way of a request.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tower::{BoxError, Service};

use crate::{
    body::{MeteredBody, ResponseBody, WhenDropped},
    demand::Demand,
    future::{Declared, Held, ResponseFuture, admitted, plain_terms},
    guard::{Admit, Claim, Guard, admit},
    head::{InvalidLength, Lines},
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
    /// Creates a layer that reserves from a guard, or from a volume.
    pub fn layer(guard: impl Into<Guard<Q>>) -> StorageGuardLayer<Q> {
        StorageGuardLayer::new(guard)
    }

    pub(crate) fn new(inner: S, settings: Arc<Settings<Q>>) -> Self {
        Self { inner, settings }
    }

    fn settings(&self) -> Arc<Settings<Q>> {
        Arc::clone(&self.settings)
    }

    /// Returns the guarded service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns the guarded service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Consumes the guard, and returns the service.
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

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let http = &self.settings.http;
        let (head, body) = request.into_parts();
        let lines = Lines::read(&head.headers, &http.hints);
        let asked = Asked::hear(&head, &lines, &http.responder.answers);
        let step = http.steps.as_ref().and_then(|steps| steps.find(&head));
        // Room is reserved for it already, whatever decides about other requests.
        let is_open = step.as_ref().is_some_and(|step| step.is_open());
        let writes = step.as_ref().is_some_and(|step| step.is_write());
        let has_content = || !body.is_end_stream();
        let is_guarded = is_open || http.applies.to(&head, &asked, writes, has_content);
        // What is guarded for another reason costs what it costs.
        let step = step.filter(|step| !is_guarded || !step.asks());
        if !is_guarded && step.as_ref().is_none_or(|step| !step.asks()) {
            let request = Request::from_parts(head, MeteredBody::open(body));
            let response = self.inner.call(request);
            return ResponseFuture::open(self.settings(), asked, response);
        }
        let demand = lines.demand(&head.method, || body.size_hint().exact());
        let declared = Declared {
            drain: WhenDropped::of(head.version, lines.expects_continue()),
            is_named_call: http.applies.is_named_call(&head, &asked),
            protocol: asked.protocol(),
        };
        let body = Box::pin(body);
        // Nearly always it is decided at once, and needs no clone of the service.
        if let (None, Ok(demand)) = (&step, &demand)
            && let Some(terms) = plain_terms(&self.settings, &head, *demand)
        {
            let context = &self.settings.guard.context;
            let transfer = || declared.transfer(&self.settings);
            let admit = admit(context, terms, Claim::Demanded, transfer);
            if let Admit::Now(Ok(reservation)) = admit {
                let settings = self.settings();
                let request = admitted(&reservation, head, body, declared.drain);
                let response = self.inner.call(request);
                return ResponseFuture::inside(
                    settings,
                    asked,
                    reservation,
                    declared.drain,
                    response,
                );
            }
            let mut held = self.hold(head, body, declared);
            held.may_be_empty = demand.has_no_size();
            return ResponseFuture::undecided(self.settings(), asked, held, admit);
        }
        let held = self.hold(head, body, declared);
        begin(self.settings(), asked, held, demand, step)
    }
}

impl<S: Clone, Q> StorageGuard<S, Q> {
    /// Holds a request until it is decided, with the service that is ready.
    #[cold]
    fn hold<B>(&mut self, head: Parts, body: Pin<Box<B>>, declared: Declared) -> Held<S, B> {
        // The clone may not be ready: it stays.
        let clone = self.inner.clone();
        Held {
            service: mem::replace(&mut self.inner, clone),
            head,
            body: Some(body),
            declared,
            visit: None,
            may_be_empty: false,
        }
    }
}

/// What the request wants, and who is charged for it.
#[cold]
fn begin<S, B, Q>(
    settings: Arc<Settings<Q>>,
    mut asked: Asked,
    mut held: Held<S, B>,
    demand: Result<Demand, InvalidLength>,
    step: Option<Box<dyn FoundStep>>,
) -> ResponseFuture<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource,
{
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
