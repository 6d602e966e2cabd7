//! The state that the handle of a reservation shares with body and answer (for HTTP).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use super::{
    context::Context,
    hooks::EndHook,
    meter::Meter,
    ops::{BoxFuture, Outer, Report, ReservationOps},
    pending::{self, RareTerms, Terms},
    state::{Adapter, Lifecycle, Rare, State},
    tickets::Tickets,
};
use crate::{
    amount::Amount,
    demand::{Demand, Reach},
    observer::Event,
    offers::{Offer, Silent},
    quota::{Change, QuotaSource},
    refused::Refused,
    scope::Scopes,
    volume::{Claimed, Volume},
};

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
pub(super) fn bounded(bytes: u64) -> u64 {
    match bytes {
        u64::MAX => 0,
        bytes => bytes,
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
