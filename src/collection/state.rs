//! What is known of collections, and when they are scanned.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    amount::Amount,
    cause::Cause,
    config::ConfigError,
    quota::QuotaError,
    scope::{Scope, Scopes},
};

/// How many scans of a collection whose usage is unknown are thrown away as inexact.
const TRIES: u32 = 2;

/// The pause after a scan that came to nothing, and the longest of those that double it. It is longer where
/// the scan took long.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is to become of a collection when a request that was under way there has ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum After {
    /// All that it changed is counted.
    Nothing,
    /// It may have taken something away that was not counted: look again soon.
    Rescan,
    /// It may have brought something that was not counted: the figure is worth nothing, if it succeeded.
    Forget,
}

pub(super) struct State {
    collections: Vec<Collection>,
    by_path: HashMap<PathBuf, usize>,
    by_scope: HashMap<Scope, usize>,
    pub(super) every: Duration,
    is_disclosed: bool,
    pub(super) thread: Thread,
    /// Rescans asked for so far.
    tickets: u64,
}

/// The scanning thread.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Thread {
    NotStarted,
    Runs,
    /// It ends once it sees this.
    Stops,
}

/// A directory with a limit.
struct Collection {
    path: PathBuf,
    scope: Scope,
    figure: Figure,
    /// Requests that may be changing it.
    underway: u64,
    /// How many times that has changed, or what was counted. Only differences mean anything.
    changes: u64,
    scans: Scans,
}

/// What the quota has for a collection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Figure {
    /// Nothing that requests may be measured by.
    Unknown,
    /// It may be wrong.
    Doubtful,
    Exact,
}

/// The scans of a collection.
struct Scans {
    /// The last ticket that asked for a scan, and the last that one has answered.
    asked: u64,
    answered: u64,
    /// The last scan failed: as of which ticket, and with what.
    failed: Option<(u64, io::ErrorKind)>,
    /// Scans in a row that came to nothing.
    tries: u32,
    not_before: Instant,
    scanned_at: Instant,
}

/// A scan under way.
pub(super) struct Scan {
    at: usize,
    pub(super) path: PathBuf,
    ticket: u64,
    was_quiet: bool,
    changes: u64,
    began: Instant,
}

/// The path as it is kept, and its scope.
///
/// # Errors
///
/// When it leads out of the tree, or is no text.
pub(super) fn named(path: &Path) -> Result<(PathBuf, Scope), ConfigError> {
    let wrong = || ConfigError::Collection(path.to_owned());
    let (mut plain, mut name) = (PathBuf::new(), String::from("collection:"));
    for component in path.components() {
        match component {
            Component::Normal(part) => {
                name.push('/');
                name.push_str(part.to_str().ok_or_else(wrong)?);
                plain.push(part);
            }
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) | Component::ParentDir => return Err(wrong()),
        }
    }
    if plain.as_os_str().is_empty() {
        name.push('/');
    }
    Ok((plain, name.into()))
}

impl State {
    pub(super) fn new(every: Duration, is_disclosed: bool) -> Self {
        Self {
            collections: Vec::new(),
            by_path: HashMap::new(),
            by_scope: HashMap::new(),
            every,
            is_disclosed,
            thread: Thread::NotStarted,
            tickets: 0,
        }
    }

    pub(super) fn add(&mut self, path: PathBuf, scope: Scope) {
        if self.by_path.contains_key(&path) {
            return;
        }
        let now = Instant::now();
        self.by_path.insert(path.clone(), self.collections.len());
        self.by_scope.insert(scope.clone(), self.collections.len());
        self.collections.push(Collection {
            path,
            scope,
            figure: Figure::Unknown,
            underway: 0,
            changes: 0,
            scans: Scans {
                asked: 0,
                answered: 0,
                failed: None,
                tries: 0,
                not_before: now,
                scanned_at: now,
            },
        });
    }

    pub(super) fn paths(&self) -> Vec<&Path> {
        let paths = self.collections.iter();
        paths.map(|collection| &*collection.path).collect()
    }

    /// The collections that a path is in, the nearest first.
    fn above<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = usize> + 'a {
        let path = path.strip_prefix("/").unwrap_or(path);
        let found = |path| self.by_path.get(path).copied();
        path.ancestors().filter_map(found)
    }

    /// The collections under a path, without itself.
    fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = usize> + 'a {
        let is_below = move |other: &Path| other != path && other.starts_with(path);
        let collections = self.collections.iter().enumerate();
        collections.filter_map(move |(at, collection)| is_below(&collection.path).then_some(at))
    }

    pub(super) fn scopes(&self, path: &Path) -> Scopes {
        let scopes = self.above(path).map(|at| {
            let scope = self.collections[at].scope.clone();
            match self.is_disclosed {
                true => scope,
                false => scope.undisclosed(),
            }
        });
        scopes.collect()
    }

    pub(super) fn is_known(&self, path: &Path) -> bool {
        let at = self.by_path.get(path);
        at.is_some_and(|at| self.collections[*at].is_known())
    }

    /// Those of `scopes` that are collections.
    pub(super) fn places(&self, scopes: &Scopes) -> Vec<(usize, After)> {
        let places = scopes.iter().filter_map(|scope| self.by_scope.get(scope));
        places.map(|at| (*at, After::Nothing)).collect()
    }

    /// Whether the usage of all is known.
    pub(super) fn are_known(&self, places: &[(usize, After)]) -> io::Result<bool> {
        let mut are_known = true;
        for (at, _) in places {
            let collection = &self.collections[*at];
            if collection.is_known() {
                continue;
            }
            if let Some((_, kind)) = collection.scans.failed {
                // It is tried again after a pause, which is too long to wait for.
                return Err(kind.into());
            }
            are_known = false;
        }
        Ok(are_known)
    }

    /// All collections that a request touches which writes to these paths: those that each is in, and with
    /// what comes after, those under it.
    pub(super) fn touched(&self, paths: &[(&Path, After)], uncounted: bool) -> Vec<(usize, After)> {
        let of_those_above = match uncounted {
            true => After::Rescan,
            false => After::Nothing,
        };
        let mut touched = BTreeMap::new();
        for (path, after) in paths {
            for at in self.above(path) {
                touched.entry(at).or_insert(of_those_above);
            }
            if *after > After::Nothing {
                for at in self.below(path) {
                    let known = touched.entry(at).or_insert(*after);
                    *known = (*known).max(*after);
                }
            }
        }
        touched.into_iter().collect()
    }

    /// A request begins.
    pub(super) fn enter(&mut self, places: &[(usize, After)]) {
        for (at, _) in places {
            let collection = &mut self.collections[*at];
            collection.underway += 1;
            collection.changes += 1;
        }
    }

    /// A request has ended. Says whether a scan is due that waited for this.
    pub(super) fn leave(&mut self, places: &[(usize, After)], success: bool) -> bool {
        let (now, every) = (Instant::now(), self.every);
        let mut is_due = false;
        for (at, after) in places {
            let collection = &mut self.collections[*at];
            collection.underway -= 1;
            collection.changes += 1;
            match after {
                After::Nothing => {}
                After::Forget if success => {
                    collection.figure = Figure::Unknown;
                    collection.scans.tries = 0;
                }
                // Half of it may be there.
                After::Forget | After::Rescan => collection.doubt(),
            }
            // Before it is due the thread sleeps until then anyway, unless it knows nothing of that yet.
            let was_waited_for =
                collection.may_begin() && collection.due(every).is_some_and(|due| due <= now);
            is_due |= was_waited_for || *after > After::Nothing;
        }
        is_due
    }

    /// What was counted changes beside the requests that are under way.
    pub(super) fn note_change(&mut self, scopes: &Scopes) {
        for scope in scopes {
            if let Some(at) = self.by_scope.get(scope) {
                self.collections[*at].changes += 1;
            }
        }
    }

    /// Says what kind of limit it is that was reached.
    pub(super) fn named(&self, error: QuotaError) -> QuotaError {
        match error {
            QuotaError::Exceeded(exceeded) if self.by_scope.contains_key(&exceeded.scope) => {
                exceeded.with_cause(Cause::CollectionFull).into()
            }
            other => other,
        }
    }

    /// Asks for a scan of all.
    pub(super) fn ask(&mut self) -> u64 {
        self.tickets += 1;
        for collection in &mut self.collections {
            collection.scans.asked = self.tickets;
        }
        self.tickets
    }

    /// Whether all have been scanned for this ticket. None while they have not.
    pub(super) fn answer(&self, ticket: u64) -> Option<io::Result<()>> {
        let mut collections = self.collections.iter();
        let failed = |collection: &Collection| match collection.scans.failed {
            Some((number, kind)) if number >= ticket => Some(kind),
            _ => None,
        };
        if let Some(kind) = collections.clone().find_map(failed) {
            return Some(Err(kind.into()));
        }
        // Those that were added later were not asked for.
        let is_answered = |collection: &Collection| {
            collection.scans.asked < ticket || collection.scans.answered >= ticket
        };
        collections.all(is_answered).then_some(Ok(()))
    }

    /// The next scan, and when it is due. None while there is none to do, until a request leaves.
    pub(super) fn next(&self, now: Instant) -> Option<(usize, Instant)> {
        let collections = self.collections.iter().enumerate();
        collections
            .filter_map(|(at, collection)| Some((at, collection.due(self.every)?)))
            .filter(|(at, due)| *due > now || self.collections[*at].may_begin())
            .min_by_key(|(_, due)| *due)
    }

    pub(super) fn begin(&self, at: usize) -> Scan {
        let collection = &self.collections[at];
        Scan {
            at,
            path: collection.path.clone(),
            ticket: collection.scans.asked,
            was_quiet: collection.underway == 0,
            changes: collection.changes,
            began: Instant::now(),
        }
    }

    /// A scan has ended. What the collection is to be set to, if anything.
    pub(super) fn end(
        &mut self,
        scan: &Scan,
        found: io::Result<Option<Amount>>,
    ) -> Option<(&Scope, Amount)> {
        let now = Instant::now();
        let collection = &mut self.collections[scan.at];
        collection.scans.failed = found
            .as_ref()
            .err()
            .map(|error| (scan.ticket, error.kind()));
        // No request was there, and none came or went.
        let is_exact = scan.was_quiet && collection.changes == scan.changes;
        let found = match found {
            Ok(found) if is_exact => {
                collection.figure = Figure::Exact;
                collection.scans.answered = scan.ticket;
                collection.scans.tries = 0;
                collection.scans.not_before = now;
                collection.scans.scanned_at = now;
                return Some((&collection.scope, found.unwrap_or_default()));
            }
            Ok(found) => found,
            Err(_) => {
                collection.scans.pause(scan.began);
                return None;
            }
        };
        let is_enough = !collection.is_known() && collection.scans.tries >= TRIES;
        collection.scans.pause(scan.began);
        is_enough.then(|| {
            collection.figure = Figure::Doubtful;
            (&collection.scope, found.unwrap_or_default())
        })
    }
}

impl Collection {
    fn is_known(&self) -> bool {
        self.figure != Figure::Unknown
    }

    /// Its figure may be wrong from now on.
    fn doubt(&mut self) {
        if self.is_known() {
            self.figure = Figure::Doubtful;
        }
    }

    /// Whether a scan that began now could come to anything.
    fn may_begin(&self) -> bool {
        !self.is_known() || self.underway == 0
    }

    /// When it is to be scanned.
    fn due(&self, every: Duration) -> Option<Instant> {
        let scans = &self.scans;
        if self.figure != Figure::Exact || scans.asked > scans.answered {
            return Some(scans.not_before);
        }
        let due = scans.scanned_at.checked_add(every)?;
        Some(due.max(scans.not_before))
    }
}

impl Scans {
    /// A scan that began then came to nothing.
    fn pause(&mut self, began: Instant) {
        let doubled = PAUSE.saturating_mul(1 << self.tries.min(16));
        let (now, took) = (Instant::now(), began.elapsed());
        let pause = doubled.min(LONGEST_PAUSE).max(took.saturating_mul(4));
        self.tries = self.tries.saturating_add(1);
        self.not_before = now.checked_add(pause).unwrap_or(now);
    }
}
