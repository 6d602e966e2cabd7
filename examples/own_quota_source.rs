//! A custom quota source: a pool of bytes that all uploads share.
//!
//! `cargo run --example own_quota_source`, then `curl -i -T README.md http://127.0.0.1:3014/1`
use std::{future, sync::Mutex};

use axum::{Router, body::Bytes, extract::Path, http::StatusCode, routing::put};
use tower_storage_guard::quota::{Answer, Change, Exceeded, QuotaError, QuotaHold, QuotaSource};
use tower_storage_guard::{Amount, BoxError, Scopes, StorageGuardLayer, fault::Resource};

/// What is used and held, together. It may be negative, because a removal may be counted before its upload.
static TAKEN: Mutex<i64> = Mutex::new(0);
const LIMIT: u64 = 1 << 20;

/// Check and reservation are one atomic step. Zero always fits, and so does an exact fit.
fn take(bytes: u64, expected: u64) -> Result<(), QuotaError> {
    let mut taken = TAKEN.lock().unwrap();
    let (used, needed) = ((*taken).max(0) as u64, bytes.max(expected));
    if needed > 0 && used.saturating_add(needed) > LIMIT {
        return Err(Exceeded::new("pool".into(), Resource::Bytes, LIMIT, used, needed).into());
    }
    *taken += bytes as i64;
    Ok(())
}

#[derive(Clone)]
struct Pool;
impl QuotaSource for Pool {
    type Hold = Hold;
    type Future = future::Pending<Result<Hold, QuotaError>>; // It always answers at once.
    fn reserve(&self, _: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        Answer::Now(take(demand.bytes, expected.bytes).map(|()| Hold(demand.bytes)))
    }
    fn charge(&self, _: &Scopes, change: Change) {
        *TAKEN.lock().unwrap() += change.bytes;
    }
}

struct Hold(u64);
impl QuotaHold for Hold {
    type Grow = future::Ready<Result<(), QuotaError>>;
    type Commit = future::Ready<()>;
    fn grow(&mut self, more: Amount) -> Self::Grow {
        future::ready(take(more.bytes, 0).map(|()| self.0 += more.bytes))
    }
    fn shrink_to(&mut self, to: Amount) {
        *TAKEN.lock().unwrap() -= (std::mem::replace(&mut self.0, to.bytes) - to.bytes) as i64;
    }
    fn commit(self, change: Change) -> Answer<Self::Commit> {
        *TAKEN.lock().unwrap() += change.bytes;
        Answer::Now(()) // The drop gives back what was held.
    }
}
impl Drop for Hold {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() -= self.0 as i64;
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let guard = StorageGuardLayer::quota_only(Pool).scope_by(|_| "pool");
    let store = async |Path(id): Path<u32>, body: Bytes| {
        std::fs::write(id.to_string(), body).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    };
    let app = Router::new().route("/{id}", put(store)).layer(guard);
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:3014".into());
    let listener = tokio::net::TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
