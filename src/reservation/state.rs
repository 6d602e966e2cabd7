//! What a reservation is at a moment, under its lock.

use std::{sync::Arc, task::Waker};

use super::{hooks::EndHook, ops::Report, tickets::Tickets};
use crate::{amount::Amount, offers::Offer, quota::Change, refused::Refused, scope::Scopes};

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
    pub(super) rare: Option<Box<Rare<A>>>,
}

/// What few reservations have.
pub(crate) struct Rare<A: Adapter> {
    /// Bytes that growths in progress have claimed on the volume, and not yet in the scopes.
    pub(super) growing: u64,
    /// Blocks that have settled already, as reported.
    pub(super) settled: u64,
    /// Bytes that were reported as written.
    pub(super) written: u64,
    /// What replacing gives back to the scopes, where that is not what the demand says.
    pub(super) replaced: Option<Amount>,
    /// Whether a request to the source is in progress, and the growths that wait for their turn.
    pub(super) is_asking: bool,
    pub(super) askers: Vec<Waker>,
    /// What is offered to others while the client is silent.
    pub(super) offers: Vec<Offer>,
    /// Bytes that are reserved for what the handler writes beside the body.
    pub(super) by_handler: u64,
    pub(super) report: Report,
    /// Why the body was cut. It stays when the reservation has ended.
    pub(super) refused: Option<Refused>,
    /// What other scopes get back when it has succeeded.
    pub(super) gives_back: Vec<(Scopes, Amount)>,
    pub(super) hook: Option<EndHook>,
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
    pub(super) fn keep_reason(&mut self, mut rare: Box<Rare<A>>) -> Box<Rare<A>> {
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
