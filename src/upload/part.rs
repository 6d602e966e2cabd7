//! A request that is part of an upload: its content is reserved as part of the whole.

use std::{sync::Arc, task::Waker};

use super::{Draw, Upload};
use crate::{
    amount::Amount,
    body::{BodyEnd, Exchange, Unread},
    demand::Demand,
    refused::Refused,
    reservation::{BoxFuture, Meter, Outer, Report, ReservationOps},
    volume::Volume,
};

/// The state that body, handle and answer of a part's request share.
pub(super) struct Part {
    /// The request's own reservation. It charges no scope.
    own: Arc<dyn Exchange>,
    upload: Arc<Upload>,
    /// None if the request brings no part, but assembles those that were received.
    draw: Option<Arc<Draw>>,
    is_finish: bool,
}

impl Part {
    pub(super) fn new(own: Arc<dyn Exchange>, draw: Arc<Draw>) -> Self {
        Self {
            own,
            upload: Arc::clone(draw.upload()),
            draw: Some(draw),
            is_finish: false,
        }
    }

    pub(super) fn last(own: Arc<dyn Exchange>, upload: Arc<Upload>, is_finish: bool) -> Self {
        Self {
            own,
            upload,
            draw: None,
            is_finish,
        }
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
        match &self.draw {
            Some(draw) => draw.written(bytes),
            None => self.upload.whole_reservation().written(bytes),
        }
    }

    fn report(&self, change: &mut dyn FnMut(&mut Report)) {
        match &self.draw {
            Some(_) => self.own.report(change),
            None => self.upload.whole_reservation().report(change),
        }
    }

    fn grow(self: Arc<Self>, need: u64, want: u64) -> BoxFuture<Result<(), Refused>> {
        let whole = Arc::clone(self.upload.whole_reservation());
        let Some(draw) = self.draw.clone() else {
            return whole.grow(need, want);
        };
        Box::pin(async move {
            let mut drawn = draw.draw_more(want);
            // Another part may draw what was reserved for this one.
            while drawn < need {
                let (need, want) = (need - drawn, want - drawn);
                let grown = Arc::clone(&whole).grow(need, want).await;
                if let Err(refused) = grown {
                    // The upload goes on, so no request waits for its end.
                    whole.reinstate();
                    return Err(refused);
                }
                drawn += draw.draw_more(want);
            }
            self.own.meter().raise(drawn);
            Ok(())
        })
    }

    fn replaces(self: Arc<Self>, replaced: Amount) -> BoxFuture<Result<(), Refused>> {
        Arc::clone(self.upload.whole_reservation()).replaces(replaced)
    }

    fn reinstate(&self) {
        self.upload.whole_reservation().reinstate();
    }

    fn next_grant(&self) -> u64 {
        self.upload.whole_reservation().next_grant()
    }

    fn commit(self: Arc<Self>) -> BoxFuture<bool> {
        let is_late = self.own.has_ended() || self.own.refused().is_some();
        let own: Arc<dyn ReservationOps> = self.own.clone();
        let settled = own.commit();
        let draw = self.draw.as_deref();
        if is_late || !draw.map_or(self.is_finish, Draw::is_last) {
            return settled;
        }
        // The upload may be complete, and the client may be gone.
        self.upload.complete(draw)
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
