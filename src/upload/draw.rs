//! What one request draws from its upload.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    Step,
    content::{Claims, Place},
    open::{Answer, Left, Upload, lock},
    step::Kind,
};
use crate::{
    amount::Amount,
    refused::Refused,
    reservation::{BoxFuture, Outcome},
};

/// What one request draws from its upload. Ends once.
pub(crate) struct Draw {
    upload: Arc<Upload>,
    kind: Kind,
    at: Place,
    /// The total length of the upload, as this request or an earlier one announced it.
    whole: Option<u64>,
    /// The bytes that the request stores, if the length of the body is known.
    wanted: Option<u64>,
    copied: u64,
    is_stored: bool,
    claims: Arc<Mutex<Claims>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the handler has reported as replaced.
    replaced: Option<Amount>,
    /// Bytes that were reserved for the upload on its behalf.
    grown: u64,
    ended: Option<Outcome>,
    /// The client has left in the middle of the body.
    broke_off: bool,
    answer: Answer,
    is_applied: bool,
    /// The commit that the answer waits for.
    settling: Option<BoxFuture<bool>>,
}

/// The amount that a request has drawn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) bytes: u64,
    /// The part of it that has to be claimed again on the volume: it was received before, and its claim has settled.
    pub(crate) unclaimed: u64,
}

impl Draw {
    /// A request arrives. None if the upload has ended.
    pub(super) fn enter(upload: &Arc<Upload>, step: &Step, body: Option<u64>) -> Option<Arc<Self>> {
        let claims = Arc::default();
        let (at, whole) = upload.enter(step, &claims)?;
        Some(Arc::new(Self {
            upload: Arc::clone(upload),
            kind: step.kind,
            at,
            whole,
            wanted: match step.is_stored {
                true => body.map(|body| body.saturating_add(step.copied)),
                false => Some(0),
            },
            copied: step.copied,
            is_stored: step.is_stored,
            claims,
            state: Mutex::default(),
        }))
    }

    pub(crate) fn upload(&self) -> &Arc<Upload> {
        &self.upload
    }

    pub(super) fn at(&self) -> &Place {
        &self.at
    }

    pub(super) fn claims(&self) -> &Mutex<Claims> {
        &self.claims
    }

    pub(super) fn is_stored(&self) -> bool {
        self.is_stored
    }

    pub(super) fn copied(&self) -> u64 {
        self.copied
    }

    /// The total length of the upload, as this request or another announced it.
    pub(super) fn whole(&self) -> Option<u64> {
        self.upload.sure_whole().or(self.whole)
    }

    /// Bytes that have to be reserved in addition before the request is admitted.
    pub(crate) fn missing(&self) -> u64 {
        // What was taken back from a silent client is only reserved again for content.
        let brings_nothing = self.wanted == Some(0) && self.upload.sure_whole().is_some();
        let for_whole = match self.whole {
            Some(whole) if !brings_nothing => whole.saturating_sub(self.upload.reserved()),
            _ => 0,
        };
        let for_part = self.must_draw().saturating_sub(self.upload.room(&self.at));
        for_whole.max(for_part)
    }

    /// What the request has to draw at admission. If parts arrive in order and the whole is reserved, it is at most
    /// the remaining length: a part that begins elsewhere is a conflict, which the service answers.
    fn must_draw(&self) -> u64 {
        let may_draw_less = self.at.offset.is_some() && self.whole.is_some();
        match self.wanted {
            _ if may_draw_less => 0,
            Some(wanted) => wanted,
            None => self.copied,
        }
    }

    /// Draws what the request stores, or up to `grant` if its length is unknown. None if more has to be reserved
    /// first because another request has drawn it.
    pub(crate) fn draw(&self, grant: u64) -> Option<Drawn> {
        let wanted = self.wanted.unwrap_or(grant.saturating_add(self.copied));
        self.take(self.must_draw(), wanted)
    }

    /// Draws up to `want` bytes more.
    pub(crate) fn draw_more(&self, want: u64) -> u64 {
        self.take(0, want).map_or(0, |drawn| drawn.bytes)
    }

    fn take(&self, need: u64, want: u64) -> Option<Drawn> {
        let drawn = self.upload.draw(&self.at, &self.claims, need, want);
        drawn.map(|(bytes, unclaimed)| Drawn { bytes, unclaimed })
    }

    /// Reserves `want` bytes more for the upload, or at least `need`.
    pub(super) async fn grow(&self, need: u64, want: u64) -> Result<(), Refused> {
        let whole = self.upload.whole_reservation();
        let grown = match Arc::clone(whole).grow(need, want).await {
            Ok(grown) => grown,
            Err(refused) => {
                // The upload goes on, so no request waits for its end.
                whole.reinstate();
                return Err(refused);
            }
        };
        let mut state = self.state();
        state.grown = state.grown.saturating_add(grown);
        let is_over = state.is_applied;
        drop(state);
        if is_over {
            self.upload.spare(grown);
        }
        Ok(())
    }

    /// `bytes` more of the part have reached the disk.
    pub(crate) fn written(&self, bytes: u64) {
        let settling = lock(&self.claims).write(bytes);
        self.upload.whole_reservation().written(settling);
    }

    /// The handler reports what the whole replaces. It counts if the request succeeds.
    pub(super) fn replaces(&self, replaced: Amount) {
        self.state().replaced = Some(replaced);
    }

    /// The request has ended.
    pub(super) fn end(&self, outcome: Outcome) {
        self.state().ended.get_or_insert(outcome);
        self.apply();
    }

    /// The client has left in the middle of the body. Its answer is no refusal then, whatever the status: the service has
    /// read the head, and some of the body.
    pub(super) fn broke_off(&self) {
        self.state().broke_off = true;
    }

    /// The request was answered so. A success counts once it has ended too.
    pub(super) fn answered(&self, answer: Answer) {
        let mut state = self.state();
        let is_no_refusal = matches!(answer, Answer::Refused) && state.broke_off;
        if matches!(state.answer, Answer::Awaited) && !is_no_refusal {
            state.answer = answer;
        }
        drop(state);
        self.apply();
    }

    /// The handler has committed the request: what it has stored stays, even if the client has left.
    pub(super) fn committed(&self) -> Option<BoxFuture<bool>> {
        if self.is_last() {
            self.answered(Answer::Complete);
        }
        self.settling()
    }

    /// The commit of the upload that this request has ended, once.
    pub(super) fn settling(&self) -> Option<BoxFuture<bool>> {
        self.state().settling.take()
    }

    /// Whether the upload is complete with this request.
    fn is_last(&self) -> bool {
        let received = self.state().ended.map_or(0, |ended| ended.received);
        let is_whole =
            |whole| self.at.offset.is_some() && self.at.from.saturating_add(received) >= whole;
        self.kind == Kind::Finish || self.whole().is_some_and(is_whole)
    }

    /// Applies the end of the request to its upload, once end and answer are known.
    fn apply(&self) {
        let mut state = self.state();
        let Some(ended) = state.ended else { return };
        let is_known = !ended.success || !matches!(state.answer, Answer::Awaited);
        if !is_known || mem::replace(&mut state.is_applied, true) {
            return;
        }
        let answer = mem::take(&mut state.answer);
        let (replaced, grown) = (state.replaced, state.grown);
        drop(state);

        let body = match self.is_stored {
            true => ended.received.saturating_add(self.copied),
            false => 0,
        };
        let mut claims = lock(&self.claims);
        let written = claims.written();
        let is_of_whole = matches!(self.kind, Kind::Finish | Kind::Abort);
        let (came, stored) = match ended.report.stored {
            Some(stored) if ended.success && !is_of_whole => (body, stored),
            _ if ended.success => (body, body),
            // What a request leaves that has failed.
            Some(stored) if !is_of_whole => (stored, 0),
            None if !matches!(answer, Answer::Refused) => (body.max(written), 0),
            _ => (written, 0),
        };
        let unused = claims.end(body.max(stored).max(written));
        drop(claims);
        self.upload.whole_reservation().written(unused.settling);
        let settled = self.upload.leave(Left {
            at: &self.at,
            success: ended.success,
            answer,
            came,
            stored,
            whole_stored: ended.report.stored.filter(|_| is_of_whole),
            report: ended.report,
            replaced,
            whole: self.whole,
            grown,
            unused,
        });
        self.state().settling = settled;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Draw {
    fn drop(&mut self) {
        let mut state = self.state();
        if state.ended.is_none() {
            // It was refused at admission.
            state.answer = Answer::Refused;
            drop(state);
            self.end(Outcome::default());
        }
    }
}
