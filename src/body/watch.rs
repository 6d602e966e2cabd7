//! Watches an answer to its end, and settles by that.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tower::BoxError;

use super::ending::{Ending, Last, Read};
use crate::{
    refusal::Refusal,
    reservation::{Charged, Later, Refused},
};

/// Ends a reservation when both directions have ended.
pub(crate) struct Watch {
    cell: Arc<dyn Charged>,
    ending: Ending,
    state: State,
}

enum State {
    Open,
    /// The last frame is held back until the charge is committed.
    Settling {
        settled: Later<()>,
        last: Option<Last>,
    },
    Done,
}

impl Watch {
    /// Watches an answer that ends so.
    pub(crate) fn new(cell: Arc<dyn Charged>, ending: Ending) -> Self {
        Self {
            cell,
            ending,
            state: State::Open,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    pub(super) fn poll_frame<B>(
        &mut self,
        body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>>
    where
        B: Body,
        B::Data: From<Bytes>,
        B::Error: Into<BoxError>,
    {
        match &mut self.state {
            State::Open => {}
            State::Settling { settled, last } => {
                ready!(settled.as_mut().poll(cx));
                let last = last.take();
                self.state = State::Done;
                return Poll::Ready(last.map(|last| Ok(last.into_frame())));
            }
            State::Done => return Poll::Ready(None),
        }
        if let Some(refusal) = self.cell.refusal() {
            return Poll::Ready(Some(self.cut(refusal)));
        }
        let Poll::Ready(frame) = body.poll_frame(cx) else {
            self.cell.watch(cx.waker());
            // Cut in the meantime, with nobody to wake.
            let Some(refusal) = self.cell.refusal() else {
                return Poll::Pending;
            };
            return Poll::Ready(Some(self.cut(refusal)));
        };
        match frame {
            Some(Ok(frame)) => match self.ending.read(frame) {
                Read::Goes(frame) => Poll::Ready(Some(Ok(frame))),
                Read::Last(last, success) => self.end(Some(last), success, cx),
            },
            Some(Err(error)) => {
                // Its error may be the cut's, where it reads the request and passes on what it gets.
                if let Some(refusal) = self.cell.refusal() {
                    return Poll::Ready(Some(self.cut(refusal)));
                }
                self.settle_failed();
                Poll::Ready(Some(Err(error.into())))
            }
            None => self.end(None, self.ending.is_success_at_end(), cx),
        }
    }

    /// The inner service has said its last word.
    fn end<D: From<Bytes>>(
        &mut self,
        last: Option<Last>,
        success: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<D>, BoxError>>> {
        // Cut in this very poll, where the answer reads the request.
        if let Some(refusal) = self.cell.refusal() {
            return Poll::Ready(Some(self.cut(refusal)));
        }
        let mut settled = Arc::clone(&self.cell).answer_ended(success);
        if settled.as_mut().poll(cx).is_pending() {
            self.state = State::Settling { settled, last };
            return Poll::Pending;
        }
        self.state = State::Done;
        Poll::Ready(last.map(|last| Ok(last.into_frame())))
    }

    /// The head is out and said nothing of this. What is left is to end in the refusal, where the answer
    /// has a place for it, and in error where it has none.
    fn cut<D: From<Bytes>>(&mut self, refusal: Refusal) -> Result<Frame<D>, BoxError> {
        self.settle_failed();
        match self.ending.refusal(&*self.cell, &refusal) {
            Some(last) => Ok(last.into_frame()),
            None => Err(Refused::new(refusal).into()),
        }
    }

    fn settle_failed(&mut self) {
        self.state = State::Done;
        drop(Arc::clone(&self.cell).answer_ended(false));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.is_done() {
            let success = self.ending.is_success_when_dropped();
            drop(Arc::clone(&self.cell).answer_ended(success));
        }
    }
}
