//! What is measured. The table in the docs of the module says the same, in the same words: a test compares them.

use metrics::Unit;

use super::registry::Metric;

pub(super) const ADMISSIONS: Metric = Metric(
    "storage_guard_admissions_total",
    Unit::Count,
    "Demands that were admitted",
);
pub(super) const WAIT: Metric = Metric(
    "storage_guard_admission_wait_seconds",
    Unit::Seconds,
    "How long those of them have waited that were not admitted at once: for room, or for the quota source",
);
pub(super) const REFUSALS: Metric = Metric(
    "storage_guard_refusals_total",
    Unit::Count,
    "Demands that were refused, and reservations that could not grow",
);
pub(super) const CUTS: Metric = Metric(
    "storage_guard_cuts_total",
    Unit::Count,
    "Bodies that were cut while they were read, because their reservation could not grow",
);
pub(super) const STALLS: Metric = Metric(
    "storage_guard_stalls_total",
    Unit::Count,
    "Requests that were ended because their client had stopped sending",
);
pub(super) const SETTLEMENTS: Metric = Metric(
    "storage_guard_settlements_total",
    Unit::Count,
    "Reservations that have ended with success",
);
pub(super) const RELEASES: Metric = Metric(
    "storage_guard_releases_total",
    Unit::Count,
    "Reservations that have ended without success",
);
pub(super) const STORED: Metric = Metric(
    "storage_guard_stored_bytes_total",
    Unit::Bytes,
    "What was stored",
);
pub(super) const UNUSED: Metric = Metric(
    "storage_guard_unused_bytes_total",
    Unit::Bytes,
    "What was reserved at the end of a success and not stored, as the rest of the last grant",
);
pub(super) const DISCARDED: Metric = Metric(
    "storage_guard_discarded_bytes_total",
    Unit::Bytes,
    "What was received for reservations that have ended without success",
);

pub(super) const DRAINED: Metric = Metric(
    "storage_guard_drained_bytes_total",
    Unit::Bytes,
    "What was read of refused requests and thrown away, so that the answer arrives",
);
pub(super) const FAULTS: Metric = Metric(
    "storage_guard_faults_total",
    Unit::Count,
    "Storage failures that were found in answers of the service",
);
pub(super) const SUSPECTS: Metric = Metric(
    "storage_guard_suspects_total",
    Unit::Count,
    "Errors that were not classified, with a text that names full storage",
);
pub(super) const SOFT_LIMITS: Metric = Metric(
    "storage_guard_soft_limits_total",
    Unit::Count,
    "Soft limits that were crossed",
);
pub(super) const QUOTA_SLOW: Metric = Metric(
    "storage_guard_quota_slow_answers_total",
    Unit::Count,
    "Answers of the quota source that took more than half of the timeout",
);
pub(super) const QUOTA_OUTAGES: Metric = Metric(
    "storage_guard_quota_outages_total",
    Unit::Count,
    "How often a quota source went away",
);
pub(super) const QUOTA_AWAY: Metric = Metric(
    "storage_guard_quota_away",
    Unit::Count,
    "Quota sources that are away now",
);

pub(super) const SIZE: Metric = Metric(
    "storage_guard_volume_size_bytes",
    Unit::Bytes,
    "The size of the volume",
);
pub(super) const AVAILABLE: Metric = Metric(
    "storage_guard_volume_available_bytes",
    Unit::Bytes,
    "What the last reading saw as available",
);
pub(super) const CLAIMED: Metric = Metric(
    "storage_guard_volume_claimed_bytes",
    Unit::Bytes,
    "What requests in flight have reserved, or have stored since the last reading",
);
pub(super) const SETTLING: Metric = Metric(
    "storage_guard_volume_settling_bytes",
    Unit::Bytes,
    "The part of what is claimed that is stored already, and waits for the next reading",
);
pub(super) const HEADROOM: Metric = Metric(
    "storage_guard_volume_headroom_bytes",
    Unit::Bytes,
    "What stays free",
);
pub(super) const INODES: Metric = Metric(
    "storage_guard_volume_inodes",
    Unit::Count,
    "The inodes of the volume, where it has a fixed number",
);
pub(super) const AVAILABLE_INODES: Metric = Metric(
    "storage_guard_volume_available_inodes",
    Unit::Count,
    "The inodes that the last reading saw as available",
);
pub(super) const CLAIMED_INODES: Metric = Metric(
    "storage_guard_volume_claimed_inodes",
    Unit::Count,
    "The inodes that requests in flight have reserved, or have made since the last reading",
);
pub(super) const WAITING: Metric = Metric(
    "storage_guard_volume_waiting_requests",
    Unit::Count,
    "Requests that wait for room, at the last reading",
);
pub(super) const TIME_TO_FULL: Metric = Metric(
    "storage_guard_volume_time_to_full_seconds",
    Unit::Seconds,
    "When the volume will be full by its trend: infinite while it is not filling, NaN while that is not known",
);
pub(super) const HORIZONS: Metric = Metric(
    "storage_guard_volume_horizons_total",
    Unit::Count,
    "How often that has fallen below one of the volume's horizons",
);
pub(super) const READ_AT: Metric = Metric(
    "storage_guard_volume_read_timestamp_seconds",
    Unit::Seconds,
    "When the last reading began, in Unix time",
);
pub(super) const PROBE: Metric = Metric(
    "storage_guard_volume_probe_duration_seconds",
    Unit::Seconds,
    "How long readings took",
);
pub(super) const FULL: Metric = Metric(
    "storage_guard_volume_full",
    Unit::Count,
    "1 while the volume takes no writes because it is full, else 0",
);
pub(super) const STALE: Metric = Metric(
    "storage_guard_volume_stale",
    Unit::Count,
    "1 while the volume cannot be read, else 0",
);
pub(super) const MOVED: Metric = Metric(
    "storage_guard_volume_moved",
    Unit::Count,
    "1 while another filesystem is mounted there, or none, else 0",
);

pub(super) const STORE_CALL: Metric = Metric(
    "storage_guard_store_call_duration_seconds",
    Unit::Seconds,
    "How long a store took to answer",
);
pub(super) const STORE_ERRORS: Metric = Metric(
    "storage_guard_store_errors_total",
    Unit::Count,
    "Calls that a store has failed",
);
pub(super) const STORE_AWAY: Metric = Metric(
    "storage_guard_store_away",
    Unit::Count,
    "Stores that fail now",
);
pub(super) const JOURNAL_AWAY: Metric = Metric(
    "storage_guard_journal_away",
    Unit::Count,
    "Journals that cannot be written now",
);
pub(super) const LEASE_HITS: Metric = Metric(
    "storage_guard_lease_hits_total",
    Unit::Count,
    "Demands for which enough was leased",
);
pub(super) const LEASE_MISSES: Metric = Metric(
    "storage_guard_lease_misses_total",
    Unit::Count,
    "Demands for which the store was asked, because too little was leased",
);
