//! Servers of Redis, one by one and as a cluster.

use std::{
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use redis::{
    Client, FromRedisValue, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cmd,
};
use tempfile::TempDir;
use tower_storage_guard::quota::{RedisConnection, RedisStore};

use crate::support::running::{Running, free_port};

pub(crate) struct Server {
    // Dropped first: it writes to the folder.
    running: Option<Running>,
    folder: TempDir,
    options: Vec<String>,
    pub(super) port: u16,
}

impl Server {
    /// It has on its disk whatever it has answered.
    pub(crate) fn start() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    fn with(options: &[&str]) -> Self {
        let mut server = Self {
            folder: tempfile::tempdir().unwrap(),
            options: options.iter().map(|option| option.to_string()).collect(),
            port: free_port(),
            running: None,
        };
        server.start_again();
        server
    }

    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new("redis-server");
        let port = self.port;
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--dir"])
            .arg(self.folder.path())
            .args(&self.options);
        let log = self.folder.path().join("log");
        self.running = Some(Running::start(&mut command, &log, || listens(port)));
    }

    /// As a power cut does.
    pub(crate) fn kill(&mut self) {
        self.running = None;
    }

    /// `STOP` makes it hang, and `CONT` go on.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.running.as_ref().unwrap().id().to_string();
        let mut kill = Command::new("kill");
        kill.args([&format!("-{signal}"), &id]);
        assert!(kill.status().unwrap().success());
    }

    pub(super) async fn ask<T: FromRedisValue>(&self, words: &str) -> RedisResult<T> {
        let mut words = words.split_whitespace();
        let mut asked = cmd(words.next().unwrap());
        for word in words {
            asked.arg(word);
        }
        let client = Client::open(("127.0.0.1", self.port)).unwrap();
        asked
            .query_async(&mut client.get_multiplexed_async_connection().await?)
            .await
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn store(&self) -> RedisStore<RedisConnection> {
        RedisStore::connect(&self.url()).await.unwrap()
    }

    pub(super) async fn store_with(
        &self,
        config: ConnectionManagerConfig,
    ) -> RedisStore<ConnectionManager> {
        let client = Client::open(("127.0.0.1", self.port)).unwrap();
        let manager = ConnectionManager::new_with_config(client, config).await;
        RedisStore::new(manager.unwrap())
    }
}

/// Three nodes that share the slots.
pub(super) struct Cluster {
    pub(super) nodes: Vec<Server>,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        let cluster = Self {
            nodes: (0..3).map(|_| Self::node()).collect(),
        };
        let thirds = ["0 5460", "5461 10922", "10923 16383"];
        for (number, (node, slots)) in cluster.nodes.iter().zip(thirds).enumerate() {
            let epoch = format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1);
            node.ask::<()>(&epoch).await.unwrap();
            let slots = format!("CLUSTER ADDSLOTSRANGE {slots}");
            node.ask::<()>(&slots).await.unwrap();
            cluster.meet(node).await;
        }
        for node in &cluster.nodes {
            until("the cluster is whole", async || {
                let info: String = node.ask("CLUSTER INFO").await.unwrap();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
            .await;
        }
        cluster
    }

    /// A node without slots that knows nobody.
    pub(super) fn node() -> Server {
        let bus = free_port().to_string();
        Server::with(&[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--cluster-node-timeout",
            "2000",
            "--cluster-require-full-coverage",
            "no",
        ])
    }

    /// Introduces a node to the first one.
    pub(super) async fn meet(&self, node: &Server) {
        let bus = bus(&self.nodes[0]);
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", self.nodes[0].port);
        node.ask::<()>(&meet).await.unwrap();
    }

    pub(super) fn url(&self) -> String {
        let address = |node: &Server| format!("127.0.0.1:{}", node.port);
        let addresses: Vec<_> = self.nodes.iter().map(address).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    pub(super) async fn store(&self) -> RedisStore<RedisConnection> {
        RedisStore::connect(&self.url()).await.unwrap()
    }
}

/// Whether somebody listens at a port of this machine.
fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn bus(node: &Server) -> &str {
    let at = node
        .options
        .iter()
        .position(|option| option == "--cluster-port");
    &node.options[at.unwrap() + 1]
}

/// Waits until `is_so`, twenty seconds at the most.
pub(super) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "not yet: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
