//! How a reservation grows: first on the volume, then in the scopes, in line with others.
//!
//! Body and handle may grow it at once. So what each has claimed is entered in the books before it waits for
//! anything, and every step counts from the books.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::{Poll, Waker},
};

use super::{Cell, Refused, refuse_exceeded, refuse_shortfall};
use crate::{
    Amount, Outage,
    fault::{Cause, Fault, Resource},
    layer::Settings,
    line::{Short, Shortage, Ticket},
    quota::{QuotaError, QuotaHold, QuotaSource},
    refusal::Refusal,
    time::within,
    volume::Shortfall,
};

/// The reservation's places in line.
#[derive(Debug)]
pub(super) struct Tickets {
    volume: Option<Ticket>,
    quota: Ticket,
}

impl Tickets {
    pub(super) fn new<Q>(settings: &Settings<Q>) -> Self {
        let volume = settings.volume.as_ref();
        Self {
            volume: volume.map(|volume| volume.filesystem().line.ticket()),
            quota: settings.quota_line.ticket(),
        }
    }

    pub(super) fn pardon(&self) {
        self.quota.pardon();
        self.volume.iter().for_each(Ticket::pardon);
    }
}

impl<Q> Cell<Q>
where
    Q: QuotaSource + Send + Sync + 'static,
{
    /// Sets `want` bytes more aside, or at least `need`.
    pub(super) async fn set_more_aside(&self, need: u64, want: u64) -> Result<(), Refused> {
        let tickets = self.tickets()?;
        let growing = self.claim_more(&tickets, need, want).await?;
        let held = self.hold_more(&tickets, need, growing.bytes).await?;
        growing.keep(held)
    }

    /// Corrects what is replaced. What it gives back less than thought must be held.
    pub(super) async fn hold_what_is_not_replaced(&self, replaced: Amount) -> Result<(), Refused> {
        let _turn = self.turn().await?;
        let held = self.grow_hold(replaced, 0).await;
        held.map_err(|short| short.error)?;
        let mut books = self.books();
        if books.ended {
            return Err(has_ended());
        }
        books.replaced = replaced;
        Ok(())
    }

    fn tickets(&self) -> Result<Arc<Tickets>, Refused> {
        let mut books = self.books();
        if books.ended {
            return Err(has_ended());
        }
        let tickets = books
            .tickets
            .get_or_insert_with(|| Arc::new(Tickets::new(&self.settings)));
        Ok(Arc::clone(tickets))
    }

    /// Claims more on the volume, when it is this one's turn.
    async fn claim_more(
        &self,
        tickets: &Tickets,
        need: u64,
        want: u64,
    ) -> Result<Growing<'_, Q>, Refused> {
        let (Some(volume), Some(ticket)) = (&self.settings.volume, &tickets.volume) else {
            let growing = self.try_claim(want);
            return growing.map_err(|shortfall| Refused::new(refuse_shortfall(shortfall)));
        };
        let filesystem = volume.filesystem();
        let begun = filesystem.begun();
        let attempt = || async {
            // With little room left, small grants: what one upload holds and does not need, another
            // lacks.
            let want = want.min(volume.room() / 8).max(need);
            let shortfall = if ticket.yields(&[None]) {
                volume.full()
            } else {
                match self.try_claim(want).or_else(|_| self.try_claim(need)) {
                    Ok(growing) => return Ok(growing),
                    Err(shortfall) => shortfall,
                }
            };
            filesystem.want_reading();
            let is_hopeless = match shortfall {
                Shortfall::Full { is_hopeless, .. } => is_hopeless,
                Shortfall::Unknown => true,
            };
            // Others may give room back, and a later reading may see some.
            let may_help = filesystem.published() <= begun
                || ticket.has_company()
                || volume.could_have_room(Amount::bytes(need), 0, self.in_flight());
            Err(Short {
                of: (may_help && !is_hopeless).then_some(None),
                error: shortfall,
            })
        };
        let grown = ticket.grow(self.settings.patience, attempt).await;
        grown.map_err(|shortfall| {
            volume.note_full(shortfall);
            Refused::new(refuse_shortfall(shortfall))
        })
    }

    fn try_claim(&self, bytes: u64) -> Result<Growing<'_, Q>, Shortfall> {
        let mut books = self.books();
        if books.ended {
            return Err(Shortfall::Unknown);
        }
        if let Some(volume) = &self.settings.volume {
            let reserved = self.meter.reserved().saturating_add(books.growing);
            let blocks = volume.in_blocks(Amount::bytes(reserved.saturating_add(bytes)));
            let more = Amount::bytes(blocks.bytes.saturating_sub(books.blocks.bytes));
            books.blocks = books.blocks + volume.claim(more, 0)?;
        }
        books.growing = books.growing.saturating_add(bytes);
        Ok(Growing { cell: self, bytes })
    }

    /// What this request has claimed and not settled.
    fn in_flight(&self) -> Amount {
        let books = self.books();
        books.blocks - Amount::bytes(books.settled)
    }

    /// Grows the hold for `want` bytes that are claimed, or at least for `need`. Returns for how many.
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
                    error: Refused::new(fault.into()),
                });
            }
            let _turn = self
                .turn()
                .await
                .map_err(|error| Short { of: None, error })?;
            let replaced = self.books().replaced;
            match self.grow_hold(replaced, 0).await {
                // What is wanted is ours to choose, and may be more than a limit allows. What is needed decides.
                Err(short) if need < want && short.error.refusal().fault().is_some() => {
                    let less = self.grow_hold(replaced, want - need).await;
                    less.map(|()| need)
                }
                tried => tried.map(|()| want),
            }
            .map_err(|short| Short {
                of: short.of.filter(|_| tickets.quota.has_company()),
                ..short
            })
        };
        tickets.quota.grow(self.settings.patience, attempt).await
    }

    /// Waits until nobody else asks the source for more, so that nobody counts on what another has only
    /// asked for. No longer than the source itself may take: whoever asks may have stopped being polled.
    async fn turn(&self) -> Result<Turn<'_, Q>, Refused> {
        let turn = poll_fn(|cx| {
            let mut books = self.books();
            if books.asking {
                books.askers.push(cx.waker().clone());
                return Poll::Pending;
            }
            books.asking = true;
            Poll::Ready(Turn(self))
        });
        within(self.settings.quota_timeout, turn)
            .await
            .ok_or_else(|| Refused::new(Refusal::unavailable()))
    }

    /// Grows the hold to all that is reserved and growing, less `spared` bytes and what is replaced. In
    /// [turn](Self::turn).
    async fn grow_hold(&self, replaced: Amount, spared: u64) -> Result<(), Short<Refused>> {
        let (growth, amount) = {
            let mut books = self.books();
            let bytes = self.meter.reserved().saturating_add(books.growing);
            let reserved = self.in_scopes(bytes.saturating_sub(spared));
            let amount = (reserved - replaced) - books.held;
            match &mut books.hold {
                Some(hold) if !amount.is_zero() => (hold.grow(amount), amount),
                // Enough, or let in without a hold while the source was away.
                _ => return Ok(()),
            }
        };
        match self.settings.bounded(growth).await {
            Ok(()) => {
                let mut books = self.books();
                books.held = books.held + amount;
                Ok(())
            }
            Err(QuotaError::Exceeded(exceeded)) => Err(Short {
                of: (exceeded.required <= exceeded.limit).then(|| Some(exceeded.scope.clone())),
                error: Refused::new(refuse_exceeded(&exceeded)),
            }),
            Err(_) if self.settings.quota_outage == Outage::Admit => Ok(()),
            Err(_) => Err(Short {
                of: None,
                error: Refused::new(Refusal::unavailable()),
            }),
        }
    }
}

/// The answer came first. Nothing more can be stored.
fn has_ended() -> Refused {
    Refused::new(Refusal::unavailable())
}

/// Bytes that are claimed on the volume, and entered in the books. Dropped, they are given back.
struct Growing<'a, Q: QuotaSource> {
    cell: &'a Cell<Q>,
    bytes: u64,
}

impl<Q: QuotaSource> Growing<'_, Q> {
    /// Makes them the reservation's: as many as the scopes hold too.
    fn keep(self, held: u64) -> Result<(), Refused> {
        let books = self.cell.books();
        if books.ended {
            return Err(has_ended());
        }
        // Under the lock, as whoever else grows counts both. The rest is given back on drop.
        self.cell.meter.reserved.fetch_add(held, Ordering::AcqRel);
        Ok(())
    }
}

impl<Q: QuotaSource> Drop for Growing<'_, Q> {
    fn drop(&mut self) {
        let mut books = self.cell.books();
        books.growing = books.growing.saturating_sub(self.bytes);
        let Some(volume) = &self.cell.settings.volume else {
            return;
        };
        if books.ended {
            // All that was claimed has been settled.
            return;
        }
        let reserved = self.cell.meter.reserved().saturating_add(books.growing);
        let needed = volume.in_blocks(Amount::bytes(reserved)).bytes;
        // What has settled is claimed no more.
        let needed = needed.max(books.settled);
        let rest = Amount::bytes(books.blocks.bytes.saturating_sub(needed));
        books.blocks = books.blocks - rest;
        drop(books);
        volume.release(rest);
    }
}

/// The turn to ask the quota source. Dropped, it is the next one's.
struct Turn<'a, Q: QuotaSource>(&'a Cell<Q>);

impl<Q: QuotaSource> Drop for Turn<'_, Q> {
    fn drop(&mut self) {
        let mut books = self.0.books();
        books.asking = false;
        let askers = std::mem::take(&mut books.askers);
        drop(books);
        askers.into_iter().for_each(Waker::wake);
    }
}
