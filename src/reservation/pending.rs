//! A reservation before it exists: the demand, and what is claimed for it.

use std::{mem, sync::Arc};

use tokio::time::Instant;

use super::{
    context::{Context, Rules},
    hooks::StartHook,
    ops::Outer,
};
use crate::{
    amount::Amount,
    cause::Resource,
    demand::{Demand, Reach},
    quota::{Answer, Exceeded, QuotaSource},
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
    /// Since when the demand waits, if that is observed.
    pub(crate) waits_since: Option<Instant>,
}

impl Terms {
    pub(crate) fn new(demand: Demand, scopes: Scopes) -> Self {
        Self {
            demand,
            scopes,
            rare: None,
        }
    }

    /// The demand has to wait.
    pub(crate) fn begin_to_wait(&mut self, rules: &Rules) {
        if let Some(now) = rules.began() {
            let rare = self.rare.get_or_insert_default();
            rare.waits_since.get_or_insert(now);
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

    /// What the quota is asked to reserve for so many reserved bytes.
    #[inline]
    pub(crate) fn asked(&self, bytes: u64) -> Amount {
        in_scopes(&self.demand, bytes) - self.demand.replaced()
    }

    /// What must fit into the quota, but is not reserved.
    #[inline]
    pub(crate) fn expected(&self, bytes: u64) -> Amount {
        let expected = self.demand.expected().max(bytes);
        in_scopes(&self.demand, expected) - self.demand.replaced()
    }

    /// How bytes reach that volume.
    pub(crate) fn reach<Q>(&self, context: &Context<Q>) -> Reach {
        let volume = self.volume(context);
        self.demand
            .reach(volume.is_some_and(Volume::writes_in_place))
    }
}

/// Blocks that are claimed for a reservation that does not exist yet. Released on drop.
pub(crate) struct Unkept<'a> {
    volume: Option<&'a Volume>,
    blocks: Amount,
}

impl<'a> Unkept<'a> {
    #[inline]
    pub(crate) fn new(volume: Option<&'a Volume>, blocks: Amount) -> Self {
        Self { volume, blocks }
    }

    /// Hands the claim over.
    #[inline]
    pub(crate) fn keep(self) {
        mem::forget(self);
    }
}

impl Drop for Unkept<'_> {
    fn drop(&mut self) {
        if let Some(volume) = self.volume {
            volume.release(self.blocks);
        }
    }
}

/// A reservation that waits for its quota. Dropped, it releases what is claimed.
pub(crate) struct Pending<Q> {
    /// None once it is kept.
    kept: Option<(Arc<Context<Q>>, Terms)>,
    claimed: Claimed,
}

impl<Q> Drop for Pending<Q> {
    fn drop(&mut self) {
        if let Some((context, _)) = &self.kept {
            drop(Unkept::new(context.volume.as_ref(), self.claimed.blocks));
        }
    }
}

impl<Q> Pending<Q> {
    pub(crate) fn new(context: Arc<Context<Q>>, mut terms: Terms, claimed: Claimed) -> Self {
        terms.begin_to_wait(&context.rules);
        let kept = Some((context, terms));
        Self { kept, claimed }
    }

    /// Hands everything over.
    pub(crate) fn keep(mut self) -> (Arc<Context<Q>>, Terms, Claimed) {
        let (context, terms) = self.kept.take().expect(KEPT);
        (context, terms, self.claimed)
    }

    pub(crate) fn context(&self) -> &Arc<Context<Q>> {
        &self.kept.as_ref().expect(KEPT).0
    }

    fn terms(&self) -> &Terms {
        &self.kept.as_ref().expect(KEPT).1
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.terms().scopes
    }

    /// Asks the quota source.
    pub(crate) fn ask(&self) -> Answer<Q::Future>
    where
        Q: QuotaSource,
    {
        let (terms, bytes) = (self.terms(), self.claimed.bytes);
        let quota = &self.context().quota;
        quota.reserve(&terms.scopes, terms.asked(bytes), terms.expected(bytes))
    }

    /// Reduces the demand on the quota to what the quota has left, if the length is unknown: the request may need
    /// less than a grant. False if that does not help; then `exceeded` says what is known of the need.
    pub(crate) fn makes_do_with_less(&mut self, exceeded: &mut Exceeded) -> bool {
        let demand = self.terms().demand;
        if !demand.has_no_size() || exceeded.resource != Resource::Bytes {
            return false;
        }
        let left = exceeded.limit.saturating_sub(exceeded.used);
        let less = left.saturating_add(demand.replaced().bytes);
        let helps = less > 0 && less < self.claimed.bytes;
        if helps {
            self.claimed.bytes = less;
        } else {
            let least = in_scopes(&demand, 1) - demand.replaced();
            exceeded.required = least.bytes.max(1);
        }
        helps
    }
}

/// Why the parts of a pending reservation are there.
const KEPT: &str = "they are there until it is kept, which consumes it";

/// What the scopes have to hold for this many reserved bytes, before what is replaced.
#[inline]
pub(super) fn in_scopes(demand: &Demand, bytes: u64) -> Amount {
    Amount::new(bytes, demand.objects()) + demand.moved()
}
