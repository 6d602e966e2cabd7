//! Whatever a head says of the length of its body: a success is charged for what was read, and nothing else for anything.
#![no_main]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use fuzz::{Ask, Content, USER, asks, call, check, read, reply, run};
use http::{Method, Request, StatusCode};
use http_body::Body;
use libfuzzer_sys::fuzz_target;
use tower::{Layer, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, StorageGuardLayer,
    quota::{Limits, MemoryQuota},
};

/// All others may change what a request is: whether it is a call, above all.
const HEADERS: [&str; 12] = [
    "content-length",
    "expect",
    "oc-chunk-offset",
    "oc-total-length",
    "transfer-encoding",
    "upload-length",
    "upload-offset",
    "x-amz-decoded-content-length",
    "x-expected-entity-length",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];
/// The methods that write nothing, as the crate documents them.
const READS: [&str; 11] = [
    "GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "REPORT", "SEARCH", "QUERY",
    "UNLOCK", "DELETE",
];

fuzz_target!(|input: &[u8]| {
    for ask in asks(input) {
        run(one(ask));
    }
});

async fn one(mut ask: Ask) {
    let names: Vec<_> = ask.headers.keys().cloned().collect();
    for name in names {
        if !HEADERS.contains(&name.as_str()) {
            ask.headers.remove(name);
        }
    }
    let quota = MemoryQuota::new(Limits::bytes(1_000));
    let got = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&got);
    let guard = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let service = guard.layer(service_fn(move |request: Request<MeteredBody<Content>>| {
        let counter = Arc::clone(&counter);
        async move {
            let (bytes, is_whole) = read(request.into_body()).await;
            counter.store(bytes, Relaxed);
            Ok::<_, Infallible>(match is_whole {
                true => reply(StatusCode::CREATED, &[]),
                false => reply(StatusCode::INTERNAL_SERVER_ERROR, &[]),
            })
        }
    }));
    let (is_guarded, has_length) = (is_guarded(&ask), ask.header("content-length").is_some());
    let answer = call(service, ask).await;

    let got = got.load(Relaxed);
    let charged = match answer.status() {
        StatusCode::CREATED if is_guarded => got,
        StatusCode::CREATED | StatusCode::INTERNAL_SERVER_ERROR => 0,
        StatusCode::INSUFFICIENT_STORAGE | StatusCode::REQUEST_TIMEOUT => {
            assert!(is_guarded, "only what is guarded is refused");
            0
        }
        StatusCode::BAD_REQUEST => {
            assert!(is_guarded && has_length, "only a wrong length is malformed");
            0
        }
        other => panic!("{other} is no answer of the guard"),
    };
    assert_eq!(quota.usage(USER).used.bytes, charged);
    assert!(!is_guarded || got <= 1_000, "{got} bytes passed the guard");
    assert!(quota.usage(USER).used.objects <= 1);
    assert_eq!(quota.unmatched(), Amount::ZERO);
    check(&quota, USER, Amount::bytes(charged));
}

/// Whether a request is guarded by its method, or by another one that a header names, which has content then.
fn is_guarded(ask: &Ask) -> bool {
    let writes = |method: &str| !READS.contains(&method);
    let mut others = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ]
    .into_iter()
    .flat_map(|name| ask.headers.get_all(name))
    .filter_map(|value| Method::from_bytes(&value.as_bytes().to_ascii_uppercase()).ok());
    writes(ask.method.as_str())
        || !ask.content.is_end_stream() && others.any(|other| writes(other.as_str()))
}
