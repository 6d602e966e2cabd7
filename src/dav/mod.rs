//! WebDAV (RFC 4918): what requests cost, and which scopes are charged.
//!
//! A guard around any WebDAV service prices every verb that writes, without the service knowing:
//!
//! | request | costs | charged to |
//! |---|---|---|
//! | PUT | the largest length it announces, less what it replaces | the target |
//! | MKCOL, MKCALENDAR | one object | the target |
//! | COPY | what is under the source, to its Depth, less what it overwrites | the destination |
//! | MOVE | inside one scope nothing; between scopes what is under the source | the destination; given back to the source |
//! | PROPPATCH | its body | the target |
//! | LOCK | on an unmapped URL its body and one object, otherwise nothing | the target |
//! | DELETE | nothing, and is never refused | given back to the target |
//!
//! The sizes come from a [`Tree`]: [`Folder`] is a tree of files. Directories may have limits, see
//! [`CollectionQuota`], which also computes the quota properties for PROPFIND.
//!
//! ```
//! use tower_storage_guard::{
//!     Scopes, StorageGuardLayer, Volume,
//!     dav::{WebDav, Folder},
//!     quota::{Limits, MemoryQuota},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let root = tempfile::tempdir()?;
//! # let root = root.path();
//! let dav = WebDav::new(Folder::new(root)).scope_by(|_head, path| {
//!     // The owner of what is written is charged, not the caller.
//!     match path.iter().next() {
//!         Some(owner) => format!("user:{}", owner.display()).into(),
//!         None => Scopes::NONE,
//!     }
//! });
//! let guard = StorageGuardLayer::new(Volume::open(root)?)
//!     .quota(MemoryQuota::new(Limits::bytes(1 << 30)))
//!     .webdav(dav);
//! # Ok(())
//! # }
//! ```

mod path;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderMap, Method,
    header::{CONTENT_RANGE, HeaderName},
    request,
};
use tokio::runtime::Handle;

use crate::{
    amount::Amount, collection::After, demand::Demand, head::is_write, layer::StorageGuardLayer,
    price::Price, reservation::StartHook, scope::Scopes, time::within,
};
pub use crate::{
    collection::{CollectionHold, CollectionQuota, CollectionQuotaBuilder, DavQuota},
    tree::{Depth, Folder, Tree},
};

const DEPTH: HeaderName = HeaderName::from_static("depth");
const DESTINATION: HeaderName = HeaderName::from_static("destination");
const OVERWRITE: HeaderName = HeaderName::from_static("overwrite");

/// Prices WebDAV requests. Given to [`StorageGuardLayer::webdav`](crate::StorageGuardLayer::webdav).
#[derive(Clone)]
pub struct WebDav {
    tree: Arc<dyn Tree>,
    scopes: Option<Arc<ScopeBy>>,
    collections: Option<CollectionQuota>,
    prefix: Arc<str>,
    timeout: Duration,
}

type ScopeBy = dyn Fn(&request::Parts, &Path) -> Scopes + Send + Sync;

impl WebDav {
    /// Prices by the contents of `tree`.
    pub fn new(tree: impl Tree) -> Self {
        Self {
            tree: Arc::new(tree),
            scopes: None,
            collections: None,
            prefix: "".into(),
            timeout: Duration::from_secs(5),
        }
    }

    /// Sets the scopes that a path is charged to, such as the owner of the resource.
    ///
    /// The function is called for the target, and for COPY and MOVE also for the destination. Paths are relative to
    /// the root of the tree, and decoded.
    ///
    /// Defaults to no scopes.
    #[must_use]
    pub fn scope_by<F, T>(mut self, scopes: F) -> Self
    where
        F: Fn(&request::Parts, &Path) -> T + Send + Sync + 'static,
        T: Into<Scopes>,
    {
        self.scopes = Some(Arc::new(move |head, path| scopes(head, path).into()));
        self
    }

    /// Sets the collections that have limits. A path is charged to those that it is in, in addition to the scopes of
    /// [`Self::scope_by`]. The layer's quota has to be a clone of `collections`, over the same tree.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn collections(mut self, collections: &CollectionQuota) -> Self {
        self.collections = Some(collections.clone());
        self
    }

    /// Sets the path prefix of the tree in URLs, such as `/dav`.
    ///
    /// Defaults to nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the timeout for measuring the tree. If it takes longer, the request's cost is unknown, and the request is
    /// answered 503. A DELETE is admitted all the same.
    ///
    /// Defaults to five seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether a request is priced: methods that write, and methods that remove.
    fn applies(method: &Method) -> bool {
        is_write(method) || *method == Method::DELETE
    }

    /// What a request costs.
    fn price(
        &self,
        head: &request::Parts,
        demand: Demand,
    ) -> impl Future<Output = Price> + Send + use<> {
        let asked = Asked::of(self, head);
        let (tree, timeout) = (Arc::clone(&self.tree), self.timeout);
        let collections = self.collections.clone();
        async move {
            let Some(asked) = asked else {
                // Not a path of the tree: the service answers it.
                return demand.into();
            };
            let is_removal = asked.verb == Verb::Delete;
            let touched = asked.touched();
            // Measuring blocks. Outside of a runtime nothing is measured.
            let measured = async {
                let runtime = Handle::try_current().map_err(io::Error::other)?;
                let price = move || asked.price(&*tree, demand);
                runtime.spawn_blocking(price).await?
            };
            let (price, is_uncounted) = match within(timeout, measured).await {
                Some(Ok(price)) => (price, false),
                _ if is_removal => (Price::free(), true),
                _ => return Price::unavailable(),
            };
            price.on_start(collections.map(|collections| {
                StartHook::new(move || {
                    let places = touched.iter().map(|(path, after)| (&**path, *after));
                    let visit = collections.enter(&places.collect::<Vec<_>>(), is_uncounted);
                    Box::new(move |outcome| visit.end(outcome.success))
                })
            }))
        }
    }

    fn scopes(&self, head: &request::Parts, path: &Path) -> Scopes {
        let scopes = match &self.scopes {
            Some(scopes) => scopes(head, path),
            None => Scopes::NONE,
        };
        let Some(collections) = &self.collections else {
            return scopes;
        };
        let collections = collections.scopes(path);
        collections.iter().chain(&scopes).cloned().collect()
    }
}

impl<Q> StorageGuardLayer<Q> {
    /// Prices WebDAV requests, instead of [`Self::price_by`] and [`Self::scope_by`]. All methods that write are then
    /// guarded, and DELETE, which is never refused and gives back what it removes.
    pub fn webdav(self, dav: WebDav) -> Self {
        self.applies_when(|head| WebDav::applies(&head.method))
            .price_by_async(move |head, demand| dav.price(head, demand))
    }
}

impl fmt::Debug for WebDav {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebDav")
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What a request does, as far as its price depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verb {
    /// Replaces the target: PUT.
    Put,
    Copy(Depth),
    Move,
    Delete,
    Lock,
    /// Costs what its head declares: MKCOL, PROPPATCH and others.
    Other,
}

/// A path, and the scopes that it is charged to.
struct Place {
    path: PathBuf,
    scopes: Scopes,
}

/// The parts of a request that its price depends on.
struct Asked {
    verb: Verb,
    target: Place,
    destination: Option<Place>,
    overwrites: bool,
}

impl Asked {
    fn of(dav: &WebDav, head: &request::Parts) -> Option<Self> {
        let place = |path: &str| {
            let path = path::of(path, &dav.prefix)?;
            let scopes = dav.scopes(head, &path);
            Some(Place { path, scopes })
        };
        let verb = match head.method.as_str() {
            // A part of a file replaces an unknown range.
            "PUT" if head.headers.contains_key(CONTENT_RANGE) => Verb::Other,
            "PUT" => Verb::Put,
            "COPY" => Verb::Copy(depth(&head.headers)),
            "MOVE" => Verb::Move,
            "DELETE" => Verb::Delete,
            "LOCK" => Verb::Lock,
            _ => Verb::Other,
        };
        let destination = head.headers.get(DESTINATION);
        let destination = destination.and_then(|value| path::in_header(value.as_bytes()));
        Some(Self {
            verb,
            target: place(head.uri.path())?,
            destination: destination.as_deref().and_then(place),
            // RFC 4918, section 10.6: T is the default.
            overwrites: head
                .headers
                .get(OVERWRITE)
                .is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"F")),
        })
    }

    /// The paths that the request writes to, and how it affects limited collections under them, which the price does
    /// not include.
    fn touched(&self) -> Vec<(PathBuf, After)> {
        let (at_target, at_destination) = match self.verb {
            Verb::Put | Verb::Lock | Verb::Other => (After::Nothing, After::Nothing),
            Verb::Delete => (After::Rescan, After::Nothing),
            Verb::Copy(_) => (After::Nothing, After::Forget),
            Verb::Move => (After::Rescan, After::Forget),
        };
        let mut touched = vec![(self.target.path.clone(), at_target)];
        // A COPY only reads its target.
        if let Verb::Copy(_) = self.verb {
            touched.clear();
        }
        if let Verb::Copy(_) | Verb::Move = self.verb
            && let Some(to) = &self.destination
        {
            touched.push((to.path.clone(), at_destination));
        }
        touched
    }

    /// Blocks.
    fn price(self, tree: &dyn Tree, demand: Demand) -> io::Result<Price> {
        let Place { path, scopes } = self.target;
        let whole = |path: &Path| tree.measure(path, Depth::Infinity);
        let (depth, moves) = match self.verb {
            Verb::Other => return Ok(Price::from(demand).charged_to(scopes)),
            Verb::Put => {
                let replaced = whole(&path)?.unwrap_or(Amount::ZERO);
                return Ok(Price::from(demand.replacing(replaced)).charged_to(scopes));
            }
            // Clients lock before they overwrite. This has to succeed on a full volume.
            Verb::Lock if tree.measure(&path, Depth::Zero)?.is_some() => return Ok(Price::free()),
            Verb::Lock => {
                // RFC 4918, section 9.10.4: it makes an empty resource.
                return Ok(Price::from(demand.with_objects(1)).charged_to(scopes));
            }
            Verb::Delete => {
                let removed = whole(&path)?.unwrap_or(Amount::ZERO);
                return Ok(Price::free().giving_back(scopes, removed));
            }
            Verb::Copy(depth) => (depth, false),
            Verb::Move => (Depth::Infinity, true),
        };
        // The declared length is ignored. Nextcloud's MOVE that ends an upload announces its length.
        let (Some(to), Some(source)) = (self.destination, tree.measure(&path, depth)?) else {
            // The service will refuse it for another reason.
            return Ok(Price::free());
        };
        let replaced = match whole(&to.path)? {
            // The service answers 412 and writes nothing.
            Some(_) if !self.overwrites => return Ok(Price::free()),
            replaced => replaced.unwrap_or(Amount::ZERO),
        };
        if !moves {
            let demand = Demand::nothing().copying(source).replacing(replaced);
            return Ok(Price::from(demand).charged_to(to.scopes));
        }
        let both = to.scopes.both(&scopes);
        let (old, new) = (scopes.without(&to.scopes), to.scopes.without(&scopes));
        if new.is_empty() {
            let price = Price::free().giving_back(both, replaced);
            return Ok(price.giving_back(old, source));
        }
        let demand = Demand::nothing().moving(source).replacing(replaced);
        Ok(Price::from(demand)
            .charged_to(new)
            .giving_back(both, replaced)
            .giving_back(old, source))
    }
}

/// RFC 4918, section 9.8.3: infinity is the default.
fn depth(headers: &HeaderMap) -> Depth {
    match headers.get(DEPTH) {
        Some(depth) if depth.as_bytes().trim_ascii() == b"0" => Depth::Zero,
        _ => Depth::Infinity,
    }
}
