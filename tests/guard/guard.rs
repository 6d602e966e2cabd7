//! The guard's contract with services around and inside of it, without a network.

use std::{
    convert::Infallible,
    future::{Pending, Ready, pending, ready},
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use test_support::{
    disk::Disk,
    service::{Content, Incoming, Reply, USER, answer, chunked, full, layer, put, read_all},
};
use tokio::sync::{mpsc, oneshot};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, MeteredBody, Outage, Refused, Reservation, ResponseBody, Scope, Scopes,
    StorageGuardLayer,
    fault::{Cause, Classifier, Fault, Resource, Source, Verdict},
    quota::{Answer, Change, Limits, MemoryQuota, Quota, QuotaError, QuotaSource, quota_fn},
    refusal::{Refusal, RefusalKind},
};

use crate::by_hand::{ByHand, in_time, send};

async fn read(response: Response<ResponseBody<Full<Bytes>>>) -> (u16, Value) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    (head.status.as_u16(), json)
}

fn full_disk() -> Value {
    json!({
        "error": "Insufficient Storage",
        "message": "Server storage capacity reached",
        "reason": "disk_full",
        "resource": "bytes",
        "temporary": true,
    })
}

/// A service that panics when it is called without being ready, and whose clones are not.
#[derive(Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Reply;
    type Error = Infallible;
    type Future = Ready<Result<Reply, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(self.is_ready, "called without being ready");
        self.is_ready = false;
        ready(Ok(answer(200)))
    }
}

#[tokio::test]
async fn the_inner_service_is_called_when_it_is_ready() {
    let (_, _, layer) = layer(1_000);
    let mut service = layer.layer(Strict::default());
    for method in ["PUT", "GET"] {
        for _ in 0..3 {
            let mut request = put(full(1));
            *request.method_mut() = method.parse().unwrap();
            let service = ServiceExt::<Request<Content>>::ready(&mut service);
            let response = service.await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), 200);
        }
    }
}

#[tokio::test]
async fn requests_that_do_not_write_pass_untouched() {
    let (volume, quota, layer) = layer(0);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        assert!(request.extensions().get::<Reservation>().is_none());
        read_all(request).await
    }));
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PROPFIND"] {
        let mut request = put(full(10));
        *request.method_mut() = method.parse().unwrap();
        assert_eq!(
            service.clone().oneshot(request).await.unwrap().status(),
            201
        );
    }
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    assert_eq!(volume.status().claimed, 0);
}

#[tokio::test]
async fn a_success_is_charged_and_anything_else_is_not() {
    for (status, charged) in [
        (200, true),
        (201, true),
        (204, true),
        (303, true),
        (302, false),
        (304, false),
        (400, false),
        (413, false),
        (500, false),
    ] {
        let (volume, quota, layer) = layer(1_000);
        let service = layer.layer(service_fn(move |request: Request<Incoming>| async move {
            request.into_body().collect().await.unwrap();
            Ok::<_, Infallible>(answer(status))
        }));
        let response = service.oneshot(put(full(100))).await.unwrap();
        assert_eq!(response.status(), status);
        let usage = quota.usage(USER);
        let expected = if charged {
            Amount::new(100, 1)
        } else {
            Amount::ZERO
        };
        assert_eq!(
            (usage.used, usage.held),
            (expected, Amount::ZERO),
            "{status}"
        );
        Disk::until_settled(&volume).await;
    }
}

#[tokio::test]
async fn the_success_criterion_is_configurable() {
    let (_, quota, layer) = layer(1_000);
    let layer = layer.success_when(|head| head.headers.contains_key("x-stored"));
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        let stored = request.headers().contains_key("x-keep");
        request.into_body().collect().await.unwrap();
        let mut response = answer(if stored { 500 } else { 200 });
        if stored {
            response.headers_mut().insert("x-stored", 1.into());
        }
        Ok::<_, Infallible>(response)
    }));
    service.clone().oneshot(put(full(100))).await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    let mut request = put(full(100));
    request.headers_mut().insert("x-keep", 1.into());
    service.oneshot(request).await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(100, 1));
}

#[tokio::test]
async fn the_handler_may_report_what_is_stored() {
    let (volume, quota, layer) = layer(1_000);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        let reservation = request.extensions().get::<Reservation>().unwrap().clone();
        assert_eq!(reservation.demand(), Demand::known(100));
        assert_eq!(reservation.remaining(), 100);
        request.into_body().collect().await.unwrap();
        assert_eq!((reservation.received(), reservation.remaining()), (100, 0));
        // Its content compresses well, and it creates a second file.
        reservation.written(40);
        reservation.stored(40);
        reservation.made(2);
        Ok::<_, Infallible>(answer(201))
    }));
    service.oneshot(put(full(100))).await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(40, 2));
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_reservation_grows_while_there_is_room() {
    let (_, quota, layer) = layer(1_000);
    let seen = quota.clone();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        let quota = seen.clone();
        async move {
            let reservation = request.extensions().get::<Reservation>().unwrap().clone();
            reservation.grow(900).await.unwrap();
            assert_eq!(reservation.reserved(), 1_000);
            assert_eq!(quota.usage(USER).held.bytes, 1_000);
            let refused = reservation.grow(1).await.unwrap_err();
            assert_eq!(refused.fault().unwrap().cause, Cause::QuotaExceeded);
            assert_eq!(reservation.reserved(), 1_000);
            reservation.stored(1_000);
            Ok::<_, Infallible>(answer(201))
        }
    }));
    let response = service.oneshot(put(full(100))).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(quota.usage(USER).used.bytes, 1_000);
}

#[tokio::test]
async fn growth_without_a_volume_is_up_to_the_quota() {
    let quota = MemoryQuota::new(Limits::bytes(1_000));
    let layer = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        let reservation = request.extensions().get::<Reservation>().unwrap().clone();
        reservation.grow(u64::MAX).await.unwrap_err();
        reservation.grow(900).await.unwrap();
        assert_eq!(reservation.reserved(), 1_000);
        reservation.stored(1_000);
        Ok::<_, Infallible>(answer(201))
    }));
    let response = service.oneshot(put(full(100))).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(quota.usage(USER).used, Amount::new(1_000, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn an_overwrite_is_charged_for_its_difference() {
    let (_, quota, layer) = layer(1_000);
    quota.set_used(USER, Amount::new(900, 1));
    let layer = layer.price_by_async(|_, demand| async move {
        tokio::task::yield_now().await;
        demand.replacing(Amount::new(900, 1))
    });
    let service = layer.layer(service_fn(read_all));
    let put = |bytes| service.clone().oneshot(put(full(bytes)));
    assert_eq!(put(1_001).await.unwrap().status(), 507);
    assert_eq!(put(1_000).await.unwrap().status(), 201);
    assert_eq!(quota.usage(USER).used, Amount::new(1_000, 1));
    quota.set_used(USER, Amount::new(900, 1));
    // Smaller than what it replaces: usage decreases.
    assert_eq!(put(100).await.unwrap().status(), 201);
    assert_eq!(quota.usage(USER).used, Amount::new(100, 1));
}

#[tokio::test]
async fn the_replaced_amount_can_be_corrected() {
    let (_, quota, layer) = layer(1_000);
    quota.set_used(USER, Amount::new(950, 1));
    let layer = layer.price_by(|_, demand| demand.replacing(Amount::new(900, 1)));
    let refused = Arc::new(AtomicBool::new(false));
    let seen = refused.clone();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        let refused = seen.clone();
        async move {
            let reservation = request.extensions().get::<Reservation>().unwrap().clone();
            // Another client has deleted it meanwhile, and stored something else.
            let result = reservation.replaces(Amount::ZERO).await;
            refused.store(result.is_err(), SeqCst);
            reservation.replaces(Amount::new(60, 1)).await.unwrap();
            request.into_body().collect().await.unwrap();
            Ok::<_, Infallible>(answer(204))
        }
    }));
    service.oneshot(put(full(100))).await.unwrap();
    assert!(refused.load(SeqCst), "100 beside 950 do not fit into 1000");
    assert_eq!(quota.usage(USER).used, Amount::new(990, 1));
}

#[tokio::test]
async fn several_scopes_are_charged_or_none() {
    let volume = Disk::new(1 << 30).volume();
    let quota = MemoryQuota::new(Limits::bytes(1_000));
    quota.set_limits("tenant:acme", Limits::bytes(150));
    let layer = StorageGuardLayer::new(volume)
        .quota(quota.clone())
        .scope_by(|_| [USER, "tenant:acme"]);
    let service = layer.layer(service_fn(read_all));
    let first = service.clone().oneshot(put(full(100))).await.unwrap();
    assert_eq!(first.status(), 201);
    let second = service.oneshot(put(full(100))).await.unwrap();
    let (status, json) = read(second).await;
    assert_eq!(status, 507);
    let figures = [&json["limit"], &json["used"], &json["required"]];
    assert_eq!(figures, [150, 100, 100]);
    assert_eq!(quota.usage(USER).used.bytes, 100);
    assert_eq!(quota.usage(USER).held.bytes, 0);
}

#[tokio::test]
async fn figures_go_only_to_the_scope_they_belong_to() {
    let (_, _, layer) = layer(10);
    let service = layer
        .scope_by(|_| Scope::from(USER).undisclosed())
        .layer(service_fn(read_all));
    let (status, json) = read(service.oneshot(put(full(11))).await.unwrap()).await;
    assert_eq!(
        (status, json),
        (
            507,
            json!({
                "error": "Insufficient Storage",
                "message": "Storage quota exceeded",
                "reason": "quota_exceeded",
                "resource": "bytes",
                // Although it exceeds the limit: repeated requests would reveal the limit.
                "temporary": true,
            })
        )
    );
}

#[tokio::test]
async fn a_body_of_unknown_length_draws_grants_and_gives_the_rest_back() {
    let (volume, quota, layer) = layer(1 << 20);
    let service = layer.grants(1_000, 2_000).layer(service_fn(read_all));
    let response = service.oneshot(put(chunked(10, 333))).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(quota.usage(USER).used, Amount::new(3_330, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_body_of_unknown_length_fits_exactly_or_is_cut() {
    for (limit, status) in [(3_330, 201), (3_329, 507)] {
        let (volume, quota, layer) = layer(limit);
        let service = layer.grants(1_000, 1_000).layer(service_fn(read_all));
        let response = service.oneshot(put(chunked(10, 333))).await.unwrap();
        let (got, json) = read(response).await;
        assert_eq!(got, status, "{json}");
        assert_eq!(quota.usage(USER).held, Amount::ZERO);
        let used = if status == 201 { 3_330 } else { 0 };
        assert_eq!(quota.usage(USER).used.bytes, used);
        Disk::until_settled(&volume).await;
    }
}

#[tokio::test]
async fn a_body_that_passes_its_demand_must_grow_or_is_cut() {
    for (limit, status) in [(300, 201), (299, 507)] {
        let (_, quota, layer) = layer(limit);
        let service = layer
            .price_by(|_, _| Demand::known(100))
            .grants(1, 1)
            .layer(service_fn(read_all));
        let response = service.oneshot(put(chunked(3, 100))).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(quota.usage(USER).held, Amount::ZERO);
    }
}

#[tokio::test]
async fn a_grant_is_limited_to_the_available_room() {
    // The quota and the disk have less left than a grant.
    for (limit, disk, bytes, status) in [
        (800, 1 << 30, 800, 201),
        (800, 1 << 30, 801, 507),
        (1 << 30, 800, 800, 201),
        (1 << 30, 800, 801, 507),
        (0, 1 << 30, 1, 507),
        (1 << 30, 0, 1, 507),
    ] {
        let quota = MemoryQuota::new(Limits::UNLIMITED);
        quota.set_limits("tenant:acme", Limits::bytes(limit));
        let service = StorageGuardLayer::new(Disk::new(disk).volume())
            .quota(quota.clone())
            .scope_by(|_| [USER, "tenant:acme"])
            .patience(Duration::ZERO)
            .layer(service_fn(read_all));
        let response = service.oneshot(put(chunked(1, bytes))).await.unwrap();
        assert_eq!(response.status(), status, "{bytes} of {limit}, on {disk}");
        assert_eq!(quota.usage(USER).held, Amount::ZERO);
    }
}

#[tokio::test]
async fn a_handler_can_commit_before_its_answer() {
    let (volume, quota, layer) = layer(1_000);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        let reservation = request.extensions().get::<Reservation>().unwrap().clone();
        request.into_body().collect().await.unwrap();
        reservation.stored(60);
        assert!(!reservation.has_ended());
        assert!(reservation.commit().await);
        assert!(reservation.has_ended());
        assert!(!reservation.commit().await, "it ends once");
        Ok::<_, Infallible>(answer(500))
    }));
    service.oneshot(put(full(100))).await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(60, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_cut_upload_cannot_be_committed() {
    let (_, quota, layer) = layer(100);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        let reservation = request.extensions().get::<Reservation>().unwrap().clone();
        request.into_body().collect().await.unwrap_err();
        assert!(!reservation.commit().await);
        Ok::<_, Infallible>(answer(201))
    }));
    let response = service.oneshot(put(chunked(1, 101))).await.unwrap();
    assert_eq!(response.status(), 507);
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

#[tokio::test]
async fn a_cut_upload_is_never_acknowledged() {
    let (_, quota, layer) = layer(1_000);
    // The handler ignores the error, and reports success.
    let service =
        layer
            .grants(100, 100)
            .layer(service_fn(|request: Request<Incoming>| async move {
                let error = request.into_body().collect().await.unwrap_err();
                assert!(error.is::<Refused>());
                Ok::<_, Infallible>(answer(201))
            }));
    let response = service.oneshot(put(chunked(11, 100))).await.unwrap();
    let refusal = response.extensions().get::<Refusal>().unwrap().clone();
    assert_eq!(refusal.fault().unwrap().cause, Cause::QuotaExceeded);
    assert_eq!(response.status(), 507);
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

#[tokio::test]
async fn trailers_pass_and_cost_nothing() {
    let (_, quota, layer) = layer(3);
    let service = layer
        .grants(1, 1)
        .layer(service_fn(|request: Request<Incoming>| async move {
            let body = request.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-sum"], "abc");
            assert_eq!(body.to_bytes(), "abc");
            Ok::<_, Infallible>(answer(200))
        }));
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "abc".parse().unwrap());
    let frames = [Frame::data("abc".into()), Frame::trailers(trailers)].map(Ok);
    let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    assert_eq!(service.oneshot(put(body)).await.unwrap().status(), 200);
    assert_eq!(quota.usage(USER).used.bytes, 3);
}

#[tokio::test]
async fn a_malformed_length_is_400_and_a_hint_can_refuse() {
    let (_, quota, layer) = layer(1_000);
    let service = layer.layer(service_fn(read_all));
    let with = |name: &'static str, value: &'static str, content| {
        let mut request = put(content);
        request.headers_mut().insert(name, value.parse().unwrap());
        service.clone().oneshot(request)
    };
    let (status, json) = read(with("content-length", "-1", full(1)).await.unwrap()).await;
    assert_eq!((status, &json["error"]), (400, &json!("Bad Request")));
    for (hint, status) in [("1001", 507), ("1000", 201), ("-5", 201), ("much", 201)] {
        quota.set_used(USER, Amount::ZERO);
        let response = with("oc-total-length", hint, full(10)).await.unwrap();
        assert_eq!(response.status(), status, "{hint}");
    }
}

#[tokio::test]
async fn a_hint_reserves_no_more_than_its_cap() {
    let (_, quota, layer) = layer(1_000);
    let seen = quota.clone();
    let service =
        layer
            .hint_cap(50)
            .grants(10, 10)
            .layer(service_fn(move |request: Request<Incoming>| {
                assert_eq!(seen.usage(USER).held.bytes, 50);
                read_all(request)
            }));
    let mut request = put(chunked(3, 100));
    let hint = header::HeaderName::from_static("x-expected-entity-length");
    request.headers_mut().insert(hint, 300.into());
    assert_eq!(service.oneshot(request).await.unwrap().status(), 201);
    assert_eq!(quota.usage(USER).used.bytes, 300);
}

#[tokio::test]
async fn a_later_chunk_needs_room_for_the_rest() {
    for (total, offset) in [
        ("upload-length", "upload-offset"),
        ("oc-total-length", "oc-chunk-offset"),
    ] {
        let disk = Disk::new(300);
        let volume = disk.volume();
        let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
        let chunk = |at: u64| {
            let mut chunk = put(full(100));
            chunk.headers_mut().insert(total, 300.into());
            chunk.headers_mut().insert(offset, at.into());
            send(service.clone(), chunk)
        };
        for at in [0, 100, 200] {
            if at > 0 {
                assert_eq!(chunk(at - 1).await, 507, "{offset} {at}");
            }
            assert_eq!(chunk(at).await, 201, "{offset} {at}");
            disk.set_available(200 - at);
            Disk::until_settled(&volume).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_source_that_is_away_is_503_or_let_in() {
    #[derive(Clone)]
    struct Away;
    impl QuotaSource for Away {
        type Hold = ();
        type Future = Pending<Result<(), QuotaError>>;

        fn reserve(&self, scopes: &Scopes, _: Amount, _: Amount) -> Answer<Self::Future> {
            // One source never answers, the other fails.
            if scopes.iter().any(|scope| scope.as_str() == "slow") {
                Answer::Later(pending())
            } else {
                Answer::Now(Err(QuotaError::Unavailable("down".into())))
            }
        }

        fn charge(&self, _: &Scopes, _: Change) {}
    }
    for (outage, status) in [(Outage::Refuse, 503), (Outage::Admit, 201)] {
        for scope in ["slow", "failing"] {
            let volume = Disk::new(1 << 30).volume();
            let service = StorageGuardLayer::new(volume.clone())
                .quota(Away)
                .scope_by(move |_| scope)
                .quota_timeout(Duration::from_secs(3))
                .quota_outage(outage)
                .layer(service_fn(read_all));
            let start = tokio::time::Instant::now();
            let (got, json) = read(service.oneshot(put(full(10))).await.unwrap()).await;
            assert_eq!(got, status);
            if status == 503 {
                assert_eq!(json["reason"], "capacity_unknown");
            }
            let waited = if scope == "slow" { 3 } else { 0 };
            assert_eq!(start.elapsed().as_secs(), waited);
            // The claim on the volume is released.
            Disk::until_settled(&volume).await;
        }
    }
}

#[tokio::test]
async fn a_quota_function_is_all_it_takes() {
    let volume = Disk::new(1 << 30).volume();
    let quota = quota_fn(|scope| {
        let used = Amount::bytes(if scope.as_str() == USER { 900 } else { 0 });
        let limits = Limits::bytes(1_000);
        Ok::<_, Infallible>(Quota { limits, used })
    });
    let service = StorageGuardLayer::new(volume)
        .quota(quota)
        .scope_by(|_| USER)
        .layer(service_fn(read_all));
    let put = |bytes| service.clone().oneshot(put(full(bytes)));
    assert_eq!(put(100).await.unwrap().status(), 201);
    assert_eq!(put(101).await.unwrap().status(), 507);
}

/// The ways in which a handler may report a fault.
fn faulty(how: &str) -> Result<Reply, BoxError> {
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let mut response = answer(500);
    match how {
        "extension" => {
            let fault = Fault::new(Cause::DatabaseFull, Resource::Bytes);
            response.extensions_mut().insert(fault);
        }
        "source" => {
            let source = Source::new(io::Error::other(full()));
            response.extensions_mut().insert(source);
        }
        "error" => return Err(Box::new(full())),
        "plain 507" => response = answer(507),
        "another error" => {
            let source = Source::new(io::Error::other("secret"));
            response.extensions_mut().insert(source);
        }
        _ => {}
    }
    Ok(response)
}

#[tokio::test]
async fn faults_of_every_form_become_the_one_refusal() {
    for (how, status, reason) in [
        ("extension", 507, Some("database_full")),
        ("source", 507, Some("disk_full")),
        ("error", 507, Some("disk_full")),
        ("plain 507", 507, Some("disk_full")),
        ("another error", 500, None),
        ("none", 500, None),
    ] {
        for method in ["PUT", "GET", "DELETE"] {
            let (_, quota, layer) = layer(1_000);
            let service = layer.layer(service_fn(move |_: Request<Incoming>| ready(faulty(how))));
            let mut request = put(full(10));
            *request.method_mut() = method.parse().unwrap();
            let response = service.oneshot(request).await.unwrap();
            assert_eq!(
                response.extensions().get::<Refusal>().is_some(),
                reason.is_some()
            );
            let (got, json) = read(response).await;
            assert_eq!(got, status, "{how}");
            assert_eq!(json["reason"].as_str(), reason, "{how}");
            assert_eq!(quota.usage(USER).used, Amount::ZERO);
        }
    }
}

#[tokio::test]
async fn errors_that_are_no_faults_are_passed_on_unchanged() {
    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("disk")]
        Disk(#[source] io::Error),
        #[error("other")]
        Other,
    }
    let classifier = Classifier::default().error_type::<Failed>();
    let volume = Disk::new(1 << 30).volume();
    let layer = StorageGuardLayer::new(volume).classifier(classifier);
    let service = layer.layer(service_fn(|request: Request<Incoming>| {
        ready(if request.uri().path() == "/full" {
            Err::<Reply, _>(Failed::Disk(io::ErrorKind::StorageFull.into()))
        } else {
            Err(Failed::Other)
        })
    }));
    let mut request = put(full(1));
    *request.uri_mut() = "/full".parse().unwrap();
    let response = service.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 507);
    let error = service.oneshot(put(full(1))).await.unwrap_err();
    assert!(matches!(error, Failed::Other));
}

#[tokio::test]
async fn a_veto_leaves_the_answer_unchanged() {
    let classifier =
        Classifier::default().with(|error| error.is::<io::Error>().then_some(Verdict::NotOurs));
    let volume = Disk::new(1 << 30).volume();
    let service = StorageGuardLayer::new(volume)
        .classifier(classifier)
        .layer(service_fn(|_: Request<Incoming>| ready(faulty("source"))));
    let (status, json) = read(service.oneshot(put(full(1))).await.unwrap()).await;
    assert_eq!((status, json), (500, Value::Null));
}

#[tokio::test]
async fn an_inner_507_keeps_what_other_layers_said_and_nothing_of_its_content() {
    let volume = Disk::new(1 << 30).volume();
    let service = StorageGuardLayer::new(volume).layer(service_fn(|_: Request<Incoming>| {
        let response = Response::builder()
            .status(507)
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .header("access-control-allow-origin", "*")
            .header("content-type", "text/x-shell")
            .header("etag", "\"1\"")
            .header("retry-after", "1")
            .body(Full::from("No space left on /dev/sda1"));
        ready(Ok::<_, Infallible>(response.unwrap()))
    }));
    let response = service.oneshot(put(full(1))).await.unwrap();
    let headers = response.headers().clone();
    assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(headers["content-type"], "application/json");
    assert!(!headers.contains_key("etag") && !headers.contains_key("retry-after"));
    assert_eq!(read(response).await, (507, full_disk()));
}

#[tokio::test]
async fn a_guard_in_a_guard_answers_once() {
    let (_, _, outer) = layer(1_000);
    let (_, inner_quota, inner) = layer(10);
    let service = outer.layer(inner.layer(service_fn(read_all_twice)));
    let response = service.oneshot(put(full(11))).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let json: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (json["reason"].as_str(), json["limit"].as_u64()),
        (Some("quota_exceeded"), Some(10))
    );
    assert_eq!(inner_quota.usage(USER).held, Amount::ZERO);
}

async fn read_all_twice(request: Request<MeteredBody<Incoming>>) -> Result<Reply, Infallible> {
    let read = request.into_body().collect().await;
    Ok(answer(if read.is_ok() { 201 } else { 500 }))
}

#[tokio::test]
async fn a_refusal_from_a_guard_inside_is_not_charged_whatever_its_status() {
    let (_, quota, outer) = layer(1_000);
    let (_, _, inner) = layer(10);
    let inner = inner.render_with(|_, _| Some(Response::new("refused".into())));
    let service = outer.layer(
        inner.layer(service_fn(|_: Request<MeteredBody<Incoming>>| async {
            Ok::<_, Infallible>(answer(201))
        })),
    );
    let response = service.oneshot(put(full(11))).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "refused");
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}

#[tokio::test]
async fn answers_can_be_set() {
    let (_, _, layer) = layer(10);
    let layer = layer
        .status(Cause::QuotaExceeded, StatusCode::PAYLOAD_TOO_LARGE)
        .unwrap()
        .retry_after(Cause::QuotaExceeded, Duration::from_millis(1_500));
    let service = layer.clone().layer(service_fn(read_all));
    let response = service.oneshot(put(full(11))).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(response.headers()["retry-after"], "2");

    let own = layer.render_with(|refusal, _| {
        let is_quota = matches!(refusal.kind(), RefusalKind::Storage(_));
        is_quota.then(|| Response::new("own".into()))
    });
    let response = own
        .layer(service_fn(read_all))
        .oneshot(put(full(11)))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.extensions().get::<Refusal>().is_some());

    let (_, _, fresh) = self::layer(10);
    assert!(fresh.status(Cause::DiskFull, StatusCode::OK).is_err());
}

/// The service answers at once, and reads after its answer.
#[tokio::test]
async fn an_answer_that_comes_first_is_settled_when_both_directions_end() {
    let (volume, quota, layer) = layer(1_000);
    let (bodies, mut taken) = mpsc::unbounded_channel();
    let service = layer
        .grants(100, 100)
        .layer(service_fn(move |request: Request<Incoming>| {
            bodies.send(request.into_body()).unwrap();
            ready(Ok::<_, Infallible>(answer(202)))
        }));

    // The answer ends first.
    let response = service.clone().oneshot(put(chunked(3, 100))).await.unwrap();
    assert_eq!(response.status(), 202);
    response.into_body().collect().await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    taken.recv().await.unwrap().collect().await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(300, 1));

    // The body ends first.
    let response = service.clone().oneshot(put(chunked(3, 100))).await.unwrap();
    taken.recv().await.unwrap().collect().await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(300, 1));
    response.into_body().collect().await.unwrap();
    assert_eq!(quota.usage(USER).used, Amount::new(600, 2));

    // The client disconnects before the answer was sent.
    let response = service.clone().oneshot(put(chunked(3, 100))).await.unwrap();
    drop(response);
    let body = taken.recv().await.unwrap();
    assert!(body.collect().await.unwrap_err().is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::new(600, 2));

    // The client disconnects while its body is read after the answer.
    let frames = [
        Ok(Frame::data("abc".into())),
        Err(io::ErrorKind::ConnectionReset.into()),
    ];
    let broken = StreamBody::new(stream::iter(frames)).boxed_unsync();
    let response = service.clone().oneshot(put(broken)).await.unwrap();
    response.into_body().collect().await.unwrap();
    taken.recv().await.unwrap().collect().await.unwrap_err();
    assert_eq!(quota.usage(USER).used, Amount::new(600, 2));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);

    // The body is cut after the head was sent: the answer ends in an error.
    let response = service.oneshot(put(chunked(5, 100))).await.unwrap();
    let body = taken.recv().await.unwrap();
    assert!(body.collect().await.unwrap_err().is::<Refused>());
    let error = response.into_body().collect().await.unwrap_err();
    assert!(error.is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::new(600, 2));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_cancelled_request_releases_though_its_body_lives_on() {
    let (volume, quota, layer) = layer(1_000);
    let (bodies, mut taken) = mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        bodies.send(request.into_body()).unwrap();
        pending::<Result<Reply, Infallible>>()
    }));
    {
        let mut call = pin!(service.oneshot(put(full(100))));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut cx).is_pending());
        assert_eq!(quota.usage(USER).held.bytes, 100);
    }
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    let body = taken.recv().await.unwrap();
    assert!(body.collect().await.unwrap_err().is::<Refused>());
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_kept_handle_does_not_keep_the_unread_body() {
    for status in [201, 404] {
        let volume = Disk::new(1_000).volume();
        let mut service = ByHand::new(StorageGuardLayer::new(volume));
        let (client, frames) = mpsc::unbounded_channel();
        let frames = stream::unfold(frames, async |mut frames| {
            Some((frames.recv().await?, frames))
        });
        let inside = service.enter(StreamBody::new(frames).boxed_unsync()).await;
        let reservation = inside.reservation.clone();
        let answer = inside.answer(status).await;
        answer.into_body().collect().await.unwrap();
        assert!(reservation.has_ended());
        in_time(client.closed()).await;
    }
}

#[tokio::test]
async fn a_request_cancelled_during_the_quota_lookup_releases_everything() {
    let volume = Disk::new(1 << 30).volume();
    let (asked, mut answers) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
    let quota = tower_storage_guard::quota::quota_future(move |_| {
        let (tell, told) = oneshot::channel();
        asked.send(tell).unwrap();
        async move {
            told.await?;
            let limits = Limits::UNLIMITED;
            Ok::<_, oneshot::error::RecvError>(Quota {
                limits,
                used: Amount::ZERO,
            })
        }
    });
    let service = StorageGuardLayer::new(volume.clone())
        .quota(quota)
        .scope_by(|_| USER)
        .layer(service_fn(read_all));
    let call = tokio::spawn(service.oneshot(put(full(100))));
    let _asked = answers.recv().await.unwrap();
    assert!(volume.status().claimed > 0);
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(volume.status().claimed, 0);
}

#[tokio::test]
async fn a_handler_that_panics_releases() {
    let (volume, quota, layer) = layer(1_000);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        let reservation = request.extensions().get::<Reservation>().unwrap().clone();
        reservation.written(10);
        let mut body = request.into_body();
        body.frame().await;
        if reservation.reserved() > 0 {
            panic!("as it is to be");
        }
        Ok::<_, Infallible>(answer(201))
    }));
    let call = tokio::spawn(service.oneshot(put(full(100))));
    assert!(call.await.unwrap_err().is_panic());
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_full_disk_lets_empty_objects_in_until_objects_run_out() {
    let disk = Disk::new(0).with_inodes(1);
    let volume = disk.volume();
    let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
    assert_eq!(
        service
            .clone()
            .oneshot(put(full(0)))
            .await
            .unwrap()
            .status(),
        201
    );
    let (status, json) = read(service.clone().oneshot(put(full(1))).await.unwrap()).await;
    assert_eq!((status, json["resource"].as_str()), (507, Some("bytes")));
    disk.set_inodes(0);
    Disk::until(&volume, |status| status.inodes_available == Some(0)).await;
    let (status, json) = read(service.oneshot(put(full(0))).await.unwrap()).await;
    assert_eq!((status, json["resource"].as_str()), (507, Some("objects")));
}

#[tokio::test]
async fn a_full_disk_names_the_resource_despite_an_old_reading() {
    let disk = Disk::new(1_000).with_inodes(10);
    let volume = disk.probed_every(Duration::from_secs(60));
    let service = StorageGuardLayer::new(volume).layer(service_fn(move |_: Request<Incoming>| {
        // Another program has just taken the last inode.
        disk.set_inodes(0);
        ready(faulty("source"))
    }));
    let (status, json) = read(service.oneshot(put(full(10))).await.unwrap()).await;
    assert_eq!((status, json["resource"].as_str()), (507, Some("objects")));
}

/// A volume with a reading from half a minute ago, and a file that was deleted since.
#[tokio::test]
async fn no_request_is_refused_on_an_old_reading() {
    let disk = Disk::new(100);
    let volume = disk.probed_every(Duration::from_secs(60));
    let service = StorageGuardLayer::new(volume).layer(service_fn(read_all));
    disk.set_available(1_000);
    let response = service.oneshot(put(full(1_000))).await.unwrap();
    assert_eq!(response.status(), 201);
}

#[tokio::test]
async fn the_request_body_forwards_size_hint_and_end() {
    let (_, _, layer) = layer(1_000);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        let mut body = request.into_body();
        assert_eq!(body.size_hint().exact(), Some(100));
        assert!(!body.is_end_stream());
        body.frame().await.unwrap().unwrap();
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
        Ok::<_, Infallible>(answer(200))
    }));
    assert_eq!(service.oneshot(put(full(100))).await.unwrap().status(), 200);
}
