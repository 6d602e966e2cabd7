//! Credit for what requests remove and replace, given once.

use std::{
    collections::BTreeSet,
    io,
    ops::Bound::{Excluded, Unbounded},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::measures::Measures;
use crate::{amount::Amount, tree::Depth};

/// The paths at which a request in flight removes or replaces something.
///
/// Two requests that overwrite one file at once replace it once, and two that delete one folder remove it once. If each were
/// credited with what it found there, usage would fall below what is stored.
#[derive(Debug, Default)]
pub(super) struct Credits(Mutex<BTreeSet<PathBuf>>);

impl Credits {
    /// Takes the credit for what is at a path and under it, as far as no request in flight has it.
    pub(super) fn take(self: &Arc<Self>, path: &Path) -> Credit {
        let mut taken = self.lock();
        let is_taken = path.ancestors().any(|above| taken.contains(above));
        // Paths are ordered by their components, so those under this one follow it.
        let others = match is_taken {
            true => Vec::new(),
            false => taken
                .range::<Path, _>((Excluded(path), Unbounded))
                .take_while(|other| other.starts_with(path))
                .cloned()
                .collect(),
        };
        let path = (!is_taken).then(|| path.to_owned());
        taken.extend(path.clone());
        drop(taken);
        Credit {
            credits: Arc::clone(self),
            path,
            others,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The credit of one request. Its drop lets others have it.
#[derive(Debug)]
pub(super) struct Credit {
    credits: Arc<Credits>,
    /// None if another request has it.
    path: Option<PathBuf>,
    /// Paths under it that other requests have.
    others: Vec<PathBuf>,
}

impl Credit {
    /// Whether no other request has any of it.
    pub(super) fn is_whole(&self) -> bool {
        self.path.is_some() && self.others.is_empty()
    }

    /// How much is at the path, without what other requests have.
    pub(super) async fn measure(&self, tree: &Arc<Measures>, depth: Depth) -> io::Result<Amount> {
        let Some(path) = &self.path else {
            return Ok(Amount::ZERO);
        };
        let mut found = tree.measure(path, depth).await?.unwrap_or(Amount::ZERO);
        if depth == Depth::Infinity {
            for other in &self.others {
                found = found - tree.measure(other, depth).await?.unwrap_or(Amount::ZERO);
            }
        }
        Ok(found)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            self.credits.lock().remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Stop, Tree};

    /// Files of one byte each.
    struct Files(BTreeMap<PathBuf, ()>);

    impl Tree for Files {
        fn measure(&self, path: &Path, _: Depth, _: &Stop<'_>) -> io::Result<Option<Amount>> {
            let found = self.0.keys().filter(|file| file.starts_with(path)).count();
            Ok((found > 0).then(|| Amount::new(found as u64, found as u64)))
        }
    }

    fn measured(tree: &Arc<Measures>, credit: &Credit) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let measured = credit.measure(tree, Depth::Infinity);
        runtime.unwrap().block_on(measured).unwrap().bytes
    }

    fn any_path() -> impl Strategy<Value = PathBuf> {
        let name = prop::sample::select(vec!["a", "a.b", "b", "c"]);
        prop::collection::vec(name, 0..4).prop_map(|names| names.iter().collect())
    }

    proptest! {
        #[test]
        fn no_file_is_credited_twice(
            files in prop::collection::btree_map(any_path(), Just(()), 0..20),
            requests in prop::collection::vec((any_path(), any::<prop::sample::Index>(), any::<bool>()), 1..20),
        ) {
            let whole = files.len() as u64;
            let stored = Measures::new(Files(files));
            let credits = Arc::new(Credits::default());
            let mut in_flight = Vec::new();
            for (path, ended, ends) in requests {
                in_flight.push(credits.take(&path));
                if ends {
                    in_flight.swap_remove(ended.index(in_flight.len()));
                }
                // Nothing was removed yet, so all that is credited is there.
                let sum: u64 = in_flight
                    .iter()
                    .map(|credit| measured(&stored, credit))
                    .sum();
                prop_assert!(sum <= whole, "{sum} of {whole}");
            }
            drop(in_flight);
            prop_assert!(credits.lock().is_empty());
            let all = credits.take(Path::new(""));
            prop_assert_eq!(measured(&stored, &all), whole);
        }
    }

    #[test]
    fn a_folder_is_credited_without_what_others_replace_in_it() {
        let names = ["d/1", "d/2", "d/2/deep", "d.other"];
        let tree = Files(names.iter().map(|name| (PathBuf::from(name), ())).collect());
        let tree = Measures::new(tree);
        let credits = Arc::new(Credits::default());
        let measure = |path: &str| {
            let credit = credits.take(Path::new(path));
            let found = measured(&tree, &credit);
            (credit, found)
        };
        let (file, found) = measure("d/2");
        assert_eq!(found, 2);
        let (folder, found) = measure("d");
        assert_eq!(found, 1);
        // Another request removes the whole of it.
        assert_eq!(measure("d/1").1, 0);
        assert_eq!(measure("d").1, 0);
        drop(folder);
        assert_eq!(measure("d/1").1, 1);
        drop(file);
        assert_eq!(measure("d").1, 3);
    }
}
