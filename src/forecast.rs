//! When a volume will be full.

use std::time::Duration;

/// A forecast of when a volume will be full, if it goes on filling as it has until now. It is returned by
/// [`Volume::forecast`](crate::Volume::forecast).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Forecast {
    /// There are too few readings, or the last one is too old.
    Unknown,
    /// The usage and the claims do not rise.
    NotFilling,
    /// The volume will be full in this time.
    FullIn(Duration),
    /// The volume is full.
    Full,
}

impl Forecast {
    /// Returns the time until the volume is full: zero if it is. None if it is not filling, or that is not known.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_storage_guard::volume::Forecast;
    ///
    /// assert_eq!(Forecast::FullIn(Duration::from_secs(60)).time_to_full(), Some(Duration::from_secs(60)));
    /// assert_eq!(Forecast::Full.time_to_full(), Some(Duration::ZERO));
    /// assert_eq!(Forecast::NotFilling.time_to_full(), None);
    /// ```
    pub const fn time_to_full(self) -> Option<Duration> {
        match self {
            Self::Full => Some(Duration::ZERO),
            Self::FullIn(time) => Some(time),
            Self::Unknown | Self::NotFilling => None,
        }
    }
}
