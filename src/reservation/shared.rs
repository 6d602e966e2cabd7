//! The state that the handle of a reservation shares with body and answer (for HTTP), and how it ends.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
};

use tokio::time::Instant;

use super::{
    context::Context,
    hooks::{EndHook, Outcome},
    meter::Meter,
    ops::{BoxFuture, Outer, Report, ReservationOps},
    pending::{self, Pending},
    tickets::Tickets,
};
use crate::{
    amount::Amount,
    demand::{Demand, Reach},
    offers::{Offer, Silent},
    quota::{Change, QuotaHold, QuotaSource},
    refused::Refused,
    scope::Scopes,
    time::within,
    volume::Volume,
};

/// The state that an adapter keeps beside a reservation, under the same lock.
pub(crate) trait Attachment: Send + 'static {
    /// What remains of it at the end. Dropped when the lock is not held.
    type Rest;

    fn take_rest(&mut self) -> Self::Rest;
}

/// A reservation without an adapter.
impl Attachment for () {
    type Rest = ();

    fn take_rest(&mut self) {}
}

/// The state that the handle of a reservation shares with body and answer (for HTTP).
pub(crate) struct Shared<Q: QuotaSource, X: Attachment = ()> {
    pub(super) context: Arc<Context<Q>>,
    pub(super) scopes: Scopes,
    pub(super) demand: Demand,
    pub(super) reach: Reach,
    pub(super) meter: Meter,
    outer: Option<Outer>,
    /// What is charged unless the handler reports it: all that is reserved, or what was read of a body.
    charges_reserved: bool,
    state: Mutex<State<Q::Hold, X>>,
}

/// The state that changes during a reservation's life.
pub(crate) struct State<H, X> {
    pub(super) claim: VolumeClaim,
    pub(super) hold: ScopeHold<H>,
    pub(super) lifecycle: Lifecycle,
    /// Its places in the queues for more.
    pub(super) tickets: Option<Arc<Tickets>>,
    /// Boxed, because the state is moved once for each request.
    pub(super) rare: Option<Box<Rare>>,
    report: Report,
    at_end: AtEnd,
    /// The adapter's own state.
    pub(crate) attachment: X,
}

/// What few reservations have.
#[derive(Default)]
pub(super) struct Rare {
    /// What is offered to others while the client is silent.
    pub(super) offers: Vec<Offer>,
    /// Bytes that are reserved for what the handler writes beside the body.
    pub(super) by_handler: u64,
}

/// What is claimed on the volume.
#[derive(Default)]
pub(super) struct VolumeClaim {
    /// In whole blocks: for what is reserved and for growths in progress.
    pub(super) blocks: Amount,
    /// Bytes that growths in progress have claimed here, and not yet in the scopes.
    pub(super) growing: u64,
    /// Blocks that have settled already, as reported.
    pub(super) settled: u64,
    written: u64,
}

/// What is held in the scopes.
pub(super) struct ScopeHold<H> {
    pub(super) hold: Option<H>,
    /// The amount of the hold, as far as its source has answered.
    pub(super) held: Amount,
    /// What replacing gives back to the scopes.
    pub(super) replaced: Amount,
    /// Whether a request to the source is in progress, and the growths that wait for their turn.
    pub(super) is_asking: bool,
    pub(super) askers: Vec<Waker>,
}

/// The state of a reservation.
pub(super) enum Lifecycle {
    Open,
    /// The body was cut, so that nothing is charged.
    Cut(Refused),
    /// It was committed or released, with the reason of the cut if it was cut.
    Ended(Option<Refused>),
}

/// Hooks that run when it has ended.
struct AtEnd {
    /// What other scopes get back when it has succeeded.
    gives_back: Vec<(Scopes, Amount)>,
    hook: Option<EndHook>,
}

/// The result of ending a reservation.
pub(crate) enum Ended<H> {
    /// It had ended already.
    Before,
    /// It has ended now, with the amount to commit if there is a hold.
    Now(Option<(H, Change)>),
}

impl<H> Ended<H> {
    pub(crate) fn into_commit(self) -> Option<(H, Change)> {
        match self {
            Self::Before => None,
            Self::Now(commit) => commit,
        }
    }
}

impl<H, X> State<H, X> {
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Ended(_))
    }

    /// Why the body was cut, if it was.
    pub(crate) fn refused(&self) -> Option<&Refused> {
        match &self.lifecycle {
            Lifecycle::Cut(refused) | Lifecycle::Ended(Some(refused)) => Some(refused),
            Lifecycle::Open | Lifecycle::Ended(None) => None,
        }
    }

    /// Cuts the body, unless the reservation has ended. The first reason is kept.
    pub(crate) fn cut(&mut self, refused: &Refused) {
        match &mut self.lifecycle {
            open @ Lifecycle::Open => *open = Lifecycle::Cut(refused.clone()),
            Lifecycle::Ended(reason @ None) => *reason = Some(refused.clone()),
            Lifecycle::Cut(_) | Lifecycle::Ended(Some(_)) => {}
        }
    }

    /// Nothing is given back, because an unknown part of the request has failed.
    pub(crate) fn keep_all(&mut self) {
        self.at_end.gives_back.clear();
        self.hold.replaced = Amount::ZERO;
    }
}

impl<Q: QuotaSource, X: Attachment> Shared<Q, X> {
    /// The reservation for what is claimed on the volume, and for the hold in the scopes if there is one.
    pub(crate) fn new(
        pending: Pending<Q>,
        hold: Option<Q::Hold>,
        attachment: X,
        charges_reserved: bool,
    ) -> Self {
        let held = match hold {
            Some(_) => pending.asked(),
            None => Amount::ZERO,
        };
        let Pending {
            claim,
            terms,
            bytes,
        } = pending;
        let (context, blocks) = claim.keep();
        let reach = terms.reach(&context).with_freed();
        let demand = terms.demand;
        let tickets = demand
            .bytes()
            .is_none()
            .then(|| Arc::new(Tickets::new(terms.volume(&context), &context.rules)));
        let hook = terms.on_start.map(|start| start.start());
        Self {
            context,
            scopes: terms.scopes,
            demand,
            reach,
            meter: Meter::new(bytes),
            outer: terms.outer,
            charges_reserved,
            state: Mutex::new(State {
                claim: VolumeClaim {
                    blocks,
                    ..VolumeClaim::default()
                },
                hold: ScopeHold {
                    hold,
                    held,
                    replaced: demand.replaced(),
                    is_asking: false,
                    askers: Vec::new(),
                },
                lifecycle: Lifecycle::Open,
                tickets,
                rare: None,
                report: Report::default(),
                at_end: AtEnd {
                    gives_back: terms.gives_back,
                    hook,
                },
                attachment,
            }),
        }
    }

    /// The volume that the claim is on. None if an outer reservation holds it.
    pub(super) fn claimed_on(&self) -> Option<&Volume> {
        match &self.outer {
            Some(outer) if outer.holds_claim => None,
            _ => self.context.volume.as_ref(),
        }
    }

    /// The whole blocks of the volume that this many stored bytes take.
    pub(super) fn in_blocks(&self, volume: &Volume, stored: u64) -> u64 {
        let bytes = self.reach.on_volume(stored);
        volume.in_blocks(Amount::bytes(bytes)).bytes
    }

    /// What the scopes have to hold for this many reserved bytes, before what is replaced.
    pub(super) fn in_scopes(&self, bytes: u64) -> Amount {
        pending::in_scopes(&self.demand, bytes)
    }

    /// Adds a hook that runs when the reservation has ended. Returned if it has ended already.
    pub(crate) fn on_end(&self, hook: EndHook) -> Result<(), EndHook> {
        let mut state = self.state();
        if state.has_ended() {
            return Err(hook);
        }
        state.at_end.hook = Some(hook);
        Ok(())
    }

    /// Why the body was cut, if it was.
    #[inline]
    pub(crate) fn why_cut(&self) -> Option<Refused> {
        // A cut closes the meter, so that the lock is only needed for a closed one.
        if self.meter.is_closed() {
            self.why_closed()
        } else {
            None
        }
    }

    #[cold]
    fn why_closed(&self) -> Option<Refused> {
        self.state().refused().cloned()
    }

    pub(crate) fn close(&self) {
        self.meter.close();
    }

    /// Ends the reservation, if it has not ended yet. The volume's part is done here; the amount to commit is
    /// returned.
    pub(crate) fn end(&self, success: bool) -> Ended<Q::Hold> {
        self.end_in(self.state(), success)
    }

    /// Like [`Self::end`], decided under a lock that is held: no cut can occur between the check and the end.
    pub(crate) fn end_in(
        &self,
        mut state: MutexGuard<'_, State<Q::Hold, X>>,
        success: bool,
    ) -> Ended<Q::Hold> {
        let refused = match mem::replace(&mut state.lifecycle, Lifecycle::Ended(None)) {
            Lifecycle::Open => None,
            Lifecycle::Cut(refused) => Some(refused),
            ended @ Lifecycle::Ended(_) => {
                state.lifecycle = ended;
                return Ended::Before;
            }
        };
        self.meter.close();
        // A cut reservation is never charged.
        let success = success && refused.is_none();
        state.lifecycle = Lifecycle::Ended(refused);
        let end = self.settlement(&state, success);
        let claim = mem::take(&mut state.claim);
        let (hold, tickets) = (state.hold.hold.take(), state.tickets.take());
        let rare = state.rare.take();
        let rest = state.attachment.take_rest();
        let gives_back = mem::take(&mut state.at_end.gives_back);
        let hook = state.at_end.hook.take();
        drop(state);

        // All of this calls foreign code, or wakes other tasks: not under the lock.
        drop((rest, rare));
        if let Some(volume) = self.claimed_on() {
            let on_disk = self.in_blocks(volume, end.on_disk);
            let settling = on_disk
                .min(claim.blocks.bytes)
                .saturating_sub(claim.settled);
            // A service that was called may have created an object. A job reports what it has written.
            let made_none = self.charges_reserved && !success && claim.written == 0;
            let objects = if made_none { 0 } else { claim.blocks.objects };
            volume.settle(Amount::new(settling, objects));
            volume.release(Amount::new(
                claim.blocks.bytes - claim.settled - settling,
                claim.blocks.objects - objects,
            ));
        }
        if success && !end.outcome.report.is_unfinished {
            for (scopes, amount) in gives_back {
                let removed = Change::between(Amount::ZERO, amount);
                self.context.quota.charge(&scopes, removed);
            }
        }
        if let Some(hook) = hook {
            hook(end.outcome);
        }
        drop(tickets);
        if !self.scopes.is_empty() && hold.is_none() && success {
            self.charge_without_hold(end.change);
        }
        let hold = hold.filter(|_| success);
        if hold.is_none() {
            self.context.rules.quota_queue.notify();
        }
        Ended::Now(hold.map(|hold| (hold, end.change)))
    }

    /// Charges what was admitted without a hold.
    #[cold]
    fn charge_without_hold(&self, change: Change) {
        if change != Change::ZERO {
            self.context.quota.charge(&self.scopes, change);
        }
    }

    /// What a reservation leaves after such an end.
    fn settlement(&self, state: &State<Q::Hold, X>, success: bool) -> Settlement {
        let read = self.meter.received();
        // The service may write more than the body.
        let received = match self.charges_reserved {
            true => self.meter.reserved(),
            false => self.demand.stored_of(read),
        };
        let stored = match success {
            true => state.report.stored.unwrap_or(received),
            false => 0,
        };
        // After a failure the partial file may still exist: what was read stays claimed until the next reading.
        let partial = match success || self.charges_reserved {
            true => 0,
            false => received,
        };
        let made = state.report.made.unwrap_or(self.demand.objects());
        let in_scopes = Amount::new(stored, made) + self.demand.moved();
        let replaced = match state.report.is_unfinished {
            true => Amount::ZERO,
            false => state.report.replaced.unwrap_or(state.hold.replaced),
        };
        Settlement {
            on_disk: stored.max(partial).max(state.claim.written),
            change: Change::between(in_scopes, replaced),
            outcome: Outcome {
                success,
                received: read,
                report: state.report,
            },
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<Q::Hold, X>> {
        // Consistent between any two statements; and a reservation must end even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reservation leaves at its end.
struct Settlement {
    /// Stored bytes that may be on the disk.
    on_disk: u64,
    /// What the scopes are charged on success.
    change: Change,
    outcome: Outcome,
}

impl<Q, X> Shared<Q, X>
where
    Q: QuotaSource,
    X: Attachment,
{
    /// Commits, and waits for it within the quota source's timeout.
    ///
    /// The source is told here, not in the future, because the future may never be polled. By its contract the source
    /// then keeps the charge.
    pub(crate) fn settle(self: Arc<Self>, commit: Option<(Q::Hold, Change)>) -> BoxFuture<()> {
        let commit = commit.map(|(hold, change)| hold.commit(change));
        Box::pin(async move {
            if let Some(commit) = commit {
                within(self.context.rules.quota_timeout, commit).await;
                self.context.rules.quota_queue.notify();
            }
        })
    }
}

impl<Q, X> ReservationOps for Shared<Q, X>
where
    Q: QuotaSource,
    X: Attachment,
{
    fn meter(&self) -> &Meter {
        &self.meter
    }

    fn demand(&self) -> Demand {
        self.demand
    }

    fn volume(&self) -> Option<&Volume> {
        self.context.volume.as_ref()
    }

    fn outer(&self) -> Option<&Outer> {
        self.outer.as_ref()
    }

    fn written(&self, bytes: u64) {
        let mut state = self.state();
        if state.has_ended() {
            return;
        }
        let claim = &mut state.claim;
        claim.written = claim.written.saturating_add(bytes);
        let Some(volume) = self.claimed_on() else {
            return;
        };
        // The first byte allocates a block. If that block were counted as promised too, an upload that fits exactly
        // would be one block short.
        let settled = self
            .in_blocks(volume, claim.written)
            .min(claim.blocks.bytes);
        volume.settle(Amount::bytes(settled.saturating_sub(claim.settled)));
        claim.settled = settled.max(claim.settled);
    }

    fn report(&self, change: &mut dyn FnMut(&mut Report)) {
        change(&mut self.state().report);
    }

    fn grow(self: Arc<Self>, need: u64, want: u64) -> BoxFuture<Result<u64, Refused>> {
        Box::pin(async move { self.set_more_aside(need, want).await })
    }

    fn shrink(&self) {
        self.set_less_aside(self.state());
    }

    fn keep_for_handler(&self, bytes: u64) {
        let mut state = self.state();
        let rare = state.rare.get_or_insert_default();
        rare.by_handler = rare.by_handler.saturating_add(bytes);
    }

    fn unread(&self) -> u64 {
        self.unread_in(&self.state())
    }

    fn offer(&self, bytes: u64, from: Instant, by: Weak<dyn Silent>) -> Vec<Offer> {
        self.offers_in(&self.state(), bytes, from, by)
    }

    fn replaces(self: Arc<Self>, replaced: Amount) -> BoxFuture<Result<(), Refused>> {
        Box::pin(async move { self.hold_what_is_not_replaced(replaced).await })
    }

    fn give_back(&self, amount: Amount) {
        if !amount.is_zero() && !self.scopes.is_empty() {
            let change = Change::between(Amount::ZERO, amount);
            self.context.quota.charge(&self.scopes, change);
        }
    }

    fn reinstate(&self) {
        let tickets = self.state().tickets.clone();
        if let Some(tickets) = tickets {
            tickets.reinstate();
        }
    }

    fn next_grant(&self) -> u64 {
        self.context.rules.grants.next(self.meter.reserved())
    }

    fn commit(self: Arc<Self>) -> BoxFuture<bool> {
        let state = self.state();
        if !matches!(state.lifecycle, Lifecycle::Open) {
            return Box::pin(std::future::ready(false));
        }
        let commit = self.end_in(state, true).into_commit();
        let settled = self.settle(commit);
        Box::pin(async move {
            settled.await;
            true
        })
    }

    fn release(&self) {
        self.end(false);
    }

    fn has_ended(&self) -> bool {
        self.state().has_ended()
    }

    fn refused(&self) -> Option<Refused> {
        self.why_cut()
    }
}

impl<Q: QuotaSource, X: Attachment> Drop for Shared<Q, X> {
    fn drop(&mut self) {
        // The reservation ends on every path.
        self.end(false);
    }
}
