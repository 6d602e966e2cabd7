//! The response body: the inner service's, or a refusal with a drain behind it.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::Unread;
use crate::{
    reservation::{Charged, Later, Refused},
    time::Bound,
};

pin_project! {
    /// The body of an answer that went through the guard.
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Watched { #[pin] body: B, watch: Watch },
        Refusal { content: Option<Bytes>, drain: Option<Drain> },
    }
}

impl<B> ResponseBody<B> {
    /// The inner service's body.
    pub(crate) fn inner(body: B) -> Self {
        Self {
            kind: Kind::Inner { body },
        }
    }

    /// The inner service's body, of a success whose request is still being read.
    pub(crate) fn watched(body: B, cell: Arc<dyn Charged>) -> Self
    where
        B: Body,
    {
        let watch = Watch {
            expected: body.size_hint().exact(),
            sent: 0,
            cell,
            state: WatchState::Open,
        };
        Self {
            kind: Kind::Watched { body, watch },
        }
    }

    /// A refusal's content, and what has to be drained behind it.
    pub(crate) fn refusal(content: Bytes, drain: Option<Drain>) -> Self {
        Self {
            kind: Kind::Refusal {
                content: Some(content).filter(|content| !content.is_empty()),
                drain,
            },
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Inner { body } => body.poll_frame(cx).map_err(Into::into),
            KindProj::Watched { body, watch } => watch.poll_frame(body, cx),
            KindProj::Refusal { content, drain } => {
                if let Some(content) = content.take() {
                    return Poll::Ready(Some(Ok(Frame::data(content.into()))));
                }
                if let Some(draining) = drain {
                    ready!(draining.poll(cx));
                    *drain = None;
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            // It has to be polled once more, to settle.
            Kind::Watched { watch, .. } => matches!(watch.state, WatchState::Done),
            Kind::Refusal { content, drain } => content.is_none() && drain.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } | Kind::Watched { body, .. } => body.size_hint(),
            // With its length known, HTTP/1 takes the answer as sent, and drops it before the drain.
            Kind::Refusal { drain: Some(_), .. } => SizeHint::default(),
            Kind::Refusal { content, .. } => {
                SizeHint::with_exact(content.as_ref().map_or(0, |content| content.len() as u64))
            }
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Inner { .. } => "ResponseBody::Inner",
            Kind::Watched { .. } => "ResponseBody::Watched",
            Kind::Refusal { .. } => "ResponseBody::Refusal",
        })
    }
}

/// Ends a reservation when both directions have ended.
struct Watch {
    cell: Arc<dyn Charged>,
    /// The length that was announced, in bytes.
    expected: Option<u64>,
    sent: u64,
    state: WatchState,
}

enum WatchState {
    Open,
    /// The last frame is held back until the charge is committed.
    Ending(Later<()>),
    Done,
}

impl Watch {
    fn poll_frame<B>(
        &mut self,
        body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        match &mut self.state {
            WatchState::Open => {}
            WatchState::Ending(ending) => {
                ready!(ending.as_mut().poll(cx));
                self.state = WatchState::Done;
                return Poll::Ready(None);
            }
            WatchState::Done => return Poll::Ready(None),
        }
        // The head is out and said success. All that is left is to end in error.
        if let Some(refusal) = self.cell.refusal() {
            self.fail();
            return Poll::Ready(Some(Err(Refused::new(refusal).into())));
        }
        let Poll::Ready(frame) = body.poll_frame(cx) else {
            self.cell.watch(cx.waker());
            // Cut in the meantime, with nobody to wake.
            let Some(refusal) = self.cell.refusal() else {
                return Poll::Pending;
            };
            self.fail();
            return Poll::Ready(Some(Err(Refused::new(refusal).into())));
        };
        match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                self.sent = self.sent.saturating_add(bytes);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.fail();
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                // Cut in this very poll, where the answer reads the request.
                if let Some(refusal) = self.cell.refusal() {
                    self.fail();
                    return Poll::Ready(Some(Err(Refused::new(refusal).into())));
                }
                let mut ending = Arc::clone(&self.cell).answer_ended(true);
                if ending.as_mut().poll(cx).is_pending() {
                    self.state = WatchState::Ending(ending);
                    return Poll::Pending;
                }
                self.state = WatchState::Done;
                Poll::Ready(None)
            }
        }
    }

    fn fail(&mut self) {
        self.state = WatchState::Done;
        drop(Arc::clone(&self.cell).answer_ended(false));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !matches!(self.state, WatchState::Done) {
            // A transport that has sent the announced length does not poll again.
            let is_whole = self.expected == Some(self.sent);
            drop(Arc::clone(&self.cell).answer_ended(is_whole));
        }
    }
}

/// A request body that is read and thrown away behind an answer, so that the answer arrives.
///
/// Closing a connection on a client that is still sending makes its kernel drop what we sent.
pub(crate) struct Drain {
    body: Unread,
    bytes: u64,
    time: Bound,
    idle: Bound,
}

/// How long a client may stall. It may have stopped sending at the sight of the answer, and keep the
/// connection: curl when the answer has not ended, Node's `http` for its pool. As nginx's
/// `lingering_timeout`.
const IDLE: Duration = Duration::from_secs(5);

/// How long the reset of an HTTP/2 stream is held off, for the client to see the answer first. When both
/// come at once, curl 7.88 discards the answer, though RFC 9113 (section 8.1) says not to.
const HOLD_OFF: Duration = Duration::from_secs(1);

impl Drain {
    /// At most so many bytes, and for so long.
    pub(crate) fn new(body: Unread, bytes: u64, time: Duration) -> Option<Self> {
        let most = if body.is_reset { HOLD_OFF } else { time };
        let time = time.min(most);
        (!body.body.is_done() && bytes > 0 && !time.is_zero()).then(|| Self {
            body,
            bytes,
            time: Bound::new(time),
            idle: Bound::new(IDLE),
        })
    }

    /// Drains beside the answer, which can then be sent whole, with its length. Where there is no
    /// runtime to do so, the drain is returned, to hold the answer's end back.
    pub(crate) fn start(self) -> Option<Self> {
        #[cfg(feature = "tokio")]
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let mut drain = self;
            runtime.spawn(std::future::poll_fn(move |cx| drain.poll(cx)));
            return None;
        }
        // HTTP/2 is better reset than kept waiting for the end.
        Some(self).filter(|drain| !drain.body.is_reset)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A client on the same machine can keep the body ready for ever. Let others run in between.
        const FRAMES_AT_ONCE: usize = 32;

        if self.time.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        for _ in 0..FRAMES_AT_ONCE {
            match self.body.body.as_mut().poll_discard(cx) {
                Poll::Ready(Some(bytes)) if bytes < self.bytes => self.bytes -= bytes,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.idle.poll(cx),
            }
            self.idle = Bound::new(IDLE);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
