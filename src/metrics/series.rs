//! The series of one volume's name, and those of the whole process. What each means is in the table of the module.

use std::{
    array,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use metrics::{Counter, Gauge, Histogram};

use super::{
    names,
    registry::{Metric, Registry},
};
use crate::{
    cause::{Cause, Fault, Resource},
    forecast::Forecast,
    refused::Reason,
    status::VolumeStatus,
};

const RESOURCES: [Resource; 2] = [Resource::Bytes, Resource::Objects];
const CAUSES: [Cause; 4] = [
    Cause::DiskFull,
    Cause::QuotaExceeded,
    Cause::DatabaseFull,
    Cause::CollectionFull,
];

/// A counter for each fault. All are there from the start: a rate over the first increase of a new series is zero.
#[derive(Debug)]
pub(super) struct ByFault([[Counter; RESOURCES.len()]; CAUSES.len()]);

impl ByFault {
    fn new(make: impl Fn(&'static str, &'static str) -> Counter) -> Self {
        Self(CAUSES.map(|cause| {
            array::from_fn(|resource| make(cause.reason(), RESOURCES[resource].as_str()))
        }))
    }

    pub(super) fn of(&self, fault: Fault) -> &Counter {
        &self.0[fault.cause as usize][fault.resource as usize]
    }
}

/// A counter for each reason.
#[derive(Debug)]
pub(super) struct ByReason {
    storage: ByFault,
    unavailable: Counter,
    stalled: Counter,
}

impl ByReason {
    fn new(registry: &Registry, metric: &Metric, volume: &str) -> Self {
        let make = |cause, resource| {
            let labels = [("cause", cause), ("resource", resource), ("volume", volume)];
            registry.counter(metric, &labels)
        };
        Self {
            storage: ByFault::new(make),
            unavailable: make(Reason::Unavailable.as_str(), ""),
            stalled: make(Reason::Stalled.as_str(), ""),
        }
    }

    pub(super) fn of(&self, reason: Reason) -> &Counter {
        match reason {
            Reason::Storage(fault) => self.storage.of(fault),
            Reason::Unavailable => &self.unavailable,
            Reason::Stalled => &self.stalled,
        }
    }
}

/// The requests of guards on one volume, or on none.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) admissions: Counter,
    wait: Histogram,
    pub(super) refusals: ByReason,
    pub(super) cuts: ByReason,
    pub(super) stalls: Counter,
    ends: Ends,
}

#[derive(Debug)]
struct Ends {
    settlements: Counter,
    releases: Counter,
    stored: Counter,
    unused: Counter,
    discarded: Counter,
}

impl Requests {
    pub(super) fn new(registry: &Registry, volume: &str) -> Self {
        let labels = [("volume", volume)];
        let counter = |metric| registry.counter(metric, &labels);
        Self {
            admissions: counter(&names::ADMISSIONS),
            wait: registry.histogram(&names::WAIT, &labels),
            refusals: ByReason::new(registry, &names::REFUSALS, volume),
            cuts: ByReason::new(registry, &names::CUTS, volume),
            stalls: counter(&names::STALLS),
            ends: Ends {
                settlements: counter(&names::SETTLEMENTS),
                releases: counter(&names::RELEASES),
                stored: counter(&names::STORED),
                unused: counter(&names::UNUSED),
                discarded: counter(&names::DISCARDED),
            },
        }
    }

    pub(super) fn admitted(&self, waited: Duration) {
        self.admissions.increment(1);
        if !waited.is_zero() {
            self.wait.record(waited);
        }
    }

    pub(super) fn settled(&self, reserved: u64, stored: u64) {
        self.ends.settlements.increment(1);
        self.ends.stored.increment(stored);
        let unused = reserved.saturating_sub(stored);
        if unused > 0 {
            self.ends.unused.increment(unused);
        }
    }

    pub(super) fn released(&self, received: u64) {
        self.ends.releases.increment(1);
        self.ends.discarded.increment(received);
    }
}

/// What belongs to no volume.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) drained: Counter,
    pub(super) faults: ByFault,
    pub(super) suspects: Counter,
    soft_limits: [Counter; RESOURCES.len()],
    pub(super) quota_slow: Counter,
    pub(super) quota_outages: Counter,
    pub(super) quota_away: Gauge,
}

impl Process {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            drained: registry.counter(&names::DRAINED, &[]),
            faults: ByFault::new(|cause, resource| {
                registry.counter(&names::FAULTS, &[("cause", cause), ("resource", resource)])
            }),
            suspects: registry.counter(&names::SUSPECTS, &[]),
            soft_limits: RESOURCES.map(|resource| {
                registry.counter(&names::SOFT_LIMITS, &[("resource", resource.as_str())])
            }),
            quota_slow: registry.counter(&names::QUOTA_SLOW, &[]),
            quota_outages: registry.counter(&names::QUOTA_OUTAGES, &[]),
            quota_away: registry.gauge(&names::QUOTA_AWAY, &[]),
        }
    }

    pub(super) fn soft_limits(&self, resource: Resource) -> &Counter {
        &self.soft_limits[resource as usize]
    }
}

/// A volume.
#[derive(Debug)]
pub(super) struct VolumeSeries {
    space: Space,
    inodes: OnceLock<Inodes>,
    waiting: Gauge,
    time_to_full: Gauge,
    pub(super) horizons: Counter,
    read_at: Gauge,
    probe: Histogram,
    state: State,
}

#[derive(Debug)]
struct Space {
    size: Gauge,
    available: Gauge,
    claimed: Gauge,
    settling: Gauge,
    headroom: Gauge,
}

#[derive(Debug)]
struct Inodes {
    size: Gauge,
    available: Gauge,
    claimed: Gauge,
}

#[derive(Debug)]
struct State {
    full: Gauge,
    stale: Gauge,
    moved: Gauge,
}

impl VolumeSeries {
    pub(super) fn new(registry: &Registry, volume: &str) -> Self {
        let labels = [("volume", volume)];
        let gauge = |metric| registry.gauge(metric, &labels);
        Self {
            space: Space {
                size: gauge(&names::SIZE),
                available: gauge(&names::AVAILABLE),
                claimed: gauge(&names::CLAIMED),
                settling: gauge(&names::SETTLING),
                headroom: gauge(&names::HEADROOM),
            },
            inodes: OnceLock::new(),
            waiting: gauge(&names::WAITING),
            time_to_full: gauge(&names::TIME_TO_FULL),
            horizons: registry.counter(&names::HORIZONS, &labels),
            read_at: gauge(&names::READ_AT),
            probe: registry.histogram(&names::PROBE, &labels),
            state: State {
                full: gauge(&names::FULL),
                stale: gauge(&names::STALE),
                moved: gauge(&names::MOVED),
            },
        }
    }

    pub(super) fn read(
        &self,
        registry: &Registry,
        volume: &str,
        status: &VolumeStatus,
        took: Duration,
    ) {
        let Space {
            size,
            available,
            claimed,
            settling,
            headroom,
        } = &self.space;
        size.set(status.total as f64);
        available.set(status.available as f64);
        claimed.set(status.claimed as f64);
        settling.set(status.settling as f64);
        headroom.set(status.headroom as f64);
        if let (Some(total), Some(free)) = (status.inodes_total, status.inodes_available) {
            let gauge = |metric| registry.gauge(metric, &[("volume", volume)]);
            let inodes = self.inodes.get_or_init(|| Inodes {
                size: gauge(&names::INODES),
                available: gauge(&names::AVAILABLE_INODES),
                claimed: gauge(&names::CLAIMED_INODES),
            });
            inodes.size.set(total as f64);
            inodes.available.set(free as f64);
            inodes.claimed.set(status.objects_claimed as f64);
        }
        self.waiting.set(status.waiting as f64);
        self.probe.record(took);
        // The time and not the age: while a probe hangs there is no reading, and an age would stand still.
        let read_at = SystemTime::now().checked_sub(status.age);
        let since = read_at.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        self.read_at.set(since.unwrap_or_default());
    }

    pub(super) fn will_be_full(&self, forecast: Forecast) {
        self.time_to_full.set(match forecast {
            Forecast::Unknown => f64::NAN,
            Forecast::NotFilling => f64::INFINITY,
            Forecast::FullIn(time) => time.as_secs_f64(),
            Forecast::Full => 0.0,
        });
    }

    pub(super) fn set_full(&self, is_full: bool) {
        self.state.full.set(u8::from(is_full));
    }

    pub(super) fn set_sight(&self, is_stale: bool, is_moved: bool) {
        self.state.stale.set(u8::from(is_stale));
        if is_stale {
            self.will_be_full(Forecast::Unknown);
        }
        self.state.moved.set(u8::from(is_moved));
    }
}

/// One operation of stores.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) duration: Histogram,
    pub(super) errors: Counter,
}

impl Operation {
    pub(super) fn new(registry: &Registry, operation: &str) -> Self {
        let labels = [("operation", operation)];
        Self {
            duration: registry.histogram(&names::STORE_CALL, &labels),
            errors: registry.counter(&names::STORE_ERRORS, &labels),
        }
    }
}

/// All stores that are observed.
#[derive(Debug)]
pub(super) struct Stores {
    pub(super) away: Gauge,
    pub(super) hits: Counter,
    pub(super) misses: Counter,
}

impl Stores {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            away: registry.gauge(&names::STORE_AWAY, &[]),
            hits: registry.counter(&names::LEASE_HITS, &[]),
            misses: registry.counter(&names::LEASE_MISSES, &[]),
        }
    }
}
