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
    quota::{Change, QuotaError},
    scope::{Scope, Scopes},
};

/// How many inexact first scans of a collection are discarded before one is accepted.
const TRIES: u32 = 2;

/// The pause after a failed or inexact scan, and the maximum that it doubles to. It is longer if the scan took long.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long a scan that is due waits for the requests in its collection to end, so that it is exact.
const REST: Duration = Duration::from_secs(1);

/// What happens to a collection's figure when a request in it ends.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum After {
    /// All changes of the request are counted.
    Nothing,
    /// The request may have removed something that was not counted: scan again soon.
    Rescan,
    /// The request may have added something that was not counted: if it succeeded, the figure is invalid.
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
    /// Requests that may be changing it, and how much they may remove or replace.
    underway: u64,
    removing: Amount,
    /// How many times `underway` or the counted usage has changed. Only differences are meaningful.
    changes: u64,
    /// Holds of which it is not known what they replace: those of requests that are about to begin or to be charged, and
    /// all of a pricing of the user's own.
    unpriced: i64,
    scans: Scans,
}

/// A request in flight in a collection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stay {
    at: usize,
    after: After,
    role: Role,
}

/// What stays in a collection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Hold,
    /// A request that has a hold there, with what it replaces.
    Priced,
    /// A request that has none.
    Free,
}

impl Role {
    fn unpriced(self) -> i64 {
        match self {
            Self::Hold => 1,
            Self::Priced => -1,
            Self::Free => 0,
        }
    }
}

/// What the quota has for a collection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Figure {
    /// None that admission can use.
    Unknown,
    /// It may be wrong.
    Doubtful,
    Exact,
}

/// The scans of a collection.
struct Scans {
    /// The ticket of the newest rescan request, and of the newest one that is answered.
    asked: u64,
    answered: u64,
    /// The error of the last failed scan, and the ticket that it answers.
    failed: Option<(u64, io::ErrorKind)>,
    /// The number of consecutive scans without a result.
    tries: u32,
    not_before: Instant,
    /// Until when nothing but a rescan that is asked for starts a scan.
    rests_until: Instant,
    scanned_at: Instant,
    window: Window,
}

/// What was counted since a scan has begun.
#[derive(Clone, Copy, Default)]
struct Window {
    /// What requests in flight may have written, and the scan may have seen.
    in_flight: Amount,
    /// What they may have moved or replaced, and the scan may have missed, or seen beside what takes its place.
    removing: Amount,
    added: Amount,
    removed: Amount,
}

/// A scan in progress.
pub(super) struct Scan {
    at: usize,
    pub(super) path: PathBuf,
    ticket: u64,
    was_quiet: bool,
    was_priced: bool,
    changes: u64,
    began: Instant,
}

/// The normalised path and its scope.
///
/// # Errors
///
/// When it leads out of the tree, or is not UTF-8.
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
            removing: Amount::ZERO,
            changes: 0,
            unpriced: 0,
            scans: Scans {
                asked: 0,
                answered: 0,
                failed: None,
                tries: 0,
                not_before: now,
                rests_until: now,
                scanned_at: now,
                window: Window::default(),
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

    /// The collections among `scopes`.
    pub(super) fn places(&self, scopes: &Scopes) -> Vec<Stay> {
        let places = scopes.iter().filter_map(|scope| self.by_scope.get(scope));
        let hold = |at: &usize| Stay {
            at: *at,
            after: After::Nothing,
            role: Role::Hold,
        };
        places.map(hold).collect()
    }

    /// Whether the usage of all of them is known.
    pub(super) fn are_known(&self, places: &[Stay]) -> io::Result<bool> {
        let mut are_known = true;
        for stay in places {
            let collection = &self.collections[stay.at];
            if collection.is_known() {
                continue;
            }
            if let Some((_, kind)) = collection.scans.failed {
                // The scan is retried after a pause that is too long for a request to wait for.
                return Err(kind.into());
            }
            are_known = false;
        }
        Ok(are_known)
    }

    /// All collections that a request to these paths touches: those that contain a path, and those under it, if the
    /// request may change them. It has a hold in those that are charged.
    pub(super) fn touched(
        &self,
        paths: &[(&Path, After)],
        uncounted: bool,
        charged: &Scopes,
    ) -> Vec<Stay> {
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
        let stay = |(at, after): (usize, After)| {
            let scope = &self.collections[at].scope;
            let role = match charged.iter().any(|charged| charged == scope) {
                true => Role::Priced,
                false => Role::Free,
            };
            Stay { at, after, role }
        };
        touched.into_iter().map(stay).collect()
    }

    /// A request begins.
    pub(super) fn enter(&mut self, places: &[Stay], removes: Amount) {
        for stay in places {
            let collection = &mut self.collections[stay.at];
            collection.underway += 1;
            collection.unpriced += stay.role.unpriced();
            collection.removing = collection.removing + removes;
            collection.changes += 1;
            let window = &mut collection.scans.window;
            window.removing = window.removing + removes;
        }
    }

    /// A request has ended. Returns whether a scan that waited for this is now due.
    pub(super) fn leave(&mut self, places: &[Stay], removes: Amount, success: bool) -> bool {
        let (now, every) = (Instant::now(), self.every);
        let mut is_due = false;
        for stay in places {
            let collection = &mut self.collections[stay.at];
            collection.underway -= 1;
            collection.unpriced -= stay.role.unpriced();
            collection.removing = collection.removing - removes;
            collection.changes += 1;
            match stay.after {
                After::Nothing if success => {}
                After::Forget if success => {
                    collection.figure = Figure::Unknown;
                    collection.scans.tries = 0;
                }
                // Half of it may be on the disk, or in the figure.
                After::Nothing | After::Forget | After::Rescan => collection.doubt(),
            }
            // The thread sleeps until the due time anyway, unless it does not know that time yet.
            let was_waited_for = collection.due(every).is_some_and(|due| due <= now);
            is_due |= was_waited_for || stay.after > After::Nothing || !success;
        }
        is_due
    }

    /// A request in flight may write more.
    pub(super) fn note_reserved(&mut self, places: &[Stay], amount: Amount) {
        for stay in places {
            let window = &mut self.collections[stay.at].scans.window;
            window.in_flight = window.in_flight + amount;
        }
    }

    /// A request in flight is charged.
    pub(super) fn note_charge(&mut self, places: &[Stay], change: Change) {
        for stay in places {
            let window = &mut self.collections[stay.at].scans.window;
            window.added = window.added + change.gain();
            window.removed = window.removed + change.loss();
        }
    }

    /// A charge beside those of the requests that hold something. Returns whether a scan is due.
    pub(super) fn note_charge_without_hold(&mut self, scopes: &Scopes, change: Change) -> bool {
        let mut is_due = false;
        for scope in scopes {
            if let Some(at) = self.by_scope.get(scope) {
                let collection = &mut self.collections[*at];
                collection.changes += 1;
                let window = &mut collection.scans.window;
                // The scan may have seen it without having been told.
                window.in_flight = window.in_flight + change.gain();
                window.added = window.added + change.gain();
                window.removed = window.removed + change.loss();
                if !change.gain().is_zero() {
                    collection.doubt();
                    is_due = true;
                }
            }
        }
        is_due
    }

    /// Sets the cause of a refusal for the kind of limit that was reached.
    pub(super) fn named(&self, error: QuotaError) -> QuotaError {
        match error {
            QuotaError::Exceeded(exceeded) if self.by_scope.contains_key(&exceeded.scope) => {
                exceeded.with_cause(Cause::CollectionFull).into()
            }
            other => other,
        }
    }

    /// Requests a scan of all collections.
    pub(super) fn ask(&mut self) -> u64 {
        self.tickets += 1;
        for collection in &mut self.collections {
            collection.scans.asked = self.tickets;
        }
        self.tickets
    }

    /// Whether all have been scanned for this ticket. None while some have not.
    pub(super) fn answer(&self, ticket: u64) -> Option<io::Result<()>> {
        let mut collections = self.collections.iter();
        let failed = |collection: &Collection| match collection.scans.failed {
            Some((number, kind)) if number >= ticket => Some(kind),
            _ => None,
        };
        if let Some(kind) = collections.clone().find_map(failed) {
            return Some(Err(kind.into()));
        }
        // Collections that were added later are not covered by the ticket.
        let is_answered = |collection: &Collection| {
            collection.scans.asked < ticket || collection.scans.answered >= ticket
        };
        collections.all(is_answered).then_some(Ok(()))
    }

    /// The next scan, and when it is due.
    pub(super) fn next(&self) -> Option<(usize, Instant)> {
        let collections = self.collections.iter().enumerate();
        collections
            .filter_map(|(at, collection)| Some((at, collection.due(self.every)?)))
            .min_by_key(|(_, due)| *due)
    }

    pub(super) fn scope(&self, at: usize) -> &Scope {
        &self.collections[at].scope
    }

    /// Begins a scan of a collection that holds this much.
    pub(super) fn begin(&mut self, at: usize, held: Amount) -> Scan {
        let collection = &mut self.collections[at];
        collection.scans.window = Window {
            in_flight: held,
            removing: collection.removing,
            ..Window::default()
        };
        Scan {
            at,
            path: collection.path.clone(),
            ticket: collection.scans.asked,
            was_quiet: collection.underway == 0,
            was_priced: collection.unpriced == 0,
            changes: collection.changes,
            began: Instant::now(),
        }
    }

    /// A scan has ended. Returns the figure to set for the collection instead of `used`, if any.
    pub(super) fn end(
        &mut self,
        scan: &Scan,
        found: io::Result<Option<Amount>>,
        used: Amount,
    ) -> Option<(&Scope, Amount)> {
        let now = Instant::now();
        let collection = &mut self.collections[scan.at];
        let found = match found {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => {
                collection.scans.failed = Some((scan.ticket, error.kind()));
                collection.scans.pause(scan.began);
                return None;
            }
        };
        collection.scans.failed = None;
        // No request was in flight, and none began or ended meanwhile.
        if scan.was_quiet && collection.changes == scan.changes {
            collection.figure = Figure::Exact;
            collection.scans.answered = scan.ticket;
            collection.scans.tries = 0;
            // Requests that fail cause scans. They must not keep the thread busy.
            let rest = scan.began.elapsed().saturating_mul(4);
            collection.scans.not_before = now;
            collection.scans.rests_until = now.checked_add(rest).unwrap_or(now);
            collection.scans.scanned_at = now;
            return Some((&collection.scope, found));
        }
        let figure = match collection.figure {
            Figure::Unknown if collection.scans.tries < TRIES => None,
            Figure::Unknown => Some(found),
            Figure::Doubtful | Figure::Exact if scan.was_priced && collection.unpriced == 0 => {
                collection.corrected(found, used)
            }
            Figure::Doubtful | Figure::Exact => None,
        };
        collection.scans.pause(scan.began);
        collection.scans.scanned_at = now;
        if figure.is_some() {
            collection.figure = Figure::Doubtful;
        }
        Some((&collection.scope, figure?))
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

    /// When the collection is due for a scan.
    fn due(&self, every: Duration) -> Option<Instant> {
        let scans = &self.scans;
        let due = if !self.is_known() || scans.asked > scans.answered {
            scans.not_before
        } else if self.figure == Figure::Doubtful {
            scans.not_before.max(scans.rests_until)
        } else {
            scans.scanned_at.checked_add(every)?.max(scans.not_before)
        };
        match self.is_known() && self.underway > 0 {
            true => due.checked_add(REST),
            false => Some(due),
        }
    }

    /// The figure by a scan that has found this beside requests in flight, unless the figure may be right.
    ///
    /// The scan may have missed what was charged meanwhile, and what is moved or replaced, and it may have seen what is not
    /// charged yet, or is removed since. So it bounds the figure from both sides.
    fn corrected(&self, found: Amount, used: Amount) -> Option<Amount> {
        let window = self.scans.window;
        // A file is seen twice if it is renamed meanwhile, and what is moved or replaced beside what takes its place.
        let twice = window.in_flight + window.in_flight + window.removing;
        let least = found - twice - window.removed;
        let most = found + window.added + window.removing;
        let figure = Amount::new(
            used.bytes.max(least.bytes).min(most.bytes),
            used.objects.max(least.objects).min(most.objects),
        );
        (figure != used).then_some(figure)
    }
}

impl Scans {
    /// A scan that began at that time had no result.
    fn pause(&mut self, began: Instant) {
        let doubled = PAUSE.saturating_mul(1 << self.tries.min(16));
        let (now, took) = (Instant::now(), began.elapsed());
        let pause = doubled.min(LONGEST_PAUSE).max(took.saturating_mul(4));
        self.tries = self.tries.saturating_add(1);
        self.not_before = now.checked_add(pause).unwrap_or(now);
    }
}
