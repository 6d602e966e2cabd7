//! Events of a guard, for logs and metrics.
//!
//! [`Guard::observer`](crate::Guard::observer) sets an [`Observer`], which is called with an [`Event`] for each decision, each end
//! of a reservation, and each change of a volume or a quota source. The features `tracing` and `metrics` bring observers that
//! are ready to use.
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//!
//! use tower_storage_guard::{Demand, Guard, observer::Event, quota::{Limits, MemoryQuota}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let stored = Arc::new(AtomicU64::new(0));
//! let sum = stored.clone();
//! let guard = Guard::quota_only(MemoryQuota::new(Limits::bytes(1_000))).observer(move |event: &Event<'_>| match event {
//!     Event::Settled { stored, .. } => { sum.fetch_add(*stored, Ordering::Relaxed); }
//!     Event::Refused { reason, .. } => eprintln!("refused: {}", reason.as_str()),
//!     _ => {}
//! });
//!
//! let reservation = guard.reserve("user:42", Demand::known(800)).await.unwrap();
//! reservation.commit().await;
//! assert_eq!(stored.load(Ordering::Relaxed), 800);
//! # }
//! ```

mod event;
mod observed;

use std::sync::Arc;

pub use self::event::Event;
#[cfg(feature = "store")]
pub(crate) use self::observed::Absence;
pub(crate) use self::observed::{Observed, WeakObserved};

/// Receives the events of a guard.
///
/// Set one with [`Guard::observer`](crate::Guard::observer). It is called on the thread of the request, inside of the request's
/// `tracing` span if there is one, and never under a lock of this crate. Events of a volume come from threads of their own. An
/// observer must not block. If it panics, the request panics; a panic in an event of a volume is caught.
///
/// A function of an [`Event`] is an observer, and two observers in a tuple are one.
pub trait Observer: Send + Sync + 'static {
    /// Is called with each event.
    fn observe(&self, event: &Event<'_>);
}

impl<F> Observer for F
where
    F: Fn(&Event<'_>) + Send + Sync + 'static,
{
    fn observe(&self, event: &Event<'_>) {
        self(event);
    }
}

impl<A: Observer, B: Observer> Observer for (A, B) {
    fn observe(&self, event: &Event<'_>) {
        self.0.observe(event);
        self.1.observe(event);
    }
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn observe(&self, event: &Event<'_>) {
        O::observe(self, event);
    }
}
