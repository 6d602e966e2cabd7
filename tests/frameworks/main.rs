//! Services of others under the guard. Those of warp and of salvo take an upload each, and two are refused.

mod dav_server;
mod salvo;
mod warp;

use std::{convert::Infallible, fmt::Debug};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use test_support::service::USER;
use tower_storage_guard::{Amount, quota::MemoryQuota};

const LIMIT: u64 = 1_000;

/// Both frameworks want bodies to be `Sync`.
type Content = BoxBody<Bytes, Infallible>;

/// Uploads that fit, that are refused by their length, and that are cut; with the status of each.
fn uploads() -> [(Request<Content>, u16); 3] {
    let full = |bytes| Full::from(vec![7; bytes]).boxed();
    let frames = (0..5).map(|_| Ok(Frame::data(Bytes::from_static(&[7; 100]))));
    let chunked = StreamBody::new(futures_util::stream::iter(frames)).boxed();
    [(full(600), 201), (full(401), 507), (chunked, 507)]
        .map(|(content, status)| (Request::put("/files/a").body(content).unwrap(), status))
}

/// Distinguishes the guard's refusal from any other.
async fn assert_status<B>(response: Response<B>, status: u16)
where
    B: Body<Error: Debug>,
{
    let (head, body) = response.into_parts();
    assert_eq!(head.status, status);
    let content = body.collect().await.unwrap().to_bytes();
    let content = String::from_utf8(content.into()).unwrap();
    let is_refused = content.contains(r#""reason":"quota_exceeded""#);
    assert_eq!(is_refused, status == 507, "{content}");
}

fn assert_charged(quota: &MemoryQuota) {
    assert_eq!(quota.usage(USER).used, Amount::new(600, 1));
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}
