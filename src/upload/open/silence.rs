//! An open upload whose clients are silent: what it offers to others, and how they take it back.

use std::{mem, sync::Weak};

use tokio::time::Instant;

use super::{super::content::Place, SilentPart, Stage, State, Upload, lock, saturate};
use crate::offers::Silent;

impl Upload {
    /// The client of a request is silent, whose last byte came then, if any did.
    pub(in crate::upload) fn fall_silent(
        &self,
        at: &Place,
        part: Weak<dyn SilentPart>,
        last_came: Option<Instant>,
    ) {
        let mut state = self.state();
        state.silent.push((at.number, part));
        state.last_came = last_came.max(state.last_came);
        drop(state);
        self.offer();
    }

    /// The client of a request goes on.
    pub(in crate::upload) fn go_on(&self, at: &Place) {
        self.state().forget_silent(at);
    }

    /// Offers what was not received to others, once no byte has come for the grace.
    pub(super) fn offer(&self) {
        let mut state = self.state();
        let from = state.last_came.unwrap_or_else(Instant::now);
        let (Stage::Open, Some(from)) = (state.stage, from.checked_add(self.grace)) else {
            return;
        };
        let by: Weak<dyn Silent> = self.itself.clone() as _;
        let received = saturate(state.contents.sizes()).saturating_add(state.extra.bytes);
        let bytes = self.reserved().saturating_sub(received);
        let before = mem::replace(&mut state.offers, self.reservation.offer(bytes, from, by));
        drop(state);
        drop(before);
    }
}

impl Silent for Upload {
    fn take_back(&self) -> bool {
        let mut state = self.state();
        let offers = mem::take(&mut state.offers);
        let is_due = |since: Instant| since.elapsed() >= self.grace;
        let is_silent = state.stage == Stage::Open
            && state.silent.len() == state.in_flight
            && state.last_came.is_some_and(is_due);
        if !is_silent {
            drop(state);
            drop(offers);
            // For later.
            self.offer();
            return false;
        }
        // They ask for more when their clients go on.
        let silent = state.silent.clone();
        let mut parts = Vec::new();
        for part in silent.iter().filter_map(|(_, part)| part.upgrade()) {
            let bytes = part.give_up_unread();
            let (of_upload, stray) = lock(part.claims()).undraw(bytes);
            state.contents.undraw(part.at(), bytes, stray);
            state.used_up -= of_upload;
            // Not dropped under the lock.
            parts.push(part);
        }
        let taken = state.contents.sizes() + state.contents.drawn();
        let needed = saturate(taken)
            .saturating_add(state.extra.bytes)
            .saturating_sub(self.before);
        self.reservation.meter().lower_to(needed);
        drop(state);
        drop((offers, parts));
        self.reservation.shrink();
        true
    }
}

impl State {
    /// A request has ended, or its client goes on. True if it was silent.
    pub(super) fn forget_silent(&mut self, at: &Place) -> bool {
        let before = self.silent.len();
        self.silent.retain(|(number, _)| *number != at.number);
        self.silent.len() < before
    }
}
