//! Request bodies that are cut after the handler has answered: how the answer ends, and that nothing is charged.

use std::{
    convert::Infallible,
    future::ready,
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use test_support::{
    disk::Disk,
    service::{Incoming, USER, answer, chunked, layer, put},
};
use tokio::sync::mpsc;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_storage_guard::{Amount, Refused};

use crate::by_hand::{in_time, send};

#[tokio::test]
async fn a_cut_that_the_answer_swallows_ends_it_in_error() {
    let (_, quota, layer) = layer(100);
    let service = layer.layer(service_fn(|request: Request<Incoming>| {
        // It echoes what it reads, and treats an error as the end.
        let echo = stream::unfold(request.into_body(), async |mut body| {
            let frame = body.frame().await?.ok()?;
            Some((Ok::<_, BoxError>(frame), body))
        });
        ready(Ok::<_, Infallible>(Response::new(
            StreamBody::new(echo).boxed_unsync(),
        )))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    assert_eq!(response.status(), 200);
    let error = in_time(response.into_body().collect()).await.unwrap_err();
    assert!(error.is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

#[tokio::test]
async fn an_idle_answer_is_woken_by_a_cut() {
    let (_, quota, layer) = layer(100);
    let (give, mut taken) = mpsc::unbounded_channel();
    let (polled, mut polls) = mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        give.send(request.into_body()).unwrap();
        let polled = polled.clone();
        let idle = stream::poll_fn(move |_| {
            polled.send(()).unwrap();
            Poll::<Option<Result<Frame<Bytes>, BoxError>>>::Pending
        });
        ready(Ok::<_, Infallible>(Response::new(
            StreamBody::new(idle).boxed_unsync(),
        )))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    let answer = tokio::spawn(response.into_body().collect());
    in_time(polls.recv()).await.unwrap();
    let body = taken.recv().await.unwrap();
    assert!(body.collect().await.unwrap_err().is::<Refused>());
    let error = in_time(answer).await.unwrap().unwrap_err();
    assert!(error.is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
}

/// The cut occurs within the answer's own poll, which then goes idle.
#[tokio::test]
async fn an_answer_that_goes_idle_over_a_cut_ends_in_error() {
    let (_, _, layer) = layer(100);
    let service = layer.layer(service_fn(|request: Request<Incoming>| {
        let mut body = request.into_body();
        let idle = stream::poll_fn(move |cx| {
            while let Poll::Ready(Some(Ok(_))) = http_body::Body::poll_frame(pin!(&mut body), cx) {}
            Poll::<Option<Result<Frame<Bytes>, BoxError>>>::Pending
        });
        ready(Ok::<_, Infallible>(Response::new(
            StreamBody::new(idle).boxed_unsync(),
        )))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    let error = in_time(response.into_body().collect()).await.unwrap_err();
    assert!(error.is::<Refused>());
}

#[tokio::test]
async fn a_cut_after_a_complete_answer_is_not_charged() {
    let (volume, quota, layer) = layer(100);
    let (give, mut taken) = mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        give.send(request.into_body()).unwrap();
        ready(Ok::<_, Infallible>(answer(202)))
    }));
    let response = service.oneshot(put(chunked(3, 50))).await.unwrap();
    response.into_body().collect().await.unwrap();
    let body = taken.recv().await.unwrap();
    assert!(body.collect().await.unwrap_err().is::<Refused>());
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_cut_while_the_answer_is_judged_is_refused() {
    let (_, quota, layer) = layer(100);
    let kept = Arc::new(Mutex::new(None));
    let judged = kept.clone();
    // As another thread might do at this moment.
    let layer = layer.success_when(move |_| {
        let body: Incoming = judged.lock().unwrap().take().unwrap();
        let read = body.collect().now_or_never().unwrap();
        assert!(read.unwrap_err().is::<Refused>());
        true
    });
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        *kept.lock().unwrap() = Some(request.into_body());
        ready(Ok::<_, Infallible>(answer(201)))
    }));
    assert_eq!(send(service, put(chunked(3, 50))).await, 507);
    assert_eq!(quota.usage(USER).used, Amount::ZERO);
    assert_eq!(quota.usage(USER).held, Amount::ZERO);
}
