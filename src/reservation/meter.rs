//! The counters of a reservation that every frame updates.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How much is reserved, and how much of it was read.
#[derive(Debug)]
pub(crate) struct Meter {
    reserved: AtomicU64,
    received: AtomicU64,
    /// The reservation has ended, or the body was cut: no more of it may be read.
    closed: AtomicBool,
    /// The reservation has ended. Set under the lock of its state.
    ended: AtomicBool,
}

impl Meter {
    pub(super) fn new(reserved: u64) -> Self {
        Self {
            reserved: AtomicU64::new(reserved),
            received: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn set_received(&self, bytes: u64) {
        // Only the body writes it.
        self.received.store(bytes, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Reserves `bytes` in addition.
    pub(crate) fn raise(&self, bytes: u64) {
        // What is free has no bound, which must not wrap.
        let add = |reserved: u64| Some(reserved.saturating_add(bytes));
        let _ = self
            .reserved
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// Reserves `bytes` at most.
    pub(crate) fn lower_to(&self, bytes: u64) {
        self.reserved.fetch_min(bytes, Ordering::AcqRel);
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.close();
        self.ended.store(true, Ordering::Release);
    }

    /// Whether the reservation has ended, so that its end needs no lock.
    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}
