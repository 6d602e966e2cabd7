//! Waits for a condition.

use std::time::{Duration, Instant};

/// Waits until `is_so`, at most ten seconds.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "not yet: {what}");
        // By the system's clock, because the threads that the test waits for use it: a test may have paused tokio's.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5)))
            .await
            .unwrap();
    }
}
