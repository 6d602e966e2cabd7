//! When the forecast of a volume falls below a horizon.

use std::{
    cmp::Reverse,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::forecast::Forecast;

const HOUR: Duration = Duration::from_secs(60 * 60);
/// For how long a forecast has to be clearly beyond a horizon before it can fall below it again. It is longer than any two
/// readings of a trend are apart, so that no single one causes an event.
const CALM: Duration = Duration::from_secs(10 * 60);

/// The horizons of a volume, the longest first.
#[derive(Clone, Debug)]
pub(super) struct Horizons(Arc<[Duration]>);

impl Horizons {
    pub(super) fn new(horizons: impl IntoIterator<Item = Duration>) -> Self {
        let mut horizons: Vec<_> = horizons.into_iter().collect();
        horizons.sort_unstable_by_key(|horizon| Reverse(*horizon));
        horizons.dedup();
        Self(horizons.into())
    }

    /// Nothing has fallen below them yet.
    pub(super) fn edges(&self) -> Edges {
        Edges(self.0.iter().copied().map(Edge::new).collect())
    }
}

/// A day to plan, and a shift to act: what alerts on disks are commonly set to.
impl Default for Horizons {
    fn default() -> Self {
        Self::new([HOUR * 24, HOUR * 4])
    }
}

/// Which horizons a forecast is below.
#[derive(Debug)]
pub(super) struct Edges(Vec<Edge>);

impl Edges {
    /// The horizons that this forecast, by a reading of this time, has fallen below, the longest first.
    pub(super) fn check(&mut self, at: Instant, forecast: Forecast) -> Vec<Duration> {
        let crossed = |edge: &mut Edge| edge.is_crossed(at, forecast).then_some(edge.horizon);
        self.0.iter_mut().filter_map(crossed).collect()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Which horizons are crossed, minute by minute, by forecasts in hours. None is a volume that is not filling.
    fn crossings(forecasts: impl IntoIterator<Item = Option<f64>>) -> Vec<(usize, u64)> {
        let (start, mut edges) = (Instant::now(), Horizons::default().edges());
        let mut crossed = Vec::new();
        for (minute, hours) in forecasts.into_iter().enumerate() {
            let forecast = hours.map_or(Forecast::NotFilling, |hours| {
                Forecast::FullIn(HOUR.mul_f64(hours))
            });
            for horizon in edges.check(start + MINUTE * minute as u32, forecast) {
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
        let mut edges = Horizons::new([MINUTE, HOUR, MINUTE, MINUTE * 2]).edges();
        let now = Instant::now();
        assert!(edges.check(now, Forecast::Unknown).is_empty());
        assert_eq!(edges.check(now, Forecast::Full), [HOUR, MINUTE * 2, MINUTE]);
        assert!(edges.check(now, Forecast::Full).is_empty());
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
        let (now, mut edges) = (Instant::now(), Horizons::default().edges());
        assert_eq!(edges.check(now, Forecast::Full).len(), 2);
        for minute in 1..100 {
            assert!(
                edges
                    .check(now + MINUTE * minute, Forecast::Unknown)
                    .is_empty()
            );
        }
        assert!(edges.check(now + MINUTE * 100, Forecast::Full).is_empty());
    }

    #[test]
    fn a_clock_that_goes_back_is_no_recovery() {
        let mut edges = Horizons::default().edges();
        let now = Instant::now() + HOUR;
        assert_eq!(edges.check(now, Forecast::Full).len(), 2);
        for _ in 0..100 {
            assert!(edges.check(now, Forecast::NotFilling).is_empty());
            assert!(edges.check(now - HOUR, Forecast::NotFilling).is_empty());
        }
        assert!(edges.check(now, Forecast::Full).is_empty());
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
