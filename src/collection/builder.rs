use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{CollectionQuota, state};
use crate::{config::ConfigError, quota::Limits, scope::Scope, tree::Tree};

/// The default interval between scans of a collection.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// A builder that sets the limits of collections, and how they are scanned, before the first scan. It is made by
/// [`CollectionQuota::builder`].
#[must_use]
pub struct CollectionQuotaBuilder {
    pub(super) tree: Box<dyn Tree>,
    pub(super) collections: Vec<(PathBuf, Scope, Limits)>,
    pub(super) every: Duration,
    pub(super) is_disclosed: bool,
}

impl CollectionQuotaBuilder {
    pub(super) fn new(tree: impl Tree) -> Self {
        Self {
            tree: Box::new(tree),
            collections: Vec::new(),
            every: EVERY,
            is_disclosed: true,
        }
    }

    /// Limits the collection at `path`, relative to the root of the tree. An empty path is the root.
    ///
    /// Its scope is `collection:/` and the path. It need not exist yet. With [`Limits::UNLIMITED`] it is
    /// counted all the same.
    ///
    /// # Errors
    ///
    /// When the path leads out of the tree, or is not UTF-8.
    pub fn limit(mut self, path: impl AsRef<Path>, limits: Limits) -> Result<Self, ConfigError> {
        let (path, scope) = state::named(path.as_ref())?;
        self.collections.push((path, scope, limits));
        Ok(self)
    }

    /// Sets the interval at which a collection is rescanned. [`Duration::MAX`] disables rescans.
    ///
    /// A scan reads the whole of the collection's directory. Nested ones are read once each.
    ///
    /// Defaults to an hour.
    pub fn rescan_every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// Hides the figures of all collections from clients: a refusal names neither a collection nor its usage.
    ///
    /// Use it when clients may write to a collection whose usage they must not learn.
    pub fn undisclosed(mut self) -> Self {
        self.is_disclosed = false;
        self
    }

    /// Starts to scan the collections that have a limit.
    pub fn build(self) -> CollectionQuota {
        CollectionQuota::start(self)
    }
}

impl fmt::Debug for CollectionQuotaBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectionQuotaBuilder")
            .field("collections", &self.collections)
            .field("rescan_every", &self.every)
            .finish_non_exhaustive()
    }
}
