//! What an operator sees of an application with uploads in flight, by the route of the feature `axum`.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    routing::{get, post, put},
};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    task::yield_now,
    time::{Instant, advance},
};
use tower::ServiceExt;
use tower_storage_guard::{
    Amount, Demand, Guard, Scope, Scopes, StorageGuardLayer,
    operator::{Accounts, AccountsFuture, OperatorView},
    quota::{Limits, MemoryQuota, QuotaSource},
    store::{LeasedQuota, StoredQuota, conformance::ReferenceStore},
    test_util::FakeVolume,
    upload::Uploads,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const TUS: (&str, &str) = ("tus-resumable", "1.0.0");
const SCHEMA: &str = include_str!("../../src/operator/schema.md");

/// A source that does something else than to answer.
enum Broken {
    Hangs,
    Fails,
    Panics,
}

impl Accounts for Broken {
    fn busiest(&self, _: usize) -> AccountsFuture<'_> {
        match self {
            Self::Hangs => Box::pin(pending()),
            Self::Fails => Box::pin(async { Err("connection \"refused\"".into()) }),
            Self::Panics => panic!("as the test wants"),
        }
    }
}

fn app(guard: &Guard<MemoryQuota>, uploads: &Uploads) -> Router {
    let create = async |Path(name): Path<String>| {
        let location = (header::LOCATION, format!("/uploads/{name}"));
        (StatusCode::CREATED, [TUS], [location])
    };
    let part = async |_: Bytes| (StatusCode::NO_CONTENT, [TUS, ("upload-offset", "3000")]);
    let layer = StorageGuardLayer::new(guard.clone())
        .scope_by(|head| {
            let user = head.headers.get("x-user")?.to_str().ok()?;
            Some(Scope::from(user))
        })
        .uploads(uploads);
    Router::new()
        .route("/uploads/{name}", post(create).patch(part))
        .route("/files/{name}", put(async |_: Bytes| StatusCode::CREATED))
        .layer(layer)
}

async fn send(app: &Router, request: http::request::Builder, body: Body) -> StatusCode {
    let request = request.header("x-user", "user:42").body(body).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

async fn status(app: &Router) -> Value {
    let request = Request::get("/status").body(Body::empty()).unwrap();
    let answer = app.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
    assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
    let json = answer.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&json).unwrap()
}

/// A disk that fills by 1,000 bytes a minute, and has 1,000,000 - 60,000 available now.
async fn filling_disk() -> FakeVolume {
    let disk = FakeVolume::new(1_000_000);
    for minute in 1..=60 {
        advance(MINUTE).await;
        disk.set_available(1_000_000 - minute * 1_000);
    }
    disk
}

async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        yield_now().await;
    }
    panic!("it never was so");
}

#[tokio::test(start_paused = true)]
async fn volumes_scopes_and_uploads_in_flight_are_shown() {
    let disk = filling_disk().await;
    let limits = Limits::bytes(500_000).soft_bytes(600).soft_objects(0);
    let quota = MemoryQuota::new(limits.grace(HOUR));
    quota.set_used("user:1", Amount::new(20_000, 2));
    quota.set_used("user:2", Amount::new(1, 1));
    quota.set_limits("user:1", Limits::UNLIMITED);
    let guard = Guard::new(disk.volume().keep_free(100_000).named("disk")).quota(quota.clone());
    let guard = guard.patience(HOUR);
    let uploads = Uploads::default();
    let inside = app(&guard, &uploads);
    let view = OperatorView::new()
        .guard("files", &guard)
        .quota("users", quota)
        .uploads("tus", &uploads)
        .most(2);
    let app = inside.clone().route("/status", get(view));

    // Of an upload of 8,000 bytes, 3,000 have come.
    let create = Request::post("/uploads/a").header(TUS.0, TUS.1);
    let created = send(&app, create.header("upload-length", 8_000), Body::empty()).await;
    assert_eq!(created, StatusCode::CREATED);
    let part = Request::patch("/uploads/a").header(TUS.0, TUS.1);
    let part = part.header("upload-offset", 0);
    let came = send(&app, part, Body::from(vec![0; 3_000])).await;
    assert_eq!(came, StatusCode::NO_CONTENT);
    // Stored since the last reading.
    let stored = send(&app, Request::put("/files/b"), Body::from(vec![0; 700])).await;
    assert_eq!(stored, StatusCode::CREATED);
    // In flight.
    let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let claimed = disk.volume().status().claimed;
    let in_flight = tokio::spawn({
        let app = app.clone();
        async move {
            send(
                &app,
                Request::put("/files/c").header("content-length", 5_000),
                silent,
            )
            .await
        }
    });
    until(|| disk.volume().status().claimed == claimed + 5_000).await;
    advance(Duration::from_secs(10)).await;

    let json = status(&app).await;
    assert_eq!(
        json,
        json!({
            "schema_version": 1,
            "volumes": [{
                "name": "disk",
                "state": "open",
                "total_bytes": 1_000_000,
                "available_bytes": 940_000,
                "claimed_bytes": 8_000 + 700 + 5_000,
                "settling_bytes": 3_000 + 700,
                "headroom_bytes": 100_000,
                "total_inodes": null,
                "available_inodes": null,
                "claimed_inodes": 3,
                "reading_age_seconds": json["volumes"][0]["reading_age_seconds"],
                "forecast": "filling",
                // At 1,000 bytes a minute.
                "full_in_seconds": (940_000 - 100_000 - 13_700) * 60 / 1_000,
                "waiting": 0,
                "waiting_growths": 0,
            }],
            "guards": [{"name": "files", "volume": "disk", "waiting_growths": 0}],
            "quotas": [{
                "name": "users",
                "state": "up",
                "error": null,
                "latency_seconds": 0,
                "busiest_scopes": [{
                    "scope": "user:1",
                    "used_bytes": 20_000,
                    "used_objects": 2,
                    "held_bytes": 0,
                    "held_objects": 0,
                    "limit_bytes": null,
                    "limit_objects": null,
                    "soft_limit_bytes": null,
                    "soft_limit_objects": null,
                    "grace_seconds": null,
                    "over_bytes_seconds": null,
                    "over_objects_seconds": null,
                }, {
                    "scope": "user:42",
                    "used_bytes": 700,
                    "used_objects": 1,
                    "held_bytes": 13_000,
                    "held_objects": 2,
                    "limit_bytes": 500_000,
                    "limit_objects": null,
                    "soft_limit_bytes": 600,
                    "soft_limit_objects": 0,
                    "grace_seconds": 3_600,
                    "over_bytes_seconds": 10,
                    "over_objects_seconds": 10,
                }],
                "store": null,
            }],
            "uploads": [{
                "name": "tus",
                "open": 1,
                "max_open": 100_000,
                "largest": [{
                    "key": "/uploads/a",
                    "whole_bytes": 8_000,
                    "reserved_bytes": 8_000,
                    "received_bytes": 3_000,
                    "idle_seconds": 10,
                }],
            }],
        })
    );
    let age = json["volumes"][0]["reading_age_seconds"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&age));
    in_flight.abort();
}

#[tokio::test(start_paused = true)]
async fn a_volume_has_a_state() {
    let disk = FakeVolume::new(1_000);
    let volume = disk.volume().keep_free(100);
    let resumes = volume.clone().resume_at(500);
    let view = OperatorView::new()
        .volume(volume.clone())
        .volume(resumes.clone());
    let states = async || {
        let json: Value = serde_json::from_str(&view.snapshot().await.to_json()).unwrap();
        let state = |at: usize| json["volumes"][at]["state"].as_str().unwrap().to_owned();
        [state(0), state(1)]
    };
    assert_eq!(states().await, ["open", "open"]);
    disk.set_available(100);
    // Looking is no refusal, so that it does not make the volume wait.
    assert_eq!(states().await, ["full", "full"]);
    disk.set_available(200);
    assert_eq!(states().await, ["open", "open"]);
    disk.set_available(100);
    assert!(resumes.takes_writes().is_err());
    disk.set_available(200);
    assert_eq!(states().await, ["open", "waiting_to_resume"]);
    disk.lose();
    assert_eq!(states().await, ["unknown", "unknown"]);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_counted() {
    let disk = FakeVolume::new(1_000);
    let quota = MemoryQuota::new(Limits::bytes(100));
    let guard = Guard::new(disk.volume()).patience(HOUR);
    let by_quota = Guard::quota_only(quota).patience(HOUR);
    let view = OperatorView::new()
        .guard("disk", &guard)
        .guard("quota", &by_quota);
    let counts = async || {
        let snapshot = view.snapshot().await;
        let volume = &snapshot.volumes[0];
        let growths = snapshot.guards.iter().map(|guard| guard.waiting_growths);
        let growths: Vec<_> = growths.collect();
        (volume.status.waiting, volume.waiting_growths, growths)
    };
    let first = guard
        .reserve(Scopes::NONE, Demand::known(600))
        .await
        .unwrap();
    let other = guard
        .reserve(Scopes::NONE, Demand::known(300))
        .await
        .unwrap();
    first.grow(1).await.unwrap();
    other.grow(1).await.unwrap();
    assert_eq!(counts().await, (0, 0, vec![0, 0]));

    let mut cx = Context::from_waker(Waker::noop());
    let mut growing = Box::pin(other.grow(200));
    assert!(growing.as_mut().poll(&mut cx).is_pending());
    let mut demand = Box::pin(guard.reserve(Scopes::NONE, Demand::known(300)));
    assert!(demand.as_mut().poll(&mut cx).is_pending());
    assert_eq!(counts().await, (2, 1, vec![0, 0]));
    drop((growing, demand));
    assert_eq!(counts().await, (0, 0, vec![0, 0]));

    let first = by_quota
        .reserve("user:42", Demand::known(60))
        .await
        .unwrap();
    let other = by_quota
        .reserve("user:42", Demand::known(30))
        .await
        .unwrap();
    first.grow(1).await.unwrap();
    other.grow(1).await.unwrap();
    let mut growing = Box::pin(other.grow(20));
    assert!(growing.as_mut().poll(&mut cx).is_pending());
    assert_eq!(counts().await, (0, 0, vec![0, 1]));
}

#[tokio::test(start_paused = true)]
async fn a_store_is_shown_with_its_health_and_one_that_is_away_too() {
    let store = Arc::new(ReferenceStore::default());
    let quota = StoredQuota::new(Arc::clone(&store), Limits::bytes(1_000));
    for (user, used) in [("user:1", 30), ("user:2", 20), ("user:3", 10)] {
        quota
            .admin()
            .set_used(user, Amount::new(used, 1))
            .await
            .unwrap();
    }
    let user = Scopes::from("user:2");
    let hold = quota
        .reserve(&user, Amount::new(5, 1), Amount::ZERO)
        .await
        .unwrap();
    let view = OperatorView::new()
        .quota("stored", quota.clone())
        .quota("leased", LeasedQuota::new(quota))
        .quota("hangs", Broken::Hangs)
        .quota("fails", Broken::Fails)
        .quota("panics", Broken::Panics)
        .timeout(Duration::from_secs(3))
        .most(2);
    let begun = Instant::now();
    let json: Value = serde_json::from_str(&view.snapshot().await.to_json()).unwrap();
    assert_eq!(begun.elapsed().as_secs(), 3, "all are asked at once");

    let health = |leases: Value| json!({"unsettled": 0, "is_journaled": true, "is_emptied": false, "leases": leases});
    for (at, leases) in [(0, json!(null)), (1, json!(0))] {
        let quota = &json["quotas"][at];
        assert_eq!(
            (&quota["state"], &quota["error"]),
            (&json!("up"), &json!(null))
        );
        assert_eq!(quota["store"], health(leases));
        let scopes = quota["busiest_scopes"].as_array().unwrap();
        let figures = |scope: &Value| {
            let figure = |name: &str| scope[name].as_u64().unwrap();
            (
                figure("used_bytes"),
                figure("held_bytes"),
                figure("limit_bytes"),
            )
        };
        let figures: Vec<_> = scopes.iter().map(figures).collect();
        assert_eq!(figures, [(30, 0, 1_000), (20, 5, 1_000)]);
    }
    let errors = [
        "no answer in time",
        "connection \"refused\"",
        "it has panicked",
    ];
    for (at, error) in errors.into_iter().enumerate() {
        let quota = &json["quotas"][at + 2];
        assert_eq!(
            (&quota["state"], &quota["error"]),
            (&json!("away"), &json!(error))
        );
        assert_eq!(quota["busiest_scopes"], json!(null), "unknown is not empty");
    }
    assert_eq!(json["quotas"][2]["latency_seconds"], json!(3));
    drop(hold);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_mounted_by_default() {
    let disk = FakeVolume::new(1_000);
    let guard = Guard::new(disk.volume()).quota(MemoryQuota::new(Limits::UNLIMITED));
    let uploads = Uploads::default();
    let view = OperatorView::new()
        .guard("files", &guard)
        .uploads("tus", &uploads);
    let app = app(&guard, &uploads);
    for path in [
        "/",
        "/status",
        "/operator",
        "/storage",
        "/metrics",
        "/health",
        "/ready",
    ] {
        let answer = send(&app, Request::get(path), Body::empty()).await;
        assert_eq!(answer, StatusCode::NOT_FOUND, "{path}");
    }
    let app = app.route("/status", get(view));
    assert_eq!(
        send(&app, Request::get("/status"), Body::empty()).await,
        StatusCode::OK
    );
}

/// The members of a value, with the types that were seen of each.
fn members(value: &Value, path: &str, into: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !path.is_empty() && !path.ends_with(']') {
        into.entry(path.to_owned()).or_default().insert(kind);
    }
    match value {
        Value::Array(values) => {
            for value in values {
                members(value, &format!("{path}[]"), into);
            }
        }
        Value::Object(values) => {
            for (name, value) in values {
                let dot = if path.is_empty() { "" } else { "." };
                members(value, &format!("{path}{dot}{name}"), into);
            }
        }
        _ => {}
    }
}

/// What the documentation lists is what is there, with each of the types that it names.
#[tokio::test(start_paused = true)]
async fn the_documented_schema_is_the_one_that_is_written() {
    let disk = filling_disk().await;
    let still = FakeVolume::new(1_000);
    still.set(tower_storage_guard::Reading::new(10, 1_000).with_inodes(3, 10));
    let memory = MemoryQuota::new(Limits::bytes(10).objects(2));
    memory.set_used("user:1", Amount::new(2, 1));
    memory.set_used("user:2", Amount::new(1, 1));
    memory.set_limits("user:2", Limits::UNLIMITED);
    let stored = StoredQuota::new(ReferenceStore::default(), Limits::UNLIMITED);
    let soft = Limits::UNLIMITED.soft_bytes(0).soft_objects(0);
    memory.set_limits("user:3", soft.grace(HOUR));
    let guard = Guard::new(disk.volume()).quota(memory.clone());
    let one = guard.reserve("user:3", Demand::known(1)).await.unwrap();
    one.stored(1);
    assert!(one.commit().await);
    let uploads = Uploads::default();
    let app = app(&guard, &uploads);
    for header in [("upload-length", "10"), ("upload-defer-length", "1")] {
        let create = Request::post(format!("/uploads/{}", header.0)).header(TUS.0, TUS.1);
        let created = send(&app, create.header(header.0, header.1), Body::empty()).await;
        assert_eq!(created, StatusCode::CREATED);
    }
    let view = OperatorView::new()
        .guard("files", &guard)
        .volume(still.volume())
        .guard("quota", &Guard::quota_only(memory.clone()))
        .quota("memory", memory)
        .quota("stored", stored.clone())
        .quota("leased", LeasedQuota::new(stored))
        .quota("away", Broken::Fails)
        .uploads("tus", &uploads);
    let app = app.route("/status", get(view));
    let mut written = BTreeMap::new();
    members(&status(&app).await, "", &mut written);

    let rows = SCHEMA.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<_> = row.split(" | ").collect();
            let member = cells[0].trim_start_matches("| `").trim_end_matches('`');
            (
                member.to_owned(),
                cells[1].split(" or ").collect::<BTreeSet<_>>(),
            )
        })
        .collect();
    let of = |all: &BTreeMap<String, BTreeSet<&str>>| -> Vec<_> {
        all.iter()
            .map(|(member, kinds)| format!("{member}: {kinds:?}"))
            .collect()
    };
    assert_eq!(of(&written), of(&documented));
}

/// A scope that is busy has a lease, whose budget is held in the store.
#[tokio::test(start_paused = true)]
async fn leases_are_counted() {
    let stored = StoredQuota::new(ReferenceStore::default(), Limits::bytes(1 << 30));
    stored
        .admin()
        .set_used("user:42", Amount::new(1, 1))
        .await
        .unwrap();
    let quota = LeasedQuota::new(stored);
    let view = OperatorView::new().quota("leased", quota.clone());
    let user = Scopes::from("user:42");
    for _ in 0..50 {
        let hold = quota
            .reserve(&user, Amount::new(1_000, 1), Amount::ZERO)
            .await
            .unwrap();
        drop(hold);
        advance(Duration::from_millis(20)).await;
    }
    let snapshot = view.snapshot().await;
    let quota = &snapshot.quotas[0];
    assert_eq!(quota.backlog.unwrap().leases, Some(1));
    let (scope, usage) = &quota.busiest.as_ref().unwrap()[0];
    assert_eq!(scope.as_str(), "user:42");
    assert!(usage.held.bytes > 0);
}
