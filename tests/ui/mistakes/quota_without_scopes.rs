//! A quota that no request is charged to.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, ServiceBuilder, service_fn};
use tower_storage_guard::{
    MeteredBody, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota},
};

async fn store(_: Request<MeteredBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::default())
}

fn guards<S>(_: impl Layer<S>, _: S) {}

fn main() {
    let volume = Volume::open("/srv/uploads").unwrap();
    let layer = StorageGuardLayer::new(volume).quota(MemoryQuota::new(Limits::bytes(1_000)));
    guards(layer.clone(), service_fn(store));
    let _service = ServiceBuilder::new().layer(layer).service(service_fn(store));
}
