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

use std::{sync::Arc, time::Duration};

use tower_storage_guard::{
    Amount, Scopes,
    quota::{Change, Exceeded, Limits, QuotaError},
    store::{
        HoldId, Reserve, Settlement, Store,
        conformance::{self, ReferenceStore},
    },
};

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

fn exceeded<T>(answer: Result<T, QuotaError>) -> Exceeded {
    match answer {
        Err(QuotaError::Exceeded(exceeded)) => exceeded,
        Err(error) => panic!("not decided: {error:?}"),
        Ok(_) => panic!("admitted"),
    }
}

/// By the machine's clock, as in the tests of the engines.
#[tokio::test]
async fn the_reference_conforms_to_itself() {
    let reference = Arc::new(ReferenceStore::default());
    conformance::run(Arc::clone(&reference), reference).await;
}
