//! No form of a request is charged less than a service stores of it that takes whatever it gets.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use test_support::{
    Dice,
    service::{Content, Incoming, USER, answer, full},
    times,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, StorageGuardLayer,
    quota::{Limits, MemoryQuota},
};

const LIMIT: u64 = 500;

/// A request of a client that knows how requests are priced.
fn any_request(dice: &mut Dice) -> Request<Content> {
    let one_of = |dice: &mut Dice, choices: &[&'static str]| {
        choices[dice.roll(choices.len() as u64) as usize]
    };
    let methods = [
        "PUT",
        "POST",
        "PATCH",
        "GET",
        "HEAD",
        "DELETE",
        "OPTIONS",
        "MKCOL",
        "PROPFIND",
        "REPORT",
        "LOCK",
        "UNLOCK",
        "put",
        "Post",
        "STORE",
        "M-PUT",
        "BPROPPATCH",
    ];
    let paths = [
        "/files/a",
        "/",
        "//files/a",
        "/upload.v1.Uploads/",
        "/a/b",
        "/%75pload.v1.Uploads/Put",
        "*",
    ];
    let bytes = dice.roll(200) as usize;
    let mut request = Request::builder()
        .method(one_of(dice, &methods))
        .uri(one_of(dice, &paths));
    let headers: &[(&str, &[&str])] = &[
        (
            "x-http-method-override",
            &["PUT", "put", "PATCH", "GET", "DELETE", "\u{7f}", "PUT, GET"],
        ),
        ("x-http-method", &["POST", "MERGE"]),
        ("x-method-override", &["Put"]),
        (
            "content-length",
            &[
                "0",
                "1",
                "007",
                "200",
                "-1",
                "5,5",
                "5, 6",
                "18446744073709551616",
                "x",
            ],
        ),
        (
            "upload-length",
            &["0", "1", "400", "-3", "1e3", "99999999999999999999"],
        ),
        ("x-expected-entity-length", &["0", "100", "0x10", ""]),
        ("oc-total-length", &["10", "600"]),
        ("upload-offset", &["0", "5", "18446744073709551615"]),
        (
            "content-range",
            &["bytes 0-9/10", "bytes */*", "bytes 900-1/2", "items 1-2"],
        ),
        (
            "content-type",
            &[
                "application/grpc",
                "application/grpc-web+proto",
                "application/connect+json",
                "APPLICATION/GRPC",
            ],
        ),
        ("expect", &["100-continue", "200-ok"]),
        ("transfer-encoding", &["chunked", "identity"]),
        ("tus-resumable", &["1.0.0"]),
        ("depth", &["0", "1", "infinity"]),
    ];
    for (name, values) in headers {
        while dice.roll(5) == 0 {
            if let Ok(value) = http::HeaderValue::from_bytes(one_of(dice, values).as_bytes()) {
                request = request.header(*name, value);
            }
        }
    }
    if dice.roll(3) == 0 {
        request = request.version(Version::HTTP_2);
    }
    let body = match dice.roll(3) {
        0 => full(bytes),
        // Of unknown length, in pieces.
        _ => {
            let pieces = vec![7; bytes]
                .chunks(64)
                .map(Bytes::copy_from_slice)
                .collect::<Vec<_>>();
            let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
            StreamBody::new(stream::iter(frames)).boxed_unsync()
        }
    };
    request.body(body).unwrap()
}

/// Whether a service may store the content of such a request: by its method, or by one that it is overridden with.
fn may_store(request: &Request<Incoming>) -> bool {
    let safe = [
        "GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "UNLOCK", "DELETE",
    ];
    let names = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ];
    let named = names
        .iter()
        .flat_map(|name| request.headers().get_all(*name));
    let mut methods = named
        .filter_map(|value| Method::from_bytes(&value.as_bytes().to_ascii_uppercase()).ok())
        .chain([request.method().clone()]);
    methods.any(|method| !safe.contains(&method.as_str()))
}

#[tokio::test]
async fn no_form_of_a_request_stores_more_than_it_is_charged() {
    let mut dice = Dice::new(14);
    let (mut stored_at_all, mut refused, mut malformed) = (0, 0, 0);
    for number in 0..times(4_000) {
        let quota = MemoryQuota::new(Limits::bytes(LIMIT));
        let layer = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
        let layer = match dice.roll(2) {
            0 => layer,
            _ => layer.calls(["upload.v1.Uploads/Put"]).unwrap(),
        };
        let stored = Arc::new(AtomicU64::new(0));
        let storing = Arc::clone(&stored);
        let service = layer.layer(service_fn(move |request: Request<Incoming>| {
            let storing = Arc::clone(&storing);
            async move {
                let stores = may_store(&request);
                let read = request.into_body().collect().await;
                let bytes = match read {
                    Ok(content) if stores => content.to_bytes().len() as u64,
                    Ok(_) => 0,
                    Err(_) => return Ok::<_, Infallible>(answer(500)),
                };
                storing.store(bytes, Relaxed);
                Ok(answer(201))
            }
        }));
        let request = any_request(&mut dice);
        let said = format!("{number}: {request:?}");
        let answer = service.oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        // A refused call is 200, and says so in its own words.
        assert!(
            [200, 201, 400, 507].contains(&status),
            "{status} for {said}"
        );
        let stored = stored.load(Relaxed);
        drop(answer);
        let usage = quota.usage(USER);
        assert!(
            usage.used.bytes >= stored,
            "{stored} stored, {usage:?}: {said}"
        );
        assert!(
            usage.used.bytes <= LIMIT && usage.held == Amount::ZERO,
            "{usage:?}: {said}"
        );
        stored_at_all += u32::from(stored > 0);
        refused += u32::from(status == 507);
        malformed += u32::from(status == 400);
    }
    assert!(
        stored_at_all > times(1_000) && refused > times(20) && malformed > times(200),
        "{stored_at_all} {refused} {malformed}"
    );
}
