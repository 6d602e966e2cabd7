//! Redis, without an append-only file.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{
    Client, IntoConnectionInfo,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cmd,
    io::tcp::TcpSettings,
};
use test_support::redis::Server;
use tokio::task::JoinSet;
use tower_storage_guard::{
    Amount, BoxError,
    store::{RedisConnection, RedisStore, Store},
};

use super::{Engine, FEW, Raw};

pub(crate) struct Redis(Server);

impl Engine for Redis {
    const NAME: &str = "Redis";
    type Store = RedisStore<RedisConnection>;
    type Raw = RawRedis;

    async fn start() -> Self {
        Self(Server::with(&["--appendonly", "no"]))
    }

    async fn store(&self) -> Self::Store {
        RedisStore::connect(&self.0.url()).await.expect("a server")
    }

    async fn raw(&self) -> RawRedis {
        let mut connection = self.connection().await;
        let hash = load(&mut connection).await;
        RawRedis { connection, hash }
    }

    async fn fill(&self, scopes: u32) {
        let store = Arc::new(self.store().await);
        let next = Arc::new(AtomicU32::new(0));
        let mut workers = JoinSet::new();
        for _ in 0..256 {
            let (store, next) = (Arc::clone(&store), Arc::clone(&next));
            workers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= scopes {
                        return;
                    }
                    let scope = format_args!("user:{number}").into();
                    let filled = store.set_used(&scope, Amount::new(1, 1)).await;
                    filled.expect("a server");
                }
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker.expect("none panics");
        }
    }

    async fn size(&self) -> u64 {
        let mut connection = self.connection().await;
        let info: String = cmd("INFO")
            .arg("memory")
            .query_async(&mut connection)
            .await
            .expect("a server");
        let used = info
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        used.and_then(|used| used.parse().ok()).expect("a number")
    }

    async fn by_its_own_tool(&self, at_a_time: usize, is_short: bool) -> Option<f64> {
        let hash = load(&mut self.connection().await).await;
        let requests = match (is_short, at_a_time) {
            (true, _) => "100",
            (false, 1) => "10000",
            (false, _) => "50000",
        };
        let mut command = Command::new("redis-benchmark");
        command
            .args(["-h", "127.0.0.1", "-p", &self.0.port().to_string(), "--csv"])
            .args(["-c", &at_a_time.to_string(), "-n", requests])
            .args(["-r", &FEW.to_string()])
            .args(["EVALSHA", &hash, "1", "number:__rand_int__", "used", "1"]);
        let output = command.output().ok()?;
        let text = String::from_utf8(output.stdout).expect("text");
        // The test's name, which has no comma here, and the rate.
        let rate = text.lines().last().and_then(|line| line.split(',').nth(1));
        let rate = rate.and_then(|rate| rate.trim_matches('"').parse().ok());
        Some(rate.unwrap_or_else(|| panic!("redis-benchmark says: {text}")))
    }
}

impl Redis {
    /// Configured as the store configures it.
    async fn connection(&self) -> ConnectionManager {
        let settings = TcpSettings::default().set_nodelay(true);
        let info = self.0.url().into_connection_info().expect("a URL");
        let client = Client::open(info.set_tcp_settings(settings)).expect("a URL");
        let config =
            ConnectionManagerConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        let manager = ConnectionManager::new_with_config(client, config).await;
        manager.expect("a server")
    }
}

async fn load(connection: &mut ConnectionManager) -> String {
    let loading = cmd("SCRIPT")
        .arg("LOAD")
        .arg("return redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])")
        .query_async(connection)
        .await;
    loading.expect("a server")
}

pub(crate) struct RawRedis {
    connection: ConnectionManager,
    hash: String,
}

impl Raw for RawRedis {
    async fn add(&self, number: u32, _: bool) -> Result<(), BoxError> {
        let mut command = cmd("EVALSHA");
        command
            .arg(&self.hash)
            .arg(1)
            .arg(format!("number:{number}"))
            .arg("used")
            .arg(1);
        let added = command.query_async(&mut self.connection.clone()).await;
        Ok(added?)
    }
}
