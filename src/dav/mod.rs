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
//! | PROPPATCH | its body, if that is [stored](WebDav::stores_body_when) | the target |
//! | LOCK | on an unmapped URL one object, otherwise nothing | the target |
//! | DELETE | nothing, and is never refused for want of room | given back to the target |
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

mod asked;
mod credit;
mod measures;
mod path;

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, request};

use self::{asked::Asked, credit::Credits, measures::Measures, path::Prefix};
pub use crate::{
    collection::{CollectionHold, CollectionQuota, CollectionQuotaBuilder, DavQuota},
    tree::{Depth, Folder, Tree, Walk},
};
use crate::{
    demand::Demand,
    head::{is_overridden, is_write},
    layer::StorageGuardLayer,
    price::Price,
    quota::QuotaSource,
    refusal::{self, Dav, Dialect, Refusal},
    reservation::StartHook,
    scope::Scopes,
    settings::PriceBy,
    setup::{ByDav, Unscoped},
    time::within,
};

/// Prices WebDAV requests. Pass it to [`StorageGuardLayer::webdav`](crate::StorageGuardLayer::webdav).
#[derive(Clone)]
pub struct WebDav {
    tree: Arc<Measures>,
    scopes: Option<Arc<ScopeBy>>,
    /// Those of the layer's quota.
    collections: Option<CollectionQuota>,
    credits: Arc<Credits>,
    prefix: Prefix,
    stores_body: Arc<StoresBody>,
    overwrites_in_place: bool,
    timeout: Duration,
}

type StoresBody = dyn Fn(&request::Parts) -> bool + Send + Sync;
type ScopeBy = dyn Fn(&request::Parts, &Path) -> Scopes + Send + Sync;

impl WebDav {
    /// Creates a pricing by the contents of `tree`.
    pub fn new(tree: impl Tree) -> Self {
        Self {
            tree: Measures::new(tree),
            scopes: None,
            collections: None,
            credits: Arc::default(),
            prefix: Prefix::default(),
            stores_body: Arc::new(|head| head.method.as_str() != "LOCK"),
            overwrites_in_place: false,
            timeout: Duration::from_secs(5),
        }
    }

    /// Sets the scopes that a path is charged to, such as the owner of the resource.
    ///
    /// The function is called for the target, and for COPY and MOVE also for the destination. Paths are relative to
    /// the root of the tree, and decoded. If the layer's quota is a [`CollectionQuota`], the collections that a path is
    /// in are charged too.
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

    /// Sets the path prefix of the tree in URLs, such as `/dav`. Other paths are priced by their heads, and charged to no
    /// scope.
    ///
    /// Defaults to nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> Self {
        self.prefix = Prefix::new(prefix.as_ref());
        self
    }

    /// Sets which requests have a body that is stored, of those that do not write content. The others cost what they make, and
    /// the length of their body does not count. The content of PUT and PATCH is always stored.
    ///
    /// Use `|_| false` if the service keeps no properties. A client that sets some beside an empty file then does not
    /// fail in a full collection.
    ///
    /// Defaults to all but LOCK, whose body describes a lock.
    #[must_use]
    pub fn stores_body_when<F>(mut self, stores: F) -> Self
    where
        F: Fn(&request::Parts) -> bool + Send + Sync + 'static,
    {
        self.stores_body = Arc::new(stores);
        self
    }

    /// Says that the service overwrites files in place. A PUT truncates the file and writes it, and a PATCH or a PUT
    /// with `Content-Range` writes into it. Then the blocks that a file has need not be free once more.
    ///
    /// A service that writes a new file and renames it must not say so. See [`Demand::in_place`] for the filesystems on which it
    /// matters.
    ///
    /// Defaults to new files.
    #[must_use]
    pub fn overwrites_in_place(mut self) -> Self {
        self.overwrites_in_place = true;
        self
    }

    /// Sets the timeout for measuring the tree. If it takes longer, the request's cost is unknown, and the request is
    /// answered 503. A DELETE is admitted all the same.
    ///
    /// At most four measurements are under way at once, of which one has not read anything yet: where a filesystem hangs, it
    /// costs one thread. Requests that wait for one path share one, and one that no request waits for is
    /// [stopped](Walk::counts). While the volume's probe hangs, a measurement that takes longer than the
    /// [patience](StorageGuardLayer::patience) is not waited for.
    ///
    /// Defaults to five seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Charges the collections that a path is in too, if `quota` is a [`CollectionQuota`], by itself or in an
    /// [`AnyQuota`](crate::quota::AnyQuota). [`webdav`](StorageGuardLayer::webdav) does that with the quota of its layer.
    #[must_use]
    pub fn collections_of<Q: QuotaSource>(mut self, quota: &Q) -> Self {
        self.collections = CollectionQuota::within(quota).cloned();
        self
    }

    /// Returns whether a request is priced. It is if its method writes or removes.
    ///
    /// With [`price`](Self::price), this is [`webdav`](StorageGuardLayer::webdav) for a service that has other requests too:
    ///
    /// ```
    /// use tower_storage_guard::{
    ///     Demand, Price, Scopes, StorageGuardLayer, Volume,
    ///     dav::{Folder, WebDav},
    ///     refusal::Dav,
    /// };
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let root = tempfile::tempdir()?;
    /// # let root = root.path();
    /// let dav = WebDav::new(Folder::new(root)).prefix("/dav");
    /// let guard = StorageGuardLayer::new(Volume::open(root)?)
    ///     .dialect(Dav::default())
    ///     // A report only reads, although it is a POST.
    ///     .applies_when(|head| WebDav::applies(head) && head.uri.path() != "/report")
    ///     .price_by_async(move |head, demand| dav.price(head, demand));
    /// # Ok(())
    /// # }
    /// ```
    pub fn applies(head: &request::Parts) -> bool {
        let method = &head.method;
        is_write(method) || *method == Method::DELETE || is_overridden(&head.headers)
    }

    /// Returns what a request costs, for [`price_by_async`](StorageGuardLayer::price_by_async): its [`Demand`], the scopes that it
    /// is charged to, and what it gives back. The demand that its head declares is the price of a path that is not in the tree.
    ///
    /// Give each layer a `WebDav` of its own, and its clones to nothing else. Content that several requests remove at
    /// once is credited once among those that share a `WebDav`.
    pub fn price(
        &self,
        head: &request::Parts,
        demand: Demand,
    ) -> impl Future<Output = Price> + Send + use<> {
        let asked = Asked::of(self, head, demand);
        let (tree, credits, timeout) = (
            Arc::clone(&self.tree),
            Arc::clone(&self.credits),
            self.timeout,
        );
        let collections = self.collections.clone();
        async move {
            let asked = match asked {
                Ok(Some(asked)) => asked,
                // Not a path of the tree: another service answers it.
                Ok(None) => return demand.into(),
                Err(_) => return Price::malformed(),
            };
            let (is_removal, touched) = (asked.is_removal(), asked.touched());
            let priced = within(timeout, asked.price(&tree, &credits, demand)).await;
            let (price, credits, removes) = match priced {
                Some(Ok(priced)) => (priced.price, priced.credits, Some(priced.removes)),
                _ if is_removal => (Price::free(), Vec::new(), None),
                Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Price::malformed();
                }
                _ => return Price::unavailable(),
            };
            let credits = Arc::new(credits);
            let charged = price.scopes.clone().unwrap_or(Scopes::NONE);
            price.on_start(StartHook::new(move || {
                let places = touched.iter().map(|(path, after)| (&**path, *after));
                let places: Vec<_> = places.collect();
                let visit = collections.as_ref();
                let visit = visit.map(|quota| quota.enter(&places, removes, &charged));
                let credits = Arc::clone(&credits);
                Box::new(move |outcome| {
                    if let Some(visit) = visit {
                        visit.end(outcome.success);
                    }
                    drop(credits);
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

impl<Q: QuotaSource> StorageGuardLayer<Q, Unscoped> {
    /// Prices and charges WebDAV requests, instead of [`Self::price_by`] and [`Self::scope_by`]. All methods that write
    /// are then guarded, and DELETE, which is never refused for want of room and gives back the content that it
    /// removes.
    ///
    /// Set the quota before: if it is a [`CollectionQuota`], by itself or in an [`AnyQuota`](crate::quota::AnyQuota), paths
    /// are charged to the collections that they are in.
    ///
    /// A request is answered 400 if its path, `Destination`, `Depth`, `Overwrite`, `Content-Range` or `X-Update-Range`
    /// is malformed, or if one of these headers is there twice. The service may read such a request differently. Paths
    /// with an encoded slash are among these, and a COPY or MOVE into the tree from outside of it. So are a COPY, MOVE
    /// or DELETE with content, and paths that [the tree](Tree::measure) does not measure, such as a symbolic link of a
    /// [`Folder`](crate::dav::Folder).
    ///
    /// Refusals are answered in the dialect [`Dav`](crate::refusal::Dav), unless `Accept` names another format that has a greater
    /// weight than XML. A [`dialect`](Self::dialect) of your own that hears the request comes first.
    ///
    /// Content that several requests remove or replace at once is credited once among those of one layer and its
    /// clones. If two layers charge one quota, requests to both at once may be credited twice.
    pub fn webdav(self, mut dav: WebDav) -> StorageGuardLayer<Q, ByDav> {
        // Of a layer inside of another, both see the same request.
        dav.credits = Arc::default();
        dav.collections = CollectionQuota::within(&self.guard().context.quota).cloned();
        let dialect = TreeDialect(dav.prefix.clone());
        self.set_answers(|answers| answers.set_last_dialect(dialect))
            .applies_when(WebDav::applies)
            .set_price(PriceBy::Later(Arc::new(move |head, demand| {
                Box::pin(dav.price(head, demand))
            })))
            .set_up()
    }
}

/// The dialect of requests to a tree. Other requests are heard as by [`Dav`].
struct TreeDialect(Prefix);

impl Dialect for TreeDialect {
    fn hears(&self, head: &request::Parts) -> bool {
        if self.0.is_plainly_outside(head.uri.path()) {
            return Dav::default().hears(head);
        }
        Dav::is_default_for(head)
    }

    fn render(&self, refusal: &Refusal, asked: &refusal::Asked) -> Response<Bytes> {
        Dav::default().render(refusal, asked)
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
