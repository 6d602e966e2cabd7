//! The cost of the guard, relative to a reference that is measured in the same run: `cargo bench -p bench-guard --bench guard`.
//!
//! A figure in nanoseconds depends on the machine and its other load as much as on the code. So every row is a
//! difference or a ratio of cases that alternate in rounds of some microseconds, and the reported value is the median
//! over the rounds: a temporary slowdown of the machine affects both. Criterion measures one case for seconds and
//! then the next, and has no ratios; hence this runner.
//!
//! It writes its sections of `BENCHMARKS.md`, and a plot, after about a minute.

#[allow(dead_code, reason = "tests read all")]
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

use bench_support::{Bar, Bars, median, quantiles, section};

use self::{
    cases::{Case, FRAMES},
    grpc::MESSAGES,
};

/// Requests in a batch. Few enough that their heads stay in the cache, as on a server that has just read them, and
/// that freed memory fits the allocator's own cache.
const BATCH: usize = 4;

fn main() {
    if std::env::args().any(|argument| argument == "--bench") {
        let report = report(100_000, 10_000_000);
        section("guard", &report.table);
        section("uploads", &report.times);
        bench_support::plot(
            "uploads",
            &Bars::new(
                "What an upload of 1 KiB takes longer than with the bare service, in process",
                report.bars,
            ),
        );
    } else {
        // `cargo test --benches`: only checks that it runs.
        report(2, 10_000);
    }
}

struct Report {
    /// Against the budgets.
    table: String,
    /// Of the uploads.
    times: String,
    bars: Vec<Bar>,
}

/// Measures all cases, with this many rounds and at most this many scopes.
fn report(rounds: usize, scopes: u32) -> Report {
    let [open_bare, open, open_limit] = measure(cases::downloads(), rounds, BATCH);
    let [bare, limit, statvfs, disk, whole] = cases::uploads();
    let [floor, floor_whole] = cases::floors();
    let all = [bare, limit, statvfs, floor, floor_whole, disk, whole];
    let uploads = measure(all, rounds, BATCH);
    let [bare, limit, statvfs, floor, floor_whole, disk, whole] = &uploads;
    let [long_bare, long] = measure(cases::long_uploads(), rounds / 4, 1);
    let [call_bare, open_call, call] = measure(grpc::unary_calls(), rounds, BATCH);
    let [from_bare, from] = measure(grpc::client_streams(), rounds / 10, 1);
    let [to_bare, to] = measure(grpc::server_streams(), rounds / 10, 1);
    let threads = threads::measure(rounds / 100);
    let quota = quota::measure(rounds / 20, scopes);

    let mut table = Table::default();
    table.adds(
        "a request that is not guarded",
        &open,
        &open_bare,
        &open_limit,
        Some(1.2),
    );
    table.adds("disk guard", disk, bare, floor_whole, Some(1.4));
    table.adds("disk guard", disk, bare, floor, None);
    table.adds("disk guard", disk, bare, limit, None);
    table.adds(whole.name, whole, bare, floor_whole, None);
    table.adds(whole.name, whole, bare, limit, None);
    table.adds(whole.name, whole, bare, statvfs, Some(0.8));

    let frames = FRAMES as f64;
    let added = (long.over(&long_bare) - disk.over(bare)) / frames;
    table.row(
        "a frame of a long upload",
        &format!("+ {added:.1} ns"),
        &format!("moving the frame: {:.1} ns", long_bare.median() / frames),
        added,
        Some((6.0, "6 ns")),
    );
    table.against(
        "a gRPC call that is not guarded",
        open_call.over(&call_bare),
        &call_bare,
        1.0,
    );
    let of_call = call.over(&call_bare);
    table.against(
        "a unary call of 1 KiB, disk guard, memory quota",
        of_call,
        &call_bare,
        1.0,
    );
    // In addition to the cost of the call itself.
    for (what, bare, stream) in [
        ("a message of 1 KiB in a client's stream", &from_bare, &from),
        ("a message of 1 KiB in a server's stream", &to_bare, &to),
    ] {
        table.against(what, stream.over(bare) - of_call, bare, MESSAGES as f64);
    }
    let pair = format!(
        "an uncontended compare-and-swap and its reversal: {:.0} ns",
        threads.pair
    );
    table.row(
        "reserve and release on a volume, one thread",
        &format!(
            "{:.0} ns = {:.1} x",
            threads.alone,
            threads.alone / threads.pair
        ),
        &pair,
        f64::NAN,
        None,
    );
    let as_much = 2.0 * threads.alone / threads.shared;
    table.row(
        "the same, throughput of two threads on one volume",
        &format!("{:.0} ns each: {as_much:.2} x", threads.shared),
        "one thread",
        -as_much,
        Some((-1.5, "at least 1.5 x")),
    );
    let as_long = quota.many / quota.few;
    table.row(
        &format!("reserve and commit in a memory quota of {scopes} scopes"),
        &format!(
            "{as_long:.1} x (at random: {:.1} x)",
            quota.random / quota.few
        ),
        &format!("1000 scopes: {:.0} ns", quota.few),
        as_long,
        Some((1.5, "1.5 x in the cache")),
    );
    table.row(
        "a scope of these, beside its key",
        &format!("{:.0} bytes", quota.bytes),
        "",
        quota.bytes,
        Some((100.0, "100 bytes")),
    );

    let mut times =
        "| an upload of 1 KiB through | takes | adds: median | first to third quartile |\n"
            .to_owned();
    times += "|---|---|---|---|\n";
    let mut bars = vec![];
    for case in &uploads {
        let quartiles = case.over_quartiles(bare);
        let [low, added, high] = quartiles;
        times += &format!(
            "| {} | {:.0} ns | {added:.0} ns | {low:.0} to {high:.0} ns |\n",
            case.name,
            case.median(),
        );
        let bar = Bar::new(case.name, quartiles, format!("{added:.0} ns"));
        bars.push(bar.reference(!case.name.starts_with("disk guard")));
    }
    Report {
        table: table.0,
        times,
        bars,
    }
}

/// The rows of a table in Markdown.
struct Table(String);

impl Default for Table {
    fn default() -> Self {
        let head = "| what | adds | reference in the same run | at most | holds |\n|---|---|---|---|---|\n";
        Self(head.to_owned())
    }
}

impl Table {
    fn row(
        &mut self,
        what: &str,
        measured: &str,
        reference: &str,
        value: f64,
        budget: Option<(f64, &str)>,
    ) {
        let (budget, holds) = match budget {
            None => ("", ""),
            Some((most, budget)) => (budget, if value <= most { "yes" } else { "**no**" }),
        };
        self.0 += &format!("| {what} | {measured} | {reference} | {budget} | {holds} |\n");
    }

    /// What a case adds to the bare service, against what another case adds to it.
    fn adds(
        &mut self,
        what: &str,
        case: &Times,
        bare: &Times,
        reference: &Times,
        most: Option<f64>,
    ) {
        let [added, other] = [case.over(bare), reference.over(bare)];
        let ratio = added / other;
        let budget = most.map(|most| format!("{most} x"));
        self.row(
            what,
            &format!("+ {added:.0} ns = {ratio:.2} x"),
            &format!("{} adds {other:.0} ns", reference.name),
            ratio,
            most.zip(budget.as_deref()),
        );
    }

    /// What is added to each of `parts` of a bare service's request.
    fn against(&mut self, what: &str, added: f64, bare: &Times, parts: f64) {
        let reference = bare.median();
        self.row(
            what,
            &format!("+ {:.0} ns = {:.2} x", added / parts, added / reference),
            &format!("{}: {:.0} ns", bare.name, reference / parts),
            f64::NAN,
            None,
        );
    }
}

/// The time for a request, in each round.
struct Times {
    name: &'static str,
    /// In nanoseconds.
    each: Vec<f64>,
}

impl Times {
    fn median(&self) -> f64 {
        median(self.each.iter().copied())
    }

    /// How much longer than another, in the same round.
    fn over(&self, other: &Self) -> f64 {
        self.over_quartiles(other)[1]
    }

    fn over_quartiles(&self, other: &Self) -> [f64; 3] {
        let rounds = self.each.iter().zip(&other.each);
        quantiles(rounds.map(|(this, other)| this - other))
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
        each: times.next().unwrap_or_default(),
    })
}
