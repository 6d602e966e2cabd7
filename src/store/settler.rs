//! The tasks that settle holds, and renew them.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    HoldId, Journal, Settlement, Store,
    journal::{Noted, Together},
    soft::SoftLimits,
};
use crate::{quota::Change, scope::Scopes};

/// How many settlements one call to the store has at most.
const BATCH: usize = 64;
/// How long a store may take for one call before it is called again.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause after a failure. It doubles up to the longest one.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The handle of the two tasks: takes settlements, and knows which holds are alive.
///
/// There are two tasks, so that a settlement that the store cannot take does not delay renewals.
pub(super) struct Settler {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    work: Mutex<Work>,
    /// There is something to settle, or the handle was dropped.
    bell: Notify,
    /// Kept open until all is settled.
    journal: Option<Journal>,
    /// Whether charges take the place of intents. The journal has to have them before the store then: what it still has as an
    /// intent is charged by the next process.
    has_intents: AtomicBool,
}

struct Unsettled {
    settlement: Settlement,
    /// Whether it is in the journal.
    is_noted: bool,
    done: oneshot::Sender<()>,
}

#[derive(Default)]
struct Work {
    waiting: VecDeque<Unsettled>,
    /// How many were taken off the queue, and are not confirmed yet.
    under_way: usize,
    alive: HashMap<HoldId, Scopes>,
    /// Whether the handle was dropped.
    is_over: bool,
}

impl Settler {
    pub(super) fn start<S: Store>(
        store: Arc<S>,
        soft: Arc<SoftLimits>,
        time_to_live: Duration,
        mut journal: Option<Journal>,
    ) -> Self {
        let left = journal.as_mut().map(|journal| {
            journal.start();
            journal.left()
        });
        let queue = Arc::new(Queue {
            journal,
            ..Queue::default()
        });
        for settlement in left.into_iter().flatten() {
            drop(queue.push(settlement, true));
        }
        tokio::spawn(settle(Arc::clone(&queue), Arc::clone(&store), soft));
        tokio::spawn(renew(Arc::downgrade(&queue), store, time_to_live));
        Self { queue }
    }

    /// Renews a hold until it is settled. Called before the store is asked for it.
    pub(super) fn keep_alive(&self, id: HoldId, scopes: &Scopes) {
        self.queue.work().alive.insert(id, scopes.clone());
    }

    /// Whether a hold is renewed, and so has not been ended.
    pub(super) fn is_alive(&self, id: HoldId) -> bool {
        self.queue.work().alive.contains_key(&id)
    }

    /// Stops renewing a hold that the store does not have.
    pub(super) fn forget(&self, id: HoldId) {
        self.queue.work().alive.remove(&id);
    }

    /// Settles, as soon as the store takes it.
    pub(super) fn settle(&self, settlement: Settlement) -> Settled {
        let (id, scopes) = (settlement.id, &settlement.scopes);
        // The store is asked meanwhile. A charge is safe once either of the two has it, so waiting for the journal would
        // only delay it.
        let noted = match scopes.is_empty() {
            true => None,
            false => self.note(id, scopes, settlement.change),
        };
        self.queue.push(settlement, noted.is_some())
    }

    /// Settles what was noted in the journal piece by piece under this id.
    pub(super) fn settle_noted(&self, settlement: Settlement) -> Settled {
        self.queue.push(settlement, true)
    }

    /// Notes a part of what will be settled under this id. None without a journal, or without a change: a release may be
    /// lost, since holds expire.
    pub(super) fn note(&self, id: HoldId, scopes: &Scopes, change: Change) -> Option<Noted> {
        let journal = self.queue.journal.as_ref()?;
        (change != Change::ZERO).then(|| journal.note(id, scopes, change))
    }

    /// Notes a change that is about to be made, and that will be settled under this id. None without a journal.
    pub(super) fn intend(&self, id: HoldId, scopes: &Scopes, note: &[u8]) -> Option<Noted> {
        let journal = self.queue.journal.as_ref()?;
        self.queue.has_intents.store(true, Ordering::Relaxed);
        Some(journal.intend(id, scopes, note))
    }

    /// What is noted until this is dropped is written together. Held for an instant.
    pub(super) fn together(&self) -> Option<Together<'_>> {
        let journal = self.queue.journal.as_ref()?;
        Some(journal.together())
    }

    /// An intended change was not made, or nothing is charged for it.
    pub(super) fn forget_intent(&self, id: HoldId) {
        if let Some(journal) = &self.queue.journal {
            journal.done([id]);
        }
    }

    pub(super) fn unsettled(&self) -> usize {
        let work = self.queue.work();
        work.waiting.len() + work.under_way
    }

    /// Whether a kill would lose no charge.
    pub(super) fn is_journaled(&self) -> bool {
        match &self.queue.journal {
            Some(journal) => journal.is_written(),
            None => self.unsettled() == 0,
        }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.queue.work().is_over = true;
        self.queue.bell.notify_one();
    }
}

impl Queue {
    fn work(&self) -> MutexGuard<'_, Work> {
        // Plain values that are consistent between any two statements.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, settlement: Settlement, is_noted: bool) -> Settled {
        let (done, settled) = oneshot::channel();
        let mut work = self.work();
        work.alive.remove(&settlement.id);
        work.waiting.push_back(Unsettled {
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

    /// The store has taken everything that was under way.
    fn confirm(&self, batch: Vec<Unsettled>) {
        self.work().under_way = 0;
        if let Some(journal) = &self.journal {
            let noted = batch.iter().filter(|one| one.is_noted);
            journal.done(noted.map(|one| one.settlement.id));
        }
        for Unsettled { done, .. } in batch {
            // The receiver may be gone, with its request.
            let _ = done.send(());
        }
    }

    /// Puts what was under way behind everything that waits.
    fn put_back(&self, batch: Vec<Unsettled>) {
        let mut work = self.work();
        work.under_way = 0;
        work.waiting.extend(batch);
    }

    /// The next settlements, up to `most`. None when the queue is empty and the handle was dropped.
    async fn next(&self, most: usize) -> Option<Vec<Unsettled>> {
        loop {
            {
                let mut work = self.work();
                let count = work.waiting.len().min(most);
                if count > 0 {
                    work.under_way = count;
                    return Some(work.waiting.drain(..count).collect());
                }
                if work.is_over {
                    return None;
                }
            }
            self.bell.notified().await;
        }
    }
}

/// Settles until the queue is empty and the handle was dropped.
async fn settle<S: Store>(queue: Arc<Queue>, store: Arc<S>, soft: Arc<SoftLimits>) {
    let (mut most, mut pause) = (BATCH, PAUSE);
    while let Some(batch) = queue.next(most).await {
        let settlements = batch.iter().map(|one| one.settlement.clone());
        let settlements: Vec<_> = settlements
            .map(|one| one.with_defaults(&soft.limits))
            .collect();
        if queue.has_intents.load(Ordering::Relaxed)
            && let Some(journal) = &queue.journal
        {
            journal.written().await;
        }
        let asked = Instant::now();
        let settled = call(PATIENCE, async { store.settle(&settlements).await });
        if let Some(Ok(over)) = settled.await {
            let scopes = settlements.iter().flat_map(|one| &one.scopes);
            // Before the requests go on, whose answers warn.
            soft.learn(scopes, over, asked);
            queue.confirm(batch);
            (most, pause) = (BATCH, PAUSE);
        } else {
            // Settlements are idempotent, so asking again is safe. One that the store can never take must not hold up the
            // others: from here on they go one by one, and those that fail go to the end of the queue.
            queue.put_back(batch);
            sleep(pause).await;
            most = 1;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Awaits a call to a store, which may be the user's own. None if it takes longer than its patience, or panics: the task goes
/// on for all others.
async fn call<T>(patience: Duration, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let polled = poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
        polled.map_or(Poll::Ready(None), |polled| polled.map(Some))
    });
    timeout(patience, polled).await.ok().flatten()
}

/// Renews the holds that are alive, three times in their time to live.
async fn renew<S: Store>(queue: Weak<Queue>, store: Arc<S>, time_to_live: Duration) {
    let every = time_to_live / 3;
    let mut next = Instant::now() + every;
    loop {
        sleep_until(next).await;
        let Some(queue) = queue.upgrade() else { return };
        let (alive, is_over) = {
            let work = queue.work();
            (work.alive.clone(), work.is_over)
        };
        drop(queue);
        if is_over && alive.is_empty() {
            return;
        }
        let alive: Vec<_> = alive.into_iter().collect();
        let mut pause = PAUSE;
        while !alive.is_empty() {
            let renewed = call(every, async { store.renew(&alive, time_to_live).await });
            if matches!(renewed.await, Some(Ok(()))) {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(every);
            // The next renewal is due, with fresh holds.
            if Instant::now() > next + every {
                break;
            }
        }
        next = (next + every).max(Instant::now());
    }
}

/// Resolves once the store has taken a settlement. A charge to a lease resolves once it is in the journal, if there is
/// one.
///
/// It is cancel-safe: the settlement is made even if this is dropped.
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

    /// Waits for the journal as well.
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
            // An error means that the runtime has shut down, so there is nothing to wait for.
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
