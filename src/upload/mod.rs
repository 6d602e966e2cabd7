//! Uploads of several requests: tus, the IETF's resumable uploads, the chunks of ownCloud and Nextcloud.
//!
//! Checked one by one, the requests of an upload are each let in while there is room, and the last of them finds none:
//! after hours, and with everything else there for nothing. So the whole length is set aside at the first request. What
//! comes later draws from that, however often it breaks off and is sent again. The last request charges it; a DELETE, and
//! time, give it back.
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::{patch, post}};
//! use tower::ServiceExt;
//! use tower_storage_guard::{
//!     StorageGuardLayer, Amount,
//!     quota::{Limits, MemoryQuota},
//!     upload::Uploads,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let quota = MemoryQuota::new(Limits::bytes(10));
//! let uploads = Uploads::default().expire_after(Duration::from_secs(600));
//! let guard = StorageGuardLayer::quota_only(quota.clone())
//!     .scope_by(|_| "user:42")
//!     .uploads(&uploads);
//!
//! // As a tus server answers.
//! const TUS: (&str, &str) = ("tus-resumable", "1.0.0");
//! let app = Router::new()
//!     .route("/files", post(async || (StatusCode::CREATED, [TUS, ("location", "/files/a")])))
//!     .route("/files/a", patch(async |_: String| (StatusCode::NO_CONTENT, [TUS, ("upload-offset", "8")])))
//!     .layer(guard);
//!
//! let first = || Request::post("/files").header("tus-resumable", "1.0.0").header("upload-length", 8);
//! let answer = app.clone().oneshot(first().body(Body::empty())?).await?;
//! assert_eq!(answer.status(), StatusCode::CREATED);
//! assert_eq!(quota.usage("user:42").held, Amount::new(8, 1));
//! // There is no room for another, though not a byte has come yet.
//! let answer = app.clone().oneshot(first().body(Body::empty())?).await?;
//! assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
//!
//! let part = Request::patch("/files/a").header("tus-resumable", "1.0.0").header("upload-offset", 0);
//! app.oneshot(part.body(Body::from("8 bytes."))?).await?;
//! assert_eq!(quota.usage("user:42").used, Amount::new(8, 1));
//! assert_eq!(quota.usage("user:42").held, Amount::ZERO);
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! - The scopes of the first request are charged, for the whole, once: when the last request has succeeded, and before
//!   that is answered.
//! - A part that the upload has room for is never refused. Where a part brings more than was announced, or the length
//!   was not announced, it finds room for the difference, or is refused by itself.
//! - A part that fails costs nothing: what it drew is there for the next.
//! - [`Reservation`](crate::Reservation) is that of the part. What its handler says is
//!   [stored](crate::Reservation::stored) counts for the part, what it [replaces](crate::Reservation::replaces) for the
//!   whole.
//!
//! # What does not
//!
//! - A tus server has to say `Tus-Resumable` in its answers *where the guard sees them*: set by a layer outside of the
//!   guard, it comes too late, and nothing is held. Otherwise a header of the client's would hold the disk at any service
//!   that answers with a `Location`.
//! - What is known of uploads is gone with the process, or when they expire. Their later parts are then charged one by
//!   one, and what came before is not: count it at the start.
//! - Who may reserve may reserve for as long as uploads are kept, and never come back. That takes a quota for each user,
//!   or a short time to live.
//! - Whoever may send a request for an upload's path can make it grow, whatever the service answers. Let the guard see
//!   only requests that may write there.
//! - The guard has to see the requests at the paths that `Location` names. See [`Uploads::key_by`].

mod chunks;
mod location;
mod open;
mod part;
mod registry;
mod resumable;
mod step;
mod visit;

use std::{fmt, sync::Arc, time::Duration};

use http::request;

use crate::layer::StorageGuardLayer;

pub use self::{
    chunks::Chunks,
    resumable::Resumable,
    step::{Outcome, Protocol, Step},
};
use self::{
    location::in_one_way,
    open::{Draw, Drawn, Upload},
    registry::Registry,
    visit::FoundStep,
};

/// The uploads that are open. Given to [`StorageGuardLayer::uploads`](crate::StorageGuardLayer::uploads).
///
/// Cheap to clone; clones share what is open, not what is set later.
#[derive(Clone)]
pub struct Uploads {
    registry: Arc<Registry>,
    protocols: Vec<Arc<dyn Protocol>>,
    key_by: Option<Arc<KeyBy>>,
    idle: Duration,
}

type KeyBy = dyn Fn(&str) -> String + Send + Sync;

impl Uploads {
    /// Uploads of one protocol.
    pub fn new(protocol: impl Protocol) -> Self {
        Self {
            registry: Registry::new(),
            protocols: Vec::new(),
            key_by: None,
            idle: Duration::from_secs(3_600),
        }
        .and(protocol)
    }

    /// Adds a protocol. The first that knows a request decides what it is.
    #[must_use]
    pub fn and(mut self, protocol: impl Protocol) -> Self {
        self.protocols.push(Arc::new(protocol));
        self
    }

    /// Sets how long an upload is kept after its last request. Its reservation is released then, by a task on the tokio
    /// runtime that serves the requests. The service should throw away what came of it at the same time.
    ///
    /// Defaults to one hour.
    #[must_use]
    pub fn expire_after(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Sets what names an upload, given the path of a request or of a `Location`. For where the two are not the same:
    /// behind a proxy or a router that takes a prefix off.
    ///
    /// Defaults to the path, and the query if `Location` has one. Whatever a client may change without asking for
    /// something else has to name the same upload: what comes under another name is charged by itself.
    ///
    /// ```
    /// use tower_storage_guard::upload::Uploads;
    ///
    /// // By the last segment, which is random here.
    /// let uploads = Uploads::default().key_by(|path| {
    ///     path.rsplit('/').next().unwrap_or(path).to_owned()
    /// });
    /// ```
    #[must_use]
    pub fn key_by(mut self, key: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.key_by = Some(Arc::new(key));
        self
    }

    /// How many uploads are open.
    pub fn len(&self) -> usize {
        self.registry.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of an upload. None where it is not open.
    pub fn get(&self, path: &str) -> Option<Progress> {
        let upload = self.registry.get(&self.key(path))?;
        Some(Progress {
            whole: upload.whole(),
            reserved: upload.reserved(),
            received: upload.received(),
        })
    }

    /// Releases an upload that the service has thrown away by itself. False where it is not open.
    pub fn release(&self, path: &str) -> bool {
        self.registry.remove(&self.key(path)).is_some()
    }

    /// What a request is to an upload.
    fn step(&self, head: &request::Parts) -> Option<FoundStep> {
        let mut protocols = self.protocols.iter();
        let (mut step, protocol) =
            protocols.find_map(|protocol| Some((protocol.step(head)?, protocol)))?;
        if !step.is_begin() {
            step.key = self.key_of_request(&step.key).into();
        }
        Some(FoundStep {
            step,
            protocol: Arc::clone(protocol),
            uploads: self.clone(),
        })
    }

    fn key(&self, path: &str) -> String {
        let path = in_one_way(path);
        let path = path.trim_end_matches('/');
        match &self.key_by {
            Some(key) => key(path),
            None => path.to_owned(),
        }
    }

    /// Most services do not look at the query, and then anybody may add one.
    fn key_of_request(&self, uri: &str) -> String {
        let key = self.key(uri);
        if let Some((path, _)) = uri.split_once('?')
            && self.registry.get(&key).is_none()
        {
            let without = self.key(path);
            if self.registry.get(&without).is_some() {
                return without;
            }
        }
        key
    }
}

impl<Q> StorageGuardLayer<Q> {
    /// Sets aside the whole of an upload at its first request, where it comes in several. See [`Uploads`].
    ///
    /// Defaults to each request by itself.
    pub fn uploads(self, uploads: &Uploads) -> Self {
        self.set(|settings| settings.steps = Some(Arc::new(uploads.clone())))
    }
}

/// tus 1.0, and the IETF's resumable uploads.
impl Default for Uploads {
    fn default() -> Self {
        Self::new(Resumable)
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads")
            .field("open", &self.len())
            .field("protocols", &self.protocols.len())
            .field("expire_after", &self.idle)
            .finish_non_exhaustive()
    }
}

/// What is known of an upload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// How long it is in all, in bytes. None where no request has said so yet.
    pub whole: Option<u64>,
    /// Bytes that are set aside for it, those that came included.
    pub reserved: u64,
    /// Bytes that came.
    pub received: u64,
}
