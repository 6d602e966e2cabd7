//! Timeouts.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::unconstrained,
    time::{Instant, Sleep, sleep},
};

/// A bound on how long something may be pending. The timer is created at the first wait.
#[derive(Debug)]
pub(crate) struct Bound {
    after: Duration,
    /// Boxed, because most bounds are moved often and never wait.
    timer: Option<Box<Timer>>,
}

#[derive(Debug)]
enum Timer {
    Runtime(Pin<Box<Sleep>>),
    /// Outside of a runtime no timer wakes the task. The clock is checked at every poll.
    Clock(Instant),
}

impl Bound {
    pub(crate) const fn new(after: Duration) -> Self {
        Self { after, timer: None }
    }

    pub(crate) const fn after(&self) -> Duration {
        self.after
    }

    /// Ready when the time is up. Counts from the first call.
    ///
    /// # Panics
    ///
    /// Within a runtime whose timer is not enabled.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let after = self.after;
        let timer = self.timer.get_or_insert_with(|| {
            Box::new(match Handle::try_current() {
                Ok(_) => Timer::Runtime(Box::pin(sleep(after))),
                Err(_) => Timer::Clock(Instant::now()),
            })
        });
        match &mut **timer {
            // A future that uses up tokio's cooperative budget on every poll must not outlive its bound.
            Timer::Runtime(sleep) => pin!(unconstrained(sleep.as_mut())).poll(cx),
            Timer::Clock(began) if began.elapsed() >= after => Poll::Ready(()),
            Timer::Clock(_) => Poll::Pending,
        }
    }
}

/// Awaits `future`. None if it takes longer than the bound.
pub(crate) async fn within<F: Future>(after: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut bound = Bound::new(after);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => bound.poll(cx).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{future::pending, task::Waker, thread};

    use tokio::task::consume_budget;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn poll(bound: &mut Bound) -> Poll<()> {
        bound.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_counts_from_its_first_poll() {
        let mut bound = Bound::new(HOUR);
        tokio::time::advance(HOUR).await;
        assert_eq!(poll(&mut bound), Poll::Pending);
        tokio::time::advance(HOUR).await;
        assert_eq!(poll(&mut bound), Poll::Ready(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_future_times_out() {
        assert_eq!(within(HOUR, async { 7 }).await, Some(7));
        let began = Instant::now();
        assert_eq!(within(HOUR, pending::<()>()).await, None);
        assert_eq!(began.elapsed().as_secs(), HOUR.as_secs());
    }

    #[tokio::test]
    async fn a_future_that_is_never_idle_times_out() {
        let busy = async {
            loop {
                consume_budget().await;
            }
        };
        let busy: Option<()> = within(Duration::from_millis(20), busy).await;
        assert_eq!(busy, None);
    }

    #[test]
    fn outside_of_a_runtime_the_clock_is_checked_at_each_poll() {
        let mut bound = Bound::new(Duration::from_millis(20));
        assert_eq!(poll(&mut bound), Poll::Pending);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(poll(&mut bound), Poll::Ready(()));
    }

    #[tokio::test]
    async fn a_very_long_bound_is_accepted() {
        assert_eq!(poll(&mut Bound::new(Duration::MAX)), Poll::Pending);
        let outside = || poll(&mut Bound::new(Duration::MAX));
        assert_eq!(thread::spawn(outside).join().unwrap(), Poll::Pending);
    }

    #[test]
    fn a_bound_may_be_polled_and_dropped_outside_of_the_runtime_that_it_began_in() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let mut bound = Bound::new(HOUR);
        runtime.block_on(async {
            assert_eq!(poll(&mut bound), Poll::Pending);
        });
        assert_eq!(poll(&mut bound), Poll::Pending);
        drop(runtime);
        drop(bound);
    }
}
