//! [`StorageGuardLayer`] and its settings.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, Response, StatusCode, request, response};
use tower::Layer;

use crate::{
    body::Silence,
    cause::Cause,
    config::ConfigError,
    demand::Demand,
    fault::Classifier,
    guard::Guard,
    head::Hints,
    observer::Observer,
    outage::Outage,
    price::Price,
    quota::{NoQuota, QuotaSource},
    refusal::{Answers, Asked, Dialect, Http, Refusal},
    reservation::BoxFuture,
    scope::Scopes,
    service::StorageGuard,
    settings::{HttpSettings, PriceBy, ScopeBy, Settings},
    setup::{ByHead, Charges, Scoped, Unscoped},
};

/// Guards a service: reserves storage before a request is admitted, and answers 507 if there is none.
///
/// One line guards the disk; each further line adds one thing.
///
/// ```
/// use std::convert::Infallible;
/// use bytes::Bytes;
/// use http::{Request, Response, StatusCode};
/// use http_body_util::Full;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_storage_guard::{
///     Headroom, MeteredBody, StorageGuardLayer, Volume,
///     quota::{Limits, MemoryQuota},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// async fn store(_: Request<MeteredBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Infallible> {
///     Ok(Response::default())
/// }
///
/// let volume = Volume::open(std::env::temp_dir())?.keep_free(Headroom::percent(1));
/// let service = ServiceBuilder::new()
///     .layer(
///         StorageGuardLayer::new(volume)
///             .quota(MemoryQuota::new(Limits::bytes(1_000)))
///             .scope_by(|_| "user:42"),
///     )
///     .service(service_fn(store));
///
/// let upload = Request::put("/files/a").body(Full::from(vec![0; 1_001]))?;
/// let answer = service.oneshot(upload).await?;
/// assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
/// # Ok(())
/// # }
/// ```
///
/// # A layer inside of another
///
/// Both reserve in their own quotas, and the reports of the handler reach both reservations. On one volume, the inner
/// layer shares the outer one's claim if the outer demand is at least its own. Its own headroom does not count then. If
/// its price is higher, it claims all of it once more.
///
/// # What happens when your own functions panic
///
/// The panic propagates to the task that drives the request, as from any handler. Everything that was reserved is
/// released.
///
/// # The second parameter
///
/// It records how requests are priced and charged, so that mistakes do not compile. These are a quota that no request
/// would be charged to, and two pricings of which one would be ignored. See [`setup`](crate::setup).
#[must_use]
pub struct StorageGuardLayer<Q = NoQuota, P = Unscoped> {
    settings: Arc<Settings<Q>>,
    setup: PhantomData<fn() -> P>,
}

impl<Q> StorageGuardLayer<Q> {
    /// Creates a layer that reserves from a [`Guard`], or from a volume. Each request that writes must then find room
    /// on the volume.
    ///
    /// Give clones of one guard to several layers and to jobs beside them, and they share what it guards.
    pub fn new(guard: impl Into<Guard<Q>>) -> Self {
        Self::with(guard.into(), HttpSettings::default())
    }
}

impl<Q: QuotaSource> StorageGuardLayer<Q> {
    /// Guards quotas only, for content that is not stored on a volume of this machine.
    pub fn quota_only(quota: Q) -> Self {
        Self::new(Guard::quota_only(quota))
    }
}

/// Settings of the guard, as [`Guard`] has them.
impl<Q: Clone, P> StorageGuardLayer<Q, P> {
    /// Sets [`Guard::patience`].
    pub fn patience(self, patience: Duration) -> Self {
        self.set_guard(|guard| guard.patience(patience))
    }

    /// Sets [`Guard::quota_timeout`].
    pub fn quota_timeout(self, timeout: Duration) -> Self {
        self.set_guard(|guard| guard.quota_timeout(timeout))
    }

    /// Sets [`Guard::quota_outage`].
    pub fn quota_outage(self, outage: Outage) -> Self {
        self.set_guard(|guard| guard.quota_outage(outage))
    }

    /// Sets [`Guard::grants`].
    pub fn grants(self, first: u64, most: u64) -> Self {
        self.set_guard(|guard| guard.grants(first, most))
    }

    /// Sets [`Guard::hint_cap`].
    pub fn hint_cap(self, bytes: u64) -> Self {
        self.set_guard(|guard| guard.hint_cap(bytes))
    }

    /// Sets [`Guard::observer`].
    pub fn observer(self, observer: impl Observer) -> Self
    where
        Q: QuotaSource,
    {
        let Settings { guard, http } = Arc::unwrap_or_clone(self.settings);
        Self::with(guard.observer(observer), http)
    }

    fn set_guard(mut self, set: impl FnOnce(Guard<Q>) -> Guard<Q>) -> Self {
        let settings = Arc::make_mut(&mut self.settings);
        settings.guard = set(settings.guard.clone());
        self
    }
}

/// How requests are priced and charged by their heads, unless `webdav` does both.
impl<Q, P: ByHead> StorageGuardLayer<Q, P> {
    /// Sets the source of limits and usage per scope. [`Self::scope_by`] says which scopes it charges.
    ///
    /// Defaults to that of the guard, or none.
    pub fn quota<R: QuotaSource>(self, quota: R) -> StorageGuardLayer<R, P> {
        let Settings { guard, http } = Arc::unwrap_or_clone(self.settings);
        StorageGuardLayer::with(guard.quota(quota), http)
    }

    /// Sets which scopes a request is charged to: one, several, or none. With several, all have room or
    /// none is charged.
    ///
    /// The layer belongs inside authentication, whose result is in the request's extensions then. Charge the owner of
    /// the target. If that is not the caller, use [`Scope::undisclosed`](crate::Scope::undisclosed).
    ///
    /// A scope owns its name: return `Scope::from(head.uri.path())`, which copies, and not the path itself.
    ///
    /// Defaults to none. A layer with a quota does not compile without.
    pub fn scope_by<F, T>(self, scopes: F) -> StorageGuardLayer<Q, Scoped>
    where
        F: Fn(&request::Parts) -> T + Send + Sync + 'static,
        T: Into<Scopes>,
    {
        let scopes = move |head: &request::Parts| scopes(head).into();
        self.set(|settings| settings.scopes = Some(ScopeBy::At(Arc::new(scopes))))
            .set_up()
    }

    /// Sets the scopes like [`Self::scope_by`], by an asynchronous function, which can ask the session store for the
    /// user of a token, for example. The function runs at once. Its future is awaited before that of
    /// [`Self::price_by_async`].
    ///
    /// If the handler may refuse an unknown caller, or the lookup may fail, use `price_by_async` beside this.
    /// [`Price::free`] lets the request pass to the handler, so that it is answered 401 and not 507.
    /// [`Price::unavailable`] is answered 503.
    ///
    /// ```
    /// use http::header::AUTHORIZATION;
    /// use tower_storage_guard::{Price, Scopes, StorageGuardLayer, quota::{Limits, MemoryQuota}};
    ///
    /// # #[derive(Clone)] struct Sessions;
    /// # impl Sessions { async fn user(&self, _: Option<http::HeaderValue>) -> std::io::Result<Option<String>> { Ok(None) } }
    /// # let sessions = Sessions;
    /// let guard = StorageGuardLayer::quota_only(MemoryQuota::new(Limits::bytes(1 << 30)))
    ///     // The price names them.
    ///     .scope_by(|_| Scopes::NONE)
    ///     .price_by_async(move |head, demand| {
    ///         let (sessions, token) = (sessions.clone(), head.headers.get(AUTHORIZATION).cloned());
    ///         async move {
    ///             match sessions.user(token).await {
    ///                 Ok(Some(user)) => Price::from(demand).charged_to(user),
    ///                 Ok(None) => Price::free(),
    ///                 Err(_) => Price::unavailable(),
    ///             }
    ///         }
    ///     });
    /// ```
    ///
    /// If only the handler knows the scopes, it reserves by itself, with a [`Guard`]. The module `axum` has an example.
    ///
    /// While the probe of the volume hangs, the future is dropped like that of `price_by_async`.
    pub fn scope_by_async<F, T>(self, scopes: F) -> StorageGuardLayer<Q, Scoped>
    where
        F: Fn(&request::Parts) -> T + Send + Sync + 'static,
        T: Future<Output: Into<Scopes>> + Send + 'static,
    {
        let scopes = move |head: &request::Parts| -> BoxFuture<Scopes> {
            let scopes = scopes(head);
            Box::pin(async { scopes.await.into() })
        };
        self.set(|settings| settings.scopes = Some(ScopeBy::Later(Arc::new(scopes))))
            .set_up()
    }

    /// Sets what a request costs, given what its head declares.
    ///
    /// Defaults to the length that the head declares: Content-Length, or else the body's exact length, or else unknown.
    /// It also counts one object, except for PATCH, MOVE, PROPPATCH, LOCK and ACL.
    pub fn price_by<F, T>(self, price: F) -> StorageGuardLayer<Q, P::Priced>
    where
        F: Fn(&request::Parts, Demand) -> T + Send + Sync + 'static,
        T: Into<Price>,
    {
        let price = move |head: &request::Parts, demand| price(head, demand).into();
        self.set_price(PriceBy::At(Arc::new(price))).set_up()
    }

    /// Sets the cost like [`Self::price_by`], by an asynchronous function, which can read the size of a file that will
    /// be overwritten, for example. The function runs at once, and its future is awaited.
    ///
    /// If the volume's last reading is too old ([`Outage::Refuse`]), the function is not called, because it may hang
    /// with the filesystem. Its future is dropped if it takes longer than the [patience](Self::patience) while the
    /// probe has been hanging or failing for as long. The request is then answered 503; a DELETE passes.
    pub fn price_by_async<F, T>(self, price: F) -> StorageGuardLayer<Q, P::Priced>
    where
        F: Fn(&request::Parts, Demand) -> T + Send + Sync + 'static,
        T: Future<Output: Into<Price>> + Send + 'static,
    {
        let price = move |head: &request::Parts, demand| -> BoxFuture<Price> {
            let price = price(head, demand);
            Box::pin(async { price.await.into() })
        };
        self.set_price(PriceBy::Later(Arc::new(price))).set_up()
    }
}

/// How requests are told apart, and answered.
impl<Q, P> StorageGuardLayer<Q, P> {
    /// Sets which requests are guarded. The others pass, but their storage faults are answered all the same.
    ///
    /// Defaults to every method but DELETE, by which users make room, and those that write nothing: GET, HEAD, OPTIONS,
    /// TRACE, CONNECT, PROPFIND, REPORT, SEARCH, QUERY and UNLOCK. Content that comes with one of these methods is
    /// guarded if `X-HTTP-Method-Override`, or another header for this, names a method that writes. Remote procedure
    /// calls are told apart by [`Self::calls`].
    pub fn applies_when<F>(self, applies: F) -> Self
    where
        F: Fn(&request::Parts) -> bool + Send + Sync + 'static,
    {
        self.set(|settings| settings.applies.chosen = Some(Arc::new(applies)))
    }

    /// Sets the headers, beside Content-Length, that tell how long an upload will be in bytes. The largest
    /// counts; those that are not numbers are ignored.
    ///
    /// A hint tells the length of the whole upload. If the upload comes in several requests that [`Self::uploads`] does
    /// not know of, the offset that the client sends is subtracted (`upload-offset`, `oc-chunk-offset`). Nextcloud
    /// sends none.
    ///
    /// Defaults to `x-expected-entity-length`, `oc-total-length`, `x-amz-decoded-content-length`,
    /// `upload-length`, and `x-upload-length`, which is meant for the metadata of gRPC calls.
    pub fn hint_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.set(|settings| {
            let decodes_aws_chunked = settings.hints.decodes_aws_chunked;
            settings.hints = Hints::new(names);
            settings.hints.decodes_aws_chunked = decodes_aws_chunked;
        })
    }

    /// Says that the service decodes bodies in the `aws-chunked` encoding, as services in the style of S3 do. Then
    /// `x-amz-decoded-content-length` is the length that counts. An object that fits exactly is not refused for the
    /// signatures that are sent between its chunks.
    ///
    /// The service has to refuse a body whose decoded length is another. A service that does not, or that stores the
    /// body as it is sent, must not use this. Its requests would store up to 1.6 % and 4 KiB more than is reserved. A
    /// body with more framing than that counts as it is sent.
    ///
    /// Defaults to counting all bytes that are sent.
    pub fn decodes_aws_chunked(self) -> Self {
        self.set(|settings| settings.hints.decodes_aws_chunked = true)
    }

    /// Sets which answers mean that the request was carried out, so that it is charged for the content that it stored.
    ///
    /// A gRPC call that ends in anything but OK is never one of them, whether its status comes in the head or in
    /// the trailers.
    ///
    /// Defaults to status 2xx, and 303 See Other, as forms are answered.
    pub fn success_when<F>(self, success: F) -> Self
    where
        F: Fn(&response::Parts) -> bool + Send + Sync + 'static,
    {
        self.set(|settings| settings.success = Some(Arc::new(success)))
    }

    /// Sets the classifier, which tells storage faults from other errors.
    ///
    /// Defaults to [`Classifier::default`].
    pub fn classifier(self, classifier: Classifier) -> Self {
        self.set(|settings| settings.classifier = classifier)
    }

    /// Sets the status of a refusal by its cause.
    ///
    /// Defaults to 507 for each. Clients in the style of S3 expect 403 or 413 for quotas. Calls of gRPC and
    /// Connect have codes of their own, and no use for this.
    ///
    /// # Errors
    ///
    /// When the status is not an error, 4xx or 5xx.
    pub fn status(mut self, cause: Cause, status: StatusCode) -> Result<Self, ConfigError> {
        let http = &mut Arc::make_mut(&mut self.settings).http;
        let responder = Arc::make_mut(&mut http.responder);
        responder.answers.set_status(cause, status)?;
        Ok(self)
    }

    /// Sets the Retry-After of refusals by their cause, rounded up to seconds.
    ///
    /// Defaults to none, because a client must not automatically repeat a user's request that was answered 507 (RFC
    /// 4918, section 11.5).
    pub fn retry_after(self, cause: Cause, after: Duration) -> Self {
        self.set_answers(|answers| answers.set_retry_after(cause, after))
    }

    /// Adds a dialect, such as `Dav` of feature `webdav`. The first that hears a request answers it. If none does,
    /// [`Grpc`](crate::refusal::Grpc) answers remote procedure calls, and [`Http`] all other requests.
    ///
    /// Defaults to none.
    pub fn dialect(self, dialect: impl Dialect) -> Self {
        self.set_answers(|answers| answers.push_dialect(dialect))
    }

    /// Sets how [`Http`] answers.
    ///
    /// Defaults to [`Http::default`].
    pub fn http(self, http: Http) -> Self {
        self.set_answers(|answers| answers.set_http(http))
    }

    /// Sets a renderer of your own. If it returns None, the dialect renders.
    ///
    /// With a renderer, [`Asked::uri`] is there in every refusal, so each request costs the copy of its URI. A
    /// [`dialect`](Self::dialect) that is told by the path costs that only for the requests that it hears.
    ///
    /// Defaults to none.
    pub fn render_with<F>(self, render: F) -> Self
    where
        F: Fn(&Refusal, &Asked) -> Option<Response<Bytes>> + Send + Sync + 'static,
    {
        self.set_answers(|answers| answers.set_renderer(render))
    }

    /// Warns clients of [soft limits](crate::quota::Limits#soft-limits): a success whose scopes are above one has the header
    /// `Storage-Warning`, from the answer of the request that crosses it to the end of the crossing.
    ///
    /// It is a list of strings with parameters, one for each limit (RFC 9651):
    ///
    /// ```text
    /// Storage-Warning: "quota-soft-limit";resource=bytes;limit=800;used=850;grace=604800;scope="user:42"
    /// ```
    ///
    /// | parameter | |
    /// |---|---|
    /// | `resource` | what `limit` and `used` count: `bytes` or `objects` |
    /// | `limit` | the soft limit |
    /// | `used` | what the scope has stored. Figures stop at 999,999,999,999,999, the largest of such a field |
    /// | `grace` | seconds until the soft limit is enforced, rounded down; 0 once it is, and missing if it never is |
    /// | `scope` | the name of the scope; one that [is not disclosed](crate::Scope::undisclosed) is left out with its figures |
    ///
    /// The answer of a request whose body is still being read, or of a remote procedure call, has what was known when its head
    /// was sent. Browsers see it across origins if CORS exposes it.
    ///
    /// Defaults to no header.
    pub fn storage_warning(self) -> Self {
        self.set(|http| http.advice.soft_limits = true)
    }

    /// Tells clients how much of their quotas is left, in the fields of the RateLimit draft
    /// (draft-ietf-httpapi-ratelimit-headers), which count bytes of content here:
    ///
    /// ```text
    /// RateLimit-Policy: "user:42";q=1000;qu="content-bytes"
    /// RateLimit: "user:42";r=150
    /// ```
    ///
    /// `q` is the limit, and `r` is the limit less the used and the held bytes. There is one item for each scope that has a limit in
    /// bytes, with its name. A scope that [is not disclosed](crate::Scope::undisclosed), or whose name is not plain ASCII, is left
    /// out.
    ///
    /// Successes have the fields if the quota source [knows the usage](QuotaSource::usage_now) without waiting, as those in memory
    /// do. Refusals by a quota have them with each source. The answer of a request whose body is still being read, or of a remote
    /// procedure call, has what was known when its head was sent. They are advice: the next request is decided by itself.
    ///
    /// Defaults to no such fields.
    pub fn rate_limit_fields(self) -> Self {
        self.set_answers(|answers| answers.tells_rate_limit = true)
            .set(|http| http.advice.rate_limit = true)
    }

    /// Sets how many bytes of a refused upload are read and discarded beside the answer, and for how long. An HTTP/1
    /// client that is cut off while it sends does not see the answer.
    ///
    /// A client that stalls for five seconds is cut off earlier. Over HTTP/2 a second is enough.
    ///
    /// This happens on a task beside the answer. Outside of a tokio runtime nothing is read.
    ///
    /// Defaults to 1 GiB and 30 seconds. With 0 of either, nothing is read.
    pub fn drain(self, bytes: u64, time: Duration) -> Self {
        self.set(|http| {
            let responder = Arc::make_mut(&mut http.responder);
            (responder.drains.bytes, responder.drains.time) = (bytes, time);
        })
    }

    /// Sets how many refused uploads are read and discarded at once, and how many bytes of them in a second. Both count
    /// all requests to this layer and its clones. A request beyond the first `requests` is not read, and its client may
    /// not see the answer.
    ///
    /// Use it to bound the work that refused clients can cause.
    ///
    /// Defaults to 256 requests and 512 MiB in a second. With 0 of either, nothing is read.
    pub fn drain_in_all(self, requests: usize, bytes_per_second: u64) -> Self {
        self.set(|http| {
            let responder = Arc::make_mut(&mut http.responder);
            responder.drains.limit_all(requests, bytes_per_second);
        })
    }

    /// Sets how long the body of a request may bring nothing while the service waits for it. Then its reservation is
    /// given back, and the request is answered 408 (RFC 9110, section 15.5.9), or a call with DEADLINE_EXCEEDED. With
    /// None there is no bound.
    ///
    /// The time only runs while the service reads. So it does not run before a client that waits for `100 Continue` has
    /// got it, and not while the body waits for room. Calls that were named with [`Self::calls`] are only bounded if
    /// this is set, because a stream may have nothing to send for long.
    ///
    /// Defaults to 30 seconds.
    pub fn stall_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.set_silence(|silence| silence.timeout = timeout)
    }

    /// Sets the lowest rate of a body, in bytes per second. It counts the seconds of waiting beyond the
    /// [`stall_timeout`](Self::stall_timeout). A request whose body is slower is answered as one that has stalled.
    ///
    /// Use it against clients that send a byte before each timeout. With 0 there is no lowest rate, as without a timeout.
    ///
    /// Defaults to 500, so that a client is awaited for at most half a minute longer than 500 bytes per second take.
    pub fn min_rate(self, bytes_per_second: u64) -> Self {
        self.set_silence(|silence| silence.rate = bytes_per_second)
    }

    /// Sets after which time the rest of a silent client's reservation can be taken back for a request that would be
    /// refused otherwise. A client is silent if it sends no byte while the service waits for one. When the client goes
    /// on, the rest has to be reserved again, and its request is cut if there is no room. A client that sends is never
    /// affected.
    ///
    /// Use a longer time if clients pause and must not lose their place, and `Duration::MAX` so that nothing is ever
    /// taken back. Bytes by which a handler has [grown](crate::Reservation::grow) its reservation stay.
    ///
    /// Defaults to two seconds.
    pub fn stall_grace(self, grace: Duration) -> Self {
        self.set_silence(|silence| silence.grace = grace)
    }

    /// Returns the guard that this layer reserves from.
    pub fn guard(&self) -> &Guard<Q> {
        &self.settings.guard
    }

    #[cfg(test)]
    pub(crate) fn http_settings(&self) -> &HttpSettings {
        &self.settings.http
    }

    fn with(guard: Guard<Q>, mut http: HttpSettings) -> Self {
        if let Some(observer) = &guard.context.rules.observer {
            let responder = Arc::make_mut(&mut http.responder);
            responder.drains.observer = Some(observer.clone());
        }
        Self {
            settings: Arc::new(Settings { guard, http }),
            setup: PhantomData,
        }
    }

    pub(crate) fn set_price(self, price: PriceBy) -> Self {
        self.set(|settings| settings.price = Some(price))
    }

    /// Records how requests are priced and charged from now on.
    pub(crate) fn set_up<R>(self) -> StorageGuardLayer<Q, R> {
        StorageGuardLayer {
            settings: self.settings,
            setup: PhantomData,
        }
    }

    pub(crate) fn set(mut self, set: impl FnOnce(&mut HttpSettings)) -> Self {
        set(&mut Arc::make_mut(&mut self.settings).http);
        self
    }

    fn set_silence(self, set: impl Fn(&mut Silence)) -> Self {
        self.set(|http| Arc::make_mut(&mut http.responder).set_silence(set))
    }

    pub(crate) fn set_answers(self, set: impl FnOnce(&mut Answers)) -> Self {
        self.set(|http| set(&mut Arc::make_mut(&mut http.responder).answers))
    }
}

impl<S, Q, P: Charges<Q>> Layer<S> for StorageGuardLayer<Q, P> {
    type Service = StorageGuard<S, Q>;

    fn layer(&self, inner: S) -> Self::Service {
        StorageGuard::new(inner, Arc::clone(&self.settings))
    }
}

impl<Q, P> Clone for StorageGuardLayer<Q, P> {
    fn clone(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
            setup: PhantomData,
        }
    }
}

impl<Q, P> fmt::Debug for StorageGuardLayer<Q, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}
