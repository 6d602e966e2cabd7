//! Connecting by a URL.

use std::{fmt, time::Duration};

use redis::{
    Client, Cmd, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cmd,
    io::tcp::TcpSettings,
};
use tokio::time::timeout;

use super::{
    super::StoreError,
    RedisStore,
    script::{PATIENCE, ask, late},
};

/// How long one attempt to connect may take: two of them fit into the patience of a call.
const CONNECT: Duration = Duration::from_secs(2);

/// The connection that [`RedisStore::connect`] makes, to a server or to a cluster. It reconnects by itself.
#[derive(Clone)]
pub struct RedisConnection(Inner);

#[derive(Clone)]
enum Inner {
    Server(ConnectionManager),
    Cluster(ClusterConnection),
}

impl RedisStore<RedisConnection> {
    /// Connects to the server or cluster at a URL.
    ///
    /// | URL | connects to |
    /// |---|---|
    /// | `redis://user:password@host:6379/0` | a server, and the number of its database. The host is enough |
    /// | `redis+unix:///run/redis.sock` | a server on this machine |
    /// | `redis+cluster://user:password@one:6379,two:6379` | a cluster, by some of its nodes. One that is up is enough |
    ///
    /// `rediss` is `redis` over TLS. Enable a TLS feature of `redis` in your own `Cargo.toml` for it, such as
    /// `tokio-rustls-comp`. `valkey` and `valkeys` are the same as `redis` and `rediss`.
    ///
    /// A lost connection is made again as soon as a call finds the server up. On Linux, a connection whose other end has
    /// vanished without a word is given up after five seconds.
    ///
    /// # Errors
    ///
    /// When the URL is wrong, the server does not answer within five seconds, or it rejects the user. No error contains the
    /// password.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Ok(Self::new(RedisConnection(connect(url).await?)))
    }
}

async fn connect(url: &str) -> Result<Inner, StoreError> {
    let connecting = async {
        match nodes(url) {
            Some(nodes) => to_cluster(nodes).await,
            None => to_server(url).await,
        }
    };
    timeout(PATIENCE, connecting).await.map_err(|_| late())?
}

async fn to_server(url: &str) -> Result<Inner, StoreError> {
    let settings = url
        .into_connection_info()
        .map(|info| info.set_tcp_settings(tcp_settings()));
    let client = settings.and_then(Client::open).map_err(wrong_url)?;
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(PATIENCE))
        // The next call tries again. With more retries, calls would time out instead of reporting why they fail.
        .set_number_of_retries(1);
    let manager = ConnectionManager::new_with_config(client, config).await;
    let mut manager = manager.map_err(not_connected)?;
    // A wrong password is only rejected at the first command.
    ask::<Value>(&cmd("TIME"), &mut manager).await?;
    Ok(Inner::Server(manager))
}

async fn to_cluster(nodes: Vec<String>) -> Result<Inner, StoreError> {
    let client = ClusterClient::builder(nodes)
        .connection_timeout(CONNECT)
        .response_timeout(PATIENCE)
        .tcp_settings(tcp_settings())
        .build()
        .map_err(wrong_url)?;
    let connection = client.get_async_connection().await;
    Ok(Inner::Cluster(connection.map_err(not_connected)?))
}

fn wrong_url(error: RedisError) -> StoreError {
    StoreError::misconfigured(
        "not the URL of a store in Redis: `redis://host:6379`, or `redis+cluster://host:6379,other:6379`",
    )
    .with_source(error)
}

fn not_connected(error: RedisError) -> StoreError {
    StoreError::unavailable("cannot connect to Redis").with_source(error)
}

/// By default the operating system retries for a quarter of an hour when a machine has vanished.
fn tcp_settings() -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(PATIENCE);
    settings
}

/// The URL of each node, if this is the URL of a cluster.
fn nodes(url: &str) -> Option<Vec<String>> {
    let (scheme, rest) = url.split_once("+cluster://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, hosts) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    let node = |host: &str| format!("{scheme}://{user}{host}{tail}");
    Some(hosts.split(',').map(node).collect())
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.0 {
            Inner::Server(server) => server.req_packed_command(command),
            Inner::Cluster(cluster) => cluster.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.0 {
            Inner::Server(server) => server.req_packed_commands(pipeline, offset, count),
            Inner::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.0 {
            Inner::Server(server) => server.get_db(),
            Inner::Cluster(cluster) => cluster.get_db(),
        }
    }
}

/// Omits the address and the user.
impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConnection").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_named_by_its_nodes() {
        for (url, expected) in [
            ("redis://one:1,two:2", None),
            ("redis+cluster://one", Some(vec!["redis://one"])),
            (
                "rediss+cluster://me:p@ss@one:1,[::1]:2/?protocol=resp3",
                Some(vec![
                    "rediss://me:p@ss@one:1/?protocol=resp3",
                    "rediss://me:p@ss@[::1]:2/?protocol=resp3",
                ]),
            ),
        ] {
            let expected = expected
                .map(|nodes: Vec<_>| nodes.into_iter().map(String::from).collect::<Vec<_>>());
            assert_eq!(nodes(url), expected, "{url}");
        }
    }
}
