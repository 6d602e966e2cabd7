//! Events when the forecast of a volume falls below a horizon.

use std::{
    cmp::Reverse,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::{Headroom, trend::Trend};
use crate::forecast::Forecast;

const HOUR: Duration = Duration::from_secs(60 * 60);
/// A day to plan, and a shift to act: what alerts on disks are commonly set to.
const DEFAULT: [Duration; 2] = [HOUR.saturating_mul(24), HOUR.saturating_mul(4)];
/// For how long a forecast has to be clearly beyond a horizon before it can fall below it again. It is longer than any two
/// readings of a trend are apart, so that no single one causes an event.
const CALM: Duration = Duration::from_secs(10 * 60);

/// A function that is called with a horizon and the forecast that has fallen below it.
type OnHorizon = dyn Fn(Duration, Forecast) + Send + Sync;

/// What the readings of a filesystem show over time. Only the probing thread notes readings.
#[derive(Debug)]
pub(super) struct Outlook {
    trend: Mutex<Trend>,
    followed: Mutex<Vec<Weak<Horizons>>>,
}

impl Outlook {
    pub(super) const fn new() -> Self {
        Self {
            trend: Mutex::new(Trend::new()),
            followed: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn forecast(&self, room: u64) -> Forecast {
        lock(&self.trend).forecast(room)
    }

    /// Checks these horizons after each reading, until the last volume that has them is dropped.
    pub(super) fn follow(&self, horizons: Horizons) -> Arc<Horizons> {
        let horizons = Arc::new(horizons);
        let mut followed = lock(&self.followed);
        followed.retain(|followed| followed.strong_count() > 0);
        followed.push(Arc::downgrade(&horizons));
        horizons
    }

    /// A reading: the bytes that are used and claimed at a time, and the room that is left above a headroom.
    pub(super) fn note(&self, at: Instant, taken: i64, room: impl Fn(Headroom) -> u64) {
        lock(&self.trend).note(at, taken);
        // Foreign code is called with no lock held.
        let followed: Vec<_> = lock(&self.followed)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for horizons in followed {
            let forecast = self.forecast(room(horizons.keep_free));
            for horizon in horizons.check(at, forecast) {
                horizons.crossed(horizon, forecast);
            }
        }
    }
}

/// The horizons of a volume and of its clones.
pub(super) struct Horizons {
    keep_free: Headroom,
    /// The longest first.
    edges: Mutex<Vec<Edge>>,
    on_horizon: Option<Arc<OnHorizon>>,
}

impl Default for Horizons {
    fn default() -> Self {
        Self {
            keep_free: Headroom::NONE,
            edges: Mutex::new(DEFAULT.map(Edge::new).into()),
            on_horizon: None,
        }
    }
}

impl Horizons {
    /// The same above another headroom.
    pub(super) fn above(&self, keep_free: Headroom) -> Self {
        Self {
            keep_free,
            ..self.anew()
        }
    }

    pub(super) fn at(&self, horizons: impl IntoIterator<Item = Duration>) -> Self {
        let mut edges: Vec<_> = horizons.into_iter().map(Edge::new).collect();
        edges.sort_unstable_by_key(|edge| Reverse(edge.horizon));
        edges.dedup_by_key(|edge| edge.horizon);
        Self {
            edges: Mutex::new(edges),
            ..self.anew()
        }
    }

    pub(super) fn call(&self, on_horizon: Arc<OnHorizon>) -> Self {
        Self {
            on_horizon: Some(on_horizon),
            ..self.anew()
        }
    }

    /// The same settings, with nothing crossed.
    fn anew(&self) -> Self {
        let edges = lock(&self.edges);
        Self {
            keep_free: self.keep_free,
            edges: Mutex::new(edges.iter().map(|edge| Edge::new(edge.horizon)).collect()),
            on_horizon: self.on_horizon.clone(),
        }
    }

    /// The horizons that this forecast has fallen below, the longest first.
    fn check(&self, at: Instant, forecast: Forecast) -> Vec<Duration> {
        let mut edges = lock(&self.edges);
        let crossed = |edge: &mut Edge| edge.is_crossed(at, forecast).then_some(edge.horizon);
        edges.iter_mut().filter_map(crossed).collect()
    }

    /// The forecast has fallen below this horizon: the one place that all such events come by. On the probing thread.
    fn crossed(&self, horizon: Duration, forecast: Forecast) {
        if let Some(on_horizon) = &self.on_horizon {
            // The thread has to go on probing, whatever a function of the user does.
            let _ = catch_unwind(AssertUnwindSafe(|| on_horizon(horizon, forecast)));
        }
    }
}

impl fmt::Debug for Horizons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Horizons")
            .field("edges", &self.edges)
            .finish_non_exhaustive()
    }
}

/// Whether the forecast is below one horizon.
#[derive(Debug)]
struct Edge {
    horizon: Duration,
    is_below: bool,
    /// While it is below: since when the forecast has been beyond the horizon again.
    calm_since: Option<Instant>,
}

impl Edge {
    const fn new(horizon: Duration) -> Self {
        Self {
            horizon,
            is_below: false,
            calm_since: None,
        }
    }

    /// Whether the forecast falls below the horizon now.
    ///
    /// It has recovered once it has been a quarter beyond the horizon, or not filling, for [`CALM`]. A forecast that is unknown
    /// changes nothing.
    fn is_crossed(&mut self, at: Instant, forecast: Forecast) -> bool {
        if forecast == Forecast::Unknown {
            return false;
        }
        let time = forecast.time_to_full().unwrap_or(Duration::MAX);
        if !self.is_below {
            self.is_below = time <= self.horizon;
            return self.is_below;
        }
        if time < self.horizon.saturating_add(self.horizon / 4) {
            self.calm_since = None;
        } else {
            let since = *self.calm_since.get_or_insert(at);
            if at.saturating_duration_since(since) >= CALM {
                *self = Self::new(self.horizon);
            }
        }
        false
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Foreign code runs with none of them locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Which horizons are crossed, minute by minute, by forecasts in hours. None is a volume that is not filling.
    fn crossings(forecasts: impl IntoIterator<Item = Option<f64>>) -> Vec<(usize, u64)> {
        let (start, horizons) = (Instant::now(), Horizons::default());
        let mut crossed = Vec::new();
        for (minute, hours) in forecasts.into_iter().enumerate() {
            let forecast = hours.map_or(Forecast::NotFilling, |hours| {
                Forecast::FullIn(HOUR.mul_f64(hours))
            });
            for horizon in horizons.check(start + MINUTE * minute as u32, forecast) {
                crossed.push((minute, horizon.as_secs() / HOUR.as_secs()));
            }
        }
        crossed
    }

    #[test]
    fn each_horizon_is_crossed_once_on_the_way_down() {
        let down = (0..300).map(|step| Some(30.0 - f64::from(step) / 10.0));
        assert_eq!(crossings(down), [(60, 24), (260, 4)]);
    }

    #[test]
    fn all_are_crossed_at_once_if_the_volume_is_full() {
        let horizons = Horizons::default().at([MINUTE, HOUR, MINUTE, MINUTE * 2]);
        let now = Instant::now();
        assert!(horizons.check(now, Forecast::Unknown).is_empty());
        assert_eq!(
            horizons.check(now, Forecast::Full),
            [HOUR, MINUTE * 2, MINUTE]
        );
        assert!(horizons.check(now, Forecast::Full).is_empty());
    }

    #[test]
    fn a_horizon_is_crossed_again_after_ten_calm_minutes_only() {
        let near = || [Some(3.0)].into_iter();
        let after = |hours, minutes| {
            let calm = std::iter::repeat_n(hours, minutes);
            crossings(near().chain(calm).chain(near()))
        };
        let first = [(0, 24), (0, 4)];
        assert_eq!(after(None, 10), first);
        assert_eq!(after(None, 11), [first[0], first[1], (12, 24), (12, 4)]);
        // Beyond one of them.
        assert_eq!(after(Some(5.0), 11), [first[0], first[1], (12, 4)]);
        // Not far enough beyond it.
        assert_eq!(after(Some(4.9), 600), first);
    }

    #[test]
    fn a_forecast_that_is_unknown_is_no_recovery() {
        let (now, horizons) = (Instant::now(), Horizons::default());
        assert_eq!(horizons.check(now, Forecast::Full).len(), 2);
        for minute in 1..100 {
            assert!(
                horizons
                    .check(now + MINUTE * minute, Forecast::Unknown)
                    .is_empty()
            );
        }
        assert!(
            horizons
                .check(now + MINUTE * 100, Forecast::Full)
                .is_empty()
        );
    }

    #[test]
    fn a_clock_that_goes_back_is_no_recovery() {
        let horizons = Horizons::default();
        let now = Instant::now() + HOUR;
        assert_eq!(horizons.check(now, Forecast::Full).len(), 2);
        for _ in 0..100 {
            assert!(horizons.check(now, Forecast::NotFilling).is_empty());
            assert!(horizons.check(now - HOUR, Forecast::NotFilling).is_empty());
        }
        assert!(horizons.check(now, Forecast::Full).is_empty());
    }

    proptest! {
        /// A slope that is wrong by a tenth, or shows no trend now and then, causes one event for each horizon.
        #[test]
        fn noise_does_not_flap(errors in prop::collection::vec((-0.1..0.1, 0..10), 1_800)) {
            let forecasts = errors.into_iter().enumerate().map(|(minute, (error, calm))| {
                let hours = 30.0 - minute as f64 / 60.0;
                (calm != 0).then_some(hours * (1.0 + error))
            });
            let crossed = crossings(forecasts);
            let horizons: Vec<_> = crossed.iter().map(|(_, horizon)| *horizon).collect();
            prop_assert_eq!(horizons, [24, 4]);
            for (minute, horizon) in crossed {
                let hours = 30.0 - minute as f64 / 60.0;
                prop_assert!((hours / horizon as f64 - 1.0).abs() < 0.12, "{hours} {horizon}");
            }
        }
    }
}
