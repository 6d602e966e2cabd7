//! The expectation file, and what differs from it.

use std::{fmt, fs, io, path::Path, process::Command};

use bench_support::callgrind::Each;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../expected.txt");
/// How far a count may be from the one in the file, in per cent.
const SLACK: f64 = 3.0;
/// The file has two digits.
const ROUNDED: f64 = 0.005;

/// What is counted of one way through the guard.
pub(crate) struct Count {
    pub(crate) name: &'static str,
    /// Per request, frame or message.
    pub(crate) each: Each,
    /// Not the guard's own, so it has no line in the file.
    pub(crate) is_reference: bool,
    /// One of those that are compared with each other.
    pub(crate) is_upload: bool,
    /// The instructions that the design allows.
    budget: Option<f64>,
}

impl Count {
    pub(crate) fn new(name: &'static str, each: Each) -> Self {
        Self {
            name,
            each,
            is_reference: false,
            is_upload: false,
            budget: None,
        }
    }

    pub(crate) fn upload(name: &'static str, each: Each) -> Self {
        Self {
            is_upload: true,
            ..Self::new(name, each)
        }
    }

    pub(crate) fn reference(self) -> Self {
        Self {
            is_reference: true,
            ..self
        }
    }

    pub(crate) fn at_most(self, instructions: f64) -> Self {
        Self {
            budget: Some(instructions),
            ..self
        }
    }
}

/// Says on standard error what differs from the file. False if a count has risen, or the file has other lines.
pub(crate) fn check(counts: &[Count]) -> bool {
    let file = fs::read_to_string(FILE).unwrap_or_default();
    let environment = environment();
    let is_comparable = file.lines().any(|line| line == environment);
    if !is_comparable {
        eprintln!(
            "benches/expected.txt is of another compiler, C library or CPU than {environment}: instructions are not compared. \
             `make expect` writes the counts of these.",
            environment = environment.trim_start_matches("# "),
        );
    }
    let mut expected: Vec<(&str, Each)> = file.lines().filter_map(parse).collect();
    let mut holds = true;
    for count in counts.iter().filter(|count| !count.is_reference) {
        let at = expected.iter().position(|(name, _)| *name == count.name);
        let Some((name, expected)) = at.map(|at| expected.swap_remove(at)) else {
            eprintln!("{}: no line in benches/expected.txt", count.name);
            holds = false;
            continue;
        };
        let Each {
            instructions,
            allocations,
        } = count.each;
        holds &= compare(name, "allocations", allocations, expected.allocations);
        if is_comparable {
            holds &= compare(name, "instructions", instructions, expected.instructions);
        }
    }
    for (name, _) in expected {
        eprintln!("{name}: in benches/expected.txt, but not counted");
        holds = false;
    }
    if !holds {
        eprintln!(
            "A count may rise if what it buys is worth that: `make expect` writes the new counts into benches/expected.txt; \
             the commit says why."
        );
    }
    holds
}

/// False if it has risen too far. NaN, which is what a missing count is, has.
fn compare(name: &str, unit: &str, now: f64, expected: f64) -> bool {
    let slack = expected.abs() * SLACK / 100.0 + ROUNDED;
    let change = (now / expected - 1.0) * 100.0;
    let holds = now <= expected + slack;
    if !holds {
        eprintln!(
            "{name}: {now:.2} {unit}, expected {expected:.2} (+ {change:.1} %, allowed + {SLACK} %)"
        );
    } else if now < expected - slack {
        eprintln!(
            "{name}: {now:.2} {unit}, expected {expected:.2} ({change:.1} %): `make expect` lowers the expectation"
        );
    }
    holds
}

fn parse(line: &str) -> Option<(&str, Each)> {
    let (instructions, rest) = line.trim_start().split_once(' ')?;
    let (allocations, name) = rest.trim_start().split_once(' ')?;
    let each = Each {
        instructions: instructions.parse().ok()?,
        allocations: allocations.parse().ok()?,
    };
    Some((name.trim_start(), each))
}

/// Replaces the file.
pub(crate) fn accept(counts: &[Count]) -> io::Result<()> {
    let mut file = format!(
        "# Instructions and allocations of each request, frame or message, over the bare service. `make test` fails if one is\n\
         # more than {SLACK} % above; `make expect` writes this file. Instructions are only compared with the same\n\
         {}\n",
        environment(),
    );
    for Count { name, each, .. } in counts.iter().filter(|count| !count.is_reference) {
        file += &format!(
            "{:8.1} {:6.2}  {name}\n",
            each.instructions, each.allocations
        );
    }
    fs::write(Path::new(FILE), file)
}

/// What instruction counts depend on, besides the source: a line of the file.
fn environment() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    };
    let rustc = said("rustc", "-vV");
    let of_rustc = |key: &str| rustc.lines().find_map(|line| line.strip_prefix(key));
    format!(
        "# rustc {}, {}, {}{}",
        of_rustc("release: ").unwrap_or("?"),
        of_rustc("host: ").unwrap_or("?"),
        said("getconf", "GNU_LIBC_VERSION").trim(),
        // See `bench_support::callgrind`.
        if has_avx2() { ", AVX2" } else { "" },
    )
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// The table of BENCHMARKS.md.
pub(crate) fn table(counts: &[Count]) -> String {
    let mut table = "| over the bare service | instructions | at most | holds | allocations |\n|---|---|---|---|---|\n".to_owned();
    for count in counts {
        let Each {
            instructions,
            allocations,
        } = count.each;
        let (budget, holds) = match count.budget {
            None => (String::new(), ""),
            Some(most) if instructions <= most => (most.to_string(), "yes"),
            Some(most) => (most.to_string(), "**no**"),
        };
        table += &format!(
            "| {} | {} | {budget} | {holds} | {} |\n",
            count.name,
            Short(instructions),
            Short(allocations),
        );
    }
    table
}

/// With at most two digits behind the point, and none that say nothing.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = *self;
        if value >= 100.0 {
            return write!(f, "{value:.0}");
        }
        let value = format!("{value:.2}");
        f.write_str(value.trim_end_matches('0').trim_end_matches('.'))
    }
}
