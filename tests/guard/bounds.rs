//! Compile-time checks: the auto traits of the crate's types, and combinations with services of other crates.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use test_support::service::{USER, answer, full, layer, put, read_all};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService,
};
use tower_http::{
    cors::{Any, CorsLayer},
    timeout::RequestBodyTimeoutLayer,
};
use tower_storage_guard::{
    Amount, Guard, MeteredBody, Probe, Refused, Reservation, ResponseBody, Scope, Scopes,
    StorageGuard, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota, NoQuota, QuotaSource},
    refusal::{Asked, Dialect, Refusal},
    upload::Protocol,
};

/// Chosen at run time, and shared: what a user implements is still one behind a pointer.
const _: () = {
    const fn dialect<T: Dialect>() {}
    const fn protocol<T: Protocol>() {}
    const fn probe<T: Probe>() {}

    dialect::<Box<dyn Dialect>>();
    dialect::<Arc<dyn Dialect>>();
    protocol::<Box<dyn Protocol>>();
    protocol::<Arc<dyn Protocol>>();
    #[cfg(feature = "webdav")]
    trees();
    probe::<Box<dyn Probe>>();
};

const fn is_send<T: Send>() {}
const fn is_send_and_sync<T: Send + Sync>() {}
const fn is_shared<T: Send + Sync + 'static>() {}

const _: () = {
    is_shared::<Guard<MemoryQuota>>();
    is_shared::<Guard<NoQuota>>();
    is_shared::<Refusal>();
    is_shared::<Refused>();
    is_shared::<Reservation>();
    is_shared::<Scopes>();
    is_shared::<StorageGuardLayer<MemoryQuota>>();
    is_shared::<Asked>();
    is_shared::<Volume>();

    is_shared::<MeteredBody<Incoming>>();
    is_shared::<ResponseBody<Incoming>>();
    is_shared::<MeteredBody<BoxBody<Bytes, BoxError>>>();
    is_shared::<ResponseBody<BoxBody<Bytes, BoxError>>>();
};

/// A body is `Send` where the one in it is, and `Sync` too.
#[expect(dead_code, reason = "it only has to compile")]
const fn bodies<S, B>()
where
    S: Body<Data: Send> + Send,
    B: Body<Data: Send + Sync> + Send + Sync,
{
    is_send::<MeteredBody<S>>();
    is_send::<ResponseBody<S>>();
    is_send_and_sync::<MeteredBody<B>>();
    is_send_and_sync::<ResponseBody<B>>();
}

#[cfg(feature = "webdav")]
const fn trees() {
    use tower_storage_guard::dav::Tree;

    const fn tree<T: Tree>() {}

    tree::<Box<dyn Tree>>();
    tree::<Arc<dyn Tree>>();
}

/// The future is `Send` where the inner service's is, and does not ask its body to be `Sync`.
#[expect(dead_code, reason = "it only has to compile")]
const fn futures<S, B, R, Q>()
where
    S: Service<Request<MeteredBody<B>>, Response = Response<R>> + Clone + Send,
    S::Future: Send,
    S::Error: Send + 'static,
    B: Body<Data: Send> + Send + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send,
    Q: QuotaSource,
{
    is_send::<<StorageGuard<S, Q> as Service<Request<B>>>::Future>();
    is_send::<<StorageGuard<S> as Service<Request<B>>>::Future>();
}

/// A service is `Sync` where the inner one is: axum's `Router` asks for it.
#[expect(dead_code, reason = "it only has to compile")]
const fn services<S: Send + Sync + 'static>() {
    is_shared::<StorageGuard<S>>();
    is_shared::<StorageGuard<S, MemoryQuota>>();
}

/// A user's layer that erases the types of bodies. `boxed` requires them to be `Sync`.
#[tokio::test]
async fn bodies_can_be_boxed_on_either_side() {
    type Boxed = BoxBody<Bytes, BoxError>;

    async fn read(request: Request<Boxed>) -> Result<Response<Boxed>, Infallible> {
        let read = request.into_body().collect().await;
        let response = answer(if read.is_ok() { 201 } else { 500 });
        Ok(response.map(|body| body.map_err(BoxError::from).boxed()))
    }

    let (_, _, layer) = layer(10);
    let service = ServiceBuilder::new()
        .map_response(|response: Response<ResponseBody<Boxed>>| response.map(BodyExt::boxed))
        .layer(layer)
        .map_request(|request: Request<MeteredBody<Full<Bytes>>>| request.map(BodyExt::boxed))
        .service_fn(read);
    let service = BoxCloneSyncService::new(service);
    for (bytes, status) in [(10, 201), (11, 507)] {
        let upload = Request::put("/").body(Full::from(vec![0; bytes])).unwrap();
        let response: Response<Boxed> = service.clone().oneshot(upload).await.unwrap();
        assert_eq!(response.status(), status);
    }
}

/// The body of `RequestBodyTimeout` is not `Unpin`.
#[tokio::test(start_paused = true)]
async fn a_body_with_a_timeout_goes_through_the_guard() {
    let (_, quota, layer) = layer(1_000);
    let service = ServiceBuilder::new()
        .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(30)))
        .layer(layer)
        .service(service_fn(|request: Request<MeteredBody<_>>| async {
            let read = BodyExt::collect(request.into_body()).await;
            Ok::<_, Infallible>(answer(if read.is_ok() { 201 } else { 408 }))
        }));
    let whole = service.clone().oneshot(put(full(10))).await.unwrap();
    assert_eq!(whole.status(), 201);

    // The client stalls.
    let stalled = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, io::Error>>();
    let stalled = BodyExt::boxed_unsync(http_body_util::StreamBody::new(stalled));
    let stalled = service.oneshot(put(stalled)).await.unwrap();
    assert_eq!(stalled.status(), 408);
    drop(stalled);
    assert_eq!(quota.usage(USER).used, Amount::new(10, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

/// A scope is made of the head, and owns what it keeps of it.
#[test]
fn closures_over_the_head_need_no_annotation() {
    let (_, _, layer) = layer(10);
    let layer = layer
        .scope_by(|head| Scope::from(head.uri.path().to_owned()))
        .applies_when(|head| head.method == "PUT");
    drop(layer.layer(service_fn(read_all)));

    fn scope(head: &Parts) -> Scope {
        Scope::from(head.uri.path().to_owned())
    }
    drop(StorageGuardLayer::quota_only(MemoryQuota::new(Limits::UNLIMITED)).scope_by(scope));
}

/// A layer that answers by itself makes an empty body, so it needs one of a type with a default.
#[tokio::test]
async fn cors_outside_of_the_guard() {
    let (_, _, layer) = layer(10);
    let service = ServiceBuilder::new()
        .layer(CorsLayer::new().allow_origin(Any))
        .layer(layer)
        .service(service_fn(read_all));
    let preflight = Request::options("/a").header("access-control-request-method", "PUT");
    let preflight = preflight.body(full(0)).unwrap();
    let answer = service.clone().oneshot(preflight).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap();
    assert!(body.to_bytes().is_empty());

    let answer = service.oneshot(put(full(11))).await.unwrap();
    assert_eq!(answer.status(), 507);
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
}
