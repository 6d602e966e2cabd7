//! What a handler's `?` is answered: the client's errors are not the server's.

use std::io;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{DefaultBodyLimit, Multipart},
    routing::post,
};
use http::{Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_http::limit::RequestBodyLimitLayer;
use tower_storage_guard::{StorageGuardLayer, axum::Failure, quota::NoQuota};

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
