//! Implements a quota source: a pool in memory that limits each user and all users together.
//!
//! ```sh
//! cargo run --features axum --example own_quota_source
//! curl -i -T README.md -H 'X-User: ann' http://127.0.0.1:3000/files/a # 201
//! head -c 1M /dev/zero | curl -i -X PUT --data-binary @- -H 'X-User: ann' http://127.0.0.1:3000/files/b # 507
//! ```

use std::future::{Pending, Ready, ready};
use std::{collections::HashMap, env, fs, io, path::PathBuf, sync::Arc, sync::Mutex};

use axum::extract::{Path, State};
use axum::{Router, body::Bytes, http::StatusCode, routing::put};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tower_storage_guard::quota::{Answer, Change, Exceeded, QuotaError, QuotaHold, QuotaSource};
use tower_storage_guard::{Amount, BoxError, Scope, Scopes, StorageGuardLayer, Volume};
use tower_storage_guard::{axum::Failure, fault::Resource};

/// The bytes that each scope uses, stored and held together. Objects are not limited.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<HashMap<Scope, i64>>>);

impl Pool {
    /// Sets `more` aside in all scopes or in none: one lock covers the decision and the taking.
    fn take(&self, scopes: &Scopes, more: u64, expected: u64) -> Result<(), QuotaError> {
        let mut used = self.0.lock().expect("no code panics under the lock");
        let required = more.max(expected);
        for scope in scopes {
            let is_shared = scope.as_str() == "everyone";
            let limit: u64 = if is_shared { 1 << 20 } else { 600 << 10 };
            let used = used.get(scope).copied().unwrap_or_default().max(0) as u64;
            // An exact fit is admitted, and zero fits always.
            if required > limit.saturating_sub(used) {
                let (scope, bytes) = (scope.clone(), Resource::Bytes);
                return Err(Exceeded::new(scope, bytes, limit, used, required).into());
            }
        }
        for scope in scopes {
            *used.entry(scope.clone()).or_default() += more as i64;
        }
        Ok(())
    }

    fn add(&self, scopes: &Scopes, change: i64) {
        let mut used = self.0.lock().expect("no code panics under the lock");
        for scope in scopes {
            let used = used.entry(scope.clone()).or_default();
            *used = used.saturating_add(change);
        }
    }
}

impl QuotaSource for Pool {
    /// The pool decides at once, and never returns a future.
    type Future = Pending<Result<PoolHold, QuotaError>>;
    type Hold = PoolHold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        let taken = self.take(scopes, demand.bytes, expected.bytes);
        Answer::Now(taken.map(|()| PoolHold {
            pool: self.clone(),
            scopes: scopes.clone(),
            bytes: demand.bytes as i64,
        }))
    }

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        self.add(scopes, Change::between(Amount::ZERO, amount).bytes);
    }
}

struct PoolHold {
    pool: Pool,
    scopes: Scopes,
    bytes: i64,
}

impl QuotaHold for PoolHold {
    type Commit = Ready<()>;
    type Grow = Ready<Result<(), QuotaError>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let taken = self.pool.take(&self.scopes, more.bytes, 0);
        ready(taken.map(|()| self.bytes += more.bytes as i64))
    }

    /// The drop at the end releases what is not stored, so that release and charge are one step.
    fn commit(mut self, change: Change) -> Self::Commit {
        self.bytes = self.bytes.saturating_sub(change.bytes);
        ready(())
    }
}

impl Drop for PoolHold {
    fn drop(&mut self) {
        self.pool.add(&self.scopes, self.bytes.saturating_neg());
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let dir = PathBuf::from(args.next().unwrap_or_default()).join("uploads");
    fs::create_dir_all(&dir)?;
    let guard = StorageGuardLayer::new(Volume::open(&dir)?)
        .quota(Pool::default())
        // Authentication belongs in a layer outside of the guard: any client can send this header.
        .scope_by(|head| {
            let user = head.headers.get("x-user").map(|user| user.to_str());
            let user = user.and_then(Result::ok).unwrap_or_default();
            ["everyone".to_owned(), format!("user:{user}")]
        });
    let app = Router::new()
        .route("/files/{name}", put(put_file))
        .layer(guard)
        .with_state(dir);
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

async fn put_file(
    State(dir): State<PathBuf>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Failure> {
    // The name must not lead out of the folder. Names of temporary files begin with a dot.
    if name.starts_with('.') || name.contains(['/', '\\', ':', '\0']) {
        return Ok(StatusCode::BAD_REQUEST);
    }
    let temporary = NamedTempFile::new_in(&dir)?.into_temp_path();
    tokio::fs::write(&temporary, body).await?;
    // An overwrite would have to be priced, as the example `quota` does.
    match temporary.persist_noclobber(dir.join(name)) {
        Ok(()) => Ok(StatusCode::CREATED),
        Err(taken) if taken.error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(StatusCode::CONFLICT)
        }
        Err(error) => Err(error.into()),
    }
}
