//! What an operator sees, as values.

use std::time::Duration;

use super::accounts::Backlog;
use crate::{
    quota::Usage,
    scope::Scope,
    upload::OpenUpload,
    volume::{Forecast, Volume, VolumeStatus},
};

/// The state that an [`OperatorView`](super::OperatorView) shows, at one time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The volumes.
    pub volumes: Vec<VolumeView>,
    /// The guards.
    pub guards: Vec<GuardView>,
    /// The quota sources.
    pub quotas: Vec<QuotaView>,
    /// The registries of uploads.
    pub uploads: Vec<UploadsView>,
}

/// A volume.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VolumeView {
    /// Its [name](Volume::named).
    pub name: String,
    /// Whether it admits anything.
    pub state: State,
    /// Its figures.
    pub status: VolumeStatus,
    /// The forecast of when it will be full.
    pub forecast: Forecast,
    /// The number of reservations that wait to grow on its filesystem.
    pub waiting_growths: usize,
}

impl VolumeView {
    pub(super) fn of(volume: &Volume) -> Self {
        Self {
            name: volume.name().to_owned(),
            state: State::of(volume),
            status: volume.status(),
            forecast: volume.forecast(),
            waiting_growths: volume.waiting_growths(),
        }
    }
}

/// Whether a volume admits anything.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// It admits all that fits.
    Open,
    /// Nothing is available above the headroom and the claims.
    Full,
    /// It admits no bytes until its [level to resume](Volume::resume_at) is available.
    WaitingToResume,
    /// Its last reading is too old: the probe hangs or fails.
    Unknown,
}

impl State {
    /// Returns the name of the state in JSON: `open`, `full`, `waiting_to_resume` or `unknown`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Full => "full",
            Self::WaitingToResume => "waiting_to_resume",
            Self::Unknown => "unknown",
        }
    }

    fn of(volume: &Volume) -> Self {
        let status = volume.status();
        if status.is_stale {
            return Self::Unknown;
        }
        if status.is_full {
            return Self::WaitingToResume;
        }
        match volume.left() {
            Some(left) if left.bytes > 0 && left.objects > 0 => Self::Open,
            Some(_) => Self::Full,
            None => Self::Unknown,
        }
    }
}

/// A guard.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GuardView {
    /// The name that it was added by.
    pub name: String,
    /// The name of its volume, if it has one.
    pub volume: Option<String>,
    /// The number of reservations that wait for quota to grow.
    pub waiting_growths: usize,
}

/// A quota source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QuotaView {
    /// The name that it was added by.
    pub name: String,
    /// Its busiest scopes, or the error if it could not list them.
    pub busiest: Result<Vec<(Scope, Usage)>, String>,
    /// The time that listing them took.
    pub latency: Duration,
    /// The backlog of its store. None if the accounts are kept in this process.
    pub backlog: Option<Backlog>,
}

/// A registry of uploads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UploadsView {
    /// The name that it was added by.
    pub name: String,
    /// The number of open uploads.
    pub open: usize,
    /// The number of uploads that may be open, with their parts.
    pub max_open: usize,
    /// Those that have most bytes reserved.
    pub largest: Vec<OpenUpload>,
}
