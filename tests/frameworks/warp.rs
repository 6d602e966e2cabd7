//! A filter of warp's, made a service. It wants the body to be `Sync`, and takes an error of any type.

use bytes::Bytes;
use http::StatusCode;
use test_support::service::layer;
use tower::{Layer, ServiceExt};
use warp::Filter;

use crate::{LIMIT, assert_charged, assert_status, uploads};

#[tokio::test]
async fn a_filter_is_guarded() {
    let store = warp::put()
        .and(warp::path!("files" / String))
        .and(warp::body::bytes())
        .map(|_: String, _: Bytes| StatusCode::CREATED);
    let (_volume, quota, layer) = layer(LIMIT);
    let service = layer.layer(warp::service(store));
    for (upload, status) in uploads() {
        let response = service.clone().oneshot(upload).await.unwrap();
        assert_status(response, status).await;
    }
    assert_charged(&quota);
}
