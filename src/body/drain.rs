//! Drains the rest of a refused request beside its answer, so that the answer arrives.

use std::{future::poll_fn, time::Duration};

use tokio::{runtime::Handle, task::consume_budget, time::timeout};

use super::{Rest, Unread};

/// How long a client may stall. It may have stopped sending at the sight of the answer, and keep the
/// connection: curl when the answer has not ended, Node's `http` for its pool. As nginx's
/// `lingering_timeout`.
const IDLE: Duration = Duration::from_secs(5);

/// How long the reset of an HTTP/2 stream is held off, for the client to see the answer first. When both
/// come at once, curl 7.88 discards the answer, though RFC 9113 (section 8.1) says not to.
const HOLD_OFF: Duration = Duration::from_secs(1);

/// Starts a task that reads and discards a request body, at most so many bytes and for so long.
///
/// Closing a connection on a client that is still sending makes its kernel drop what the server sent. The task runs beside
/// the answer, so that this is sent whole, with its length. Outside of a tokio runtime the body is dropped.
pub(crate) fn drain(unread: Unread, bytes: u64, time: Duration) {
    let Unread { body, is_reset } = unread;
    let time = if is_reset { time.min(HOLD_OFF) } else { time };
    if body.is_done() || bytes == 0 || time.is_zero() {
        return;
    }
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async move { timeout(time, discard(body, bytes)).await });
    }
}

async fn discard(mut body: Rest, mut left: u64) {
    while let Ok(Some(bytes)) = timeout(IDLE, poll_fn(|cx| body.as_mut().poll_discard(cx))).await
        && bytes < left
    {
        left -= bytes;
        // A client on the same machine can keep the body ready for ever. Let others run in between.
        consume_budget().await;
    }
}
