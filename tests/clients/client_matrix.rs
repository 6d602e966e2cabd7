//! Third-party clients, each of which must see the refusal with its content.
//!
//! A cell of the matrix is the status that the client saw, how long it took, and whether its next request used the
//! same connection: a client that has stopped sending has to open a new one.

use std::{
    fmt::Write as _,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use test_support::server::{self, Server};
use tokio::process::Command;

use crate::{our_own::seen_by_our_own, programs::program};

const MIB: u64 = 1 << 20;
const SIZES: [u64; 3] = [MIB, 64 * MIB, 512 * MIB];

/// The longest time that a client waits for an answer. Most of it is for draining, on a busy machine.
const LATE: Duration = Duration::from_secs(15);

/// How many cells are measured concurrently.
const CELLS: usize = 6;

/// The requirements of the matrix: a command that works, and the Debian package that provides it.
const TOOLS: [(&[&str], &str); 5] = [
    (&["curl", "--version"], "curl"),
    (&[PYTHON, "--version"], "python3"),
    (&[PYTHON, "-c", "import requests"], "python3-requests"),
    (&["node", "--version"], "nodejs"),
    (&["javac", "-version"], "default-jdk-headless"),
];

/// Debian's Python, which sees Debian's packages, whatever is first in the path.
const PYTHON: &str = "/usr/bin/python3";

/// If the answer is not 100 Continue, this client waits forever, whatever the server does: a bare socket that answers
/// 507, with or without closing, shows it too. Seen with 17.0.15; the fix was backported to 17 in July 2025.
const JAVA_EXPECTS: &str = "JDK-8286171";

/// The command line of a client, for a size and the server's URL.
type Run = Box<dyn Fn(u64, &str) -> Command>;

/// One row.
struct Client {
    name: String,
    is_chunked: bool,
    /// A known defect, because of which it need not see an answer that is sent before its body is requested.
    excuse: Option<&'static str>,
    command: Run,
}

impl Client {
    fn new(
        name: impl Into<String>,
        is_chunked: bool,
        command: impl Fn(u64, &str) -> Command + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            is_chunked,
            excuse: None,
            command: Box::new(command),
        }
    }
}

/// The clients, given a folder with a file of every size and the compiled classes.
fn clients(files: &Path) -> Vec<Client> {
    let mut clients = curls(files);
    for (framing, is_chunked) in [("length", false), ("chunked", true)] {
        for library in ["http.client", "urllib", "requests"] {
            let name = format!("Python {library}");
            clients.push(Client::new(name, is_chunked, move |size, url| {
                let mut command = Command::new(PYTHON);
                command.arg(program("upload.py"));
                command.args([library, framing, &size.to_string(), url]);
                command
            }));
        }
        for library in ["fetch", "http"] {
            let name = format!("Node {library}");
            clients.push(Client::new(name, is_chunked, move |size, url| {
                let mut command = Command::new("node");
                command.arg(program("upload.mjs"));
                command.args([library, framing, &size.to_string(), url]);
                command
            }));
        }
        for (version, asks) in [("HTTP_1_1", "HTTP/1.1"), ("HTTP_2", "h2c upgrade")] {
            for (expect, expects) in [("send", ""), ("expect", ", Expect")] {
                let classes = files.to_path_buf();
                let name = format!("Java, {asks}{expects}");
                let mut client = Client::new(name, is_chunked, move |size, url| {
                    let mut command = Command::new("java");
                    // Starts in half the time.
                    command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
                    command.arg("-cp").arg(&classes).arg("Upload");
                    command.args([version, framing, expect, &size.to_string(), url]);
                    command
                });
                client.excuse = (expect == "expect").then_some(JAVA_EXPECTS);
                clients.push(client);
            }
        }
    }
    clients
}

fn curls(files: &Path) -> Vec<Client> {
    const EXPECT: [&str; 2] = ["--header", "Expect: 100-continue"];
    const NO_EXPECT: [&str; 2] = ["--header", "Expect:"];
    const CHUNKED: [&str; 2] = ["--header", "Transfer-Encoding: chunked"];
    const HTTP_2: &str = "--http2-prior-knowledge";

    let rows: [(&str, bool, &[&[&str]]); 8] = [
        ("curl", false, &[]),
        ("curl, Expect", false, &[&EXPECT]),
        ("curl, no Expect", false, &[&NO_EXPECT]),
        ("curl, HTTP/2", false, &[&[HTTP_2]]),
        ("curl", true, &[&CHUNKED]),
        ("curl, Expect", true, &[&CHUNKED, &EXPECT]),
        ("curl, no Expect", true, &[&CHUNKED, &NO_EXPECT]),
        ("curl, HTTP/2", true, &[&[HTTP_2]]),
    ];
    let rows = rows.into_iter().map(|(name, is_chunked, options)| {
        let files = files.to_path_buf();
        let options = options.concat();
        Client::new(name, is_chunked, move |size, url| {
            let file = files.join(size.to_string());
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--include"]);
            command.args(&options).arg("--upload-file");
            if is_chunked {
                // From standard input: of unknown length.
                command.arg("-").stdin(std::fs::File::open(file).unwrap());
            } else {
                command.arg(file);
            }
            command.arg(format!("{url}/a"));
            // In one run, so that it can reuse the connection.
            command.args(["--next", "--silent", "--include"]);
            command.arg(format!("{url}/"));
            command
        })
    });
    rows.collect()
}

/// The result of one cell, or the error. The server has `free` bytes.
async fn cell(client: &Client, size: u64, free: u64) -> Result<String, String> {
    let server = server::start(free).await;
    let excuse = client.excuse.filter(|_| free == 0);
    run(client, excuse, size, &server).await
}

async fn run(
    client: &Client,
    excuse: Option<&str>,
    size: u64,
    server: &Server,
) -> Result<String, String> {
    let started = Instant::now();
    let late = if excuse.is_some() { LATE / 5 } else { LATE };
    let mut command = (client.command)(size, &server.url());
    command.kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output();
    let Ok(output) = tokio::time::timeout(late, output).await else {
        return match excuse {
            Some(excuse) => Ok(excuse.into()),
            None => Err(format!("nothing in {late:?}")),
        };
    };
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let is_whole = said.contains("507") && said.contains(r#""error":"Insufficient Storage""#);
    if !is_whole || !said.contains("still here") {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{said} {error}"));
    }
    let kept = if server.connections() == 1 {
        "kept"
    } else {
        "new"
    };
    let seconds = started.elapsed().as_secs_f32();
    Ok(format!("507 {kept:4} {seconds:4.1} s"))
}

async fn check_tools() {
    for (command, package) in TOOLS {
        let mut tool = Command::new(command[0]);
        tool.args(&command[1..]);
        tool.stdout(Stdio::null()).stderr(Stdio::null());
        let works = tool.status().await.is_ok_and(|status| status.success());
        assert!(
            works,
            "`{}` fails: apt install {package}",
            command.join(" ")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs curl, Python, Node and Java: run by `make test`"]
async fn every_client_sees_the_refusal() {
    check_tools().await;
    let files = tempfile::tempdir().unwrap();
    for size in SIZES {
        // Sparse.
        let file = std::fs::File::create(files.path().join(size.to_string())).unwrap();
        file.set_len(size).unwrap();
    }
    let mut compile = Command::new("javac");
    compile.arg("-d").arg(files.path());
    let compiled = compile.arg(program("Upload.java")).status().await;
    assert!(compiled.unwrap().success());

    let mut table = String::new();
    let mut failed = Vec::new();
    let places = [
        ("refused at the door", 0, false),
        ("refused at the door", 0, true),
        ("cut in mid-stream", MIB / 2, true),
    ];
    for (place, free, is_chunked) in places {
        let framing = if is_chunked {
            "of unknown length"
        } else {
            "of known length"
        };
        let title = format!("{framing}, {place}");
        let _ = write!(table, "\n{title:44}");
        for size in SIZES {
            let _ = write!(table, "{:18}", format!("{} MiB", size / MIB));
        }
        table.push('\n');
        let mut rows: Vec<(String, Vec<Result<String, String>>)> = Vec::new();
        let clients = clients(files.path());
        let of_framing = || {
            clients
                .iter()
                .filter(|client| client.is_chunked == is_chunked)
        };
        let cells = of_framing().flat_map(|client| SIZES.map(|size| cell(client, size, free)));
        // Several at a time, because most of them wait. Each has a server of its own.
        let cells: Vec<_> = stream::iter(cells).buffered(CELLS).collect().await;
        for (client, cells) in of_framing().zip(cells.chunks(SIZES.len())) {
            rows.push((client.name.clone(), cells.to_vec()));
        }
        let first = rows.len();
        for size in SIZES {
            let server = server::start(free).await;
            let seen = seen_by_our_own(&server.url(), size as usize, is_chunked).await;
            for (index, (name, status)) in seen.into_iter().enumerate() {
                if rows.len() == first + index {
                    rows.push((name.into(), Vec::new()));
                }
                rows[first + index].1.push(match status {
                    507 => Ok("507".into()),
                    status => Err(status.to_string()),
                });
            }
        }
        for (name, cells) in rows {
            let _ = write!(table, "  {name:42}");
            for (size, cell) in SIZES.iter().zip(cells) {
                let cell = cell.unwrap_or_else(|error| {
                    failed.push(format!("{name}, {} MiB, {title}: {error}", size / MIB));
                    "FAILED".into()
                });
                let _ = write!(table, "{cell:18}");
            }
            table.push('\n');
        }
    }
    println!("{table}");
    assert!(failed.is_empty(), "{table}\n{}", failed.join("\n"));
}
