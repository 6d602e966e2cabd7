//! [`StorageGuard`]: the way of a request.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use crate::{
    Price, Scopes, StorageGuardLayer, Volume,
    body::{MeteredBody, ResponseBody},
    demand::{Demand, is_write},
    future::{Held, ResponseFuture},
    layer::{PriceBy, Settings},
    quota::{NoQuota, QuotaSource},
    refusal::{Asked, Refusal},
    upload::FoundStep,
};

/// A service under guard. See [`StorageGuardLayer`].
#[must_use]
pub struct StorageGuard<S, Q = NoQuota> {
    inner: S,
    settings: Arc<Settings<Q>>,
}

impl<S> StorageGuard<S> {
    /// A layer that guards a volume.
    pub fn layer(volume: Volume) -> StorageGuardLayer {
        StorageGuardLayer::new(volume)
    }
}

impl<S, Q> StorageGuard<S, Q> {
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
    Q: QuotaSource + Send + Sync + 'static,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, Q>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = Arc::clone(&self.settings);
        let asked = Asked::hear(&request, &settings.answers);
        let (head, body) = request.into_parts();
        let uploads = settings.uploads.as_ref();
        let step = uploads.and_then(|uploads| uploads.step(&head));
        let applies = match &settings.applies {
            // What is set aside waits for it, whatever others like it are.
            _ if step.as_ref().is_some_and(FoundStep::is_of_open_upload) => true,
            Some(applies) => applies(&head),
            None => asked
                .rpc()
                .and_then(|_| settings.calls.guard(head.uri.path()))
                .unwrap_or_else(|| is_write(&head.method)),
        };
        if !applies {
            let request = Request::from_parts(head, MeteredBody::open(body));
            return ResponseFuture::open(settings, asked, self.inner.call(request));
        }
        // The clone may not be ready: it stays, and the one that is ready goes with the request.
        let clone = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, clone);
        let held = Held {
            service,
            head,
            body,
            is_call: asked.rpc().is_some(),
            visit: None,
        };
        begin(settings, asked, held, step)
    }
}

/// What the request wants, and who is charged for it.
fn begin<S, B, Q>(
    settings: Arc<Settings<Q>>,
    mut asked: Asked,
    mut held: Held<S, B>,
    step: Option<FoundStep>,
) -> ResponseFuture<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource + Send + Sync + 'static,
{
    let head = &held.head;
    let length = held.body.size_hint();
    let declared = Demand::declared(&head.method, &head.headers, &length, &settings.hints);
    let Ok(mut demand) = declared else {
        return ResponseFuture::refused(settings, asked, held, Refusal::invalid_length());
    };
    if let Some(visit) = step.and_then(|step| step.visit(demand)) {
        asked.set_tus(visit.is_tus());
        let whole = visit.whole(demand);
        held.visit = Some(Box::new(visit));
        match whole {
            Some(whole) => demand = whole,
            None => return ResponseFuture::upload(settings, asked, held, demand),
        }
    }
    let head = &held.head;
    let scopes = match &settings.scopes {
        None => Scopes::NONE,
        Some(scopes) => scopes(head),
    };
    match &settings.price {
        None => {
            let price = Price::from(demand);
            ResponseFuture::reserve(settings, asked, held, scopes, price)
        }
        Some(PriceBy::At(price)) => {
            let price = price(head, demand);
            ResponseFuture::reserve(settings, asked, held, scopes, price)
        }
        Some(PriceBy::Later(price)) => {
            let price = price(head, demand);
            ResponseFuture::price(settings, asked, held, scopes, price)
        }
    }
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
