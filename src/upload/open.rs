//! An open upload: the reservation for the whole, and how it ends.

mod silence;

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, atomic::AtomicUsize},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Step,
    content::{Claims, Contents, Place, Unused},
};
use crate::{
    amount::Amount,
    offers::Offer,
    reservation::{BoxFuture, Report, ReservationOps},
};

/// The registry that keeps an upload while it is open.
pub(super) trait Keeper: Send + Sync {
    /// Enters an upload under a key that the service has just assigned.
    fn park(&self, key: &str, upload: &Arc<Upload>, expiry: &Expiry);

    /// Ends this upload, if it is still the one with its key.
    fn forget(&self, upload: &Arc<Upload>);

    /// Starts the expiry timer. It starts anew if something `came`.
    fn rest(&self, upload: &Arc<Upload>, came: bool);
}

/// A request in flight whose client is silent.
pub(super) trait SilentPart: Send + Sync {
    fn at(&self) -> &Place;
    fn claims(&self) -> &Mutex<Claims>;

    /// Lowers what it may read to what it has read. Returns the difference.
    fn give_up_unread(&self) -> u64;
}

/// How an upload expires.
#[derive(Clone)]
pub(super) struct Expiry {
    pub(super) idle: Duration,
    /// After which time without a byte others may take back what was not received.
    pub(super) grace: Duration,
    pub(super) hook: Option<Arc<ExpiryHook>>,
}

/// Removes the data of an upload, by its key. Resolves to whether they are removed.
pub(super) type ExpiryHook = dyn Fn(String) -> BoxFuture<bool> + Send + Sync;

/// An open upload.
pub(crate) struct Upload {
    /// The reservation for the whole. Released on drop.
    reservation: Arc<dyn ReservationOps>,
    /// The bytes of the whole that were received before this reservation. The guard did not see them, and does not
    /// charge them.
    before: u64,
    registry: Weak<dyn Keeper>,
    grace: Duration,
    /// Its entry in the registry, once it has one.
    key: OnceLock<Arc<str>>,
    state: Mutex<State>,
    itself: Weak<Self>,
}

#[derive(Default)]
struct State {
    stage: Stage,
    /// The total length, and whether a request that announced it has succeeded. One that has only broken off may have
    /// told it to the service too.
    whole: Option<u64>,
    is_whole_sure: bool,
    contents: Contents,
    /// What the service has stored beside the upload: by requests that it took for ordinary ones, and by those that
    /// outlived the upload.
    extra: Amount,
    /// What the whole replaces, as its handlers have reported.
    replaced: Option<Amount>,
    /// The number of requests so far.
    requests: u64,
    /// Bytes whose claim on the volume has settled, or is used by a request in flight.
    used_up: u64,
    /// The number of requests in flight.
    in_flight: usize,
    /// Bytes that were reserved for requests that were refused.
    spare: u64,
    /// The requests in flight whose clients are silent, by number.
    silent: Vec<(u64, Weak<dyn SilentPart>)>,
    /// When the last byte came, or it was opened.
    last_came: Option<Instant>,
    /// What is offered to others.
    offers: Vec<Offer>,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Stage {
    /// No answer has kept it open yet. If none will, only `extra` is charged.
    #[default]
    New,
    Open,
    /// It is settled when its last request in flight has ended. `objects` are left of it.
    Closed {
        objects: u64,
    },
    /// Its reservation has ended. `beside` were charged for extra content and for requests in flight: what these do
    /// not store is given back.
    Settled {
        beside: u64,
    },
}

/// What the answer to a request means for its upload.
#[derive(Default)]
pub(super) enum Answer {
    #[default]
    Awaited,
    /// The client has left. The handler may have committed the request before, with this many objects.
    Missed {
        objects: u64,
    },
    /// An error of the client (4xx): nothing is stored, except what the handler has reported.
    Refused,
    Open,
    /// Open under this key.
    OpenAs(String, Expiry),
    Complete,
    Removed,
    /// The content is charged by itself, with this many objects.
    Ordinary {
        objects: u64,
    },
}

/// A request that has ended, and what it has left.
pub(super) struct Left<'a> {
    pub(super) at: &'a Place,
    pub(super) success: bool,
    pub(super) answer: Answer,
    /// Bytes of content, as the client counts, and as the service stores them.
    pub(super) came: u64,
    pub(super) stored: u64,
    /// The length of the whole, as the handler has reported it.
    pub(super) whole_stored: Option<u64>,
    pub(super) report: Report,
    /// What the handler has reported as replaced.
    pub(super) replaced: Option<Amount>,
    /// The length of the whole, as the client has announced it.
    pub(super) whole: Option<u64>,
    /// Bytes that were reserved on its behalf.
    pub(super) grown: u64,
    pub(super) unused: Unused,
}

/// What a request does to its upload by its end.
enum After {
    /// Nothing more.
    Rest,
    Park(String, Expiry),
    Complete,
}

impl Upload {
    pub(super) fn new(
        reservation: Arc<dyn ReservationOps>,
        step: &Step,
        registry: Weak<dyn Keeper>,
        grace: Duration,
        remembered: &Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let before = step.offset.unwrap_or(0);
        Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            reservation,
            before,
            registry,
            grace,
            key: OnceLock::new(),
            state: Mutex::new(State {
                contents: Contents::with(&step.part, before, remembered),
                ..State::default()
            }),
        })
    }

    /// The total length, if it is known.
    pub(super) fn whole(&self) -> Option<u64> {
        self.state().whole
    }

    /// The total length, if no later request can announce another one.
    pub(super) fn sure_whole(&self) -> Option<u64> {
        let state = self.state();
        state.whole.filter(|_| state.is_whole_sure)
    }

    pub(super) fn has(&self, part: &Option<Box<str>>) -> bool {
        self.state().contents.has(part)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state().in_flight == 0
    }

    /// The time since the last byte came, or it was opened.
    pub(super) fn idle(&self) -> Duration {
        let last = self.state().last_came;
        last.map(|last| last.elapsed()).unwrap_or_default()
    }

    /// Bytes reserved for the whole.
    pub(super) fn reserved(&self) -> u64 {
        self.reservation
            .meter()
            .reserved()
            .saturating_add(self.before)
    }

    /// Bytes received.
    pub(super) fn received(&self) -> u64 {
        saturate(self.state().contents.sizes())
    }

    pub(super) fn key(&self) -> Option<&Arc<str>> {
        self.key.get()
    }

    pub(super) fn set_key(&self, key: &Arc<str>) {
        self.key.get_or_init(|| Arc::clone(key));
    }

    pub(super) fn whole_reservation(&self) -> &Arc<dyn ReservationOps> {
        &self.reservation
    }

    /// A request arrives. Returns its place, and the total length if it is known. None if the upload has ended.
    pub(super) fn enter(
        &self,
        step: &Step,
        claims: &Arc<Mutex<Claims>>,
    ) -> Option<(Place, Option<u64>)> {
        let mut state = self.state();
        if !matches!(state.stage, Stage::New | Stage::Open) {
            return None;
        }
        state.requests += 1;
        state.in_flight += 1;
        // Content cannot begin behind what was received. The service answers such a request.
        let reached = state.contents.reached(&step.part);
        let at = Place {
            part: step.part.clone(),
            offset: step.offset,
            from: step.offset.map_or(0, |offset| offset.min(reached)),
            number: state.requests,
        };
        if !at.is_appended()
            && let Some(other) = state.contents.enter(&at, claims)
        {
            // This request needs what is claimed for it. A client may send a part again while the interrupted
            // connection still hangs.
            state.used_up -= lock(&other).give_up();
        }
        let said = step.whole.filter(|_| step.is_part());
        Some((
            at,
            match state.is_whole_sure {
                // The length is fixed: the service answers a request that announces another one.
                true => state.whole,
                false => said.or(state.whole),
            },
        ))
    }

    /// The bytes that a request may draw in addition.
    pub(super) fn room(&self, at: &Place) -> u64 {
        let state = self.state();
        state.room(self.reserved(), at)
    }

    /// Draws up to `want` bytes, or at least `need`. Returns how many, and how many of them have to be claimed again on
    /// the volume: they were received before, and their claim has settled.
    pub(super) fn draw(
        &self,
        at: &Place,
        claims: &Mutex<Claims>,
        need: u64,
        want: u64,
    ) -> Option<(u64, u64)> {
        let mut state = self.state();
        // Under the lock, because it is lowered there.
        let reserved = self.reserved();
        let mut claims = lock(claims);
        let room = match claims.has_ended() {
            true => 0,
            false => state.room(reserved, at),
        };
        if need > room {
            return None;
        }
        let bytes = want.min(room);
        let fresh = state.contents.draw(at, bytes);
        let claimed = self.reservation.meter().reserved();
        let free = claimed.saturating_sub(state.used_up);
        let of_upload = fresh.unwrap_or(bytes).min(free);
        state.used_up += of_upload;
        let unclaimed = claims.draw(bytes, of_upload, fresh.is_none());
        Some((bytes, unclaimed))
    }

    /// A request has ended. Returns the commit that its answer has to wait for.
    pub(super) fn leave(self: &Arc<Self>, left: Left<'_>) -> Option<BoxFuture<bool>> {
        let registry = self.registry();
        if let (Some(registry), Answer::Complete | Answer::Removed) = (&registry, &left.answer)
            && left.success
        {
            // First, so that no request enters an upload that has ended.
            registry.forget(self);
        }
        let (came, report, whole_stored) = (
            left.came > 0 || left.success,
            left.report,
            left.whole_stored,
        );
        let mut state = self.state();
        state.in_flight -= 1;
        // What a silent one has brought came before.
        let brought = !state.forget_silent(left.at) && left.came > 0;
        if brought || state.last_came.is_none() {
            state.last_came = Some(Instant::now());
        }
        state.used_up -= left.unused.of_upload;
        if matches!(left.answer, Answer::Refused) && !left.success {
            state.spare = state.spare.saturating_add(left.grown);
        }
        state.contents.leave(left.at, left.unused.stray);
        let after = state.end(left);
        match (state.stage, after) {
            (Stage::Open, After::Complete) => {
                let received = saturate(state.contents.sizes()).saturating_sub(self.before);
                let stored = whole_stored.unwrap_or(received);
                self.settle(state, Amount::new(stored, report.made.unwrap_or(1)), true)
            }
            (Stage::Open, after) => {
                self.give_back_spare(state);
                self.offer();
                match (&registry, after) {
                    (Some(registry), After::Park(key, expiry)) => {
                        registry.park(&key, self, &expiry)
                    }
                    (Some(registry), _) => registry.rest(self, came),
                    (None, _) => {}
                }
                None
            }
            (Stage::Settled { beside }, _) => {
                let needed = state.beside().min(beside);
                state.stage = Stage::Settled { beside: needed };
                drop(state);
                self.reservation.give_back(Amount::bytes(beside - needed));
                None
            }
            (Stage::New | Stage::Closed { .. }, _) => {
                let is_idle = state.in_flight == 0;
                let settled = self.settle_if_idle(state);
                if let (true, Some(registry)) = (is_idle, &registry) {
                    registry.forget(self);
                }
                settled
            }
        }
    }

    /// Bytes were reserved for a request, and are not needed.
    pub(super) fn spare(&self, bytes: u64) {
        let mut state = self.state();
        state.spare = state.spare.saturating_add(bytes);
        self.give_back_spare(state);
    }

    /// Gives back what was reserved for requests that were refused, as far as no other needs it.
    fn give_back_spare(&self, mut state: MutexGuard<'_, State>) {
        // A request in flight may count on it.
        if state.in_flight > 0 || state.spare == 0 {
            return;
        }
        let spare = mem::take(&mut state.spare);
        let received = saturate(state.contents.sizes());
        let whole = state.whole.map_or(received, |whole| whole.max(received));
        let needed = whole
            .saturating_add(state.extra.bytes)
            .saturating_sub(self.before);
        let meter = self.reservation.meter();
        // Under the lock, so that no request counts on it that arrives.
        meter.lower_to(meter.reserved().saturating_sub(spare).max(needed));
        drop(state);
        self.reservation.shrink();
    }

    /// The service has removed what was received.
    pub(super) fn remove(&self) {
        let mut state = self.state();
        state.remove();
        self.settle_if_idle(state);
    }

    /// No further request belongs to it. What was received is charged, because it may still be there.
    pub(super) fn close(&self) {
        let mut state = self.state();
        if state.stage == Stage::Open {
            state.stage = Stage::Closed { objects: 1 };
        }
        self.settle_if_idle(state);
    }

    /// Settles an upload that no later request can complete, once nothing of it is in flight.
    fn settle_if_idle(&self, state: MutexGuard<'_, State>) -> Option<BoxFuture<bool>> {
        let objects = match state.stage {
            Stage::New => 0,
            Stage::Closed { objects } => objects,
            Stage::Open | Stage::Settled { .. } => return None,
        };
        if state.in_flight > 0 {
            return None;
        }
        let received = match state.stage {
            // Like any request that has failed.
            Stage::New => 0,
            _ => saturate(state.contents.sizes()).saturating_sub(self.before),
        };
        self.settle(state, Amount::new(received, objects), false)
    }

    /// Ends the reservation, and charges `stored` and the extra content.
    fn settle(
        &self,
        mut state: MutexGuard<'_, State>,
        stored: Amount,
        is_complete: bool,
    ) -> Option<BoxFuture<bool>> {
        // Requests in flight may store what they have drawn.
        let beside = state.beside();
        let all = stored + Amount::new(beside, state.extra.objects);
        let is_new = state.stage == Stage::New;
        state.stage = Stage::Settled { beside };
        let replaced = state.replaced;
        drop(state);
        if !is_complete && all.is_zero() {
            self.reservation.release();
            return None;
        }
        self.reservation.report(&mut |report| {
            report.stored = Some(all.bytes);
            report.made = Some(all.objects);
            report.replaced = replaced;
            // A new one was an ordinary request.
            report.is_unfinished = !is_complete && !is_new;
        });
        Some(Arc::clone(&self.reservation).commit())
    }

    fn registry(&self) -> Option<Arc<dyn Keeper>> {
        self.registry.upgrade()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// The part of `reserved` that neither other content nor other requests need.
    fn room(&self, reserved: u64, at: &Place) -> u64 {
        if matches!(self.stage, Stage::Settled { .. }) {
            return 0;
        }
        let taken = self.contents.taken_beside(at) + u128::from(self.extra.bytes);
        saturate(u128::from(reserved).saturating_sub(taken))
    }

    fn remove(&mut self) {
        if matches!(self.stage, Stage::New | Stage::Open) {
            self.contents.clear();
            self.stage = Stage::Closed { objects: 0 };
        }
    }

    /// The bytes that are stored beside the upload, or may be by requests in flight.
    fn beside(&self) -> u64 {
        saturate(self.contents.drawn()).saturating_add(self.extra.bytes)
    }

    fn store_beside(&mut self, stored: u64, objects: u64) {
        self.extra = self.extra + Amount::new(stored, objects);
    }

    /// Enters what a request has left.
    fn end(&mut self, left: Left<'_>) -> After {
        let is_open = matches!(self.stage, Stage::New | Stage::Open);
        let made = |objects| left.report.made.unwrap_or(objects);
        match left.answer {
            _ if !left.success => {
                if is_open && left.came > 0 {
                    self.contents.raise(left.at, left.came);
                    if !matches!(left.answer, Answer::Refused) {
                        self.whole = self.whole.or(left.whole);
                    }
                }
            }
            Answer::Missed { .. } if self.stage == Stage::Open => {
                self.contents.set(left.at, left.came, left.stored);
            }
            Answer::Ordinary { objects } | Answer::Missed { objects } => {
                self.store_beside(left.stored, made(objects));
                if self.stage == Stage::New {
                    self.replaced = left.replaced;
                }
            }
            // The upload has ended meanwhile, and this is still there.
            _ if !is_open => self.store_beside(left.stored, 0),
            Answer::Removed => {
                self.remove();
                self.store_beside(left.stored, 0);
            }
            answer => {
                self.stage = Stage::Open;
                if !self.is_whole_sure {
                    (self.whole, self.is_whole_sure) = (left.whole, left.whole.is_some());
                }
                self.replaced = left.replaced.or(self.replaced);
                self.contents.set(left.at, left.came, left.stored);
                return match answer {
                    Answer::Complete => After::Complete,
                    Answer::OpenAs(key, expiry) => After::Park(key, expiry),
                    _ => After::Rest,
                };
            }
        }
        After::Rest
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Correct the figures before foreign code is called.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn saturate(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
