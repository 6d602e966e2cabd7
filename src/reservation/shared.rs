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
    pending::{self, RareTerms, Terms},
    tickets::Tickets,
};
use crate::{
    amount::Amount,
    demand::{Demand, Reach},
    observer::{Event, Observed},
    offers::{Offer, Silent},
    quota::{Answer, Change, QuotaHold, QuotaSource},
    refused::Refused,
    scope::Scopes,
    time::within,
    volume::{Claimed, Volume},
};

/// What an adapter keeps beside a reservation.
pub(crate) trait Adapter: Send + Sync + 'static {
    /// Whether all that is reserved is charged unless the handler reports otherwise. What was read of a body is charged where
    /// there is one.
    const CHARGES_RESERVED: bool;

    /// What few reservations have, under the same lock. Dropped when the lock is not held.
    type Rare: Default + Send;
}

/// A reservation without an adapter.
impl Adapter for () {
    const CHARGES_RESERVED: bool = true;

    type Rare = ();
}

/// The state that the handle of a reservation shares with body and answer (for HTTP).
pub(crate) struct Shared<Q: QuotaSource, A: Adapter = ()> {
    pub(crate) context: Arc<Context<Q>>,
    pub(crate) scopes: Scopes,
    pub(crate) demand: Demand,
    pub(crate) meter: Meter,
    outer: Option<Box<Outer>>,
    pub(crate) adapter: A,
    state: Mutex<State<Q::Hold, A>>,
}

/// The state that changes during a reservation's life.
pub(crate) struct State<H, A: Adapter> {
    /// What is claimed on the volume, in whole blocks: for what is reserved and for growths in progress.
    pub(super) blocks: Amount,
    pub(super) hold: Option<H>,
    /// The amount of the hold, as far as its source has answered.
    pub(super) held: Amount,
    pub(super) lifecycle: Lifecycle,
    /// Its places in the queues for more.
    pub(super) tickets: Option<Arc<Tickets>>,
    /// Boxed, because the state is moved once for each request.
    rare: Option<Box<Rare<A>>>,
}

/// What few reservations have.
pub(crate) struct Rare<A: Adapter> {
    /// Bytes that growths in progress have claimed on the volume, and not yet in the scopes.
    pub(super) growing: u64,
    /// Blocks that have settled already, as reported.
    pub(super) settled: u64,
    /// Bytes that were reported as written.
    written: u64,
    /// What replacing gives back to the scopes, where that is not what the demand says.
    pub(super) replaced: Option<Amount>,
    /// Whether a request to the source is in progress, and the growths that wait for their turn.
    pub(super) is_asking: bool,
    pub(super) askers: Vec<Waker>,
    /// What is offered to others while the client is silent.
    pub(super) offers: Vec<Offer>,
    /// Bytes that are reserved for what the handler writes beside the body.
    pub(super) by_handler: u64,
    report: Report,
    /// Why the body was cut. It stays when the reservation has ended.
    refused: Option<Refused>,
    /// What other scopes get back when it has succeeded.
    gives_back: Vec<(Scopes, Amount)>,
    hook: Option<EndHook>,
    pub(crate) adapter: A::Rare,
}

impl<A: Adapter> Default for Rare<A> {
    fn default() -> Self {
        Self {
            growing: 0,
            settled: 0,
            written: 0,
            replaced: None,
            is_asking: false,
            askers: Vec::new(),
            offers: Vec::new(),
            by_handler: 0,
            report: Report::default(),
            refused: None,
            gives_back: Vec::new(),
            hook: None,
            adapter: A::Rare::default(),
        }
    }
}

/// The state of a reservation.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Lifecycle {
    Open,
    /// The body was cut, so that nothing is charged.
    Cut,
    /// It was committed or released.
    Ended,
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

impl<H, A: Adapter> State<H, A> {
    pub(crate) fn has_ended(&self) -> bool {
        self.lifecycle == Lifecycle::Ended
    }

    /// Why the body was cut, if it was.
    pub(crate) fn refused(&self) -> Option<&Refused> {
        self.rare()?.refused.as_ref()
    }

    /// Cuts the body, unless the reservation has ended. The first reason is kept.
    pub(crate) fn cut(&mut self, refused: &Refused) {
        if self.lifecycle == Lifecycle::Open {
            self.lifecycle = Lifecycle::Cut;
        }
        let reason = &mut self.rare_mut().refused;
        reason.get_or_insert_with(|| refused.clone());
    }

    /// Keeps only why the body was cut, and returns the rest.
    #[cold]
    fn keep_reason(&mut self, mut rare: Box<Rare<A>>) -> Box<Rare<A>> {
        if let Some(refused) = rare.refused.take() {
            self.rare_mut().refused = Some(refused);
        }
        rare
    }

    /// Nothing is given back, because an unknown part of the request has failed.
    pub(crate) fn keep_all(&mut self) {
        let rare = self.rare_mut();
        rare.gives_back.clear();
        rare.replaced = Some(Amount::ZERO);
    }

    /// What few reservations have, of this one.
    pub(crate) fn rare(&self) -> Option<&Rare<A>> {
        self.rare.as_deref()
    }

    pub(crate) fn rare_mut(&mut self) -> &mut Rare<A> {
        self.rare.get_or_insert_default()
    }

    /// Like [`Self::rare_mut`], if there is anything.
    pub(crate) fn any_rare_mut(&mut self) -> Option<&mut Rare<A>> {
        self.rare.as_deref_mut()
    }

    /// Bytes that growths in progress have claimed on the volume, and not yet in the scopes.
    pub(super) fn growing(&self) -> u64 {
        self.rare().map_or(0, |rare| rare.growing)
    }

    /// Blocks that have settled already.
    pub(super) fn settled(&self) -> u64 {
        self.rare().map_or(0, |rare| rare.settled)
    }
}

impl<Q: QuotaSource, A: Adapter> Shared<Q, A> {
    /// The reservation for what is claimed on the volume, and for the hold in the scopes if there is one.
    #[inline(always)]
    pub(crate) fn new(
        context: Arc<Context<Q>>,
        terms: Terms,
        claimed: Claimed,
        hold: Option<Q::Hold>,
        adapter: A,
    ) -> Self {
        let Claimed { bytes, blocks } = claimed;
        let held = match hold {
            Some(_) => terms.asked(bytes),
            None => Amount::ZERO,
        };
        let demand = terms.demand;
        let tickets = match demand.bytes() {
            Some(_) => None,
            None => Some(Arc::new(Tickets::new(
                terms.volume(&context),
                &context.rules,
            ))),
        };
        let (outer, rare) = match terms.rare {
            None => (None, None),
            Some(rare) => {
                tell_admitted(
                    &context,
                    &terms.scopes,
                    &demand,
                    bytes,
                    hold.is_some(),
                    &rare,
                );
                Self::rare_of(*rare)
            }
        };
        Self {
            context,
            scopes: terms.scopes,
            demand,
            meter: Meter::new(bytes),
            outer,
            adapter,
            state: Mutex::new(State {
                blocks,
                hold,
                held,
                lifecycle: Lifecycle::Open,
                tickets,
                rare,
            }),
        }
    }

    #[cold]
    fn rare_of(terms: RareTerms) -> (Option<Box<Outer>>, Option<Box<Rare<A>>>) {
        let rare = Rare {
            gives_back: terms.gives_back,
            hook: terms.on_start.map(|start| start.start()),
            ..Rare::default()
        };
        (terms.outer.map(Box::new), Some(Box::new(rare)))
    }

    /// The volume that the claim is on. None if an outer reservation holds it.
    pub(super) fn claimed_on(&self) -> Option<&Volume> {
        match &self.outer {
            Some(outer) if outer.holds_claim => None,
            _ => self.context.volume.as_ref(),
        }
    }

    /// How bytes reach the volume that the claim is on.
    #[inline]
    pub(super) fn reach(&self, volume: &Volume) -> Reach {
        self.demand.reach(volume.writes_in_place()).with_freed()
    }

    /// The whole blocks of the volume that this many stored bytes take.
    pub(super) fn in_blocks(&self, volume: &Volume, stored: u64) -> u64 {
        let bytes = self.reach(volume).on_volume(stored);
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
        state.rare_mut().hook = Some(hook);
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

    pub(crate) fn state(&self) -> MutexGuard<'_, State<Q::Hold, A>> {
        // Consistent between any two statements; and a reservation must end even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the observer.
#[cold]
fn tell_admitted<Q>(
    context: &Context<Q>,
    scopes: &Scopes,
    demand: &Demand,
    bytes: u64,
    is_held: bool,
    rare: &RareTerms,
) {
    let Some(observer) = &context.rules.observer else {
        return;
    };
    if is_held {
        observer.quota_answers();
    }
    let waited = rare.waits_since.map(|since| since.elapsed());
    observer.observe(&Event::Admitted {
        volume: context.volume_name(),
        scopes,
        reserved: Amount::new(bounded(bytes), demand.objects()),
        waited: waited.unwrap_or_default(),
    });
}

/// What is reserved, for observers. A price without a bound reserves nothing.
fn bounded(bytes: u64) -> u64 {
    match bytes {
        u64::MAX => 0,
        bytes => bytes,
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

impl<Q, A> ReservationOps for Shared<Q, A>
where
    Q: QuotaSource,
    A: Adapter,
{
    fn meter(&self) -> &Meter {
        &self.meter
    }

    fn demand(&self) -> Demand {
        self.demand
    }

    fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    fn volume(&self) -> Option<&Volume> {
        self.context.volume.as_ref()
    }

    fn outer(&self) -> Option<&Outer> {
        self.outer.as_deref()
    }

    fn written(&self, bytes: u64) {
        let mut state = self.state();
        if state.has_ended() {
            return;
        }
        let blocks = state.blocks.bytes;
        let rare = state.rare_mut();
        rare.written = rare.written.saturating_add(bytes);
        let Some(volume) = self.claimed_on() else {
            return;
        };
        // The first byte allocates a block. If that block were counted as promised too, an upload that fits exactly
        // would be one block short.
        let settled = self.in_blocks(volume, rare.written).min(blocks);
        volume.settle(Amount::bytes(settled.saturating_sub(rare.settled)));
        rare.settled = settled.max(rare.settled);
    }

    fn report(&self, change: &mut dyn FnMut(&mut Report)) {
        change(&mut self.state().rare_mut().report);
    }

    fn grow(self: Arc<Self>, need: u64, want: u64) -> BoxFuture<Result<u64, Refused>> {
        Box::pin(async move { self.set_more_aside(need, want).await })
    }

    fn shrink(&self) {
        self.set_less_aside(self.state());
    }

    fn keep_for_handler(&self, bytes: u64) {
        let mut state = self.state();
        let rare = state.rare_mut();
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
        if state.lifecycle != Lifecycle::Open {
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

    fn tell_refused(&self, refused: &Refused) {
        self.context.tell_refused(refused);
    }
}

impl<Q: QuotaSource, A: Adapter> Drop for Shared<Q, A> {
    #[inline]
    fn drop(&mut self) {
        // The reservation ends on every path.
        self.end(false);
    }
}
