//! At the door: a claim, and where it fails a second look before anybody is sent away.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::Volume;
use crate::{
    Amount,
    fault::{Fault, Resource},
    line::Listener,
    time::Bound,
};

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

impl Shortfall {
    fn is_of_objects(self) -> bool {
        matches!(self, Self::Full { fault, .. } if fault.resource == Resource::Objects)
    }
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
    patience: Duration,
    look: Option<Look>,
}

impl Admission {
    /// A claim of `amount`, or of as many bytes as there are but not less than `least`, provided that
    /// `expected` bytes would fit.
    pub(crate) fn new(amount: Amount, least: u64, expected: u64, patience: Duration) -> Self {
        Self {
            amount,
            least,
            expected,
            patience,
            look: None,
        }
    }

    /// The claim, or why there is none.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        volume: &Volume,
    ) -> Poll<Result<Admitted, Shortfall>> {
        if let Some(look) = &self.look {
            // Before the claim, so that nothing is missed between the two.
            look.listener.listen(cx);
        }
        let shortfall = match self.claim(volume) {
            Err(shortfall @ Shortfall::Full { .. }) => shortfall,
            decided => return Poll::Ready(decided),
        };
        let is_decided = |least| !volume.could_have_room(least, self.expected, Amount::ZERO);
        let least = self.least();
        let look = self
            .look
            .get_or_insert_with(|| Look::new(volume, self.patience));
        if look.is_over(cx, volume) || look.has_seen(volume) && is_decided(least) {
            // A hint alone says nothing of how full it is.
            if volume.room() < least.bytes || shortfall.is_of_objects() {
                volume.note_full(shortfall);
            }
            return Poll::Ready(Err(shortfall));
        }
        look.go_on(cx, volume);
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

/// A wait for a reading that begins after it, and for what others give back.
#[derive(Debug)]
pub(crate) struct Look {
    listener: Listener,
    /// Probes begun before. A later reading holds all that was there when this began.
    begun: u64,
    patience: Bound,
}

impl Look {
    pub(crate) fn new(volume: &Volume, patience: Duration) -> Self {
        let filesystem = volume.filesystem();
        Self {
            listener: filesystem.line.listener(),
            begun: filesystem.begun(),
            patience: Bound::new(patience),
        }
    }

    /// Until the reading is there, or the patience ends.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, volume: &Volume) -> Poll<()> {
        if self.has_seen(volume) || self.is_over(cx, volume) {
            return Poll::Ready(());
        }
        self.go_on(cx, volume);
        if self.has_seen(volume) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn has_seen(&self, volume: &Volume) -> bool {
        volume.filesystem().published() > self.begun
    }

    /// Whether there is no more time, or the probe hangs so that none is of use.
    fn is_over(&mut self, cx: &mut Context<'_>, volume: &Volume) -> bool {
        let hung = volume.filesystem().in_doubt_for();
        hung.is_some_and(|hung| hung > self.patience.after()) || self.patience.poll(cx).is_ready()
    }

    fn go_on(&self, cx: &Context<'_>, volume: &Volume) {
        self.listener.listen(cx);
        volume.filesystem().want_reading();
    }
}
