//! What the body, the handle and the answer of one request share: a reservation, and the progress of each.

use std::{mem, sync::Arc, task::Waker};

use tokio::time::Instant;

use super::{ends::Ends, responder::BodyRules, unread::Unread};
use crate::{
    observer::Event,
    quota::{QuotaHold, QuotaSource},
    refused::{Reason, Refused},
    reservation::{Adapter, BoxFuture, Ended, ReservationOps, Shared},
};

/// The reservation of a request.
pub(crate) type HttpReservation<Q> = Shared<Q, Transfer>;

/// The progress of a request's body and answer.
pub(crate) struct Transfer {
    pub(crate) rules: BodyRules,
    ends: Ends,
}

impl Transfer {
    pub(crate) fn new(rules: BodyRules) -> Self {
        Self {
            rules,
            ends: Ends::default(),
        }
    }
}

impl Adapter for Transfer {
    const CHARGES_RESERVED: bool = false;

    type Rare = RareTransfer;
}

/// What few transfers have.
#[derive(Default)]
pub(crate) struct RareTransfer {
    /// The body to be drained, if any.
    unread: Option<Unread>,
    /// Wakes the answer that is being sent when the body is cut.
    watcher: Option<Waker>,
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
    /// How the body is read.
    fn rules(&self) -> &BodyRules;
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
        if let Some(refused) = state.refused() {
            return Err(refused.clone());
        }
        if !self.adapter.ends.now().has_body_ended() {
            return Ok(None);
        }
        if let Some(rare) = state.any_rare_mut() {
            *unread = rare.adapter.unread.take();
        }
        Ok(Some(self.end_in(state, true)))
    }

    /// Like [`Self::end_if_read`], if nothing was cut and nothing has to be drained. None if it is otherwise.
    #[inline]
    pub(crate) fn end_if_plain(&self) -> Option<Ended<Q::Hold>> {
        if self.meter().is_closed() || !self.adapter.ends.now().has_body_ended() {
            return None;
        }
        let state = self.state();
        let unread = state.rare().and_then(|rare| rare.adapter.unread.as_ref());
        if state.refused().is_some() || unread.is_some() {
            return None;
        }
        Some(self.end_in(state, true))
    }

    /// The bytes that are reserved for the body.
    #[inline]
    pub(crate) fn room_for_body(&self) -> u64 {
        self.demand.room_for_body(self.meter.reserved())
    }

    /// Whether the request has not ended.
    pub(crate) fn is_unfinished(&self) -> bool {
        let closes = || {
            let state = self.state();
            let unread = state.rare().and_then(|rare| rare.adapter.unread.as_ref());
            unread.is_some_and(Unread::closes)
        };
        !self.adapter.ends.now().has_body_ended() || closes()
    }

    pub(crate) fn take_unread(&self) -> Option<Unread> {
        self.state().any_rare_mut()?.adapter.unread.take()
    }

    /// Tells the observer why the body was cut.
    fn tell_cut(&self, refused: &Refused) {
        let Some(observer) = &self.context.rules.observer else {
            return;
        };
        let (volume, scopes) = (self.context.volume_name(), &self.scopes);
        let received = self.meter.received();
        observer.observe(&match refused.reason() {
            Reason::Stalled => Event::Stalled {
                volume,
                scopes,
                received,
            },
            reason => Event::Cut {
                volume,
                scopes,
                reason,
                internal: refused.internal(),
                received,
            },
        });
    }

    /// The body has ended second.
    #[cold]
    fn end_after_answer(&self, success: bool) {
        if let Some((hold, change)) = self.end(success).into_commit() {
            drop(hold.commit(change));
        }
    }

    /// The body has ended before its end. The code that answers drains the rest, or the caller if that has answered.
    #[cold]
    fn body_left(&self, unread: Unread) -> Option<Unread> {
        // Set together: the code that answers sees both or none.
        let mut state = self.state();
        let is_answered = self.adapter.ends.end(Ends::READ).has(Ends::ANSWERED);
        if !is_answered && !state.has_ended() {
            state.rare_mut().adapter.unread = Some(unread);
            return None;
        }
        drop(state);
        if is_answered {
            self.end_after_answer(true);
        }
        Some(unread)
    }
}

impl<Q> Exchange for HttpReservation<Q>
where
    Q: QuotaSource,
{
    fn rules(&self) -> &BodyRules {
        &self.adapter.rules
    }

    fn cut(&self, refused: &Refused, unread: Option<Unread>) {
        self.close();
        let mut state = self.state();
        state.cut(refused);
        // Set together with the refusal: another thread may see the refusal and send the answer at once.
        let has_ended = state.has_ended();
        let rare = &mut state.rare_mut().adapter;
        let useless = match has_ended {
            true => unread,
            false => mem::replace(&mut rare.unread, unread),
        };
        let watcher = rare.watcher.take();
        drop(state);
        drop(useless);
        self.tell_cut(refused);
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    #[inline]
    fn body_ended(&self, end: BodyEnd) -> Option<Unread> {
        let by = match end {
            BodyEnd::Read(None) => Ends::READ,
            BodyEnd::Read(Some(unread)) => return self.body_left(unread),
            BodyEnd::Failed => Ends::FAILED,
        };
        if self.adapter.ends.end(by).has(Ends::ANSWERED) {
            self.end_after_answer(by == Ends::READ);
        }
        None
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
        let mut has_failed = !success;
        if success {
            let before = self.adapter.ends.end(Ends::ANSWERED);
            if !before.has_body_ended() {
                return Box::pin(std::future::ready(()));
            }
            // The handler answered before it had read everything, so its answer cannot include the rest.
            has_failed = before.has(Ends::FAILED);
        }
        let commit = self.end(!has_failed).into_commit();
        self.settle(commit)
    }

    fn watch(&self, waker: &Waker) {
        let mut state = self.state();
        match &mut state.rare_mut().adapter.watcher {
            // Nearly always the same waker, so that nothing has to be cloned.
            Some(watcher) => watcher.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn take_unread(&self) -> Option<Unread> {
        HttpReservation::take_unread(self)
    }
}
