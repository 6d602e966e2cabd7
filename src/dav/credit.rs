//! Credit for what requests remove and replace, given once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Bound::{Excluded, Unbounded},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::measures::Measures;
use crate::{amount::Amount, tree::Depth};

/// How often a request measures what it removes, while others begin to write there.
const TRIES: usize = 3;

/// The paths at which requests in flight remove, replace or write something.
///
/// Two requests that overwrite one file at once replace it once, and two that delete one folder remove it once. If each were
/// credited with what it found there, usage would fall below what is stored. So it would if a request were credited with a
/// file that another one is still writing: that one is credited itself if it fails.
#[derive(Debug, Default)]
pub(super) struct Credits(Mutex<BTreeMap<PathBuf, InFlight>>);

/// The requests in flight at one path.
#[derive(Debug, Default)]
struct InFlight {
    /// Set if one of them has the credit.
    others: Option<Others>,
    /// How many write there without it.
    writers: usize,
}

/// What a credit does not include.
#[derive(Debug, Default)]
struct Others {
    /// At or under the path of the credit: where requests were, or have come to write while it was being priced.
    paths: BTreeSet<PathBuf>,
    is_priced: bool,
}

impl Credits {
    /// Takes the credit for what is at a path and under it, as far as no request in flight has it. The request may write there.
    pub(super) fn take(self: &Arc<Self>, path: &Path) -> Credit {
        self.take_by(path, true)
    }

    /// As [`Self::take`], for a request that writes nothing there.
    pub(super) fn take_removed(self: &Arc<Self>, path: &Path) -> Credit {
        self.take_by(path, false)
    }

    fn take_by(self: &Arc<Self>, path: &Path, writes: bool) -> Credit {
        let mut all = self.lock();
        let (mut is_taken, mut is_written) = (false, false);
        for above in path.ancestors() {
            let Some(there) = all.get_mut(above) else {
                continue;
            };
            is_written |= there.writers > 0;
            if let Some(others) = &mut there.others {
                is_taken = true;
                if writes && !others.is_priced {
                    others.paths.insert(path.to_owned());
                }
            }
        }
        if !is_taken {
            // Paths are ordered by their components, so those under this one follow it.
            let under = all
                .range::<Path, _>((Excluded(path), Unbounded))
                .take_while(|(other, _)| other.starts_with(path));
            let mut paths: BTreeSet<_> = under.map(|(other, _)| other.clone()).collect();
            paths.extend(is_written.then(|| path.to_owned()));
            all.entry(path.to_owned()).or_default().others = Some(Others {
                paths,
                is_priced: false,
            });
        } else if writes {
            all.entry(path.to_owned()).or_default().writers += 1;
        }
        drop(all);
        Credit {
            credits: Arc::clone(self),
            path: path.to_owned(),
            is_given: !is_taken,
            writes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, InFlight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The credit of one request. Its drop lets others have it.
#[derive(Debug)]
pub(super) struct Credit {
    credits: Arc<Credits>,
    path: PathBuf,
    /// Otherwise another request has it.
    is_given: bool,
    writes: bool,
}

impl Credit {
    /// Whether no other request has any of it.
    pub(super) fn is_whole(&self) -> bool {
        self.is_given && self.others().is_empty()
    }

    /// How much is at the path, without what other requests have.
    pub(super) async fn measure(&self, tree: &Arc<Measures>, depth: Depth) -> io::Result<Amount> {
        for _ in 0..TRIES {
            let others = self.others();
            // How much was there before another request wrote is not known.
            if !self.is_given || others.contains(&self.path) {
                break;
            }
            let found = tree
                .measure_without(&self.path, depth, others.clone())
                .await?;
            // A part of what one that came meanwhile has written may have been found.
            if others == self.others() {
                return Ok(found.unwrap_or(Amount::ZERO));
            }
        }
        Ok(Amount::ZERO)
    }

    /// Requests that come from now on write what was not found.
    pub(super) fn set_priced(&self) {
        self.with_others(|others| {
            others.is_priced = true;
            others.paths.clear();
        });
    }

    fn others(&self) -> BTreeSet<PathBuf> {
        self.with_others(|others| others.paths.clone())
            .unwrap_or_default()
    }

    fn with_others<T>(&self, f: impl FnOnce(&mut Others) -> T) -> Option<T> {
        if !self.is_given {
            return None;
        }
        let mut all = self.credits.lock();
        all.get_mut(&self.path)?.others.as_mut().map(f)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut all = self.credits.lock();
        let Some(there) = all.get_mut(&self.path) else {
            return;
        };
        if self.is_given {
            there.others = None;
        } else if self.writes {
            there.writers -= 1;
        }
        if there.others.is_none() && there.writers == 0 {
            all.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Tree, Walk};

    /// Files of one byte each.
    struct Files(BTreeMap<PathBuf, ()>);

    impl Tree for Files {
        fn measure(&self, path: &Path, _: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>> {
            let counts = |file: &Path| file.ancestors().all(|at| walk.counts(at).unwrap());
            let under = self.0.keys().filter(|file| file.starts_with(path));
            let found = under.filter(|file| counts(file)).count();
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

    /// Files of one byte each, of which one request begins to write another while they are measured.
    struct Writing {
        credits: Arc<Credits>,
        begin: fn(&Arc<Credits>) -> Credit,
        begun: Mutex<Option<Credit>>,
    }

    impl Tree for Writing {
        fn measure(
            &self,
            path: &Path,
            depth: Depth,
            walk: &Walk<'_>,
        ) -> io::Result<Option<Amount>> {
            let mut begun = self.begun.lock().unwrap();
            let credit = begun.get_or_insert_with(|| (self.begin)(&self.credits));
            assert!(!credit.is_given);
            let names = ["d/old", "d/new"];
            Files(names.map(|name| (PathBuf::from(name), ())).into()).measure(path, depth, walk)
        }
    }

    #[test]
    fn what_others_begin_to_write_meanwhile_is_not_credited() {
        let credited = |path: &str, begin| {
            let credits = Arc::new(Credits::default());
            let credit = credits.take_removed(Path::new(path));
            let begun = Mutex::default();
            let tree = Writing {
                credits,
                begin,
                begun,
            };
            measured(&Measures::new(tree), &credit)
        };
        let put: fn(&Arc<Credits>) -> Credit = |credits| credits.take(Path::new("d/new"));
        assert_eq!(credited("d", put), 1);
        // How much was there before is not known.
        assert_eq!(credited("d/new", put), 0);
        assert_eq!(credited("d", |credits| credits.take(Path::new("d"))), 0);
        // It writes nothing.
        assert_eq!(
            credited("d", |credits| credits.take_removed(Path::new("d/new"))),
            2
        );
    }

    /// One that came while another had the credit writes on when that one has ended.
    #[test]
    fn what_others_write_without_the_credit_is_not_credited() {
        let names = ["d/1", "d/2", "d/3/deep"];
        let tree = Files(names.iter().map(|name| (PathBuf::from(name), ())).collect());
        let tree = Measures::new(tree);
        let credits = Arc::new(Credits::default());
        let whole = credits.take_removed(Path::new("d"));
        whole.set_priced();
        let (file, folder) = (
            credits.take(Path::new("d/1")),
            credits.take(Path::new("d/3")),
        );
        drop(whole);
        let credited = |path: &str| measured(&tree, &credits.take_removed(Path::new(path)));
        assert_eq!(credited("d"), 1);
        assert_eq!(credited("d/1"), 0);
        assert_eq!(credited("d/3/deep"), 0);
        drop(file);
        assert_eq!(credited("d"), 2);
        drop(folder);
        assert_eq!(credited("d"), 3);
        assert!(credits.lock().is_empty());
    }

    #[test]
    fn what_others_begin_to_write_afterwards_does_not_matter() {
        let credits = Arc::new(Credits::default());
        let folder = credits.take_removed(Path::new("d"));
        folder.set_priced();
        for number in 0..100 {
            assert!(!credits.take(Path::new(&format!("d/{number}"))).is_whole());
        }
        assert!(folder.is_whole());
    }
}
