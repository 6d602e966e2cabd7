//! gRPC calls whose every frame the test controls, and the requests, trailers and servers that such tests share.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{BufMut, Bytes};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, BodyStream, StreamBody, combinators::UnsyncBoxBody};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    MeteredBody, Refused, ResponseBody, StorageGuardLayer, quota::QuotaSource, setup::Charges,
};

use crate::grpc::LIMIT;

pub(crate) const BOUND: Duration = Duration::from_secs(10);

pub(crate) type Frames<E> = mpsc::UnboundedSender<Result<Frame<Bytes>, E>>;
pub(crate) type Content = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Replies = UnsyncBoxBody<Bytes, BoxError>;

/// A call whose every frame the test controls, in both directions.
pub(crate) struct ByHand {
    pub(crate) send: Frames<io::Error>,
    /// The handler's side.
    pub(crate) body: MeteredBody<Content>,
    pub(crate) reply: Frames<BoxError>,
    /// The client's side.
    pub(crate) answer: Response<ResponseBody<Replies>>,
}

impl ByHand {
    pub(crate) async fn call<Q, P>(
        layer: &StorageGuardLayer<Q, P>,
        content_type: &'static str,
    ) -> Self
    where
        Q: QuotaSource + Clone,
        P: Charges<Q>,
    {
        let (send, content) = by_hand();
        let (reply, replies) = by_hand();
        let (give, taken) = oneshot::channel();
        let both = Mutex::new(Some((give, replies)));
        let both = Arc::new(both);
        let service = service_fn(move |request: Request<MeteredBody<Content>>| {
            let (give, replies) = both.lock().unwrap().take().unwrap();
            give.send(request.into_body()).ok().unwrap();
            let response = Response::builder().header(CONTENT_TYPE, content_type);
            let response = response.body(replies).unwrap();
            async { Ok::<_, Infallible>(response) }
        });
        let request = post("/test.v1.Store/Any", content_type, content);
        let answer = layer.layer(service).oneshot(request).await.unwrap();
        Self {
            send,
            body: taken.await.unwrap(),
            reply,
            answer,
        }
    }

    pub(crate) fn reply(&self, content: impl Into<Bytes>) {
        self.reply.send(Ok(Frame::data(content.into()))).unwrap();
    }

    /// The next frame that the client receives.
    pub(crate) async fn frame(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        let frame = self.answer.body_mut().frame();
        timeout(BOUND, frame).await.expect("it comes")
    }

    pub(crate) async fn data(&mut self) -> Bytes {
        self.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    /// Sends more than there is room for.
    pub(crate) async fn cut(&mut self) {
        let too_much = Bytes::from(vec![7; LIMIT as usize + 1]);
        self.send.send(Ok(Frame::data(too_much))).unwrap();
        let error = self.body.frame().await.unwrap().unwrap_err();
        assert!(error.is::<Refused>());
    }
}

/// Content with as many frames as the test sends.
fn by_hand<E: 'static + Send>() -> (Frames<E>, UnsyncBoxBody<Bytes, E>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let frames = UnboundedReceiverStream::new(receiver);
    (sender, StreamBody::new(frames).boxed_unsync())
}

pub(crate) fn post(path: &str, content_type: &str, content: Content) -> Request<Content> {
    Request::post(path)
        .header(CONTENT_TYPE, content_type)
        .body(content)
        .unwrap()
}

pub(crate) fn trailers(status: &'static str) -> HeaderMap {
    let status = HeaderValue::from_static(status);
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status)])
}

pub(crate) fn web_frame(flags: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![flags];
    frame.put_u32(content.len() as u32);
    frame.extend(content);
    frame
}

/// Reads everything, and answers with a message for each frame.
pub(crate) async fn echo<B>(request: Request<B>) -> Result<Response<Replies>, Infallible>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let replies = BodyStream::new(request.into_body());
    let ok = stream::iter([Ok(Frame::trailers(trailers("0")))]);
    let content = StreamBody::new(replies.chain(ok)).boxed_unsync();
    let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
    Ok(response.body(content).unwrap())
}

/// Serves one connection over each version of HTTP.
pub(crate) async fn serve<S, R>(service: S) -> [std::net::SocketAddr; 2]
where
    S: tower::Service<Request<hyper::body::Incoming>, Response = Response<R>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut addrs = Vec::new();
    for is_two in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addrs.push(listener.local_addr().unwrap());
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let io = TokioIo::new(socket);
            if is_two {
                let server = http2::Builder::new(TokioExecutor::new());
                server.serve_connection(io, service).await.ok();
            } else {
                http1::Builder::new()
                    .serve_connection(io, service)
                    .await
                    .ok();
            }
        });
    }
    addrs.try_into().unwrap()
}
