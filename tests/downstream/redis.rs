//! Redis, with a full data set and without a place to persist it.

use std::{path::Path, time::Duration};

use super::{
    patience,
    redis::{
        self, AsyncConnectionConfig, Client, RedisError, RedisResult, aio::MultiplexedConnection,
        cmd, pipe,
    },
};
use futures_util::future::BoxFuture;
use tower_storage_guard::fault::Cause;

use crate::support::{assert_not_refused, assert_refused};

/// A server on which clients fail.
struct Server(test_support::redis::Server);

impl Server {
    /// Persists in `folder` if the options ask for it.
    fn start(folder: &Path, options: &[&str]) -> Self {
        Self::start_by(&["redis-server"], folder, options)
    }

    fn start_by(launcher: &[&str], folder: &Path, options: &[&str]) -> Self {
        Self(test_support::redis::Server::by(launcher, folder, options))
    }

    /// A handler's work with a client of this server.
    fn work<T, Fut>(
        &self,
        work: fn(Client) -> Fut,
    ) -> impl Fn() -> BoxFuture<'static, RedisResult<T>> + Clone + Send + Sync + 'static
    where
        T: 'static,
        Fut: Future<Output = RedisResult<T>> + Send + 'static,
    {
        let client = self.client();
        move || Box::pin(work(client.clone()))
    }

    fn client(&self) -> Client {
        Client::open(self.0.url()).unwrap()
    }

    /// The answer to a command that succeeds.
    async fn ask(&self, words: &str) -> String {
        self.0.ask(words).await.unwrap()
    }

    /// Stores this many MiB.
    async fn fill(&self, mebibytes: usize) -> RedisResult<()> {
        let mut connection = connect(self.client()).await?;
        for key in 0..mebibytes * 16 {
            let value = vec![b'x'; 64 << 10];
            let mut set = cmd("SET");
            set.arg(key).arg(value).exec_async(&mut connection).await?;
        }
        Ok(())
    }

    /// Asserts that every kind of write is refused.
    async fn refuses_writes(&self, cause: Cause) {
        assert_refused(cause, self.work(set)).await;
        assert_refused(cause, self.work(pipeline)).await;
        assert_refused(cause, self.work(transaction)).await;
        assert_refused(cause, self.work(script)).await;
        assert_refused(cause, self.work(declared_script)).await;
        assert_refused(cause, self.work(blocking_pipeline)).await;
        assert_refused(cause, self.work(blocking_transaction)).await;
    }
}

async fn connect(client: Client) -> RedisResult<MultiplexedConnection> {
    client.get_multiplexed_async_connection().await
}

async fn set(client: Client) -> RedisResult<()> {
    let mut connection = connect(client).await?;
    cmd("SET")
        .arg("key")
        .arg("value")
        .exec_async(&mut connection)
        .await
}

fn reads_and_writes() -> redis::Pipeline {
    let mut commands = pipe();
    commands.cmd("GET").arg("key");
    commands.cmd("SET").arg("key").arg("value");
    commands
}

async fn pipeline(client: Client) -> RedisResult<()> {
    reads_and_writes()
        .exec_async(&mut connect(client).await?)
        .await
}

async fn transaction(client: Client) -> RedisResult<()> {
    let mut commands = reads_and_writes();
    commands
        .atomic()
        .exec_async(&mut connect(client).await?)
        .await
}

async fn eval(client: Client, script: &str) -> RedisResult<()> {
    let mut asked = cmd("EVAL");
    asked.arg(script).arg(1).arg("key");
    asked.exec_async(&mut connect(client).await?).await
}

/// Fails at the command in it.
async fn script(client: Client) -> RedisResult<()> {
    eval(client, "return redis.call('SET', KEYS[1], 'value')").await
}

/// Fails before it begins.
async fn declared_script(client: Client) -> RedisResult<()> {
    eval(client, "#!lua\nreturn redis.call('SET', KEYS[1], 'value')").await
}

async fn blocking_pipeline(client: Client) -> RedisResult<()> {
    let work = move || reads_and_writes().exec(&mut client.get_connection()?);
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn blocking_transaction(client: Client) -> RedisResult<()> {
    let work = move || {
        let mut commands = reads_and_writes();
        commands.atomic().exec(&mut client.get_connection()?)
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_data_set_at_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--maxmemory-policy", "noeviction"]);
    server.fill(4).await.unwrap();
    // A limit that is reached exactly still leaves room for a small value sometimes.
    server.ask("CONFIG SET maxmemory 2mb").await;
    server.refuses_writes(Cause::DatabaseFull).await;
}

/// The commands were queued, but their execution is refused.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_limit_that_is_reached_during_a_transaction() {
    async fn late(client: Client) -> RedisResult<()> {
        let mut other = connect(client.clone()).await?;
        let mut connection = connect(client).await?;
        let limit = |bytes: u32| {
            let mut asked = cmd("CONFIG");
            asked.arg("SET").arg("maxmemory").arg(bytes);
            asked
        };
        limit(0).exec_async(&mut other).await?;
        cmd("MULTI").exec_async(&mut connection).await?;
        let mut set = cmd("SET");
        let queued = set
            .arg("key")
            .arg("value")
            .query_async(&mut connection)
            .await;
        assert_eq!(queued, Ok("QUEUED".to_owned()));
        limit(1).exec_async(&mut other).await?;
        cmd("EXEC").exec_async(&mut connection).await
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--maxmemory-policy", "noeviction"]);
    assert_refused(Cause::DatabaseFull, server.work(late)).await;
}

/// Waits until the server reports this about its persistence.
#[cfg(target_os = "linux")]
async fn reports(server: &Server, line: &str) {
    loop {
        let report = server.ask("INFO persistence").await;
        if report.lines().any(|reported| reported == line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs redis-server, and mounts filesystems"]
fn a_snapshot_on_a_full_disk() {
    use test_support::mounts::{in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=1m");
            let options = &["--save", "3600 1", "--rdbcompression", "no"];
            let server = Server::start(&disk, options);
            server.fill(2).await.unwrap();
            server.ask("BGSAVE").await;
            reports(&server, "rdb_last_bgsave_status:err").await;
            server.refuses_writes(Cause::DatabaseFull).await;
        });
    });
}

/// Writes until the server has noticed that it cannot write its append-only file.
#[cfg(target_os = "linux")]
async fn until_appending_fails(server: &Server) {
    // For up to a second it answers with success.
    let failed: RedisError = loop {
        if let Err(error) = server.fill(4).await {
            break error;
        }
    };
    assert_eq!(failed.code(), Some("MISCONF"), "{failed}");
}

#[cfg(target_os = "linux")]
const APPENDING: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "everysec"];

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs redis-server, and mounts filesystems"]
fn an_append_only_file_on_a_full_disk() {
    use test_support::mounts::{in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=2m");
            let server = Server::start(&disk, &APPENDING);
            until_appending_fails(&server).await;
            server.refuses_writes(Cause::DiskFull).await;
        });
    });
}

/// The counterpart of the test above: there is room.
#[tokio::test]
#[cfg(target_os = "linux")]
#[ignore = "needs redis-server"]
async fn an_append_only_file_that_may_not_grow_is_no_fault() {
    use test_support::mounts::run;

    let folder = tempfile::tempdir().unwrap();
    let deaf = r#"trap "" XFSZ; exec redis-server "$@""#;
    let server = Server::start_by(&["sh", "-c", deaf, "sh"], folder.path(), &APPENDING);
    // It listens before its files exist, and answers after that.
    server.ask("PING").await;
    // From here on no file may grow. Set before the start, the limit would cause a torn write, which Redis reports as
    // a full disk.
    let id = server.0.id().to_string();
    run("prlimit", ["--pid", &id, "--fsize=0"]);
    until_appending_fails(&server).await;
    assert_not_refused(server.work(set)).await;
    assert_not_refused(server.work(pipeline)).await;
    assert_not_refused(server.work(transaction)).await;
    assert_not_refused(server.work(script)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_wrong_type_is_no_fault() {
    async fn push(client: Client) -> RedisResult<()> {
        let mut connection = connect(client).await?;
        cmd("LPUSH")
            .arg("text")
            .arg("a")
            .exec_async(&mut connection)
            .await
    }
    async fn transaction(client: Client) -> RedisResult<()> {
        let mut commands = pipe();
        commands.atomic().cmd("LPUSH").arg("text").arg("a");
        commands.exec_async(&mut connect(client).await?).await
    }
    async fn not_a_command(client: Client) -> RedisResult<()> {
        let mut commands = pipe();
        commands.atomic().cmd("OOM").arg("text");
        commands.exec_async(&mut connect(client).await?).await
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server.ask("SET text a").await;
    assert_not_refused(server.work(push)).await;
    assert_not_refused(server.work(transaction)).await;
    assert_not_refused(server.work(not_a_command)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn an_error_raised_by_a_script_is_no_fault() {
    async fn says(client: Client) -> RedisResult<()> {
        let says = r#"error("OOM command not allowed when used memory > 'maxmemory'.")"#;
        eval(client, says).await
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    assert_not_refused(server.work(says)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn too_many_clients_are_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--maxclients", "1"]);
    let _held = loop {
        // The server may not have noticed yet that the readiness check has disconnected.
        if let Ok(connection) = connect(server.client()).await {
            break connection;
        }
    };
    assert_not_refused(server.work(set)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_timeout_is_no_fault() {
    async fn waits(client: Client) -> RedisResult<()> {
        let patience = patience(Duration::from_millis(50));
        let config = AsyncConnectionConfig::new().set_response_timeout(patience);
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        cmd("BLPOP")
            .arg("nothing")
            .arg(0)
            .exec_async(&mut connection.await?)
            .await
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    assert_not_refused(server.work(waits)).await;
}
