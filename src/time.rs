//! Waiting, with or without a runtime.
//!
//! Nothing on the way of an ordinary request waits: these timers exist only once something is late.

use std::{
    fmt,
    task::{Context, Poll},
    time::Duration,
};

/// Ready after a while.
pub(crate) struct Sleep(Kind);

enum Kind {
    /// Tokio's own, so that a test can pause it.
    Tokio(std::pin::Pin<Box<tokio::time::Sleep>>),
    Thread(thread::Sleep),
}

impl Sleep {
    pub(crate) fn new(after: Duration) -> Self {
        if tokio::runtime::Handle::try_current().is_ok() {
            return Self(Kind::Tokio(Box::pin(tokio::time::sleep(after))));
        }
        Self(Kind::Thread(thread::Sleep::new(after)))
    }

    /// On no runtime: for what may outlive it.
    pub(crate) fn on_thread(after: Duration) -> Self {
        Self(Kind::Thread(thread::Sleep::new(after)))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Kind::Tokio(sleep) => sleep.as_mut().poll(cx),
            Kind::Thread(sleep) => sleep.poll(cx),
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").finish_non_exhaustive()
    }
}

/// A bound on how long something may stay pending. Its timer is made at the first wait.
#[derive(Debug)]
pub(crate) struct Bound {
    after: Duration,
    /// Boxed, because nearly every bound is moved around and never waits.
    sleep: Option<Box<Sleep>>,
}

impl Bound {
    pub(crate) const fn new(after: Duration) -> Self {
        Self { after, sleep: None }
    }

    pub(crate) const fn after(&self) -> Duration {
        self.after
    }

    /// Ready when the time is up. Counts from the first call.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let after = self.after;
        self.sleep
            .get_or_insert_with(|| Box::new(Sleep::new(after)))
            .poll(cx)
    }
}

/// `future`, or None if it takes longer than the bound.
pub(crate) async fn within<F: Future>(after: Duration, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut bound = Bound::new(after);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        bound.poll(cx).map(|()| None)
    })
    .await
}

/// One thread that wakes whoever's time has come.
mod thread {
    use std::{
        collections::BTreeMap,
        sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
        task::{Context, Poll, Waker},
        thread,
        time::{Duration, Instant},
    };

    /// When, and which of those that are due at that instant.
    type Key = (Instant, u64);

    #[derive(Default)]
    struct Timers {
        sleeping: BTreeMap<Key, Waker>,
        made: u64,
        started: bool,
    }

    static TIMERS: LazyLock<Mutex<Timers>> = LazyLock::new(Mutex::default);
    static CHANGED: Condvar = Condvar::new();

    fn timers() -> MutexGuard<'static, Timers> {
        // Nothing panics while it is held but a waker's clone, which leaves the map whole.
        TIMERS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) struct Sleep {
        due: Instant,
        key: Option<Key>,
    }

    impl Sleep {
        pub(super) fn new(after: Duration) -> Self {
            let now = Instant::now();
            Self {
                // As good as for ever where the clock cannot count so far.
                due: now
                    .checked_add(after)
                    .unwrap_or_else(|| now + Duration::from_secs(86_400 * 365)),
                key: None,
            }
        }

        pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
            if Instant::now() >= self.due {
                return Poll::Ready(());
            }
            let mut timers = timers();
            let key = *self.key.get_or_insert_with(|| {
                timers.made += 1;
                (self.due, timers.made)
            });
            timers.sleeping.insert(key, cx.waker().clone());
            if !timers.started {
                timers.started = thread::Builder::new()
                    .name("storage-guard-timer".into())
                    .spawn(run)
                    .is_ok();
            }
            drop(timers);
            CHANGED.notify_one();
            Poll::Pending
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            if let Some(key) = self.key {
                timers().sleeping.remove(&key);
            }
        }
    }

    fn run() {
        let mut timers = timers();
        loop {
            let now = Instant::now();
            let later = timers.sleeping.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut timers.sleeping, later);
            if !due.is_empty() {
                drop(timers);
                due.into_values().for_each(Waker::wake);
                timers = self::timers();
                continue;
            }
            let next = timers.sleeping.keys().next().map(|(due, _)| *due - now);
            timers = match next {
                Some(left) => {
                    CHANGED
                        .wait_timeout(timers, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => CHANGED.wait(timers).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        task::{Wake, Waker},
        thread::{self, Thread},
        time::Instant,
    };

    use super::{thread::Sleep, *};

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Without a runtime: asleep until somebody wakes this thread.
    fn wait(mut sleep: Sleep) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        while sleep.poll(&mut cx).is_pending() {
            thread::park_timeout(Duration::from_secs(60));
        }
    }

    #[test]
    fn the_timer_thread_wakes_in_time_and_in_order() {
        let began = Instant::now();
        // One that is never polled again, and one that is dropped, are in nobody's way.
        let mut cx = Context::from_waker(Waker::noop());
        let mut forgotten = Sleep::new(Duration::from_millis(1));
        assert!(forgotten.poll(&mut cx).is_pending());
        let mut dropped = Sleep::new(Duration::from_secs(3_600));
        assert!(dropped.poll(&mut cx).is_pending());
        drop(dropped);

        let later = thread::spawn(|| wait(Sleep::new(Duration::from_millis(60))));
        wait(Sleep::new(Duration::from_millis(20)));
        let sooner = began.elapsed();
        later.join().unwrap();
        assert!(sooner >= Duration::from_millis(20));
        assert!(began.elapsed() >= Duration::from_millis(60));
        assert!(began.elapsed() < Duration::from_secs(30), "nobody woke us");
        assert!(forgotten.poll(&mut cx).is_ready());
    }

    #[test]
    fn a_sleep_as_good_as_for_ever_is_one() {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Sleep::new(Duration::MAX).poll(&mut cx).is_pending());
        assert!(Sleep::new(Duration::ZERO).poll(&mut cx).is_ready());
    }
}
