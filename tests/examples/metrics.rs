//! `/metrics` of the upload example, and what is made of it: by promtool, by alerts, and by a dashboard in Prometheus.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Client, Method, Url};
use serde_json::Value;
use test_support::{
    example::Server,
    running::{Running, free_port},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{axum_upload::status_line, quota_admin};

const MONITORING: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../examples/axum-upload/monitoring"
);

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(MONITORING).join(file)).unwrap()
}

pub(crate) async fn scrape(server: &Server) -> String {
    let answer = server.get("/metrics").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    answer.text().await.unwrap()
}

/// The value of a series, with its labels as they are written.
pub(crate) fn value(text: &str, series: &str) -> Option<f64> {
    let series = format!("storage_guard_{series} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series))?;
    Some(value.parse().unwrap())
}

/// Scrapes until a series has at least this value.
pub(crate) async fn until(server: &Server, series: &str, least: f64) -> String {
    until_so(server, series, |value| value >= least).await
}

/// Scrapes until a series has a value that is as expected.
pub(crate) async fn until_so(server: &Server, series: &str, is_so: impl Fn(f64) -> bool) -> String {
    let start = Instant::now();
    loop {
        let text = scrape(server).await;
        if value(&text, series).is_some_and(&is_so) {
            return text;
        }
        let is_late = start.elapsed() > Duration::from_secs(30);
        assert!(!is_late, "{series} is not as expected:\n{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn chunked(chunks: usize, of: usize) -> Body {
    let chunk = move |_| Ok::<_, std::io::Error>(Bytes::from(vec![7; of]));
    Body::wrap_stream(stream::iter((0..chunks).map(chunk)))
}

/// An upload of which nothing is sent. Returns the status.
pub(crate) async fn announce(server: &Server, length: u64) -> String {
    let mut stream = TcpStream::connect(&server.addr).await.unwrap();
    let head = format!("PUT /files/x HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

/// A server on which everything has happened that a client can cause: of 100,000 bytes, 13,000 are used.
async fn busy_server() -> Server {
    let flags = [
        "--metrics",
        "--quota",
        "100kB",
        "--quota-store",
        "sqlite:",
        "--quota-leases",
    ];
    let server = Server::start("axum-upload", &flags);
    assert_eq!(server.put("/files/a", vec![7; 10_000]).await.status(), 201);
    assert_eq!(
        server.put("/files/b", chunked(3, 1_000)).await.status(),
        201
    );
    assert_eq!(server.put("/files/c", vec![7; 90_000]).await.status(), 507);
    assert_eq!(
        server.put("/files/d", chunked(30, 10_000)).await.status(),
        507
    );
    assert_eq!(announce(&server, 1 << 60).await, "507");
    server
}

#[tokio::test]
async fn what_happens_is_counted() {
    let server = busy_server().await;
    let text = until(&server, "drained_bytes_total", 90_000.0).await;
    for (series, expected) in [
        (r#"admissions_total{volume="uploads"}"#, 3.0),
        (r#"settlements_total{volume="uploads"}"#, 2.0),
        (r#"releases_total{volume="uploads"}"#, 1.0),
        (r#"stored_bytes_total{volume="uploads"}"#, 13_000.0),
        // The rest of the first grant.
        (r#"unused_bytes_total{volume="uploads"}"#, 62_536.0),
        (
            r#"refusals_total{cause="quota_exceeded",resource="bytes",volume="uploads"}"#,
            1.0,
        ),
        (
            r#"refusals_total{cause="disk_full",resource="bytes",volume="uploads"}"#,
            1.0,
        ),
        (
            r#"refusals_total{cause="disk_full",resource="objects",volume="uploads"}"#,
            0.0,
        ),
        (
            r#"cuts_total{cause="quota_exceeded",resource="bytes",volume="uploads"}"#,
            1.0,
        ),
        (r#"admission_wait_seconds_count{volume="uploads"}"#, 3.0),
        (r#"volume_full{volume="uploads"}"#, 0.0),
        (r#"volume_stale{volume="uploads"}"#, 0.0),
        (
            r#"volume_headroom_bytes{volume="uploads"}"#,
            (64 << 20) as f64,
        ),
        (r#"store_errors_total{operation="reserve"}"#, 0.0),
        ("quota_away", 0.0),
        ("lease_hits_total", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    for series in [
        r#"discarded_bytes_total{volume="uploads"}"#,
        r#"volume_size_bytes{volume="uploads"}"#,
        r#"volume_available_bytes{volume="uploads"}"#,
        r#"volume_probe_duration_seconds_count{volume="uploads"}"#,
        r#"store_call_duration_seconds_count{operation="reserve"}"#,
        "lease_misses_total",
    ] {
        assert!(value(&text, series) > Some(0.0), "{series}\n{text}");
    }
    let read = value(&text, r#"volume_read_timestamp_seconds{volume="uploads"}"#).unwrap();
    let age = UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - read;
    assert!((0.0..60.0).contains(&age), "{age}");
    let total = fs4::total_space(server.dir.path()).unwrap();
    let size = value(&text, r#"volume_size_bytes{volume="uploads"}"#);
    assert_eq!(size, Some(total as f64));
    assert!(!text.contains("everyone"), "a scope is no label:\n{text}");
}

/// A scope that is asked for often is leased.
#[tokio::test]
async fn leases_are_counted() {
    let flags = ["--metrics", "--quota-store", "sqlite:", "--quota-leases"];
    let server = Server::start("axum-upload", &flags);
    let mut uploads = 0..1_000;
    while value(&scrape(&server).await, "lease_hits_total") < Some(1.0) {
        let path = format!("/files/{}", uploads.next().expect("a lease"));
        assert_eq!(server.put(&path, "content").await.status(), 201);
    }
}

/// What a server shows whose quotas are in a Redis that is killed and started again.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server: run by `make test`"]
async fn an_outage_of_the_quotas_is_shown() {
    let mut database = test_support::redis::Server::start();
    let flags = ["--metrics", "--quota-store", &database.url()];
    let server = Server::start("axum-upload", &flags);
    assert_eq!(server.put("/files/a", "content").await.status(), 201);
    let is_away = |text: &str, times| {
        let store = value(text, "store_away");
        value(text, "quota_away") == Some(times) && store == Some(times)
    };
    assert!(is_away(&scrape(&server).await, 0.0));

    database.kill();
    assert_eq!(server.put("/files/b", "content").await.status(), 503);
    let text = until(&server, "store_away", 1.0).await;
    assert!(is_away(&text, 1.0), "{text}");
    let refused = r#"refusals_total{cause="capacity_unknown",resource="",volume="uploads"}"#;
    assert_eq!(value(&text, refused), Some(1.0));
    assert_eq!(value(&text, "quota_outages_total"), Some(1.0));
    let errors = r#"store_errors_total{operation="reserve"}"#;
    assert!(value(&text, errors) >= Some(1.0), "{text}");

    database.start_again();
    let start = Instant::now();
    // Emptied, so that the files are counted first.
    while server.put("/files/b", "content").await.status() != 201 {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_away(&scrape(&server).await, 0.0));
}

/// A Redis that is stopped for longer than half of the time that the quotas have, and then goes on.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server: run by `make test`"]
async fn slow_quotas_are_shown() {
    let database = test_support::redis::Server::start();
    let flags = ["--metrics", "--quota-store", &database.url()];
    let server = Server::start("axum-upload", &flags);
    assert_eq!(server.put("/files/a", "content").await.status(), 201);
    database.signal("STOP");
    let start = Instant::now();
    let going_on = async {
        while start.elapsed() < Duration::from_millis(1_200) {
            assert_eq!(value(&scrape(&server).await, SLOW), Some(0.0));
        }
        database.signal("CONT");
    };
    let (answer, ()) = tokio::join!(server.put("/files/b", "content"), going_on);
    assert_eq!(answer.status(), 201);
    assert_eq!(value(&scrape(&server).await, SLOW), Some(1.0));
}

#[cfg(target_os = "linux")]
const SLOW: &str = "quota_slow_answers_total";

/// Set by an operator, in the store that the server uses.
#[tokio::test]
async fn soft_limits_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", dir.path().join("quotas.db").display());
    let server = Server::start("axum-upload", &["--metrics", "--quota-store", &store]);
    let limit = [
        "limit",
        "everyone",
        "--soft-bytes",
        "50kB",
        "--bytes",
        "1MB",
    ];
    quota_admin::answer(&store, &limit);
    let crossed = r#"soft_limits_total{resource="bytes"}"#;
    for (name, times) in [("a", 0.0), ("b", 1.0), ("c", 1.0)] {
        let answer = server.put(&format!("/files/{name}"), vec![7; 30_000]).await;
        assert_eq!(answer.status(), 201);
        assert_eq!(
            value(&scrape(&server).await, crossed),
            Some(times),
            "{name}"
        );
    }
}

/// An error of a database that names a full disk in its text alone.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs PostgreSQL: run by `make test`"]
async fn suspects_are_counted() {
    let database = test_support::postgres::Server::new();
    let flags = ["--metrics", "--quota-store", &database.url()];
    let server = Server::start("axum-upload", &flags);
    assert_eq!(server.get("/status").await.status(), 200);
    assert_eq!(value(&scrape(&server).await, "suspects_total"), Some(0.0));
    let failing = "CREATE OR REPLACE FUNCTION storage_guard_2_now() RETURNS timestamptz LANGUAGE plpgsql AS \
                   $$ BEGIN RAISE EXCEPTION 'the archiver: no space left on device'; END $$";
    database.execute(failing).await;
    assert_eq!(server.get("/status").await.status(), 500);
    assert_eq!(value(&scrape(&server).await, "suspects_total"), Some(1.0));
}

/// A client that sends no more, on a server whose seconds are sixtieths.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs libfaketime: run by `make test`"]
async fn stalls_are_counted() {
    let mut command = Command::new(test_support::example::path_of("axum-upload"));
    test_support::running::by_another_clock(&mut command)
        .env("FAKETIME", "+0 x60")
        .env_remove("FAKETIME_DONT_FAKE_MONOTONIC");
    command.arg("--metrics");
    let server = Server::start_with(tempfile::tempdir().unwrap(), command);
    let mut stream = TcpStream::connect(&server.addr).await.unwrap();
    let head = "PUT /files/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(
        status_line(&mut stream).await,
        "HTTP/1.1 408 Request Timeout"
    );
    let text = scrape(&server).await;
    assert_eq!(value(&text, r#"stalls_total{volume="uploads"}"#), Some(1.0));
}

/// How full the disk is concerns those who may store.
#[tokio::test]
async fn metrics_are_off_by_default_and_for_users_alone() {
    let server = Server::start("axum-upload", &[]);
    assert_eq!(server.get("/metrics").await.status(), 404);
    let users = ["--user", "ann:token:1MB", "--user", "prometheus:other:0B"];
    let server = Server::start("axum-upload", &[&["--metrics"][..], &users].concat());
    assert_eq!(server.get("/metrics").await.status(), 401);
    let request = server.request(Method::GET, "/metrics").bearer_auth("other");
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("storage_guard_quota_away 0"), "{text}");
}

fn promtool(arguments: &[&str], input: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(arguments)
        .current_dir(MONITORING)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// It knows the conventions: names, units, suffixes, and that there is help.
#[tokio::test]
#[ignore = "needs promtool: run by `make test`"]
async fn promtool_finds_nothing_to_improve() {
    let server = busy_server().await;
    let text = until(&server, "drained_bytes_total", 90_000.0).await;
    assert_eq!(promtool(&["check", "metrics"], &text), "");
    assert!(promtool(&["check", "config", "prometheus.yml"], "").contains("SUCCESS"));
    assert!(promtool(&["test", "rules", "alerts.test.yml"], "").contains("SUCCESS"));
}

/// The names of metrics in an expression.
fn names(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c));
    words
        .filter(|word| word.starts_with("storage_guard_"))
        .collect()
}

/// The queries of the dashboard, with the variables that Grafana fills in.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries: Vec<_> = targets
        .map(|target| {
            let query = target["expr"].as_str().unwrap();
            query
                .replace("$__rate_interval", "10s")
                .replace("$instance", ".*")
                .replace("$volume", ".*")
        })
        .collect();
    assert!(queries.iter().all(|query| !query.contains('$')));
    queries
}

/// Alerts that nothing fires tell nothing: a name that is wrong is never noticed.
#[tokio::test]
async fn alerts_and_dashboard_use_metrics_that_there_are() {
    let server = busy_server().await;
    let text = until(&server, "drained_bytes_total", 90_000.0).await;
    let there = names(&text);
    let (alerts, dashboard) = (read("alerts.yml"), read("dashboard.json"));
    for (file, text) in [("alerts.yml", &alerts), ("dashboard.json", &dashboard)] {
        let used = names(text);
        assert!(used.len() > 10, "{file}: {used:?}");
        let wrong: Vec<_> = used.difference(&there).collect();
        assert!(wrong.is_empty(), "{file}: {wrong:?}");
    }
    // Each is in the dashboard, but for parts of histograms and what is not drawn.
    let drawn = names(&dashboard);
    let parts = ["_bucket", "_sum", "_count"];
    let left_out: Vec<_> = there
        .iter()
        .filter(|name| !drawn.contains(*name) && !parts.iter().any(|part| name.ends_with(part)))
        .filter(|name| {
            parts
                .iter()
                .all(|part| !drawn.contains(&*format!("{name}{part}")))
        })
        .collect();
    let moved = "storage_guard_volume_moved";
    assert_eq!(left_out, [&"storage_guard_volume_horizons_total", &moved]);
}

/// What the tests here and of disks read, so that there is none that nothing moves.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn each_metric_is_tested_on_a_server() {
    const TESTS: [&str; 2] = [
        include_str!("metrics.rs"),
        include_str!("metrics_of_disks.rs"),
    ];
    let text = scrape(&busy_server().await).await;
    let there = names(&text);
    assert!(there.len() > 30, "{there:?}");
    for name in there {
        let name = name.strip_prefix("storage_guard_").unwrap();
        let name = name.trim_end_matches("_bucket").trim_end_matches("_sum");
        let is_read = |test: &str| {
            test.contains(&format!("\"{name}")) || test.contains(&format!("#\"{name}{{"))
        };
        assert!(TESTS.iter().any(|test| is_read(test)), "{name}");
    }
}

/// Prometheus, which reads a server four times a second.
struct Prometheus {
    _running: Running,
    url: String,
    client: Client,
}

impl Prometheus {
    fn start(dir: &Path, target: &str) -> Self {
        let config = format!(
            "global: {{ scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 1s }}\n\
             rule_files: [\"{MONITORING}/alerts.yml\"]\n\
             scrape_configs:\n  - job_name: axum-upload\n    static_configs: [{{ targets: [\"{target}\"] }}]\n"
        );
        let path = dir.join("prometheus.yml");
        fs::write(&path, config).unwrap();
        let port = free_port();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let is_ready = || test_support::running::listens(port);
        Self {
            _running: Running::start(&mut command, &dir.join("log"), is_ready),
            url: format!("http://127.0.0.1:{port}/api/v1"),
            client: Client::new(),
        }
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let url = Url::parse_with_params(&format!("{}/{path}", self.url), query).unwrap();
        let request = self.client.get(url);
        // It listens before it is ready.
        let answer = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// Whether a query has an answer.
    async fn has_data(&self, query: &str) -> bool {
        let answer = self.ask("query", &[("query", query)]).await;
        assert_ne!(answer["errorType"], "bad_data", "{query}: {answer}");
        let series = answer["data"]["result"].as_array();
        series.is_some_and(|series| !series.is_empty())
    }
}

#[tokio::test]
#[ignore = "needs Prometheus: run by `make test`"]
async fn each_query_of_the_dashboard_has_data_in_prometheus() {
    let server = busy_server().await;
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path(), &server.addr);
    let start = Instant::now();
    let mut waiting = queries();
    assert!(waiting.len() > 30);
    while !waiting.is_empty() {
        let is_late = start.elapsed() > Duration::from_secs(30);
        assert!(!is_late, "without data: {waiting:#?}");
        let mut empty = Vec::new();
        for query in waiting {
            if !prometheus.has_data(&query).await {
                empty.push(query);
            }
        }
        waiting = empty;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Each alert was evaluated, and none of them fires: a client's own quota is no reason.
    let is_ready = |rules: &Value| {
        let groups = rules["data"]["groups"].as_array();
        let rules = groups.and_then(|groups| groups.first()?["rules"].as_array());
        rules.is_some_and(|rules| rules.iter().all(|rule| rule["health"] == "ok"))
    };
    let rules = loop {
        let rules = prometheus.ask("rules", &[]).await;
        if is_ready(&rules) {
            break rules;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{rules}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), read("alerts.yml").matches("- alert:").count());
    let firing: Vec<_> = rules
        .iter()
        .filter(|rule| rule["state"] == "firing")
        .collect();
    assert!(firing.is_empty(), "{firing:#?}");
}
