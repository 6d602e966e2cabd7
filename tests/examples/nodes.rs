//! Four servers that share one store, and clocks that disagree: stampedes, kills and outages.

use std::{
    fs, iter,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all, stream};
use http::{Method, StatusCode};
use reqwest::Body;
use test_support::{
    Dice,
    example::{Server, path_of},
    postgres, redis,
    running::by_another_clock,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tower_storage_guard::store::Store;

use crate::axum_upload::status_line;

/// The limit of all servers together, in bytes.
const QUOTA: u64 = 4_000_000;
/// The time to live of a killed server's holds.
const LIVES: Duration = Duration::from_secs(3);

enum Engine {
    Postgres(postgres::Server),
    Redis(redis::Server),
}

impl Engine {
    fn postgres() -> Self {
        Self::Postgres(postgres::Server::new())
    }

    fn redis() -> Self {
        Self::Redis(redis::Server::start())
    }

    fn url(&self) -> String {
        match self {
            Self::Postgres(server) => server.url(),
            Self::Redis(server) => server.url(),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Postgres(server) => server.kill(),
            Self::Redis(server) => server.kill(),
        }
    }

    fn start_again(&mut self) {
        match self {
            Self::Postgres(server) => server.start(),
            Self::Redis(server) => server.start_again(),
        }
    }

    fn signal(&self, signal: &str) {
        match self {
            Self::Postgres(server) => server.signal(signal),
            Self::Redis(server) => server.signal(signal),
        }
    }

    async fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Postgres(server) => Arc::new(server.store()),
            Self::Redis(server) => Arc::new(server.store().await),
        }
    }
}

/// Servers whose uploads are in folders of their own, and which share one quota.
struct Nodes {
    flags: Vec<String>,
    nodes: Vec<Server>,
}

impl Nodes {
    fn start(count: usize, engine: &Engine, has_leases: bool) -> Self {
        let lives = LIVES.as_secs().to_string();
        let (url, quota) = (engine.url(), QUOTA.to_string());
        let mut flags = vec!["--quota-store", &url, "--quota", &quota];
        flags.extend(["--quota-time-to-live", &lives]);
        flags.extend(has_leases.then_some("--quota-leases"));
        let flags: Vec<String> = flags.into_iter().map(str::to_owned).collect();
        let nodes =
            (0..count).map(|number| Self::node(number, tempfile::tempdir().unwrap(), &flags));
        Self {
            nodes: nodes.collect(),
            flags,
        }
    }

    /// One clock is seven minutes ahead, and one is behind.
    fn node(number: usize, dir: tempfile::TempDir, flags: &[String]) -> Server {
        let mut command = Command::new(path_of("axum-upload"));
        if let Some(ahead) = [None, Some("+7m"), Some("-7m")]
            .get(number)
            .copied()
            .flatten()
        {
            by_another_clock(&mut command).env("FAKETIME", ahead);
        }
        command.args(flags);
        Server::start_with(dir, command)
    }

    /// Kills a server, and starts it in the same folder.
    fn restart(&mut self, number: usize) {
        let dir = self.nodes.remove(number).killed();
        let again = Self::node(number, dir, &self.flags);
        self.nodes.insert(number, again);
    }

    /// The bytes of all files.
    fn stored(&self) -> u64 {
        self.nodes.iter().map(stored).sum()
    }
}

fn stored(node: &Server) -> u64 {
    let entries = fs::read_dir(node.dir.path()).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    // It may be deleted at this moment.
    files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}

/// Bytes that are used, and that are held.
async fn figures(store: &dyn Store) -> (u64, u64) {
    let account = store.account(&"everyone".into()).await.unwrap();
    (account.used.bytes.try_into().unwrap(), account.held.bytes)
}

async fn until_figures(store: &dyn Store, wanted: (u64, u64), within: Duration) {
    let start = Instant::now();
    loop {
        let now = figures(store).await;
        if now == wanted {
            return;
        }
        assert!(start.elapsed() < within, "{now:?} instead of {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Uploads of all kinds by one client. Some are chunked, some break off, some files are deleted. Returns how many
/// were stored and refused.
async fn client(node: &Server, number: usize, mut dice: Dice) -> [u32; 2] {
    let mut counts = [0; 2];
    let mut files = Vec::new();
    for upload in 0..25 {
        let path = format!("/files/{number}-{upload}");
        let size = dice.roll(200_000) as usize;
        let pieces = iter::repeat_n(Bytes::from(vec![0; size / 4]), 4);
        let way = dice.roll(10);
        let body = match way {
            0..4 => Body::from(vec![0; size]),
            4..8 => Body::wrap_stream(stream::iter(pieces.map(Ok::<_, String>))),
            _ => {
                let pieces = stream::iter(pieces.map(Ok)).take(2);
                Body::wrap_stream(pieces.chain(stream::iter([Err("broken off".to_owned())])))
            }
        };
        let answer = node.request(Method::PUT, &path).body(body).send().await;
        match answer.map(|answer| answer.status()) {
            Ok(StatusCode::CREATED) => {
                counts[0] += 1;
                files.push(path);
            }
            Ok(StatusCode::INSUFFICIENT_STORAGE) => counts[1] += 1,
            Ok(status) => panic!("{status}"),
            Err(error) => assert!(way >= 8, "{error:?}"),
        }
        if dice.roll(5) == 0
            && let Some(path) = files.pop()
        {
            let answer = node.request(Method::DELETE, &path).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        }
    }
    counts
}

async fn stampede(engine: Engine, has_leases: bool) {
    let nodes = Nodes::start(4, &engine, has_leases);
    let store = engine.store().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients =
        (0..24).map(|number| client(&nodes.nodes[number % 4], number, Dice::new(number as u64)));
    let watch = async {
        let mut most = 0;
        while !is_over.load(Relaxed) {
            let stored = nodes.stored();
            assert!(stored <= QUOTA, "{stored} bytes are stored");
            let (used, held) = figures(&*store).await;
            assert!(used + held <= QUOTA, "{used} + {held} bytes are counted");
            most = most.max(stored);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        most
    };
    let clients = async {
        let counts = join_all(clients).await;
        is_over.store(true, Relaxed);
        counts
            .into_iter()
            .fold([0; 2], |sum, one| [sum[0] + one[0], sum[1] + one[1]])
    };
    let ([let_in, refused], most) = tokio::join!(clients, watch);
    println!("{let_in} stored, {refused} refused, at most {most} bytes of {QUOTA}");
    assert!(
        let_in > 50 && refused > 50,
        "{let_in} stored, {refused} refused"
    );
    assert!(
        most > QUOTA * 3 / 4,
        "{most} bytes at the most: nothing was put to the test"
    );
    // All agree to the byte.
    until_figures(&*store, (nodes.stored(), 0), LIVES * 3).await;
    let left = (QUOTA - nodes.stored()) as usize;
    let node = &nodes.nodes;
    if left > 0 {
        let answer = node[3].put("/files/last", vec![0; left]).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    for node in node {
        let answer = node.put("/files/one-more", vec![0]).await;
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    }
    assert_eq!(nodes.stored(), QUOTA);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql and faketime"]
async fn a_stampede_on_four_servers_with_postgresql() {
    stampede(Engine::postgres(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql and faketime"]
async fn a_stampede_on_four_servers_that_lease_of_postgresql() {
    stampede(Engine::postgres(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis and faketime"]
async fn a_stampede_on_four_servers_with_redis() {
    stampede(Engine::redis(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis and faketime"]
async fn a_stampede_on_four_servers_that_lease_of_redis() {
    stampede(Engine::redis(), true).await;
}

/// An upload that stops in the middle.
async fn begin(node: &Server, name: &str, size: usize) -> TcpStream {
    let mut stream = TcpStream::connect(&node.addr).await.unwrap();
    let head = format!("PUT /files/{name} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![0; size / 2]).await.unwrap();
    node.until_received(size as u64 / 2).await;
    stream
}

/// Small uploads until the node is gone. Returns how many bytes were acknowledged, and how many more might be stored.
async fn upload_until_killed(node: (String, reqwest::Client), number: usize) -> [u64; 2] {
    let (addr, client) = node;
    let mut answered = 0;
    for upload in 0.. {
        let url = format!("http://{addr}/files/{number}-{upload}");
        match client.put(url).body(vec![0; 1_000]).send().await {
            Ok(answer) => assert_eq!(answer.status(), StatusCode::CREATED),
            Err(_) => return [answered, 1_000],
        }
        answered += 1_000;
    }
    unreachable!("the node is killed")
}

/// Killed in the middle of a long upload and of many short ones: its holds expire within their time to live, and no
/// acknowledged charge is lost.
async fn a_node_is_killed(engine: Engine, has_leases: bool) {
    let mut nodes = Nodes::start(4, &engine, has_leases);
    let store = engine.store().await;
    let addr = nodes.nodes[1].addr.clone();
    let clients = (0..8).map(|number| {
        let client = nodes.nodes[1].client.clone();
        tokio::spawn(upload_until_killed((addr.clone(), client), number))
    });
    let clients: Vec<_> = clients.collect();
    let _long = begin(&nodes.nodes[1], "long", 2_000_000).await;
    let answer = nodes.nodes[0].put("/files/a", vec![0; 2_000_001]).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    nodes.restart(1);
    let killed = Instant::now();
    let mut answered = 0;
    let mut in_doubt = 0;
    for client in clients {
        let [sure, doubt] = client.await.unwrap();
        (answered, in_doubt) = (answered + sure, in_doubt + doubt);
    }
    loop {
        let (used, held) = figures(&*store).await;
        if held == 0 {
            assert!(
                (answered..=answered + in_doubt).contains(&used),
                "{answered} {used}"
            );
            break;
        }
        let within = LIVES + Duration::from_secs(1);
        assert!(killed.elapsed() < within, "{held} bytes are held still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = nodes.nodes[0].put("/files/a", vec![0; 2_000_001]).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql and faketime"]
async fn a_server_is_killed_that_shares_postgresql() {
    a_node_is_killed(Engine::postgres(), false).await;
    a_node_is_killed(Engine::postgres(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis and faketime"]
async fn a_server_is_killed_that_shares_redis() {
    a_node_is_killed(Engine::redis(), false).await;
    a_node_is_killed(Engine::redis(), true).await;
}

/// Waits until an upload is stored, and accepts only 503 until then.
async fn recovers(node: &Server, name: &str, within: Duration) {
    let start = Instant::now();
    loop {
        match node
            .put(&format!("/files/{name}"), vec![0; 10])
            .await
            .status()
        {
            StatusCode::CREATED => return,
            status => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
        }
        assert!(start.elapsed() < within, "still away");
    }
}

/// An outage in the middle of an upload: an admitted upload is answered correctly, a new one is answered 503 in
/// bounded time, and afterwards everything works again, without a restart of any server.
async fn an_outage(
    mut engine: Engine,
    break_down: impl Fn(&mut Engine),
    mend: impl Fn(&mut Engine),
) {
    for has_leases in [false, true] {
        let nodes = Nodes::start(2, &engine, has_leases);
        let mut long = begin(&nodes.nodes[0], "long", 1_000).await;
        break_down(&mut engine);
        let start = Instant::now();
        let answer = nodes.nodes[1].put("/files/refused", vec![0; 10]).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        long.write_all(&[0; 500]).await.unwrap();
        let status = status_line(&mut long).await;
        assert!(status.contains("201"), "{status}");
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
        mend(&mut engine);
        let store = engine.store().await;
        recovers(&nodes.nodes[1], "after", Duration::from_secs(20)).await;
        recovers(&nodes.nodes[0], "after", Duration::from_secs(20)).await;
        until_figures(&*store, (1_020, 0), Duration::from_secs(20)).await;
        assert_eq!(nodes.stored(), 1_020);
        drop(nodes);
        store.remove(&"everyone".into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql and faketime"]
async fn postgresql_is_killed_and_started_again() {
    an_outage(Engine::postgres(), Engine::kill, Engine::start_again).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis and faketime"]
async fn redis_is_killed_and_started_again() {
    an_outage(Engine::redis(), Engine::kill, Engine::start_again).await;
}

/// No connection is closed, and no request is answered.
async fn a_hang(engine: Engine) {
    an_outage(
        engine,
        |engine| engine.signal("STOP"),
        |engine| engine.signal("CONT"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql and faketime"]
async fn postgresql_hangs_for_a_while() {
    a_hang(Engine::postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis and faketime"]
async fn redis_hangs_for_a_while() {
    a_hang(Engine::redis()).await;
}
