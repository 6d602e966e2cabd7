//! The ends of a request's two directions. The second one settles the reservation.

use crate::atomic::{AtomicU8, Ordering};

/// Which of the two directions have ended, in one word: the second one sees the first, and settles the reservation.
#[derive(Debug, Default)]
pub(super) struct Ends(AtomicU8);

/// What had ended before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before(u8);

impl Ends {
    /// The body was read as far as it will be.
    pub(super) const READ: u8 = 1;
    /// The client disconnected, or violated the protocol.
    pub(super) const FAILED: u8 = 2;
    /// The answer was a success, and was sent before the body ended.
    pub(super) const ANSWERED: u8 = 4;

    pub(super) fn end(&self, by: u8) -> Before {
        Before(self.0.fetch_or(by, Ordering::AcqRel))
    }

    pub(super) fn now(&self) -> Before {
        Before(self.0.load(Ordering::Acquire))
    }
}

impl Before {
    pub(super) fn has(self, end: u8) -> bool {
        self.0 & end != 0
    }

    pub(super) fn has_body_ended(self) -> bool {
        self.has(Ends::READ | Ends::FAILED)
    }
}
