//! At the door: a claim, and where it fails a second look before anybody is sent away.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::Volume;
use crate::{Amount, fault::Fault, line::Listener, time::Bound};

/// Why there is no room on a volume.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shortfall {
    /// It is full.
    Full {
        fault: Fault,
        /// It would not fit on the empty volume either.
        is_hopeless: bool,
    },
    /// Nobody knows: the last reading is too old.
    Unknown,
}

/// What a request is let in with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Admitted {
    pub(crate) bytes: u64,
    /// The claim for them, in whole blocks.
    pub(crate) blocks: Amount,
}

/// A request on its way to a claim.
///
/// The last reading may be a second old, and files were deleted since; or uploads in flight are counted
/// twice, on the disk and in the ledger. So a request that finds no room asks for a new reading, and
/// waits for it and for what others give back, for a bounded time. It waits for an event, never for the
/// filesystem: where the probe hangs already, it does not wait at all.
#[derive(Debug)]
pub(crate) struct Admission {
    amount: Amount,
    /// The bytes that are enough where there is room for no more.
    least: u64,
    expected: u64,
    patience: Bound,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    listener: Listener,
    /// Probes begun before this request came. A later reading is a fair one.
    begun: u64,
}

impl Admission {
    /// A claim of `amount`, or of as many bytes as there are but not less than `least`, provided that
    /// `expected` bytes would fit.
    pub(crate) fn new(amount: Amount, least: u64, expected: u64, patience: Duration) -> Self {
        Self {
            amount,
            least,
            expected,
            patience: Bound::new(patience),
            waiting: None,
        }
    }

    /// The claim, or why there is none.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        volume: &Volume,
    ) -> Poll<Result<Admitted, Shortfall>> {
        if let Some(waiting) = &self.waiting {
            // Before the look, so that nothing is missed between the two.
            waiting.listener.listen(cx);
        }
        let shortfall = match self.claim(volume) {
            Err(shortfall @ Shortfall::Full { .. }) => shortfall,
            decided => return Poll::Ready(decided),
        };
        let filesystem = volume.filesystem();
        if self.waiting.is_none() {
            let waiting = Waiting {
                listener: filesystem.line.listener(),
                begun: filesystem.begun(),
            };
            waiting.listener.listen(cx);
            self.waiting = Some(waiting);
        }
        let begun = self.waiting.as_ref().map_or(0, |waiting| waiting.begun);
        let is_hung = filesystem.hung_for() > self.patience.after();
        let is_fair = filesystem.published() > begun;
        if is_hung
            || is_fair && !volume.could_have_room(self.least(), self.expected, Amount::ZERO)
            || self.patience.poll(cx).is_ready()
        {
            return Poll::Ready(Err(shortfall));
        }
        filesystem.want_reading();
        Poll::Pending
    }

    /// The claim without waiting.
    pub(crate) fn claim(&self, volume: &Volume) -> Result<Admitted, Shortfall> {
        // Uploads that are let in and want to grow come before those at the door.
        if self.amount.bytes > 0 && volume.filesystem().line.is_waiting([&None], None) {
            return Err(volume.full());
        }
        let mut amount = self.amount;
        if self.least < amount.bytes {
            amount.bytes = amount.bytes.min(volume.room()).max(self.least);
        }
        let blocks = volume.claim(amount, self.expected)?;
        let bytes = amount.bytes;
        Ok(Admitted { bytes, blocks })
    }

    fn least(&self) -> Amount {
        Amount::new(self.least, self.amount.objects)
    }
}
