//! User-defined dialects: how they recognise requests, and what they see of them.

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body_util::BodyExt;
use test_support::service::{chunked, full, layer, read_all};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    StorageGuardLayer,
    quota::MemoryQuota,
    refusal::{Asked, Dialect, Refusal},
    setup::Scoped,
};

/// Answers requests below a path with their URI.
struct Below(&'static str);

impl Dialect for Below {
    fn hears(&self, head: &Parts) -> bool {
        head.uri.path().starts_with(self.0)
    }

    fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes> {
        Response::builder()
            .status(refusal.status())
            .header("content-type", self.0)
            .body(asked.uri().unwrap().to_string().into())
            .unwrap()
    }
}

/// A dialect that an outer layer selects.
#[derive(Clone)]
struct Marked;

impl Dialect for Marked {
    fn hears(&self, head: &Parts) -> bool {
        head.extensions.get::<Self>().is_some()
    }

    fn render(&self, _: &Refusal, _: &Asked) -> Response<Bytes> {
        Response::new("marked".into())
    }
}

/// The content type and the content of the refusal of an upload.
async fn refuse(
    layer: &StorageGuardLayer<MemoryQuota, Scoped>,
    uri: &str,
    mark: Option<Marked>,
) -> (String, String) {
    let mut request = Request::put(uri).body(full(11)).unwrap();
    if let Some(mark) = mark {
        request.extensions_mut().insert(mark);
    }
    let service = layer.layer(service_fn(read_all));
    let (head, body) = service.oneshot(request).await.unwrap().into_parts();
    let content_type = head.headers.get("content-type");
    let content_type = content_type.map_or("", |value| value.to_str().unwrap());
    let content = body.collect().await.unwrap().to_bytes();
    let content = String::from_utf8(content.into()).unwrap();
    (content_type.to_owned(), content)
}

#[tokio::test]
async fn a_dialect_selected_by_the_path_renders_the_uri() {
    let (_, _, layer) = layer(10);
    let layer = layer.dialect(Below("/s3/")).dialect(Below("/v2/"));
    for (uri, dialect) in [
        ("/s3/photos/1.jpg?partNumber=2&uploadId=a%2Fb", "/s3/"),
        ("https://example.com/v2/app/blobs/uploads/1", "/v2/"),
    ] {
        let heard = refuse(&layer, uri, None).await;
        assert_eq!(heard, (dialect.to_owned(), uri.to_owned()));
    }
    let (content_type, json) = refuse(&layer, "/s3", None).await;
    assert_eq!(content_type, "application/json");
    assert!(json.contains("quota_exceeded"), "{json}");
}

#[tokio::test]
async fn a_dialect_sees_the_extensions_of_outer_layers() {
    let (_, _, layer) = layer(10);
    let layer = layer.dialect(Marked).dialect(Below("/"));
    let marked = refuse(&layer, "/a", Some(Marked)).await;
    assert_eq!(marked.1, "marked");
    let unmarked = refuse(&layer, "/a", None).await;
    assert_eq!(unmarked.1, "/a");
}

#[tokio::test]
async fn a_renderer_sees_the_uri() {
    let (_, _, layer) = layer(10);
    let layer = layer.render_with(|_, asked| {
        let uri = asked.uri().unwrap();
        (uri.path() != "/left").then(|| Response::new(uri.to_string().into()))
    });
    assert_eq!(refuse(&layer, "/a/b?c", None).await.1, "/a/b?c");
    let (content_type, _) = refuse(&layer, "/left", None).await;
    assert_eq!(content_type, "application/json");
}

#[tokio::test]
async fn a_cut_is_rendered_with_the_uri() {
    let (_, _, layer) = layer(10);
    let layer = layer.dialect(Below("/s3/"));
    let service = layer.layer(service_fn(read_all));
    let request = Request::put("/s3/a").body(chunked(3, 100));
    let answer = service.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), 507);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "/s3/a");
}
