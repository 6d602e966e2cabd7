//! A reservation before it exists: the demand, and what is claimed for it.

use std::sync::Arc;

use super::{context::Context, hooks::StartHook, ops::Outer};
use crate::{
    amount::Amount,
    cause::Resource,
    demand::{Demand, Reach},
    quota::Exceeded,
    scope::Scopes,
    volume::{Claimed, Volume},
};

/// What is to be reserved, and in which scopes.
pub(crate) struct Terms {
    pub(crate) demand: Demand,
    pub(crate) scopes: Scopes,
    /// Boxed, because terms are moved often.
    pub(crate) rare: Option<Box<RareTerms>>,
}

/// What few demands have.
#[derive(Clone, Debug, Default)]
pub(crate) struct RareTerms {
    /// What other scopes get back when it has succeeded.
    pub(crate) gives_back: Vec<(Scopes, Amount)>,
    pub(crate) on_start: Option<StartHook>,
    pub(crate) outer: Option<Outer>,
}

impl Terms {
    pub(crate) fn new(demand: Demand, scopes: Scopes) -> Self {
        Self {
            demand,
            scopes,
            rare: None,
        }
    }

    fn outer(&self) -> Option<&Outer> {
        self.rare.as_ref()?.outer.as_ref()
    }

    /// The volume that a claim is made on. None if an outer reservation holds it.
    pub(crate) fn volume<'a, Q>(&self, context: &'a Context<Q>) -> Option<&'a Volume> {
        match self.outer() {
            Some(outer) if outer.holds_claim => None,
            _ => context.volume.as_ref(),
        }
    }

    /// How bytes reach that volume.
    pub(crate) fn reach<Q>(&self, context: &Context<Q>) -> Reach {
        let volume = self.volume(context);
        self.demand
            .reach(volume.is_some_and(Volume::writes_in_place))
    }
}

/// A reservation that waits for its quota.
pub(crate) struct Pending<Q> {
    pub(super) claim: PendingClaim<Q>,
    pub(super) terms: Terms,
    /// Bytes that are reserved.
    pub(super) bytes: u64,
}

/// Blocks that are claimed for a reservation that does not exist yet. Released on drop.
pub(super) struct PendingClaim<Q> {
    /// None once a reservation holds the claim.
    context: Option<Arc<Context<Q>>>,
    blocks: Amount,
}

impl<Q> PendingClaim<Q> {
    /// Hands the claim over.
    pub(super) fn keep(mut self) -> (Arc<Context<Q>>, Amount) {
        let context = self.context.take();
        let context = context.expect("it is there from the beginning, and this consumes the claim");
        (context, self.blocks)
    }
}

impl<Q> Drop for PendingClaim<Q> {
    fn drop(&mut self) {
        if let Some(context) = &self.context
            && let Some(volume) = &context.volume
        {
            volume.release(self.blocks);
        }
    }
}

impl<Q> Pending<Q> {
    pub(crate) fn new(context: Arc<Context<Q>>, terms: Terms, claimed: Claimed) -> Self {
        let Claimed { bytes, blocks } = claimed;
        let context = Some(context);
        Self {
            claim: PendingClaim { context, blocks },
            terms,
            bytes,
        }
    }

    pub(crate) fn context(&self) -> &Arc<Context<Q>> {
        let context = self.claim.context.as_ref();
        context.expect("it is there until the claim is kept")
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.terms.scopes
    }

    /// What the quota is asked to reserve.
    pub(crate) fn asked(&self) -> Amount {
        in_scopes(&self.terms.demand, self.bytes) - self.terms.demand.replaced()
    }

    /// What must fit into the quota, but is not reserved.
    pub(crate) fn expected(&self) -> Amount {
        let demand = &self.terms.demand;
        in_scopes(demand, demand.expected().max(self.bytes)) - demand.replaced()
    }

    /// Reduces the demand on the quota to what the quota has left, if the length is unknown: the request may need
    /// less than a grant. False if that does not help; then `exceeded` says what is known of the need.
    pub(crate) fn makes_do_with_less(&mut self, exceeded: &mut Exceeded) -> bool {
        let demand = &self.terms.demand;
        if !demand.has_no_size() || exceeded.resource != Resource::Bytes {
            return false;
        }
        let left = exceeded.limit.saturating_sub(exceeded.used);
        let less = left.saturating_add(demand.replaced().bytes);
        let helps = less > 0 && less < self.bytes;
        if helps {
            self.bytes = less;
        } else {
            let least = in_scopes(demand, 1) - demand.replaced();
            exceeded.required = least.bytes.max(1);
        }
        helps
    }
}

/// What the scopes have to hold for this many reserved bytes, before what is replaced.
pub(super) fn in_scopes(demand: &Demand, bytes: u64) -> Amount {
    Amount::new(bytes, demand.objects()) + demand.moved()
}
