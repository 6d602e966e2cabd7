//! The task that settles, and keeps holds alive.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::{HoldId, Journal, Settlement, Store, journal::Noted};
use crate::{quota::Change, scope::Scopes};

/// How many are settled in one step.
const BATCH: usize = 64;
/// How long a store may take for one step before it is tried again.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause after a failure. It doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Hands settlements to the task, and tells it which holds are alive.
pub(super) struct Keeper {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    work: Mutex<Work>,
    /// There is something to settle, or nobody is left to bring any.
    bell: Notify,
    /// Here until all is settled.
    journal: Option<Arc<Journal>>,
}

struct Unsettled {
    settlement: Settlement,
    /// Whether it is in the journal.
    is_noted: bool,
    /// Who waits for it.
    done: oneshot::Sender<()>,
}

#[derive(Default)]
struct Work {
    queue: VecDeque<Unsettled>,
    /// Taken off the queue, and not confirmed yet.
    under_way: usize,
    alive: HashMap<HoldId, Scopes>,
    is_over: bool,
}

impl Keeper {
    pub(super) fn start<S: Store>(
        store: Arc<S>,
        time_to_live: Duration,
        journal: Option<Arc<Journal>>,
    ) -> Self {
        let left = journal.as_ref().map(|journal| {
            journal.start();
            journal.left()
        });
        let state = Arc::new(State {
            journal,
            ..State::default()
        });
        for settlement in left.into_iter().flatten() {
            drop(state.settle(settlement, true));
        }
        tokio::spawn(settle(Arc::clone(&state), Arc::clone(&store)));
        tokio::spawn(renew(Arc::downgrade(&state), store, time_to_live));
        Self { state }
    }

    /// A hold is about to be made: it is renewed until it is settled.
    pub(super) fn keep(&self, id: HoldId, scopes: &Scopes) {
        self.state.work().alive.insert(id, scopes.clone());
    }

    /// Whether a hold has not been ended.
    pub(super) fn keeps(&self, id: HoldId) -> bool {
        self.state.work().alive.contains_key(&id)
    }

    /// There is no such hold.
    pub(super) fn forget(&self, id: HoldId) {
        self.state.work().alive.remove(&id);
    }

    /// Settles, sooner or later.
    pub(super) fn settle(&self, settlement: Settlement) -> Settled {
        let mut is_noted = false;
        if let Some(journal) = &self.state.journal {
            let Settlement {
                id, scopes, change, ..
            } = &settlement;
            // A release can be lost: what is held expires.
            if *change != Change::ZERO && !scopes.is_empty() {
                // The store is asked meanwhile. A charge is safe when it is in one of the two: to wait for the first before
                // asking the other would make that later, not safer.
                drop(journal.note(*id, scopes, *change));
                is_noted = true;
            }
        }
        self.state.settle(settlement, is_noted)
    }

    /// The same for what was noted in the journal one by one, under this id.
    pub(super) fn settle_noted(&self, settlement: Settlement) -> Settled {
        self.state.settle(settlement, true)
    }

    /// Notes a part of what will be settled under this id. None without a journal, or a change.
    pub(super) fn note(&self, id: HoldId, scopes: &Scopes, change: Change) -> Option<Noted> {
        let journal = self.state.journal.as_ref()?;
        (change != Change::ZERO).then(|| journal.note(id, scopes, change))
    }

    pub(super) fn unsettled(&self) -> usize {
        let work = self.state.work();
        work.queue.len() + work.under_way
    }

    /// Whether a kill would lose nothing that is to be charged.
    pub(super) fn is_journaled(&self) -> bool {
        match &self.state.journal {
            Some(journal) => journal.is_written(),
            None => self.unsettled() == 0,
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.state.work().is_over = true;
        self.state.bell.notify_one();
    }
}

impl State {
    fn work(&self) -> MutexGuard<'_, Work> {
        // Plain values, whole between any two statements.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, settlement: Settlement, is_noted: bool) -> Settled {
        let (done, settled) = oneshot::channel();
        let mut work = self.work();
        work.alive.remove(&settlement.id);
        work.queue.push_back(Unsettled {
            settlement,
            is_noted,
            done,
        });
        drop(work);
        self.bell.notify_one();
        Settled {
            store: Some(settled),
            journal: None,
        }
    }

    /// The store has taken all that was under way.
    fn confirm(&self, batch: Vec<Unsettled>) {
        self.work().under_way = 0;
        if let Some(journal) = &self.journal {
            let noted = batch.iter().filter(|one| one.is_noted);
            journal.done(noted.map(|one| one.settlement.id));
        }
        for Unsettled { done, .. } in batch {
            // Its request may be gone.
            let _ = done.send(());
        }
    }

    /// Puts what was under way behind all the others.
    fn put_back(&self, batch: Vec<Unsettled>) {
        let mut work = self.work();
        work.under_way = 0;
        work.queue.extend(batch);
    }

    /// What is to be settled next, up to so many. None when nothing is left, and nothing will come.
    async fn next(&self, most: usize) -> Option<Vec<Unsettled>> {
        loop {
            {
                let mut work = self.work();
                let count = work.queue.len().min(most);
                if count > 0 {
                    work.under_way = count;
                    return Some(work.queue.drain(..count).collect());
                }
                if work.is_over {
                    return None;
                }
            }
            self.bell.notified().await;
        }
    }
}

/// Until all is settled, and nobody is left to bring more.
async fn settle<S: Store>(state: Arc<State>, store: Arc<S>) {
    let (mut most, mut pause) = (BATCH, PAUSE);
    while let Some(batch) = state.next(most).await {
        let settlements: Vec<_> = batch.iter().map(|one| one.settlement.clone()).collect();
        let settled = timeout(PATIENCE, store.settle(&settlements)).await;
        if matches!(settled, Ok(Ok(()))) {
            state.confirm(batch);
            (most, pause) = (BATCH, PAUSE);
        } else {
            // By their ids they are settled once, however often the store is asked. One that it can never take must
            // not hold up the others: from here on they go one by one, and those that fail go last.
            state.put_back(batch);
            tokio::time::sleep(pause).await;
            most = 1;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Renews what is alive, three times in its time to live.
async fn renew<S: Store>(state: Weak<State>, store: Arc<S>, time_to_live: Duration) {
    let every = time_to_live / 3;
    let mut next = Instant::now() + every;
    loop {
        sleep_until(next).await;
        let Some(state) = state.upgrade() else { return };
        let (alive, is_over): (Vec<_>, _) = {
            let work = state.work();
            let alive = work.alive.iter();
            (
                alive.map(|(id, scopes)| (*id, scopes.clone())).collect(),
                work.is_over,
            )
        };
        if is_over && alive.is_empty() {
            return;
        }
        drop(state);
        let mut pause = PAUSE;
        while !alive.is_empty()
            && !matches!(
                timeout(every, store.renew(&alive, time_to_live)).await,
                Ok(Ok(()))
            )
        {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(every);
            // Older than the next renewal is of no use.
            if Instant::now() > next + every {
                break;
            }
        }
        next = (next + every).max(Instant::now());
    }
}

/// Ready once the store has settled; for what was taken of a lease, once it is in the journal if there is one. It may be
/// dropped: it is settled all the same.
#[derive(Default)]
pub struct Settled {
    store: Option<oneshot::Receiver<()>>,
    journal: Option<Noted>,
}

impl Settled {
    /// With nothing to be settled.
    pub(super) fn nothing() -> Self {
        Self::default()
    }

    /// Ready once that is noted, too.
    pub(super) fn and(self, journal: Option<Noted>) -> Self {
        Self { journal, ..self }
    }
}

impl Future for Settled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(noted) = &mut self.journal {
            ready!(Pin::new(noted).poll(cx));
            self.journal = None;
        }
        if let Some(settled) = &mut self.store {
            // Without an answer the runtime has gone, and nobody is left to wait.
            let _ = ready!(Pin::new(settled).poll(cx));
            self.store = None;
        }
        Poll::Ready(())
    }
}

impl fmt::Debug for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settled").finish_non_exhaustive()
    }
}
