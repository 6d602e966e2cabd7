//! What has to be drained behind an answer.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use sync_wrapper::SyncWrapper;

use super::{Rest, Unread};
use crate::time::Bound;

/// A request body that is read and thrown away behind an answer, so that the answer arrives.
///
/// Closing a connection on a client that is still sending makes its kernel drop what we sent.
pub(crate) struct Drain {
    /// It is only polled, never shared, so that an answer which holds it is `Sync` whatever the body is.
    body: SyncWrapper<Rest>,
    is_reset: bool,
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
    pub(crate) fn new(unread: Unread, bytes: u64, time: Duration) -> Option<Self> {
        let Unread { body, is_reset } = unread;
        let most = if is_reset { HOLD_OFF } else { time };
        let time = time.min(most);
        (!body.is_done() && bytes > 0 && !time.is_zero()).then(|| Self {
            body: SyncWrapper::new(body),
            is_reset,
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
        Some(self).filter(|drain| !drain.is_reset)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A client on the same machine can keep the body ready for ever. Let others run in between.
        const FRAMES_AT_ONCE: usize = 32;

        if self.time.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        for _ in 0..FRAMES_AT_ONCE {
            match self.body.get_mut().as_mut().poll_discard(cx) {
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
