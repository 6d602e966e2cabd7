//! Redis servers, single and as a cluster.

use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
pub(super) use test_support::redis::Server;
use test_support::running::free_port;
use tower_storage_guard::store::{RedisConnection, RedisStore};

/// The store, over a connection that is configured like this.
pub(super) async fn store_with(
    server: &Server,
    config: ConnectionManagerConfig,
) -> RedisStore<ConnectionManager> {
    let manager = ConnectionManager::new_with_config(server.client(), config).await;
    RedisStore::new(manager.unwrap())
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

    /// A node without slots, which is not in a cluster yet.
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
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", self.nodes[0].port());
        node.ask::<()>(&meet).await.unwrap();
    }

    /// Sets the clock of each node.
    #[cfg(target_os = "linux")]
    pub(super) fn set_clocks(&mut self, ahead: &str) {
        for node in &mut self.nodes {
            node.set_clock(ahead);
        }
    }

    pub(super) fn url(&self) -> String {
        let address = |node: &Server| format!("127.0.0.1:{}", node.port());
        let addresses: Vec<_> = self.nodes.iter().map(address).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    pub(super) async fn store(&self) -> RedisStore<RedisConnection> {
        RedisStore::connect(&self.url()).await.unwrap()
    }
}

fn bus(node: &Server) -> &str {
    let mut options = node.options().iter();
    options.find(|option| *option == "--cluster-port");
    options.next().unwrap()
}

/// Waits until `is_so`, at most twenty seconds.
pub(super) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "not yet: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
