use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ::metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use super::*;
use crate::{
    amount::Amount,
    cause::{Cause, Fault, Resource},
    forecast::Forecast,
    refused::{Internal, Reason},
    scope::Scopes,
    status::VolumeStatus,
};

type Row = (String, &'static str, &'static str, String, String);

/// Keeps everything, by the text of its key.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    described: BTreeMap<String, (&'static str, String)>,
    registered: BTreeSet<(String, &'static str, String)>,
    values: BTreeMap<String, f64>,
}

/// One series of it.
struct Series(Kept, String);

impl Series {
    fn update(&self, update: impl FnOnce(f64) -> f64) {
        let mut state = self.0.0.lock().unwrap();
        let value = state.values.entry(self.1.clone()).or_default();
        *value = update(*value);
    }
}

impl CounterFn for Series {
    fn increment(&self, by: u64) {
        self.update(|value| value + by as f64);
    }

    fn absolute(&self, _: u64) {
        unreachable!("counters only rise");
    }
}

impl GaugeFn for Series {
    fn increment(&self, by: f64) {
        self.update(|value| value + by);
    }

    fn decrement(&self, by: f64) {
        self.update(|value| value - by);
    }

    fn set(&self, to: f64) {
        self.update(|_| to);
    }
}

impl HistogramFn for Series {
    fn record(&self, seconds: f64) {
        self.update(|sum| sum + seconds);
    }
}

impl Kept {
    fn describe(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        let unit = match unit.unwrap() {
            Unit::Count => "",
            unit => unit.as_str(),
        };
        let described = (unit, help.into_owned());
        let mut state = self.0.lock().unwrap();
        state.described.insert(name.as_str().to_owned(), described);
    }

    fn register(&self, kind: &'static str, key: &Key) -> Arc<Series> {
        let labels = || key.labels().map(|label| format!("`{}`", label.key()));
        let names: Vec<_> = labels().collect();
        let values: Vec<_> = key.labels().map(|label| label.value()).collect();
        let text = format!("{} {}", key.name(), values.join(","));
        let mut state = self.0.lock().unwrap();
        state
            .registered
            .insert((key.name().to_owned(), kind, names.join(", ")));
        state.values.entry(text.trim_end().to_owned()).or_default();
        Arc::new(Series(self.clone(), text.trim_end().to_owned()))
    }

    fn rows(&self) -> BTreeSet<Row> {
        let state = self.0.lock().unwrap();
        let registered = state.registered.iter().cloned();
        registered
            .map(|(name, kind, labels)| {
                let (unit, help) = state.described[&name].clone();
                (name, kind, unit, labels, help)
            })
            .collect()
    }

    fn value(&self, series: &str) -> f64 {
        self.0.lock().unwrap().values[series]
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(name, unit, help);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(name, unit, help);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(name, unit, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register("counter", key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register("gauge", key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.register("histogram", key))
    }
}

/// The rows of the table in the docs.
fn documented() -> BTreeSet<Row> {
    let docs = include_str!("mod.rs");
    let rows = docs
        .lines()
        .filter(|line| line.starts_with("//! | `storage_guard_"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, name, kind, unit, labels, help, _] = cells[..] else {
            panic!("{row}");
        };
        let name = name.trim_matches('`').to_owned();
        (name, kind, unit, labels.to_owned(), help.to_owned())
    })
    .collect()
}

const STATUS: VolumeStatus = VolumeStatus {
    total: 1_000,
    available: 600,
    claimed: 30,
    settling: 10,
    headroom: 100,
    inodes_total: Some(50),
    inodes_available: Some(40),
    objects_claimed: 3,
    waiting: 2,
    age: Duration::from_secs(7),
    is_stale: false,
    is_full: false,
};

fn probed<'a>(volume: &'a str, status: &'a VolumeStatus, forecast: Forecast) -> Event<'a> {
    let took = Duration::from_millis(5);
    Event::Probed {
        volume,
        status,
        took,
        forecast,
    }
}

fn answered<'a>(operation: &'static str, error: Option<&'a (dyn Error + 'static)>) -> Event<'a> {
    let took = Duration::from_millis(20);
    Event::StoreAnswered {
        operation,
        took,
        error,
    }
}

fn kept() -> (Kept, Metrics) {
    let kept = Kept::default();
    (kept.clone(), Metrics::with_recorder(kept))
}

#[test]
fn the_table_is_what_is_registered() {
    let (kept, metrics) = kept();
    metrics.observe(&probed("a", &STATUS, Forecast::Full));
    metrics.observe(&answered("reserve", None));
    metrics.observe(&Event::JournalAway);
    let (registered, documented) = (kept.rows(), documented());
    let difference: Vec<_> = registered.symmetric_difference(&documented).collect();
    assert!(difference.is_empty(), "{difference:#?}");
    assert!(registered.len() > 30);
    for (name, kind, unit, ..) in registered {
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        let name = name.trim_end_matches("_total");
        assert!(name.ends_with(unit), "{name} {unit}");
    }
}

/// The order in which they are indexed.
#[test]
fn each_fault_has_its_counter() {
    let (kept, metrics) = kept();
    for cause in [
        Cause::DiskFull,
        Cause::QuotaExceeded,
        Cause::DatabaseFull,
        Cause::CollectionFull,
    ] {
        for resource in [Resource::Bytes, Resource::Objects] {
            let fault = Fault::new(cause, resource);
            let series = format!(
                "storage_guard_faults_total {},{}",
                cause.reason(),
                resource.as_str()
            );
            assert_eq!(kept.value(&series), 0.0);
            metrics.observe(&Event::Fault { fault, error: None });
            assert_eq!(kept.value(&series), 1.0);
        }
    }
}

#[test]
fn each_event_of_a_request_is_counted() {
    let (kept, metrics) = kept();
    let (scopes, internal) = (&Scopes::default(), &Internal::default());
    let reason = Reason::Storage(Fault::DISK_FULL);
    let error = &std::io::Error::other("no");
    let second = Duration::from_secs(1);
    for volume in [Some("a"), None] {
        let refused = |reason| Event::Refused {
            volume,
            reason,
            internal,
        };
        let admitted = |waited| Event::Admitted {
            volume,
            scopes,
            reserved: Amount::ZERO,
            waited,
        };
        for event in [
            admitted(Duration::ZERO),
            admitted(second * 3),
            refused(reason),
            refused(Reason::Unavailable),
            refused(Reason::Stalled),
            Event::Cut {
                volume,
                scopes,
                reason,
                internal,
                received: 9,
            },
            Event::Stalled {
                volume,
                scopes,
                received: 9,
            },
            Event::Settled {
                volume,
                scopes,
                reserved: 100,
                stored: 60,
            },
            Event::Settled {
                volume,
                scopes,
                reserved: 0,
                stored: 7,
            },
            Event::Released {
                volume,
                scopes,
                reserved: 100,
                received: 11,
            },
            Event::Drained { bytes: 5 },
            Event::Suspect { error },
            Event::SoftLimit {
                scope: &"user:42".into(),
                resource: Resource::Objects,
                limit: 8,
                used: 9,
                grace: None,
            },
            Event::QuotaSlow { took: second },
            Event::QuotaAway { error },
        ] {
            metrics.observe(&event);
        }
    }
    metrics.observe(&Event::QuotaBack { after: second });
    for volume in ["a", ""] {
        for (series, value) in [
            ("admissions_total ", 2.0),
            ("admission_wait_seconds ", 3.0),
            ("refusals_total disk_full,bytes,", 1.0),
            ("refusals_total capacity_unknown,,", 1.0),
            ("refusals_total body_stalled,,", 1.0),
            ("refusals_total quota_exceeded,bytes,", 0.0),
            ("cuts_total disk_full,bytes,", 1.0),
            ("stalls_total ", 1.0),
            ("settlements_total ", 2.0),
            ("releases_total ", 1.0),
            ("stored_bytes_total ", 67.0),
            ("unused_bytes_total ", 40.0),
            ("discarded_bytes_total ", 11.0),
        ] {
            let series = format!("storage_guard_{series}{volume}");
            assert_eq!(kept.value(series.trim_end()), value, "{series}");
        }
    }
    for (series, value) in [
        ("drained_bytes_total", 10.0),
        ("suspects_total", 2.0),
        ("soft_limits_total bytes", 0.0),
        ("soft_limits_total objects", 2.0),
        ("quota_slow_answers_total", 2.0),
        ("quota_outages_total", 2.0),
        ("quota_away", 1.0),
    ] {
        assert_eq!(kept.value(&format!("storage_guard_{series}")), value);
    }
}

#[test]
fn each_event_of_a_volume_is_shown() {
    let (kept, metrics) = kept();
    let volume = "a";
    let shows = |figures: &[(&str, f64)]| {
        for (series, value) in figures {
            let shown = kept.value(&format!("storage_guard_volume_{series} a"));
            assert!(
                shown == *value || shown.is_nan() && value.is_nan(),
                "{series} {shown}"
            );
        }
    };
    let hour = Duration::from_secs(3_600);
    metrics.observe(&probed(volume, &STATUS, Forecast::FullIn(hour)));
    shows(&[
        ("size_bytes", 1_000.0),
        ("available_bytes", 600.0),
        ("claimed_bytes", 30.0),
        ("settling_bytes", 10.0),
        ("headroom_bytes", 100.0),
        ("inodes", 50.0),
        ("available_inodes", 40.0),
        ("claimed_inodes", 3.0),
        ("waiting_requests", 2.0),
        ("time_to_full_seconds", 3_600.0),
        ("probe_duration_seconds", 0.005),
        ("full", 0.0),
        ("stale", 0.0),
        ("moved", 0.0),
    ]);
    let read = kept.value("storage_guard_volume_read_timestamp_seconds a");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!((7.0..8.0).contains(&(now - read)), "{read} {now}");

    for (forecast, shown) in [
        (Forecast::NotFilling, f64::INFINITY),
        (Forecast::Full, 0.0),
        (Forecast::Unknown, f64::NAN),
        (Forecast::FullIn(hour), 3_600.0),
    ] {
        metrics.observe(&probed(volume, &STATUS, forecast));
        shows(&[("time_to_full_seconds", shown)]);
    }
    let (fault, horizon, forecast) = (Fault::DISK_FULL, hour, Forecast::Full);
    metrics.observe(&Event::Full { volume, fault });
    metrics.observe(&Event::Horizon {
        volume,
        horizon,
        forecast,
    });
    shows(&[("full", 1.0), ("horizons_total", 1.0)]);
    metrics.observe(&Event::Resumed { volume });
    metrics.observe(&Event::Stale { volume });
    let nan = f64::NAN;
    shows(&[
        ("full", 0.0),
        ("stale", 1.0),
        ("moved", 0.0),
        ("time_to_full_seconds", nan),
    ]);
    metrics.observe(&Event::Moved { volume });
    shows(&[("stale", 1.0), ("moved", 1.0)]);
    metrics.observe(&Event::Fresh { volume });
    shows(&[("stale", 0.0), ("moved", 0.0)]);
}

/// A filesystem without a number of inodes has no figures of them.
#[test]
fn inodes_are_shown_where_there_are_any() {
    let (kept, metrics) = kept();
    let status = VolumeStatus {
        inodes_total: None,
        inodes_available: None,
        ..STATUS
    };
    metrics.observe(&probed("a", &status, Forecast::Unknown));
    let has = |name: &str| kept.rows().iter().any(|row| row.0.ends_with(name));
    assert!(!has("inodes"));
    metrics.observe(&probed("b", &STATUS, Forecast::Unknown));
    assert!(has("inodes"));
}

#[test]
fn each_event_of_a_store_is_counted() {
    let (kept, metrics) = kept();
    let error = &std::io::Error::other("no");
    for event in [
        answered("reserve", None),
        answered("reserve", Some(error)),
        Event::StoreAway { error },
        answered("settle", None),
        Event::Leased { is_hit: true },
        Event::Leased { is_hit: true },
        Event::Leased { is_hit: false },
        Event::JournalAway,
    ] {
        metrics.observe(&event);
    }
    for (series, value) in [
        ("store_call_duration_seconds reserve", 0.04),
        ("store_call_duration_seconds settle", 0.02),
        ("store_errors_total reserve", 1.0),
        ("store_errors_total settle", 0.0),
        ("store_away", 1.0),
        ("lease_hits_total", 2.0),
        ("lease_misses_total", 1.0),
        ("journal_away", 1.0),
    ] {
        assert_eq!(kept.value(&format!("storage_guard_{series}")), value);
    }
    let after = Duration::from_secs(1);
    metrics.observe(&Event::StoreBack { after });
    metrics.observe(&Event::JournalBack { after });
    for series in ["store_away", "journal_away"] {
        assert_eq!(kept.value(&format!("storage_guard_{series}")), 0.0);
    }
}
