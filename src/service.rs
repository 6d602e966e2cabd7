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
    Scopes, StorageGuardLayer, Volume,
    body::{MeteredBody, ResponseBody},
    demand::Demand,
    future::{Held, ResponseFuture},
    layer::{Price, Settings},
    quota::{NoQuota, QuotaSource},
    refusal::{Asked, Refusal},
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let settings = Arc::clone(&self.settings);
        let asked = Asked::hear(&request, &settings.answers);
        let applies = match &settings.applies {
            None => settings.applies_to_method(request.method()),
            Some(applies) => {
                let (head, body) = request.into_parts();
                let applies = applies(&head);
                request = Request::from_parts(head, body);
                applies
            }
        };
        if !applies {
            let response = self.inner.call(request.map(MeteredBody::open));
            return ResponseFuture::open(settings, asked, response);
        }
        // The clone may not be ready: it stays, and the one that is ready goes with the request.
        let clone = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, clone);
        begin(settings, asked, Held { service, request })
    }
}

/// What the request wants, and who is charged for it.
fn begin<S, B, Q>(
    settings: Arc<Settings<Q>>,
    asked: Asked,
    held: Held<S, B>,
) -> ResponseFuture<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource + Send + Sync + 'static,
{
    let declared = Demand::declared(
        held.request.method(),
        held.request.headers(),
        &held.request.body().size_hint(),
        &settings.hints,
    );
    let Ok(demand) = declared else {
        return ResponseFuture::refused(settings, asked, held, Refusal::invalid_length());
    };
    if settings.scopes.is_none() && settings.price.is_none() {
        return ResponseFuture::reserve(settings, asked, held, Scopes::default(), demand);
    }
    let Held { service, request } = held;
    let (head, body) = request.into_parts();
    let scopes = settings.scopes.as_ref().map(|scopes| scopes(&head));
    let price = settings.price.as_ref().map(|price| match price {
        Price::At(price) => Ok(price(&head, demand)),
        Price::Later(price) => Err(price(&head, demand)),
    });
    let request = Request::from_parts(head, body);
    let held = Held { service, request };
    let scopes = scopes.unwrap_or_default();
    match price.unwrap_or(Ok(demand)) {
        Ok(demand) => ResponseFuture::reserve(settings, asked, held, scopes, demand),
        Err(price) => ResponseFuture::price(settings, asked, held, scopes, price),
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
