//! Instructions and allocations per request, which are exact where times are not: `cargo bench -p bench-guard --bench count`.
//!
//! With `-- --check` it fails if a count has risen by more than 3 % over `benches/expected.txt` (`make counts`), and with
//! `-- --accept` it writes that file (`make expect`). It needs valgrind.
//!
//! All counts are over the bare service in the same run. Instructions depend on the compiler and the C library, so they
//! are only compared where both are those of the file; allocations are always compared.

mod allocator;
#[allow(dead_code, reason = "tests and the timed program read all")]
mod cases;
mod expected;
mod floor;
mod grpc;
mod observed;

/// The service of the gRPC example.
#[allow(dead_code, unreachable_pub)]
mod proto {
    include!("../../examples/tonic-upload/proto/upload.v1.rs");
}

use std::{env, process::ExitCode};

use bench_support::{
    Bar, Bars,
    callgrind::{self, Counts, Each},
    section,
};
use tower_storage_guard::{
    Amount, Scope, Scopes,
    quota::{Answer, Change, Limits, MemoryQuota, QuotaHold, QuotaSource},
};

use self::{
    allocator::allocations,
    cases::{Case, FRAMES},
    expected::Count,
    grpc::MESSAGES,
};

/// How often each case is counted.
const COUNTS: usize = 9;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let has = |argument| arguments.iter().any(|given| given == argument);
    if has(callgrind::COUNTED) {
        run(20);
        return ExitCode::SUCCESS;
    }
    let [is_check, is_accept] = [has("--check"), has("--accept")];
    if !(is_check || is_accept || has("--bench")) {
        // `cargo test --benches`: only checks that it runs.
        run(1);
        return ExitCode::SUCCESS;
    }
    if !callgrind::is_installed() {
        eprintln!("not installed, and needed here: valgrind");
        return ExitCode::FAILURE;
    }
    let counts = callgrind::count().expect("a run below valgrind");
    let counts = differences(&counts);
    if is_accept {
        expected::accept(&counts).expect("a file that can be written");
    } else if is_check && !expected::check(&counts) {
        return ExitCode::FAILURE;
    }
    if is_accept || is_check {
        print!("{}", expected::table(&counts));
    } else {
        section("instructions", &expected::table(&counts));
        let title = "Instructions for an upload of 1 KiB, over the bare service, in process";
        let uploads = counts.iter().filter(|count| count.is_upload);
        let bars = uploads.map(|count| {
            let Each { instructions, .. } = count.each;
            Bar::exact(count.name, instructions, format!("{instructions:.0}"))
                .reference(count.is_reference)
        });
        bench_support::plot("instructions", &Bars::new(title, bars));
    }
    ExitCode::SUCCESS
}

/// What the process below valgrind has counted, over the bare service.
fn differences(counts: &Counts) -> Vec<Count> {
    let [disk, call] = [counts.over("upload/3"), counts.over("call/2")];
    let frame = (counts.over("long/1") - disk) / FRAMES as f64;
    let message = |stream| (counts.over(stream) - call) / MESSAGES as f64;
    vec![
        Count::upload("tower-http `RequestBodyLimit`", counts.over("upload/1")).reference(),
        Count::upload("floor guard", counts.over("upload/5")).reference(),
        Count::upload("floor guard, Accept, handle", counts.over("upload/6")).reference(),
        Count::new("a request that is not guarded", counts.over("download/1")),
        Count::upload("disk guard", disk).at_most(2000.0),
        Count::upload("disk guard, memory quota, handle", counts.over("upload/4")).at_most(2900.0),
        Count::upload(
            "disk guard, memory quota, handle, metrics",
            counts.over("upload/7"),
        ),
        Count::new("a frame of a long upload", frame).at_most(75.0),
        Count::new("a gRPC call that is not guarded", counts.over("call/1")),
        Count::new("a unary gRPC call, disk guard, memory quota", call),
        Count::new("a message in a client's stream", message("from/1")),
        Count::new("a message in a server's stream", message("to/1")),
        Count::new("reserve and commit in `MemoryQuota`", counts.of("memory/0")),
    ]
}

/// Serves this many requests of each case. Where requests have many messages, a few are enough.
fn run(requests: u32) {
    let few = requests.div_ceil(10);
    serve_all("download", cases::downloads(), requests);
    let uploads = cases::uploads().into_iter().chain(cases::floors());
    let uploads = uploads.chain([observed::upload()]);
    serve_all("upload", uploads, requests);
    serve_all("long", cases::long_uploads(), few);
    serve_all("call", grpc::unary_calls(), requests);
    serve_all("from", grpc::client_streams(), few);
    serve_all("to", grpc::server_streams(), few);

    let limits = Limits::bytes(1 << 60).objects(1 << 60);
    let quota = MemoryQuota::new(limits);
    let scopes = Scopes::from(Scope::from("user:42"));
    let amount = Amount::new(1, 1);
    counts(
        "memory/0",
        requests,
        || (),
        |()| {
            let hold = quota.reserve(&scopes, amount, amount).now();
            let hold = hold.unwrap().expect("there is room");
            assert!(matches!(hold.commit(Change::ZERO), Answer::Now(())));
        },
    );
}

fn serve_all<B: 'static>(group: &str, cases: impl IntoIterator<Item = Case<B>>, requests: u32) {
    for (index, mut case) in cases.into_iter().enumerate() {
        let mut one = Vec::with_capacity(1);
        let request = case.request;
        counts(&format!("{group}/{index}"), requests, request, |request| {
            one.push(request);
            case.serve(&mut one);
        });
    }
}

/// Counts `run`, but not `make`, several times.
fn counts<T>(name: &str, requests: u32, make: impl Fn() -> T, mut run: impl FnMut(T)) {
    // What happens once in a process or a thread.
    run(make());
    for _ in 0..COUNTS {
        let before = allocations();
        let mut made_by = 0;
        for _ in 0..requests {
            let before = allocations();
            let mut made = Some(make());
            made_by += allocations() - before;
            callgrind::counted(|| made.take().into_iter().for_each(&mut run));
        }
        let served_by = allocations() - before - made_by;
        callgrind::end_of_count(name, requests, served_by);
    }
}
