//! The operations on a reservation, for any quota source.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Weak},
};

use tokio::time::Instant;

use super::meter::Meter;
use crate::{
    amount::Amount,
    demand::Demand,
    offers::{Offer, Silent},
    refused::Refused,
    scope::Scopes,
    volume::Volume,
};

/// A boxed future, used on rare paths.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A reservation, with the type of the quota source erased.
pub(crate) trait ReservationOps: Send + Sync {
    fn meter(&self) -> &Meter;
    fn demand(&self) -> Demand;
    fn scopes(&self) -> &Scopes;

    /// The volume that this reservation holds a claim on, by itself or through an outer reservation.
    fn volume(&self) -> Option<&Volume>;

    /// The reservation of the same request that an outer guard has made.
    fn outer(&self) -> Option<&Outer>;

    fn written(&self, bytes: u64);
    fn report(&self, change: &mut dyn FnMut(&mut Report));

    /// Reserves `want` bytes more, or at least `need`. Returns how many.
    fn grow(self: Arc<Self>, need: u64, want: u64) -> BoxFuture<Result<u64, Refused>>;
    /// Gives back what is set aside beyond what the meter has reserved.
    fn shrink(&self);
    /// `bytes` are reserved for what the handler writes beside the body.
    fn keep_for_handler(&self, bytes: u64);
    /// Bytes that are reserved for the body, and were not read.
    fn unread(&self) -> u64;
    /// Offers `bytes` to others, from a time on.
    fn offer(&self, bytes: u64, from: Instant, by: Weak<dyn Silent>) -> Vec<Offer>;
    fn replaces(self: Arc<Self>, replaced: Amount) -> BoxFuture<Result<(), Refused>>;

    /// Subtracts from the usage of the scopes what was charged, and is not stored.
    fn give_back(&self, amount: Amount);

    /// A growth was refused, but the reservation goes on: other requests need not wait for its end.
    fn reinstate(&self);

    /// How much to request when a body has exceeded what is reserved, in bytes.
    fn next_grant(&self) -> u64;

    /// Commits now. False if it has ended before, or was cut.
    fn commit(self: Arc<Self>) -> BoxFuture<bool>;

    /// Releases now, unless it has ended before.
    fn release(&self);
    fn has_ended(&self) -> bool;

    /// Why the body was cut, if it was.
    fn refused(&self) -> Option<Refused>;

    /// Tells the observer that more was refused.
    fn tell_refused(&self, refused: &Refused);
}

/// The outer reservation.
#[derive(Clone)]
pub(crate) struct Outer {
    pub(crate) ops: Arc<dyn ReservationOps>,
    /// Whether both are on one volume, and the outer claim there is sufficient for both.
    pub(crate) holds_claim: bool,
}

impl fmt::Debug for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outer")
            .field("holds_claim", &self.holds_claim)
            .finish_non_exhaustive()
    }
}

/// What the handler has reported.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    pub(crate) stored: Option<u64>,
    pub(crate) made: Option<u64>,
    pub(crate) replaced: Option<Amount>,
    /// What should be replaced or removed is still there.
    pub(crate) is_unfinished: bool,
}
