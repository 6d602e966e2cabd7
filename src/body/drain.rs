//! Drains the rest of a refused request while its answer is sent, so that the answer arrives.

use std::{future::poll_fn, time::Duration};

use tokio::{runtime::Handle, task::consume_budget, time::timeout};

use super::{Rest, Unread};

/// How long a client may stall. It may have stopped sending when it saw the answer, and keep the connection open:
/// curl does when the answer has not ended, and Node's `http` for its pool. Corresponds to nginx's
/// `lingering_timeout`.
const IDLE: Duration = Duration::from_secs(5);

/// How long the reset of an HTTP/2 stream is delayed, so that the client sees the answer first. If both arrive at
/// once, curl 7.88 discards the answer, although RFC 9113 (section 8.1) forbids it.
const HOLD_OFF: Duration = Duration::from_secs(1);

/// Starts a task that reads and discards a request body, with bounds on bytes and time.
///
/// If a server closes a connection on which the client is still sending, the client's kernel discards data that it
/// has not read yet. The task runs concurrently with the answer, so that the answer is sent whole, with its length.
/// Outside of a tokio runtime the body is dropped.
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
        // A client on the same machine can keep the body ready indefinitely. Yield to other tasks.
        consume_budget().await;
    }
}
