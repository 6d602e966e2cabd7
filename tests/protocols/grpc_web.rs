//! gRPC-Web and Connect, and all of them on one port.

use std::convert::Infallible;

use axum::{Router, routing::put};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes};
use futures_util::stream;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use prost::Message as _;
use serde_json::Value;
use test_support::eventually;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, body::Body, service::Routes};
use tonic_web::GrpcWebLayer;
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_storage_guard::{Amount, StorageGuardLayer, refusal::Refusal};

use crate::{
    calls_by_hand::{ByHand, web_frame},
    grpc::{Behaving, Caller, Guarded, LIMIT, USER, message, on_the_wire},
};

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The position of the guard, and the client's protocol.
#[derive(Clone, Copy, Debug)]
struct Setting {
    is_outside: bool,
    is_text: bool,
}

const SETTINGS: [Setting; 4] = {
    const fn setting(is_outside: bool, is_text: bool) -> Setting {
        Setting {
            is_outside,
            is_text,
        }
    }
    [
        setting(false, false),
        setting(false, true),
        setting(true, false),
        setting(true, true),
    ]
};

impl Setting {
    fn content_type(self) -> &'static str {
        if self.is_text {
            "application/grpc-web-text+proto"
        } else {
            "application/grpc-web+proto"
        }
    }

    fn request(self, method: &str) -> http::request::Builder {
        Request::post(format!("/test.v1.Store/{method}"))
            .header(CONTENT_TYPE, self.content_type())
            .header("accept", self.content_type())
    }

    /// This many messages, each in a frame of its own.
    fn body(self, messages: usize) -> Body {
        let frames = (0..messages).map(move |_| {
            let content = message().encode_to_vec();
            let mut frame = vec![0];
            frame.put_u32(content.len() as u32);
            frame.extend(content);
            if self.is_text {
                frame = STANDARD.encode(frame).into();
            }
            Ok::<_, Infallible>(Frame::data(Bytes::from(frame)))
        });
        Body::new(StreamBody::new(stream::iter(frames)))
    }

    /// The size of such a request as the guard counts it, in bytes.
    fn counted(self, messages: u64) -> u64 {
        if self.is_outside && self.is_text {
            messages * on_the_wire(1).div_ceil(3) * 4
        } else {
            on_the_wire(messages)
        }
    }

    async fn answer(self, guarded: &Guarded, request: Request<Body>) -> Answer {
        let routes = Routes::new(Behaving::<true>).prepare();
        let web = GrpcWebLayer::new();
        if self.is_outside {
            call(guarded.layer.layer(web.layer(routes)), request).await
        } else {
            call(web.layer(guarded.layer.layer(routes)), request).await
        }
    }

    /// The messages of an answer, and its trailers.
    async fn read(self, answer: Answer) -> (usize, String) {
        let (mut messages, mut rest) = (0, Vec::new());
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            if self.is_text {
                rest.extend(STANDARD.decode(data).unwrap());
            } else {
                rest.extend(data);
            }
        }
        let mut rest = &rest[..];
        while let [flags, a, b, c, d, behind @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let (content, behind) = behind.split_at(length);
            if flags & 0x80 != 0 {
                assert!(behind.is_empty(), "the trailers are the last frame");
                return (messages, String::from_utf8(content.to_vec()).unwrap());
            }
            messages += 1;
            rest = behind;
        }
        panic!("no trailers behind {messages} messages");
    }
}

async fn call<S, B>(service: S, request: Request<Body>) -> Answer
where
    S: Service<Request<Body>, Response = Response<B>, Error: std::fmt::Debug>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let answer = service.oneshot(request).await.unwrap();
    answer.map(|body| body.map_err(Into::into).boxed_unsync())
}

#[tokio::test]
async fn a_success_is_charged_by_its_last_frame() {
    for setting in SETTINGS {
        let guarded = Guarded::new();
        let request = setting.request("Echo").body(setting.body(3)).unwrap();
        let answer = setting.answer(&guarded, request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(guarded.quota.usage(USER).used, Amount::ZERO, "{setting:?}");
        let (messages, trailers) = setting.read(answer).await;
        assert_eq!(messages, 3, "{setting:?}");
        assert!(
            trailers.contains("grpc-status:0"),
            "{setting:?}: {trailers}"
        );
        guarded.all_is_settled(setting.counted(3)).await;
    }
}

#[tokio::test]
async fn a_failure_in_the_last_frame_is_not_charged() {
    for setting in SETTINGS {
        let guarded = Guarded::new();
        let request = setting.request("OneThenAborted");
        let request = request.body(setting.body(1)).unwrap();
        let answer = setting.answer(&guarded, request).await;
        let (messages, trailers) = setting.read(answer).await;
        assert_eq!(messages, 1, "{setting:?}");
        assert!(
            trailers.contains("grpc-status:10"),
            "{setting:?}: {trailers}"
        );
        guarded.all_is_settled(0).await;
    }
}

#[tokio::test]
async fn a_cut_after_the_head_is_the_last_frame() {
    for setting in SETTINGS {
        let guarded = Guarded::new();
        let request = setting.request("Echo").body(setting.body(20)).unwrap();
        let answer = setting.answer(&guarded, request).await;
        assert_eq!(answer.status(), 200);
        let (messages, trailers) = setting.read(answer).await;
        assert!((1..10).contains(&messages), "{setting:?}: {messages}");
        assert!(
            trailers.contains("grpc-status:8\r\n"),
            "{setting:?}: {trailers}"
        );
        assert!(trailers.contains("grpc-message:Storage quota exceeded\r\n"));
        assert!(trailers.contains("grpc-status-details-bin:"));
        guarded.all_is_settled(0).await;
    }
}

/// If a cut put frames into the middle of a message, they would be read as the rest of that message.
#[tokio::test]
async fn a_cut_within_a_message_of_grpc_web_is_no_part_of_it() {
    for is_text in [false, true] {
        let guarded = Guarded::new();
        let content_type = if is_text {
            "application/grpc-web-text"
        } else {
            "application/grpc-web"
        };
        let mut call = ByHand::call(&guarded.layer, content_type).await;
        let mut half = web_frame(0, &[7; 1_000])[..600].to_vec();
        if is_text {
            half = STANDARD.encode(half).into();
        }
        call.reply(half.clone());
        assert_eq!(call.data().await, half);
        call.cut().await;
        let end = call.frame().await.unwrap();
        assert!(
            end.is_err(),
            "{content_type}: {} bytes into the message",
            end.unwrap().into_data().unwrap().len()
        );
        assert!(call.frame().await.is_none());
        guarded.all_is_settled(0).await;
    }
}

/// Four characters are three bytes, or two, or one. No other characters may come between them.
#[tokio::test]
async fn a_cut_within_four_characters_of_base64_is_an_error() {
    let guarded = Guarded::new();
    let mut call = ByHand::call(&guarded.layer, "application/grpc-web-text").await;
    let text = STANDARD.encode(web_frame(0, b"1234"));
    call.reply(text[..text.len() - 1].to_owned());
    call.data().await;
    call.cut().await;
    assert!(call.frame().await.unwrap().is_err());
    guarded.all_is_settled(0).await;
}

#[tokio::test]
async fn all_of_grpc_web_is_passed_on_until_the_status() {
    let mut huge = format!("grpc-status:0\r\nlong:{}\r\n", "x".repeat(100 << 10));
    huge.push_str("last:1\r\n");
    let mut text = STANDARD
        .encode(web_frame(0x80, b"grpc-status:0\r\n"))
        .into_bytes();
    let padding = text.split_off(text.len() - 1);
    assert_eq!(padding, b"=");
    let mut two = STANDARD
        .encode(web_frame(0x80, b"grpc-status: 0\r\nx:\r\n"))
        .into_bytes();
    assert!(two.ends_with(b"=="));
    let second = two.split_off(two.len() - 1);
    for (content_type, pieces) in [
        (
            "application/grpc-web",
            web_frame(0x80, huge.as_bytes())
                .chunks(8 << 10)
                .map(<[u8]>::to_vec)
                .collect(),
        ),
        ("application/grpc-web-text", vec![text, padding]),
        ("application/grpc-web-text", vec![two, second]),
    ] {
        let guarded = Guarded::new();
        let ByHand {
            body,
            reply,
            answer,
            send,
        } = ByHand::call(&guarded.layer, content_type).await;
        drop((send, body));
        let whole = pieces.concat();
        for piece in pieces {
            reply.send(Ok(Frame::data(piece.into()))).unwrap();
        }
        drop(reply);
        let got = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            (got.len(), got == whole),
            (whole.len(), true),
            "{content_type}"
        );
        guarded.all_is_settled(0).await;
    }
}

#[tokio::test]
async fn a_refusal_at_the_door_is_in_the_head() {
    for setting in SETTINGS {
        let guarded = Guarded::new();
        let request = setting.request("Echo");
        let request = request
            .header("x-upload-length", LIMIT + 1)
            .body(setting.body(1))
            .unwrap();
        let answer = setting.answer(&guarded, request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()[CONTENT_TYPE], setting.content_type());
        assert_eq!(answer.headers()["grpc-status"], "8", "{setting:?}");
        assert!(answer.extensions().get::<Refusal>().is_some());
        guarded.all_is_settled(0).await;
    }
}

#[tokio::test]
async fn connect_is_answered_in_json_if_the_call_is_named() {
    let guarded = Guarded::new();
    let store = || axum::routing::post(async |body: Bytes| body);
    let app = Router::new()
        .route("/test.v1.Store/Small", store())
        .route("/test.v1.Reads/Small", store())
        .layer(guarded.layer.clone());
    let post = |path: &str, content: usize| {
        Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .header("connect-protocol-version", "1")
            .body(axum::body::Body::from(vec![b' '; content]))
            .unwrap()
    };
    let (fits, too_much) = (LIMIT as usize, LIMIT as usize + 1);
    let answer = app.clone().oneshot(post("/test.v1.Store/Small", too_much));
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "resource_exhausted");
    assert_eq!(body["details"][1]["type"], "google.rpc.ErrorInfo");

    for (path, content, charged) in [
        ("/test.v1.Reads/Small", too_much, 0),
        ("/test.v1.Store/Small", fits, LIMIT),
    ] {
        let answer = app.clone().oneshot(post(path, content)).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        guarded.all_is_settled(charged).await;
    }
}

/// A client chooses the content type and the headers of its request.
#[tokio::test]
async fn a_client_does_not_choose_whether_it_is_guarded() {
    let guarded = Guarded::new();
    // No calls are served here.
    let layer = StorageGuardLayer::quota_only(guarded.quota.clone()).scope_by(|_| USER);
    let app = axum::Router::new()
        .route(
            "/files",
            axum::routing::post(async |_: Bytes| StatusCode::CREATED),
        )
        .layer(layer);
    for (name, value) in [
        ("content-type", "image/png"),
        ("content-type", "application/grpc"),
        ("content-type", "application/grpc-web"),
        ("content-type", "application/connect+x"),
        ("connect-protocol-version", "1"),
    ] {
        let request = Request::post("/files")
            .header(name, value)
            .body(axum::body::Body::from(vec![7; LIMIT as usize + 1]))
            .unwrap();
        let answer = app.clone().oneshot(request).await.unwrap();
        assert_ne!(answer.status(), StatusCode::CREATED, "{name}: {value}");
    }
}

/// Room that is reserved by one is not available to the other.
#[tokio::test]
async fn axum_and_tonic_on_one_port_share_the_ledger() {
    let guarded = Guarded::with_room(80_000);
    let app = Router::new()
        .route("/files/{name}", put(async |_: Bytes| StatusCode::CREATED))
        .merge(Routes::new(Behaving::<true>).into_axum_router())
        .layer(guarded.layer.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    let caller = Caller::to(addr).await;
    let call = || {
        let mut request = tonic::Request::new(message());
        let hint = "30000".parse().unwrap();
        request.metadata_mut().insert("x-upload-length", hint);
        caller.unary("/test.v1.Store/Small", request)
    };

    // An unfinished upload over HTTP/1.
    let (sender, pieces) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let upload = Request::put(format!("http://{addr}/files/a"))
        .header("content-length", 60_000)
        .body(axum::body::Body::from_stream(ReceiverStream::new(pieces)))
        .unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    let upload = tokio::spawn(client.request(upload));
    let held = || guarded.quota.usage(USER).held.bytes;
    eventually("it is admitted", || held() == 60_000).await;
    let refused = call().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "Server storage capacity reached");

    let content = Bytes::from(vec![7; 60_000]);
    sender.send(Ok(content)).await.unwrap();
    drop(sender);
    assert_eq!(upload.await.unwrap().unwrap().status(), StatusCode::CREATED);
    // It leaves the ledger with the next reading, because this volume does not remember it.
    guarded.all_is_settled(60_000).await;
    call().await.unwrap();
    guarded.all_is_settled(60_000 + on_the_wire(1)).await;
}
