//! A view for operators: volumes and when they will be full, queues, the busiest scopes, open uploads, and whether
//! stores answer.
//!
//! An [`OperatorView`] is made of the parts of a service, and shows them as values or as JSON. With feature `axum` it
//! is a route. Nothing is mounted unless the service mounts it.
//!
//! **Put it behind authentication.** It shows the names of scopes and the keys of uploads, which may be secrets, and how full the
//! server is. The guide [`operating`](crate::guide::operating) has an example.
//!
//! ```
//! use tower_storage_guard::{
//!     Guard, Volume,
//!     operator::OperatorView,
//!     quota::{Limits, MemoryQuota},
//!     upload::Uploads,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let quota = MemoryQuota::new(Limits::bytes(1 << 30));
//! let guard = Guard::new(Volume::open(std::env::temp_dir())?.named("files")).quota(quota.clone());
//! let uploads = Uploads::default();
//!
//! let view = OperatorView::new()
//!     .guard("uploads", &guard)
//!     .quota("users", quota)
//!     .uploads("tus", &uploads);
//! let snapshot = view.snapshot().await;
//! assert_eq!(snapshot.uploads[0].open, 0);
//! println!("{}", snapshot.to_json());
//! # Ok(())
//! # }
//! ```
//!
//! # Schema
//!
#![doc = include_str!("schema.md")]

mod accounts;
mod json;
mod snapshot;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::{
    accounts::{Accounts, AccountsFuture, Backlog},
    snapshot::{GuardView, QuotaView, Snapshot, State, UploadsView, VolumeView},
};
use crate::{
    guard::Guard, quota::Usage, scope::Scope, time::within, upload::Uploads, volume::Volume,
    wait_queue::WaitQueue,
};

/// Shows an operator the state of the volumes, guards, quota sources and uploads that are added to it.
///
/// Cheap enough to clone for each request. With feature `axum` it is a handler, which answers with the JSON of a
/// [`snapshot`](Self::snapshot): see `tower_storage_guard::axum`.
///
/// # Cost
///
/// Volumes and queues are read in memory. A `MemoryQuota` and a registry of uploads look at each account and at each open upload
/// once, and a store is asked one query. So ask for it every few seconds, not for each request.
#[derive(Clone)]
#[must_use]
pub struct OperatorView {
    volumes: Vec<Volume>,
    guards: Vec<Guarded>,
    quotas: Vec<(String, Arc<dyn Accounts>)>,
    uploads: Vec<(String, Uploads)>,
    most: usize,
    timeout: Duration,
}

impl OperatorView {
    /// Creates a view without parts.
    pub fn new() -> Self {
        Self {
            volumes: Vec::new(),
            guards: Vec::new(),
            quotas: Vec::new(),
            uploads: Vec::new(),
            most: 10,
            timeout: Duration::from_secs(2),
        }
    }

    /// Adds a guard: its queue for quota, and its volume, if it has one.
    ///
    /// The accounts of its quota source are added by [`quota`](Self::quota).
    pub fn guard<Q>(mut self, name: impl Into<String>, guard: &Guard<Q>) -> Self {
        self.guards.push(Guarded {
            name: name.into(),
            volume: guard.volume().map(|volume| volume.name().to_owned()),
            queue: Arc::clone(&guard.context.rules.quota_queue),
        });
        match guard.volume() {
            Some(volume) => self.volume(volume.clone()),
            None => self,
        }
    }

    /// Adds a volume that is not a guard's. It is shown by its [name](Volume::named), with the settings of this clone.
    pub fn volume(mut self, volume: Volume) -> Self {
        self.volumes.push(volume);
        self
    }

    /// Adds a quota source, with its busiest scopes, and the health of its store.
    pub fn quota(mut self, name: impl Into<String>, accounts: impl Accounts) -> Self {
        self.quotas.push((name.into(), Arc::new(accounts)));
        self
    }

    /// Adds the uploads of a layer.
    pub fn uploads(mut self, name: impl Into<String>, uploads: &Uploads) -> Self {
        self.uploads.push((name.into(), uploads.clone()));
        self
    }

    /// Sets how many scopes of each quota source are shown, and how many uploads.
    ///
    /// Defaults to ten.
    pub fn most(mut self, count: usize) -> Self {
        self.most = count;
        self
    }

    /// Sets the timeout for quota sources. One that takes longer is shown as away.
    ///
    /// Defaults to two seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the state of all parts now.
    ///
    /// It resolves within the [timeout](Self::timeout). All quota sources are asked at once, and one that fails, panics
    /// or does not answer is shown as away. Cancel-safe.
    ///
    /// # Panics
    ///
    /// If there are quota sources, and it runs outside of a tokio runtime, or in one whose timer is not enabled.
    pub async fn snapshot(&self) -> Snapshot {
        let (most, timeout) = (self.most, self.timeout);
        // On tasks, so that they are asked side by side, and a source that panics ends only its own answer.
        let asking = self.quotas.iter().map(|(name, accounts)| {
            let accounts = Arc::clone(accounts);
            let task = tokio::spawn(async move { Answered::of(&*accounts, most, timeout).await });
            (name.clone(), task)
        });
        let mut quotas = Vec::new();
        for (name, answered) in asking.collect::<Vec<_>>() {
            let answered = answered.await.unwrap_or_else(|_| Answered::panicked());
            quotas.push(QuotaView {
                name,
                busiest: answered.busiest,
                latency: answered.latency,
                backlog: answered.backlog,
            });
        }
        self.with(quotas)
    }

    fn with(&self, quotas: Vec<QuotaView>) -> Snapshot {
        let volumes = self.volumes.iter();
        let guards = self.guards.iter();
        let uploads = self.uploads.iter();
        Snapshot {
            volumes: volumes.map(VolumeView::of).collect(),
            guards: guards.map(Guarded::view).collect(),
            quotas,
            uploads: uploads
                .map(|(name, uploads)| UploadsView {
                    name: name.clone(),
                    open: uploads.len(),
                    max_open: uploads.limit(),
                    largest: uploads.largest(self.most),
                })
                .collect(),
        }
    }
}

/// What is shown of a guard.
#[derive(Clone)]
struct Guarded {
    name: String,
    volume: Option<String>,
    queue: Arc<WaitQueue>,
}

impl Guarded {
    fn view(&self) -> GuardView {
        GuardView {
            name: self.name.clone(),
            volume: self.volume.clone(),
            waiting_growths: self.queue.growing(),
        }
    }
}

/// What a quota source has answered.
struct Answered {
    busiest: Result<Vec<(Scope, Usage)>, String>,
    latency: Duration,
    backlog: Option<Backlog>,
}

impl Answered {
    async fn of(accounts: &dyn Accounts, most: usize, timeout: Duration) -> Self {
        let backlog = accounts.backlog();
        let begun = Instant::now();
        let busiest = match within(timeout, accounts.busiest(most)).await {
            Some(busiest) => busiest.map_err(|error| error.to_string()),
            None => Err("no answer in time".to_owned()),
        };
        Self {
            busiest,
            latency: begun.elapsed(),
            backlog,
        }
    }

    fn panicked() -> Self {
        Self {
            busiest: Err("it has panicked".to_owned()),
            latency: Duration::ZERO,
            backlog: None,
        }
    }
}

impl Default for OperatorView {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for OperatorView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quotas: Vec<_> = self.quotas.iter().map(|(name, _)| name).collect();
        f.debug_struct("OperatorView")
            .field("volumes", &self.volumes)
            .field("quotas", &quotas)
            .field("uploads", &self.uploads)
            .finish_non_exhaustive()
    }
}
