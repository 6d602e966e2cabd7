//! Watches an answer until its end, which settles the reservation.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use sync_wrapper::SyncFuture;
use tower::BoxError;

use super::{
    Exchange,
    ending::{Ending, Read},
};
use crate::{protocol::Last, refused::Refused, reservation::BoxFuture};

/// Ends a reservation when both directions have ended.
pub(crate) struct Watch {
    exchange: Arc<dyn Exchange>,
    ending: Ending,
    state: State,
}

enum State {
    Open,
    /// The last frame is held back until the charge is committed.
    Settling {
        settled: SyncFuture<BoxFuture<()>>,
        last: Option<Last>,
    },
    /// Settled. The rest of the content is passed on unchanged: padding, or trailers too long to be kept.
    Rest,
    Done,
}

impl Watch {
    /// Watches an answer with this kind of end.
    pub(crate) fn new(exchange: Arc<dyn Exchange>, ending: Ending) -> Self {
        Self {
            exchange,
            ending,
            state: State::Open,
        }
    }

    pub(super) fn is_end_stream<B: Body>(&self, body: &B) -> bool {
        match self.state {
            // It has to be polled once more to settle.
            State::Open | State::Settling { .. } => false,
            State::Rest => body.is_end_stream(),
            State::Done => true,
        }
    }

    pub(super) fn size_hint<B: Body>(&self, body: &B) -> SizeHint {
        if self.ending.is_of_content() {
            body.size_hint()
        } else {
            SizeHint::default()
        }
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
                ready!(Pin::new(settled).poll(cx));
                let last = last.take();
                return Poll::Ready(self.settled(last));
            }
            State::Rest => {
                let frame = ready!(body.poll_frame(cx));
                if frame.is_none() {
                    self.state = State::Done;
                }
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            State::Done => return Poll::Ready(None),
        }
        if let Some(refused) = self.exchange.refused() {
            return Poll::Ready(Some(self.cut(refused)));
        }
        let Poll::Ready(frame) = body.poll_frame(cx) else {
            self.exchange.watch(cx.waker());
            // The body was cut meanwhile, while no waker was registered.
            let Some(refused) = self.exchange.refused() else {
                return Poll::Pending;
            };
            return Poll::Ready(Some(self.cut(refused)));
        };
        match frame {
            Some(Ok(frame)) => match self.ending.read(frame) {
                Read::Goes(frame) => Poll::Ready(Some(Ok(frame))),
                Read::Last(last, success) => self.end(Some(last), success, cx),
            },
            Some(Err(error)) => {
                // Its error may be caused by the cut, if it reads the request and passes on the error.
                if let Some(refused) = self.exchange.refused() {
                    return Poll::Ready(Some(self.cut(refused)));
                }
                self.settle_failed();
                Poll::Ready(Some(Err(error.into())))
            }
            None => self.end(None, self.ending.is_of_content(), cx),
        }
    }

    /// The inner service has sent the outcome.
    fn end<D: From<Bytes>>(
        &mut self,
        last: Option<Last>,
        success: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<D>, BoxError>>> {
        // The body was cut in this poll, if the answer reads the request.
        if let Some(refused) = self.exchange.refused() {
            return Poll::Ready(Some(self.cut(refused)));
        }
        let settled = Arc::clone(&self.exchange).answer_ended(success);
        let mut settled = SyncFuture::new(settled);
        if Pin::new(&mut settled).poll(cx).is_pending() {
            self.state = State::Settling { settled, last };
            return Poll::Pending;
        }
        Poll::Ready(self.settled(last))
    }

    fn settled<D: From<Bytes>>(
        &mut self,
        last: Option<Last>,
    ) -> Option<Result<Frame<D>, BoxError>> {
        self.state = match last {
            Some(Last::Data(_)) => State::Rest,
            Some(Last::Trailers(_)) | None => State::Done,
        };
        last.map(|last| Ok(last.into_frame()))
    }

    /// The head was sent without the refusal. The answer has to end in the refusal if its protocol has a place for
    /// it, and in an error otherwise.
    fn cut<D: From<Bytes>>(&mut self, refused: Refused) -> Result<Frame<D>, BoxError> {
        let responder = &self.exchange.rules().responder;
        let Some(last) = self.ending.refusal(&responder.answers, &refused) else {
            self.settle_failed();
            return Err(refused.into());
        };
        // Settling drops the unread rest.
        responder.drain(self.exchange.take_unread());
        self.settle_failed();
        Ok(last.into_frame())
    }

    fn settle_failed(&mut self) {
        self.state = State::Done;
        drop(Arc::clone(&self.exchange).answer_ended(false));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let State::Open | State::Settling { .. } = self.state {
            let success = self.ending.is_success_when_dropped();
            drop(Arc::clone(&self.exchange).answer_ended(success));
        }
    }
}
