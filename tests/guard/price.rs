//! Prices of requests that concern more than their own body.

use std::{convert::Infallible, io};

use http::{Request, Response, StatusCode};
use test_support::disk::Disk;
use test_support::service::{Content, Incoming, full, read_all};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Demand, Price, Scopes, StorageGuardLayer, Volume,
    quota::{Answer, Limits, MemoryQuota, QuotaError, QuotaSource},
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
    let price = price.into();
    let layer = StorageGuardLayer::new(volume.clone())
        .quota(quota)
        .applies_when(|_| true)
        // The price names them.
        .scope_by(|_| Scopes::NONE)
        .price_by(move |_, _| price.clone());
    let service = layer.layer(service_fn(move |request: Request<Incoming>| async move {
        let mut answer = read_all(request).await?;
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok::<_, Infallible>(answer)
    }));
    let request: Request<Content> = Request::builder().body(full(0)).unwrap();
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

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        self.0.give_back(scopes, amount);
    }
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
