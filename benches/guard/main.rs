//! The cost of the guard, relative to a reference that is measured in the same run: `cargo bench -p bench-guard --bench guard`.
//!
//! A figure in nanoseconds depends on the machine and its other load as much as on the code. So every row is a
//! difference or a ratio of cases that alternate in rounds of some microseconds, and the reported value is the median
//! over the rounds: a temporary slowdown of the machine affects both. Criterion measures one case for seconds and
//! then the next, and has no ratios; hence this runner.
//!
//! It prints two tables in Markdown after about a minute.

mod cases;
mod floor;
mod grpc;
mod quota;
mod threads;

/// The service of the gRPC example.
#[allow(dead_code, unreachable_pub)]
mod proto {
    include!("../../examples/tonic-upload/proto/upload.v1.rs");
}

use std::time::Instant;

use bench_support::median;

use self::{
    cases::{Case, FRAMES},
    grpc::MESSAGES,
};

/// Requests in a batch. Few enough that their heads stay in the cache, as on a server that has just read them, and
/// that freed memory fits the allocator's own cache.
const BATCH: usize = 4;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--bench") => report(100_000, 10_000_000),
        // `cargo test --benches`: only checks that it runs.
        _ => report(2, 10_000),
    }
}

/// Measures all cases, with this many rounds and at most this many scopes.
fn report(rounds: usize, scopes: u32) {
    let [open_bare, open] = measure(cases::downloads(), rounds, BATCH);
    let [bare, limit, statvfs, disk, whole] = measure(cases::uploads(), rounds, BATCH);
    let [long_bare, long] = measure(cases::long_uploads(), rounds / 4, 1);
    let [call_bare, open_call, call] = measure(grpc::unary_calls(), rounds, BATCH);
    let [from_bare, from] = measure(grpc::client_streams(), rounds / 10, 1);
    let [to_bare, to] = measure(grpc::server_streams(), rounds / 10, 1);
    let threads = threads::measure(rounds / 100);
    let quota = quota::measure(rounds / 20, scopes);

    println!();
    println!("| what | reference | measured | budget | holds | allocations |");
    println!("|---|---|---|---|---|---|");
    let added = open.over(&open_bare);
    row(
        "a request that is not guarded",
        &format!("the bare service: {:.0} ns", open_bare.median()),
        &format!("+ {added:.1} ns"),
        "+ 15 ns, no allocation",
        added <= 15.0 && open.allocations == 0,
        Some(open.allocations as f64),
    );
    let reference = limit.over(&bare);
    let limit_adds = format!("`RequestBodyLimit` adds {reference:.0} ns");
    let added = disk.over(&bare);
    row(
        "disk guard, Content-Length",
        &limit_adds,
        &format!("+ {added:.0} ns = {:.1} x", added / reference),
        "1.0 x",
        added <= reference,
        Some(disk.allocations as f64),
    );
    let added = whole.over(&bare);
    row(
        "disk, memory quota and handle",
        &limit_adds,
        &format!("+ {added:.0} ns = {:.1} x", added / reference),
        "3 x, at most 3 allocations",
        added <= 3.0 * reference && whole.allocations <= 3,
        Some(whole.allocations as f64),
    );
    let reference = statvfs.over(&bare);
    row(
        "the same",
        &format!("statvfs in the handler adds {reference:.0} ns"),
        &format!("+ {added:.0} ns = {:.2} x", added / reference),
        "a third",
        added <= reference / 3.0,
        None,
    );
    let frames = FRAMES as f64;
    let added = long.over(&long_bare) / frames;
    row(
        "metering a frame",
        &format!("moving the frame: {:.1} ns", long_bare.median() / frames),
        &format!("+ {added:.1} ns"),
        "+ 5 ns",
        added <= 5.0,
        Some(0.0),
    );
    let reference = call_bare.median();
    for (what, case) in [
        ("a gRPC call that is not guarded", &open_call),
        ("a unary call of 1 KiB, disk and memory quota", &call),
    ] {
        let added = case.over(&call_bare);
        row(
            what,
            &format!("the tonic service: {reference:.0} ns"),
            &format!("+ {added:.0} ns = {:.2} x", added / reference),
            "",
            true,
            Some(case.allocations as f64),
        );
    }
    for (what, bare, stream) in [
        ("a message of 1 KiB in a client's stream", &from_bare, &from),
        ("a message of 1 KiB in a server's stream", &to_bare, &to),
    ] {
        // In addition to the cost of the call itself.
        let messages = MESSAGES as f64;
        let reference = bare.median() / messages;
        let added = (stream.over(bare) - call.over(&call_bare)) / messages;
        let allocations = (stream.allocations - call.allocations) as f64 / messages;
        row(
            what,
            &format!("in the tonic service: {reference:.0} ns"),
            &format!("+ {added:.0} ns = {:.2} x", added / reference),
            "",
            true,
            Some(allocations),
        );
    }
    row(
        "reserve and release, one thread",
        &format!("an uncontended CAS pair: {:.0} ns", threads.pair),
        &format!(
            "{:.0} ns = {:.1} x",
            threads.alone,
            threads.alone / threads.pair
        ),
        "",
        true,
        Some(0.0),
    );
    row(
        "the same, two threads on one volume",
        "the same",
        &format!(
            "{:.0} ns = {:.1} x",
            threads.shared,
            threads.shared / threads.pair
        ),
        "3 x",
        threads.shared <= 3.0 * threads.pair,
        Some(0.0),
    );
    row(
        &format!("memory quota of {scopes} scopes"),
        &format!("the same of 1000: {:.0} ns", quota.few),
        &format!(
            "{:.1} x (at random: {:.1} x)",
            quota.many / quota.few,
            quota.random / quota.few
        ),
        "1.5 x in the cache",
        quota.many <= 1.5 * quota.few,
        Some(0.0),
    );
    row(
        "a scope of these, beside its key",
        "",
        &format!("{:.0} bytes", quota.bytes),
        "100 bytes",
        quota.bytes <= 100.0,
        None,
    );

    println!();
    println!("| an upload of 1 KiB through | takes | adds | allocations |");
    println!("|---|---|---|---|");
    for case in [&bare, &limit, &statvfs, &disk, &whole] {
        println!(
            "| {} | {:.0} ns | {:.0} ns | {} |",
            case.name,
            case.median(),
            case.over(&bare),
            case.allocations,
        );
    }
}

fn row(
    what: &str,
    reference: &str,
    measured: &str,
    budget: &str,
    holds: bool,
    allocations: Option<f64>,
) {
    let holds = match (budget, holds) {
        ("", _) => "",
        (_, true) => "yes",
        (_, false) => "**no**",
    };
    let allocations = allocations.map_or(String::new(), |count| count.to_string());
    println!("| {what} | {reference} | {measured} | {budget} | {holds} | {allocations} |");
}

/// The time for a request, in each round.
struct Times {
    name: &'static str,
    allocations: u64,
    /// In nanoseconds.
    each: Vec<f64>,
}

impl Times {
    fn median(&self) -> f64 {
        median(self.each.iter().copied())
    }

    /// How much longer than another, in the same round.
    fn over(&self, other: &Self) -> f64 {
        median(
            self.each
                .iter()
                .zip(&other.each)
                .map(|(this, other)| this - other),
        )
    }
}

/// Alternates the cases, each with `batch` requests at a time. The requests are made before the clock starts.
fn measure<B: 'static, const N: usize>(
    mut cases: [Case<B>; N],
    rounds: usize,
    batch: usize,
) -> [Times; N] {
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(rounds));
    let mut requests = Vec::with_capacity(batch);
    for round in 0..rounds.max(1) {
        // The order changes, so that no case always follows the same one.
        for turn in 0..N {
            let at = (turn * if round % 2 == 0 { 1 } else { N - 1 } + round) % N;
            let case = &mut cases[at];
            requests.extend((0..batch).map(|_| (case.request)()));
            let start = Instant::now();
            case.serve(&mut requests);
            times[at].push(start.elapsed().as_nanos() as f64 / batch as f64);
        }
    }
    let mut times = times.into_iter();
    cases.map(|case| Times {
        name: case.name,
        allocations: case.allocations,
        each: times.next().unwrap_or_default(),
    })
}
