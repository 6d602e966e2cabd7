//! Drains the rest of a refused request while its answer is sent, so that the answer arrives.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::consume_budget,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::unread::{Rest, Unread, WhenDropped};
use crate::observer::{Event, Observed};

/// How long a client may stall. It may have stopped sending when it saw the answer, and keep the connection open:
/// curl does when the answer has not ended, and Node's `http` for its pool. Corresponds to nginx's
/// `lingering_timeout`.
const IDLE: Duration = Duration::from_secs(5);

/// How long the reset of an HTTP/2 stream is delayed, so that the client sees the answer first. If both arrive at
/// once, curl 7.88 discards the answer, although RFC 9113 (section 8.1) forbids it.
const HOLD_OFF: Duration = Duration::from_secs(1);

/// How long a body is left alone whose client waits for `100 Continue`. A poll before the head of the answer is written would
/// ask for it. Some clients do not wait, and proxies may pass the body on at once.
const AFTER_HEAD: Duration = Duration::from_millis(500);

/// The shortest wait for the limit on all: less is not worth a timer.
const TICK: Duration = Duration::from_millis(10);

/// The limits of draining. Clones share what is limited in all.
#[derive(Clone, Debug)]
pub(crate) struct Drains {
    /// How much is read of one request at most, and for how long.
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
    pub(crate) observer: Option<Observed>,
    all: Arc<All>,
}

/// What all requests share.
#[derive(Debug)]
struct All {
    places: Arc<Semaphore>,
    bytes_per_second: u64,
    /// When all that was read would have come at this rate.
    paid_at: Mutex<Instant>,
}

impl Default for Drains {
    fn default() -> Self {
        Self {
            bytes: 1 << 30,
            time: Duration::from_secs(30),
            observer: None,
            all: All::new(256, 512 << 20),
        }
    }
}

impl Drains {
    /// Sets how many requests are drained at once, and how many bytes in a second.
    pub(crate) fn limit_all(&mut self, requests: usize, bytes_per_second: u64) {
        self.all = All::new(requests, bytes_per_second);
    }

    /// Starts a task that reads and discards a request body, within the limits.
    ///
    /// If a server closes a connection on which the client is still sending, the client's kernel discards data that it
    /// has not read yet. The task runs concurrently with the answer, so that the answer is sent whole, with its length.
    /// Outside of a tokio runtime, and beyond the limits, the body is dropped.
    pub(crate) fn start(&self, unread: Unread) {
        let Unread { body, drain } = unread;
        let (after, idle, time) = match drain {
            WhenDropped::Reset => (Duration::ZERO, IDLE, self.time.min(HOLD_OFF)),
            WhenDropped::Drain => (Duration::ZERO, IDLE, self.time),
            WhenDropped::DrainOncePolled => (AFTER_HEAD, HOLD_OFF, self.time),
        };
        let is_none = self.bytes == 0 || time.is_zero() || self.all.bytes_per_second == 0;
        if body.is_done() || is_none {
            return;
        }
        let Ok(place) = Arc::clone(&self.all.places).try_acquire_owned() else {
            return;
        };
        if let Ok(runtime) = Handle::try_current() {
            let (bytes, all) = (self.bytes, Arc::clone(&self.all));
            let mut read = Read::new(self.observer.clone());
            runtime.spawn(async move {
                let _place = place;
                if !after.is_zero() {
                    sleep(after.min(time)).await;
                }
                timeout(time, all.discard(body, bytes, idle, &mut read)).await
            });
        }
    }
}

/// How much of a body was read. Told when it is dropped: the task may be dropped too.
struct Read {
    bytes: u64,
    observer: Option<Observed>,
}

impl Read {
    fn new(observer: Option<Observed>) -> Self {
        Self { bytes: 0, observer }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        if let (Some(observer), 1..) = (&self.observer, self.bytes) {
            let bytes = self.bytes;
            observer.observe(&Event::Drained { bytes });
        }
    }
}

impl All {
    fn new(requests: usize, bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(requests.min(Semaphore::MAX_PERMITS))),
            bytes_per_second,
            paid_at: Mutex::new(Instant::now()),
        })
    }

    async fn discard(&self, mut body: Rest, most: u64, idle: Duration, read: &mut Read) {
        while let Ok(Some(bytes)) =
            timeout(idle, poll_fn(|cx| body.as_mut().poll_discard(cx))).await
        {
            read.bytes = read.bytes.saturating_add(bytes);
            if read.bytes >= most {
                return;
            }
            self.pay(bytes).await;
            // A client on the same machine can keep the body ready indefinitely. Yield to other tasks.
            consume_budget().await;
        }
    }

    /// Waits until all that was read would have come at the rate for all.
    async fn pay(&self, bytes: u64) {
        let takes = Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let now = Instant::now();
        let paid_at = {
            let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
            let paid = now.max(*paid_at).checked_add(takes.unwrap_or(IDLE));
            *paid_at = paid.unwrap_or(now + IDLE);
            *paid_at
        };
        if paid_at - now > TICK {
            sleep_until(paid_at).await;
        }
    }
}
