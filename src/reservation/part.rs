//! A request that is part of an upload: what it stores is set aside for the whole.

use std::{sync::Arc, task::Waker};

use bytes::Bytes;
use http::Response;

use super::{
    BodyEnd, Charged, Later, Refused,
    cell::{Meter, Report},
};
use crate::{
    Amount, Demand,
    body::Unread,
    refusal::{Asked, Refusal},
    upload::{Draw, Upload},
};

/// What body and handle see of a request that is part of an upload.
pub(crate) struct Part {
    /// The request's own. Nobody is charged for it.
    cell: Arc<dyn Charged>,
    upload: Arc<Upload>,
    /// None where the request brings no part: it makes one of those that came.
    draw: Option<Arc<Draw>>,
    is_finish: bool,
}

impl Part {
    pub(crate) fn new(cell: Arc<dyn Charged>, draw: Arc<Draw>) -> Self {
        Self {
            cell,
            upload: Arc::clone(draw.upload()),
            draw: Some(draw),
            is_finish: false,
        }
    }

    pub(crate) fn last(cell: Arc<dyn Charged>, upload: Arc<Upload>, is_finish: bool) -> Self {
        Self {
            cell,
            upload,
            draw: None,
            is_finish,
        }
    }
}

impl Charged for Part {
    fn meter(&self) -> &Meter {
        self.cell.meter()
    }

    fn demand(&self) -> Demand {
        self.cell.demand()
    }

    fn written(&self, bytes: u64) {
        self.cell.written(bytes);
        match &self.draw {
            Some(draw) => draw.written(bytes),
            None => self.upload.cell().written(bytes),
        }
    }

    fn report(&self, change: &mut dyn FnMut(&mut Report)) {
        match &self.draw {
            Some(_) => self.cell.report(change),
            None => self.upload.cell().report(change),
        }
    }

    fn grow(self: Arc<Self>, need: u64, want: u64) -> Later<Result<(), Refused>> {
        let whole = Arc::clone(self.upload.cell());
        let Some(draw) = self.draw.clone() else {
            return whole.grow(need, want);
        };
        Box::pin(async move {
            let mut drawn = draw.draw_more(want);
            // Another part may draw what was set aside for this one.
            while drawn < need {
                let (need, want) = (need - drawn, want - drawn);
                let grown = Arc::clone(&whole).grow(need, want).await;
                if let Err(refused) = grown {
                    // The upload goes on. Nobody has to wait for its end.
                    whole.pardon();
                    return Err(refused);
                }
                drawn += draw.draw_more(want);
            }
            self.cell.meter().raise(drawn);
            Ok(())
        })
    }

    fn replaces(self: Arc<Self>, replaced: Amount) -> Later<Result<(), Refused>> {
        Arc::clone(self.upload.cell()).replaces(replaced)
    }

    fn pardon(&self) {
        self.upload.cell().pardon();
    }

    fn next_grant(&self) -> u64 {
        self.upload.cell().next_grant()
    }

    fn cut(&self, refused: &Refused, unread: Option<Unread>) {
        self.cell.cut(refused, unread);
    }

    fn body_ended(&self, end: BodyEnd) {
        self.cell.body_ended(end);
    }

    fn answer_ended(self: Arc<Self>, success: bool) -> Later<()> {
        Arc::clone(&self.cell).answer_ended(success)
    }

    fn watch(&self, waker: &Waker) {
        self.cell.watch(waker);
    }

    fn commit(self: Arc<Self>) -> Later<bool> {
        let is_late = self.cell.has_ended() || self.cell.refusal().is_some();
        let settled = Arc::clone(&self.cell).commit();
        let draw = self.draw.as_deref();
        if is_late || !draw.map_or(self.is_finish, Draw::is_last) {
            return settled;
        }
        // All is there, and nobody may be left to answer.
        self.upload.complete(draw)
    }

    fn has_ended(&self) -> bool {
        self.cell.has_ended()
    }

    fn refusal(&self) -> Option<Refusal> {
        self.cell.refusal()
    }

    fn answer(&self, refusal: Refusal, asked: &Asked) -> Response<Bytes> {
        self.cell.answer(refusal, asked)
    }

    fn drain(&self) {
        self.cell.drain();
    }
}
