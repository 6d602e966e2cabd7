//! What is known of a volume.

use std::time::Duration;

/// The state of a volume, by its last reading and the claims on it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct VolumeStatus {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that the last reading saw as available.
    pub available: u64,
    /// Bytes claimed by requests in flight, or stored since the last reading.
    pub claimed: u64,
    /// The part of it that is stored, and waits for the next reading.
    pub settling: u64,
    /// Bytes that stay free.
    pub headroom: u64,
    /// Inodes in all. None where the filesystem has no fixed number of them, or does not say.
    pub inodes_total: Option<u64>,
    /// Inodes that the last reading saw as available. None as above.
    pub inodes_available: Option<u64>,
    /// Objects claimed by requests in flight, or made since the last reading.
    pub objects_claimed: u64,
    /// Requests that wait for room.
    pub waiting: usize,
    /// The age of the last reading.
    pub age: Duration,
    /// Whether the reading is too old to count: the probe hangs or fails.
    pub is_stale: bool,
    /// Whether the volume waits for its level to resume.
    pub is_full: bool,
}
