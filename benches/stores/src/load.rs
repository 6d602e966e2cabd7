//! Work that is repeated by several tasks at a time, alternating with a reference.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bench_support::{median, quantiles};
use tokio::task::JoinSet;
use tower_storage_guard::BoxError;

/// The work that is repeated.
pub(crate) trait Work: Clone + Send + 'static {
    /// Runs once, in one of the concurrent tasks.
    fn once(
        &self,
        who: usize,
        dice: &mut Dice,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// How two kinds of work alternate.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    pub(crate) at_a_time: usize,
    pub(crate) rounds: usize,
    pub(crate) length: Duration,
}

/// The results of one kind of work.
#[derive(Default)]
pub(crate) struct Times {
    /// The rate per second, in each round.
    rates: Vec<f64>,
    /// The duration of each run, in nanoseconds.
    each: Vec<u64>,
    failures: u64,
    failure: Option<String>,
}

impl Times {
    /// The rate per second.
    pub(crate) fn rate(&self) -> f64 {
        median(self.rates.iter().copied())
    }

    /// The ratio of the other's rate to this one, in the same round.
    pub(crate) fn times_as_often(&self, other: &Self) -> f64 {
        self.quartiles_as_often(other)[1]
    }

    pub(crate) fn quartiles_as_often(&self, other: &Self) -> [f64; 3] {
        let rounds = self.rates.iter().zip(&other.rates);
        quantiles(rounds.map(|(this, other)| other / this))
    }

    /// The duration that this many per thousand did not exceed.
    pub(crate) fn within(&self, of_a_thousand: usize) -> Took {
        if self.each.is_empty() {
            return Took(f64::NAN);
        }
        let mut each = self.each.clone();
        let index = (each.len() - 1) * of_a_thousand / 1_000;
        Took(*each.select_nth_unstable(index).1 as f64)
    }

    /// The number of runs.
    pub(crate) fn count(&self) -> u64 {
        self.each.len() as u64
    }

    /// The number of failures, and the first error.
    pub(crate) fn failures(&self) -> Option<(u64, &str)> {
        let failure = self.failure.as_deref()?;
        Some((self.failures, failure))
    }

    async fn add(&mut self, work: &impl Work, turns: Turns, seed: usize) {
        let begin = Instant::now();
        let end = begin + turns.length;
        let mut workers = JoinSet::new();
        for who in 0..turns.at_a_time {
            let dice = Dice((seed * turns.at_a_time + who) as u64);
            workers.spawn(until(end, work.clone(), who, dice));
        }
        let before = self.each.len();
        while let Some(worker) = workers.join_next().await {
            let (each, failures, failure) = worker.expect("no work panics");
            self.each.extend(each);
            self.failures += failures;
            self.failure = self.failure.take().or(failure);
        }
        let count = (self.each.len() - before) as f64;
        self.rates.push(count / begin.elapsed().as_secs_f64());
    }
}

/// Alternates the two, and swaps the order in each round.
pub(crate) async fn take_turns(one: &impl Work, other: &impl Work, turns: Turns) -> [Times; 2] {
    let [mut times, mut others] = <[Times; 2]>::default();
    for round in 0..turns.rounds {
        if round % 2 == 0 {
            times.add(one, turns, round).await;
            others.add(other, turns, round).await;
        } else {
            others.add(other, turns, round).await;
            times.add(one, turns, round).await;
        }
    }
    [times, others]
}

async fn until(
    end: Instant,
    work: impl Work,
    who: usize,
    mut dice: Dice,
) -> (Vec<u64>, u64, Option<String>) {
    let (mut each, mut failures, mut failure) = (Vec::with_capacity(1 << 12), 0, None);
    loop {
        // Work that is decided in memory never yields by itself, unlike requests.
        for _ in 0..16 {
            let start = Instant::now();
            if start >= end {
                return (each, failures, failure);
            }
            match work.once(who, &mut dice).await {
                Ok(()) => each.push(start.elapsed().as_nanos() as u64),
                Err(error) => {
                    failures += 1;
                    failure.get_or_insert_with(|| error.to_string());
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Formats a time in nanoseconds for people.
#[derive(Clone, Copy)]
pub(crate) struct Took(pub(crate) f64);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ns if ns < 1e3 => write!(f, "{ns:.0} ns"),
            ns if ns < 1e4 => write!(f, "{:.1} µs", ns / 1e3),
            ns if ns < 1e6 => write!(f, "{:.0} µs", ns / 1e3),
            ns if ns < 1e7 => write!(f, "{:.1} ms", ns / 1e6),
            ns => write!(f, "{:.0} ms", ns / 1e6),
        }
    }
}

/// Pseudo-random numbers with a fixed seed.
pub(crate) struct Dice(u64);

impl Dice {
    /// A number below `end`. This is SplitMix64.
    pub(crate) fn roll(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((number ^ (number >> 31)) % u64::from(end)) as u32
    }
}
