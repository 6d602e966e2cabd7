//! A guarded service without a network, and its requests.

use std::{convert::Infallible, io};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tower_storage_guard::{
    MeteredBody, StorageGuardLayer, Volume,
    quota::{Limits, MemoryQuota},
    setup::Scoped,
};

use crate::disk::Disk;

pub type Content = UnsyncBoxBody<Bytes, io::Error>;
pub type Incoming = MeteredBody<Content>;
pub type Reply = Response<Full<Bytes>>;

pub const USER: &str = "user:42";

pub fn full(bytes: usize) -> Content {
    let content = Full::from(vec![7; bytes]);
    content.map_err(|never| match never {}).boxed_unsync()
}

/// A body of unknown length.
pub fn chunked(chunks: usize, bytes: usize) -> Content {
    let chunks = stream::iter(0..chunks);
    let frames = chunks.map(move |_| Ok(Frame::data(Bytes::from(vec![7; bytes]))));
    StreamBody::new(frames).boxed_unsync()
}

pub fn put(content: Content) -> Request<Content> {
    Request::put("/files/a").body(content).unwrap()
}

pub fn answer(status: u16) -> Reply {
    let mut response = Response::new(Full::from("inner"));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// Reads the body like a handler that answers 500 if that fails.
pub async fn read_all(request: Request<Incoming>) -> Result<Reply, Infallible> {
    let read = request.into_body().collect().await;
    Ok(answer(if read.is_ok() { 201 } else { 500 }))
}

/// A guard with a volume and a quota of `limit` bytes, charged to one user.
pub fn layer(limit: u64) -> (Volume, MemoryQuota, StorageGuardLayer<MemoryQuota, Scoped>) {
    let volume = Disk::new(1 << 30).volume();
    let quota = MemoryQuota::new(Limits::bytes(limit));
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota.clone())
        .scope_by(|_| USER);
    (volume, quota, layer)
}
