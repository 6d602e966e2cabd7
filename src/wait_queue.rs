//! Where requests wait for room that others are about to give back.
//!
//! Uploads of unknown length are admitted with a small grant and grow. If there is no room to grow, all of them would
//! fail together, and none would be stored. So they wait in a queue: the oldest is served first, and if nothing moves
//! for a while, the youngest is refused, and the others use its room. The body of a waiting upload is not read, so
//! backpressure reaches its client.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    offers::{Offers, Shortage},
    time::Bound,
};

/// How many times a waiting request tries again within its patience.
const LOOKS: u32 = 10;

/// One queue. It is empty unless a resource is short.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    /// The number of wakers, so that an empty queue needs no lock.
    listeners: AtomicUsize,
    /// Reservations that may have to grow.
    growers: AtomicUsize,
    numbers: AtomicU64,
    /// What can be taken back before a request has to wait.
    pub(crate) offers: Arc<Offers>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By listener.
    wakers: BTreeMap<u64, Waker>,
    /// The reservations that wait to grow, each with the time until which its place is kept without another poll. A
    /// future that is no longer polled must not block all reservations behind it.
    growing: BTreeMap<Standing, Instant>,
    /// The reservations that were refused growth, with the resource that was short, until they have ended.
    evicted: BTreeMap<u64, Shortage>,
    /// How many times room was given back while a reservation waits.
    moves: BTreeMap<Shortage, u64>,
}

/// The resource, the age of the reservation, and the number of its place: body and handle may wait at once.
type Standing = (Shortage, u64, u64);

impl WaitQueue {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Room was given back, or a new reading was published: all waiters try again.
    ///
    /// A listener that registers concurrently may miss this. It tries again after a while by itself.
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

    /// A place for a waiter that only listens.
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

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.listeners.load(Ordering::Relaxed)
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a reservation older than `number` waits for one of `keys`, or any reservation if `number` is None.
    pub(crate) fn is_waiting<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a Shortage>,
        number: Option<u64>,
    ) -> bool {
        // The queue is empty most of the time, and then no lock is needed.
        self.listeners.load(Ordering::SeqCst) != 0 && {
            let state = self.state();
            keys.into_iter().any(|key| {
                state
                    .first(key)
                    .is_some_and(|age| number.is_none_or(|number| age < number))
            })
        }
    }

    /// How many of those are reservations that wait to grow. Takes the lock.
    pub(crate) fn growing(&self) -> usize {
        self.state().growing.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Sets of plain values, consistent between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The ages of the reservations that wait for `key`, oldest first.
    fn waiting(&self, key: &Shortage) -> impl DoubleEndedIterator<Item = u64> {
        let now = Instant::now();
        self.growing
            .range((key.clone(), 0, 0)..=(key.clone(), u64::MAX, u64::MAX))
            .filter(move |(_, kept)| **kept >= now)
            .map(|((_, age, _), _)| *age)
    }

    fn first(&self, key: &Shortage) -> Option<u64> {
        // Usually no reservation waits, and then the clock is not read.
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
    /// Registers the waker for the next notification.
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
        // Any end gives back room on the volume, and the next reading has to show it.
        state.moved(&None);
        drop(state);
        queue.notify();
    }
}

/// Why an attempt to grow failed.
#[derive(Debug)]
pub(crate) struct Short<E> {
    /// The resource that is short. None if waiting cannot help.
    pub(crate) of: Option<Shortage>,
    pub(crate) error: E,
}

impl Ticket {
    /// Whether an older reservation waits for one of `keys`, so that this one may not try yet.
    pub(crate) fn yields<'a>(&self, keys: impl IntoIterator<Item = &'a Shortage>) -> bool {
        self.queue.is_waiting(keys, Some(self.number))
    }

    /// The reservation goes on, though its growth was refused: other reservations do not have to wait for its end.
    pub(crate) fn reinstate(&self) {
        self.queue.state().evicted.remove(&self.number);
    }

    /// Whether another reservation may be refused, and give room back.
    pub(crate) fn has_company(&self) -> bool {
        self.queue.growers.load(Ordering::Acquire) > 1
    }

    /// Runs `attempt` until it succeeds, queued with others that wait for the same resource.
    ///
    /// # Errors
    ///
    /// The last error, if waiting cannot help, if this reservation is the youngest in the queue and nothing moved, or
    /// if it has been the first in the queue for all of its patience.
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
                    // Room that is given back only shows in the next reading.
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
                    Ok(done) => {
                        // It may have been evicted while it had no place, because the attempt took long. It gives no room back.
                        self.reinstate();
                        return Ok(done);
                    }
                    // Another resource is short now: wait in its queue.
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

/// A place in the queue. Leaves the queue on drop.
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

    /// Waits until the queue is notified, or for `bound`: true if the bound elapsed.
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

    /// Keeps the place for as long as the patience lasts.
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

    /// Whether no older reservation waits. Body and handle of one request may be the first together.
    fn is_first(&self) -> bool {
        let first = self.state().first(&self.key);
        first == Some(self.ticket.number)
    }

    fn is_evicted(&self) -> bool {
        self.state().evicted.contains_key(&self.ticket.number)
    }

    /// One at a time, because the room of the last one may be enough.
    fn evict_youngest(&self) -> bool {
        self.stay();
        let mut state = self.state();
        let youngest = {
            let mut waiting = state.waiting(&self.key);
            // An older one may have come back from an attempt of its own, while this one made its attempt.
            let is_first = waiting.next() == Some(self.ticket.number);
            let youngest = waiting.next_back().filter(|_| is_first);
            youngest.filter(|age| *age != self.ticket.number)
        };
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
        // Another reservation is the first now.
        self.listener.queue.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn short() -> Short<&'static str> {
        Short {
            of: Some(None),
            error: "full",
        }
    }

    /// An attempt that outlasts the patience, such as a call to a slow store, loses its place for a while.
    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_not_evicted_while_attempts_take_long() {
        let queue = Arc::new(WaitQueue::new());
        let (oldest, younger) = (queue.ticket(), queue.ticket());
        let (began, attempts) = (Instant::now(), AtomicU32::new(0));
        let old = oldest.grow(PATIENCE, || async {
            if attempts.fetch_add(1, Ordering::Relaxed) == 1 {
                sleep(PATIENCE * 23 / 10).await;
            }
            let is_room = began.elapsed() > PATIENCE * 7 / 2;
            if is_room { Ok(()) } else { Err(short()) }
        });
        // It becomes the first meanwhile, and its own attempt ends when the oldest is back.
        let young = younger.grow(PATIENCE, || async {
            sleep(PATIENCE * 5 / 4).await;
            Err::<(), _>(short())
        });
        let (grown, refused) = tokio::join!(old, young);
        grown.unwrap();
        refused.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_grown_late_is_not_evicted_any_more() {
        let queue = Arc::new(WaitQueue::new());
        let (first, second) = (queue.ticket(), queue.ticket());
        let attempts = AtomicU32::new(0);
        let grown = first.grow(PATIENCE, || async {
            if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(short());
            }
            // Evicted while the attempt is under way.
            queue.state().evicted.insert(first.number, None);
            Ok(())
        });
        grown.await.unwrap();
        assert!(queue.state().evicted.is_empty());
        // Its next growth waits like any other, and is not refused at once.
        let attempts = AtomicU32::new(0);
        let again = first.grow(PATIENCE, || async {
            match attempts.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Err(short()),
                _ => Ok(()),
            }
        });
        again.await.unwrap();
        drop(second);
    }
}
