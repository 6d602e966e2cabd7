//! A refused body is drained by a task, so it has to be `Send + 'static`.

use std::convert::Infallible;

use http::{Request, Response};
use http_body::Body;
use tower::{Layer, Service};
use tower_storage_guard::{MeteredBody, StorageGuardLayer, Volume};

fn serve<S, B>(inner: S, volume: Volume, request: Request<B>)
where
    S: Service<Request<MeteredBody<B>>, Response = Response<String>, Error = Infallible> + Clone,
    B: Body,
{
    let mut service = StorageGuardLayer::new(volume).layer(inner);
    let _answer = service.call(request);
}

fn main() {}
