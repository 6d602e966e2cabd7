//! Prices of requests that concern more than their own body.

use std::{convert::Infallible, io, time::Duration};

use http::{Request, Response, StatusCode};
use test_support::disk::Disk;
use test_support::service::{Content, Incoming, chunked, full, read_all};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, Outage, Price, Scopes, StorageGuardLayer, Volume,
    quota::{Answer, Change, Limits, MemoryQuota, QuotaError, QuotaSource},
};

const ANN: &str = "user:ann";
const BOB: &str = "user:bob";

fn quota() -> MemoryQuota {
    let quota = MemoryQuota::new(Limits::UNLIMITED);
    quota.set_limits(ANN, Limits::bytes(100));
    quota.set_limits(BOB, Limits::bytes(100));
    quota
}

/// Sends a request of this price, which the service answers with this status.
async fn send<Q>(volume: &Volume, quota: Q, price: impl Into<Price>, status: u16) -> u16
where
    Q: QuotaSource + Clone + Send + Sync + 'static,
{
    answered(volume, quota, price.into(), full(0), status).await
}

/// Sends a body of this many bytes, without a length.
async fn send_body<Q>(volume: &Volume, quota: Q, price: Price, bytes: usize) -> u16
where
    Q: QuotaSource + Clone + Send + Sync + 'static,
{
    answered(volume, quota, price, chunked(bytes, 1), 201).await
}

async fn answered<Q>(volume: &Volume, quota: Q, price: Price, content: Content, status: u16) -> u16
where
    Q: QuotaSource + Clone + Send + Sync + 'static,
{
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota)
        .applies_when(|_| true)
        // The price names them.
        .scope_by(|_| Scopes::NONE)
        .patience(Duration::from_millis(20))
        .price_by(move |_, _| price.clone());
    let service = layer.layer(service_fn(move |request: Request<Incoming>| async move {
        let mut answer = read_all(request).await?;
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok::<_, Infallible>(answer)
    }));
    let request: Request<Content> = Request::builder().body(content).unwrap();
    let answer: Response<_> = service.oneshot(request).await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn a_copy_is_charged_when_it_is_complete() {
    let (disk, quota) = (Disk::new(1_000), quota());
    let volume = disk.volume();
    let copy = |bytes| {
        let demand = Demand::nothing().copying(Amount::new(bytes, 2));
        Price::from(demand).charged_to(ANN)
    };
    assert_eq!(send(&volume, quota.clone(), copy(60), 500).await, 500);
    assert_eq!(quota.usage(ANN).used, Amount::ZERO);
    assert_eq!(send(&volume, quota.clone(), copy(60), 201).await, 201);
    assert_eq!(quota.usage(ANN).used, Amount::new(60, 2));
    assert_eq!(send(&volume, quota.clone(), copy(41), 201).await, 507);
    assert_eq!(send(&volume, quota.clone(), copy(40), 201).await, 201);
    assert_eq!(quota.usage(ANN).used, Amount::new(100, 4));
    assert_eq!(quota.usage(ANN).held, Amount::ZERO);
    // The volume has to have room too.
    let elsewhere = Demand::nothing().copying(Amount::bytes(1_001));
    assert_eq!(send(&volume, quota, elsewhere, 201).await, 507);
}

#[tokio::test]
async fn a_move_charges_the_new_scope_and_gives_back_to_the_old() {
    // It is already on the volume, however full that is.
    let (volume, quota) = (Disk::new(0).volume(), quota());
    quota.set_used(BOB, Amount::new(70, 3));
    let file = Amount::new(60, 1);
    let price = || {
        Price::from(Demand::nothing().moving(file))
            .charged_to(ANN)
            .giving_back(BOB, file)
    };
    assert_eq!(send(&volume, quota.clone(), price(), 403).await, 403);
    assert_eq!(quota.usage(ANN).used, Amount::ZERO);
    assert_eq!(quota.usage(BOB).used, Amount::new(70, 3));
    assert_eq!(send(&volume, quota.clone(), price(), 201).await, 201);
    assert_eq!(quota.usage(ANN).used, file);
    assert_eq!(quota.usage(BOB).used, Amount::new(10, 2));
    // No room for another.
    assert_eq!(send(&volume, quota.clone(), price(), 201).await, 507);
    assert_eq!(quota.usage(BOB).used, Amount::new(10, 2));
    assert_eq!(quota.usage(ANN).held, Amount::ZERO);
}

/// A quota source during an outage, which still receives give-backs.
#[derive(Clone)]
struct Away(MemoryQuota);

impl QuotaSource for Away {
    type Future = <MemoryQuota as QuotaSource>::Future;
    type Hold = <MemoryQuota as QuotaSource>::Hold;

    fn reserve(&self, _: &Scopes, _: Amount, _: Amount) -> Answer<Self::Future> {
        let down = io::Error::from(io::ErrorKind::ConnectionRefused);
        Answer::Now(Err(QuotaError::Unavailable(down.into())))
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        self.0.charge(scopes, change);
    }
}

#[tokio::test]
async fn what_is_free_is_never_refused_and_never_charged() {
    let (volume, quota) = (Disk::new(0).volume(), quota());
    quota.set_used(ANN, Amount::new(100, 10));
    for price in [Price::free(), Price::free().charged_to(ANN)] {
        assert_eq!(
            send_body(&volume, quota.clone(), price.clone(), 1_000).await,
            201
        );
        assert_eq!(
            send_body(&volume, Away(quota.clone()), price, 1_000).await,
            201
        );
    }
    assert_eq!(quota.usage(ANN).used, Amount::new(100, 10));
}

#[tokio::test]
async fn what_is_only_counted_is_never_refused_and_charged_beyond_limits() {
    let (volume, quota) = (Disk::new(0).volume(), quota());
    quota.set_used(ANN, Amount::new(90, 10));
    let counted = |demand| Price::counted(demand).charged_to(ANN);
    assert_eq!(
        send_body(&volume, quota.clone(), counted(Demand::known(1_000)), 1_000).await,
        201
    );
    assert_eq!(quota.usage(ANN).used, Amount::new(1_090, 11));
    // Others are refused, and it goes on; also while the source cannot decide.
    let refused = Price::from(Demand::known(1)).charged_to(ANN);
    assert_eq!(send_body(&volume, quota.clone(), refused, 1).await, 507);
    assert_eq!(
        send_body(&volume, Away(quota.clone()), counted(Demand::unknown()), 7).await,
        201
    );
    assert_eq!(quota.usage(ANN).used, Amount::new(1_097, 12));
    // What it replaces is taken off, and what fails is not counted.
    let smaller = Demand::known(5).with_objects(0).replacing(Amount::bytes(7));
    assert_eq!(
        send_body(&volume, quota.clone(), counted(smaller), 5).await,
        201
    );
    assert_eq!(quota.usage(ANN).used, Amount::new(1_095, 12));
    assert_eq!(
        send(&volume, quota.clone(), counted(Demand::known(0)), 500).await,
        500
    );
    let usage = quota.usage(ANN);
    assert_eq!(
        (usage.used, usage.held),
        (Amount::new(1_095, 12), Amount::ZERO)
    );
    Disk::until_settled(&volume).await;
}

#[tokio::test]
async fn a_body_that_is_not_stored_is_not_bounded() {
    let (volume, quota) = (Disk::new(10).volume(), quota());
    quota.set_used(ANN, Amount::bytes(95));
    for (demand, used) in [
        (Demand::known(1_000).without_body(), Some((95, 1))),
        (Demand::unknown().without_body(), Some((95, 1))),
        // What the service writes beside it is.
        (
            Demand::known(1_000)
                .copying(Amount::bytes(5))
                .without_body(),
            Some((100, 1)),
        ),
        (
            Demand::nothing().without_body().copying(Amount::bytes(6)),
            None,
        ),
    ] {
        let quota = quota.clone();
        quota.set_used(ANN, Amount::bytes(95));
        let price = Price::from(demand).charged_to(ANN);
        let status = send_body(&volume, quota.clone(), price, 1_000).await;
        assert_eq!(status, if used.is_some() { 201 } else { 507 }, "{demand:?}");
        let (bytes, objects) = used.unwrap_or((95, 0));
        assert_eq!(
            quota.usage(ANN).used,
            Amount::new(bytes, objects),
            "{demand:?}"
        );
    }
}

/// What is stored during an outage that admits it is charged to the source, and when it is back it decides with that.
#[tokio::test]
async fn what_an_outage_admits_is_charged() {
    let (volume, quota) = (Disk::new(1 << 20).volume(), quota());
    let service = |status| {
        let layer = StorageGuardLayer::new(volume.clone())
            .quota(Away(quota.clone()))
            .quota_outage(Outage::Admit)
            .scope_by(|_| Scopes::from([ANN, BOB]));
        layer.layer(service_fn(move |request: Request<Incoming>| async move {
            let mut answer = read_all(request).await?;
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok::<_, Infallible>(answer)
        }))
    };
    let put = |content| Request::put("/").body(content).unwrap();
    for (content, status) in [(full(60), 201), (chunked(6, 10), 201), (full(60), 500)] {
        let answer = service(status).oneshot(put(content)).await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
    }
    for scope in [ANN, BOB] {
        assert_eq!(quota.usage(scope).used, Amount::new(120, 2));
        assert_eq!(quota.usage(scope).held, Amount::ZERO);
    }
    let back = Price::from(Demand::known(1)).charged_to(ANN);
    assert_eq!(send_body(&volume, quota.clone(), back, 1).await, 507);
}

#[tokio::test]
async fn a_removal_is_never_refused() {
    let (volume, quota) = (Disk::new(0).volume(), quota());
    quota.set_used(ANN, Amount::new(200, 10));
    let source = Away(quota.clone());
    let delete = || Price::from(Demand::nothing()).giving_back(ANN, Amount::new(150, 4));
    assert_eq!(send(&volume, source.clone(), delete(), 404).await, 404);
    assert_eq!(quota.usage(ANN).used, Amount::new(200, 10));
    assert_eq!(send(&volume, source, delete(), 204).await, 204);
    assert_eq!(quota.usage(ANN).used, Amount::new(50, 6));
}

/// 1,000 bytes, sent as 1,100: by its head, or without a length.
#[tokio::test]
async fn an_aws_chunked_body_that_fits_exactly_is_stored() {
    for room in [1_000, 999] {
        for has_length in [true, false] {
            let (volume, quota) = (Disk::new(room).volume(), quota());
            quota.set_limits(ANN, Limits::bytes(1_000));
            let layer = StorageGuardLayer::new(volume.clone())
                .quota(quota.clone())
                .patience(Duration::from_millis(20))
                .scope_by(|_| ANN)
                .decodes_aws_chunked();
            let upload = Request::put("/")
                .header("content-encoding", "aws-chunked")
                .header("x-amz-decoded-content-length", "1000");
            let upload = match has_length {
                true => upload.header("content-length", "1100"),
                false => upload,
            };
            let upload = upload.body(chunked(11, 100)).unwrap();
            let answer = layer
                .layer(service_fn(read_all))
                .oneshot(upload)
                .await
                .unwrap();
            let stored = room == 1_000;
            assert_eq!(
                answer.status(),
                if stored { 201 } else { 507 },
                "{room} {has_length}"
            );
            let used = if stored {
                Amount::new(1_000, 1)
            } else {
                Amount::ZERO
            };
            assert_eq!(quota.usage(ANN).used, used, "{room} {has_length}");
            Disk::until_settled(&volume).await;
        }
    }
}

/// A client that declares less than it sends, by more than any framing, is cut.
#[tokio::test]
async fn framing_is_bounded() {
    let (volume, quota) = (Disk::new(5_000).volume(), quota());
    quota.set_limits(ANN, Limits::bytes(2_000));
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota.clone())
        .patience(Duration::from_millis(20))
        .scope_by(|_| ANN)
        .decodes_aws_chunked();
    let upload = Request::put("/")
        .header("content-encoding", "aws-chunked")
        .header("x-amz-decoded-content-length", "10")
        .body(chunked(80, 100))
        .unwrap();
    let answer = layer
        .layer(service_fn(read_all))
        .oneshot(upload)
        .await
        .unwrap();
    assert_eq!(answer.status(), 507);
    assert_eq!(quota.usage(ANN).used, Amount::ZERO);
}

/// The scopes are looked up before the price, which goes without them for a stranger.
#[tokio::test]
async fn scopes_and_prices_may_be_looked_up() {
    let quota = quota();
    let layer = || {
        StorageGuardLayer::quota_only(quota.clone()).scope_by_async(|head| {
            let user = head.headers["user"].to_str().unwrap().to_owned();
            async move {
                tokio::task::yield_now().await;
                user
            }
        })
    };
    let send = async |service, user: &str, bytes| {
        let request = Request::put("/").header("user", user).body(full(bytes));
        let service: tower::util::BoxCloneService<_, Response<_>, Infallible> = service;
        service
            .oneshot(request.unwrap())
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let boxed = |layer: StorageGuardLayer<MemoryQuota, _>| {
        tower::util::BoxCloneService::new(layer.layer(service_fn(read_all)))
    };
    assert_eq!(send(boxed(layer()), ANN, 60).await, 201);
    assert_eq!(send(boxed(layer()), ANN, 41).await, 507);
    assert_eq!(send(boxed(layer()), BOB, 41).await, 201);
    let halves = layer().price_by(|_, demand| Demand::known(demand.bytes().unwrap() / 2));
    assert_eq!(send(boxed(halves), BOB, 10).await, 201);
    let strangers = layer().price_by_async(|head, demand| {
        let is_known = head.headers["user"] != "mallory";
        async move {
            match is_known {
                true => Price::from(demand),
                false => Price::free(),
            }
        }
    });
    assert_eq!(send(boxed(strangers.clone()), BOB, 100).await, 507);
    // For the handler to refuse.
    assert_eq!(send(boxed(strangers.clone()), "mallory", 1_000).await, 201);
    assert_eq!(quota.usage("mallory").used, Amount::ZERO);
    assert_eq!(quota.usage(ANN).used.bytes, 60);
    // What is read counts, and not what was priced.
    assert_eq!(quota.usage(BOB).used.bytes, 51);
}
