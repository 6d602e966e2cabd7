//! A reservation whose client is silent: what it offers to others, and how they take it back.

use std::{
    mem,
    sync::{Arc, MutexGuard, Weak},
};

use tokio::time::Instant;

use super::{
    shared::Shared,
    state::{Adapter, State},
};
use crate::{
    offers::{Offer, Shortage, Silent},
    quota::QuotaSource,
    wait_queue::WaitQueue,
};

impl<Q: QuotaSource, A: Adapter> Shared<Q, A> {
    /// Its client is silent. From now on, others may take back what was not delivered.
    pub(crate) fn fall_silent(self: &Arc<Self>) {
        let by: Weak<dyn Silent> = Arc::downgrade(self) as _;
        let mut state = self.state();
        let bytes = self.unread_in(&state);
        if !state.has_ended() && bytes > 0 {
            let offers = self.offers_in(&state, bytes, Instant::now(), by);
            let before = mem::replace(&mut state.rare_mut().offers, offers);
            drop(state);
            drop(before);
            self.notify_of_offers();
        }
    }

    /// Its client goes on.
    pub(crate) fn go_on(&self) {
        let offers = self.state().take_offers();
        drop(offers);
    }

    /// Nothing more of the body will be read.
    pub(crate) fn give_back_unread(&self) {
        self.give_back(self.state());
    }

    fn give_back(&self, state: MutexGuard<'_, State<Q::Hold, A>>) {
        let unread = self.unread_in(&state);
        self.meter
            .lower_to(self.meter.reserved().saturating_sub(unread));
        self.set_less_aside(state);
    }

    /// Bytes that are reserved for the body, and were not read.
    pub(super) fn unread_in(&self, state: &State<Q::Hold, A>) -> u64 {
        let by_handler = state.rare().map_or(0, |rare| rare.by_handler);
        let others = self.demand.copied().saturating_add(by_handler);
        let for_body = self.meter.reserved().saturating_sub(others);
        for_body.saturating_sub(self.meter.received())
    }

    /// Offers `bytes` of what is claimed and held, in every queue where others may lack them.
    pub(super) fn offers_in(
        &self,
        state: &State<Q::Hold, A>,
        bytes: u64,
        from: Instant,
        by: Weak<dyn Silent>,
    ) -> Vec<Offer> {
        let mut offers = Vec::new();
        let mut offer = |queue: &WaitQueue, of: Shortage, bytes: u64| {
            if bytes > 0 {
                offers.push(queue.offers.add(of, from, bytes, by.clone()));
            }
        };
        if let Some(volume) = self.claimed_on() {
            let claimed = state.blocks.bytes.saturating_sub(state.settled());
            let bytes = self.reach(volume).on_volume(bytes).min(claimed);
            offer(&volume.filesystem().queue, None, bytes);
        }
        let held = bytes.min(state.held.bytes);
        for scope in self.scopes.iter() {
            offer(&self.context.rules.quota_queue, Some(scope.clone()), held);
        }
        offers
    }

    /// Those who wait may take back now.
    pub(super) fn notify_of_offers(&self) {
        if let Some(volume) = self.claimed_on() {
            volume.filesystem().queue.notify();
        }
        self.context.rules.quota_queue.notify();
    }
}

impl<H, A: Adapter> State<H, A> {
    fn take_offers(&mut self) -> Vec<Offer> {
        let rare = self.any_rare_mut();
        rare.map_or_else(Vec::new, |rare| mem::take(&mut rare.offers))
    }
}

impl<Q: QuotaSource, A: Adapter> Silent for Shared<Q, A> {
    fn take_back(&self) -> bool {
        let mut state = self.state();
        let offers = state.take_offers();
        // Under the lock, so that the client that goes on now sees this.
        let is_silent = !offers.is_empty() && !state.has_ended();
        if is_silent {
            self.give_back(state);
        } else {
            drop(state);
        }
        drop(offers);
        is_silent
    }
}
