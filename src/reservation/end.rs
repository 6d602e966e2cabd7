//! How a reservation ends: once, on every path.

use std::{
    mem,
    sync::{Arc, MutexGuard},
    task::Waker,
};

use super::{
    hooks::Outcome,
    ops::{BoxFuture, Report},
    shared::{Shared, bounded},
    state::{Adapter, Ended, Lifecycle, Rare, State},
};
use crate::{
    amount::Amount,
    observer::{Event, Observed},
    quota::{Answer, Change, QuotaHold, QuotaSource},
    time::within,
    volume::Volume,
};

impl<Q: QuotaSource, A: Adapter> Shared<Q, A> {
    /// Ends the reservation, if it has not ended yet. The volume's part is done here; the amount to commit is
    /// returned.
    pub(crate) fn end(&self, success: bool) -> Ended<Q::Hold> {
        if self.meter.has_ended() {
            return Ended::Before;
        }
        self.end_in(self.state(), success)
    }

    /// Like [`Self::end`], decided under a lock that is held: no cut can occur between the check and the end.
    #[inline]
    pub(crate) fn end_in(
        &self,
        mut state: MutexGuard<'_, State<Q::Hold, A>>,
        success: bool,
    ) -> Ended<Q::Hold> {
        // A cut reservation is never charged.
        let success = match mem::replace(&mut state.lifecycle, Lifecycle::Ended) {
            Lifecycle::Open => success,
            Lifecycle::Cut => false,
            Lifecycle::Ended => return Ended::Before,
        };
        self.meter.end();
        let rare = state.rare.take().map(|rare| state.keep_reason(rare));
        let (hold, tickets) = (state.hold.take(), state.tickets.take());
        let blocks = mem::replace(&mut state.blocks, Amount::ZERO);
        drop(state);

        // All of this calls foreign code, or wakes other tasks: not under the lock.
        let settlement = self.settlement(rare.as_deref(), success);
        if let Some(volume) = self.claimed_on() {
            self.settle_blocks(volume, blocks, &settlement);
        }
        if let Some(rare) = rare {
            self.end_rare(*rare, success);
        }
        drop(tickets);
        match hold {
            Some(hold) if success => Ended::Now(Some((hold, settlement.change))),
            hold => {
                if success && !self.scopes.is_empty() && hold.is_none() {
                    self.charge_without_hold(settlement.change);
                }
                drop(hold);
                self.context.rules.quota_queue.notify();
                Ended::Now(None)
            }
        }
    }

    /// Hands what is on the disk over to the probe, and releases the rest.
    #[inline]
    fn settle_blocks(&self, volume: &Volume, blocks: Amount, settlement: &Settlement) {
        let on_disk = self.in_blocks(volume, settlement.on_disk);
        let settling = on_disk.min(blocks.bytes).saturating_sub(settlement.settled);
        let objects = if settlement.made_none {
            0
        } else {
            blocks.objects
        };
        volume.settle(Amount::new(settling, objects));
        volume.release(Amount::new(
            blocks.bytes - settlement.settled - settling,
            blocks.objects - objects,
        ));
    }

    /// Ends what few reservations have.
    #[cold]
    fn end_rare(&self, rare: Rare<A>, success: bool) {
        let report = rare.report;
        drop((rare.adapter, rare.offers));
        if let Some(observer) = &self.context.rules.observer {
            self.tell_end(observer, &report, success);
        }
        // They find that it has ended.
        rare.askers.into_iter().for_each(Waker::wake);
        if success && !report.is_unfinished {
            for (scopes, amount) in rare.gives_back {
                let removed = Change::between(Amount::ZERO, amount);
                self.context.quota.charge(&scopes, removed);
            }
        }
        if let Some(hook) = rare.hook {
            hook(Outcome {
                success,
                received: self.meter.received(),
                report,
            });
        }
    }

    /// Tells the observer of the end.
    fn tell_end(&self, observer: &Observed, report: &Report, success: bool) {
        let (volume, scopes) = (self.context.volume_name(), &self.scopes);
        let reserved = bounded(self.meter.reserved());
        observer.observe(&match success {
            true => Event::Settled {
                volume,
                scopes,
                reserved,
                stored: report.stored.unwrap_or_else(|| bounded(self.received())),
            },
            false => Event::Released {
                volume,
                scopes,
                reserved,
                received: self.meter.received(),
            },
        });
    }

    /// The stored bytes, unless the handler says otherwise. The service may write more than the body.
    #[inline]
    fn received(&self) -> u64 {
        match A::CHARGES_RESERVED {
            true => self.meter.reserved(),
            false => self.demand.stored_of(self.meter.received()),
        }
    }

    /// Charges what was admitted without a hold.
    #[cold]
    fn charge_without_hold(&self, change: Change) {
        if change != Change::ZERO {
            self.context.quota.charge(&self.scopes, change);
        }
    }

    /// What a reservation leaves after such an end.
    #[inline]
    fn settlement(&self, rare: Option<&Rare<A>>, success: bool) -> Settlement {
        let received = self.received();
        let mut settlement = Settlement {
            // After a failure the partial file may still exist: what was read stays claimed until the next reading.
            on_disk: match success || !A::CHARGES_RESERVED {
                true => received,
                false => 0,
            },
            settled: 0,
            // A service that was called may have created an object. A job reports what it has written.
            made_none: A::CHARGES_RESERVED && !success,
            change: Change::ZERO,
        };
        let (mut stored, mut made) = (received, self.demand.objects());
        let mut replaced = self.demand.replaced();
        if let Some(rare) = rare {
            let report = &rare.report;
            stored = report.stored.unwrap_or(received);
            made = report.made.unwrap_or(made);
            if success {
                settlement.on_disk = stored;
            }
            settlement.on_disk = settlement.on_disk.max(rare.written);
            settlement.settled = rare.settled;
            settlement.made_none &= rare.written == 0;
            replaced = match report.is_unfinished {
                true => Amount::ZERO,
                false => (report.replaced.or(rare.replaced)).unwrap_or(replaced),
            };
        }
        if success && !self.scopes.is_empty() {
            let in_scopes = Amount::new(stored, made) + self.demand.moved();
            settlement.change = Change::between(in_scopes, replaced);
        }
        settlement
    }
}

/// What a reservation leaves at its end.
struct Settlement {
    /// Stored bytes that may be on the disk.
    on_disk: u64,
    /// Blocks that have settled already.
    settled: u64,
    /// Whether no object can have been created.
    made_none: bool,
    /// What the scopes are charged on success.
    change: Change,
}

impl<Q, A> Shared<Q, A>
where
    Q: QuotaSource,
    A: Adapter,
{
    /// Commits, and waits for it within the quota source's timeout.
    ///
    /// The source is told here, not in the future, because the future may never be polled. By its contract the source
    /// then keeps the charge.
    pub(crate) fn settle(self: Arc<Self>, commit: Option<(Q::Hold, Change)>) -> BoxFuture<()> {
        let commit = commit.map(|(hold, change)| hold.commit(change));
        Box::pin(async move {
            match commit {
                Some(Answer::Now(())) => {}
                Some(Answer::Later(commit)) => {
                    within(self.context.rules.quota_timeout, commit).await;
                }
                None => return,
            }
            self.context.rules.quota_queue.notify();
        })
    }
}

impl<Q: QuotaSource, A: Adapter> Drop for Shared<Q, A> {
    #[inline]
    fn drop(&mut self) {
        // The reservation ends on every path.
        self.end(false);
    }
}
