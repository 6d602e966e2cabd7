//! The guard behind salvo's adapters for Tower: in a service that is a handler, and as a layer around handlers.
//!
//! salvo wants bodies that are `Sync`, whose error implements `Error`. A [`BoxError`] does not: `map_err` puts it into one
//! that does.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use salvo::{
    ConnCtrl, Depot, FlowCtrl, Handler, Router, async_trait,
    conn::SocketAddr,
    http::{ReqBody, ResBody, uri::Scheme},
    hyper::service::Service as _,
    prelude::{TowerLayerCompat, TowerServiceCompat},
};
use test_support::service::layer;
use tower::{BoxError, ServiceBuilder};
use tower_storage_guard::{MeteredBody, ResponseBody};

use crate::{Content, LIMIT, assert_charged, assert_status, uploads};

/// The error of the guard's bodies, for salvo.
#[derive(Debug, thiserror::Error)]
#[error("a body failed")]
struct BodyError(#[source] BoxError);

fn with_body_error<B>(response: Response<ResponseBody<B>>) -> Response<BoxBody<Bytes, BodyError>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Sync + 'static,
{
    response.map(|body| body.map_err(BodyError).boxed())
}

/// A body as salvo has it in requests. It takes any error.
fn in_request<B>(body: B) -> ReqBody
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Sync + 'static,
{
    ReqBody::Boxed {
        inner: Box::pin(body.map_err(Into::into)),
        fuse_config: None,
    }
}

/// Sends a request into the service that salvo's server makes of a router for a connection.
async fn send(router: Router, upload: Request<Content>) -> Response<ResBody> {
    let connection = salvo::Service::new(router).hyper_handler(
        SocketAddr::Unknown,
        SocketAddr::Unknown,
        Scheme::HTTP,
        None,
        ConnCtrl::new(),
        None,
    );
    connection.call(upload.map(in_request)).await.unwrap()
}

async fn store(
    request: Request<MeteredBody<ReqBody>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = match request.into_body().collect().await {
        Ok(_) => StatusCode::CREATED,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Ok(response)
}

#[tokio::test]
async fn a_guarded_service_is_a_handler() {
    let (_volume, quota, layer) = layer(LIMIT);
    let service = ServiceBuilder::new()
        .map_response(with_body_error)
        .layer(layer)
        .service_fn(store);
    for (upload, status) in uploads() {
        let router = Router::with_path("files/{name}").put(service.clone().compat());
        assert_status(send(router, upload).await, status).await;
    }
    assert_charged(&quota);
}

/// A handler of salvo's own, that reads the body.
struct Store;

#[async_trait]
impl Handler for Store {
    async fn handle(
        &self,
        request: &mut salvo::Request,
        _: &mut Depot,
        response: &mut salvo::Response,
        _: &mut FlowCtrl,
    ) {
        response.status_code(match request.payload().await {
            Ok(_) => StatusCode::CREATED,
            Err(_) => StatusCode::BAD_REQUEST,
        });
    }
}

#[tokio::test]
async fn a_handler_is_guarded() {
    let (_volume, quota, layer) = layer(LIMIT);
    let layer = ServiceBuilder::new()
        .map_response(with_body_error)
        .layer(layer)
        .map_request(|request: Request<MeteredBody<ReqBody>>| request.map(in_request));
    for (upload, status) in uploads() {
        let router = Router::with_path("files/{name}")
            .hoop(layer.clone().compat::<ReqBody>())
            .put(Store);
        assert_status(send(router, upload).await, status).await;
    }
    assert_charged(&quota);
}
