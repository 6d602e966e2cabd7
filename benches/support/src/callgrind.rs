//! Instructions, by valgrind's callgrind. They are exact: two runs of a program differ by less than one per cent.
//!
//! They depend on the compiler and on the C library, but hardly on the machine: the C library chooses its instructions by the
//! CPU, and valgrind shows it the same one on all machines that have AVX2.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Read},
    ops::{Div, Sub},
    process::{ChildStdout, Command, Stdio},
};

use crate::median;

/// The argument of a process that is counted.
pub const COUNTED: &str = "--counted";

/// What is freed goes to the list that is allocated from next, however much it is. By default glibc puts the eighth block of a
/// size somewhere else, which takes more instructions.
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=127");

/// The counts for one request.
#[derive(Clone, Copy)]
pub struct Each {
    pub instructions: f64,
    pub allocations: f64,
}

impl Each {
    pub const NONE: Self = Self {
        instructions: f64::NAN,
        allocations: f64::NAN,
    };

    fn median(all: &[Self]) -> Self {
        Self {
            instructions: median(all.iter().map(|each| each.instructions)),
            allocations: median(all.iter().map(|each| each.allocations)),
        }
    }
}

impl Sub for Each {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            instructions: self.instructions - other.instructions,
            allocations: self.allocations - other.allocations,
        }
    }
}

impl Div<f64> for Each {
    type Output = Self;

    fn div(self, parts: f64) -> Self {
        Self {
            instructions: self.instructions / parts,
            allocations: self.allocations / parts,
        }
    }
}

/// What a program has counted of each of its cases.
pub struct Counts(BTreeMap<String, Each>);

impl Counts {
    /// [`Each::NONE`] if there is no such case.
    pub fn of(&self, name: &str) -> Each {
        self.0.get(name).copied().unwrap_or(Each::NONE)
    }

    /// Of a case `group/index`, over the first one of the group.
    pub fn over(&self, name: &str) -> Each {
        let group = name.split('/').next().unwrap_or_default();
        self.of(name) - self.of(&format!("{group}/0"))
    }
}

/// Whether `valgrind` is installed.
pub fn is_installed() -> bool {
    let asked = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// Runs this program with [`COUNTED`] below callgrind until its end, and reads its counts.
///
/// # Errors
///
/// If the program cannot be run, fails, or leaves no counts.
pub fn count() -> io::Result<Counts> {
    count_while(|_| Ok(()))
}

/// As [`count`], while `client` asks the program for what it counts. It may read the beginning of the program's output.
///
/// # Errors
///
/// Those of `client`, too.
pub fn count_while(client: impl FnOnce(&mut ChildStdout) -> io::Result<()>) -> io::Result<Counts> {
    let folder = env::temp_dir().join(format!("bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let file = folder.join("counts");
    let mut program = Command::new("valgrind")
        .env(TUNABLES.0, TUNABLES.1)
        .args(["--tool=callgrind", "-q", "--combine-dumps=yes"])
        .args(["--toggle-collect=bench_support_counted"])
        .args(["--dump-before=bench_support_end_of_count"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(env::current_exe()?)
        .arg(COUNTED)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = program.stdout.take().expect("it is piped");
    let asked = client(&mut output);
    if asked.is_err() {
        program.kill()?;
    }
    let mut printed = String::new();
    output.read_to_string(&mut printed)?;
    let status = program.wait()?;
    let counts = fs::read_to_string(file);
    fs::remove_dir_all(&folder)?;
    asked?;
    if !status.success() {
        return Err(io::Error::other(format!("the counted program: {status}")));
    }
    read(&printed, &counts?)
}

/// The program has printed a line for each count, and callgrind has written a total for each.
///
/// Of the counts of a case, the median is taken: now and then a request meets what happens once in a while, such as a map
/// that grows.
fn read(printed: &str, counts: &str) -> io::Result<Counts> {
    let totals = counts
        .lines()
        .filter_map(|line| line.strip_prefix("totals: "));
    let mut cases: BTreeMap<&str, Vec<Each>> = BTreeMap::new();
    for (line, instructions) in printed.lines().zip(totals) {
        let words: Vec<&str> = line.split(' ').collect();
        let (Ok(instructions), &[name, requests, allocations]) = (instructions.parse(), &*words)
        else {
            return Err(io::Error::other(format!("{line}: {instructions}")));
        };
        let [requests, allocations] =
            [requests, allocations].map(|n| n.parse().unwrap_or(f64::NAN));
        let all = Each {
            instructions,
            allocations,
        };
        cases.entry(name).or_default().push(all / requests);
    }
    let cases = cases
        .into_iter()
        .map(|(name, counts)| (name.to_owned(), Each::median(&counts)));
    Ok(Counts(cases.collect()))
}

/// Runs something whose instructions count.
pub fn counted(mut run: impl FnMut()) {
    bench_support_counted(&mut run);
}

/// Ends one count, of so many requests, and begins another.
pub fn end_of_count(name: &str, requests: u32, allocations: u64) {
    bench_support_end_of_count();
    println!("{name} {requests} {allocations}");
}

// Callgrind knows these two by their names.
#[inline(never)]
#[unsafe(no_mangle)]
extern "Rust" fn bench_support_counted(run: &mut dyn FnMut()) {
    run();
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "Rust" fn bench_support_end_of_count() {
    std::hint::black_box(());
}
