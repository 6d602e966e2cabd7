//! The files that a bench writes: its sections of `BENCHMARKS.md`, and the plots beside it.

use std::{fs, process::Command};

use crate::Bars;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Prints what was measured, and writes it into `BENCHMARKS.md`, between the two comments of this name. What is outside of the
/// comments is written by hand.
///
/// # Panics
///
/// If the file has no such comments, or cannot be written.
pub fn section(name: &str, markdown: &str) {
    println!("\n{markdown}");
    let path = format!("{ROOT}/BENCHMARKS.md");
    let page = fs::read_to_string(&path).expect("a page that can be read");
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&begin).expect("where the section begins");
    let (_, after) = rest.split_once(&end).expect("where the section ends");
    let where_and_when = where_and_when();
    let page = format!(
        "{before}{begin}{}\n\n{where_and_when}\n{end}{after}",
        markdown.trim_end()
    );
    fs::write(&path, page).expect("a page that can be written");
}

/// Draws `benches/results/NAME.svg`.
///
/// # Panics
///
/// If it cannot be written.
pub fn plot(name: &str, bars: &Bars) {
    let folder = format!("{ROOT}/benches/results");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(format!("{folder}/{name}.svg"), bars.to_string()).expect("a plot");
}

/// Figures of two machines, or of two versions, cannot be compared.
fn where_and_when() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(ROOT)
            .output();
        output.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_cpu = |line: &str| {
        Some(
            line.strip_prefix("model name")?
                .split_once(": ")?
                .1
                .to_owned(),
        )
    };
    let models: Vec<String> = cpus.lines().filter_map(of_cpu).collect();
    format!(
        "*{}, commit {}{}, {} × {}, Linux {}, {}.*",
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        said("git", &["rev-parse", "--short=9", "HEAD"]),
        // This page itself is always changed.
        match &*said("git", &["status", "--porcelain", "--", "src"]) {
            "" => "",
            _ => " and changes",
        },
        models.len(),
        models.first().map_or("CPU", |model| model),
        said("uname", &["-r"]),
        said("rustc", &["--version"]),
    )
}
