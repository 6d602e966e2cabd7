//! Limits on directories.

mod builder;
mod dav_quota;
mod scan;
mod state;

use std::{
    fmt,
    future::{Ready, ready},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

pub(crate) use self::state::After;
use self::state::{State, Thread};
pub use self::{builder::CollectionQuotaBuilder, dav_quota::DavQuota};
use crate::{
    amount::Amount,
    config::ConfigError,
    quota::{
        Answer, Change, Limits, MemoryHold, MemoryQuota, QuotaError, QuotaHold, QuotaSource, Usage,
    },
    scope::{Scope, Scopes},
    tree::Tree,
};

/// Limits on directories: of their bytes, and of the objects in them.
///
/// A collection is a directory of a [`Tree`] that has a limit. They may be nested: a file is charged to every
/// collection that it is in, and has to fit into each. What does not fit is refused as
/// `collection_limit_reached`.
///
/// A handle: clones share everything. Give one to the layer, and one to
/// [`WebDav::collections`](crate::dav::WebDav::collections):
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
/// // Other scopes have their limits beside.
/// collections.quota().set_limits("user:42", Limits::bytes(1 << 30));
///
/// let guard = StorageGuardLayer::new(Volume::open(root)?)
///     .quota(collections.clone())
///     .webdav(WebDav::new(tree).scope_by(|_, _| "user:42").collections(&collections));
/// # Ok(())
/// # }
/// ```
///
/// # What counts
///
/// What [`Tree::measure`] finds: bytes of files, and objects, which are files and collections. A collection is
/// an object in itself, so that one which is limited to ten objects has room for nine beside itself. Paths are
/// compared byte by byte: where the filesystem takes `Photos` for `photos`, what comes by that name is found
/// by the next scan only.
///
/// # How usage is known
///
/// The first scan of a collection is begun when it gets its limit, on a thread of its own. Until it has ended
/// it is not known what fits: requests wait for it, bounded by the layer's
/// [`quota_timeout`](crate::StorageGuardLayer::quota_timeout), and are then answered as its
/// [`quota_outage`](crate::StorageGuardLayer::quota_outage) says. Where the tree cannot be read, they are
/// answered so at once, and it is tried again after a while.
///
/// From then on, each request is counted as it settles. What came behind the server's back is found by a
/// [rescan](Self::rescan), which is also done [on a schedule](CollectionQuotaBuilder::rescan_every).
///
/// A scan counts only if no request was under way in its collection from its begin to its end. Else it may have
/// seen half an upload, or missed what was moved while it looked. It is then tried again, after a pause that
/// grows and is at least four times as long as the scan took; meanwhile the old figure stays, which is
/// exact for all that the guard has let in. A collection that is never at rest is never rescanned.
///
/// Two exceptions. The first scan is taken at its third try as it is: deletes are never refused, and must not keep
/// a collection out of service. And a COPY or MOVE that brings a limited collection along, under the
/// path that it writes to, makes its usage unknown until it is scanned, and is not held to its limit.
///
/// # What it cannot count
///
/// Two requests that write to one path at once are both priced by what was there before. A handler that goes
/// on writing after its request has ended is not seen. The next scan finds both. Charged by pricing of your
/// own ([`Price::giving_back`](crate::Price::giving_back)) instead of
/// [`WebDav`](crate::dav::WebDav), a scan does not know of deletes
/// that are under way.
#[derive(Clone)]
pub struct CollectionQuota {
    owner: Arc<Owner>,
}

impl CollectionQuota {
    /// Collections of `tree`, none of which has a limit yet.
    pub fn new(tree: impl Tree) -> Self {
        Self::builder(tree).build()
    }

    /// Collections of `tree`, with limits to begin with.
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

    /// Limits the collection at `path`, as [`CollectionQuotaBuilder::limit`] does, for all clones. Where it is known already,
    /// this changes the limits only. What is held already stays held.
    ///
    /// What is under way where there was no collection before is charged to it by the next scan.
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
        // Where no thread can be started now, the next request that needs a scan tries again.
        let _ = shared.start(&mut state);
        drop(state);
        shared.changed.notify_all();
    }

    /// Scans every collection again, from now on. Resolves when all have been, with figures that are exact.
    ///
    /// What is at rest is scanned at once; what is in use when it comes to rest, if ever. So bound how long
    /// you wait. It is scanned in any case.
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
    /// When the tree cannot be read, or no thread can be started. It is tried again after a while.
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

    /// The scopes of the collections that `path` is in, the nearest first. It is in itself, where it has a limit.
    ///
    /// [`WebDav::collections`](crate::dav::WebDav::collections) does this for WebDAV.
    pub fn scopes(&self, path: impl AsRef<Path>) -> Scopes {
        self.shared().lock().scopes(path.as_ref())
    }

    /// Where the collection at `path` stands now. None where it has no limit, or was not scanned yet.
    pub fn usage(&self, path: impl AsRef<Path>) -> Option<Usage> {
        let (path, scope) = state::named(path.as_ref()).ok()?;
        let is_known = self.shared().lock().is_known(&path);
        is_known.then(|| self.shared().quota.usage(scope))
    }

    /// The limits and the usage of all scopes. Those that are not collections have no limits until they are
    /// given some.
    pub fn quota(&self) -> &MemoryQuota {
        &self.shared().quota
    }

    /// Notes that a request is under way that writes to `paths`. Where it is `uncounted`, it is not known
    /// what it takes away.
    pub(crate) fn enter(&self, paths: &[(&Path, After)], uncounted: bool) -> Visit {
        let shared = self.shared();
        let mut state = shared.lock();
        let places = state.touched(paths, uncounted);
        state.enter(&places);
        Visit {
            shared: Arc::clone(shared),
            places,
            has_succeeded: false,
        }
    }

    /// What `answer` returns, asked again after each scan. The handle keeps the scanning thread alive meanwhile.
    async fn once_known<T>(self, answer: impl Fn(&Arc<Shared>) -> Option<T>) -> T {
        let shared = self.shared();
        loop {
            // Before the question, so that no scan is missed in between.
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
    /// Comes while a collection has not been scanned yet.
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

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        let shared = self.shared();
        // Under the lock: no scan is adopted between the note of it and the change.
        let mut state = shared.lock();
        state.note_change(scopes);
        shared.quota.give_back(scopes, amount);
    }
}

/// What a [`CollectionQuota`] has set aside for one request.
pub struct CollectionHold {
    // Dropped before the visit ends: a scan must not be adopted in between.
    hold: MemoryHold,
    visit: Visit,
}

impl QuotaHold for CollectionHold {
    type Commit = Ready<()>;
    type Grow = Ready<Result<(), QuotaError>>;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        let grown = self.hold.grow(more).into_inner();
        ready(grown.map_err(|error| self.visit.shared.lock().named(error)))
    }

    fn commit(self, change: Change) -> Self::Commit {
        let Self { hold, visit } = self;
        let committed = hold.commit(change);
        drop(visit);
        committed
    }
}

impl fmt::Debug for CollectionHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.hold, f)
    }
}

/// A request that is under way in some collections, until this is dropped.
pub(crate) struct Visit {
    shared: Arc<Shared>,
    places: Vec<(usize, After)>,
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
        let is_due = self.shared.lock().leave(&self.places, self.has_succeeded);
        if is_due {
            self.shared.changed.notify_all();
        }
    }
}

/// Stops the scanning with the last handle.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        // A thread that hangs in the tree sees this when it returns; the drop does not wait for it.
        self.0.lock().thread = Thread::Stops;
        self.0.changed.notify_all();
    }
}

/// What handles, holds and the scanning thread share.
struct Shared {
    tree: Box<dyn Tree>,
    quota: MemoryQuota,
    state: Mutex<State>,
    /// Wakes the scanning thread.
    changed: Condvar,
    /// Wakes those that wait for a scan.
    scanned: Notify,
}

impl Shared {
    /// Sets aside, or says why not. None while that is not known.
    fn take(
        self: &Arc<Self>,
        scopes: &Scopes,
        demand: Amount,
        expected: Amount,
    ) -> Option<Result<CollectionHold, QuotaError>> {
        let mut state = self.lock();
        let places = state.places(scopes);
        // Nothing at all always fits, whatever is known.
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
        // Under the lock: who is let in is under way for a scan, and who is refused spoils none.
        let taken = self.quota.reserve(scopes, demand, expected).now();
        let taken = taken.expect("memory decides at once");
        Some(match taken {
            Ok(hold) => {
                state.enter(&places);
                Ok(CollectionHold {
                    hold,
                    visit: Visit {
                        shared: Arc::clone(self),
                        places,
                        has_succeeded: true,
                    },
                })
            }
            Err(error) => Err(state.named(error)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements: only our own code runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
