//! A memory quota of few scopes and of many.

use std::{fs, hint::black_box, time::Instant};

use bench_support::median;
use tower_storage_guard::{
    Amount, Scope, Scopes,
    quota::{Answer, Change, Limits, MemoryQuota, QuotaHold, QuotaSource},
};

/// In nanoseconds, for reserving and committing.
pub(crate) struct Quota {
    /// A thousand scopes.
    pub(crate) few: f64,
    /// Many scopes, of which the same few are in use.
    pub(crate) many: f64,
    /// Many scopes, picked at random: cache misses are included.
    pub(crate) random: f64,
    /// The size of a scope in addition to its key, in bytes.
    pub(crate) bytes: f64,
}

const BATCH: usize = 64;

pub(crate) fn measure(rounds: usize, scopes: u32) -> Quota {
    let few = fill(1_000);
    let before = resident();
    let many = fill(scopes);
    let bytes = (resident() - before) / f64::from(scopes) - size_of::<Scope>() as f64;

    let in_use: Vec<Scopes> = (0..BATCH).map(|id| scope(id as u32)).collect();
    let mut at_random = Vec::with_capacity(BATCH);
    let mut random = 1_u32;
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds.max(1) {
        at_random.clear();
        at_random.extend((0..BATCH).map(|_| {
            // Xorshift: each value only has to be far from the last one.
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            scope(random % scopes)
        }));
        times[2].push(time(&many, &at_random));
        // Once before the clock starts, because the random ones have evicted the cache.
        time(&few, &in_use);
        times[0].push(time(&few, &in_use));
        time(&many, &in_use);
        times[1].push(time(&many, &in_use));
    }
    let [few, many, random] = times.map(median);
    Quota {
        few,
        many,
        random,
        bytes,
    }
}

fn scope(id: u32) -> Scopes {
    Scope::from(format_args!("user:{id}")).into()
}

fn fill(scopes: u32) -> MemoryQuota {
    let quota = MemoryQuota::new(Limits::bytes(1 << 40));
    for id in 0..scopes {
        quota.set_used(format_args!("user:{id}"), Amount::bytes(1));
    }
    quota
}

fn time(quota: &MemoryQuota, scopes: &[Scopes]) -> f64 {
    let start = Instant::now();
    for scopes in scopes {
        let hold = quota
            .reserve(scopes, Amount::new(1, 1), Amount::new(1, 1))
            .now()
            .unwrap();
        let hold = black_box(hold).expect("there is room");
        assert!(matches!(hold.commit(Change::ZERO), Answer::Now(())));
    }
    start.elapsed().as_nanos() as f64 / scopes.len() as f64
}

/// The memory of this process, in bytes. None if there is no `/proc`.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.map_or(f64::NAN, |kilobytes| kilobytes * 1024.0)
}
