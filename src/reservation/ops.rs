//! What can be done with a reservation, whatever the quota source is.

use std::{pin::Pin, sync::Arc};

use super::meter::Meter;
use crate::{amount::Amount, demand::Demand, refused::Refused, volume::Volume};

/// Something that is awaited, rarely enough to be boxed.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A reservation, whatever the quota source is.
pub(crate) trait ReservationOps: Send + Sync {
    fn meter(&self) -> &Meter;
    fn demand(&self) -> Demand;

    /// The volume that this reservation holds a claim on, itself or through the one around it.
    fn volume(&self) -> Option<&Volume>;

    /// The reservation of the same request that a guard outside of this one has made.
    fn outer(&self) -> Option<&Outer>;

    fn written(&self, bytes: u64);
    fn report(&self, change: &mut dyn FnMut(&mut Report));

    /// Sets `want` bytes more aside, or at least `need`.
    fn grow(self: Arc<Self>, need: u64, want: u64) -> BoxFuture<Result<(), Refused>>;
    fn replaces(self: Arc<Self>, replaced: Amount) -> BoxFuture<Result<(), Refused>>;

    /// A growth was refused, and the reservation goes on all the same: others need not wait for its end.
    fn reinstate(&self);

    /// How much to ask for when a body has passed what is set aside, in bytes.
    fn next_grant(&self) -> u64;

    /// Commits now. False where it has ended before, or was cut.
    fn commit(self: Arc<Self>) -> BoxFuture<bool>;

    /// Releases now, unless it has ended before.
    fn release(&self);
    fn has_ended(&self) -> bool;

    /// Why the body was cut, if it was.
    fn refused(&self) -> Option<Refused>;
}

/// The reservation around another one.
#[derive(Clone)]
pub(crate) struct Outer {
    pub(crate) ops: Arc<dyn ReservationOps>,
    /// Whether both are on one volume, and the outer one's claim there is enough for both.
    pub(crate) holds_claim: bool,
}

/// What the handler said.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(super) stored: Option<u64>,
    pub(super) made: Option<u64>,
}

impl Report {
    /// Sets what is stored, unless the handler has said so.
    pub(crate) fn stored_unless_said(&mut self, bytes: u64) {
        self.stored.get_or_insert(bytes);
    }
}
