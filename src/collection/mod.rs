//! Limits on directories.

mod builder;
mod dav_quota;
mod scan;
mod state;

use std::{
    any::Any,
    fmt,
    future::{Ready, ready},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

pub(crate) use self::state::After;
use self::state::{State, Stay, Thread};
pub use self::{builder::CollectionQuotaBuilder, dav_quota::DavQuota};
use crate::{
    amount::Amount,
    config::ConfigError,
    quota::{
        Answer, AnyQuota, Change, Limits, MemoryHold, MemoryQuota, OverSoftLimit, QuotaError,
        QuotaHold, QuotaSource, SoftLimitHook, Usage,
    },
    scope::{Scope, Scopes},
    tree::Tree,
};

/// Limits on directories: on the bytes of files in them, and on the number of objects.
///
/// A collection is a directory of a [`Tree`] that has a limit. Collections may be nested: a file is charged to every
/// collection that it is in, and has to fit into each. A request that does not fit is refused with
/// `collection_limit_reached`.
///
/// It is a handle: clones share everything. Give one to the layer, and
/// [`StorageGuardLayer::webdav`](crate::StorageGuardLayer::webdav) charges the paths of requests to it:
///
/// ```
/// use tower_storage_guard::{
///     StorageGuardLayer, Volume,
///     dav::{CollectionQuota, WebDav, Folder},
///     quota::Limits,
/// };
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let root = tempfile::tempdir()?;
/// # let root = root.path();
/// let tree = Folder::new(root);
/// let collections = CollectionQuota::builder(tree.clone())
///     .limit("photos", Limits::bytes(5 << 30))?
///     .limit("photos/2024", Limits::bytes(1 << 30).objects(1_000))?
///     .build();
/// // Other scopes have limits too.
/// collections.quota().set_limits("user:42", Limits::bytes(1 << 30));
///
/// let guard = StorageGuardLayer::new(Volume::open(root)?)
///     .quota(collections.clone())
///     .webdav(WebDav::new(tree).scope_by(|_, _| "user:42"));
/// # Ok(())
/// # }
/// ```
///
/// # What counts
///
/// [`Tree::measure`] finds the usage: bytes of files, and objects, which are files and collections. A collection is an
/// object itself, so one that is limited to ten objects has room for nine more. Paths are compared byte by byte. If the
/// filesystem treats `Photos` and `photos` as one directory, requests by the other name are only counted by the next
/// scan.
///
/// # How usage is known
///
/// The first scan of a collection begins when it gets its limit, on a thread of its own. Until the scan has ended its
/// usage is unknown: requests wait for it, bounded by the layer's
/// [`quota_timeout`](crate::StorageGuardLayer::quota_timeout), and are then answered as
/// [`quota_outage`](crate::StorageGuardLayer::quota_outage) says. If the tree cannot be read, they are answered so at
/// once, and the scan is retried after a pause.
///
/// From then on, each request is counted as it settles. Changes that bypass the server are found by a
/// [rescan](Self::rescan), which also runs [on a schedule](CollectionQuotaBuilder::rescan_every).
///
/// A scan is exact if no request was in flight in its collection while it ran, and it waits a second for that.
/// Otherwise it may have seen half an upload, or missed a file that was moved meanwhile. It then only bounds the
/// figure. The two bounds differ by the amounts that were in flight or settled while it ran, and the figure stays if it
/// is between them. The scan is retried after a pause that grows and is at least four times as long as the scan took.
/// The figure may be too high until then, by what requests in flight have written, but not too low.
///
/// A request that fails may have left something: the collections that it writes to are scanned.
///
/// There are two exceptions. The first scan is accepted as it is at its third try, because deletes are never refused,
/// and must not keep a collection out of service. And a COPY or MOVE may bring along a limited collection under the
/// path that it writes to. The usage of that collection is then unknown until it is scanned, and the request is not
/// held to its limit.
///
/// # What it cannot count
///
/// If a handler goes on writing after its request has ended, the guard does not see it until the next scan. With your
/// own pricing ([`Price::giving_back`](crate::Price::giving_back)) instead of [`WebDav`](crate::dav::WebDav), a scan does
/// not know of deletes and overwrites that are in flight.
#[derive(Clone)]
pub struct CollectionQuota {
    owner: Arc<Owner>,
}

impl CollectionQuota {
    /// Creates a handle for collections of `tree`, none of which has a limit yet.
    pub fn new(tree: impl Tree) -> Self {
        Self::builder(tree).build()
    }

    /// Creates a builder that sets limits on collections of `tree` before the first scan.
    pub fn builder(tree: impl Tree) -> CollectionQuotaBuilder {
        CollectionQuotaBuilder::new(tree)
    }

    fn start(builder: CollectionQuotaBuilder) -> Self {
        let CollectionQuotaBuilder {
            tree,
            collections,
            every,
            is_disclosed,
        } = builder;
        let quota = Self {
            owner: Arc::new(Owner(Arc::new(Shared {
                tree,
                quota: MemoryQuota::new(Limits::UNLIMITED),
                state: Mutex::new(State::new(every, is_disclosed)),
                changed: Condvar::new(),
                scanned: Notify::new(),
            }))),
        };
        for (path, scope, limits) in collections {
            quota.add(path, scope, limits);
        }
        quota
    }

    /// Limits the collection at `path`, as [`CollectionQuotaBuilder::limit`] does, for all clones. If the collection is
    /// known already, this changes its limits only. Amounts that are held already stay held.
    ///
    /// Requests in flight when a collection is added are charged to it by the next scan.
    ///
    /// # Errors
    ///
    /// When the path leads out of the tree, or is not UTF-8.
    pub fn set_limits(&self, path: impl AsRef<Path>, limits: Limits) -> Result<(), ConfigError> {
        let (path, scope) = state::named(path.as_ref())?;
        self.add(path, scope, limits);
        Ok(())
    }

    fn add(&self, path: PathBuf, scope: Scope, limits: Limits) {
        let shared = self.shared();
        let mut state = shared.lock();
        shared.quota.set_limits(&scope, limits);
        state.add(path, scope);
        // If no thread can be started now, the next request that needs it tries again.
        let _ = shared.start(&mut state);
        drop(state);
        shared.changed.notify_all();
    }

    /// Rescans every collection. Resolves when all scans that began after this call have ended, with exact figures.
    ///
    /// A collection without requests in flight is scanned at once. In others a scan corrects the figure up to the
    /// amounts in flight, and the exact scan comes when the requests have ended, if ever. So bound the wait with a
    /// timeout. The scans run whether or not the future is polled.
    ///
    /// ```
    /// use tower_storage_guard::{Amount, dav::{CollectionQuota, Folder}, quota::Limits};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let root = tempfile::tempdir()?;
    /// # let root = root.path();
    /// let collections = CollectionQuota::builder(Folder::new(root)).limit("", Limits::bytes(100))?.build();
    /// std::fs::write(root.join("by hand"), "seven b")?;
    ///
    /// collections.rescan().await?;
    /// // The folder itself is an object too.
    /// assert_eq!(collections.usage("").unwrap().used, Amount::new(7, 2));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the tree cannot be read, or no thread can be started. The scan is retried after a pause.
    pub fn rescan(&self) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let shared = self.shared();
        let mut state = shared.lock();
        let ticket = state.ask();
        let started = shared.start(&mut state);
        drop(state);
        shared.changed.notify_all();
        let quota = self.clone();
        async move {
            started?;
            quota
                .once_known(|shared| shared.lock().answer(ticket))
                .await
        }
    }

    /// Returns the scopes of the collections that `path` is in, the nearest first. `path` itself is one of them if it
    /// has a limit.
    ///
    /// [`StorageGuardLayer::webdav`](crate::StorageGuardLayer::webdav) charges these.
    pub fn scopes(&self, path: impl AsRef<Path>) -> Scopes {
        self.shared().lock().scopes(path.as_ref())
    }

    /// Returns the limits and usage of the collection at `path`. None if it has no limit, or was not scanned yet.
    pub fn usage(&self, path: impl AsRef<Path>) -> Option<Usage> {
        let (path, scope) = state::named(path.as_ref()).ok()?;
        let is_known = self.shared().lock().is_known(&path);
        is_known.then(|| self.shared().quota.usage(scope))
    }

    /// Returns the limits and usage of all scopes. Scopes that are not collections have no limits until they are set.
    pub fn quota(&self) -> &MemoryQuota {
        &self.shared().quota
    }

    /// The collections that a quota source is, or contains.
    pub(crate) fn within(source: &dyn Any) -> Option<&Self> {
        if let Some(any) = source.downcast_ref::<AnyQuota>() {
            return Self::within(any.source());
        }
        if let Some(any) = source.downcast_ref::<Arc<AnyQuota>>() {
            return Self::within(any.source());
        }
        let shared = source.downcast_ref::<Arc<Self>>();
        shared.map(|shared| &**shared).or(source.downcast_ref())
    }

    /// Registers a request in flight that writes to `paths`, and removes, moves or replaces so much there. None if that is
    /// unknown. It has a hold in the scopes that are `charged`.
    pub(crate) fn enter(
        &self,
        paths: &[(&Path, After)],
        removes: Option<Amount>,
        charged: &Scopes,
    ) -> Visit {
        let shared = self.shared();
        let mut state = shared.lock();
        let places = state.touched(paths, removes.is_none(), charged);
        // So that usage and all that is in flight can be added to it.
        let removes = removes.unwrap_or(Amount::new(1 << 50, 1 << 50));
        state.enter(&places, removes);
        Visit {
            shared: Arc::clone(shared),
            places,
            removes,
            has_succeeded: false,
        }
    }

    /// Returns what `answer` returns, and calls it again after each scan. The handle keeps the scanning thread alive
    /// meanwhile.
    async fn once_known<T>(self, answer: impl Fn(&Arc<Shared>) -> Option<T>) -> T {
        let shared = self.shared();
        loop {
            // Subscribe before the question, so that no scan in between is missed.
            let scanned = shared.scanned.notified();
            if let Some(answer) = answer(shared) {
                return answer;
            }
            scanned.await;
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }
}

impl fmt::Debug for CollectionQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared().lock();
        f.debug_struct("CollectionQuota")
            .field("collections", &state.paths())
            .field("rescan_every", &state.every)
            .finish_non_exhaustive()
    }
}

impl QuotaSource for CollectionQuota {
    /// Pending while a collection has not been scanned yet.
    type Future = Pin<Box<dyn Future<Output = Result<CollectionHold, QuotaError>> + Send>>;
    type Hold = CollectionHold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        if let Some(decided) = self.shared().take(scopes, demand, expected) {
            return Answer::Now(decided);
        }
        let (quota, scopes) = (self.clone(), scopes.clone());
        Answer::Later(Box::pin(async move {
            quota
                .once_known(|shared| shared.take(&scopes, demand, expected))
                .await
        }))
    }

    fn charge(&self, scopes: &Scopes, change: Change) {
        let shared = self.shared();
        // Under the lock: no scan is adopted between this note and the change.
        let mut state = shared.lock();
        let is_due = state.note_charge_without_hold(scopes, change);
        let over = shared.quota.charge_quietly(scopes, change);
        drop(state);
        shared.quota.tell(over);
        if is_due {
            shared.changed.notify_all();
        }
    }

    fn over_soft_limits(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        self.shared().quota.over_soft_limits(scopes)
    }

    fn usage_now(&self, scopes: &Scopes) -> Vec<(Scope, Usage)> {
        self.shared().quota.usage_now(scopes)
    }

    fn on_soft_limit(&self, hook: SoftLimitHook) {
        self.shared().quota.on_soft_limit(hook);
    }
}

/// The hold of a [`CollectionQuota`] for one request.
pub struct CollectionHold {
    // Dropped before the visit ends, so that no scan is adopted in between.
    hold: MemoryHold,
    visit: Visit,
}

impl QuotaHold for CollectionHold {
    type Commit = Ready<()>;
    type Grow = Ready<Result<(), QuotaError>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let mut state = self.visit.shared.lock();
        ready(match self.hold.grow(more).into_inner() {
            Ok(()) => {
                state.note_reserved(&self.visit.places, more);
                Ok(())
            }
            Err(error) => Err(state.named(error)),
        })
    }

    fn shrink_to(&mut self, to: Amount) {
        // A scan that has begun goes on to see it as in flight.
        self.hold.shrink_to(to);
    }

    fn commit(self, change: Change) -> Answer<Self::Commit> {
        let Self { hold, visit } = self;
        // Under the lock: no scan is adopted between the note and the change.
        let mut state = visit.shared.lock();
        state.note_charge(&visit.places, change);
        let over = hold.commit_quietly(change);
        drop(state);
        visit.shared.quota.tell(over);
        drop(visit);
        Answer::Now(())
    }
}

impl fmt::Debug for CollectionHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.hold, f)
    }
}

/// A request in flight in some collections, until this is dropped.
pub(crate) struct Visit {
    shared: Arc<Shared>,
    places: Vec<Stay>,
    removes: Amount,
    has_succeeded: bool,
}

impl Visit {
    /// The request has ended.
    pub(crate) fn end(mut self, success: bool) {
        self.has_succeeded = success;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.places.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        let is_due = state.leave(&self.places, self.removes, self.has_succeeded);
        drop(state);
        if is_due {
            self.shared.changed.notify_all();
        }
    }
}

/// Stops the scanning when the last handle is dropped.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        // A thread that hangs in the tree sees this when it returns; the drop does not wait for it.
        self.0.lock().thread = Thread::Stops;
        self.0.changed.notify_all();
    }
}

/// State shared by handles, holds and the scanning thread.
struct Shared {
    tree: Box<dyn Tree>,
    quota: MemoryQuota,
    state: Mutex<State>,
    /// Wakes the scanning thread.
    changed: Condvar,
    /// Wakes requests that wait for a scan.
    scanned: Notify,
}

impl Shared {
    /// Reserves, or says why not. None while the usage is unknown.
    fn take(
        self: &Arc<Self>,
        scopes: &Scopes,
        demand: Amount,
        expected: Amount,
    ) -> Option<Result<CollectionHold, QuotaError>> {
        let mut state = self.lock();
        let places = state.places(scopes);
        // A demand of zero always fits, whatever is known.
        if !demand.max(expected).is_zero() {
            match state.are_known(&places) {
                Ok(true) => {}
                Ok(false) => {
                    return match self.start(&mut state) {
                        Ok(()) => None,
                        Err(error) => Some(Err(QuotaError::Unavailable(error.into()))),
                    };
                }
                Err(error) => return Some(Err(QuotaError::Unavailable(error.into()))),
            }
        }
        // Under the lock: an admitted request is in flight for a scan, and a refused one spoils none.
        let taken = self.quota.reserve(scopes, demand, expected).now();
        let taken = taken.expect("memory decides at once");
        Some(match taken {
            Ok(hold) => {
                state.enter(&places, Amount::ZERO);
                state.note_reserved(&places, demand);
                Ok(CollectionHold {
                    hold,
                    visit: Visit {
                        shared: Arc::clone(self),
                        places,
                        removes: Amount::ZERO,
                        has_succeeded: true,
                    },
                })
            }
            Err(error) => Err(state.named(error)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between any two statements: only this crate's code runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
