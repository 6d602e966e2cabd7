//! Reservations, from their making to their end.

mod async_writer;
mod context;
mod end;
mod growth;
mod hooks;
mod meter;
mod ops;
mod pending;
mod shared;
mod silence;
mod state;
mod tickets;
mod writer;

use std::{fmt, iter, sync::Arc};

pub use self::{async_writer::AsyncReportingWriter, writer::ReportingWriter};
pub(crate) use self::{
    context::{Context, Grants, Rules, too_late},
    hooks::{EndHook, Outcome, StartHook},
    meter::Meter,
    ops::{BoxFuture, Outer, Report, ReservationOps},
    pending::{Pending, RareTerms, Terms, Unkept},
    shared::Shared,
    state::{Adapter, Ended},
};
use crate::{amount::Amount, demand::Demand, refused::Refused, volume::Volume};

/// Storage that is reserved: on the volume, and in every scope. Cheap to clone; when the last clone is dropped, on
/// any thread, everything is released.
///
/// A [`Guard`](crate::Guard) makes one for any code that asks. It ends once: by [`commit`](Self::commit), which charges
/// the stored content, or by [`release`](Self::release) or a drop, which charges nothing.
///
/// The layer makes one for each request, which a handler finds in the request's extensions. It needs no care: the bytes
/// of the body are committed when the answer is a success, and everything is released on any other end. A handler that
/// knows better says so:
///
/// - [`written`](Self::written) as bytes reach the disk, so that a large upload in flight is not counted twice, on the
///   disk and as claimed. [`async_writer`](Self::async_writer) and [`writer`](Self::writer) report all bytes that are
///   written through them;
/// - [`stored`](Self::stored) when it keeps more or less than it read, for instance after compression;
/// - [`replaces`](Self::replaces) when it overwrites;
/// - [`grow`](Self::grow) before it writes more than was reserved.
///
/// If the layers of two guards are around a handler, its reports reach both reservations.
///
/// With feature `axum` it is an extractor.
#[derive(Clone)]
#[must_use = "dropped, it releases everything"]
pub struct Reservation(Arc<dyn ReservationOps>);

impl Reservation {
    pub(crate) fn new(ops: Arc<dyn ReservationOps>) -> Self {
        Self(ops)
    }

    /// This reservation as the one around another, made for `demand` by a guard of this volume.
    pub(crate) fn around(&self, volume: Option<&Volume>, demand: &Demand) -> Outer {
        let shares = |own: &Volume| volume.is_some_and(|volume| volume.is_same_filesystem(own));
        let covers = |ops: &&Arc<dyn ReservationOps>| ops.demand().covers(demand);
        let mut claims = self.chain().filter(covers).filter_map(|ops| ops.volume());
        Outer {
            holds_claim: claims.any(shares),
            ops: Arc::clone(&self.0),
        }
    }

    /// This reservation, and those that guards outside of it have made for the same request.
    fn chain(&self) -> impl Iterator<Item = &Arc<dyn ReservationOps>> {
        iter::successors(Some(&self.0), |ops| ops.outer().map(|outer| &outer.ops))
    }

    /// Returns the demand that was made in the beginning.
    pub fn demand(&self) -> Demand {
        self.0.demand()
    }

    /// Returns the bytes that are reserved so far.
    pub fn reserved(&self) -> u64 {
        self.0.meter().reserved()
    }

    /// Returns the bytes of the request's body that were read so far. Without a request it is 0.
    pub fn received(&self) -> u64 {
        self.0.meter().received()
    }

    /// Returns the bytes that are reserved and not read yet.
    pub fn remaining(&self) -> u64 {
        self.reserved().saturating_sub(self.received())
    }

    /// Reports that `bytes` more have reached the filesystem: a write of them has returned.
    ///
    /// A buffered writer must be flushed first. `tokio::fs::File` is one. [`Self::async_writer`] and [`Self::writer`] flush and report
    /// by themselves.
    pub fn written(&self, bytes: u64) {
        // One write reaches one volume. Another may be guarded for the same request.
        let volume = self.chain().find_map(|ops| ops.volume());
        for ops in self.chain() {
            let is_elsewhere = |own: &Volume| !volume.is_some_and(|to| to.is_same_filesystem(own));
            if !ops.volume().is_some_and(is_elsewhere) {
                ops.written(bytes);
            }
        }
    }

    /// Sets how many bytes are stored in the end. Call it if that differs from the bytes that were read, or, without a
    /// request, from the bytes that were reserved.
    ///
    /// They count even if they are more than was reserved, because they are stored. It is better to
    /// [`grow`](Self::grow) first.
    pub fn stored(&self, bytes: u64) {
        for ops in self.chain() {
            ops.report(&mut |report| report.stored = Some(bytes));
        }
    }

    /// Sets how many objects are made in the end. Call it if that differs from the demand.
    pub fn made(&self, objects: u64) {
        for ops in self.chain() {
            ops.report(&mut |report| report.made = Some(objects));
        }
    }

    /// Corrects the amount that is replaced. Scopes are charged for the difference.
    ///
    /// # Errors
    ///
    /// If `replaced` is less than the demand said, and the quota has no room for the rest.
    ///
    /// # Panics
    ///
    /// If the quota source waits, in a runtime of tokio whose timer is not enabled.
    pub async fn replaces(&self, replaced: Amount) -> Result<(), Refused> {
        for ops in self.chain() {
            let held = Arc::clone(ops).replaces(replaced).await;
            held.inspect_err(|refused| ops.tell_refused(refused))?;
        }
        Ok(())
    }

    /// Reserves `bytes` more, on the volume and in every scope.
    ///
    /// # Errors
    ///
    /// When there is no room for them. Everything that was reserved before stays.
    ///
    /// # Panics
    ///
    /// If it has to wait, in a runtime of tokio whose timer is not enabled.
    pub async fn grow(&self, bytes: u64) -> Result<(), Refused> {
        // The outermost first: it may hold the claim for the others.
        let chain: Vec<_> = self.chain().collect();
        for ops in chain.into_iter().rev() {
            match Arc::clone(ops).grow(bytes, bytes).await {
                Ok(grown) => ops.keep_for_handler(grown),
                Err(refused) => {
                    // Evicted from the queue, it may go on with what it has.
                    ops.reinstate();
                    ops.tell_refused(&refused);
                    return Err(refused);
                }
            }
        }
        Ok(())
    }

    /// Commits the stored bytes and objects now, whatever is answered, and whether or not the client is still there.
    ///
    /// Use it for a job that is done, or for a handler that cannot undo its work, such as a rename. Nothing more of the
    /// body can be read then. Returns false if the reservation has ended before, because the client left or the body
    /// was cut. Nothing is charged then.
    ///
    /// The charge is not lost when this future is dropped.
    pub async fn commit(&self) -> bool {
        let commits: Vec<_> = self.chain().map(|ops| Arc::clone(ops).commit()).collect();
        let mut commits = commits.into_iter();
        let mut committed = false;
        if let Some(own) = commits.next() {
            committed = own.await;
        }
        for outer in commits {
            outer.await;
        }
        committed
    }

    /// Releases everything now, and charges nothing. Does nothing if the reservation has ended before.
    ///
    /// Bytes that were reported as [written](Self::written) stay claimed on the volume until the next reading shows
    /// whether they are there.
    pub fn release(&self) {
        self.chain().for_each(|ops| ops.release());
    }

    /// Returns whether the reservation has ended: it was committed or released. A task that outlives its request can
    /// tell by this.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("reserved", &self.reserved())
            .field("received", &self.received())
            .finish_non_exhaustive()
    }
}
