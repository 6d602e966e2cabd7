//! How long a client may send nothing while its body is awaited.

use std::{
    mem,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::time::Bound;

/// The longest time between two looks at a client that sends nothing.
const TICK: Duration = Duration::from_secs(2);

/// How long a client may send nothing, and how slowly it may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// After which time others may take back what was not delivered.
    pub(crate) grace: Duration,
    /// After which time the request is answered 408. None for never.
    pub(crate) timeout: Option<Duration>,
    /// The lowest rate of all that came, in bytes per second of waiting beyond the timeout.
    pub(crate) rate: u64,
}

impl Default for Silence {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(2),
            timeout: Some(Duration::from_secs(30)),
            rate: 500,
        }
    }
}

impl Silence {
    /// How much longer a client may be silent that was awaited for some time before, and has sent `received` bytes.
    fn left(&self, awaited: Duration, received: u64) -> Option<Duration> {
        let timeout = self.timeout?;
        if self.rate == 0 {
            return Some(timeout);
        }
        let earned = Duration::from_secs(received / self.rate);
        Some(timeout.min(timeout.saturating_add(earned).saturating_sub(awaited)))
    }
}

/// The wait for a client, for as long as its body lasts.
///
/// Only polls of the body count: what the handler does between two of them is not the client's time.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    /// When the first and the last poll found nothing. None if something came since.
    empty: Option<(Instant, Instant)>,
    /// How long it was awaited before.
    before: Duration,
    /// The silence was reported.
    is_silent: bool,
    tick: Option<Bound>,
}

/// What a wait has come to.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// The client is silent since then.
    Silent(Instant),
    /// It has been for too long, or it sends too slowly.
    Stalled,
}

impl Awaited {
    /// A poll of the body has found nothing.
    pub(super) fn poll(
        &mut self,
        silence: &Silence,
        received: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Event> {
        loop {
            let now = Instant::now();
            let (since, last) = self.empty.get_or_insert((now, now));
            *last = now;
            let waited = now - *since;
            let left = silence.left(self.before, received);
            let left = left.map(|left| left.saturating_sub(waited));
            if left.is_some_and(|left| left.is_zero()) {
                return Poll::Ready(Event::Stalled);
            }
            if !self.is_silent && waited >= silence.grace {
                self.is_silent = true;
                return Poll::Ready(Event::Silent(*since));
            }
            let mut next = TICK.min(left.unwrap_or(TICK));
            if !self.is_silent {
                next = next.min(silence.grace - waited);
            }
            ready!(self.tick.get_or_insert_with(|| Bound::new(next)).poll(cx));
            self.tick = None;
        }
    }

    /// Something has come. Returns whether the silence was reported.
    pub(super) fn came(&mut self) -> bool {
        if let Some((since, last)) = self.empty.take() {
            // It may have come long ago.
            let until = Instant::now().min(last + TICK);
            self.before = self.before.saturating_add(until - since);
        }
        mem::take(&mut self.is_silent)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    const DEFAULT: Silence = Silence {
        grace: Duration::from_secs(2),
        timeout: Some(Duration::from_secs(30)),
        rate: 500,
    };

    async fn event(awaited: &mut Awaited, silence: &Silence, received: u64) -> (Event, Duration) {
        let begun = Instant::now();
        let event = poll_fn(|cx| awaited.poll(silence, received, cx)).await;
        (event, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_reported_and_then_the_stall() {
        let mut awaited = Awaited::default();
        let begun = Instant::now();
        let (first, after) = event(&mut awaited, &DEFAULT, 0).await;
        assert_eq!((first, after.as_secs()), (Event::Silent(begun), 2));
        let (second, after) = event(&mut awaited, &DEFAULT, 0).await;
        assert_eq!((second, after.as_secs()), (Event::Stalled, 28));
    }

    /// A timer of an earlier wait does not end a later one.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_is_never_silent() {
        let mut awaited = Awaited::default();
        for received in 0..100 {
            let wait = event(&mut awaited, &DEFAULT, received << 20);
            let waited = timeout(Duration::from_millis(1_900), wait).await;
            assert!(waited.is_err());
            assert!(!awaited.came());
        }
    }

    /// One byte before each timeout.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_trickles_has_stalled() {
        let mut awaited = Awaited::default();
        let begun = Instant::now();
        for received in 0.. {
            let bound = Duration::from_secs(29);
            let stall = async {
                while event(&mut awaited, &DEFAULT, received).await.0 != Event::Stalled {}
            };
            if timeout(bound, stall).await.is_ok() {
                break;
            }
            awaited.came();
        }
        assert!(
            begun.elapsed() <= Duration::from_secs(33),
            "{:?}",
            begun.elapsed()
        );
    }

    /// The handler was away, and the client was not awaited.
    #[tokio::test(start_paused = true)]
    async fn the_time_of_the_handler_does_not_count() {
        let mut awaited = Awaited::default();
        for received in 0..1_000 {
            let now = timeout(
                Duration::ZERO,
                event(&mut awaited, &DEFAULT, received << 11),
            );
            assert!(now.await.is_err());
            // It came at once, and the handler has not asked for it.
            advance(Duration::from_secs(60)).await;
            assert!(!awaited.came());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_timeout_nothing_stalls() {
        let mut awaited = Awaited::default();
        let never = Silence {
            timeout: None,
            ..DEFAULT
        };
        let (first, _) = event(&mut awaited, &never, 0).await;
        assert!(matches!(first, Event::Silent(_)));
        let hour = Duration::from_secs(3_600);
        assert!(timeout(hour, event(&mut awaited, &never, 0)).await.is_err());
    }
}
