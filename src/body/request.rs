//! The metered request body.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::{Rest, Unread};
use crate::{
    refusal::Refusal,
    reservation::{Charged, Refused},
};

pin_project! {
    /// A request body that is counted as it is read, and cut when it passes what is set aside and cannot
    /// grow. The error is then [`Refused`].
    ///
    /// The body of a request that is not guarded passes untouched.
    pub struct MeteredBody<B>
    where
        B: Body,
    {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B>
    where
        B: Body,
    {
        Open { #[pin] body: B },
        Metered { metered: Metered<B> },
    }
}

struct Metered<B: Body> {
    /// None once it has ended. Boxed so that it can be handed on, to be drained.
    body: Option<Pin<Box<B>>>,
    cell: Arc<dyn Charged>,
    received: u64,
    /// As far as the meter was last seen to reach.
    reserved: u64,
    /// A frame that has to wait until there is room for it.
    growing: Option<(Frame<B::Data>, Growth)>,
    drain: WhenDropped,
    /// Takes an unfinished body, for whoever answers to drain.
    hand_on: fn(Pin<Box<B>>) -> Rest,
}

type Growth = Pin<Box<dyn Future<Output = Result<(), Refused>> + Send>>;

/// What becomes of the rest of a body that is not read to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WhenDropped {
    /// The transport resets the stream by itself (HTTP/2). Right behind the answer, that loses it for
    /// some clients.
    Reset,
    /// The client is sending: somebody has to read it, or the answer is lost (HTTP/1).
    Drain,
    /// The client waits for `100 Continue`. It sends nothing until the body is first polled.
    DrainOncePolled,
}

impl<B: Body> MeteredBody<B> {
    /// A body that is not metered.
    pub(crate) fn open(body: B) -> Self {
        Self {
            kind: Kind::Open { body },
        }
    }

    /// A metered body.
    pub(crate) fn new(body: B, cell: Arc<dyn Charged>, drain: WhenDropped) -> Self
    where
        B: Send + 'static,
    {
        let has_ended = body.is_end_stream();
        let mut metered = Metered {
            body: Some(Box::pin(body)),
            received: 0,
            reserved: cell.meter().reserved(),
            cell,
            growing: None,
            drain,
            hand_on: |body| body,
        };
        if has_ended {
            metered.end(None);
        }
        Self {
            kind: Kind::Metered { metered },
        }
    }
}

impl<B> Body for MeteredBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Open { body } => body.poll_frame(cx).map_err(Into::into),
            KindProj::Metered { metered } => metered.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Open { body } => body.is_end_stream(),
            Kind::Metered { metered } => metered.body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Open { body } => body.size_hint(),
            Kind::Metered { metered } => metered.size_hint(),
        }
    }
}

impl<B> Metered<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if self.cell.meter().is_closed() {
            // The answer came first, and with it the end of the reservation.
            let refused = Refused::new(self.cell.refusal().unwrap_or_else(Refusal::unavailable));
            self.give_up();
            return Poll::Ready(Some(Err(refused.into())));
        }
        if self.growing.is_some() {
            return self.poll_growth(cx);
        }
        if self.drain == WhenDropped::DrainOncePolled {
            self.drain = WhenDropped::Drain;
        }
        match ready!(body.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                let received = self.received.saturating_add(bytes);
                if received > self.reserved {
                    self.reserved = self.cell.meter().reserved();
                    if received > self.reserved {
                        let need = received - self.reserved;
                        let want = need.max(self.cell.next_grant());
                        let growth = Arc::clone(&self.cell).grow(need, want);
                        self.growing = Some((frame, growth));
                        return self.poll_growth(cx);
                    }
                }
                Poll::Ready(Some(Ok(self.pass(frame, received))))
            }
            Some(Err(error)) => {
                self.end(None);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.end(None);
                Poll::Ready(None)
            }
        }
    }

    /// Waits until there is room for the frame that is held back, or cuts the body.
    #[cold]
    fn poll_growth(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let Some((frame, mut growth)) = self.growing.take() else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match growth.as_mut().poll(cx) {
            Poll::Pending => {
                self.growing = Some((frame, growth));
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) => {
                self.reserved = self.cell.meter().reserved();
                let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                Ok(self.pass(frame, self.received.saturating_add(bytes)))
            }
            Poll::Ready(Err(refused)) => {
                self.cell.cut(&refused);
                self.give_up();
                Err(refused.into())
            }
        }))
    }

    #[inline]
    fn pass(&mut self, frame: Frame<B::Data>, received: u64) -> Frame<B::Data> {
        self.received = received;
        self.cell.meter().set_received(received);
        // A consumer may leave it at that and never poll again.
        if self.body.as_ref().is_some_and(|body| body.is_end_stream()) {
            self.end(None);
        }
        frame
    }
}

impl<B: Body> Metered<B> {
    fn end(&mut self, unread: Option<Unread>) {
        self.body = None;
        self.growing = None;
        self.cell.body_ended(unread);
    }

    /// Ends it before its end. What is left goes to whoever answers.
    fn give_up(&mut self) {
        let body = self.body.take();
        let unread = body.and_then(|body| Unread::new((self.hand_on)(body), self.drain));
        self.end(unread);
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.as_ref().map(|body| body.size_hint());
        let held = self.growing.as_ref().and_then(|(frame, _)| frame.data_ref());
        let held = held.map_or(0, |data| data.remaining() as u64);
        rest.unwrap_or_else(|| SizeHint::with_exact(0)) + SizeHint::with_exact(held)
    }
}

impl<B: Body> Drop for Metered<B> {
    fn drop(&mut self) {
        if self.body.is_some() {
            self.give_up();
        }
    }
}

impl<B: Body> fmt::Debug for MeteredBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("MeteredBody");
        if let Kind::Metered { metered } = &self.kind {
            debug.field("received", &metered.received);
        }
        debug.finish_non_exhaustive()
    }
}
