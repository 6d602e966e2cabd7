//! An upload that is open: what is set aside for the whole of it, and what its parts draw from that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use super::Step;
use crate::reservation::{BoxFuture, Outcome, ReservationOps};

/// Where an upload is kept while it is open.
pub(super) trait Keeper: Send + Sync {
    /// Ends this upload, if it is the one of its key.
    fn forget(&self, upload: &Arc<Upload>);

    /// Begins to count its time, if no part is in flight.
    fn rest(&self, upload: &Arc<Upload>);
}

/// An upload that is open.
pub(crate) struct Upload {
    /// What is set aside for the whole. Dropped, it is released.
    reservation: Arc<dyn ReservationOps>,
    /// Of the whole, what came before this was set aside: the guard did not see it, and charges nobody for it.
    before: u64,
    registry: Weak<dyn Keeper>,
    /// Where it is in the registry, once it is there.
    key: OnceLock<Arc<str>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    whole: Whole,
    parts: HashMap<Box<str>, Part>,
    /// The sum of what is there of the parts. Wide, as clients choose where a part begins.
    stored: u128,
    /// The sum of what they draw.
    drawn: u64,
    draws: u64,
    /// Bytes whose claim on the volume has settled, or is counted on by a part in flight.
    used_up: u64,
    /// How many parts are in flight.
    in_flight: usize,
    /// A part has succeeded, so that the service knows of the upload.
    is_confirmed: bool,
}

/// How long an upload is in all.
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

/// What is there of a part, and what is in flight to take its place.
#[derive(Default)]
struct Part {
    stored: u64,
    drawn: u64,
    /// How far it ever came. What was claimed for that has settled.
    reached: u64,
    /// By how much what handlers say they have stored differs from what they have read.
    correction: i128,
    /// The draw that `drawn` belongs to. A part may be sent again while the connection that broke off still hangs.
    by: u64,
    draw: Weak<Draw>,
}

/// What one request draws from its upload. It ends once.
pub(crate) struct Draw {
    upload: Arc<Upload>,
    part: Box<str>,
    offset: Option<u64>,
    /// How long the upload is in all, as far as this request or an earlier one said.
    whole: Option<u64>,
    number: u64,
    /// What the body brings, where its length is known.
    wanted: Option<u64>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    /// What was there of the part before.
    replaced: u64,
    /// Bytes that are claimed for the upload, and others that are claimed for this request.
    of_upload: u64,
    of_request: u64,
    /// Bytes that were reported to have reached the disk, and of the upload's, those that have settled with that.
    reported: u64,
    settled: u64,
    /// What is there of the part after it.
    there: u64,
    has_ended: bool,
}

/// What a request has drawn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) bytes: u64,
    /// Of these, what has to be claimed on the volume once more: it came before, and what was claimed for it has settled.
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

    /// How long it is in all, as far as that is known.
    pub(super) fn whole(&self) -> Option<u64> {
        self.state().whole.bytes()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state().in_flight == 0
    }

    /// Bytes set aside for the whole.
    pub(super) fn reserved(&self) -> u64 {
        self.reservation
            .meter()
            .reserved()
            .saturating_add(self.before)
    }

    /// Bytes that are there.
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

    /// A request with a part of it comes in.
    pub(super) fn enter(self: Arc<Self>, step: &Step, wanted: Option<u64>) -> Arc<Draw> {
        let mut state = self.state();
        // It does not change: who says so later is told by the service.
        let said = step.whole.filter(|_| state.whole.sure().is_none());
        let whole = said.or(state.whole.bytes());
        state.draws += 1;
        state.in_flight += 1;
        let number = state.draws;
        let part = state.parts.entry(step.part.clone()).or_default();
        // Behind what ever came nothing can begin. The service will say so.
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
            // What is claimed for it is needed here.
            state.used_up -= other.tally().yield_claim();
        }
        drop(state);
        // It may have ended, and this be the last of it: that locks again.
        drop(other);
        draw
    }

    /// All is there: it is charged. `last` has brought the last of it.
    pub(crate) fn complete(self: &Arc<Self>, last: Option<&Draw>) -> BoxFuture<bool> {
        if let Some(registry) = self.registry() {
            registry.forget(self);
        }
        let mut state = self.state();
        if let Some(last) = last {
            // Whoever came in behind it may have said anything.
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
        // Figures, put right before anybody else's code is called.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Of so much that is set aside, what is neither there nor drawn.
    fn left_of(&self, reserved: u64) -> u64 {
        let taken = self.stored + u128::from(self.drawn);
        let left = u128::from(reserved).saturating_sub(taken);
        u64::try_from(left).unwrap_or(u64::MAX)
    }

    /// Sets what is there of a part, and that this draw has brought it.
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

    /// How long the upload is in all, as far as this request or another said.
    pub(super) fn whole(&self) -> Option<u64> {
        let state = self.upload.state();
        state.whole.sure().or(self.whole)
    }

    /// Bytes that have to be set aside beside what is, before the request is let in.
    pub(crate) fn missing(&self) -> u64 {
        let reserved = self.upload.reserved();
        let state = self.upload.state();
        let left = state.left_of(reserved);
        let for_whole = self.whole.unwrap_or(0).saturating_sub(reserved);
        let for_part = self.must_draw().unwrap_or(0).saturating_sub(left);
        for_whole.max(for_part)
    }

    /// What it has to draw at the door. Where parts come one after the other, and the whole is set aside, it is no more
    /// than what is left: what begins elsewhere is a conflict, and for the service to answer.
    fn must_draw(&self) -> Option<u64> {
        let may_draw_less = self.offset.is_some() && self.whole.is_some();
        self.wanted.filter(|_| !may_draw_less)
    }

    /// Draws what the body brings, or where nobody knows how much that is, up to `grant`. None where more has to be set
    /// aside first: somebody else has drawn it.
    pub(crate) fn draw(&self, grant: u64) -> Option<Drawn> {
        let reserved = self.upload.reserved();
        let mut state = self.upload.state();
        let left = state.left_of(reserved);
        if self.must_draw().is_some_and(|wanted| wanted > left) {
            return None;
        }
        // Only now, as nothing was set aside where it is refused.
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

    /// `bytes` more of it have reached the disk.
    pub(crate) fn written(&self, bytes: u64) {
        let mut tally = self.tally();
        if tally.has_ended {
            // What it has not used is others' now.
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
            // What came is kept, whatever became of the rest. The next request says how much it was.
            Some(offset) if success || received > 0 => offset.saturating_add(received),
            None if success => received,
            // It may have named any offset.
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
        // A success is the service's word. One that failed says nothing where another has come in since.
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
                // Names are the client's to choose, as many as it likes.
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

    /// Whether, with this, all is there of an upload whose parts come one after the other.
    pub(crate) fn is_last(&self) -> bool {
        let there = self.tally().there;
        self.offset.is_some() && self.upload.whole().is_some_and(|whole| there >= whole)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    /// Gives up what is claimed for the upload and has not settled. How much that is.
    fn yield_claim(&mut self) -> u64 {
        if self.has_ended {
            return 0;
        }
        self.of_upload - std::mem::replace(&mut self.of_upload, self.settled)
    }

    /// Of what is claimed for the upload, what settles when at least so much of the body has reached the disk. What is
    /// claimed for this request alone goes first.
    fn settle(&mut self, received: u64) -> u64 {
        let on_disk = received.max(self.reported);
        let settled = on_disk.saturating_sub(self.of_request);
        let settled = settled.min(self.of_upload).max(self.settled);
        settled - std::mem::replace(&mut self.settled, settled)
    }
}

impl Drop for Draw {
    fn drop(&mut self) {
        // Sent away at the door.
        self.end(Outcome::default());
    }
}
