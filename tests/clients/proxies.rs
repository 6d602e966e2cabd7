//! nginx and haproxy in front: every refusal arrives, and the next request on each connection is right.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::put};
use futures_util::future::join_all;
use test_support::{
    running::{Running, free_port, listens},
    server::{self, Server},
};
use tokio::process::Command;
use tower_storage_guard::{
    Scope, StorageGuardLayer,
    quota::{Limits, MemoryQuota},
};

const MIB: u64 = 1 << 20;
const LARGE: u64 = 8 * MIB;
const SMALL: u64 = 64 << 10;

/// How many clients send at once, so that one proxy connection serves several of them.
const CLIENTS: usize = 8;
/// The longest that a client's run of requests may take.
const LATE: Duration = Duration::from_secs(30);

/// What a proxy listens for.
#[derive(Clone, Copy, Debug)]
enum Front {
    Plain,
    /// With HTTP/2 if the client asks for it.
    Tls,
}

impl Front {
    fn url(self, port: u16) -> String {
        let scheme = match self {
            Self::Plain => "http",
            Self::Tls => "https",
        };
        format!("{scheme}://127.0.0.1:{port}")
    }
}

/// How curl speaks to each front.
const CURLS: [(Front, &[&str]); 3] = [
    (Front::Plain, &["--http1.1"]),
    (Front::Tls, &["--insecure", "--http1.1"]),
    (Front::Tls, &["--insecure", "--http2"]),
];

/// A proxy, with its ports.
struct Proxy {
    name: &'static str,
    plain: u16,
    tls: u16,
    _running: Running,
}

impl Proxy {
    /// Starts a program in a folder of its own, and waits until it listens.
    fn start(
        name: &'static str,
        [plain, tls]: [u16; 2],
        home: &Path,
        command: &mut std::process::Command,
    ) -> Self {
        let running = Running::start(command, &home.join("log"), || {
            listens(plain) && listens(tls)
        });
        Self {
            name,
            plain,
            tls,
            _running: running,
        }
    }

    fn port(&self, front: Front) -> u16 {
        match front {
            Front::Plain => self.plain,
            Front::Tls => self.tls,
        }
    }
}

fn certificate(folder: &Path) {
    let made = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-keyout",
            "key.pem",
            "-out",
            "certificate.pem",
        ])
        .current_dir(folder)
        .output()
        .expect("openssl is needed: apt install openssl");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let both = ["certificate.pem", "key.pem"].map(|name| fs::read(folder.join(name)).unwrap());
    fs::write(folder.join("both.pem"), both.concat()).unwrap();
}

/// nginx, which reads an upload whole before it passes it on, or passes it on as it comes.
fn nginx(folder: &Path, backend: SocketAddr, buffers: bool) -> Proxy {
    let ports @ [plain, tls] = [free_port(), free_port()];
    let (name, buffering) = match buffers {
        true => ("nginx, buffering", "on"),
        false => ("nginx", "off"),
    };
    let home = folder.join(name);
    fs::create_dir(&home).unwrap();
    let config = format!(
        "daemon off;
        # The process that is killed is the only one.
        master_process off;
        error_log stderr;
        pid nginx.pid;
        events {{ worker_connections 256; }}
        http {{
            access_log off;
            client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            client_max_body_size 0;
            upstream guarded {{ server {backend}; keepalive 4; }}
            server {{
                listen 127.0.0.1:{plain};
                listen 127.0.0.1:{tls} ssl http2;
                ssl_certificate ../certificate.pem;
                ssl_certificate_key ../key.pem;
                location / {{
                    proxy_pass http://guarded;
                    proxy_http_version 1.1;
                    proxy_set_header Connection \"\";
                    proxy_request_buffering {buffering};
                }}
            }}
        }}"
    );
    fs::write(home.join("nginx.conf"), config).unwrap();
    let mut command = std::process::Command::new("nginx");
    command.arg("-p").arg(&home);
    command.args(["-e", "stderr", "-c", "nginx.conf"]);
    Proxy::start(name, ports, &home, &mut command)
}

/// haproxy, which waits for a buffer of an upload, or does not.
fn haproxy(folder: &Path, backend: SocketAddr, buffers: bool) -> Proxy {
    let ports @ [plain, tls] = [free_port(), free_port()];
    let (name, buffering) = match buffers {
        true => ("haproxy, buffering", "option http-buffer-request"),
        false => ("haproxy", ""),
    };
    let home = folder.join(name);
    fs::create_dir(&home).unwrap();
    let certificate = folder.join("both.pem");
    let config = format!(
        "defaults
    mode http
    {buffering}
    http-reuse always
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend all
    bind 127.0.0.1:{plain}
    bind 127.0.0.1:{tls} ssl crt {} alpn h2,http/1.1
    default_backend guarded
backend guarded
    server one {backend}
",
        certificate.display()
    );
    fs::write(home.join("haproxy.cfg"), config).unwrap();
    let mut command = std::process::Command::new("haproxy");
    command.arg("-db").arg("-f").arg(home.join("haproxy.cfg"));
    Proxy::start(name, ports, &home, &mut command)
}

/// `/full` is refused at the door, `/cut` as soon as it exceeds what each request may have, and `/early` is answered by its
/// handler before that has read anything.
async fn guarded() -> Server {
    let quota = MemoryQuota::new(Limits::bytes(MIB));
    let requests = AtomicU64::new(0);
    let each = move |_: &_| Scope::from(requests.fetch_add(1, Ordering::Relaxed).to_string());
    let at = |path: &str| Router::new().route(path, put(server::read_all));
    let routes = at("/full")
        .layer(StorageGuardLayer::new(server::volume(0)))
        .merge(at("/cut").layer(StorageGuardLayer::quota_only(quota).scope_by(each)))
        .merge(
            server::routes()
                .route("/early", put(async || (StatusCode::CONFLICT, EARLY)))
                .layer(StorageGuardLayer::new(server::volume(1 << 40))),
        );
    server::serve(routes).await
}

/// The content of an early answer. Behind one without any, curl 7.88 goes on sending over HTTP/2 until haproxy takes no more.
const EARLY: &str = "too early";

/// How curl announces what it uploads.
const FRAMINGS: [(&str, &[&str]); 3] = [
    ("length", &["--header", "Expect:"]),
    (
        "chunked",
        &[
            "--header",
            "Expect:",
            "--header",
            "Transfer-Encoding: chunked",
        ],
    ),
    ("Expect", &["--header", "Expect: 100-continue"]),
];

/// One client's requests, one after the other, and the status of each answer.
const REQUESTS: [(&str, Option<u64>, &str); 10] = [
    ("full", Some(LARGE), "507"),
    ("", None, "200"),
    ("cut", Some(LARGE), "507"),
    ("a", Some(SMALL), "201"),
    ("early", Some(LARGE), "409"),
    ("a", Some(SMALL), "201"),
    ("full", Some(SMALL), "507"),
    ("early", Some(SMALL), "409"),
    ("cut", Some(LARGE), "507"),
    ("", None, "200"),
];

/// Sends all requests in one run of curl. Returns what is wrong.
async fn client(files: &Path, url: &str, options: &[&str], framing: &[&str]) -> Result<(), String> {
    let mut curl = Command::new("curl");
    for (number, (path, size, _)) in REQUESTS.iter().enumerate() {
        if number > 0 {
            curl.arg("--next");
        }
        curl.args(["--silent", "--show-error", "--write-out", " %{http_code}\n"]);
        curl.args(options);
        if let Some(size) = size {
            curl.args(framing).arg("--upload-file");
            curl.arg(files.join(size.to_string()));
        }
        curl.arg(format!("{url}/{path}"));
    }
    curl.kill_on_drop(true).stdin(Stdio::null());
    let output = tokio::time::timeout(LATE, curl.output()).await;
    let output = output.map_err(|_| "nothing in time".to_owned())?.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = said.lines().collect();
    let is_right = |(line, (_, _, status)): (&&str, &(&str, Option<u64>, &str))| {
        let content = match *status {
            "507" => r#""error":"Insufficient Storage""#,
            "200" => "still here",
            "409" => EARLY,
            _ => "",
        };
        line.ends_with(status) && line.contains(content)
    };
    let all = lines.len() == REQUESTS.len() && lines.iter().zip(&REQUESTS).all(is_right);
    match all {
        true => Ok(()),
        false => Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

async fn is_right_behind(proxy: &Proxy, files: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for (front, options) in CURLS {
        for (name, framing) in FRAMINGS {
            let url = front.url(proxy.port(front));
            let began = Instant::now();
            let clients = (0..CLIENTS).map(|_| client(files, &url, options, framing));
            let seen = join_all(clients).await;
            let (proxy, options) = (proxy.name, options.join(" "));
            let case = format!("{proxy}, {front:?} {options}, {name}");
            println!("{case}: {:.1} s", began.elapsed().as_secs_f32());
            let failed = seen.into_iter().filter_map(Result::err);
            wrong.extend(failed.map(|error| format!("{case}: {error}")));
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nginx, haproxy, openssl and curl: run by `make test`"]
async fn answers_arrive_behind_proxies() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    for size in [LARGE, SMALL] {
        let file = fs::File::create(folder.path().join(size.to_string())).unwrap();
        file.set_len(size).unwrap();
    }
    let server = guarded().await;
    let mut wrong = Vec::new();
    for buffers in [false, true] {
        for start in [nginx, haproxy] {
            let proxy = start(folder.path(), server.address, buffers);
            wrong.extend(is_right_behind(&proxy, folder.path()).await);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
