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
use bytes::Bytes;
use http::{
    Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_http::limit::RequestBodyLimitLayer;
use tower_storage_guard::{
    Amount, BoxError, Internal, MeteredBody, Scope, StorageGuardLayer,
    axum::Failure,
    fault::{Classifier, Source},
    quota::{Limits, MemoryQuota, NoQuota, Quota, quota_fn},
    refusal::Refusal,
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

/// What a layer outside of the guard finds of a refusal: the error, the scope and the figures. The client is told nothing of them.
async fn refused_by<S, B>(service: S, content: usize) -> (StatusCode, String, Option<Internal>)
where
    S: Service<Request<Body>, Response = Response<B>, Error: std::fmt::Debug>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let request = Request::post("/").header(ACCEPT, "application/json");
    let request = request.body(vec![7; content].into()).unwrap();
    let answer = service.oneshot(request).await.unwrap();
    let refusal = answer.extensions().get::<Refusal>().cloned();
    let internal = refusal.and_then(|refusal| refusal.internal().cloned());
    let status = answer.status();
    let content = answer.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        String::from_utf8(content.to_vec()).unwrap(),
        internal,
    )
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write /srv/files")]
struct Write(#[source] io::Error);

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

fn texts(internal: &Internal) -> Vec<String> {
    let error = internal.error().expect("there is an error behind it");
    let errors = std::iter::successors(Some(error), |error| error.source());
    errors.map(ToString::to_string).collect()
}

#[tokio::test]
async fn layers_outside_see_the_error_behind_a_fault() {
    let handler = async || Err::<(), _>(Failure::from(Write(full())));
    let app = Router::new().route("/", post(handler)).layer(guard());
    let (status, content, internal) = refused_by(app, 1).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(!content.contains("srv"), "{content}");
    let internal = internal.unwrap();
    assert_eq!(
        texts(&internal),
        ["cannot write /srv/files", &full().to_string()]
    );
    // The error itself, and not a copy.
    assert!(internal.error().unwrap().is::<Write>());

    // Of a service, whatever its error type is.
    async fn io_error(_: Request<MeteredBody<Body>>) -> Result<Response<Full<Bytes>>, io::Error> {
        Err(full())
    }
    async fn boxed(_: Request<MeteredBody<Body>>) -> Result<Response<Full<Bytes>>, BoxError> {
        Err(Write(full()).into())
    }
    async fn own(_: Request<MeteredBody<Body>>) -> Result<Response<Full<Bytes>>, Write> {
        Err(Write(full()))
    }
    let (_, _, internal) = refused_by(guard().layer(service_fn(io_error)), 1).await;
    assert!(internal.unwrap().error().unwrap().is::<io::Error>());
    let (_, _, internal) = refused_by(guard().layer(service_fn(boxed)), 1).await;
    assert!(internal.unwrap().error().unwrap().is::<Write>());
    let classifier = Classifier::default().error_type::<Write>();
    let (status, content, internal) =
        refused_by(guard().classifier(classifier).layer(service_fn(own)), 1).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(!content.contains("srv"), "{content}");
    let copied = texts(&internal.unwrap());
    assert_eq!(copied, ["cannot write /srv/files", &full().to_string()]);
}

#[tokio::test]
async fn layers_outside_see_the_scope_and_the_figures_of_others() {
    let quota = MemoryQuota::new(Limits::bytes(100));
    quota.set_used("tenant", Amount::bytes(70));
    let layer =
        StorageGuardLayer::quota_only(quota).scope_by(|_| Scope::from("tenant").undisclosed());
    let app = Router::new().route("/", post(by_frames)).layer(layer);
    for bytes in [31, 101] {
        let (status, content, internal) = refused_by(app.clone(), bytes).await;
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
        let said: serde_json::Value = serde_json::from_str(&content).unwrap();
        let told = [
            &said["limit"],
            &said["used"],
            &said["required"],
            &said["scope"],
        ];
        assert!(told.iter().all(|value| value.is_null()), "{content}");
        // Nor whether it could ever fit.
        assert_eq!(said["temporary"], true);
        let internal = internal.unwrap();
        let figures = internal.figures().unwrap();
        assert_eq!(
            (figures.limit, figures.used, figures.required),
            (100, 70, bytes as u64)
        );
        assert_eq!(internal.scope().unwrap().as_str(), "tenant");
        assert!(internal.error().is_none());
    }
}

#[tokio::test]
async fn layers_outside_see_why_a_quota_source_could_not_decide() {
    let quota = quota_fn(|_| Err::<Quota, _>(Write(full())));
    let layer = StorageGuardLayer::quota_only(quota).scope_by(|_| "user");
    let app = Router::new().route("/", post(by_frames)).layer(layer);
    let (status, content, internal) = refused_by(app, 1).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!content.contains("srv"), "{content}");
    let texts = texts(&internal.unwrap());
    assert!(
        texts.contains(&"cannot write /srv/files".to_owned()),
        "{texts:?}"
    );
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
        ("/too-large", 413, 2),
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
