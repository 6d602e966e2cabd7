//! Where requests wait for room that others are about to give back.
//!
//! Uploads of unknown length are let in on a small grant and grow. When there is no room to grow, all
//! of them would fail together, and with as many files stored as none. So they wait in a queue: the
//! oldest is served first, and when nothing moves for a while, the youngest is sent away, whose room
//! the others then have. An upload that waits is not read from; its client just sees a slow server.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::{scope::Scope, time::Bound};

/// How many times a waiting request looks around within its patience.
const LOOKS: u32 = 10;

/// What is short: the volume, or a scope's quota.
pub(crate) type Shortage = Option<Scope>;

/// One queue. It is empty unless something is short.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    /// How many wakers there are, so that the lock is not taken for an empty queue.
    listeners: AtomicUsize,
    /// Reservations that may have to grow.
    growers: AtomicUsize,
    numbers: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By listener.
    wakers: BTreeMap<u64, Waker>,
    /// Who waits to grow, and until when the place is kept without another look. A future that nobody
    /// polls must not hold up everybody behind it.
    growing: BTreeMap<Standing, Instant>,
    /// Who was sent away, and for want of what, until the reservation has ended.
    evicted: BTreeMap<u64, Shortage>,
    /// How many times somebody gave back what is short, while anybody waits for it.
    moves: BTreeMap<Shortage, u64>,
}

/// What is short, the age of the reservation, and which of its places this is: body and handle may wait
/// at once.
type Standing = (Shortage, u64, u64);

impl WaitQueue {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Something was given back, or a new reading is there: whoever waits looks again.
    ///
    /// A listener that comes just now may miss it. It looks again soon by itself.
    #[inline]
    pub(crate) fn notify(&self) {
        if self.listeners.load(Ordering::SeqCst) != 0 {
            let mut state = self.state();
            let wakers = std::mem::take(&mut state.wakers);
            self.listeners.store(0, Ordering::SeqCst);
            drop(state);
            wakers.into_values().for_each(Waker::wake);
        }
    }

    /// A place for somebody who only listens.
    pub(crate) fn listener(self: &Arc<Self>) -> Listener {
        Listener {
            queue: Arc::clone(self),
            number: self.number(),
        }
    }

    /// The age of a reservation that may have to grow.
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        self.growers.fetch_add(1, Ordering::AcqRel);
        Ticket {
            queue: Arc::clone(self),
            number: self.number(),
        }
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether somebody older than `number` waits for one of `keys`, or anybody where that is None.
    pub(crate) fn is_waiting<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a Shortage>,
        number: Option<u64>,
    ) -> bool {
        // The queue is empty most of the time, and then there is nothing to lock.
        self.listeners.load(Ordering::SeqCst) != 0 && {
            let state = self.state();
            keys.into_iter().any(|key| {
                state
                    .first(key)
                    .is_some_and(|age| number.is_none_or(|number| age < number))
            })
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Sets of plain values, whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The ages of those who wait for `key`, oldest first.
    fn waiting(&self, key: &Shortage) -> impl DoubleEndedIterator<Item = u64> {
        let now = Instant::now();
        self.growing
            .range((key.clone(), 0, 0)..=(key.clone(), u64::MAX, u64::MAX))
            .filter(move |(_, kept)| **kept >= now)
            .map(|((_, age, _), _)| *age)
    }

    fn first(&self, key: &Shortage) -> Option<u64> {
        // Nobody waits most of the time, and then the clock is not read.
        if self.growing.is_empty() {
            return None;
        }
        self.waiting(key).next()
    }

    fn moved(&mut self, key: &Shortage) {
        if self.first(key).is_none() {
            self.moves.remove(key);
        } else if let Some(moves) = self.moves.get_mut(key) {
            *moves += 1;
        } else {
            self.moves.insert(key.clone(), 1);
        }
    }
}

/// A task that is woken when the queue is notified.
#[derive(Debug)]
pub(crate) struct Listener {
    queue: Arc<WaitQueue>,
    number: u64,
}

impl Listener {
    /// Leaves the waker for the next notify.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        let mut state = self.queue.state();
        state.wakers.insert(self.number, cx.waker().clone());
        self.queue
            .listeners
            .store(state.wakers.len(), Ordering::SeqCst);
    }

    fn is_listening(&self) -> bool {
        self.queue.state().wakers.contains_key(&self.number)
    }

    fn leave(&self) {
        let mut state = self.queue.state();
        state.wakers.remove(&self.number);
        self.queue
            .listeners
            .store(state.wakers.len(), Ordering::SeqCst);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The age of a reservation in a queue. Dropped when the reservation ends.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: Arc<WaitQueue>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let queue = &self.queue;
        queue.growers.fetch_sub(1, Ordering::AcqRel);
        let mut state = queue.state();
        if let Some(key) = state.evicted.remove(&self.number).flatten() {
            state.moved(&Some(key));
        }
        // Any end gives back room on the volume, and the next reading has to see it.
        state.moved(&None);
        drop(state);
        queue.notify();
    }
}

/// Why an attempt to grow did not succeed.
#[derive(Debug)]
pub(crate) struct Short<E> {
    /// What is short. None where waiting cannot help.
    pub(crate) of: Option<Shortage>,
    pub(crate) error: E,
}

impl Ticket {
    /// Whether somebody older waits for one of `keys`, so that this one may not try yet.
    pub(crate) fn yields<'a>(&self, keys: impl IntoIterator<Item = &'a Shortage>) -> bool {
        self.queue.is_waiting(keys, Some(self.number))
    }

    /// The reservation goes on, though it was sent away: nobody has to wait for its end.
    pub(crate) fn reinstate(&self) {
        self.queue.state().evicted.remove(&self.number);
    }

    /// Whether some other reservation may be sent away, and give room back.
    pub(crate) fn has_company(&self) -> bool {
        self.queue.growers.load(Ordering::Acquire) > 1
    }

    /// Tries `attempt` until it succeeds, queued with others that are short of the same.
    ///
    /// # Errors
    ///
    /// With the last error: when waiting cannot help, when this one is the youngest in the queue and
    /// nothing moved, or when it waited as the first for all of its patience.
    pub(crate) async fn grow<T, E, F>(
        &self,
        patience: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, Short<E>>>,
    {
        let mut short = match attempt().await {
            Ok(done) => return Ok(done),
            Err(short) => short,
        };
        loop {
            let Some(key) = short.of.take().filter(|_| !patience.is_zero()) else {
                return Err(short.error);
            };
            let place = Place::take(self, key, patience);
            let mut bound = Bound::new(patience / LOOKS);
            let (mut looks, mut moves) = (0, place.moves());
            short = loop {
                let mut late = place.look(&mut bound).await;
                let before = std::mem::replace(&mut moves, place.moves());
                if late || moves != before {
                    // What somebody gives back is seen only by the next reading.
                    bound = Bound::new(patience / LOOKS);
                    late = moves == before;
                }
                if place.is_evicted() {
                    return Err(short.error);
                }
                if !place.is_first() {
                    continue;
                }
                match attempt().await {
                    Ok(done) => return Ok(done),
                    // Now it is something else that is short: another queue to wait in.
                    Err(again) if again.of.as_ref() != Some(&place.key) => break again,
                    Err(again) => short = again,
                }
                if late {
                    looks = if place.evict_youngest() { 0 } else { looks + 1 };
                    if looks == LOOKS {
                        return Err(short.error);
                    }
                }
            };
        }
    }
}

/// A place in the queue. Dropping it leaves the queue.
struct Place<'a> {
    ticket: &'a Ticket,
    listener: Listener,
    key: Shortage,
    patience: Duration,
}

impl<'a> Place<'a> {
    fn take(ticket: &'a Ticket, key: Shortage, patience: Duration) -> Self {
        let place = Self {
            ticket,
            listener: ticket.queue.listener(),
            key,
            patience,
        };
        place.stay();
        place
    }

    /// Waits until the queue is notified, or for `bound`: true for the latter.
    async fn look(&self, bound: &mut Bound) -> bool {
        let mut listening = false;
        poll_fn(|cx| {
            self.stay();
            if listening && !self.listener.is_listening() {
                return Poll::Ready(false);
            }
            if bound.poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            self.listener.listen(cx);
            listening = true;
            Poll::Pending
        })
        .await
    }

    /// Keeps the place, for as long as it has patience.
    fn stay(&self) {
        if let Some(until) = Instant::now().checked_add(self.patience) {
            self.state().growing.insert(self.standing(), until);
        }
    }

    fn standing(&self) -> Standing {
        (self.key.clone(), self.ticket.number, self.listener.number)
    }

    fn moves(&self) -> u64 {
        self.state().moves.get(&self.key).copied().unwrap_or(0)
    }

    /// Whether nobody older waits. Body and handle of one request may be the first together.
    fn is_first(&self) -> bool {
        let first = self.state().first(&self.key);
        first == Some(self.ticket.number)
    }

    fn is_evicted(&self) -> bool {
        self.state().evicted.contains_key(&self.ticket.number)
    }

    /// One at a time: what the last one gives back may be enough.
    fn evict_youngest(&self) -> bool {
        let mut state = self.state();
        let youngest = state.waiting(&self.key).next_back();
        let youngest = youngest.filter(|age| *age != self.ticket.number);
        let is_under_way = state.evicted.values().any(|key| *key == self.key);
        match youngest {
            Some(age) if !is_under_way => {
                state.evicted.insert(age, self.key.clone());
                drop(state);
                self.listener.queue.notify();
                true
            }
            _ => false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.listener.queue.state()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.state();
        state.growing.remove(&self.standing());
        state.moved(&self.key);
        drop(state);
        self.listener.leave();
        // Somebody else is the first now.
        self.listener.queue.notify();
    }
}
