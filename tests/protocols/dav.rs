//! Refusals as WebDAV errors, read by an independent parser.

use std::{convert::Infallible, future::ready, io, time::Duration};

use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use test_support::disk::Disk;
use test_support::service::{
    Content, Incoming, Reply, USER, answer, chunked, full, layer, put, read_all,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, ResponseBody, StorageGuardLayer,
    fault::{Cause, Fault, Resource, Source},
    quota::{MemoryQuota, Quota, quota_future},
    refusal::{Dav, Refusal},
    setup::Scoped,
};

const XML: &str = "application/xml; charset=\"utf-8\"";

type Answer = Response<ResponseBody<Full<bytes::Bytes>>>;

/// A guard that supports WebDAV, with a quota of `limit` bytes.
fn dav(limit: u64) -> (MemoryQuota, StorageGuardLayer<MemoryQuota, Scoped>) {
    let (_, quota, layer) = layer(limit);
    (quota, layer.dialect(Dav::default()))
}

fn request(method: &str, headers: &[(&'static str, &str)]) -> Request<Content> {
    let mut request = put(full(0));
    *request.method_mut() = method.parse().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

async fn send<S>(service: S, request: Request<Content>) -> Answer
where
    S: Service<Request<Content>, Response = Answer, Error = Infallible>,
{
    service.oneshot(request).await.unwrap()
}

/// The content of an answer: the condition, and two of this crate's elements.
struct Said {
    condition: Option<String>,
    reason: String,
    required: Option<u64>,
}

async fn read(response: Answer) -> Said {
    assert_eq!(response.headers()[header::CONTENT_TYPE], XML);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = str::from_utf8(&body).unwrap();
    assert!(body.starts_with("<?xml version=\"1.0\" encoding=\"utf-8\"?>"));
    let document = roxmltree::Document::parse(body).unwrap();
    let error = document.root_element();
    assert!(error.has_tag_name(("DAV:", "error")), "{body}");
    let ours = |name: &str| {
        let element = error
            .children()
            .find(|child| child.has_tag_name((Dav::NAMESPACE, name)))?;
        Some(element.text().unwrap().to_owned())
    };
    let is_condition =
        |child: &roxmltree::Node<'_, '_>| child.tag_name().namespace() == Some("DAV:");
    let mut conditions = error.children().filter(is_condition);
    let condition = conditions.next();
    assert_eq!(conditions.next(), None, "{body}");
    assert!(ours("message").is_some());
    Said {
        condition: condition.map(|condition| condition.tag_name().name().to_owned()),
        reason: ours("reason").unwrap(),
        required: ours("required").map(|required| required.parse().unwrap()),
    }
}

#[tokio::test]
async fn a_webdav_request_is_refused_with_a_webdav_error() {
    let (quota, layer) = dav(1_000);
    let layer = layer.price_by(|_, _| Demand::known(1_001));
    let service = layer.layer(service_fn(read_all));
    for (method, headers) in [
        ("MKCOL", &[][..]),
        (
            "COPY",
            &[("destination", "/files/b"), ("depth", "infinity")],
        ),
        ("MOVE", &[("destination", "/files/b"), ("overwrite", "F")]),
        ("PROPPATCH", &[]),
        ("LOCK", &[("timeout", "Second-600")]),
        ("MKCALENDAR", &[]),
        ("PUT", &[("accept", "application/xml")]),
        ("PUT", &[("if", "(<opaquelocktoken:1>)"), ("accept", "*/*")]),
        ("PUT", &[("user-agent", "davfs2/1.6.1 neon/0.32.5")]),
    ] {
        let response = send(service.clone(), request(method, headers)).await;
        assert_eq!(response.status(), 507);
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
        assert!(response.extensions().get::<Refusal>().is_some());
        let said = read(response).await;
        assert_eq!(said.condition.as_deref(), Some("quota-not-exceeded"));
        assert_eq!(said.reason, "quota_exceeded");
        assert_eq!(said.required, Some(1_001));
    }
    assert_eq!(quota.usage(USER).used, Amount::ZERO);

    // Other clients are answered as before.
    for (headers, content_type) in [
        (&[][..], "application/json"),
        (
            &[("accept", "text/html,application/xml;q=0.9,*/*;q=0.8")],
            "text/html; charset=utf-8",
        ),
    ] {
        let response = send(service.clone(), request("PUT", headers)).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], content_type);
    }
}

#[tokio::test]
async fn a_full_disk_is_no_quota() {
    let service = StorageGuardLayer::new(Disk::new(0).volume())
        .dialect(Dav::default())
        .layer(service_fn(read_all));
    let mut upload = request("PUT", &[("if", "(<opaquelocktoken:1>)")]);
    *upload.body_mut() = full(1);
    let response = send(service, upload).await;
    assert_eq!(response.status(), 507);
    let said = read(response).await;
    assert_eq!(said.condition.as_deref(), Some("sufficient-disk-space"));
    assert_eq!((&*said.reason, said.required), ("disk_full", None));
}

#[tokio::test]
async fn settings_for_a_cause_apply_to_webdav_too() {
    let (_, layer) = dav(1_000);
    let layer = layer
        .price_by(|_, _| Demand::known(1_001))
        .status(Cause::QuotaExceeded, http::StatusCode::PAYLOAD_TOO_LARGE)
        .unwrap()
        .retry_after(Cause::QuotaExceeded, Duration::from_secs(60));
    let response = send(layer.layer(service_fn(read_all)), request("MKCOL", &[])).await;
    assert_eq!(response.status(), 413);
    assert_eq!(response.headers()[header::RETRY_AFTER], "60");
    let said = read(response).await;
    assert_eq!(said.condition.as_deref(), Some("quota-not-exceeded"));
}

#[tokio::test]
async fn other_refusals_have_no_condition() {
    let (_, layer) = dav(1_000);
    let service = layer.layer(service_fn(read_all));
    let response = send(service, request("MKCOL", &[("content-length", "ten")])).await;
    assert_eq!(response.status(), 400);
    let said = read(response).await;
    assert_eq!(
        (said.condition, &*said.reason),
        (None, "invalid_content_length")
    );

    let away = quota_future(|_| ready(Err::<Quota, _>("away")));
    let service = StorageGuardLayer::quota_only(away)
        .scope_by(|_| USER)
        .dialect(Dav::default())
        .layer(service_fn(read_all));
    let response = send(service, request("MKCOL", &[])).await;
    assert_eq!(response.status(), 503);
    let said = read(response).await;
    assert_eq!((said.condition, &*said.reason), (None, "capacity_unknown"));
}

#[tokio::test]
async fn an_inner_fault_is_answered_with_the_same_error() {
    for (cause, condition) in [
        (Cause::DiskFull, "sufficient-disk-space"),
        (Cause::DatabaseFull, "sufficient-disk-space"),
        (Cause::CollectionFull, "quota-not-exceeded"),
        (Cause::QuotaExceeded, "quota-not-exceeded"),
    ] {
        let (_, layer) = dav(1_000);
        let service = layer.layer(service_fn(move |_: Request<Incoming>| {
            let mut response = answer(500);
            let fault = Fault::new(cause, Resource::Objects);
            response.extensions_mut().insert(fault);
            ready(Ok::<_, Infallible>(response))
        }));
        // Not guarded, but its fault is answered all the same.
        for method in ["MKCOL", "DELETE", "HEAD"] {
            let request = request(method, &[("depth", "infinity")]);
            let response = send(service.clone(), request).await;
            assert_eq!(response.status(), 507);
            if method == "HEAD" {
                assert_eq!(response.headers()[header::CONTENT_TYPE], XML);
                let content = response.into_body().collect().await.unwrap();
                assert!(content.to_bytes().is_empty());
                continue;
            }
            let said = read(response).await;
            assert_eq!(said.condition.as_deref(), Some(condition));
            assert_eq!(said.reason, cause.reason());
        }
    }
}

const MULTI_STATUS: &str = concat!(
    r#"<?xml version="1.0" encoding="utf-8"?>"#,
    r#"<D:multistatus xmlns:D="DAV:">"#,
    "<D:response><D:href>/b/1</D:href><D:status>HTTP/1.1 507 Insufficient Storage</D:status></D:response>",
    "</D:multistatus>",
);

fn multi_status() -> Reply {
    Response::builder()
        .status(207)
        .header(header::CONTENT_TYPE, XML)
        .header(header::ETAG, "\"1\"")
        .body(Full::from(MULTI_STATUS))
        .unwrap()
}

#[tokio::test]
async fn a_207_is_never_rewritten() {
    for knows_dav in [true, false] {
        for how in ["fault", "source", "status", "none"] {
            let (_, quota, layer) = layer(1_000);
            let layer = if knows_dav {
                layer.dialect(Dav::default())
            } else {
                layer
            };
            let service = layer.layer(service_fn(move |request: Request<Incoming>| async move {
                request.into_body().collect().await.unwrap();
                let mut response = multi_status();
                let full = || io::Error::from(io::ErrorKind::StorageFull);
                let extensions = response.extensions_mut();
                match how {
                    "fault" => {
                        extensions.insert(Fault::new(Cause::DiskFull, Resource::Bytes));
                    }
                    "source" => {
                        extensions.insert(Source::new(full()));
                    }
                    "status" => {
                        extensions.insert(tonic::Status::from_error(Box::new(full())));
                    }
                    _ => {}
                }
                Ok::<_, Infallible>(response)
            }));
            for method in ["COPY", "PROPPATCH", "DELETE", "POST"] {
                let mut request = request(method, &[("depth", "infinity")]);
                *request.body_mut() = full(10);
                let response = send(service.clone(), request).await;
                assert_eq!(response.status(), 207, "{how}");
                assert_eq!(response.headers(), multi_status().headers());
                assert!(response.extensions().get::<Refusal>().is_none());
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, MULTI_STATUS);
            }
            // It is a success like any other 2xx: the handler knows what was stored of it. COPY and POST each create
            // an object.
            assert_eq!(quota.usage(USER).used, Amount::new(30, 2), "{how}");
            assert_eq!(quota.usage(USER).held, Amount::ZERO);
        }
    }
}

#[tokio::test]
async fn a_cut_upload_is_refused_though_its_handler_says_207() {
    let (quota, layer) = dav(100);
    let service = layer.layer(service_fn(|request: Request<Incoming>| async move {
        assert!(request.into_body().collect().await.is_err());
        Ok::<_, Infallible>(multi_status())
    }));
    let mut upload = request("PUT", &[("if", "(<opaquelocktoken:1>)")]);
    *upload.body_mut() = chunked(11, 10);
    let response = send(service, upload).await;
    assert_eq!(response.status(), 507);
    assert!(!response.headers().contains_key(header::ETAG));
    let said = read(response).await;
    assert_eq!(said.reason, "quota_exceeded");
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

#[tokio::test]
async fn the_answer_of_an_inner_guard_is_kept() {
    let volume = Disk::new(1 << 30).volume();
    let (_, inner) = dav(0);
    let service = StorageGuardLayer::new(volume).layer(
        inner
            .price_by(|_, _| Demand::known(1))
            .layer(service_fn(|_| ready(Ok::<_, Infallible>(answer(201))))),
    );
    let response = service.oneshot(request("MKCOL", &[])).await.unwrap();
    assert_eq!(response.status(), 507);
    assert_eq!(response.headers()[header::CONTENT_TYPE], XML);
}
