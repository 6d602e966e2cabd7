//! The growth of a reservation: first on the volume, then in the scopes, queued with other reservations.
//!
//! Body and handle may grow it concurrently. So each enters its claim in the state before it waits, and every step
//! counts from there.

use std::{
    future::poll_fn,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
};

use super::{
    shared::Shared,
    state::{Adapter, State},
    tickets::Tickets,
};
use crate::{
    amount::Amount,
    cause::{Cause, Fault, Resource},
    offers::Shortage,
    outage::Outage,
    quota::{QuotaError, QuotaHold, QuotaSource},
    refused::Refused,
    time::within,
    volume::{Shortfall, Volume},
    wait_queue::Short,
};

impl<Q, A> Shared<Q, A>
where
    Q: QuotaSource,
    A: Adapter,
{
    /// Reserves `want` bytes more, or at least `need`.
    pub(super) async fn set_more_aside(&self, need: u64, want: u64) -> Result<u64, Refused> {
        let tickets = self.tickets()?;
        let growing = self.claim_more(&tickets, need, want).await?;
        let held = self.hold_more(&tickets, need, growing.bytes).await?;
        growing.keep(held)
    }

    /// Corrects what is replaced. If that gives back less than expected, the difference must be held.
    pub(super) async fn hold_what_is_not_replaced(&self, replaced: Amount) -> Result<(), Refused> {
        let _turn = self.turn().await?;
        self.grow_hold(replaced, 0).await?;
        let mut state = self.state();
        if state.has_ended() {
            return Err(has_ended());
        }
        state.rare_mut().replaced = Some(replaced);
        Ok(())
    }

    /// Gives back what is set aside beyond what is reserved, and beyond growths in progress.
    pub(super) fn set_less_aside(&self, mut locked: MutexGuard<'_, State<Q::Hold, A>>) {
        if locked.has_ended() {
            // All of it has settled.
            return;
        }
        let state = &mut *locked;
        let reserved = self.meter.reserved().saturating_add(state.growing());
        let claimed = self.claimed_on().map(|volume| {
            // Settled bytes are no longer claimed.
            let needed = self.in_blocks(volume, reserved).max(state.settled());
            let spare = Amount::bytes(state.blocks.bytes.saturating_sub(needed));
            state.blocks = state.blocks - spare;
            (volume, spare)
        });
        let spare = state.held - (self.in_scopes(reserved) - self.replaced_in(state));
        let is_asking = state.rare().is_some_and(|rare| rare.is_asking);
        let is_held = !is_asking && !spare.is_zero();
        if let (true, Some(hold)) = (is_held, &mut state.hold) {
            state.held = state.held - spare;
            hold.shrink_to(state.held);
        }
        drop(locked);
        if let Some((volume, spare)) = claimed {
            volume.release(spare);
        }
        if is_held {
            self.context.rules.quota_queue.notify();
        }
    }

    /// What replacing gives back to the scopes.
    fn replaced_in(&self, state: &State<Q::Hold, A>) -> Amount {
        let corrected = state.rare().and_then(|rare| rare.replaced);
        corrected.unwrap_or(self.demand.replaced())
    }

    fn tickets(&self) -> Result<Arc<Tickets>, Refused> {
        let mut state = self.state();
        if state.has_ended() {
            return Err(has_ended());
        }
        let tickets = state
            .tickets
            .get_or_insert_with(|| Arc::new(Tickets::new(self.claimed_on(), &self.context.rules)));
        Ok(Arc::clone(tickets))
    }

    /// Claims more on the volume when it is this reservation's turn.
    async fn claim_more(
        &self,
        tickets: &Tickets,
        need: u64,
        want: u64,
    ) -> Result<Growing<'_, Q, A>, Refused> {
        let (Some(volume), Some(ticket)) = (self.claimed_on(), &tickets.volume) else {
            return self.try_claim(want).map_err(Refused::from);
        };
        let filesystem = volume.filesystem();
        // Probes begun before it is known what others have left on the disk.
        let begun = AtomicU64::new(filesystem.begun());
        let had_company = AtomicBool::new(false);
        let attempt = || async {
            // With little room left, use small grants, because other uploads need what one upload holds without using
            // it.
            let room = self.reach(volume).stored_in(volume.room() / 8);
            let want = want.min(room).max(need);
            let shortfall = loop {
                if ticket.yields(&[None]) {
                    break volume.full();
                }
                match self.try_claim(want).or_else(|_| self.try_claim(need)) {
                    Ok(growing) => return Ok(growing),
                    Err(shortfall) if !self.takes_back(volume, shortfall, need) => break shortfall,
                    Err(_) => {}
                }
            };
            filesystem.want_reading();
            let is_hopeless = match shortfall {
                Shortfall::Full { is_hopeless, .. } => is_hopeless,
                Shortfall::Unknown => true,
            };
            // Other requests may give room back, and a later reading may show some: what the last of them has removed from the
            // disk only shows in a reading that begins after its end.
            let has_company = ticket.has_company();
            if had_company.swap(has_company, Ordering::Relaxed) && !has_company {
                begun.store(filesystem.begun(), Ordering::Relaxed);
            }
            let may_help = filesystem.published() <= begun.load(Ordering::Relaxed)
                || has_company
                || self.could_claim(volume, need);
            Err(Short {
                of: (may_help && !is_hopeless).then_some(None),
                error: shortfall,
            })
        };
        let grown = ticket.grow(self.context.rules.patience, attempt).await;
        grown.map_err(|shortfall| {
            volume.note_full(shortfall, self.own_blocks());
            Refused::from(shortfall).with_needed(Amount::bytes(need))
        })
    }

    fn try_claim(&self, bytes: u64) -> Result<Growing<'_, Q, A>, Shortfall> {
        let mut state = self.state();
        if state.has_ended() {
            return Err(Shortfall::Unknown);
        }
        if let Some(volume) = self.claimed_on() {
            let more = self.more_blocks(volume, &state, bytes);
            state.blocks = state.blocks + volume.claim(more, 0)?;
        }
        let rare = state.rare_mut();
        rare.growing = rare.growing.saturating_add(bytes);
        Ok(Growing {
            shared: self,
            bytes,
        })
    }

    /// The blocks that `bytes` more take, in addition to the claimed ones.
    fn more_blocks(&self, volume: &Volume, state: &State<Q::Hold, A>, bytes: u64) -> Amount {
        let reserved = self.meter.reserved().saturating_add(state.growing());
        let blocks = self.in_blocks(volume, reserved.saturating_add(bytes));
        Amount::bytes(blocks.saturating_sub(state.blocks.bytes))
    }

    /// Takes back what silent clients do not use, if that makes room for `bytes` more.
    fn takes_back(&self, volume: &Volume, shortfall: Shortfall, bytes: u64) -> bool {
        let more = self.more_blocks(volume, &self.state(), bytes);
        volume.takes_back(shortfall, more.bytes)
    }

    /// Whether `bytes` more would fit if all other reservations released their claims.
    fn could_claim(&self, volume: &Volume, bytes: u64) -> bool {
        let more = self.more_blocks(volume, &self.state(), bytes);
        volume.could_have_room(more, 0, self.own_blocks())
    }

    /// What it has claimed on the volume, and not yet settled.
    fn own_blocks(&self) -> Amount {
        let state = self.state();
        state.blocks - Amount::bytes(state.settled())
    }

    /// Grows the hold for `want` bytes that are claimed, or at least for `need`. Returns the number of bytes.
    async fn hold_more(&self, tickets: &Tickets, need: u64, want: u64) -> Result<u64, Refused> {
        if self.scopes.is_empty() {
            return Ok(want);
        }
        let keys: Vec<Shortage> = self.scopes.iter().cloned().map(Some).collect();
        let attempt = || async {
            if tickets.quota.yields(&keys) {
                let fault = Fault::new(Cause::QuotaExceeded, Resource::Bytes);
                return Err(Short {
                    of: keys.first().cloned(),
                    error: fault.into(),
                });
            }
            let _turn = self
                .turn()
                .await
                .map_err(|error| Short { of: None, error })?;
            let replaced = self.replaced_in(&self.state());
            let (mut bytes, mut came_back) = (want, false);
            let mut grown = self.grow_hold(replaced, 0).await;
            while let Err(QuotaError::Exceeded(exceeded)) = &grown {
                // `want` is this crate's choice, and may exceed a limit. `need` decides.
                if need < bytes {
                    bytes = need;
                } else if self.context.rules.takes_back(exceeded) {
                    came_back = true;
                } else {
                    break;
                }
                grown = self.grow_hold(replaced, want - bytes).await;
            }
            grown.map(|()| bytes).map_err(|error| Short {
                of: match &error {
                    // A store hears a little later of what came back.
                    QuotaError::Exceeded(exceeded)
                        if exceeded.required <= exceeded.limit
                            && (came_back || tickets.quota.has_company()) =>
                    {
                        Some(Some(exceeded.scope.clone()))
                    }
                    _ => None,
                },
                error: error.into(),
            })
        };
        tickets
            .quota
            .grow(self.context.rules.patience, attempt)
            .await
    }

    /// Waits until no other growth is asking the source, so that none counts on an amount that another has only asked
    /// for. The wait is bounded by the source's own timeout, because the other future may no longer be polled.
    async fn turn(&self) -> Result<Turn<'_, Q, A>, Refused> {
        let turn = poll_fn(|cx| {
            let mut state = self.state();
            let rare = state.rare_mut();
            if rare.is_asking {
                rare.askers.push(cx.waker().clone());
                return Poll::Pending;
            }
            rare.is_asking = true;
            Poll::Ready(Turn(self))
        });
        within(self.context.rules.quota_timeout, turn)
            .await
            .ok_or_else(Refused::unavailable)
    }

    /// Grows the hold to all that is reserved and growing, less `spared` bytes and what is replaced. Only in its
    /// [turn](Self::turn).
    async fn grow_hold(&self, replaced: Amount, spared: u64) -> Result<(), QuotaError> {
        let (growth, amount) = {
            let mut state = self.state();
            let bytes = self.meter.reserved().saturating_add(state.growing());
            let reserved = self.in_scopes(bytes.saturating_sub(spared));
            let amount = (reserved - replaced) - state.held;
            match &mut state.hold {
                Some(hold) if !amount.is_zero() => (hold.grow(amount), amount),
                // The hold is sufficient, or the request was admitted without one during an outage of the source.
                _ => return Ok(()),
            }
        };
        match self.context.rules.bounded(growth).await {
            Ok(()) => {
                let mut state = self.state();
                state.held = state.held + amount;
                Ok(())
            }
            Err(QuotaError::Unavailable(_)) if self.context.rules.quota_outage == Outage::Admit => {
                Ok(())
            }
            Err(QuotaError::Exceeded(exceeded)) => Err(exceeded.beside(self.state().held).into()),
            Err(error) => Err(error),
        }
    }
}

/// The answer has ended first. Nothing more can be stored.
fn has_ended() -> Refused {
    Refused::unavailable()
}

/// Bytes that are claimed on the volume, and entered in the state. Released on drop.
struct Growing<'a, Q: QuotaSource, A: Adapter> {
    shared: &'a Shared<Q, A>,
    bytes: u64,
}

impl<Q: QuotaSource, A: Adapter> Growing<'_, Q, A> {
    /// Moves them to the reservation: as many as the scopes hold too.
    fn keep(self, held: u64) -> Result<u64, Refused> {
        let state = self.shared.state();
        if state.has_ended() {
            return Err(has_ended());
        }
        // Under the lock, because every other growth counts both. The rest is released on drop.
        self.shared.meter.raise(held);
        Ok(held)
    }
}

impl<Q: QuotaSource, A: Adapter> Drop for Growing<'_, Q, A> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(rare) = state.any_rare_mut() {
            rare.growing = rare.growing.saturating_sub(self.bytes);
        }
        self.shared.set_less_aside(state);
    }
}

/// The turn to ask the quota source. Passed on when dropped.
struct Turn<'a, Q: QuotaSource, A: Adapter>(&'a Shared<Q, A>);

impl<Q: QuotaSource, A: Adapter> Drop for Turn<'_, Q, A> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let Some(rare) = state.any_rare_mut() else {
            return;
        };
        rare.is_asking = false;
        let askers = std::mem::take(&mut rare.askers);
        drop(state);
        askers.into_iter().for_each(Waker::wake);
    }
}
