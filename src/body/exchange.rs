//! What the body, the handle and the answer of one request share: a reservation, and the progress of each.

use std::{
    mem,
    sync::{Arc, MutexGuard},
    task::Waker,
};

use tokio::time::Instant;

use super::unread::Unread;
use crate::{
    quota::{QuotaHold, QuotaSource},
    refused::Refused,
    reservation::{Attachment, BoxFuture, Ended, ReservationOps, Shared, State},
};

/// The reservation of a request.
pub(crate) type HttpReservation<Q> = Shared<Q, Progress>;

/// The progress of a request's body and answer.
#[derive(Default)]
pub(crate) struct Progress {
    body: BodyState,
    /// The body to be drained, if any.
    unread: Option<Unread>,
    /// The answer was a success, and was sent before the body ended.
    is_answered: bool,
    /// Wakes the answer that is being sent when the body is cut.
    watcher: Option<Waker>,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum BodyState {
    #[default]
    Open,
    Read,
    /// The client disconnected, or violated the protocol.
    Failed,
}

impl Attachment for Progress {
    type Rest = (Option<Unread>, Option<Waker>);

    fn take_rest(&mut self) -> Self::Rest {
        (self.unread.take(), self.watcher.take())
    }
}

/// How a body ended.
pub(crate) enum BodyEnd {
    /// Read to its end, or as far as the handler wanted. The rest may have to be drained.
    Read(Option<Unread>),
    /// The client disconnected, or violated the protocol.
    Failed,
}

/// The operations of body and answer on the reservation that they share, for any quota source.
pub(crate) trait Exchange: ReservationOps {
    /// The body was cut. The rest may have to be drained.
    fn cut(&self, refused: &Refused, unread: Option<Unread>);
    /// Returns the rest if the code that answers does not drain it.
    fn body_ended(&self, end: BodyEnd) -> Option<Unread>;

    /// The client has sent nothing since then. Others may take back what it has not delivered.
    fn fall_silent(self: Arc<Self>, since: Instant);
    /// It goes on, with what is reserved now.
    fn go_on(&self);
    /// Nothing more of the body will be read, and the answer may take its time.
    fn give_back_unread(&self);

    /// The answer was sent completely, or was not. Returns the reservation's end, if the body has ended before.
    fn answer_ended(self: Arc<Self>, success: bool) -> BoxFuture<()>;

    /// Wakes the answer that is being sent when the body is cut.
    fn watch(&self, waker: &Waker);

    fn take_unread(&self) -> Option<Unread>;
}

impl<Q: QuotaSource> HttpReservation<Q> {
    /// Ends the reservation as a success if the body has been read, and puts the rest into `unread`. None if it is still being
    /// read.
    ///
    /// # Errors
    ///
    /// If the body was cut; then the reservation is not ended here.
    #[inline]
    pub(crate) fn end_if_read(
        &self,
        unread: &mut Option<Unread>,
    ) -> Result<Option<Ended<Q::Hold>>, Refused> {
        let mut state = self.state();
        match state.refused() {
            Some(refused) => Err(refused.clone()),
            None if state.attachment.body != BodyState::Open => {
                if state.attachment.unread.is_some() {
                    *unread = state.attachment.unread.take();
                }
                Ok(Some(self.end_in(state, true)))
            }
            None => Ok(None),
        }
    }

    /// Whether the request has not ended.
    pub(crate) fn is_unfinished(&self) -> bool {
        let progress = &self.state().attachment;
        progress.body == BodyState::Open || progress.unread.as_ref().is_some_and(Unread::closes)
    }

    pub(crate) fn take_unread(&self) -> Option<Unread> {
        self.state().attachment.unread.take()
    }

    fn progress(&self) -> MutexGuard<'_, State<Q::Hold, Progress>> {
        self.state()
    }
}

impl<Q> Exchange for HttpReservation<Q>
where
    Q: QuotaSource,
{
    fn cut(&self, refused: &Refused, unread: Option<Unread>) {
        self.close();
        let mut state = self.progress();
        state.cut(refused);
        // Set together with the refusal: another thread may see the refusal and send the answer at once.
        let useless = match state.has_ended() {
            true => unread,
            false => mem::replace(&mut state.attachment.unread, unread),
        };
        let watcher = state.attachment.watcher.take();
        drop(state);
        drop(useless);
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    fn body_ended(&self, end: BodyEnd) -> Option<Unread> {
        let mut state = self.progress();
        let has_ended = state.has_ended();
        let progress = &mut state.attachment;
        let has_failed = matches!(end, BodyEnd::Failed);
        progress.body = match has_failed {
            true => BodyState::Failed,
            false => BodyState::Read,
        };
        let is_answered = progress.is_answered;
        let unread = match end {
            // The code that answers drains it.
            BodyEnd::Read(unread @ Some(_)) if !is_answered && !has_ended => {
                progress.unread = unread;
                None
            }
            BodyEnd::Read(unread) => unread,
            BodyEnd::Failed => None,
        };
        drop(state);
        if is_answered && let Some((hold, change)) = self.end(!has_failed).into_commit() {
            drop(hold.commit(change));
        }
        unread
    }

    fn fall_silent(self: Arc<Self>, _: Instant) {
        HttpReservation::fall_silent(&self);
    }

    fn go_on(&self) {
        HttpReservation::go_on(self);
    }

    fn give_back_unread(&self) {
        HttpReservation::give_back_unread(self);
    }

    fn answer_ended(self: Arc<Self>, success: bool) -> BoxFuture<()> {
        let mut state = self.progress();
        let progress = &mut state.attachment;
        progress.is_answered = success && progress.body == BodyState::Open;
        if progress.is_answered {
            drop(state);
            return Box::pin(std::future::ready(()));
        }
        // The handler answered before it had read everything, so its answer cannot include the rest.
        let success = success && progress.body != BodyState::Failed;
        let commit = self.end_in(state, success).into_commit();
        self.settle(commit)
    }

    fn watch(&self, waker: &Waker) {
        match &mut self.progress().attachment.watcher {
            // Nearly always the same waker, so that nothing has to be cloned.
            Some(watcher) => watcher.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn take_unread(&self) -> Option<Unread> {
        HttpReservation::take_unread(self)
    }
}
