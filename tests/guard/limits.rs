//! The limits of tower-http and axum together with the guard: a body that is too large is answered 413 on either
//! side.

use std::convert::Infallible;

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Multipart, multipart::MultipartError},
    routing::post,
};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode};
use serde_json::Value;
use test_support::service::{USER, layer};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::limit::RequestBodyLimitLayer;
use tower_storage_guard::{Amount, StorageGuardLayer, quota::MemoryQuota, setup::Scoped};

const LIMIT: usize = 1_000;

#[derive(Clone, Copy, Debug)]
enum Limit {
    /// tower-http's: a Content-Length that is too large is answered by the layer, and the body is limited.
    RequestBody,
    /// The same, in a service that disables axum's own limit of 2 MB.
    RequestBodyAlone,
    /// axum's: the extractors limit the body.
    DefaultBody,
}

/// The position of the limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    NoGuard,
    InsideOfTheGuard,
    /// In one `ServiceBuilder` with the guard.
    OutsideOfTheGuard,
    /// In a separate `Router::layer`.
    OutsideInAnotherLayer,
}

#[derive(Clone, Copy, Debug)]
enum Extractor {
    Bytes,
    Json,
    Multipart,
}

fn limited(router: Router, limit: Limit) -> Router {
    match limit {
        Limit::RequestBody | Limit::RequestBodyAlone => {
            router.layer(RequestBodyLimitLayer::new(LIMIT))
        }
        Limit::DefaultBody => router.layer(DefaultBodyLimit::max(LIMIT)),
    }
}

fn limited_and_guarded(
    router: Router,
    limit: Limit,
    guard: StorageGuardLayer<MemoryQuota, Scoped>,
) -> Router {
    let stack = ServiceBuilder::new();
    match limit {
        Limit::RequestBody | Limit::RequestBodyAlone => {
            router.layer(stack.layer(RequestBodyLimitLayer::new(LIMIT)).layer(guard))
        }
        Limit::DefaultBody => router.layer(stack.layer(DefaultBodyLimit::max(LIMIT)).layer(guard)),
    }
}

fn service(guard: StorageGuardLayer<MemoryQuota, Scoped>, limit: Limit, place: Place) -> Router {
    let router = Router::new()
        .route("/bytes", post(async |_: Bytes| StatusCode::CREATED))
        .route("/json", post(async |_: Json<Value>| StatusCode::CREATED))
        .route("/multipart", post(read_form));
    // A layer that is added later is further outside.
    let router = match place {
        Place::NoGuard => limited(router, limit),
        Place::InsideOfTheGuard => limited(router, limit).layer(guard),
        Place::OutsideOfTheGuard => limited_and_guarded(router, limit, guard),
        Place::OutsideInAnotherLayer => limited(router.layer(guard), limit),
    };
    match limit {
        Limit::RequestBodyAlone => router.layer(DefaultBodyLimit::disable()),
        Limit::RequestBody | Limit::DefaultBody => router,
    }
}

async fn read_form(mut form: Multipart) -> Result<StatusCode, MultipartError> {
    while let Some(field) = form.next_field().await? {
        field.bytes().await?;
    }
    Ok(StatusCode::CREATED)
}

/// A request with `bytes` and a few more of content.
fn upload(extractor: Extractor, bytes: usize, has_length: bool) -> Request<Body> {
    let text = "7".repeat(bytes);
    let (uri, content_type, content) = match extractor {
        Extractor::Bytes => ("/bytes", "application/octet-stream", text),
        Extractor::Json => ("/json", "application/json", format!("\"{text}\"")),
        Extractor::Multipart => (
            "/multipart",
            "multipart/form-data; boundary=b",
            format!("--b\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\n{text}\r\n--b--\r\n"),
        ),
    };
    let request = Request::post(uri).header("content-type", content_type);
    if has_length {
        let request = request.header("content-length", content.len());
        return request.body(content.into()).unwrap();
    }
    let chunks: Vec<_> = content
        .as_bytes()
        .chunks(100)
        .map(|chunk| Ok::<_, Infallible>(Bytes::copy_from_slice(chunk)))
        .collect();
    request
        .body(Body::from_stream(stream::iter(chunks)))
        .unwrap()
}

/// The answer to a body that is too large.
///
/// 413, unless the limit ends the body in the middle and axum does not find the limit's error. axum wraps the error
/// once more wherever a body of another type is converted into its own: at a `Router::layer` whose layer changes the
/// type, as the limit's and the guard's do, and in an extractor that also sets a limit. `Bytes` and `Json` search two
/// wraps deep, and `Multipart` one.
fn expected(limit: Limit, place: Place, extractor: Extractor, has_length: bool) -> u16 {
    let wraps = match limit {
        Limit::RequestBody if !has_length => 2,
        Limit::RequestBodyAlone if !has_length => 1,
        // A Content-Length that is too large is answered before the body is read.
        Limit::RequestBody | Limit::RequestBodyAlone => return 413,
        // The limit is in the extractor.
        Limit::DefaultBody => return 413,
    };
    let wraps = wraps + u8::from(place == Place::OutsideInAnotherLayer);
    match extractor {
        Extractor::Bytes | Extractor::Json if wraps > 2 => 400,
        Extractor::Multipart if wraps > 1 => 500,
        Extractor::Bytes | Extractor::Json | Extractor::Multipart => 413,
    }
}

#[tokio::test]
async fn a_body_too_large_is_answered_413_inside_and_outside_of_the_guard() {
    for limit in [
        Limit::RequestBody,
        Limit::RequestBodyAlone,
        Limit::DefaultBody,
    ] {
        for place in [
            Place::NoGuard,
            Place::InsideOfTheGuard,
            Place::OutsideOfTheGuard,
            Place::OutsideInAnotherLayer,
        ] {
            for extractor in [Extractor::Bytes, Extractor::Json, Extractor::Multipart] {
                for has_length in [true, false] {
                    let case = (limit, place, extractor, has_length);
                    let (_volume, quota, layer) = layer(1 << 20);
                    let service = service(layer, limit, place);
                    let send = |bytes| {
                        let upload = upload(extractor, bytes, has_length);
                        service.clone().oneshot(upload)
                    };

                    let fits = send(LIMIT / 2).await.unwrap();
                    assert_eq!(fits.status(), 201, "{case:?}");
                    drop(fits);
                    let used = quota.usage(USER).used;
                    let is_guarded = !matches!(place, Place::NoGuard);
                    assert_eq!(used.objects, u64::from(is_guarded), "{case:?}");

                    let large = send(2 * LIMIT).await.unwrap();
                    let status = expected(limit, place, extractor, has_length);
                    assert_eq!(large.status(), status, "{case:?}");
                    drop(large);
                    assert_eq!(quota.usage(USER).used, used, "{case:?}");
                    assert_eq!(quota.usage(USER).held, Amount::ZERO, "{case:?}");
                }
            }
        }
    }
}
