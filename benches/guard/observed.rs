//! The same upload with an observer.

use std::sync::{Arc, atomic::AtomicU64};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tower::Layer;
use tower_storage_guard::metrics::Metrics;

use super::cases::{self, Case};

/// Keeps each figure in an atomic, as exporters do.
struct Atomics;

impl Recorder for Atomics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        // Only demands that wait are recorded there.
        Histogram::noop()
    }
}

/// The last of [`cases::uploads`], counted by `Metrics`.
pub(crate) fn upload() -> Case {
    let guard = cases::whole_guard().observer(Metrics::with_recorder(Atomics));
    let mut service = guard.layer(cases::read_with_reservation());
    let name = "disk guard, memory quota, handle, metrics";
    Case::by(name, 3, cases::upload, move |request| {
        cases::serve(&mut service, request);
    })
}
