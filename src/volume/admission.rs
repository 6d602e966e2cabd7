//! A claim on a volume, and its second check before it is refused.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::Volume;
use crate::{
    amount::Amount, cause::Fault, demand::Reach, refused::Refused, time::Bound,
    wait_queue::Listener,
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
    /// The last reading is too old to decide.
    Unknown,
}

/// What the client is told when the volume has no room. It does not include whether the demand could ever fit,
/// because repeated requests would reveal the size of the disk.
impl From<Shortfall> for Refused {
    fn from(shortfall: Shortfall) -> Self {
        match shortfall {
            Shortfall::Full { fault, .. } => fault.into(),
            Shortfall::Unknown => Self::unavailable(),
        }
    }
}

/// What was claimed on a volume.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Claimed {
    /// Bytes that may be stored.
    pub(crate) bytes: u64,
    /// The claim for them, in whole blocks.
    pub(crate) blocks: Amount,
}

/// The demand on a volume, in stored bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) bytes: u64,
    /// The bytes that are sufficient if there is no room for more.
    pub(crate) least: u64,
    /// Bytes that must fit, but are not claimed.
    pub(crate) expected: u64,
    pub(crate) objects: u64,
    pub(crate) reach: Reach,
}

impl Wanted {
    /// Makes the claim without waiting. If there is no room, what silent clients do not use is taken back for it.
    #[inline(always)]
    pub(crate) fn claim(&self, volume: &Volume) -> Result<Claimed, Shortfall> {
        match self.try_claim(volume) {
            Ok(claimed) => Ok(claimed),
            Err(shortfall) => self.claim_again(volume, shortfall),
        }
    }

    #[cold]
    fn claim_again(&self, volume: &Volume, mut shortfall: Shortfall) -> Result<Claimed, Shortfall> {
        let needed = self.least().bytes.max(self.expected());
        while !self.yields(volume) && volume.takes_back(shortfall, needed) {
            match self.try_claim(volume) {
                Ok(claimed) => return Ok(claimed),
                Err(again) => shortfall = again,
            }
        }
        Err(shortfall)
    }

    #[inline(always)]
    fn try_claim(&self, volume: &Volume) -> Result<Claimed, Shortfall> {
        if self.yields(volume) {
            return Err(volume.full());
        }
        let mut bytes = self.bytes;
        if self.least < bytes {
            bytes = bytes
                .min(self.reach.stored_in(volume.room()))
                .max(self.least);
        }
        let amount = Amount::new(self.reach.on_volume(bytes), self.objects);
        let blocks = volume.claim(amount, self.expected())?;
        let freed = match self.reach.freed() {
            0 => Amount::ZERO,
            _ => self.claim_freed(volume, bytes, blocks)?,
        };
        let blocks = blocks + freed;
        Ok(Claimed { bytes, blocks })
    }

    /// Claims the blocks that will be freed and written again, which are in use now. Beside them so many are claimed already.
    #[cold]
    fn claim_freed(
        &self,
        volume: &Volume,
        bytes: u64,
        claimed: Amount,
    ) -> Result<Amount, Shortfall> {
        let whole = Amount::bytes(self.reach.with_freed().on_volume(bytes));
        let freed = Amount::bytes(volume.in_blocks(whole).bytes.saturating_sub(claimed.bytes));
        if volume.claim_anyway(freed) {
            return Ok(freed);
        }
        volume.release(claimed);
        Err(volume.full())
    }

    /// Reservations that wait to grow take precedence over new ones.
    #[inline]
    fn yields(&self, volume: &Volume) -> bool {
        self.bytes > 0 && volume.filesystem().queue.is_waiting([&None], None)
    }

    /// The least that has to be claimed.
    fn least(&self) -> Amount {
        Amount::new(self.reach.on_volume(self.least), self.objects)
    }

    /// What must fit, but is not claimed.
    fn expected(&self) -> u64 {
        self.reach.on_volume(self.expected)
    }
}

/// A claim that waits for room.
///
/// The last reading may be a second old, so that deleted files are not seen yet, or uploads in flight are counted
/// twice, on the disk and in the ledger. So a demand that finds no room requests a new reading, and waits for it and
/// for what other requests give back, for a bounded time. It waits for an event, never for the filesystem: if the
/// probe hangs already, it does not wait at all.
#[derive(Debug)]
pub(crate) struct WaitForRoom {
    wanted: Wanted,
    look: Look,
    shortfall: Shortfall,
}

impl WaitForRoom {
    /// Waits after a claim that found no room.
    pub(crate) fn new(
        wanted: Wanted,
        shortfall: Shortfall,
        volume: &Volume,
        patience: Duration,
    ) -> Self {
        let look = Look::new(volume, patience);
        Self {
            wanted,
            look,
            shortfall,
        }
    }

    /// Why there is no room now, for a demand that does not wait.
    pub(crate) fn refused(&self) -> Refused {
        self.refuses(self.shortfall)
    }

    fn refuses(&self, shortfall: Shortfall) -> Refused {
        let needed = Amount::new(
            self.wanted.least.max(self.wanted.expected),
            self.wanted.objects,
        );
        Refused::from(shortfall).with_needed(needed)
    }

    /// Returns the claim, or why there is none.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        volume: &Volume,
    ) -> Poll<Result<Claimed, Refused>> {
        // Register before the claim, so that no notification between the two is missed.
        self.look.listener.listen(cx);
        let shortfall = match self.wanted.claim(volume) {
            Err(shortfall @ Shortfall::Full { .. }) => shortfall,
            decided => return Poll::Ready(decided.map_err(|shortfall| self.refuses(shortfall))),
        };
        let least = self.wanted.least();
        let is_decided = || !volume.could_have_room(least, self.wanted.expected(), Amount::ZERO);
        if self.look.is_over(cx, volume) || self.look.has_seen(volume) && is_decided() {
            volume.note_full(shortfall, Amount::ZERO);
            return Poll::Ready(Err(self.refuses(shortfall)));
        }
        self.look.go_on(cx, volume);
        Poll::Pending
    }
}

/// A wait for a reading that begins after it, and for what other requests give back.
#[derive(Debug)]
pub(crate) struct Look {
    listener: Listener,
    /// The number of probes begun before. A later reading includes everything that was stored when this began.
    begun: u64,
    patience: Bound,
}

impl Look {
    pub(crate) fn new(volume: &Volume, patience: Duration) -> Self {
        let filesystem = volume.filesystem();
        Self {
            listener: filesystem.queue.listener(),
            begun: filesystem.begun(),
            patience: Bound::new(patience),
        }
    }

    /// Waits until the reading is published, or the patience ends.
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

    /// Whether the time is up, or the probe hangs so that waiting is useless.
    fn is_over(&mut self, cx: &mut Context<'_>, volume: &Volume) -> bool {
        volume.is_in_doubt_for(self.patience.after()) || self.patience.poll(cx).is_ready()
    }

    fn go_on(&self, cx: &Context<'_>, volume: &Volume) {
        self.listener.listen(cx);
        volume.filesystem().want_reading();
    }
}
