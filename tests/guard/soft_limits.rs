//! Soft limits, as clients and the owner of a guard see them.

use std::{sync::mpsc, time::Duration};

use http::Request;
use http_body_util::BodyExt;
use serde_json::Value;
use test_support::service::{Content, USER, answer, full, layer, put, read_all};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, Guard, Reservation, ResponseBody, Scope, StorageGuardLayer,
    observer::{Event, Observer},
    quota::{Change, Limits, MemoryQuota, QuotaSource},
    setup::Charges,
};

const GRACE: Duration = Duration::from_secs(60);
/// A soft limit of 80 bytes.
const LIMITS: Limits = Limits::bytes(100).soft_percent(80).grace(GRACE);

/// The status of an answer, its warning, and its content as JSON.
async fn ask<Q: QuotaSource, P: Charges<Q>>(
    layer: &StorageGuardLayer<Q, P>,
    request: Request<Content>,
) -> (u16, String, Value) {
    let handler = service_fn(|request: Request<_>| async {
        match request.uri().path() {
            "/fails" => Ok(answer(500)),
            "/commits" => {
                let reservation = request.extensions().get::<Reservation>().unwrap().clone();
                let read = read_all(request).await;
                reservation.commit().await;
                read
            }
            _ => read_all(request).await,
        }
    });
    let answered = layer.layer(handler).oneshot(request).await.unwrap();
    let (head, body): (_, ResponseBody<_>) = answered.into_parts();
    let warning = head.headers.get("storage-warning");
    let warning = warning.map(|warning| warning.to_str().unwrap().to_owned());
    let content = body.collect().await.unwrap().to_bytes();
    let content = serde_json::from_slice(&content).unwrap_or_default();
    (head.status.as_u16(), warning.unwrap_or_default(), content)
}

fn warning(used: u64, grace: u64) -> String {
    format!(
        "\"quota-soft-limit\";resource=bytes;limit=80;used={used};grace={grace};scope=\"{USER}\""
    )
}

#[tokio::test(start_paused = true)]
async fn clients_are_warned_from_the_request_that_crosses_the_limit() {
    let (_, quota, plain) = layer(100);
    quota.set_default(LIMITS);
    let guard = plain.clone().storage_warning();
    let send = async |bytes| ask(&guard, put(full(bytes))).await;
    let expect = |(status, warned, _): (u16, String, Value), expected: &str| {
        assert_eq!((status, warned.as_str()), (201, expected));
    };
    expect(send(80).await, "");
    expect(send(1).await, &warning(81, 60));
    advance(Duration::from_millis(1_500)).await;
    // An answer to less than that, and one whose content the handler has committed.
    expect(send(0).await, &warning(81, 58));
    let commits = Request::put("/commits").body(full(1)).unwrap();
    expect(ask(&guard, commits).await, &warning(82, 58));
    let fails = Request::put("/fails").body(full(1)).unwrap();
    let (status, warned, _) = ask(&guard, fails).await;
    assert_eq!((status, warned.as_str()), (500, ""));
    // A layer that was not told so, and a scope that is the secret of another.
    expect(ask(&plain, put(full(1))).await, "");
    let secret = guard.clone().scope_by(|_| Scope::from(USER).undisclosed());
    expect(ask(&secret, put(full(1))).await, "");

    advance(GRACE).await;
    let (status, warned, refusal) = send(1).await;
    assert_eq!((status, warned.as_str()), (507, ""));
    let figures = ["limit", "used", "required"].map(|name| refusal[name].as_u64());
    assert_eq!(figures, [Some(80), Some(84), Some(1)], "{refusal}");
    assert_eq!(refusal["reason"], "quota_exceeded", "{refusal}");
    expect(send(0).await, &warning(84, 0));
    quota.adjust(USER, Change::between(Amount::ZERO, Amount::bytes(4)));
    expect(send(0).await, "");
    expect(send(1).await, &warning(81, 60));
}

/// An observer, and the usage at each crossing that it was told of.
fn observer() -> (impl Observer, mpsc::Receiver<u64>) {
    let (sender, told) = mpsc::channel();
    let observer = move |event: &Event<'_>| {
        if let Event::SoftLimit { used, .. } = event {
            sender.send(*used).unwrap();
        }
    };
    (observer, told)
}

#[tokio::test]
async fn each_crossing_is_observed_once() {
    let (observer, told) = observer();
    let quota = MemoryQuota::new(LIMITS);
    let guard = Guard::quota_only(quota.clone()).observer(observer);
    let reservation = guard.reserve(USER, Demand::known(90)).await.unwrap();
    assert!(told.try_recv().is_err(), "nothing is stored yet");
    reservation.commit().await;
    assert_eq!(told.try_recv(), Ok(90));
    quota.adjust(USER, Amount::bytes(1).into());
    assert!(told.try_recv().is_err(), "it was told before");
    quota.adjust(USER, Change::between(Amount::ZERO, Amount::bytes(90)));
    quota.adjust(USER, Amount::bytes(80).into());
    assert_eq!(told.try_recv(), Ok(81));
    drop((guard, reservation));
    quota.adjust("user:43", Amount::bytes(90).into());
    assert!(told.try_recv().is_err(), "the guard is gone");
}

/// As on a disk, the timers of a store outlive the process.
#[cfg(feature = "conformance")]
#[tokio::test(start_paused = true)]
async fn a_store_keeps_the_timers() {
    use std::sync::Arc;

    use tower_storage_guard::store::{StoredQuota, conformance::ReferenceStore};

    let store = Arc::new(ReferenceStore::default());
    let process = || {
        let (observer, told) = observer();
        let quota = StoredQuota::new(Arc::clone(&store), LIMITS);
        let layer = StorageGuardLayer::quota_only(quota).scope_by(|_| USER);
        (layer.storage_warning().observer(observer), told)
    };
    let (before, told) = process();
    let (status, warned, _) = ask(&before, put(full(81))).await;
    assert_eq!((status, warned), (201, warning(81, 60)));
    assert_eq!(told.try_recv(), Ok(81));
    drop(before);
    advance(Duration::from_secs(59)).await;
    let (after, told) = process();
    let (status, warned, _) = ask(&after, put(full(1))).await;
    assert_eq!((status, warned), (201, warning(82, 1)));
    assert!(told.try_recv().is_err(), "it was told before");
    advance(Duration::from_secs(1)).await;
    let (status, _, refusal) = ask(&after, put(full(1))).await;
    assert_eq!(
        http::StatusCode::from_u16(status).unwrap(),
        http::StatusCode::INSUFFICIENT_STORAGE
    );
    assert_eq!(refusal["limit"], 80, "{refusal}");
}

/// What is left of a quota is what a soft limit leaves, once its grace has passed.
#[tokio::test(start_paused = true)]
async fn nothing_is_left_above_a_soft_limit_after_its_grace() {
    let (_, quota, guard) = layer(100);
    quota.set_default(LIMITS);
    let guard = guard.rate_limit_fields();
    let left = async |bytes| {
        let handler = service_fn(read_all);
        let answer = guard
            .layer(handler)
            .oneshot(put(full(bytes)))
            .await
            .unwrap();
        assert_eq!(answer.status(), 201);
        answer.headers()["ratelimit"].to_str().unwrap().to_owned()
    };
    let before = left(85).await;
    assert!(before.contains(";r=15"), "{before}");
    advance(GRACE).await;
    let after = left(0).await;
    assert!(after.contains(";r=0"), "{after}");
}
