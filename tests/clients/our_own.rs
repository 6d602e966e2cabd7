//! Rust clients: hyper's own and reqwest.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use test_support::server::start;

const MIB: usize = 1 << 20;

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    let bounded = tokio::time::timeout(Duration::from_secs(20), future).await;
    bounded.expect("in time")
}

fn zeros(size: usize) -> BoxBody<Bytes, Infallible> {
    let part = Bytes::from(vec![0; 65_536]);
    let parts = (0..size / part.len()).map(move |_| Ok(Frame::data(part.clone())));
    BoxBody::new(StreamBody::new(stream::iter(parts)))
}

/// The statuses that hyper's own client and reqwest see, by name.
pub(crate) async fn seen_by_our_own(
    url: &str,
    size: usize,
    is_chunked: bool,
) -> Vec<(&'static str, u16)> {
    let mut seen = Vec::new();
    for (name, http2) in [("hyper", false), ("hyper, HTTP/2", true)] {
        let client = Client::builder(TokioExecutor::new())
            .http2_only(http2)
            .build_http();
        let mut request = Request::put(format!("{url}/a"));
        if !is_chunked {
            request = request.header("content-length", size);
        }
        let request = request.body(zeros(size)).unwrap();
        let answer = in_time(client.request(request)).await;
        let status = answer.map(|answer| (answer.status().as_u16(), answer.into_body()));
        seen.push((name, whole(status).await));
    }
    for (name, http2) in [("reqwest", false), ("reqwest, HTTP/2", true)] {
        let mut builder = reqwest::Client::builder().no_proxy();
        if http2 {
            builder = builder.http2_prior_knowledge();
        }
        let mut request = builder.build().unwrap().put(format!("{url}/a"));
        if !is_chunked {
            request = request.header("content-length", size);
        }
        let body = reqwest::Body::wrap(zeros(size));
        let answer = in_time(request.body(body).send()).await;
        let status = answer.map(|answer| {
            let answer: http::Response<reqwest::Body> = answer.into();
            (answer.status().as_u16(), answer.into_body())
        });
        seen.push((name, whole(status).await));
    }
    seen
}

/// The status of an answer that arrived with all of its body. 0 if it did not.
async fn whole<B, E>(answer: Result<(u16, B), E>) -> u16
where
    B: http_body::Body<Data = Bytes>,
{
    let Ok((status, body)) = answer else {
        return 0;
    };
    match in_time(body.collect()).await {
        Ok(body) => {
            let body = body.to_bytes();
            if body.starts_with(b"{\"error\"") {
                status
            } else {
                0
            }
        }
        Err(_) => 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_and_reqwest_see_it_every_time() {
    // At admission, and in mid-stream.
    for (free, is_chunked) in [(0, false), (0, true), (MIB as u64 / 2, true)] {
        let server = start(free).await;
        for size in [MIB, 64 * MIB] {
            for _ in 0..10 {
                for (name, status) in seen_by_our_own(&server.url(), size, is_chunked).await {
                    assert_eq!(status, 507, "{name}, {size}, chunked: {is_chunked}");
                }
            }
        }
    }
}
