//! The cost of quotas in a store, relative to the engine itself, and what leases save: `cargo bench -p bench-stores`.
//!
//! It runs real servers on this machine, on free ports and in temporary folders: `redis-server`, PostgreSQL and
//! valgrind have to be installed. Every measurement alternates with its reference, in rounds of less than half a second; the
//! reported value is the median over the rounds, and ratios are of the same round. So other load on the machine
//! affects both.
//!
//! The engines wait for the disk as follows: SQLite at each charge but not for a hold, as the store configures it;
//! PostgreSQL at each commit, by default; Redis never, because it has neither an append-only file nor snapshots here.
//!
//! It writes its section of `BENCHMARKS.md`, and a plot, after some minutes. With `-- --short` it finishes in seconds, and the figures are
//! meaningless.

mod engines;
#[allow(dead_code, reason = "tests cut it, too")]
#[path = "../../../tests/stores/line.rs"]
mod line;
mod load;
mod memory;

use std::{
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bench_support::{Bar, Bars, callgrind, median, section};
use tokio::time::interval;
use tower_storage_guard::{
    Amount, BoxError, Scope, Scopes,
    quota::{QuotaHold, QuotaSource},
    store::{LeasedQuota, Store, StoredQuota},
};

use self::{
    engines::{Engine, FEW, Postgres, Raw, Redis, Sqlite},
    line::Line,
    load::{Dice, Times, Took, Turns, Work, take_turns},
    memory::{AMOUNT, LIMITS},
};

/// The program of the server.
const REDIS: &str = "redis-server";
/// The nodes that share one store.
const NODES: usize = 4;
/// The number of concurrent tasks, where there are several.
const SEVERAL: usize = 16;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == [callgrind::COUNTED] {
        return count();
    }
    let missing = missing();
    if !missing.is_empty() {
        eprintln!(
            "not installed, and needed here: {}. On Debian: apt-get install redis-server postgresql valgrind",
            missing.join(" and "),
        );
        return ExitCode::FAILURE;
    }
    let is_timed = arguments.iter().any(|argument| argument == "--bench");
    // `cargo test --benches`: only checks that it runs.
    let is_short = !is_timed || arguments.iter().any(|argument| argument == "--short");
    let plan = if is_short { Plan::SHORT } else { Plan::LONG };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (text, bars) = runtime.block_on(report(plan));
    if is_short {
        println!("{text}");
    } else {
        section("stores", &text);
        let mut plot = Bars::new(
            "Time to reserve and commit in a store, relative to two of the engine's own updates",
            bars,
        );
        plot.mark(1.0);
        bench_support::plot("stores", &plot);
    }
    ExitCode::SUCCESS
}

/// Programs that have to be installed.
fn missing() -> Vec<&'static str> {
    let mut asked = Command::new(REDIS);
    asked.arg("--version").stdout(Stdio::null());
    let mut missing = Vec::new();
    if asked.status().is_err() {
        missing.push(REDIS);
    }
    if test_support::postgres::find("postgres").is_none() {
        missing.push("postgresql");
    }
    if !callgrind::is_installed() {
        missing.push("valgrind");
    }
    missing
}

#[derive(Clone, Copy)]
struct Plan {
    is_short: bool,
    /// For work that asks a store.
    rounds: usize,
    length: Duration,
    /// For work that is decided in memory: short enough that no lease has to be renewed meanwhile.
    quick_rounds: usize,
    quick_length: Duration,
    /// Until a lease has grown to its full size.
    warm_up: Duration,
    paced: Duration,
    many: u32,
}

impl Plan {
    const LONG: Self = Self {
        is_short: false,
        rounds: 12,
        length: Duration::from_millis(200),
        quick_rounds: 100,
        quick_length: Duration::from_millis(20),
        warm_up: Duration::from_secs(2),
        paced: Duration::from_secs(8),
        many: 1_000_000,
    };
    const SHORT: Self = Self {
        is_short: true,
        rounds: 1,
        length: Duration::from_millis(20),
        quick_rounds: 2,
        quick_length: Duration::from_millis(10),
        warm_up: Duration::from_millis(100),
        paced: Duration::from_millis(200),
        many: 1_000,
    };

    fn turns(self, at_a_time: usize) -> Turns {
        Turns {
            at_a_time,
            rounds: self.rounds,
            length: self.length,
        }
    }

    fn quick_turns(self, at_a_time: usize) -> Turns {
        Turns {
            at_a_time,
            rounds: self.quick_rounds,
            length: self.quick_length,
        }
    }
}

/// The rows of all tables, the notes below them, and the bars of the plot.
#[derive(Default)]
struct Report {
    direct: Vec<String>,
    leased: Vec<String>,
    paced: Vec<String>,
    nodes: Vec<String>,
    many: Vec<String>,
    notes: Vec<String>,
    bars: Vec<Bar>,
}

/// The tables in Markdown, and what is plotted of them.
async fn report(plan: Plan) -> (String, Vec<Bar>) {
    let mut report = Report::default();
    measure::<Sqlite>(plan, &mut report).await;
    measure::<Postgres>(plan, &mut report).await;
    direct::<Postgres<false>>(&Postgres::start().await, plan, &mut report).await;
    measure::<Redis>(plan, &mut report).await;
    let [memory, leased] = in_memory(plan).await;

    let many = plan.many;
    let mut text = table(
        &[
            "reserve and commit, 100 scopes",
            "at a time",
            "per second",
            "median",
            "99 %",
            "round trips per thousand",
            "the engine's own update, twice: per second",
            "median",
            "99 %",
            "as long as it",
            "the engine's own tool: updates per second",
        ],
        &report.direct,
    );
    text += &table(
        &[
            "leased, one hot scope",
            "at a time",
            "per second",
            "median",
            "99 %",
            "`MemoryQuota`: per second",
            "median",
            "99 %",
            "as long as it",
            "round trips per thousand",
        ],
        &report.leased,
    );
    text += &table(
        &[
            "leased, one hot scope: round trips per thousand",
            "250 requests per second",
            "1000 per second",
        ],
        &report.paced,
    );
    text += &table(
        &[
            "four nodes, one hot scope, 16 at a time",
            "",
            "per second, all together",
            "median",
            "99 %",
            "round trips per thousand",
            "reference",
            "per second",
            "as long as it",
        ],
        &report.nodes,
    );
    text += &table(
        &[
            "reserve and commit, 16 at a time",
            "of 100 scopes: per second",
            "median",
            "99 %",
            &format!("of {many}: per second"),
            "median",
            "99 %",
            "as long as of 100",
            "a scope takes",
        ],
        &report.many,
    );
    let counts = callgrind::count().expect("a run below valgrind");
    let row = |name, took, key, allocations| {
        let instructions = counts.of(key).instructions;
        format!(
            "| {name} | {} | {instructions:.0} | {allocations} |",
            Took(took)
        )
    };
    text += &table(
        &[
            "reserve and commit in memory, one thread",
            "takes",
            "instructions",
            "allocations",
        ],
        &[
            row(
                "`MemoryQuota`",
                memory,
                "memory",
                memory::ALLOCATIONS_OF_MEMORY,
            ),
            row(
                "`LeasedQuota`",
                leased,
                "leased",
                memory::ALLOCATIONS_OF_LEASED,
            ),
        ],
    );
    for note in report.notes {
        text += &format!("\n{note}\n");
    }
    (text, report.bars)
}

fn table(head: &[&str], rows: &[String]) -> String {
    let line = "---|".repeat(head.len());
    format!("| {} |\n|{line}\n{}\n\n", head.join(" | "), rows.join("\n"))
}

async fn measure<E: Engine>(plan: Plan, report: &mut Report) {
    let engine = E::start().await;
    direct(&engine, plan, report).await;
    leased(&engine, plan, report).await;
    paced(&engine, plan, report).await;
    nodes(&engine, plan, report).await;
    drop(engine);
    many::<E>(plan, report).await;
}

impl Report {
    /// Failed runs are not in the figures.
    fn note(&mut self, what: &str, times: &Times) {
        if let Some((failures, failure)) = times.failures() {
            self.notes.push(format!(
                "{what}: {failures} failed beside {} that did not, the first with: {failure}",
                times.count()
            ));
        }
    }
}

/// Reserving and committing, in any of this many scopes of this name.
struct Quota<Q> {
    nodes: Arc<[Q]>,
    name: &'static str,
    scopes: u32,
}

impl<Q> Quota<Q> {
    fn new(nodes: impl IntoIterator<Item = Q>, name: &'static str, scopes: u32) -> Self {
        Self {
            nodes: nodes.into_iter().collect(),
            name,
            scopes,
        }
    }
}

impl<Q> Clone for Quota<Q> {
    fn clone(&self) -> Self {
        Self {
            nodes: Arc::clone(&self.nodes),
            ..*self
        }
    }
}

impl<Q> Work for Quota<Q>
where
    Q: QuotaSource<Future: Send> + Send + Sync + 'static,
{
    async fn once(&self, who: usize, dice: &mut Dice) -> Result<(), BoxError> {
        let scope = Scope::from(format_args!("{}:{}", self.name, dice.roll(self.scopes)));
        let node = &self.nodes[who % self.nodes.len()];
        let answer = node.reserve(&Scopes::from(scope), AMOUNT, Amount::ZERO);
        answer.await?.commit(AMOUNT.into()).await;
        Ok(())
    }
}

/// The same number of round trips without the store: two updates, one after the other.
struct Twice<R> {
    nodes: Arc<[R]>,
    numbers: u32,
}

impl<R> Clone for Twice<R> {
    fn clone(&self) -> Self {
        Self {
            nodes: Arc::clone(&self.nodes),
            ..*self
        }
    }
}

impl<R: Raw> Work for Twice<R> {
    async fn once(&self, who: usize, dice: &mut Dice) -> Result<(), BoxError> {
        let (node, number) = (&self.nodes[who % self.nodes.len()], dice.roll(self.numbers));
        node.add(number, false).await?;
        node.add(number, true).await
    }
}

/// Every request asks the store.
async fn direct<E: Engine>(engine: &E, plan: Plan, report: &mut Report) {
    let (stored, line) = node(engine).await;
    let ours = Quota::new([stored], "direct", FEW);
    let theirs = Twice {
        nodes: [engine.raw().await].into(),
        numbers: FEW,
    };
    for at_a_time in [1, SEVERAL] {
        say(&format!("{}, direct, {at_a_time} at a time", E::NAME));
        let turns = plan.turns(at_a_time);
        warm_up(&ours, &theirs, turns, Duration::ZERO).await;
        let before = line.trips();
        let [ours, theirs] = take_turns(&ours, &theirs, turns).await;
        let trips = per_thousand(line.trips() - before, ours.count());
        let tool = engine.by_its_own_tool(at_a_time, plan.is_short).await;
        let tool = tool.map_or("none here".into(), |rate| format!("{rate:.0}"));
        let label = format!("{}, {at_a_time} at a time", E::NAME);
        let quartiles = ours.quartiles_as_often(&theirs);
        let bar = Bar::new(label, quartiles, format!("{:.2} x", quartiles[1]));
        report.bars.push(bar);
        report.direct.push(format!(
            "| {} | {at_a_time} | {} | {trips} | {} | {:.2} x | {tool} |",
            E::NAME,
            figures(&ours),
            figures(&theirs),
            ours.times_as_often(&theirs),
        ));
        report.note(E::NAME, &ours);
        report.note("its own update", &theirs);
    }
}

fn figures(times: &Times) -> String {
    let (rate, median, most) = (times.rate(), times.within(500), times.within(990));
    format!("{rate:.0} | {median} | {most}")
}

/// A node, and its connection to the store, which counts the calls.
async fn node<E: Engine>(engine: &E) -> (StoredQuota<ALine<E>>, ALine<E>) {
    let store = Arc::new(engine.store().await);
    let line = Arc::new(Line::new(store, Duration::ZERO));
    (StoredQuota::new(Arc::clone(&line), LIMITS), line)
}

type ALine<E> = Arc<Line<<E as Engine>::Store>>;

fn per_thousand(trips: u64, requests: u64) -> String {
    let share = trips as f64 * 1e3 / requests as f64;
    let digits = if share < 0.1 { 4 } else { 1 };
    format!("{share:.digits$}")
}

/// Most requests are decided in memory, at full speed.
async fn leased<E: Engine>(engine: &E, plan: Plan, report: &mut Report) {
    let (stored, line) = node(engine).await;
    let ours = Quota::new([LeasedQuota::new(stored)], "leased", 1);
    let memory = Quota::new([memory::memory()], "leased", 1);
    for at_a_time in [1, SEVERAL] {
        say(&format!("{}, leased, {at_a_time} at a time", E::NAME));
        let turns = plan.quick_turns(at_a_time);
        warm_up(&ours, &memory, turns, plan.warm_up).await;
        let before = line.trips();
        let [ours, memory] = take_turns(&ours, &memory, turns).await;
        report.leased.push(format!(
            "| {} | {at_a_time} | {} | {} | {:.1} x | {} |",
            E::NAME,
            figures(&ours),
            figures(&memory),
            ours.times_as_often(&memory),
            per_thousand(line.trips() - before, ours.count()),
        ));
        report.note("leased", &ours);
    }
}

/// Warms up for this long, and at least once: until tables are created, and leases have grown. Returns the number of
/// requests.
async fn warm_up(ours: &impl Work, other: &impl Work, turns: Turns, length: Duration) -> u64 {
    let (begin, mut requests) = (Instant::now(), 0);
    let turns = Turns { rounds: 1, ..turns };
    loop {
        let [ours, _] = take_turns(ours, other, turns).await;
        requests += ours.count();
        if begin.elapsed() >= length {
            return requests;
        }
    }
}

/// How often leases ask the store if requests arrive one by one.
async fn paced<E: Engine>(engine: &E, plan: Plan, report: &mut Report) {
    say(&format!("{}, leased, at a pace", E::NAME));
    let [slow, fast] = [250, 1_000].map(|per_second| one_by_one(engine, per_second, plan));
    let (slow, fast) = tokio::join!(slow, fast);
    let row = format!("| {} | {slow} | {fast} |", E::NAME);
    report.paced.push(row);
}

async fn one_by_one<E: Engine>(engine: &E, per_second: u32, plan: Plan) -> String {
    let (stored, line) = node(engine).await;
    let leased = LeasedQuota::new(stored);
    let scope = Scopes::from(Scope::from(format_args!("paced:{per_second}")));
    let mut pace = interval(Duration::from_secs(1) / per_second);
    let mut requests = async |length| {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < length {
            pace.tick().await;
            let answer = leased.reserve(&scope, AMOUNT, Amount::ZERO).await;
            answer.expect("room").commit(AMOUNT.into()).await;
            count += 1;
        }
        count
    };
    requests(plan.warm_up).await;
    let before = line.trips();
    let count = requests(plan.paced).await;
    per_thousand(line.trips() - before, count)
}

/// All nodes use the same scope. They are handles with connections of their own, in this process.
async fn nodes<E: Engine>(engine: &E, plan: Plan, report: &mut Report) {
    say(&format!("{}, four nodes", E::NAME));
    let (mut stored, mut raw, mut leased, mut lines) = (vec![], vec![], vec![], vec![]);
    for _ in 0..NODES {
        let (node, line) = self::node(engine).await;
        leased.push(LeasedQuota::new(node.clone()));
        stored.push(node);
        lines.push(line);
        raw.push(engine.raw().await);
    }
    let trips = || lines.iter().map(|line| line.trips()).sum::<u64>();

    let ours = Quota::new(stored, "direct-hot", 1);
    let theirs = Twice {
        nodes: raw.into(),
        numbers: 1,
    };
    let turns = plan.turns(SEVERAL);
    let earlier = warm_up(&ours, &theirs, turns, Duration::ZERO).await;
    let before = trips();
    let [times, others] = take_turns(&ours, &theirs, turns).await;
    report.nodes.push(format!(
        "| {} | direct | {} | {} | the engine's own update of one row, twice | {:.0} | {:.2} x |",
        E::NAME,
        figures(&times),
        per_thousand(trips() - before, times.count()),
        others.rate(),
        times.times_as_often(&others),
    ));
    report.note("four nodes, direct", &times);
    report.note("four nodes, its own update", &others);
    is_charged(&ours.nodes[0], "direct-hot:0", earlier + times.count()).await;

    let ours = Quota::new(leased, "leased-hot", 1);
    let memory = Quota::new([memory::memory()], "leased-hot", 1);
    let turns = plan.quick_turns(SEVERAL);
    let earlier = warm_up(&ours, &memory, turns, plan.warm_up).await;
    let before = trips();
    let [times, others] = take_turns(&ours, &memory, turns).await;
    report.nodes.push(format!(
        "| {} | leased | {} | {} | one `MemoryQuota` | {:.0} | {:.1} x |",
        E::NAME,
        figures(&times),
        per_thousand(trips() - before, times.count()),
        others.rate(),
        times.times_as_often(&others),
    ));
    report.note("four nodes, leased", &times);
    for node in &*ours.nodes {
        node.settled().await;
    }
    let stored = ours.nodes[0].stored();
    is_charged(stored, "leased-hot:0", earlier + times.count()).await;
}

/// Checks that exactly the measured work was done.
async fn is_charged<S: Store>(stored: &StoredQuota<S>, scope: &str, requests: u64) {
    let usage = stored.usage(scope).await.expect("a store");
    assert_eq!(usage.used, Amount::new(requests << 10, requests), "{scope}");
}

/// A million accounts.
async fn many<E: Engine>(plan: Plan, report: &mut Report) {
    say(&format!("{}, {} scopes", E::NAME, plan.many));
    let (few, many) = (E::start().await, E::start().await);
    few.fill(FEW).await;
    let before = few.size().await;
    many.fill(plan.many).await;
    let size = many.size().await.saturating_sub(before) as f64 / f64::from(plan.many - FEW);
    let quota = async |engine: &E, scopes| {
        let store = engine.store().await;
        // The store has to read rows that were inserted by hand.
        let last = Scope::from(format_args!("user:{}", scopes - 1));
        let account = store.account(&last).await.expect("a store");
        assert_eq!(account.used, Amount::new(1, 1).into());
        Quota::new([StoredQuota::new(store, LIMITS)], "user", scopes)
    };
    let of_few = quota(&few, FEW).await;
    let of_many = quota(&many, plan.many).await;
    warm_up(&of_few, &of_many, plan.turns(SEVERAL), Duration::ZERO).await;
    let [of_few, of_many] = take_turns(&of_few, &of_many, plan.turns(SEVERAL)).await;
    report.many.push(format!(
        "| {} | {} | {} | {:.2} x | {size:.0} bytes |",
        E::NAME,
        figures(&of_few),
        figures(&of_many),
        of_many.times_as_often(&of_few),
    ));
    report.note("few scopes", &of_few);
    report.note("many scopes", &of_many);
}

/// In nanoseconds: of a memory quota, and of leases that can serve the request.
async fn in_memory(plan: Plan) -> [f64; 2] {
    const BATCH: u32 = 64;
    say("in memory");
    let folder = tempfile::tempdir().expect("a folder");
    let (memory, leased) = (memory::memory(), memory::leased(folder.path()).await);
    let scope = memory::scope();
    let mut times = [vec![], vec![]];
    for _ in 0..plan.rounds * 1_000 {
        times[0].extend(batch(&memory, &scope, BATCH));
        times[1].extend(batch(&leased, &scope, BATCH));
        // If the lease had too little, the store is asked, and gives more.
        let answer = leased.reserve(&scope, AMOUNT, Amount::ZERO).await;
        drop(answer.expect("room"));
    }
    times.map(median)
}

/// None if a request was not decided in memory.
fn batch(quota: &impl QuotaSource, scope: &Scopes, requests: u32) -> Option<f64> {
    let begin = Instant::now();
    let is_in_memory = (0..requests).all(|_| memory::once(quota, scope));
    is_in_memory.then(|| begin.elapsed().as_nanos() as f64 / f64::from(requests))
}

/// Reserves and commits for `callgrind`.
fn count() -> ExitCode {
    const REQUESTS: u32 = 100;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    // Only this thread runs meanwhile, and it does not wait.
    runtime.block_on(async {
        let (memory, leased) = (memory::memory(), memory::leased(folder.path()).await);
        let scope = memory::scope();
        count_batch("memory", REQUESTS, || batch(&memory, &scope, REQUESTS));
        count_batch("leased", REQUESTS, || batch(&leased, &scope, REQUESTS));
    });
    ExitCode::SUCCESS
}

fn count_batch(name: &str, requests: u32, batch: impl Fn() -> Option<f64>) {
    // What happens once in a process or a thread.
    batch();
    callgrind::counted(|| {
        batch().expect("all is decided in memory");
    });
    callgrind::end_of_count(name, requests, 0);
}

/// Prints the progress.
fn say(what: &str) {
    eprintln!("{what}");
}
