//! A tree in memory.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tower_storage_guard::{
    Amount,
    dav::{Depth, Tree, Walk},
};

/// The resources below the root, which is a collection that is always there. Clones share them.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<BTreeMap<PathBuf, Node>>>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Node {
    Collection,
    /// With so many bytes.
    File(u64),
}

impl Node {
    pub fn amount(self) -> Amount {
        match self {
            Self::Collection => Amount::objects(1),
            Self::File(bytes) => Amount::new(bytes, 1),
        }
    }
}

impl Files {
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, path: &Path) -> Option<Node> {
        match path.as_os_str().is_empty() {
            true => Some(Node::Collection),
            false => self.lock().get(path).copied(),
        }
    }

    /// How much is there, of the paths that are counted.
    pub fn stored(&self, counts: impl Fn(&Path) -> bool) -> Amount {
        let nodes = self.lock();
        let counted = nodes.iter().filter(|(path, _)| counts(path));
        counted.fold(Amount::ZERO, |sum, (_, node)| sum + node.amount())
    }
}

impl Tree for Files {
    fn measure(&self, path: &Path, depth: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>> {
        let Some(node) = self.get(path) else {
            return Ok(None);
        };
        let mut amount = node.amount();
        if depth == Depth::Infinity {
            for (below, node) in &*self.lock() {
                if below != path && below.starts_with(path) && counts(walk, below, path)? {
                    amount = amount + node.amount();
                }
            }
        }
        Ok(Some(amount))
    }
}

/// A collection that is not counted has nothing in it that is.
fn counts(walk: &Walk<'_>, below: &Path, root: &Path) -> io::Result<bool> {
    for at in below.ancestors().take_while(|at| *at != root) {
        if !walk.counts(at)? {
            return Ok(false);
        }
    }
    Ok(true)
}
