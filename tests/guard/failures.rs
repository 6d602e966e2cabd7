//! What a handler's `?` is answered: the client's errors are not the server's.

use std::{
    future::ready,
    io,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{DefaultBodyLimit, Multipart},
    routing::post,
};
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::limit::RequestBodyLimitLayer;
use tower_storage_guard::{
    MeteredBody, StorageGuardLayer,
    axum::Failure,
    fault::{Classifier, Source},
    quota::NoQuota,
};

const LIMIT: usize = 1_000;

/// Handlers that read a body in every way, and an error that is no client's.
fn routes() -> Router {
    Router::new()
        .route("/frames", post(by_frames))
        .route("/at-once", post(at_once))
        .route("/multipart", post(by_fields))
        .route(
            "/other",
            post(async || Err::<(), _>(Failure::from("it broke"))),
        )
}

async fn by_frames(mut body: Body) -> Result<StatusCode, Failure> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(StatusCode::CREATED)
}

async fn at_once(body: Body) -> Result<StatusCode, Failure> {
    to_bytes(body, LIMIT).await?;
    Ok(StatusCode::CREATED)
}

async fn by_fields(mut form: Multipart) -> Result<StatusCode, Failure> {
    while let Some(field) = form.next_field().await? {
        field.bytes().await?;
    }
    Ok(StatusCode::CREATED)
}

fn guard() -> StorageGuardLayer<NoQuota> {
    StorageGuardLayer::quota_only(NoQuota)
}

/// A form whose only field has so much content.
fn form(bytes: usize) -> String {
    let content = "x".repeat(bytes);
    format!("--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{content}\r\n--b--\r\n")
}

async fn status(app: &Router, path: &str, content: impl Into<Body>) -> StatusCode {
    let request = Request::post(path).header(CONTENT_TYPE, "multipart/form-data; boundary=b");
    let request = request.body(content.into()).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

/// Of unknown length, so that no limit is known to be exceeded before the body is read.
fn unannounced(content: String) -> Body {
    let pieces = [Ok::<_, io::Error>(content)];
    Body::from_stream(futures_util::stream::iter(pieces))
}

#[tokio::test]
async fn a_body_limit_is_413_wherever_it_is() {
    let limit = || RequestBodyLimitLayer::new(LIMIT);
    let apps = [
        routes().layer(DefaultBodyLimit::max(LIMIT)).layer(guard()),
        routes().layer(guard()).layer(DefaultBodyLimit::max(LIMIT)),
        routes().layer(limit()).layer(guard()),
        routes().layer(guard()).layer(limit()),
    ];
    for (number, app) in apps.iter().enumerate() {
        // `DefaultBodyLimit` is of extractors only.
        let paths = match number {
            0 | 1 => &["/at-once", "/multipart"][..],
            _ => &["/frames", "/at-once", "/multipart"],
        };
        for path in paths {
            let large = unannounced(form(2 * LIMIT));
            assert_eq!(status(app, path, large).await, 413, "{number} {path}");
            let small = unannounced(form(LIMIT / 2));
            assert_eq!(status(app, path, small).await, 201, "{number} {path}");
        }
    }
}

#[cfg(feature = "axum-multipart")]
#[tokio::test]
async fn a_malformed_form_is_400() {
    let app = routes().layer(guard());
    let whole = form(10);
    for end in 0..whole.len() - "--\r\n".len() {
        let part = whole[..end].to_owned();
        assert_eq!(status(&app, "/multipart", part).await, 400, "{end}");
    }
    for (from, to) in [
        ("form-data;", "\u{0}"),
        ("Content-Disposition:", "no header"),
    ] {
        let wrong = whole.replace(from, to);
        assert_eq!(status(&app, "/multipart", wrong).await, 400, "{to:?}");
    }
    assert_eq!(status(&app, "/multipart", whole).await, 201);
    // What fails below the form is not the client's.
    let pieces = [Err::<String, _>(io::Error::other("the backend is gone"))];
    let broken = Body::from_stream(futures_util::stream::iter(pieces));
    assert_eq!(status(&app, "/multipart", broken).await, 500);
}

#[tokio::test]
async fn any_other_error_is_500() {
    let app = routes().layer(guard());
    assert_eq!(status(&app, "/other", "").await, 500);
}

/// An error of a library that no feature is on for.
fn unknown() -> io::Error {
    io::Error::other("write failed: no space left on device")
}

/// A classifier that logs suspects.
fn suspicious() -> (Classifier, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let classifier =
        Classifier::default().on_suspect(move |error| log.lock().unwrap().push(error.to_string()));
    (classifier, seen)
}

#[tokio::test]
async fn a_handlers_suspect_is_reported_once_and_answered_as_before() {
    let (classifier, seen) = suspicious();
    let by_source = || {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response.extensions_mut().insert(Source::new(unknown()));
        response
    };
    let full = || Failure::from(io::Error::from(io::ErrorKind::StorageFull));
    let too_large = || Failure::from(io::Error::new(io::ErrorKind::FileTooLarge, "disk full"));
    let app = Router::new()
        .route(
            "/failure",
            post(async || Err::<(), _>(Failure::from(unknown()))),
        )
        .route("/source", post(async move || by_source()))
        .route("/full", post(async move || Err::<(), _>(full())))
        .route("/too-large", post(async move || Err::<(), _>(too_large())))
        .layer(guard().classifier(classifier));
    for (path, expected, reported) in [
        ("/failure", 500, 1),
        ("/source", 502, 2),
        ("/full", 507, 2),
        ("/too-large", 500, 2),
    ] {
        assert_eq!(status(&app, path, "").await, expected, "{path}");
        assert_eq!(seen.lock().unwrap().len(), reported, "{path}");
    }
    assert_eq!(seen.lock().unwrap()[0], unknown().to_string());
}

#[tokio::test]
async fn a_services_suspect_is_reported_once_and_passed_on() {
    let (classifier, seen) = suspicious();
    let failing =
        service_fn(|_: Request<MeteredBody<Body>>| ready(Err::<Response<Body>, _>(unknown())));
    let service = guard().classifier(classifier).layer(failing);
    let request = Request::post("/").body(Body::empty()).unwrap();
    let error = service.oneshot(request).await.unwrap_err();
    assert_eq!(error.to_string(), unknown().to_string());
    assert_eq!(*seen.lock().unwrap(), [unknown().to_string()]);
}

#[cfg(feature = "tonic")]
#[tokio::test]
async fn a_calls_suspect_is_reported_once() {
    let (classifier, seen) = suspicious();
    let calls = classifier.clone();
    let failing = service_fn(move |_: Request<MeteredBody<Body>>| {
        let status = tower_storage_guard::tonic::status_by(&calls, unknown());
        ready(Ok::<_, io::Error>(status.into_http::<Body>()))
    });
    let service = guard().classifier(classifier).layer(failing);
    let request = Request::post("/service/Call").body(Body::empty()).unwrap();
    let answer = service.oneshot(request).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "13");
    assert_eq!(seen.lock().unwrap().len(), 1);
}
