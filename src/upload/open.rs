//! An open upload: the reservation for the whole, and what its parts draw from it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use super::Step;
use crate::reservation::{BoxFuture, Outcome, ReservationOps};

/// The registry that keeps an upload while it is open.
pub(super) trait Keeper: Send + Sync {
    /// Ends this upload, if it is still the one with its key.
    fn forget(&self, upload: &Arc<Upload>);

    /// Starts the expiry timer, unless a part is in flight.
    fn rest(&self, upload: &Arc<Upload>);
}

/// An open upload.
pub(crate) struct Upload {
    /// The reservation for the whole. Released on drop.
    reservation: Arc<dyn ReservationOps>,
    /// The bytes of the whole that were received before this reservation. The guard did not see them, and does not
    /// charge them.
    before: u64,
    registry: Weak<dyn Keeper>,
    /// Its entry in the registry, once it has one.
    key: OnceLock<Arc<str>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    whole: Whole,
    parts: HashMap<Box<str>, Part>,
    /// The sum of the received bytes of all parts. Wide, because clients choose the offset of a part.
    stored: u128,
    /// The sum of what the parts draw.
    drawn: u64,
    draws: u64,
    /// Bytes whose claim on the volume has settled, or is used by a part in flight.
    used_up: u64,
    /// The number of parts in flight.
    in_flight: usize,
    /// A part has succeeded, so the service knows of the upload.
    is_confirmed: bool,
}

/// The total length of an upload.
#[derive(Clone, Copy, Default)]
enum Whole {
    #[default]
    Unknown,
    /// A request says so, which may still fail.
    Said(u64),
    /// A request that said so has succeeded, or brought something.
    Sure(u64),
}

impl Whole {
    const fn bytes(self) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::Said(bytes) | Self::Sure(bytes) => Some(bytes),
        }
    }

    const fn sure(self) -> Option<u64> {
        match self {
            Self::Sure(bytes) => Some(bytes),
            Self::Unknown | Self::Said(_) => None,
        }
    }

    /// What a request says of it, unless it is sure already.
    fn update(&mut self, said: Option<u64>, kind: fn(u64) -> Self) {
        if self.sure().is_none() {
            *self = said.map_or(Self::Unknown, kind);
        }
    }
}

/// The received content of a part, and the draw of the request that replaces it.
#[derive(Default)]
struct Part {
    stored: u64,
    drawn: u64,
    /// The largest length that it has had. The claim for that has settled.
    reached: u64,
    /// The difference between what handlers report as stored and what they have read.
    correction: i128,
    /// The draw that `drawn` belongs to. A client may send a part again while the interrupted connection still hangs.
    by: u64,
    draw: Weak<Draw>,
}

/// What one request draws from its upload. Ends once.
pub(crate) struct Draw {
    upload: Arc<Upload>,
    part: Box<str>,
    offset: Option<u64>,
    /// The total length of the upload, as this request or an earlier one announced it.
    whole: Option<u64>,
    number: u64,
    /// The length of the body, if it is known.
    wanted: Option<u64>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    /// The received bytes of the part before this request.
    replaced: u64,
    /// Bytes that are claimed for the upload, and bytes that are claimed for this request.
    of_upload: u64,
    of_request: u64,
    /// Bytes that were reported as written to the disk, and the upload's bytes that settled with them.
    reported: u64,
    settled: u64,
    /// The received bytes of the part after this request.
    there: u64,
    has_ended: bool,
}

/// The amount that a request has drawn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) bytes: u64,
    /// The part of it that has to be claimed again on the volume: it was received before, and its claim has settled.
    pub(crate) unclaimed: u64,
}

impl Upload {
    pub(super) fn new(
        reservation: Arc<dyn ReservationOps>,
        step: &Step,
        registry: Weak<dyn Keeper>,
    ) -> Self {
        Self {
            reservation,
            before: step.offset.unwrap_or(0),
            registry,
            key: OnceLock::new(),
            state: Mutex::new(State {
                whole: step.whole.map_or(Whole::Unknown, Whole::Said),
                ..State::default()
            }),
        }
    }

    /// The total length, if it is known.
    pub(super) fn whole(&self) -> Option<u64> {
        self.state().whole.bytes()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state().in_flight == 0
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
        u64::try_from(self.state().stored).unwrap_or(u64::MAX)
    }

    pub(super) fn key(&self) -> Option<&Arc<str>> {
        self.key.get()
    }

    pub(super) fn set_key(&self, key: &Arc<str>) {
        self.key.get_or_init(|| Arc::clone(key));
    }

    fn registry(&self) -> Option<Arc<dyn Keeper>> {
        self.registry.upgrade()
    }

    pub(super) fn whole_reservation(&self) -> &Arc<dyn ReservationOps> {
        &self.reservation
    }

    /// A request with a part arrives.
    pub(super) fn enter(self: Arc<Self>, step: &Step, wanted: Option<u64>) -> Arc<Draw> {
        let mut state = self.state();
        // The length is fixed: the service answers a later request that announces another one.
        let said = step.whole.filter(|_| state.whole.sure().is_none());
        let whole = said.or(state.whole.bytes());
        state.draws += 1;
        state.in_flight += 1;
        let number = state.draws;
        let part = state.parts.entry(step.part.clone()).or_default();
        // A part cannot begin behind the received content. The service answers such a request.
        let reached = part.reached.max(self.before);
        let there = step.offset.map_or(0, |offset| offset.min(reached));
        let replaced = std::mem::replace(&mut part.stored, there);
        let draw = Arc::new(Draw {
            upload: Arc::clone(&self),
            part: step.part.clone(),
            offset: step.offset,
            whole,
            number,
            wanted,
            tally: Mutex::new(Tally {
                replaced,
                ..Tally::default()
            }),
        });
        let superseded = std::mem::take(&mut part.drawn);
        let other = std::mem::replace(&mut part.draw, Arc::downgrade(&draw)).upgrade();
        part.by = number;
        state.stored = state.stored - u128::from(replaced) + u128::from(there);
        state.drawn -= superseded;
        if let Some(other) = &other {
            // This request needs what is claimed for it.
            state.used_up -= other.tally().yield_claim();
        }
        drop(state);
        // The upload may have ended, and this may be the last reference: dropping it locks again.
        drop(other);
        draw
    }

    /// The upload is complete, and is charged. `last` is the request that completed it.
    pub(crate) fn complete(self: &Arc<Self>, last: Option<&Draw>) -> BoxFuture<bool> {
        if let Some(registry) = self.registry() {
            registry.forget(self);
        }
        let mut state = self.state();
        if let Some(last) = last {
            // A request that arrived later may have announced any length.
            let there = last.tally().there;
            state.set_there(&last.part, last.number, there);
        }
        let corrections = state.parts.values().map(|part| part.correction);
        let stored = state.stored.saturating_sub(self.before.into());
        let stored = i128::try_from(stored)
            .unwrap_or(i128::MAX)
            .saturating_add(corrections.sum());
        drop(state);
        let stored = u64::try_from(stored.max(0)).unwrap_or(u64::MAX);
        self.reservation
            .report(&mut |report| report.stored_unless_said(stored));
        Arc::clone(&self.reservation).commit()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Correct the figures before foreign code is called.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The part of `reserved` that is neither received nor drawn.
    fn left_of(&self, reserved: u64) -> u64 {
        let taken = self.stored + u128::from(self.drawn);
        let left = u128::from(reserved).saturating_sub(taken);
        u64::try_from(left).unwrap_or(u64::MAX)
    }

    /// Sets the received bytes of a part, and records that this draw brought them.
    fn set_there(&mut self, part: &str, by: u64, there: u64) -> &mut Part {
        let part = self.parts.entry(part.into()).or_default();
        let before = std::mem::replace(&mut part.stored, there);
        self.stored = self.stored - u128::from(before) + u128::from(there);
        self.drawn -= std::mem::take(&mut part.drawn);
        part.by = by;
        part
    }
}

impl Draw {
    pub(crate) fn upload(&self) -> &Arc<Upload> {
        &self.upload
    }

    /// The total length of the upload, as this request or another announced it.
    pub(super) fn whole(&self) -> Option<u64> {
        let state = self.upload.state();
        state.whole.sure().or(self.whole)
    }

    /// Bytes that have to be reserved in addition before the request is admitted.
    pub(crate) fn missing(&self) -> u64 {
        let reserved = self.upload.reserved();
        let state = self.upload.state();
        let left = state.left_of(reserved);
        let for_whole = self.whole.unwrap_or(0).saturating_sub(reserved);
        let for_part = self.must_draw().unwrap_or(0).saturating_sub(left);
        for_whole.max(for_part)
    }

    /// What the request has to draw at admission. If parts arrive in order and the whole is reserved, it is at most
    /// the remaining length: a part that begins elsewhere is a conflict, which the service answers.
    fn must_draw(&self) -> Option<u64> {
        let may_draw_less = self.offset.is_some() && self.whole.is_some();
        self.wanted.filter(|_| !may_draw_less)
    }

    /// Draws the length of the body, or up to `grant` if the length is unknown. None if more has to be reserved first
    /// because another request has drawn it.
    pub(crate) fn draw(&self, grant: u64) -> Option<Drawn> {
        let reserved = self.upload.reserved();
        let mut state = self.upload.state();
        let left = state.left_of(reserved);
        if self.must_draw().is_some_and(|wanted| wanted > left) {
            return None;
        }
        // Only now, because a refused request reserves nothing.
        state.whole.update(self.whole, Whole::Said);
        let bytes = self.wanted.unwrap_or(grant).min(left);
        Some(self.take(&mut state, bytes))
    }

    /// Draws up to `want` bytes more.
    pub(crate) fn draw_more(&self, want: u64) -> u64 {
        let reserved = self.upload.reserved();
        let mut state = self.upload.state();
        let bytes = want.min(state.left_of(reserved));
        self.take(&mut state, bytes).bytes
    }

    fn take(&self, state: &mut State, bytes: u64) -> Drawn {
        let mut fresh = bytes;
        if let Some(part) = state.parts.get_mut(&self.part)
            && part.by == self.number
        {
            let from = part.stored.saturating_add(part.drawn);
            let to = from.saturating_add(bytes);
            fresh = to - part.reached.clamp(from, to);
            part.drawn += bytes;
            state.drawn += bytes;
        }
        let claimed = self.upload.reservation.meter().reserved();
        let of_upload = fresh.min(claimed.saturating_sub(state.used_up));
        state.used_up += of_upload;
        let mut tally = self.tally();
        tally.of_upload += of_upload;
        let unclaimed = bytes - of_upload;
        tally.of_request += unclaimed;
        Drawn { bytes, unclaimed }
    }

    /// `bytes` more of the part have reached the disk.
    pub(crate) fn written(&self, bytes: u64) {
        let mut tally = self.tally();
        if tally.has_ended {
            // What it has not used is available to other parts now.
            return;
        }
        tally.reported = tally.reported.saturating_add(bytes);
        let settling = tally.settle(0);
        drop(tally);
        self.upload.reservation.written(settling);
    }

    /// The request has ended.
    pub(super) fn end(&self, outcome: Outcome) {
        let Outcome {
            success,
            received,
            stored,
        } = outcome;
        let mut tally = self.tally();
        if std::mem::replace(&mut tally.has_ended, true) {
            return;
        }
        let settling = tally.settle(received);
        let there = match self.offset {
            // Received content is kept, even if the rest fails. The next request tells how much it was.
            Some(offset) if success || received > 0 => offset.saturating_add(received),
            None if success => received,
            // The request may have named any offset.
            Some(_) | None => tally.replaced,
        };
        tally.there = there;
        let unused = tally.of_upload - tally.settled;
        drop(tally);

        let mut state = self.upload.state();
        state.in_flight -= 1;
        state.used_up -= unused;
        state.is_confirmed |= success;
        if success || received > 0 {
            state.whole.update(self.whole, Whole::Sure);
        }
        let is_latest = |part: &Part| part.by == self.number;
        // On success the service's count is used. A failed request is ignored if another one has arrived since.
        if success || state.parts.get(&self.part).is_some_and(is_latest) {
            let part = state.set_there(&self.part, self.number, there);
            if received > 0 {
                let came = self.offset.unwrap_or(0).saturating_add(received);
                part.reached = part.reached.max(came);
            }
            if success {
                let begins = self.offset.is_none_or(|offset| offset == 0);
                let before = if begins { 0 } else { part.correction };
                part.correction = before + i128::from(stored) - i128::from(received);
            }
            if part.stored == 0 && part.reached == 0 && part.correction == 0 {
                // Clients choose the names, without a bound on their number.
                state.parts.remove(&self.part);
            }
        }
        let is_unknown = !state.is_confirmed && state.in_flight == 0;
        drop(state);
        self.upload.reservation.written(settling);
        if let Some(registry) = self.upload.registry() {
            if is_unknown {
                registry.forget(&self.upload);
            } else {
                registry.rest(&self.upload);
            }
        }
    }

    /// Whether an upload whose parts arrive in order is complete with this part.
    pub(crate) fn is_last(&self) -> bool {
        let there = self.tally().there;
        self.offset.is_some() && self.upload.whole().is_some_and(|whole| there >= whole)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    /// Gives up the upload's claims that have not settled, and returns how many bytes they were.
    fn yield_claim(&mut self) -> u64 {
        if self.has_ended {
            return 0;
        }
        self.of_upload - std::mem::replace(&mut self.of_upload, self.settled)
    }

    /// The part of the upload's claim that settles once `received` bytes of the body have reached the disk. The claim
    /// of this request alone is used first.
    fn settle(&mut self, received: u64) -> u64 {
        let on_disk = received.max(self.reported);
        let settled = on_disk.saturating_sub(self.of_request);
        let settled = settled.min(self.of_upload).max(self.settled);
        settled - std::mem::replace(&mut self.settled, settled)
    }
}

impl Drop for Draw {
    fn drop(&mut self) {
        // The request was refused at admission.
        self.end(Outcome::default());
    }
}
