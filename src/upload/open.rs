//! An upload that is open: what is set aside for the whole of it, and what its parts draw from that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{Step, registry::Registry};
use crate::{
    price::Ending,
    reservation::{Charged, Later},
};

/// An upload that is open.
pub(crate) struct Upload {
    /// What is set aside for the whole. Dropped, it is released.
    cell: Arc<dyn Charged>,
    /// Of the whole, what was there before this was set aside.
    before: u64,
    registry: Weak<Registry>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    whole: Option<u64>,
    parts: HashMap<Box<str>, Part>,
    /// The sum of what is there of the parts.
    stored: u64,
    /// The sum of what they draw.
    drawn: u64,
    /// By how much what handlers say they have stored differs from what they have read.
    correction: i128,
    draws: u64,
    /// Bytes whose claim on the volume has settled, or is counted on by a part in flight.
    used_up: u64,
    /// How many parts are in flight.
    in_flight: usize,
    /// A part has succeeded, so that the service knows of the upload.
    is_confirmed: bool,
}

/// What is there of a part, and what is in flight to take its place.
#[derive(Default)]
struct Part {
    stored: u64,
    drawn: u64,
    /// How far it ever came. What was claimed for that has settled.
    reached: u64,
    /// The draw that `drawn` belongs to. A part may be sent again while the connection that broke off still hangs.
    by: u64,
}

/// What one request draws from its upload. It ends once.
pub(crate) struct Draw {
    upload: Arc<Upload>,
    key: Box<str>,
    part: Box<str>,
    offset: Option<u64>,
    /// How long the upload is in all, as far as this request or an earlier one said.
    whole: Option<u64>,
    number: u64,
    /// What the body brings, where its length is known.
    wanted: Option<u64>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// What was there of the part before.
    replaced: u64,
    /// Bytes that are claimed for the upload, and others that are claimed for this request.
    of_upload: u64,
    of_request: u64,
    /// Bytes that were reported to have reached the disk, and of the upload's, those that have settled with that.
    reported: u64,
    settled: u64,
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
    pub(super) fn new(cell: Arc<dyn Charged>, step: &Step, registry: Weak<Registry>) -> Self {
        let before = cell.demand().moved().bytes;
        Self {
            cell,
            before,
            registry,
            state: Mutex::new(State {
                whole: step.whole,
                ..State::default()
            }),
        }
    }

    /// How long it is in all, as far as that is known.
    pub(super) fn whole(&self) -> Option<u64> {
        self.state().whole
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state().in_flight == 0
    }

    /// Bytes set aside for the whole.
    pub(super) fn reserved(&self) -> u64 {
        self.cell.meter().reserved().saturating_add(self.before)
    }

    /// Bytes that are there.
    pub(super) fn received(&self) -> u64 {
        self.state().stored
    }

    pub(crate) fn cell(&self) -> &Arc<dyn Charged> {
        &self.cell
    }

    /// A request with a part of it comes in.
    pub(super) fn enter(self: Arc<Self>, step: &Step, wanted: Option<u64>) -> Arc<Draw> {
        let mut state = self.state();
        let whole = state.whole.max(step.whole);
        state.draws += 1;
        state.in_flight += 1;
        let number = state.draws;
        let part = state.parts.entry(step.part.clone()).or_default();
        let there = step.offset.unwrap_or(0);
        let replaced = std::mem::replace(&mut part.stored, there);
        let superseded = std::mem::take(&mut part.drawn);
        part.by = number;
        state.stored = (state.stored - replaced).saturating_add(there);
        state.drawn -= superseded;
        drop(state);
        Arc::new(Draw {
            upload: self,
            key: step.key.clone(),
            part: step.part.clone(),
            offset: step.offset,
            whole,
            number,
            wanted,
            books: Mutex::new(Books {
                replaced,
                ..Books::default()
            }),
        })
    }

    /// All is there: it is charged.
    pub(super) fn complete(&self) -> Later<bool> {
        let state = self.state();
        let stored = i128::from(state.stored - self.before.min(state.stored)) + state.correction;
        drop(state);
        let stored = u64::try_from(stored.max(0)).unwrap_or(u64::MAX);
        self.cell
            .report(&mut |report| report.stored_unless_said(stored));
        Arc::clone(&self.cell).commit()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Figures, put right before anybody else's code is called.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Of so much that is set aside, what is neither there nor drawn.
    fn left_of(&self, reserved: u64) -> u64 {
        reserved.saturating_sub(self.stored.saturating_add(self.drawn))
    }
}

impl Draw {
    pub(crate) fn upload(&self) -> &Arc<Upload> {
        &self.upload
    }

    /// Bytes that have to be set aside beside what is, before the request is let in.
    pub(crate) fn missing(&self) -> u64 {
        let reserved = self.upload.reserved();
        let state = self.upload.state();
        let left = state.left_of(reserved);
        let for_whole = self.whole.unwrap_or(0).saturating_sub(reserved);
        for_whole.max(self.wanted.unwrap_or(0).saturating_sub(left))
    }

    /// Draws what the body brings, or where nobody knows how much that is, up to `grant`. None where more has to be set
    /// aside first: somebody else has drawn it.
    pub(crate) fn draw(&self, grant: u64) -> Option<Drawn> {
        let reserved = self.upload.reserved();
        let mut state = self.upload.state();
        let left = state.left_of(reserved);
        let bytes = match self.wanted {
            Some(wanted) if wanted > left => return None,
            Some(wanted) => wanted,
            None => grant.min(left),
        };
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
        let claimed = self.upload.cell.meter().reserved();
        let of_upload = fresh.min(claimed.saturating_sub(state.used_up));
        state.used_up += of_upload;
        let mut books = self.books();
        books.of_upload += of_upload;
        let unclaimed = bytes - of_upload;
        books.of_request += unclaimed;
        Drawn { bytes, unclaimed }
    }

    /// `bytes` more of it have reached the disk.
    pub(crate) fn written(&self, bytes: u64) {
        let mut books = self.books();
        books.reported = books.reported.saturating_add(bytes);
        let settling = books.settle(0);
        drop(books);
        self.upload.cell.written(settling);
    }

    /// The request has ended.
    pub(crate) fn end(&self, ending: Ending) {
        let Ending {
            success,
            received,
            stored,
        } = ending;
        let mut books = self.books();
        if std::mem::replace(&mut books.has_ended, true) {
            return;
        }
        let settling = books.settle(received);
        let (unused, replaced) = (books.of_upload - books.settled, books.replaced);
        drop(books);

        let mut state = self.upload.state();
        state.in_flight -= 1;
        state.used_up -= unused;
        state.is_confirmed |= success;
        if success {
            // Only now, as nothing was set aside where it was refused.
            state.whole = state.whole.max(self.whole);
            state.correction += i128::from(stored) - i128::from(received);
        }
        if let Some(part) = state.parts.get_mut(&self.part)
            && part.by == self.number
        {
            let there = match self.offset {
                // What came is kept, whatever became of the rest. The next request says how much it was.
                Some(offset) => offset.saturating_add(received),
                None if success => received,
                None => replaced,
            };
            let drawn = std::mem::take(&mut part.drawn);
            let came = self.offset.unwrap_or(0).saturating_add(received);
            part.reached = part.reached.max(came);
            let before = std::mem::replace(&mut part.stored, there);
            state.drawn -= drawn;
            state.stored = (state.stored - before).saturating_add(there);
        }
        let is_unknown = !state.is_confirmed && state.in_flight == 0;
        drop(state);
        self.upload.cell.written(settling);
        if let Some(registry) = self.upload.registry.upgrade() {
            if is_unknown {
                registry.forget(&self.key, &self.upload);
            } else {
                registry.rest(&self.key, &self.upload);
            }
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
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
        self.end(Ending::default());
    }
}
