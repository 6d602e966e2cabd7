//! A request that is part of an upload: its content is reserved as part of the whole.

use std::{sync::Arc, task::Waker};

use super::draw::Draw;
use crate::{
    amount::Amount,
    body::{BodyEnd, Exchange, Unread},
    demand::Demand,
    refused::Refused,
    reservation::{BoxFuture, Meter, Outer, Report, ReservationOps},
    volume::Volume,
};

/// The state that body, handle and answer of a step's request share.
pub(super) struct Part {
    /// The request's own reservation. It charges no scope.
    own: Arc<dyn Exchange>,
    draw: Arc<Draw>,
}

impl Part {
    pub(super) fn new(own: Arc<dyn Exchange>, draw: Arc<Draw>) -> Self {
        Self { own, draw }
    }

    fn whole(&self) -> &Arc<dyn ReservationOps> {
        self.draw.upload().whole_reservation()
    }
}

impl ReservationOps for Part {
    fn meter(&self) -> &Meter {
        self.own.meter()
    }

    fn demand(&self) -> Demand {
        self.own.demand()
    }

    fn volume(&self) -> Option<&Volume> {
        self.own.volume()
    }

    fn outer(&self) -> Option<&Outer> {
        self.own.outer()
    }

    fn written(&self, bytes: u64) {
        self.own.written(bytes);
        self.draw.written(bytes);
    }

    fn report(&self, change: &mut dyn FnMut(&mut Report)) {
        self.own.report(change);
    }

    fn grow(self: Arc<Self>, need: u64, want: u64) -> BoxFuture<Result<u64, Refused>> {
        Box::pin(async move {
            let mut drawn = self.draw.draw_more(want);
            // Another part may draw what was reserved for this one.
            while drawn < need {
                let (need, want) = (need - drawn, want - drawn);
                self.draw.grow(need, want).await?;
                drawn += self.draw.draw_more(want);
                if self.own.has_ended() {
                    return Err(Refused::unavailable());
                }
            }
            self.own.meter().raise(drawn);
            Ok(drawn)
        })
    }

    fn replaces(self: Arc<Self>, replaced: Amount) -> BoxFuture<Result<(), Refused>> {
        let whole = Arc::clone(self.whole());
        Box::pin(async move {
            let expected = whole.demand().replaced();
            let missing = expected - replaced;
            if !missing.is_zero() {
                // The hold counts on more.
                whole.replaces(expected - missing).await?;
            }
            self.draw.replaces(replaced);
            Ok(())
        })
    }

    fn give_back(&self, amount: Amount) {
        self.whole().give_back(amount);
    }

    fn shrink(&self) {
        self.whole().shrink();
    }

    fn reinstate(&self) {
        self.whole().reinstate();
    }

    fn next_grant(&self) -> u64 {
        self.whole().next_grant()
    }

    fn commit(self: Arc<Self>) -> BoxFuture<bool> {
        let own: Arc<dyn ReservationOps> = self.own.clone();
        let committed = own.commit();
        // The upload may be complete, and the client may be gone.
        let is_committed = self.own.refused().is_none();
        let settled = is_committed.then(|| self.draw.committed()).flatten();
        Box::pin(async move {
            let is_committed = committed.await;
            if let Some(settled) = settled {
                settled.await;
            }
            is_committed
        })
    }

    fn release(&self) {
        self.own.release();
    }

    fn has_ended(&self) -> bool {
        self.own.has_ended()
    }

    fn refused(&self) -> Option<Refused> {
        self.own.refused()
    }
}

impl Exchange for Part {
    fn cut(&self, refused: &Refused, unread: Option<Unread>) {
        self.own.cut(refused, unread);
    }

    fn body_ended(&self, end: BodyEnd) {
        if let BodyEnd::Failed = end {
            self.draw.broke_off();
        }
        self.own.body_ended(end);
    }

    fn answer_ended(self: Arc<Self>, success: bool) -> BoxFuture<()> {
        Arc::clone(&self.own).answer_ended(success)
    }

    fn watch(&self, waker: &Waker) {
        self.own.watch(waker);
    }

    fn take_unread(&self) -> Option<Unread> {
        self.own.take_unread()
    }
}
