//! Measurements of a tree for many requests: few at once, each path once for all that wait, and none that no request waits
//! for.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::{
    amount::Amount,
    tree::{Depth, Stop, Tree},
};

/// How many measurements are under way at once. If the filesystem hangs, so many threads hang with it.
const AT_ONCE: usize = 4;

/// How often a measurement that waits for a place looks whether a request still waits for it.
const LOOK: Duration = Duration::from_secs(1);

/// The measurements of one tree.
pub(super) struct Measures {
    tree: Arc<dyn Tree>,
    places: Arc<Semaphore>,
    /// The paths that are measured, each with the measurement that begins next. One that is under way may have missed what was
    /// written before a later request came.
    next: Mutex<HashMap<Key, Option<Teller>>>,
}

type Key = (PathBuf, Depth);
type Teller = watch::Sender<Option<Found>>;
/// Cloned for each request that has waited for it.
type Found = Result<Option<Amount>, Arc<io::Error>>;

impl Measures {
    pub(super) fn new(tree: impl Tree) -> Arc<Self> {
        Arc::new(Self {
            tree: Arc::new(tree),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            next: Mutex::default(),
        })
    }

    /// Measures what is at a path, beginning after this call. Outside of a runtime nothing is measured.
    pub(super) async fn measure(
        self: &Arc<Self>,
        path: &Path,
        depth: Depth,
    ) -> io::Result<Option<Amount>> {
        let mut told = self.join((path.to_owned(), depth))?;
        let found = told.wait_for(Option::is_some).await;
        match &*found.map_err(io::Error::other)? {
            Some(Ok(amount)) => Ok(*amount),
            Some(Err(error)) => Err(io::Error::new(error.kind(), Arc::clone(error))),
            None => Err(io::ErrorKind::Interrupted.into()),
        }
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
        while let Some((tell, place)) = measures.begin(key).await {
            let (tree, (path, depth)) = (Arc::clone(&measures.tree), key.clone());
            let measure = move || {
                let _place = place;
                let is_stopped = || tell.is_closed();
                let found = tree.measure(&path, depth, &Stop::when(&is_stopped));
                tell.send_replace(Some(found.map_err(Arc::new)));
            };
            // If it panics, those who wait find that out by the end of the channel.
            let _ = tokio::task::spawn_blocking(measure).await;
        }
        // Removed already, and another may be running for this path.
        *has_ended = true;
    }

    /// Waits for a place. None if no request waits any more.
    async fn begin(&self, key: &Key) -> Option<(Teller, OwnedSemaphorePermit)> {
        loop {
            let place = timeout(LOOK, Arc::clone(&self.places).acquire_owned()).await;
            let mut all = self.next();
            let next = all.get_mut(key)?;
            let is_wanted = next.as_ref().is_some_and(|tell| !tell.is_closed());
            if !is_wanted {
                all.remove(key);
                return None;
            }
            if let Ok(Ok(place)) = place {
                return next.take().map(|tell| (tell, place));
            }
        }
    }

    fn next(&self) -> MutexGuard<'_, HashMap<Key, Option<Teller>>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    use tokio::{spawn, task::JoinSet};

    use super::*;

    /// Measures that wait until the test lets them go, or until they are stopped.
    #[derive(Default)]
    struct Gate {
        begun: AtomicUsize,
        under_way: AtomicUsize,
        most: AtomicUsize,
        stopped: AtomicUsize,
        open: (Mutex<bool>, Condvar),
    }

    impl Gate {
        fn open(&self) {
            *self.open.0.lock().unwrap() = true;
            self.open.1.notify_all();
        }
    }

    impl Tree for Gate {
        fn measure(&self, _: &Path, _: Depth, stop: &Stop<'_>) -> io::Result<Option<Amount>> {
            let number = self.begun.fetch_add(1, SeqCst) as u64;
            let now = self.under_way.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(now, SeqCst);
            let mut open = self.open.0.lock().unwrap();
            let mut found = Ok(Some(Amount::bytes(number)));
            while !*open {
                if let Err(stopped) = stop.check() {
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
        let gate = Arc::new(Gate::default());
        (Arc::clone(&gate), Measures::new(gate))
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
        let key = (PathBuf::from("a"), Depth::Infinity);
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
        let (gate, measures) = measures();
        let mut all = JoinSet::new();
        for number in 0..100 {
            let measures = Arc::clone(&measures);
            let path = PathBuf::from(number.to_string());
            all.spawn(async move { measures.measure(&path, Depth::Zero).await.unwrap() });
        }
        eventually("begun", || gate.begun.load(SeqCst) == AT_ONCE).await;
        gate.open();
        assert_eq!(all.join_all().await.len(), 100);
        assert_eq!(gate.begun.load(SeqCst), 100);
        assert_eq!(gate.most.load(SeqCst), AT_ONCE);
    }

    #[tokio::test]
    async fn what_no_request_waits_for_is_stopped_and_not_begun() {
        let (gate, measures) = measures();
        let mut all = JoinSet::new();
        for number in 0..100 {
            let measures = Arc::clone(&measures);
            let path = PathBuf::from(number.to_string());
            all.spawn(async move { measures.measure(&path, Depth::Zero).await });
        }
        eventually("begun", || gate.begun.load(SeqCst) == AT_ONCE).await;
        all.shutdown().await;
        eventually("stopped", || gate.stopped.load(SeqCst) == AT_ONCE).await;
        eventually("forgotten", || measures.next().is_empty()).await;
        assert_eq!(gate.begun.load(SeqCst), AT_ONCE);
    }
}
