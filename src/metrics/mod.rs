//! An observer for the [`metrics`] facade, in the naming of Prometheus.
//!
//! ```
//! use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
//! use tower_storage_guard::{Demand, Guard, Volume, metrics::{self, Metrics}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let seconds = Matcher::Suffix("_seconds".into());
//! let exporter = PrometheusBuilder::new().set_buckets_for_metric(seconds, &metrics::BUCKETS)?.install_recorder()?;
//! let volume = Volume::open(std::env::temp_dir())?.named("uploads");
//! let guard = Guard::new(volume).observer(Metrics::new());
//!
//! guard.reserve("user:42", Demand::known(800)).await?.commit().await;
//! assert!(exporter.render().contains("storage_guard_admissions_total{volume=\"uploads\"} 1"));
//! # Ok(())
//! # }
//! ```
//!
//! # The metrics
//!
//! | name | kind | unit | labels | meaning |
//! |---|---|---|---|---|
//! | `storage_guard_admissions_total` | counter | | `volume` | Demands that were admitted |
//! | `storage_guard_admission_wait_seconds` | histogram | seconds | `volume` | How long those of them have waited that were not admitted at once: for room, or for the quota source |
//! | `storage_guard_refusals_total` | counter | | `cause`, `resource`, `volume` | Demands that were refused, and reservations that could not grow |
//! | `storage_guard_cuts_total` | counter | | `cause`, `resource`, `volume` | Bodies that were cut while they were read, because their reservation could not grow |
//! | `storage_guard_stalls_total` | counter | | `volume` | Requests that were ended because their client had stopped sending |
//! | `storage_guard_settlements_total` | counter | | `volume` | Reservations that have ended with success |
//! | `storage_guard_releases_total` | counter | | `volume` | Reservations that have ended without success |
//! | `storage_guard_stored_bytes_total` | counter | bytes | `volume` | What was stored |
//! | `storage_guard_unused_bytes_total` | counter | bytes | `volume` | What was reserved at the end of a success and not stored, as the rest of the last grant |
//! | `storage_guard_discarded_bytes_total` | counter | bytes | `volume` | What was received for reservations that have ended without success |
//! | `storage_guard_drained_bytes_total` | counter | bytes | | What was read of refused requests and thrown away, so that the answer arrives |
//! | `storage_guard_faults_total` | counter | | `cause`, `resource` | Storage failures that were found in answers of the service |
//! | `storage_guard_suspects_total` | counter | | | Errors that were not classified, with a text that names full storage |
//! | `storage_guard_soft_limits_total` | counter | | `resource` | Soft limits that were crossed |
//! | `storage_guard_quota_slow_answers_total` | counter | | | Answers of the quota source that took more than half of the timeout |
//! | `storage_guard_quota_outages_total` | counter | | | How often a quota source went away |
//! | `storage_guard_quota_away` | gauge | | | Quota sources that are away now |
//! | `storage_guard_volume_size_bytes` | gauge | bytes | `volume` | The size of the volume |
//! | `storage_guard_volume_available_bytes` | gauge | bytes | `volume` | What the last reading saw as available |
//! | `storage_guard_volume_claimed_bytes` | gauge | bytes | `volume` | What requests in flight have reserved, or have stored since the last reading |
//! | `storage_guard_volume_settling_bytes` | gauge | bytes | `volume` | The part of what is claimed that is stored already, and waits for the next reading |
//! | `storage_guard_volume_headroom_bytes` | gauge | bytes | `volume` | What stays free |
//! | `storage_guard_volume_inodes` | gauge | | `volume` | The inodes of the volume, where it has a fixed number |
//! | `storage_guard_volume_available_inodes` | gauge | | `volume` | The inodes that the last reading saw as available |
//! | `storage_guard_volume_claimed_inodes` | gauge | | `volume` | The inodes that requests in flight have reserved, or have made since the last reading |
//! | `storage_guard_volume_waiting_requests` | gauge | | `volume` | Requests that wait for room, at the last reading |
//! | `storage_guard_volume_time_to_full_seconds` | gauge | seconds | `volume` | When the volume will be full by its trend: infinite while it is not filling, NaN while that is not known |
//! | `storage_guard_volume_horizons_total` | counter | | `volume` | How often that has fallen below one of the volume's horizons |
//! | `storage_guard_volume_read_timestamp_seconds` | gauge | seconds | `volume` | When the last reading began, in Unix time |
//! | `storage_guard_volume_probe_duration_seconds` | histogram | seconds | `volume` | How long readings took |
//! | `storage_guard_volume_full` | gauge | | `volume` | 1 while the volume takes no writes because it is full, else 0 |
//! | `storage_guard_volume_stale` | gauge | | `volume` | 1 while the volume cannot be read, else 0 |
//! | `storage_guard_volume_moved` | gauge | | `volume` | 1 while another filesystem is mounted there, or none, else 0 |
//! | `storage_guard_store_call_duration_seconds` | histogram | seconds | `operation` | How long a store took to answer |
//! | `storage_guard_store_errors_total` | counter | | `operation` | Calls that a store has failed |
//! | `storage_guard_store_away` | gauge | | | Stores that fail now |
//! | `storage_guard_journal_away` | gauge | | | Journals that cannot be written now |
//! | `storage_guard_lease_hits_total` | counter | | | Demands for which enough was leased |
//! | `storage_guard_lease_misses_total` | counter | | | Demands for which the store was asked, because too little was leased |
//!
//! The last five are of stores that are [observed](crate::store::ObservedStore).
//!
//! What follows from them, in PromQL:
//!
//! | | |
//! |---|---|
//! | room for new demands | `storage_guard_volume_available_bytes - storage_guard_volume_claimed_bytes - storage_guard_volume_headroom_bytes` |
//! | used | `storage_guard_volume_size_bytes - storage_guard_volume_available_bytes` |
//! | reserved by requests in flight | `storage_guard_volume_claimed_bytes - storage_guard_volume_settling_bytes` |
//! | reservations in flight | `storage_guard_admissions_total - storage_guard_settlements_total - storage_guard_releases_total` |
//! | round trips to the store for each admission | `sum(rate(storage_guard_store_call_duration_seconds_count[5m])) / sum(rate(storage_guard_admissions_total[5m]))` |
//! | the share of demands that leases decide | `rate(storage_guard_lease_hits_total[5m]) / (rate(storage_guard_lease_hits_total[5m]) + rate(storage_guard_lease_misses_total[5m]))` |
//! | the age of the last reading | `time() - storage_guard_volume_read_timestamp_seconds` |
//!
//! # Labels
//!
//! - `volume` is the [name](crate::Volume::named) of the volume, and empty where quotas alone are guarded. Give each volume a name of
//!   its own: the figures of two volumes of one name would replace each other.
//! - `cause` is [`Reason::as_str`](crate::Reason::as_str).
//! - `resource` is [`Resource::as_str`](crate::fault::Resource::as_str), and empty where the cause is no storage fault.
//! - `operation` is the name of a method of [`Store`](crate::store::Store).
//!
//! No label is a scope, a path or an error, so the number of series depends on the number of volumes alone.
//!
//! # What to know
//!
//! - Figures of a volume are those of its last reading, so they are up to a second old. While its probe hangs, they stand still:
//!   `storage_guard_volume_stale` is 1 then, and the time of the last reading stays behind.
//! - A series is registered once and kept. An exporter that forgets idle series (`idle_timeout`) would lose it for good: leave that
//!   off.
//! - Some exporters turn a histogram into quantiles of one process, which cannot be added up, unless they are given
//!   [`BUCKETS`].
//!
//! The folder `examples/axum-upload/monitoring` has alerts and a Grafana dashboard. [`guide::metrics`](crate::guide::metrics) shows the
//! whole.

mod names;
mod registry;
mod series;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use ::metrics::{Gauge, Recorder};

use self::{
    registry::{ByName, Installed, Registry},
    series::{Operation, Process, Requests, Stores, VolumeSeries},
};
use crate::observer::{Event, Observer};

/// Upper bounds for the buckets of the histograms, in seconds: from a tenth of a millisecond to ten seconds.
pub const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// An observer that counts, for the `metrics` facade. See the [module](self).
///
/// A handle: clones share everything, so that several guards can have one. An event costs an atomic operation for each figure that it
/// changes.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    process: Process,
    requests: ByName<Requests>,
    volumes: ByName<VolumeSeries>,
    operations: ByName<Operation>,
    stores: OnceLock<Stores>,
    /// Journals that cannot be written.
    journals: OnceLock<Gauge>,
}

impl Metrics {
    /// Counts in the recorder that is installed. Install it first: without one, nothing is ever counted.
    pub fn new() -> Self {
        Self::with_recorder(Installed)
    }

    /// Counts in this recorder.
    pub fn with_recorder(recorder: impl Recorder + Send + Sync + 'static) -> Self {
        let registry = Registry::new(recorder);
        Self(Arc::new(Inner {
            process: Process::new(&registry),
            registry,
            requests: ByName::new(),
            volumes: ByName::new(),
            operations: ByName::new(),
            stores: OnceLock::new(),
            journals: OnceLock::new(),
        }))
    }

    fn requests(&self, volume: Option<&str>) -> &Requests {
        let volume = volume.unwrap_or_default();
        let make = || Requests::new(&self.0.registry, volume);
        self.0.requests.get_or_make(volume, make)
    }

    fn volume(&self, volume: &str) -> &VolumeSeries {
        let make = || VolumeSeries::new(&self.0.registry, volume);
        self.0.volumes.get_or_make(volume, make)
    }

    fn observe_volume(&self, event: &Event<'_>) {
        match *event {
            Event::Probed {
                volume,
                status,
                took,
                forecast,
                ..
            } => {
                // Its counters are there from the start too.
                self.requests(Some(volume));
                let series = self.volume(volume);
                series.read(&self.0.registry, volume, status, took);
                series.will_be_full(forecast);
            }
            Event::Full { volume, .. } => self.volume(volume).set_full(true),
            Event::Resumed { volume, .. } => self.volume(volume).set_full(false),
            Event::Stale { volume, .. } => self.volume(volume).set_sight(true, false),
            Event::Moved { volume, .. } => self.volume(volume).set_sight(true, true),
            Event::Fresh { volume, .. } => self.volume(volume).set_sight(false, false),
            Event::Horizon { volume, .. } => self.volume(volume).horizons.increment(1),
            _ => {}
        }
    }

    fn observe_process(&self, event: &Event<'_>) {
        let process = &self.0.process;
        match *event {
            Event::Drained { bytes, .. } => process.drained.increment(bytes),
            Event::Fault { fault, .. } => process.faults.of(fault).increment(1),
            Event::Suspect { .. } => process.suspects.increment(1),
            Event::QuotaSlow { .. } => process.quota_slow.increment(1),
            Event::QuotaAway { .. } => {
                process.quota_outages.increment(1);
                process.quota_away.increment(1);
            }
            Event::QuotaBack { .. } => process.quota_away.decrement(1),
            Event::SoftLimit { resource, .. } => process.soft_limits(resource).increment(1),
            _ => {}
        }
    }

    fn observe_store(&self, event: &Event<'_>) {
        let stores = || self.0.stores.get_or_init(|| Stores::new(&self.0.registry));
        let journals = || {
            let make = || self.0.registry.gauge(&names::JOURNAL_AWAY, &[]);
            self.0.journals.get_or_init(make)
        };
        match *event {
            Event::StoreAnswered {
                operation,
                took,
                error,
                ..
            } => {
                stores();
                let make = || Operation::new(&self.0.registry, operation);
                let series = self.0.operations.get_or_make(operation, make);
                series.duration.record(took);
                series.errors.increment(error.is_some().into());
            }
            Event::StoreAway { .. } => stores().away.increment(1),
            Event::StoreBack { .. } => stores().away.decrement(1),
            Event::JournalAway => journals().increment(1),
            Event::JournalBack { .. } => journals().decrement(1),
            Event::Leased { is_hit: true, .. } => stores().hits.increment(1),
            Event::Leased { is_hit: false, .. } => stores().misses.increment(1),
            _ => {}
        }
    }
}

impl Observer for Metrics {
    fn observe(&self, event: &Event<'_>) {
        match *event {
            Event::Admitted { volume, waited, .. } => self.requests(volume).admitted(waited),
            Event::Refused { volume, reason, .. } => {
                self.requests(volume).refusals.of(reason).increment(1);
            }
            Event::Cut { volume, reason, .. } => {
                self.requests(volume).cuts.of(reason).increment(1);
            }
            Event::Stalled { volume, .. } => self.requests(volume).stalls.increment(1),
            Event::Settled {
                volume,
                reserved,
                stored,
                ..
            } => self.requests(volume).settled(reserved, stored),
            Event::Released {
                volume, received, ..
            } => self.requests(volume).released(received),
            Event::Probed { .. }
            | Event::Full { .. }
            | Event::Resumed { .. }
            | Event::Stale { .. }
            | Event::Fresh { .. }
            | Event::Moved { .. }
            | Event::Horizon { .. } => self.observe_volume(event),
            Event::Drained { .. }
            | Event::Fault { .. }
            | Event::Suspect { .. }
            | Event::SoftLimit { .. }
            | Event::QuotaSlow { .. }
            | Event::QuotaAway { .. }
            | Event::QuotaBack { .. } => self.observe_process(event),
            Event::StoreAnswered { .. }
            | Event::StoreAway { .. }
            | Event::StoreBack { .. }
            | Event::JournalAway
            | Event::JournalBack { .. }
            | Event::Leased { .. } => self.observe_store(event),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
