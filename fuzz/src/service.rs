//! A runtime, and calls of a guarded service.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::{runtime, task::yield_now, time::sleep};
use tower::{BoxError, Service, ServiceExt};

use crate::{Ask, Content};

pub type Reply = Response<Full<Bytes>>;

/// Runs a target. Afterwards no task may be left: nothing that a request has begun outlives what it is about.
pub fn run(target: impl Future<Output = ()>) {
    let mut builder = runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime needs no resource that runs out");
    runtime.block_on(async {
        target.await;
        let metrics = runtime.metrics();
        for _ in 0..100 {
            if metrics.num_alive_tasks() == 0 {
                return;
            }
            yield_now().await;
        }
        // Longer than anything that the guard waits for.
        sleep(Duration::from_secs(3 * 3_600)).await;
        assert_eq!(metrics.num_alive_tasks(), 0, "a task is left");
    });
}

/// Sends a request when it is time, and reads the answer to its end.
pub async fn call<S, B>(service: S, ask: Ask) -> Response<Bytes>
where
    S: Service<Request<Content>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    if !ask.wait.is_zero() {
        sleep(ask.wait).await;
    }
    let answer = service.oneshot(ask.into_request()).await;
    let (head, body) = answer.unwrap_or_else(|never| match never {}).into_parts();
    let body = body.collect().await.map_err(Into::into);
    let body = body.expect("the whole answer arrives").to_bytes();
    Response::from_parts(head, body)
}

/// Reads a body. Returns its bytes, and whether it has ended as it should.
pub async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B) -> (u64, bool) {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return (bytes, false);
        };
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    (bytes, true)
}

/// An answer without content.
pub fn reply(status: StatusCode, headers: &[(&'static str, String)]) -> Reply {
    let mut reply = Reply::default();
    *reply.status_mut() = status;
    for (name, value) in headers {
        let value = HeaderValue::try_from(value).expect("the value is a path or a number");
        reply
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    reply
}
