//! The cost of the guard in an axum server on loopback, relative to the same server without it: `cargo bench -p bench-server`.
//!
//! Five servers share one thread, and one client thread sends to them in turns. So the servers have one processor for
//! themselves, and it is their work that limits the requests per second. All turns of a round are compared with each other;
//! the reported ratios are medians over the rounds.
//!
//! Then the servers run below valgrind, in a process of their own, and count their instructions for a request.
//!
//! It writes its sections of `BENCHMARKS.md`, and a plot, after some minutes. It needs valgrind.

mod client;
mod servers;

use std::{
    io::{self, BufRead, BufReader},
    process::ExitCode,
    time::{Duration, Instant},
};

use bench_support::{
    Bar, Bars,
    callgrind::{self, Counts},
    median, quantiles, section,
};
use tokio::{runtime, task::JoinSet};

use self::{
    client::{Connection, Upload},
    servers::{Servers, VARIANTS},
};

fn main() -> ExitCode {
    servers::log_warnings();
    let has = |given| std::env::args().any(|argument| argument == given);
    if has(callgrind::COUNTED) {
        servers::run_counted();
        return ExitCode::SUCCESS;
    }
    if !has("--bench") {
        // `cargo test --benches`: only checks that it runs.
        loopback(1, Duration::from_millis(1), 1 << 20);
        return ExitCode::SUCCESS;
    }
    if !callgrind::is_installed() {
        eprintln!("not installed, and needed here: valgrind");
        return ExitCode::FAILURE;
    }
    let counts = count().expect("a run below valgrind");
    section("server", &instructions(&counts));
    let settings = loopback(24, Duration::from_millis(150), 64 << 20);
    section("loopback", &throughput(&settings));
    let bars = settings.iter().flat_map(Setting::bars);
    let mut plot = Bars::new(
        "Throughput of an axum server on loopback, relative to the same without a layer",
        bars,
    );
    plot.mark(1.0);
    bench_support::plot("loopback", &plot);
    ExitCode::SUCCESS
}

/// Uploads of one kind, over so many connections.
struct Setting {
    upload: Upload,
    connections: usize,
    /// For each variant, the requests per second in each round.
    rates: [Vec<f64>; VARIANTS.len()],
}

/// Measures all settings.
fn loopback(rounds: usize, turn: Duration, large: usize) -> Vec<Setting> {
    let servers = Servers::start();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut settings = vec![];
    for length in [1 << 10, large] {
        for is_chunked in [false, true] {
            for connections in [1, 16] {
                let upload = Upload { length, is_chunked };
                eprintln!("{upload}, {connections} at a time");
                let rates = runtime.block_on(measure(&servers, upload, connections, rounds, turn));
                settings.push(Setting {
                    upload,
                    connections,
                    rates,
                });
            }
        }
    }
    settings
}

/// The requests per second of each variant, in each round.
async fn measure(
    servers: &Servers,
    upload: Upload,
    connections: usize,
    rounds: usize,
    turn: Duration,
) -> [Vec<f64>; VARIANTS.len()] {
    let mut clients = vec![];
    for address in servers.addresses {
        let mut of_variant = vec![];
        for _ in 0..connections {
            of_variant.push(Connection::open(address, upload).await);
        }
        clients.push(of_variant);
    }
    let mut rates: [Vec<f64>; VARIANTS.len()] = Default::default();
    // One more, which warms up.
    for round in 0..=rounds {
        // The order changes, so that no variant always follows the same one.
        for step in 0..VARIANTS.len() {
            let forth = (step + round / 2) % VARIANTS.len();
            let variant = if round % 2 == 0 {
                forth
            } else {
                VARIANTS.len() - 1 - forth
            };
            let connections = std::mem::take(&mut clients[variant]);
            let (connections, rate) = take_turn(connections, turn).await;
            clients[variant] = connections;
            if round > 0 {
                rates[variant].push(rate);
            }
        }
    }
    rates
}

/// Each connection sends request after request, at least one.
async fn take_turn(connections: Vec<Connection>, turn: Duration) -> (Vec<Connection>, f64) {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        tasks.spawn(async move {
            let mut requests = 0_u32;
            while requests == 0 || begin.elapsed() < turn {
                connection.send().await;
                requests += 1;
            }
            (connection, requests)
        });
    }
    let (connections, requests): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().unzip();
    let requests = f64::from(requests.iter().sum::<u32>());
    (connections, requests / begin.elapsed().as_secs_f64())
}

impl Setting {
    /// How much faster one variant was than another, in the same round.
    fn quartiles(&self, variant: usize, reference: usize) -> [f64; 3] {
        let rounds = self.rates[variant].iter().zip(&self.rates[reference]);
        quantiles(rounds.map(|(rate, reference)| rate / reference))
    }

    fn bars(&self) -> impl Iterator<Item = Bar> {
        (1..VARIANTS.len()).map(|variant| {
            let name = VARIANTS[variant];
            let label = match variant {
                1 => format!("{}, {}×: {name}", self.upload, self.connections),
                _ => name.to_owned(),
            };
            let quartiles = self.quartiles(variant, 0);
            Bar::new(label, quartiles, format!("{:.3}", quartiles[1])).reference(variant == 1)
        })
    }
}

fn throughput(settings: &[Setting]) -> String {
    let mut table = format!(
        "| PUT | at a time | bare, per second | {} / bare | {} / bare | {} / bare | {} / bare | disk guard: at least | holds |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        VARIANTS[1], VARIANTS[2], VARIANTS[3], VARIANTS[4],
    );
    for setting in settings {
        let Setting {
            upload,
            connections,
            rates,
        } = setting;
        let bare = median(rates[0].iter().copied());
        let bare = match upload.length {
            length if length > 1 << 20 => format!("{:.0} MB", bare * length as f64 / 1e6),
            _ => format!("{bare:.0} requests"),
        };
        let ratios = [1, 2, 3, 4].map(|variant| {
            let [low, middle, high] = setting.quartiles(variant, 0);
            format!("{middle:.3} ({low:.3} to {high:.3})")
        });
        let ratios = ratios.join(" | ");
        let is_budgeted = !upload.is_chunked && *connections == 16 && upload.length == 1 << 10;
        let budget = match setting.quartiles(2, 0)[1] {
            _ if !is_budgeted => "| ",
            ratio if ratio >= 0.95 => "0.95 | yes",
            _ => "0.95 | **no**",
        };
        table += &format!("| {upload} | {connections} | {bare} | {ratios} | {budget} |\n");
    }
    table + "\nRatios of the same round: the median, and the first to third quartile.\n"
}

/// Runs the servers in a process below valgrind, and sends to them from this one.
fn count() -> io::Result<Counts> {
    callgrind::count_while(|output| {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let ports: Vec<u16> = line.split_whitespace().flat_map(str::parse).collect();
        client::count(&ports)
    })
}

fn instructions(counts: &Counts) -> String {
    let of = |variant: usize| counts.over(&format!("server/{variant}")).instructions;
    let mut table = "| PUT of 1 KiB in an axum server | instructions | of what the limit adds | at most | holds |\n\
                     |---|---|---|---|---|\n"
        .to_owned();
    let bare = counts.of("server/0").instructions;
    table += &format!("| {} | {bare:.0} |  |  |  |\n", VARIANTS[0]);
    for (variant, most) in [(1, None), (2, Some(1.7)), (3, Some(2.2)), (4, None)] {
        let ratio = of(variant) / of(1);
        let budget = match most {
            None => "| ".to_owned(),
            Some(most) if ratio <= most => format!("{most} x | yes"),
            Some(most) => format!("{most} x | **no**"),
        };
        table += &format!(
            "| {} | + {:.0} | {ratio:.2} x | {budget} |\n",
            VARIANTS[variant],
            of(variant),
        );
    }
    table
}
