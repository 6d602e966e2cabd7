//! What this process knows of the time of an engine.
//!
//! The clock of an engine may be set while holds are in flight: forward, their time to live would pass at once; back, the holds
//! of killed processes would live on. So the engine subtracts from its clock what it was set ahead, and each process that it has
//! answered tells it what time it expects, by its own monotonic clock. The engine keeps the correction for all processes. A
//! process that it has not answered yet knows nothing of its clock, and takes it as it is.
//!
//! Only a process that was told the current correction may change it. Else two processes that expect different times, as after
//! the machine of one has slept, would set the time back and forth, and each change forward frees holds.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long a clock that is not asked is remembered. Holds in flight are renewed more often.
const REMEMBERED: Duration = Duration::from_secs(2 * 60);

/// A time of an engine, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct EngineTime {
    /// Since 1970, corrected.
    pub(super) time: i64,
    /// The correction: how far the engine's clock was set ahead.
    pub(super) ahead: i64,
}

/// The last answers of an engine's clocks, by their names.
#[derive(Debug, Default)]
pub(super) struct Clocks(Mutex<HashMap<String, (Instant, EngineTime)>>);

impl Clocks {
    /// What time it is by now, unless this clock has not answered before.
    pub(super) fn expected(&self, name: &str) -> Option<EngineTime> {
        let (at, EngineTime { time, ahead }) = *self.lock().get(name)?;
        let passed = i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX);
        let time = time.saturating_add(passed);
        Some(EngineTime { time, ahead })
    }

    /// Notes an answer that has just arrived.
    pub(super) fn note(&self, name: &str, told: EngineTime) {
        let mut clocks = self.lock();
        if clocks.len() == clocks.capacity() && !clocks.contains_key(name) {
            clocks.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
            // So this is not done again for as many.
            let count = clocks.len() + 1;
            clocks.reserve(count);
        }
        clocks.insert(name.to_owned(), (Instant::now(), told));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, EngineTime)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_goes_on_from_its_last_answer() {
        let clocks = Clocks::default();
        let told = |time, ahead| EngineTime { time, ahead };
        clocks.note("one", told(1, 2));
        clocks.note("one", told(10_000, 7));
        clocks.note("other", told(i64::MAX, 0));
        advance(Duration::from_millis(5)).await;
        assert_eq!(clocks.expected("one"), Some(told(10_005, 7)));
        assert_eq!(clocks.expected("other"), Some(told(i64::MAX, 0)));
        assert_eq!(clocks.expected("unknown"), None);
    }
}
