//! How series are registered.

use std::{fmt, sync::OnceLock};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit,
};

const METADATA: Metadata<'static> =
    Metadata::new("storage_guard", Level::INFO, Some(module_path!()));

/// A metric: its name, its unit, and what it means.
pub(super) struct Metric(
    pub(super) &'static str,
    pub(super) Unit,
    pub(super) &'static str,
);

/// Where series are registered.
pub(super) struct Registry(Box<dyn Recorder + Send + Sync>);

impl Registry {
    pub(super) fn new(recorder: impl Recorder + Send + Sync + 'static) -> Self {
        Self(Box::new(recorder))
    }

    pub(super) fn counter(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Counter {
        let (name, unit, help) = described(metric);
        self.0.describe_counter(name, unit, help);
        self.0.register_counter(&key(metric, labels), &METADATA)
    }

    pub(super) fn gauge(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Gauge {
        let (name, unit, help) = described(metric);
        self.0.describe_gauge(name, unit, help);
        self.0.register_gauge(&key(metric, labels), &METADATA)
    }

    pub(super) fn histogram(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Histogram {
        let (name, unit, help) = described(metric);
        self.0.describe_histogram(name, unit, help);
        self.0.register_histogram(&key(metric, labels), &METADATA)
    }
}

fn described(&Metric(name, unit, help): &Metric) -> (KeyName, Option<Unit>, SharedString) {
    (name.into(), Some(unit), help.into())
}

fn key(metric: &Metric, labels: &[(&'static str, &str)]) -> Key {
    let labels = labels.iter();
    let labels = labels.map(|(name, value)| Label::new(*name, (*value).to_owned()));
    Key::from_parts(metric.0, labels.collect::<Vec<_>>())
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// The recorder that the process has installed.
pub(super) struct Installed;

impl Recorder for Installed {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        metrics::with_recorder(|recorder| recorder.describe_counter(key, unit, description));
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        metrics::with_recorder(|recorder| recorder.describe_gauge(key, unit, description));
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        metrics::with_recorder(|recorder| recorder.describe_histogram(key, unit, description));
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        metrics::with_recorder(|recorder| recorder.register_counter(key, metadata))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        metrics::with_recorder(|recorder| recorder.register_gauge(key, metadata))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        metrics::with_recorder(|recorder| recorder.register_histogram(key, metadata))
    }
}

/// Something for each of a few names, which is made once and found without a lock.
#[derive(Debug)]
pub(super) struct ByName<T>(OnceLock<Box<Entry<T>>>);

#[derive(Debug)]
struct Entry<T> {
    name: Box<str>,
    value: T,
    next: ByName<T>,
}

impl<T> ByName<T> {
    pub(super) const fn new() -> Self {
        Self(OnceLock::new())
    }

    pub(super) fn get_or_make(&self, name: &str, make: impl Fn() -> T) -> &T {
        let mut list = self;
        loop {
            let entry = list.0.get_or_init(|| {
                Box::new(Entry {
                    name: name.into(),
                    value: make(),
                    next: Self::new(),
                })
            });
            if *entry.name == *name {
                return &entry.value;
            }
            list = &entry.next;
        }
    }
}
