//! Uploads of several requests: tus, the IETF's resumable uploads, the chunks of ownCloud and Nextcloud.
//!
//! If the requests of an upload are checked one by one, each is admitted while there is room, and the last one may
//! fail after hours of transfer. So the guard reserves the whole length at the first request. Later requests draw
//! from that reservation, even if a part is interrupted and sent again. The last request charges it, and a DELETE
//! releases it. Expiry charges what was received, unless the service [removes](Uploads::on_expiry) it.
//!
//! Other protocols, such as S3's multipart uploads or OCI's blob uploads, are implementations of [`Protocol`].
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
//! // Answers like a tus server.
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
//! // There is no room for another upload, although no byte has arrived yet.
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
//! # Guarantees
//!
//! - The scopes of the first request are charged once, for the whole: after the last request has succeeded, and
//!   before it is answered.
//! - A part that fits the announced length is never refused. If a part brings more than was announced, or if no
//!   length was announced, the difference is reserved, or that part is refused.
//! - An upload stays open only by an answer in the words of its protocol. A request that is answered otherwise is
//!   charged for what it has brought, when it is answered.
//! - A part that is refused (4xx) changes nothing. After any other failure the service may have kept what was received,
//!   so this counts until a later request replaces it. What it drew is available to the next part.
//! - [`Reservation`](crate::Reservation) is the part's. What its handler reports as
//!   [stored](crate::Reservation::stored) counts for the part, even if the request fails: report zero if nothing is
//!   left. In the request that [finishes](Step::finish), it is the length of the whole. What it
//!   [replaces](crate::Reservation::replaces) counts for the whole, once, when the upload is complete.
//! - What the service writes beside the content, as when it assembles the parts, the handler
//!   [grows](crate::Reservation::grow) by. It is not charged if the upload completes.
//!
//! # Limitations
//!
//! - A tus server has to set `Tus-Resumable` in its answers *before they pass the guard*: if a layer outside of the
//!   guard sets it, it is too late, and nothing is held. Without this condition a client's header alone could reserve
//!   the disk at any service that answers with a `Location`.
//! - The state of uploads is lost when the process ends or when they expire. Later parts are then charged one by one,
//!   and earlier parts are not charged: count those at startup.
//! - A client that may reserve can hold a reservation for as long as uploads are kept, without sending more, unless
//!   another request needs the room: see [`Uploads::stall_grace`].
//! - A client that can send a request for an upload's path can make its reservation grow, whatever the service
//!   answers, until the upload ends. Let only requests that may write there pass the guard.
//! - Of two requests in flight for one part, the guard does not know which has come last: the larger counts.
//! - A request that arrives while the upload is being completed is answered 503, if it brings content.
//! - The guard has to see the requests at the paths that `Location` refers to. See [`Uploads::key_by`].

mod chunks;
mod content;
mod draw;
mod location;
mod open;
mod part;
mod registry;
mod resumable;
mod step;
mod visit;

use std::{cmp::Reverse, fmt, sync::Arc, time::Duration};

use http::request;

use crate::layer::StorageGuardLayer;

pub use self::{
    chunks::Chunks,
    resumable::Resumable,
    step::{Outcome, Protocol, Step},
};
use self::{
    location::in_one_way,
    open::{Expiry, Upload},
    registry::Registry,
    visit::FoundStep,
};

/// The open uploads. Given to [`StorageGuardLayer::uploads`](crate::StorageGuardLayer::uploads).
///
/// Cheap to clone; clones share the open uploads, but not later settings.
#[derive(Clone)]
pub struct Uploads {
    registry: Arc<Registry>,
    protocols: Vec<Arc<dyn Protocol>>,
    key_by: Option<Arc<KeyBy>>,
    expiry: Expiry,
    most: usize,
}

/// The longest key and name of a part, in bytes: as long as a path of Linux.
const LONGEST: usize = 4_096;

type KeyBy = dyn Fn(&str) -> String + Send + Sync;

impl Uploads {
    /// Creates a registry for uploads of one protocol.
    pub fn new(protocol: impl Protocol) -> Self {
        Self {
            registry: Registry::new(),
            protocols: Vec::new(),
            key_by: None,
            expiry: Expiry {
                idle: Duration::from_secs(3_600),
                grace: Duration::from_secs(60),
                hook: None,
            },
            most: 100_000,
        }
        .and(protocol)
    }

    /// Adds a protocol. The first protocol that recognises a request decides.
    #[must_use]
    pub fn and(mut self, protocol: impl Protocol) -> Self {
        self.protocols.push(Arc::new(protocol));
        self
    }

    /// Sets how long an upload is kept after the last request that brought something, or was a success. A task on the
    /// tokio runtime that serves the requests then ends its reservation.
    ///
    /// What was received is charged then, because it may still be there, unless [`Self::on_expiry`] removes it.
    ///
    /// Defaults to one hour.
    #[must_use]
    pub fn expire_after(mut self, idle: Duration) -> Self {
        self.expiry.idle = idle;
        self
    }

    /// Sets after which time without a byte the unsent rest of an upload can be taken back for a request that would be
    /// refused otherwise. When its client goes on, the rest has to be reserved again, and the request is refused if there is
    /// no room.
    ///
    /// Use a longer time if clients pause for long, or the time of [`Self::expire_after`] so that nothing is ever taken back.
    /// While a request is in flight, [`stall_grace`](StorageGuardLayer::stall_grace) has to have passed too.
    ///
    /// Defaults to one minute.
    #[must_use]
    pub fn stall_grace(mut self, grace: Duration) -> Self {
        self.expiry.grace = grace;
        self
    }

    /// Sets how many uploads may be open at once. Each part that has a [name](Step::named) counts as one more. A request that
    /// would begin another is answered 503, until one has ended. Requests that are decided at the same instant may exceed
    /// the number.
    ///
    /// It is a bound of memory: what is kept of an upload or part is small beside its key or name, of which those that clients
    /// choose are malformed (400) beyond 4,096 bytes. To limit what one user can open, use a quota of objects, or
    /// [`OpenQuota`](crate::quota::OpenQuota).
    ///
    /// Defaults to 100,000.
    #[must_use]
    pub fn max_open(mut self, number: usize) -> Self {
        self.most = number;
        self
    }

    /// Sets the function that removes the content of an upload when it expires. It is called with the key of the
    /// upload, and resolves to whether everything is removed: nothing is charged then. Otherwise, and if it panics,
    /// what was received is charged.
    ///
    /// It runs in a task of its own, and the reservation is held until it has ended. The guard does not know the upload
    /// any more: a request that arrives meanwhile is charged by itself. If the service has accepted such a request,
    /// resolve to false. Let the service refuse further parts afterwards: what it keeps of one that breaks off is not
    /// charged, as of any request that has failed.
    ///
    /// By default nothing is removed.
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use tower_storage_guard::upload::Uploads;
    ///
    /// let uploads = Uploads::default().on_expiry(|key| async move {
    ///     // "/files/a"
    ///     let Some(name) = key.strip_prefix("/files/") else { return false };
    ///     match tokio::fs::remove_file(format!("partial/{name}")).await {
    ///         Ok(()) => true,
    ///         Err(error) => error.kind() == ErrorKind::NotFound,
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn on_expiry<F, T>(mut self, remove: F) -> Self
    where
        F: Fn(String) -> T + Send + Sync + 'static,
        T: Future<Output = bool> + Send + 'static,
    {
        self.expiry.hook = Some(Arc::new(move |key| Box::pin(remove(key))));
        self
    }

    /// Sets the function that makes an upload's key from the path of a request or of a `Location`. Use it if the two
    /// differ, such as behind a proxy or a router that strips a prefix.
    ///
    /// Defaults to the path, with the query if `Location` has one. Parts of the URI that a client can change without
    /// addressing another resource must not change the key, because a request with another key is charged by itself.
    ///
    /// ```
    /// use tower_storage_guard::upload::Uploads;
    ///
    /// // Use the last segment, which is random here.
    /// let uploads = Uploads::default().key_by(|path| {
    ///     path.rsplit('/').next().unwrap_or(path).to_owned()
    /// });
    /// ```
    #[must_use]
    pub fn key_by(mut self, key: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.key_by = Some(Arc::new(key));
        self
    }

    /// Returns the number of open uploads.
    pub fn len(&self) -> usize {
        self.registry.len()
    }

    /// Returns whether no upload is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the state of an upload. None if it is not open.
    pub fn get(&self, path: &str) -> Option<Progress> {
        let upload = self.registry.get(&self.key(path))?;
        Some(Progress::of(&upload))
    }

    /// Returns the uploads that have most bytes reserved, the largest first, up to `count`.
    ///
    /// Looks at each open upload, under its own lock. For operators: a service that has the path of an upload asks for
    /// [that one](Self::get).
    pub fn largest(&self, count: usize) -> Vec<OpenUpload> {
        let uploads = self.registry.all();
        let mut all: Vec<_> = uploads
            .iter()
            .map(|upload| (Progress::of(upload), upload))
            .collect();
        all.sort_unstable_by_key(|(progress, _)| Reverse(progress.reserved));
        all.truncate(count);
        let shown = all.into_iter().map(|(progress, upload)| OpenUpload {
            key: upload
                .key()
                .map_or_else(String::new, |key| (**key).to_owned()),
            progress,
            idle: upload.idle(),
        });
        shown.collect()
    }

    /// How many uploads [may be open](Self::max_open) at once.
    pub(crate) fn limit(&self) -> usize {
        self.most
    }

    /// Ends an upload whose content the service has removed by itself. Nothing is charged, except for requests that
    /// are in flight and succeed nevertheless. False if it is not open.
    pub fn release(&self, path: &str) -> bool {
        let upload = self.registry.remove(&self.key(path));
        upload.is_some_and(|upload| {
            upload.remove();
            true
        })
    }

    /// Returns the role of a request in an upload.
    fn step(&self, head: &request::Parts) -> Option<FoundStep> {
        let mut protocols = self.protocols.iter();
        let (mut step, protocol) =
            protocols.find_map(|protocol| Some((protocol.step(head)?, protocol)))?;
        if step.is_abort() {
            // With another query it may be about another resource.
            step.key = self.key(&step.key).into();
        } else if !step.is_begin() {
            step.key = self.key_of_request(&step.key).into();
        }
        let is_long = |name: &str| name.len() > LONGEST;
        if !step.is_begin() && is_long(&step.key) || step.part.as_deref().is_some_and(is_long) {
            step = Step::malformed();
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

    /// Most services ignore the query, so a client may add one.
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

impl<Q, P> StorageGuardLayer<Q, P> {
    /// Reserves the whole of an upload at its first request, for uploads of several requests. See [`Uploads`].
    ///
    /// By default, each request is reserved by itself.
    pub fn uploads(self, uploads: &Uploads) -> Self {
        self.set(|settings| settings.steps = Some(Arc::new(uploads.clone())))
    }
}

/// tus 1.0, and the IETF's resumable uploads.
impl Default for Uploads {
    fn default() -> Self {
        Self::new(Resumable::new())
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads")
            .field("open", &self.len())
            .field("protocols", &self.protocols.len())
            .field("expire_after", &self.expiry.idle)
            .finish_non_exhaustive()
    }
}

/// The state of an upload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Its total length in bytes. None if no request has announced it yet.
    pub whole: Option<u64>,
    /// Bytes that are reserved for it, including those that were received.
    pub reserved: u64,
    /// Bytes that were received.
    pub received: u64,
}

impl Progress {
    fn of(upload: &Upload) -> Self {
        Self {
            whole: upload.whole(),
            reserved: upload.reserved(),
            received: upload.received(),
        }
    }
}

/// An open upload, as [`Uploads::largest`] lists it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct OpenUpload {
    /// Its [key](Uploads::key_by): the path of its requests by default.
    pub key: String,
    /// Its state.
    pub progress: Progress,
    /// The time since the last byte came, or it was opened.
    pub idle: Duration,
}
