//! How fast a volume fills, by the trend of its readings. Pure: it has no clock.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::forecast::Forecast;

/// How many readings a ring has.
const SLOTS: usize = 64;
/// The fewest readings that make a trend: a straight line of them is significant, see [`Ring::robust_rate`].
const FEWEST: usize = 10;
/// How far apart the readings of the short ring are: it spans a quarter of an hour, and follows a change within minutes.
const SHORT: Duration = Duration::from_secs(15);
/// The same of the long ring: it spans six hours, so that it sees writes that come in batches as what they are on average.
const LONG: Duration = Duration::from_secs(345);
/// How far ahead the short ring counts, in multiples of the time that it spans: four hours. One upload is no trend of a day.
const REACH: u32 = 16;

/// How fast a filesystem fills, by its readings.
///
/// One ring cannot both follow a runaway within minutes and see that hourly batches are a trend, so there are two.
#[derive(Debug)]
pub(super) struct Trend {
    short: Ring,
    long: Ring,
    /// When the last reading was taken.
    read_at: Option<Instant>,
}

impl Trend {
    pub(super) const fn new() -> Self {
        Self {
            short: Ring::new(SHORT),
            long: Ring::new(LONG),
            read_at: None,
        }
    }

    /// When the last reading was taken.
    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read_at
    }

    /// A reading: the bytes that were used and claimed at a time. One that is not later than the last is ignored.
    pub(super) fn note(&mut self, at: Instant, taken: i64) {
        self.read_at = Some(at);
        let reading = Reading {
            at,
            taken,
            peak: taken,
        };
        self.short.note(reading);
        self.long.note(reading);
    }

    /// The forecast for a volume that has room for so many bytes.
    pub(super) fn forecast(&self, room: u64) -> Forecast {
        if room == 0 {
            return Forecast::Full;
        }
        let by_short = self.short.full_in(room);
        let counts = |time: &Duration| *time <= self.short.span() * REACH && !self.is_usual();
        let soon = by_short.filter(counts);
        let times = soon.into_iter().chain(self.long.full_in(room));
        match times.min() {
            Some(time) => Forecast::FullIn(time),
            // Rises too slowly for the short ring, while the long one is not there yet.
            None if by_short.is_some() && self.long.rate.is_none() => Forecast::Unknown,
            None if self.short.rate.is_none() => Forecast::Unknown,
            None => Forecast::NotFilling,
        }
    }

    /// Whether the long ring has seen usage come down twice through about where it is now: then a rise is a tooth of a saw.
    /// Once is a volume that was freed, which may well fill again.
    fn is_usual(&self) -> bool {
        let readings = &self.long.readings;
        let least = readings.iter().map(|reading| reading.taken).min();
        let most = readings.iter().map(|reading| reading.peak).max();
        let (Some(least), Some(most), Some(last)) = (least, most, self.short.readings.back())
        else {
            return false;
        };
        let near = most.saturating_sub(least) / 8;
        let level = last
            .taken
            .saturating_sub(near)
            .max(least.saturating_add(near));
        let pairs = readings.iter().zip(readings.iter().skip(1));
        let falls = pairs.filter(|(before, after)| before.peak >= level && after.taken < level);
        falls.count() >= 2
    }
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    taken: i64,
    /// The highest until the next one.
    peak: i64,
}

/// The last readings, at least so far apart.
#[derive(Debug)]
struct Ring {
    every: Duration,
    readings: VecDeque<Reading>,
    /// Bytes a second, zero if they do not rise. None while there are too few readings.
    rate: Option<f64>,
}

impl Ring {
    const fn new(every: Duration) -> Self {
        Self {
            every,
            readings: VecDeque::new(),
            rate: None,
        }
    }

    fn note(&mut self, reading: Reading) {
        if let Some(last) = self.readings.back_mut() {
            let Some(since) = reading.at.checked_duration_since(last.at) else {
                return;
            };
            if since < self.every {
                last.peak = last.peak.max(reading.taken);
                return;
            }
        }
        if self.readings.len() == SLOTS {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
        self.rate = (self.readings.len() >= FEWEST).then(|| self.robust_rate());
    }

    /// The median of the slopes of all pairs of readings (Theil–Sen), which bursts and removals hardly move: a mean would follow
    /// them.
    ///
    /// It counts as rising if pairs that rise outnumber those that fall
    ///
    /// - by three fifths of all (Kendall's tau): more than one step has, wherever in the ring it is, and more than a sawtooth has;
    /// - and by four standard deviations of what noise has (the test of Mann and Kendall).
    fn robust_rate(&self) -> f64 {
        let mut slopes = Vec::with_capacity(SLOTS * (SLOTS - 1) / 2);
        let mut rising = 0_i64;
        for (index, late) in self.readings.iter().enumerate() {
            for early in self.readings.range(..index) {
                let more = late.taken.saturating_sub(early.taken);
                rising += more.signum();
                // Never zero: they are apart.
                slopes.push(more as f64 / (late.at - early.at).as_secs_f64());
            }
        }
        let (count, pairs) = (self.readings.len() as i64, slopes.len() as i64);
        let variance = pairs * (2 * count + 5) / 9;
        if rising * 5 < pairs * 3 || rising * rising < 16 * variance {
            return 0.0;
        }
        let middle = slopes.len() / 2;
        let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
        median.max(0.0)
    }

    fn span(&self) -> Duration {
        match (self.readings.front(), self.readings.back()) {
            (Some(first), Some(last)) => last.at - first.at,
            _ => Duration::ZERO,
        }
    }

    /// The time in which it takes so much. None if it does not rise, or that is not known.
    fn full_in(&self, room: u64) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate > 0.0)?;
        let time = Duration::try_from_secs_f64(room as f64 / rate);
        Some(time.unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const GIB: u64 = 1 << 30;

    /// What is taken at each second, read this often.
    struct Shape<F> {
        every: u64,
        start: Instant,
        taken: F,
    }

    impl<F: Fn(u64) -> f64> Shape<F> {
        fn new(every: u64, taken: F) -> Self {
            let start = Instant::now();
            Self {
                every,
                start,
                taken,
            }
        }

        /// Notes the readings of `from..to`, and looks at each forecast for a volume of so many bytes.
        fn run(
            &self,
            trend: &mut Trend,
            from: u64,
            to: u64,
            total: u64,
            mut look: impl FnMut(u64, Forecast),
        ) {
            for second in (from..to).step_by(self.every as usize) {
                let taken = (self.taken)(second) as i64;
                trend.note(self.start + Duration::from_secs(second), taken);
                let room = total.saturating_sub(u64::try_from(taken).unwrap_or(0));
                look(second, trend.forecast(room));
            }
        }

        fn after(&self, seconds: u64, total: u64) -> Forecast {
            let mut last = Forecast::Unknown;
            self.run(&mut Trend::new(), 0, seconds, total, |_, forecast| {
                last = forecast
            });
            last
        }
    }

    fn seconds(forecast: Forecast) -> f64 {
        match forecast {
            Forecast::FullIn(time) => time.as_secs_f64(),
            other => panic!("{other:?}"),
        }
    }

    /// Between minus one and one, the same for a second and a seed. The finaliser of SplitMix64.
    fn noise(seed: u64, second: u64) -> f64 {
        let mut x = seed ^ second.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    #[test]
    fn it_is_unknown_for_two_minutes_and_then_says_that_nothing_fills() {
        let still = Shape::new(1, |_| GIB as f64);
        still.run(
            &mut Trend::new(),
            0,
            2 * HOUR,
            2 * GIB,
            |second, forecast| {
                let known = second >= 135;
                let expected = [Forecast::Unknown, Forecast::NotFilling][usize::from(known)];
                assert_eq!(forecast, expected, "at {second}");
            },
        );
    }

    #[test]
    fn full_is_full_whatever_the_trend() {
        assert_eq!(Trend::new().forecast(0), Forecast::Full);
        let full = Shape::new(5, |_| GIB as f64);
        assert_eq!(full.after(HOUR, GIB), Forecast::Full);
    }

    #[test]
    fn a_slow_fill_is_unknown_until_the_long_ring_sees_it() {
        // Full in 20 hours.
        let slow = Shape::new(5, |second| second as f64 * 1_000.0);
        let total = 20 * HOUR * 1_000;
        assert_eq!(slow.after(51 * MINUTE, total), Forecast::Unknown);
        let left = seconds(slow.after(52 * MINUTE, total));
        assert!((left / HOUR as f64 - 19.13).abs() < 0.05, "{left}");
    }

    #[test]
    fn a_runaway_is_noticed_within_minutes() {
        // Still for a day, and full two hours later.
        let total = 100 * GIB;
        let rate = total as f64 / (2 * HOUR) as f64;
        let begins = 24 * HOUR;
        let runaway = Shape::new(1, |second| second.saturating_sub(begins) as f64 * rate);
        let mut first = None;
        runaway.run(
            &mut Trend::new(),
            0,
            begins + 2 * HOUR,
            total,
            |second, forecast| {
                let in_all = |time: Duration| second + time.as_secs() - begins;
                match forecast.time_to_full() {
                    Some(time) if first.is_none() => first = Some((second - begins, in_all(time))),
                    Some(time) if second > begins + 15 * MINUTE => {
                        assert!(
                            in_all(time).abs_diff(2 * HOUR) < 5 * MINUTE,
                            "{second} {time:?}"
                        );
                    }
                    time => assert!(first.is_none() || time.is_some(), "lost at {second}"),
                }
            },
        );
        let (noticed, full) = first.unwrap();
        assert!(noticed < 8 * MINUTE && full < 5 * HOUR, "{noticed} {full}");
    }

    #[test]
    fn times_that_stand_still_or_go_back_are_no_readings() {
        let start = Instant::now() + Duration::from_secs(HOUR);
        let mut trend = Trend::new();
        for reading in 0..1_000 {
            trend.note(start, reading * 1_000);
            assert_eq!(trend.forecast(1_000), Forecast::Unknown);
        }
        // As before each reading that is counted another two are noted, with wild figures.
        for step in 1..100_u32 {
            let at = start + Duration::from_secs(60) * step;
            trend.note(at, i64::from(step) * 60_000);
            trend.note(at, i64::MAX);
            trend.note(at - Duration::from_secs(HOUR), i64::MIN);
        }
        // What was read first, at zero, is on the line.
        let left = seconds(trend.forecast(3_600_000));
        assert!((left - 3_600.0).abs() < 1.0, "{left}");
    }

    #[test]
    fn figures_at_their_limits_do_not_overflow() {
        let start = Instant::now();
        let mut trend = Trend::new();
        for step in 0..200_u32 {
            let taken = [i64::MIN, i64::MAX][(step > 20) as usize];
            trend.note(start + Duration::from_secs(400) * step, taken);
            trend.forecast(1);
            trend.forecast(u64::MAX);
        }
        for step in 200..300 {
            trend.note(
                start + Duration::from_secs(400) * step,
                i64::MAX - 300 + i64::from(step),
            );
        }
        // A byte in 400 seconds.
        assert_eq!(trend.forecast(u64::MAX), Forecast::FullIn(Duration::MAX));
        assert_eq!(seconds(trend.forecast(1_000)), 400_000.0);
    }

    /// The fewest readings rise by chance now and then, if three fifths are all that is asked of them.
    #[test]
    fn a_few_readings_of_noise_are_no_trend() {
        for seed in 0..1_000 {
            let shape = Shape::new(15, |second| GIB as f64 * (4.0 + noise(seed, second)));
            shape.run(
                &mut Trend::new(),
                0,
                5 * MINUTE,
                8 * GIB,
                |second, forecast| {
                    assert_eq!(forecast.time_to_full(), None, "at {second} of {seed}");
                },
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn linear(rate in 1.0e3..1.0e9, hours in 1.0..100.0_f64, every in 1..30_u64, minutes in 60..300_u64) {
            let shape = Shape::new(every, |second| second as f64 * rate);
            let taken = minutes * MINUTE;
            let room = hours * HOUR as f64;
            let total = (taken as f64 + room) * rate;
            let left = seconds(shape.after(taken, total as u64));
            prop_assert!((left / (room + every as f64) - 1.0).abs() < 0.02, "{left} {room}");
        }

        /// Noise of a tenth of what is written in six hours.
        #[test]
        fn noisy(seed: u64, hours in 4.0..48.0_f64) {
            let rate = 1.0e6;
            let by_six_hours = rate * 6.0 * HOUR as f64;
            let shape = Shape::new(5, |second| {
                second as f64 * rate + by_six_hours * (1.0 + 0.1 * noise(seed, second))
            });
            let total = (by_six_hours * 2.0 + hours * HOUR as f64 * rate) as u64;
            let left = seconds(shape.after(6 * HOUR, total)) / HOUR as f64;
            // The room that is left is as noisy as the reading it follows from.
            let error = hours * 0.15 + 0.6;
            prop_assert!((left - hours).abs() < error, "{left} {hours}");
        }

        /// Without a trend, noise is none. It stays off the end by more than it is wide.
        #[test]
        fn noise_alone_fills_nothing_soon(seed: u64) {
            let shape = Shape::new(15, |second| GIB as f64 * (4.0 + noise(seed, second)));
            let mut soon = 0;
            shape.run(&mut Trend::new(), 0, 12 * HOUR, 8 * GIB, |_, forecast| {
                soon += u32::from(forecast.time_to_full().is_some());
            });
            prop_assert_eq!(soon, 0);
        }

        /// Batches count by their average once four of them were seen.
        #[test]
        fn stepwise(minutes in 20..80_u64, batch in 1.0e6..1.0e10, phase in 0..80_u64) {
            let steps = |second: u64| ((second + phase * MINUTE) / (minutes * MINUTE)) as f64 * batch;
            let shape = Shape::new(5, steps);
            let now = 6 * HOUR;
            let total = (steps(now - 1) + 40.0 * batch) as u64;
            let left = seconds(shape.after(now, total));
            let right = (40 * minutes * MINUTE) as f64;
            prop_assert!((0.5..2.0).contains(&(left / right)), "{left} {right}");
        }

        /// One large file is no trend, at any time after it.
        #[test]
        fn one_step(size in 0.01..0.9, at in 0..3 * HOUR, every in 1..30_u64) {
            let total = 100 * GIB;
            let shape = Shape::new(every, |second| if second < at { 0.0 } else { total as f64 * size });
            shape.run(&mut Trend::new(), 0, 8 * HOUR, total, |second, forecast| {
                assert_eq!(forecast.time_to_full(), None, "at {second}");
            });
        }

        /// What rises and falls again and again does not fill the volume, however near to the end its teeth are.
        #[test]
        fn sawtooth(minutes in 3..150_u64, height in 0.01..0.9, every in 7..15_u64) {
            let period = minutes * MINUTE;
            let total = 100 * GIB;
            let shape = Shape::new(every, |second| {
                (second % period) as f64 / period as f64 * height * total as f64
            });
            let mut trend = Trend::new();
            shape.run(&mut trend, 0, 7 * HOUR, total, |_, _| {});
            shape.run(&mut trend, 7 * HOUR, 11 * HOUR, total, |second, forecast| {
                assert_eq!(forecast, Forecast::NotFilling, "at {second}");
            });
        }

        /// After a removal the volume is not full any sooner than the rest of its room lasts.
        #[test]
        fn freed(hours in 5.0..30.0_f64, freed in 0.05..0.9, at in 1..14_u64) {
            let at = at * 20 * MINUTE;
            let rate = 100.0 * GIB as f64 / (hours * HOUR as f64);
            let shape = Shape::new(15, |second| {
                let taken = second as f64 * rate;
                if second < at { taken } else { taken - freed * at as f64 * rate }
            });
            let mut trend = Trend::new();
            shape.run(&mut trend, 0, at, 100 * GIB, |_, _| {});
            shape.run(&mut trend, at, at + 7 * HOUR, 100 * GIB, |second, forecast| {
                let room = 100.0 * GIB as f64 - (shape.taken)(second);
                if room > rate * 60.0 && let Some(left) = forecast.time_to_full() {
                    assert!(left.as_secs_f64() > 0.8 * room / rate, "at {second}: {left:?}");
                }
            });
            // Six hours later the removal is out of sight.
            let room = 100.0 * GIB as f64 - (shape.taken)(at + 7 * HOUR - 15);
            let left = trend.forecast(room.max(0.0) as u64).time_to_full();
            prop_assert!((left.unwrap().as_secs_f64() - room.max(0.0) / rate).abs() < 60.0);
        }
    }
}
