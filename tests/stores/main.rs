//! Stores on real engines: the conformance suite for each, and failures that the engines have to survive.

mod allocations;
#[cfg(unix)]
mod journal;
mod leased;
mod line;
#[cfg(target_os = "linux")]
pub(crate) mod postgres;
#[cfg(unix)]
mod process;
#[cfg(unix)]
pub(crate) mod redis;
#[cfg(unix)]
mod sql;
#[cfg(unix)]
mod sqlite;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tower_storage_guard::{
    Amount, Scopes,
    observer::Event,
    quota::{Change, Exceeded, Limits, QuotaError, QuotaHold, QuotaSource},
    store::{
        HoldId, ObservedStore, Reserve, Settlement, Store, StoreError, StoreErrorKind, StoredQuota,
        conformance::{self, ReferenceStore},
    },
};

use line::Line;

const LONG: Duration = Duration::from_secs(60);

fn reserve(id: HoldId, scopes: impl Into<Scopes>, bytes: u64, limit: u64) -> Reserve {
    Reserve::new(id, scopes, Amount::bytes(bytes))
        .with_default(Limits::bytes(limit))
        .with_time_to_live(LONG)
}

/// Reserves bytes.
async fn hold<S: Store>(
    store: &S,
    scopes: impl Into<Scopes>,
    bytes: u64,
    limit: u64,
) -> Result<HoldId, QuotaError> {
    let id = HoldId::unique();
    store.reserve(&reserve(id, scopes, bytes, limit)).await?;
    Ok(id)
}

async fn settle<S: Store>(store: &S, id: HoldId, scopes: impl Into<Scopes>, bytes: i64) {
    let change = Change { bytes, objects: 0 };
    let settlement = Settlement::new(id, scopes, change);
    store.settle(&[settlement]).await.unwrap();
}

/// Bytes used and held.
async fn figures<S: Store>(store: &S, scope: &str) -> (i64, u64) {
    let account = store.account(&scope.into()).await.unwrap();
    (account.used.bytes, account.held.bytes)
}

/// What a quota over a store does once `empty` has deleted what the store knows.
async fn an_emptied_store_is_an_outage<S: Store>(store: S, empty: impl AsyncFn()) {
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let quota = StoredQuota::builder(store, Limits::UNLIMITED)
        .limits_by(|_| Limits::bytes(100))
        .on_emptied(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .build();
    let user = Scopes::from("user");
    let reserve = async |bytes| {
        let hold = quota
            .reserve(&user, Amount::bytes(bytes), Amount::ZERO)
            .await;
        hold.map(drop)
    };
    quota.declare_counted().await.unwrap();
    for times in 1..=3 {
        let admin = quota.admin();
        admin.set_used("user", Amount::bytes(90)).await.unwrap();
        admin.set_limits("user", Limits::bytes(95)).await.unwrap();
        assert_eq!(exceeded(reserve(6).await).limit, 95);
        reserve(5).await.unwrap();
        // The engine may not take both at once.
        while quota.unsettled() > 0 {
            tokio::task::yield_now().await;
        }
        empty().await;
        for _ in 0..3 {
            let error = reserve(1).await.unwrap_err();
            let QuotaError::Unavailable(error) = error else {
                panic!("decided without a count: {error:?}");
            };
            let error = error.downcast::<StoreError>().unwrap();
            assert_eq!(error.kind(), StoreErrorKind::NotCounted, "{error}");
            assert_eq!(called.load(Ordering::Relaxed), times);
        }
        assert!(!admin.is_counted().await.unwrap());
        // A charge is taken, and is no count.
        quota.adjust("user", Amount::bytes(90).into()).await;
        reserve(1).await.unwrap_err();
        quota.declare_counted().await.unwrap();
        // The limit of its own is gone, and the one of the configuration is not.
        assert_eq!(exceeded(reserve(11).await).limit, 100);
        reserve(10).await.unwrap();
    }
    quota.adjust("user", Amount::ZERO.into()).await;
}

/// What processes see when the clock of an engine is set forward and back by two hours.
#[cfg(target_os = "linux")]
async fn a_set_clock_neither_frees_nor_keeps_a_hold<S: Store>(
    connect: impl AsyncFn() -> S,
    mut set: impl FnMut(&str),
) {
    const LIVES: Duration = Duration::from_secs(3);
    let (holder, other) = (connect().await, connect().await);
    let held = reserve(HoldId::unique(), "user", 80, 100).with_time_to_live(LIVES);
    holder.reserve(&held).await.unwrap();
    let renew = async || {
        let holds = [(held.id, held.scopes.clone())];
        holder.renew(&holds, LIVES).await.unwrap();
    };
    exceeded(hold(&other, "user", 30, 100).await);
    // Whichever step is the first to notice.
    for (clock, first) in [
        ("+7200", "reserve"),
        ("+0", "renew"),
        ("+7200", "settle"),
        ("-7200", "reserve"),
    ] {
        set(clock);
        match first {
            "reserve" => drop(exceeded(hold(&other, "user", 30, 100).await)),
            "renew" => renew().await,
            _ => settle(&other, HoldId::unique(), "user", 0).await,
        }
        let new = connect().await;
        assert_eq!(figures(&new, "user").await, (0, 80), "{clock}");
        let [kept] = &new.holds(Some(&"user".into()), 9).await.unwrap()[..] else {
            panic!("{clock}");
        };
        assert!(kept.expires_in <= LIVES, "{clock}: {kept:?}");
        exceeded(hold(&new, "user", 30, 100).await);
        renew().await;
        exceeded(hold(&other, "user", 30, 100).await);
    }
    // From here on the holder is as good as killed.
    let killed = Instant::now();
    set("-14400");
    while hold(&other, "user", 100, 100).await.is_err() {
        assert!(killed.elapsed() < LIVES * 2, "the hold lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(killed.elapsed() > LIVES / 2, "{:?}", killed.elapsed());
}

fn exceeded<T>(answer: Result<T, QuotaError>) -> Exceeded {
    match answer {
        Err(QuotaError::Exceeded(exceeded)) => exceeded,
        Err(error) => panic!("not decided: {error:?}"),
        Ok(_) => panic!("admitted"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_is_asked_again() {
    let reference = Arc::new(ReferenceStore::default());
    let line = Arc::new(Line::new(Arc::clone(&reference), Duration::ZERO));
    let lives = Duration::from_secs(30);
    let quota = StoredQuota::builder(Arc::clone(&line), Limits::bytes(100))
        .time_to_live(lives)
        .build();
    let user = Scopes::from("user");
    let reserve = async |bytes| {
        let answer = quota.reserve(&user, Amount::bytes(bytes), Amount::ZERO);
        answer.await.unwrap()
    };
    let hold = reserve(80).await;
    line.panic_once();
    hold.commit(Amount::bytes(80).into()).await;
    assert_eq!(figures(&*reference, "user").await, (80, 0));
    let _hold = reserve(20).await;
    line.panic_once();
    tokio::time::sleep(lives * 4).await;
    assert_eq!(figures(&*reference, "user").await, (80, 20));
}

/// By the machine's clock, as in the tests of the engines.
#[tokio::test]
async fn the_reference_conforms_to_itself() {
    let reference = Arc::new(ReferenceStore::default());
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    // What is observed is as good, and each operation is told.
    let observed = || {
        let seen = Arc::clone(&seen);
        ObservedStore::new(Arc::clone(&reference), move |event: &Event<'_>| {
            if let Event::StoreAnswered { operation, .. } = event {
                seen.lock().unwrap().insert(*operation);
            }
        })
    };
    conformance::run(observed(), observed()).await;
    assert_eq!(seen.lock().unwrap().len(), 11, "{seen:?}");
}
