//! Measurements of a tree for many requests: few at once, each path once for all that wait, and none that no request waits
//! for.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap, hash_map::Entry},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::{
    amount::Amount,
    demand::InPlace,
    tree::{Depth, Tree, Walk},
};

/// How many measurements are under way at once.
const AT_ONCE: usize = 4;

/// How often a measurement that waits for a place looks whether a request still waits for it.
const LOOK: Duration = Duration::from_secs(1);

/// The measurements of one tree.
pub(super) struct Measures {
    tree: Arc<dyn Tree>,
    places: Arc<Semaphore>,
    /// The one that has not yet read anything. If the filesystem hangs, only its thread and those that were reading hang.
    first_step: Arc<Semaphore>,
    /// The paths that are measured, each with the measurement that begins next. One that is under way may have missed what was
    /// written before a later request came.
    next: Mutex<HashMap<Key, Option<Teller>>>,
}

/// With what is left out.
type Key = (PathBuf, Depth, BTreeSet<PathBuf>);
type Teller = watch::Sender<Option<Found>>;
/// Cloned for each request that has waited for it.
type Found = Result<Option<Amount>, Arc<io::Error>>;

impl Measures {
    pub(super) fn new(tree: impl Tree) -> Arc<Self> {
        Arc::new(Self {
            tree: Arc::new(tree),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            first_step: Arc::new(Semaphore::new(1)),
            next: Mutex::default(),
        })
    }

    /// Measures what is at a path, beginning after this call. Outside of a runtime nothing is measured.
    pub(super) async fn measure(
        self: &Arc<Self>,
        path: &Path,
        depth: Depth,
    ) -> io::Result<Option<Amount>> {
        self.measure_without(path, depth, BTreeSet::new()).await
    }

    /// As [`Self::measure`], without what is at the paths in `except` and under them.
    pub(super) async fn measure_without(
        self: &Arc<Self>,
        path: &Path,
        depth: Depth,
        except: BTreeSet<PathBuf>,
    ) -> io::Result<Option<Amount>> {
        let mut told = self.join((path.to_owned(), depth, except))?;
        let found = told.wait_for(Option::is_some).await;
        match &*found.map_err(io::Error::other)? {
            Some(Ok(amount)) => Ok(*amount),
            Some(Err(error)) => Err(io::Error::new(error.kind(), Arc::clone(error))),
            None => Err(io::ErrorKind::Interrupted.into()),
        }
    }

    /// Which part of a file is overwritten in place by a write to this range.
    pub(super) async fn in_place(
        &self,
        path: &Path,
        range: Range<u64>,
    ) -> io::Result<Option<InPlace>> {
        let turn = self.turn().await.map_err(io::Error::other)?;
        let (tree, path) = (Arc::clone(&self.tree), path.to_owned());
        let look = move || {
            let _turn = turn;
            tree.in_place(&path, range)
        };
        tokio::task::spawn_blocking(look)
            .await
            .map_err(io::Error::other)?
    }

    /// Joins the next measurement of a path.
    fn join(self: &Arc<Self>, key: Key) -> io::Result<watch::Receiver<Option<Found>>> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        match self.next().entry(key.clone()) {
            Entry::Occupied(mut next) => {
                let next = next
                    .get_mut()
                    .get_or_insert_with(|| watch::Sender::new(None));
                Ok(next.subscribe())
            }
            Entry::Vacant(next) => {
                let (tell, told) = watch::channel(None);
                next.insert(Some(tell));
                runtime.spawn(Arc::clone(self).run(key));
                Ok(told)
            }
        }
    }

    /// Measures a path as long as requests wait for it.
    async fn run(self: Arc<Self>, key: Key) {
        let mut running = Running {
            measures: self,
            key,
            has_ended: false,
        };
        let Running {
            measures,
            key,
            has_ended,
        } = &mut running;
        while let Some((tell, turn)) = measures.begin(key).await {
            let (tree, (path, depth, except)) = (Arc::clone(&measures.tree), key.clone());
            let measure = move || {
                let Turn { _place, first_step } = turn;
                let first_step = Cell::new(Some(first_step));
                let is_stopped = || {
                    first_step.take();
                    tell.is_closed()
                };
                let walk = Walk::whole().except(&except).until(&is_stopped);
                let found = tree.measure(&path, depth, &walk);
                tell.send_replace(Some(found.map_err(Arc::new)));
            };
            // If it panics, those who wait find that out by the end of the channel.
            let _ = tokio::task::spawn_blocking(measure).await;
        }
        // Removed already, and another may be running for this path.
        *has_ended = true;
    }

    /// Waits for its turn. None if no request waits any more.
    async fn begin(&self, key: &Key) -> Option<(Teller, Turn)> {
        loop {
            let turn = timeout(LOOK, self.turn()).await;
            let mut all = self.next();
            let next = all.get_mut(key)?;
            let is_wanted = next.as_ref().is_some_and(|tell| !tell.is_closed());
            if !is_wanted {
                all.remove(key);
                return None;
            }
            if let Ok(Ok(turn)) = turn {
                return next.take().map(|tell| (tell, turn));
            }
        }
    }

    async fn turn(&self) -> Result<Turn, AcquireError> {
        Ok(Turn {
            first_step: Arc::clone(&self.first_step).acquire_owned().await?,
            _place: Arc::clone(&self.places).acquire_owned().await?,
        })
    }

    fn next(&self) -> MutexGuard<'_, HashMap<Key, Option<Teller>>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to measure.
struct Turn {
    /// Given up when the tree has read something.
    first_step: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

/// A path that is measured. Dropped with its runtime, it leaves the path to others.
struct Running {
    measures: Arc<Measures>,
    key: Key,
    has_ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended {
            self.measures.next().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Condvar,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use test_support::eventually;
    use tokio::{
        spawn,
        task::{JoinSet, yield_now},
    };

    use super::*;

    /// Measures that wait until the test lets them go, or until they are stopped.
    #[derive(Default)]
    struct Gate {
        begun: AtomicUsize,
        under_way: AtomicUsize,
        most: AtomicUsize,
        stopped: AtomicUsize,
        /// As on a filesystem that hangs: they get to nothing that they could ask the walk about.
        is_stuck: bool,
        open: (Mutex<bool>, Condvar),
    }

    impl Gate {
        fn open(&self) {
            *self.open.0.lock().unwrap() = true;
            self.open.1.notify_all();
        }
    }

    impl Tree for Gate {
        fn measure(&self, path: &Path, _: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>> {
            let number = self.begun.fetch_add(1, SeqCst) as u64;
            let now = self.under_way.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(now, SeqCst);
            let mut open = self.open.0.lock().unwrap();
            let mut found = Ok(Some(Amount::bytes(number)));
            while !*open {
                if !self.is_stuck
                    && let Err(stopped) = walk.counts(path)
                {
                    self.stopped.fetch_add(1, SeqCst);
                    found = Err(stopped);
                    break;
                }
                open = self
                    .open
                    .1
                    .wait_timeout(open, Duration::from_millis(1))
                    .unwrap()
                    .0;
            }
            self.under_way.fetch_sub(1, SeqCst);
            found
        }
    }

    fn measures() -> (Arc<Gate>, Arc<Measures>) {
        measures_of(Gate::default())
    }

    fn measures_of(gate: Gate) -> (Arc<Gate>, Arc<Measures>) {
        let gate = Arc::new(gate);
        (Arc::clone(&gate), Measures::new(gate))
    }

    fn measure_many(measures: &Arc<Measures>) -> JoinSet<io::Result<Option<Amount>>> {
        let mut all = JoinSet::new();
        for number in 0..100 {
            let measures = Arc::clone(measures);
            let path = PathBuf::from(number.to_string());
            all.spawn(async move { measures.measure(&path, Depth::Zero).await });
        }
        all
    }

    #[tokio::test]
    async fn all_that_wait_for_a_path_share_a_measurement_that_begins_after_them() {
        let (gate, measures) = measures();
        let measure = || {
            let measures = Arc::clone(&measures);
            async move {
                measures
                    .measure(Path::new("a"), Depth::Infinity)
                    .await
                    .unwrap()
            }
        };
        let first = spawn(measure());
        eventually("begun", || gate.begun.load(SeqCst) == 1).await;
        let mut later = JoinSet::new();
        for _ in 0..200 {
            later.spawn(measure());
        }
        let key = (PathBuf::from("a"), Depth::Infinity, BTreeSet::new());
        let all_wait = || {
            let next = measures.next();
            let next = next.get(&key).and_then(Option::as_ref);
            next.is_some_and(|next| next.receiver_count() == 200)
        };
        eventually("waiting", all_wait).await;
        gate.open();
        assert_eq!(first.await.unwrap(), Some(Amount::bytes(0)));
        // One that has begun before a request came may have passed what was written in between.
        while let Some(found) = later.join_next().await {
            assert_eq!(found.unwrap(), Some(Amount::bytes(1)));
        }
        assert_eq!(gate.begun.load(SeqCst), 2);
        eventually("forgotten", || measures.next().is_empty()).await;
    }

    #[test]
    fn a_runtime_that_ends_leaves_the_path_to_others() {
        let (gate, measures) = measures();
        for number in 1..4 {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let begun = || gate.begun.load(SeqCst) == number;
            runtime.block_on(async {
                let measure = measures.measure(Path::new("a"), Depth::Zero);
                tokio::select! {
                    _ = measure => panic!("the gate is closed"),
                    () = eventually("begun", begun) => {}
                }
            });
        }
    }

    #[tokio::test]
    async fn few_are_under_way_at_once() {
        for (is_stuck, most) in [(false, AT_ONCE), (true, 1)] {
            let (gate, measures) = measures_of(Gate {
                is_stuck,
                ..Gate::default()
            });
            let all = measure_many(&measures);
            eventually("begun", || gate.begun.load(SeqCst) == most).await;
            for _ in 0..1_000 {
                yield_now().await;
            }
            gate.open();
            let all = all.join_all().await;
            assert_eq!(all.iter().filter(|found| found.is_ok()).count(), 100);
            assert_eq!(gate.begun.load(SeqCst), 100);
            assert_eq!(gate.most.load(SeqCst), most);
        }
    }

    #[tokio::test]
    async fn what_no_request_waits_for_is_stopped_and_not_begun() {
        let (gate, measures) = measures();
        let mut all = measure_many(&measures);
        eventually("begun", || gate.begun.load(SeqCst) == AT_ONCE).await;
        all.shutdown().await;
        eventually("stopped", || gate.stopped.load(SeqCst) == AT_ONCE).await;
        eventually("forgotten", || measures.next().is_empty()).await;
        assert_eq!(gate.begun.load(SeqCst), AT_ONCE);
    }
}
