//! What requests and answers of uploads may and may not change.

use std::{
    collections::HashMap,
    convert::Infallible,
    future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Request, StatusCode, request, response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use test_support::{
    disk::Disk,
    eventually,
    service::{Content, Incoming, Reply, USER, chunked, full, layer},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_storage_guard::{
    Amount, Reservation, ResponseBody, Scopes, StorageGuardLayer,
    quota::{Answer, Change, Limits, MemoryHold, MemoryQuota, QuotaError, QuotaHold, QuotaSource},
    setup::Scoped,
    upload::{Chunks, Outcome, Protocol, Resumable, Step, Uploads},
};

const HOUR: Duration = Duration::from_secs(3_600);

type Guarded =
    BoxCloneService<Request<Content>, http::Response<ResponseBody<Full<Bytes>>>, Infallible>;

struct Site {
    service: Guarded,
    quota: MemoryQuota,
    uploads: Uploads,
}

impl Site {
    /// A handler behind the guard, with a limit of bytes for the user.
    fn new<H, F>(limit: u64, uploads: Uploads, handler: H) -> Self
    where
        H: Fn(request::Parts, Incoming) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        let quota = MemoryQuota::new(Limits::bytes(limit));
        let layer = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
        Self::behind(layer, quota, uploads, handler)
    }

    fn behind<Q, H, F>(
        layer: StorageGuardLayer<Q, Scoped>,
        quota: MemoryQuota,
        uploads: Uploads,
        handler: H,
    ) -> Self
    where
        Q: QuotaSource,
        H: Fn(request::Parts, Incoming) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        let service =
            layer
                .uploads(&uploads)
                .layer(service_fn(move |request: Request<Incoming>| {
                    let (head, body) = request.into_parts();
                    let answer = handler(head, body);
                    async move { Ok::<_, Infallible>(answer.await) }
                }));
        Self {
            service: BoxCloneService::new(service),
            quota,
            uploads,
        }
    }

    async fn send(&self, request: request::Builder, body: Content) -> u16 {
        self.answer(request, body).await.0
    }

    async fn answer(&self, request: request::Builder, body: Content) -> (u16, HeaderMap) {
        let request = request.body(body).unwrap();
        let mut service = self.service.clone();
        let answer = service.ready().await.unwrap().call(request).await.unwrap();
        (answer.status().as_u16(), answer.headers().clone())
    }

    fn used(&self) -> Amount {
        self.quota.usage(USER).used
    }

    fn held(&self) -> u64 {
        self.quota.usage(USER).held.bytes
    }
}

fn reply(status: u16, headers: &[(&'static str, &str)]) -> Reply {
    let mut reply = Reply::new(Full::default());
    *reply.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        reply.headers_mut().append(*name, value.parse().unwrap());
    }
    reply
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> request::Builder {
    let request = Request::builder().method(method).uri(path);
    headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    })
}

const TUS: (&str, &str) = ("tus-resumable", "1.0.0");

fn tus(method: &str, path: &str, headers: &[(&str, &str)]) -> request::Builder {
    request(method, path, headers).header(TUS.0, TUS.1)
}

async fn read(body: Incoming) -> u64 {
    body.collect()
        .await
        .map_or(0, |body| body.to_bytes().len() as u64)
}

/// A tus service that keeps lengths in memory, and deletes nothing by itself.
#[derive(Clone, Default)]
struct Tus(Arc<Mutex<HashMap<String, u64>>>);

impl Tus {
    fn stored(&self) -> u64 {
        self.0.lock().unwrap().values().sum()
    }

    async fn answer(self, head: request::Parts, body: Incoming) -> Reply {
        let path = head.uri.path().to_owned();
        let offset = head.headers.get("upload-offset");
        let offset = offset.map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        match head.method.as_str() {
            "POST" => {
                let came = read(body).await;
                let mut kept = self.0.lock().unwrap();
                let place = format!("/files/{}", kept.len());
                kept.insert(place.clone(), came);
                let offset = came.to_string();
                reply(
                    201,
                    &[TUS, ("location", &place), ("upload-offset", &offset)],
                )
            }
            "PATCH" if self.0.lock().unwrap().get(&path) != Some(&offset) => {
                // As a framework does it that reads the body before the handler is called.
                read(body).await;
                reply(409, &[TUS])
            }
            "PATCH" if !head.headers.contains_key("content-type") => reply(415, &[TUS]),
            "PATCH" => {
                let offset = offset + read(body).await;
                self.0.lock().unwrap().insert(path, offset);
                reply(204, &[TUS, ("upload-offset", &offset.to_string())])
            }
            "DELETE" => {
                self.0.lock().unwrap().remove(&path);
                reply(204, &[])
            }
            _ => reply(405, &[TUS]),
        }
    }

    fn site(&self, limit: u64, uploads: Uploads) -> Site {
        let tus = self.clone();
        Site::new(limit, uploads, move |head, body| {
            tus.clone().answer(head, body)
        })
    }
}

fn part(path: &str, offset: u64) -> request::Builder {
    tus(
        "PATCH",
        path,
        &[("content-type", "application/offset+octet-stream")],
    )
    .header("upload-offset", offset)
}

/// Any client can send these headers to any handler.
#[tokio::test]
async fn a_handler_that_knows_no_uploads_keeps_none_open() {
    let offset = ("upload-offset", "0");
    let whole = ("upload-length", "1000");
    for (method, path, headers) in [
        (
            "POST",
            "/a",
            vec![TUS, ("x-http-method-override", "PATCH"), offset, whole],
        ),
        (
            "POST",
            "/a",
            vec![TUS, ("x-http-method-override", "patch"), offset, whole],
        ),
        ("PATCH", "/a", vec![TUS, offset, whole]),
        (
            "PATCH",
            "/a",
            vec![("upload-complete", "?0"), offset, whole],
        ),
        ("PUT", "/a", vec![("upload-complete", "?0"), whole]),
        ("POST", "/a", vec![TUS, whole]),
    ] {
        let site = Site::new(1_002, Uploads::default(), async |_, body| {
            read(body).await;
            reply(200, &[("location", "/a")])
        });
        let objects = u64::from(method != "PATCH");
        // Nor is more of it free.
        for (bytes, used, requests) in [(2, 2, 1), (3, 5, 2)] {
            let answer = site
                .send(request(method, path, &headers), full(bytes))
                .await;
            assert_eq!(answer, 200);
            let found = (site.used(), site.held(), site.uploads.len());
            let used = Amount::new(used, requests * objects);
            assert_eq!(found, (used, 0, 0), "{method} {headers:?}");
        }
    }
}

/// A part whose answer is that of a creation is a file of its own each time.
#[tokio::test]
async fn a_service_that_overlooks_the_method_override_is_charged_for_all_it_creates() {
    let site = Site::new(10_000, Uploads::default(), async |_, body| {
        let came = read(body).await.to_string();
        reply(
            201,
            &[TUS, ("location", "/files/1"), ("upload-offset", &came)],
        )
    });
    for created in 1..4 {
        let post = tus("POST", "/files", &[("x-http-method-override", "PATCH")]);
        let post = post
            .header("upload-offset", 0)
            .header("upload-length", 1_000);
        assert_eq!(site.send(post, full(900)).await, 201);
        assert_eq!((site.used().bytes, site.held()), (900 * created, 0));
    }
}

/// tus, section "Method overriding": the actual method is to be ignored.
#[tokio::test]
async fn a_method_override_is_guarded_whatever_it_overrides() {
    let site = Site::new(100, Uploads::default(), async |_, body| {
        read(body).await;
        reply(204, &[TUS, ("upload-offset", "90")])
    });
    for (method, status) in [("GET", 204), ("HEAD", 507), ("OPTIONS", 507)] {
        let patch = tus(method, "/a", &[("x-http-method-override", "PATCH")]);
        let patch = patch.header("upload-offset", 0).header("upload-length", 90);
        assert_eq!(site.send(patch, full(90)).await, status, "{method}");
        assert_eq!((site.used().bytes, site.held()), (90, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_stored_than_the_limit_however_often_uploads_expire() {
    let (tus_service, uploads) = (Tus::default(), Uploads::default().expire_after(HOUR));
    let site = tus_service.site(1_000, uploads);
    for _ in 0..5 {
        let post = tus("POST", "/files", &[("upload-length", "1000")]);
        if site.send(post, full(900)).await == 201 {
            sleep(2 * HOUR).await;
        }
        assert_eq!(site.held(), 0);
        assert!(tus_service.stored() <= 1_000);
        assert_eq!(site.used(), Amount::new(tus_service.stored(), 1));
    }
    // The rest is charged by itself.
    assert_eq!(site.send(part("/files/0", 900), full(100)).await, 204);
    assert_eq!(site.used().bytes, tus_service.stored());
    assert_eq!(site.send(part("/files/0", 1_000), full(1)).await, 507);
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_changes_nothing() {
    for whole in [("upload-length", "100"), ("upload-defer-length", "1")] {
        let site = Tus::default().site(1_000, Uploads::default().expire_after(HOUR));
        let post = tus("POST", "/files", &[whole]);
        assert_eq!(site.send(post, full(40)).await, 201);
        let before = (site.uploads.get("/files/0").unwrap(), site.held());
        sleep(HOUR / 2).await;
        let untyped = || tus("PATCH", "/files/0", &[("upload-offset", "40")]);
        for said in ["41", "50", "0", "900"] {
            let elsewhere = |offset| part("/files/0", offset).header("upload-length", said);
            for offset in [0, 41, u64::MAX] {
                let body = if offset == 0 { full(70) } else { full(1) };
                assert_eq!(site.send(elsewhere(offset), body).await, 409);
            }
            let untyped = untyped().header("upload-length", said);
            assert_eq!(site.send(untyped, full(1)).await, 415);
            let now = site.uploads.get("/files/0").unwrap();
            assert_eq!(
                (now.whole, now.received, site.held()),
                (before.0.whole, 40, before.1),
                "{whole:?} {said}"
            );
        }
        // One part more, which would be the last by these lengths.
        if whole.0 == "upload-length" {
            assert_eq!(site.send(part("/files/0", 40), full(10)).await, 204);
            assert_eq!((site.used().bytes, site.held()), (0, 100), "{whole:?}");
            assert_eq!(site.send(part("/files/0", 50), full(50)).await, 204);
            assert_eq!((site.used(), site.held()), (Amount::new(100, 1), 0));
        } else {
            // Nor does it keep the upload for longer.
            sleep(HOUR / 2 + HOUR / 4).await;
            assert_eq!((site.used(), site.held()), (Amount::new(40, 1), 0));
        }
    }
}

/// What was reserved for it in addition goes back, in the scopes and on the volume.
#[tokio::test]
async fn growth_for_a_refused_request_goes_back() {
    let (volume, quota, layer) = layer(100_000);
    let (tus_service, layer) = (Tus::default(), layer.grants(1_000, 1_000));
    let site = Site::behind(layer, quota, Uploads::default(), move |head, body| {
        tus_service.clone().answer(head, body)
    });
    let post = tus("POST", "/files", &[("upload-defer-length", "1")]);
    assert_eq!(site.send(post, full(400)).await, 201);
    let held = site.held();
    assert!((400..=1_000).contains(&held), "{held}");
    let is_given_back = async || {
        assert_eq!(site.held(), held);
        Disk::until(&volume, |status| status.claimed <= held).await;
    };
    is_given_back().await;
    let announced = part("/files/0", 0).header("upload-length", "50000");
    assert_eq!(site.send(announced, full(1)).await, 409);
    is_given_back().await;
    let (sent, hanging) = mpsc::channel(1);
    let frames = stream::unfold(hanging, async |mut frames: mpsc::Receiver<usize>| {
        let bytes = frames.recv().await?;
        Some((Ok(Frame::data(Bytes::from(vec![7; bytes]))), frames))
    });
    let hanging = StreamBody::new(frames.boxed()).boxed_unsync();
    let ((), status) = tokio::join!(
        async {
            sent.send(20_000).await.unwrap();
            eventually("that it is held", || site.held() > 20_000).await;
            // A request in flight may count on it.
            let refused = site.send(part("/files/0", 7), full(30_000)).await;
            assert_eq!(refused, 409);
            assert!(site.held() > 20_000, "{}", site.held());
            drop(sent);
        },
        site.send(part("/files/0", 7), hanging)
    );
    assert_eq!(status, 409);
    is_given_back().await;
    assert_eq!(site.send(part("/files/0", 400), full(600)).await, 204);
    assert_eq!(site.held(), 1_000);
}

#[tokio::test]
async fn only_an_answer_that_removes_releases_an_upload() {
    for (status, is_released) in [
        (204, true),
        (200, true),
        (207, false),
        (403, false),
        (500, false),
    ] {
        let site = Site::new(
            100,
            Uploads::default(),
            move |head: request::Parts, body| async move {
                read(body).await;
                match head.method.as_str() {
                    "DELETE" => reply(status, &[]),
                    _ => reply(201, &[TUS, ("location", "/files/1")]),
                }
            },
        );
        let post = tus("POST", "/files", &[("upload-length", "100")]);
        assert_eq!(site.send(post, full(40)).await, 201);
        // Another resource.
        site.send(tus("DELETE", "/files/1?part=2", &[]), full(0))
            .await;
        assert_eq!(site.held(), 100);
        site.send(tus("DELETE", "/files/1", &[]), full(0)).await;
        let held = if is_released { 0 } else { 100 };
        assert_eq!((site.used().bytes, site.held()), (0, held), "{status}");
    }
    // One that overlooks the override of the method has removed nothing.
    let site = Site::new(100, Uploads::default(), async |_, body| {
        read(body).await;
        reply(
            201,
            &[TUS, ("location", "/files/1"), ("upload-offset", "0")],
        )
    });
    let post = tus("POST", "/files", &[("upload-length", "90")]);
    assert_eq!(site.send(post, full(40)).await, 201);
    let delete = tus("POST", "/files/1", &[("x-http-method-override", "DELETE")]);
    assert_eq!(site.send(delete, full(5)).await, 201);
    assert_eq!((site.used().bytes, site.held()), (0, 90));
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_malformed() {
    let uploads = || Uploads::default().and(Chunks::under("/chunks"));
    let site = Site::new(1_000, uploads(), async |_, body| {
        read(body).await;
        reply(201, &[TUS])
    });
    let (zero, whole) = (("upload-offset", "0"), ("upload-length", "10"));
    let partial = ("upload-complete", "?0");
    let total = ("oc-total-length", "10");
    for (method, path, headers) in [
        ("PATCH", "/a", vec![TUS, zero, ("upload-offset", "900")]),
        (
            "PATCH",
            "/a",
            vec![TUS, zero, whole, ("upload-length", "900")],
        ),
        ("PATCH", "/a", vec![TUS, ("upload-offset", "+5"), whole]),
        ("PATCH", "/a", vec![TUS, ("upload-offset", "-5")]),
        ("PATCH", "/a", vec![TUS, ("upload-offset", "0x5")]),
        ("PATCH", "/a", vec![TUS, ("upload-offset", "0, 5")]),
        ("PATCH", "/a", vec![TUS, ("upload-offset", "")]),
        ("POST", "/a", vec![TUS, whole, whole]),
        ("POST", "/a", vec![TUS, ("upload-length", "1e3")]),
        (
            "POST",
            "/a",
            vec![
                TUS,
                whole,
                ("x-http-method-override", "PATCH"),
                zero,
                ("x-http-method-override", "PUT"),
            ],
        ),
        (
            "GET",
            "/a",
            vec![
                TUS,
                zero,
                ("x-http-method-override", "PATCH"),
                ("x-http-method-override", "GET"),
            ],
        ),
        ("PUT", "/a", vec![partial, ("upload-complete", "?1")]),
        ("PUT", "/a", vec![("upload-complete", "true")]),
        ("PUT", "/a", vec![("upload-complete", "")]),
        ("PATCH", "/a", vec![partial, zero, zero]),
        (
            "PUT",
            "/chunks/1/1",
            vec![total, ("oc-total-length", "900")],
        ),
        ("PUT", "/chunks/1/1", vec![("oc-total-length", "ten")]),
        ("PUT", "/chunks/1/../2/1", vec![total]),
        ("PUT", "/chunks/1/%2e%2e/2/1", vec![total]),
        ("PUT", "/chunks/1/./1", vec![total]),
        ("PUT", "/chunks/1//1", vec![total]),
        ("PUT", "/chunks/1%2F2/1", vec![total]),
        ("PUT", "/chunks/1/%5c1", vec![total]),
        ("MOVE", "/chunks/2/../1/.file", vec![]),
    ] {
        let said = format!("{method} {path} {headers:?}");
        assert_eq!(
            site.send(request(method, path, &headers), full(3)).await,
            400,
            "{said}"
        );
        assert_eq!(
            (site.used(), site.held(), site.uploads.len()),
            (Amount::ZERO, 0, 0),
            "{said}"
        );
    }
    // Reads are not guarded.
    assert_eq!(
        site.send(tus("GET", "/a", &[zero, zero]), full(0)).await,
        201
    );
    // The value may have parameters.
    let fine = request("PUT", "/a", &[("upload-complete", "?1;a=b")]);
    assert_eq!(site.send(fine, full(3)).await, 201);
    assert_eq!(site.used().bytes, 3);
}

/// `POST /up` begins, `PUT` appends, `PUT` with a query is a named part, and `POST` with `?done` ends.
struct Plain;

impl Protocol for Plain {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        let path = head.uri.path();
        match (head.method.as_str(), head.uri.query()) {
            ("PUT", None) => Some(Step::part(path).of_whole(100)),
            ("PUT", Some(name)) => Some(Step::part(path).named(name).of_whole(100)),
            ("POST", Some("done")) => Some(Step::finish(path)),
            ("DELETE", _) => Some(Step::abort(path)),
            _ => None,
        }
    }

    fn outcome(&self, step: &Step, _: &response::Parts) -> Outcome {
        if step.is_finish() {
            Outcome::Complete
        } else {
            Outcome::Open
        }
    }
}

#[tokio::test]
async fn parts_append_unless_they_say_otherwise() {
    let site = Site::new(200, Uploads::new(Plain), async |_, body| {
        read(body).await;
        reply(200, &[])
    });
    for bytes in [40, 0, 30, 20] {
        assert_eq!(
            site.send(request("PUT", "/up", &[]), full(bytes)).await,
            200
        );
    }
    assert_eq!(site.uploads.get("/up").unwrap().received, 90);
    assert_eq!(site.send(request("PUT", "/up?a", &[]), full(10)).await, 200);
    assert_eq!(site.send(request("PUT", "/up?a", &[]), full(5)).await, 200);
    assert_eq!(site.held(), 100);
    // The last request may bring content too, and is charged for it.
    assert_eq!(
        site.send(request("POST", "/up?done", &[]), chunked(3, 10))
            .await,
        200
    );
    assert_eq!((site.used(), site.held()), (Amount::new(125, 1), 0));
    // It does so within the limit.
    assert_eq!(site.send(request("PUT", "/up", &[]), full(70)).await, 507);
    site.quota.set_used(USER, Amount::new(100, 1));
    assert_eq!(site.send(request("PUT", "/up", &[]), full(100)).await, 200);
    assert_eq!(
        site.send(request("POST", "/up?done", &[]), full(1)).await,
        507
    );
    assert_eq!(
        site.send(request("POST", "/up?done", &[]), full(0)).await,
        200
    );
    assert_eq!(site.used(), Amount::new(200, 2));
}

/// What a handler reports and then fails is not true of the upload.
#[tokio::test]
async fn reports_of_a_request_that_fails_are_forgotten() {
    let fails = Arc::new(Mutex::new(true));
    let fail = Arc::clone(&fails);
    let site = Site::new(200, Uploads::new(Plain), move |head, body| {
        let fails = *fail.lock().unwrap();
        async move {
            read(body).await;
            if head.method == "POST" && fails {
                let reservation: &Reservation = head.extensions.get().unwrap();
                reservation.stored(1);
                reservation.made(0);
                reservation.replaces(Amount::new(60, 1)).await.unwrap();
                reservation.grow(50).await.unwrap();
                return reply(500, &[]);
            }
            reply(200, &[])
        }
    });
    assert_eq!(site.send(request("PUT", "/up", &[]), full(100)).await, 200);
    for _ in 0..3 {
        // What it has grown by is there for the next attempt.
        assert_eq!(
            site.send(request("POST", "/up?done", &[]), full(0)).await,
            500
        );
        assert_eq!((site.used().bytes, site.held()), (0, 150));
    }
    *fails.lock().unwrap() = false;
    assert_eq!(
        site.send(request("POST", "/up?done", &[]), full(0)).await,
        200
    );
    assert_eq!((site.used(), site.held()), (Amount::new(100, 1), 0));
}

/// A request in flight does not lend room to others that it needs again if it fails.
#[tokio::test]
async fn a_part_that_is_sent_again_and_fails_leaves_no_room_to_others() {
    let (release, released) = oneshot::channel::<()>();
    let released = Arc::new(Mutex::new(Some(released)));
    let site = Site::new(100, Uploads::new(Plain), move |head, body| {
        let released = Arc::clone(&released);
        async move {
            let waits = head.headers.contains_key("x-wait");
            if waits {
                let released = released.lock().unwrap().take().unwrap();
                released.await.unwrap();
                return reply(409, &[]);
            }
            read(body).await;
            reply(200, &[])
        }
    });
    assert_eq!(site.send(request("PUT", "/up?a", &[]), full(60)).await, 200);
    let again = site.send(request("PUT", "/up?a", &[("x-wait", "1")]), full(10));
    let other = async {
        tokio::task::yield_now().await;
        // All but the 60 bytes of the first.
        let status = site.send(request("PUT", "/up?b", &[]), full(41)).await;
        release.send(()).unwrap();
        status
    };
    assert_eq!(tokio::join!(again, other), (409, 507));
    assert_eq!(site.send(request("PUT", "/up?b", &[]), full(40)).await, 200);
    assert_eq!(
        site.send(request("POST", "/up?done", &[]), full(0)).await,
        200
    );
    assert_eq!(site.used(), Amount::new(100, 1));
}

/// A request that is refused last does not end what another has just continued.
#[tokio::test(start_paused = true)]
async fn a_part_keeps_an_upload_even_if_another_is_refused_after_it() {
    let uploads = Uploads::new(Plain).expire_after(HOUR);
    let site = Site::new(1_000_000, uploads, async |head, body| {
        read(body).await;
        reply(
            if head.uri.query() == Some("b") {
                409
            } else {
                200
            },
            &[],
        )
    });
    let (frames, body) = held_open();
    let refused = site.send(request("PUT", "/up?b", &[]), body);
    let other = async {
        tokio::task::yield_now().await;
        assert_eq!(site.send(request("PUT", "/up?a", &[]), full(40)).await, 200);
        drop(frames);
    };
    assert_eq!(tokio::join!(refused, other).0, 409);
    sleep(HOUR / 2).await;
    assert!(site.held() > 0);
    sleep(HOUR).await;
    assert_eq!((site.held(), site.used()), (0, Amount::new(40, 1)));
}

/// A part that announces the length and breaks off has told it to the service.
#[tokio::test]
async fn a_late_length_outlives_the_part_that_announces_it() {
    let site = Tus::default().site(1_000, Uploads::default());
    let post = tus("POST", "/files", &[("upload-defer-length", "1")]);
    assert_eq!(site.send(post, full(0)).await, 201);
    let (frames, body) = held_open();
    let announcing = part("/files/0", 0).header("upload-length", 90);
    let left = tokio::time::timeout(Duration::from_millis(50), site.send(announcing, body));
    let sends = async {
        frames.send(Bytes::from(vec![7; 30])).await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        left = left => assert!(left.is_err()),
        () = sends => {}
    }
    assert_eq!(site.uploads.get("/files/0").unwrap().whole, Some(90));
    // This service has kept nothing of it.
    assert_eq!(site.send(part("/files/0", 0), full(90)).await, 204);
    assert_eq!((site.used(), site.held()), (Amount::new(90, 1), 0));
}

/// A body whose frames the test sends.
fn held_open() -> (mpsc::Sender<Bytes>, Content) {
    let (frames, mut rest) = mpsc::channel::<Bytes>(1);
    let frames_of = stream::poll_fn(move |cx| rest.poll_recv(cx).map(|frame| frame.map(Ok)));
    let content = StreamBody::new(frames_of.map(|frame| frame.map(Frame::data)));
    (frames, content.boxed_unsync())
}

#[tokio::test]
async fn what_is_in_flight_when_an_upload_ends_is_charged_if_it_succeeds() {
    for (method, path) in [("POST", "/up?done"), ("DELETE", "/up")] {
        for succeeds in [true, false] {
            let site = Site::new(
                1_000,
                Uploads::new(Removing),
                move |head: request::Parts, body| async move {
                    let came = read(body).await;
                    let is_late = head.uri.query() == Some("late");
                    match is_late && !succeeds {
                        true => reply(404, &[]),
                        false => reply(200, &[("x-came", &came.to_string())]),
                    }
                },
            );
            assert_eq!(site.send(request("PUT", "/up?a", &[]), full(40)).await, 200);
            let (frames, body) = held_open();
            let late = site.send(request("PUT", "/up?late", &[]), body);
            let ends = async {
                frames.send(Bytes::from(vec![7; 20])).await.unwrap();
                tokio::task::yield_now().await;
                assert_eq!(site.send(request(method, path, &[]), full(0)).await, 200);
                drop(frames);
            };
            let status = if succeeds { 200 } else { 404 };
            assert_eq!(tokio::join!(late, ends).0, status);
            let removed = method == "DELETE";
            let stored = if removed { 0 } else { 40 } + if succeeds { 20 } else { 0 };
            let used = (site.used().bytes, site.held(), site.uploads.len());
            assert_eq!(used, (stored, 0, 0), "{method}, {succeeds}");
        }
    }
}

/// Like [`Plain`], and a DELETE removes.
struct Removing;

impl Protocol for Removing {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        Plain.step(head)
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        match step.is_abort() {
            true => Outcome::Removed,
            false => Plain.outcome(step, answer),
        }
    }
}

#[tokio::test]
async fn a_chunk_that_has_left_its_folder_is_not_removed_with_it() {
    let uploads = Uploads::new(Chunks::under("/chunks"));
    for moved in ["/chunks/1/1", "/chunks/1"] {
        let site = Site::new(1_000, uploads.clone(), async |_, body| {
            read(body).await;
            reply(201, &[])
        });
        let put = request("PUT", "/chunks/1/1", &[("oc-total-length", "200")]);
        assert_eq!(site.send(put, full(100)).await, 201);
        assert_eq!(site.held(), 200);
        let mv = request("MOVE", moved, &[("destination", "/files/1")]);
        assert_eq!(site.send(mv, full(0)).await, 201);
        site.send(request("DELETE", "/chunks/1", &[]), full(0))
            .await;
        assert_eq!(
            (site.used(), site.held()),
            (Amount::new(100, 1), 0),
            "{moved}"
        );
    }
}

/// A service may answer the same creation with the same place.
#[tokio::test(start_paused = true)]
async fn an_upload_whose_place_is_given_away_is_charged_for_what_it_has_received() {
    let site = Site::new(
        1_000,
        Uploads::default().expire_after(HOUR),
        async |_, body| {
            read(body).await;
            reply(201, &[TUS, ("location", "/files/1")])
        },
    );
    let create = || tus("POST", "/files", &[("upload-length", "100")]);
    assert_eq!(site.send(create(), full(40)).await, 201);
    assert_eq!(site.send(create(), full(0)).await, 201);
    assert_eq!((site.used(), site.held()), (Amount::new(40, 1), 100));
    sleep(2 * HOUR).await;
    assert_eq!((site.used(), site.held()), (Amount::new(40, 2), 0));
}

#[tokio::test]
async fn a_commit_of_the_first_part_is_charged_if_no_answer_follows() {
    let site = Site::new(1_000, Uploads::new(Resumable::new()), async |head, body| {
        read(body).await;
        head.extensions.get::<Reservation>().unwrap().commit().await;
        std::future::pending::<Reply>().await
    });
    let put = request(
        "PUT",
        "/a",
        &[("upload-complete", "?0"), ("upload-length", "100")],
    );
    let left = tokio::time::timeout(Duration::from_millis(20), site.send(put, full(30)));
    assert!(left.await.is_err());
    assert_eq!((site.used(), site.held()), (Amount::new(30, 1), 0));
}

/// A quota whose holds in the scope "bad" panic when they are committed.
struct Panicking(MemoryQuota);

struct PanickingHold {
    hold: MemoryHold,
    is_bad: bool,
}

impl QuotaSource for Panicking {
    type Hold = PanickingHold;
    type Future = future::Ready<Result<PanickingHold, QuotaError>>;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let reserved = self.0.reserve(scopes, demand, expected).into_future();
        let is_bad = scopes.iter().any(|scope| scope.as_str() == "bad");
        let reserved = reserved.now_or_never().expect("in memory");
        Answer::Now(reserved.map(|hold| PanickingHold { hold, is_bad }))
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        self.0.charge(scopes, change);
    }
}

impl QuotaHold for PanickingHold {
    type Grow = <MemoryHold as QuotaHold>::Grow;
    type Commit = <MemoryHold as QuotaHold>::Commit;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        self.hold.grow(more)
    }

    fn shrink_to(&mut self, to: Amount) {
        self.hold.shrink_to(to);
    }

    fn commit(self, change: Change) -> Answer<Self::Commit> {
        assert!(!self.is_bad, "the hold of a user panics");
        self.hold.commit(change)
    }
}

#[tokio::test(start_paused = true)]
async fn what_panics_when_an_upload_expires_ends_that_upload_alone() {
    let panics = |_| -> future::Ready<bool> { panic!("the hook of a user panics") };
    for uploads in [Uploads::default(), Uploads::default().on_expiry(panics)] {
        let quota = MemoryQuota::new(Limits::bytes(1_000));
        let layer = StorageGuardLayer::quota_only(Panicking(quota.clone()))
            .scope_by(|head| head.headers["user"].to_str().unwrap().to_owned());
        let tus_service = Tus::default();
        let uploads = uploads.expire_after(HOUR);
        let site = Site::behind(layer, quota, uploads, move |head, body| {
            tus_service.clone().answer(head, body)
        });
        for times in 1..=2 {
            for user in ["bad", "good"] {
                let post = tus(
                    "POST",
                    "/files",
                    &[("upload-length", "100"), ("user", user)],
                );
                assert_eq!(site.send(post, full(40)).await, 201);
            }
            sleep(2 * HOUR).await;
            assert_eq!(site.uploads.len(), 0);
            let good = site.quota.usage("good");
            assert_eq!(
                (good.used, good.held),
                (Amount::new(40 * times, times), Amount::ZERO)
            );
            assert_eq!(site.quota.usage("bad").held, Amount::ZERO);
        }
    }
}

/// Of any service, however full it is, and in front of tus' own answer.
#[tokio::test]
async fn the_largest_upload_is_told_to_those_who_ask() {
    let uploads = Uploads::new(Resumable::new().max_size(100)).expire_after(HOUR);
    let site = Site::new(0, uploads, async |head, body| {
        read(body).await;
        match head.uri.path() {
            "/tus" => reply(204, &[TUS, ("tus-max-size", "7")]),
            "/none" => reply(404, &[]),
            _ => reply(200, &[("allow", "OPTIONS, POST")]),
        }
    });
    let limit = Some("max-size=100, max-age=3600");
    for (path, status, limit, size) in [
        ("/files", 200, limit, Some("100")),
        ("/tus", 204, limit, Some("7")),
        ("/none", 404, None, None),
    ] {
        for method in ["OPTIONS", "HEAD"] {
            let (answered, headers) = site.answer(request(method, path, &[]), full(0)).await;
            assert_eq!(answered, status, "{method} {path}");
            let of = |name| headers.get(name).map(|value| value.to_str().unwrap());
            if method == "OPTIONS" {
                let told = (of("upload-limit"), of("tus-max-size"));
                assert_eq!(told, (limit, size), "{path}");
            } else {
                assert_eq!(of("upload-limit"), None, "{path}");
            }
        }
    }
    assert_eq!(site.held(), 0);
    // Only a service that goes by another method stores its content.
    assert_eq!(
        site.send(request("OPTIONS", "/files", &[]), full(50)).await,
        200
    );
    for override_by in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ] {
        for (method, is_tus) in [("PUT", false), ("POST", true), ("PATCH", true)] {
            let mut headers = vec![(override_by, method)];
            if is_tus {
                headers.extend([TUS, ("upload-offset", "0"), ("upload-length", "50")]);
            }
            let request = request("OPTIONS", "/files", &headers);
            let status = site.send(request, full(50)).await;
            assert_eq!(status, 507, "{override_by}: {method}");
        }
    }
    // A creation has to be reserved even if nothing comes with it.
    let creation = [
        TUS,
        ("x-http-method-override", "POST"),
        ("upload-length", "50"),
    ];
    let creation = request("OPTIONS", "/files", &creation);
    assert_eq!(site.send(creation, full(0)).await, 507);
    let unlimited = Uploads::new(Resumable::new());
    let site = Site::new(0, unlimited, async |_, _| reply(200, &[]));
    let (_, headers) = site
        .answer(request("OPTIONS", "/files", &[]), full(0))
        .await;
    assert_eq!(headers.get("upload-limit"), None);
}

#[tokio::test]
async fn the_largest_upload_is_told_and_kept() {
    const COMPLETE: (&str, &str) = ("upload-complete", "?0");
    let uploads = Uploads::new(Resumable::new().max_size(100)).expire_after(HOUR);
    let site = Site::new(1_000, uploads, async |head, body| {
        read(body).await;
        match head.uri.path() {
            "/tus" => reply(201, &[TUS, ("location", "/tus/1")]),
            "/own" => reply(
                201,
                &[
                    COMPLETE,
                    ("location", "/own/1"),
                    ("upload-limit", "max-size=7"),
                ],
            ),
            "/other" => reply(201, &[("location", "/other/1")]),
            _ => reply(201, &[COMPLETE, ("location", "/files/1")]),
        }
    });
    let create = |path, length: &str| request("POST", path, &[COMPLETE, ("upload-length", length)]);
    for (path, limit) in [
        ("/files", Some("max-size=100, max-age=3600")),
        ("/own", Some("max-size=7")),
        ("/other", None),
    ] {
        let (status, headers) = site.answer(create(path, "100"), full(0)).await;
        assert_eq!(status, 201, "{path}");
        let told = headers
            .get("upload-limit")
            .map(|value| value.to_str().unwrap());
        assert_eq!(told, limit, "{path}");
    }
    // tus tells it in answers to OPTIONS only, and has its own header in each answer.
    let (status, headers) = site
        .answer(tus("POST", "/tus", &[("upload-length", "100")]), full(0))
        .await;
    assert_eq!((status, headers.get("upload-limit")), (201, None));
    let held = site.held();
    assert_eq!(site.send(create("/files", "101"), full(0)).await, 413);
    let (status, headers) = site
        .answer(tus("POST", "/tus", &[("upload-length", "101")]), full(0))
        .await;
    assert_eq!(
        (status, &headers["tus-resumable"]),
        (413, &"1.0.0".parse().unwrap())
    );
    assert_eq!(site.held(), held, "nothing is reserved for them");
}
