//! What was set aside for a request, and its end.

mod cell;
mod growth;
mod part;

use std::{fmt, sync::Arc};

pub(crate) use self::{
    cell::{BodyEnd, Cell, Charged, Later},
    part::Part,
};
use crate::{
    Amount, Demand,
    fault::Fault,
    quota::Exceeded,
    refusal::{Figures, Refusal},
    volume::Shortfall,
};

/// A handle on what is set aside for a request, in its extensions. Cheap to clone.
///
/// It needs no care: what the body brought is committed when the answer is a success, and everything is
/// released on any other end. A handler that knows better says so:
///
/// - [`written`](Self::written) as bytes reach the disk, so that a large upload in flight is not counted
///   twice, on the disk and as promised;
/// - [`stored`](Self::stored) when what it keeps is not what it read, for instance after compression;
/// - [`replaces`](Self::replaces) when it overwrites;
/// - [`grow`](Self::grow) before it writes more than was set aside.
///
/// With feature `axum` it is an extractor.
#[derive(Clone)]
pub struct Reservation(Arc<dyn Charged>);

impl Reservation {
    pub(crate) fn new(charged: Arc<dyn Charged>) -> Self {
        Self(charged)
    }

    /// What the request wanted at the door.
    pub fn demand(&self) -> Demand {
        self.0.demand()
    }

    /// Bytes set aside so far.
    pub fn reserved(&self) -> u64 {
        self.0.meter().reserved()
    }

    /// Bytes of the body that were read so far.
    pub fn received(&self) -> u64 {
        self.0.meter().received()
    }

    /// Bytes set aside and not read yet.
    pub fn remaining(&self) -> u64 {
        self.reserved().saturating_sub(self.received())
    }

    /// Reports that `bytes` more have reached the filesystem: a write of them has returned.
    ///
    /// A buffered writer must be flushed first. `tokio::fs::File` is one.
    pub fn written(&self, bytes: u64) {
        self.0.written(bytes);
    }

    /// Sets how many bytes are stored in the end, where that is not what was read.
    ///
    /// They count even where they are more than was set aside, as they are there. Better
    /// [`grow`](Self::grow) first.
    pub fn stored(&self, bytes: u64) {
        self.0.report(&mut |report| report.stored = Some(bytes));
    }

    /// Sets how many objects are made in the end, where that is not what was asked for.
    pub fn made(&self, objects: u64) {
        self.0.report(&mut |report| report.made = Some(objects));
    }

    /// Corrects what is replaced. Scopes are charged for the difference.
    ///
    /// # Errors
    ///
    /// Where it is less than the demand said, the quota must hold the rest too, and has no room for it.
    pub async fn replaces(&self, replaced: Amount) -> Result<(), Refused> {
        Arc::clone(&self.0).replaces(replaced).await
    }

    /// Commits what was stored, now, whatever is answered and whether or not the client is still there.
    ///
    /// For a handler that cannot take back what it has done: files that have got their names. Nothing more
    /// of the body can be read then. False where the reservation has ended before, since the client left
    /// or the body was cut: nothing is charged then.
    pub async fn commit(&self) -> bool {
        Arc::clone(&self.0).commit().await
    }

    /// Whether it has ended: committed or released. A task that outlives its request can tell by this.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// Sets `bytes` more aside, on the volume and in every scope.
    ///
    /// # Errors
    ///
    /// When there is no room for them. What was set aside before stays.
    pub async fn grow(&self, bytes: u64) -> Result<(), Refused> {
        let grown = Arc::clone(&self.0).grow(bytes, bytes).await;
        if grown.is_err() {
            // Sent away from the line, it may go on with what it has.
            self.0.pardon();
        }
        grown
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

/// There was no room. The error of a body that was cut, and of a reservation that cannot grow.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message())]
pub struct Refused(Box<Refusal>);

impl Refused {
    pub(crate) fn new(refusal: Refusal) -> Self {
        Self(Box::new(refusal))
    }

    /// The refusal that the client is answered.
    pub fn refusal(&self) -> &Refusal {
        &self.0
    }
}

/// What a client is told when the volume has no room.
pub(crate) fn refuse_shortfall(shortfall: Shortfall) -> Refusal {
    match shortfall {
        // Whether it would ever fit is not told: guess by guess, that is the size of the disk.
        Shortfall::Full { fault, .. } => fault.into(),
        Shortfall::Unknown => Refusal::unavailable(),
    }
}

/// What a client is told when a scope has no room: which, and the figures, if they are its own.
pub(crate) fn refuse_exceeded(exceeded: &Exceeded) -> Refusal {
    let refusal = Refusal::from(Fault::new(exceeded.cause, exceeded.resource));
    if exceeded.scope.is_disclosed() {
        refusal
            // Guess by guess, this is the limit.
            .with_temporary(exceeded.required <= exceeded.limit)
            .with_figures(Figures {
                limit: exceeded.limit,
                used: exceeded.used,
                required: exceeded.required,
            })
            .with_scope(exceeded.scope.clone())
    } else {
        refusal
    }
}
