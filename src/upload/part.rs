//! A request that is part of an upload: its content is reserved as part of the whole.

use std::{
    sync::{Arc, Mutex, Weak},
    task::Waker,
};

use tokio::time::Instant;

use super::{
    content::{Claims, Place},
    draw::Draw,
    open::SilentPart,
};
use crate::{
    amount::Amount,
    body::{BodyEnd, BodyRules, Exchange, Unread},
    demand::Demand,
    offers::{Offer, Silent},
    refused::Refused,
    reservation::{BoxFuture, Meter, Outer, Report, ReservationOps},
    scope::Scopes,
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

    fn scopes(&self) -> &Scopes {
        self.whole().scopes()
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
                // The rest of the whole, if it was taken back.
                let missing = self.draw.missing();
                self.draw.grow(need.max(missing), want.max(missing)).await?;
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

    fn keep_for_handler(&self, bytes: u64) {
        self.own.keep_for_handler(bytes);
    }

    fn unread(&self) -> u64 {
        self.own.unread()
    }

    fn offer(&self, bytes: u64, from: Instant, by: Weak<dyn Silent>) -> Vec<Offer> {
        self.whole().offer(bytes, from, by)
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

    fn tell_refused(&self, refused: &Refused) {
        self.own.tell_refused(refused);
    }
}

impl Exchange for Part {
    fn rules(&self) -> &BodyRules {
        self.own.rules()
    }

    fn cut(&self, refused: &Refused, unread: Option<Unread>) {
        self.own.cut(refused, unread);
    }

    fn body_ended(&self, end: BodyEnd) -> Option<Unread> {
        if let BodyEnd::Failed = end {
            self.draw.broke_off();
        }
        self.own.body_ended(end)
    }

    fn fall_silent(self: Arc<Self>, since: Instant) {
        let upload = self.draw.upload();
        let came = (self.own.meter().received() > 0).then_some(since);
        upload.fall_silent(self.draw.at(), Arc::downgrade(&self) as _, came);
    }

    fn go_on(&self) {
        self.draw.upload().go_on(self.draw.at());
    }

    /// A later request may bring the rest.
    fn give_back_unread(&self) {}

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

impl SilentPart for Part {
    fn at(&self) -> &Place {
        self.draw.at()
    }

    fn claims(&self) -> &Mutex<Claims> {
        self.draw.claims()
    }

    fn give_up_unread(&self) -> u64 {
        let (meter, unread) = (self.own.meter(), self.own.unread());
        meter.lower_to(meter.reserved().saturating_sub(unread));
        unread
    }
}
