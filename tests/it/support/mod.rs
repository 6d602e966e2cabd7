//! What several tests need.

pub(crate) mod disk;
#[cfg(target_os = "linux")]
pub(crate) mod mounts;
/// The messages and clients of the gRPC example.
#[allow(unreachable_pub)]
pub(crate) mod proto {
    include!("../../../examples/proto/upload.v1.rs");
}
pub(crate) mod running;
pub(crate) mod server;
#[cfg(target_os = "linux")]
pub(crate) mod store;
pub(crate) mod uploads;

use std::time::{Duration, Instant};

/// Waits until `is_so`, ten seconds at the most.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "not yet: {what}");
        // By the system's clock, as the threads that we wait for go by it: a test may have paused tokio's.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5)))
            .await
            .unwrap();
    }
}

/// Numbers that look random, and are the same every time.
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `end`. This is SplitMix64.
    pub(crate) fn roll(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % end
    }
}
