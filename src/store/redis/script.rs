//! Calls to Redis.

use std::{sync::LazyLock, time::Duration};

use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ServerErrorKind,
    aio::ConnectionLike, cmd,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};

use super::super::StoreError;

/// How long Redis may take for one answer. Clients may wait longer: that of a cluster retries several times.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How many calls run concurrently.
const ABREAST: usize = 64;

/// A script, which Redis runs in one step.
pub(super) struct Function {
    code: &'static str,
    hash: LazyLock<String>,
}

macro_rules! function {
    ($($file:literal),+) => {{
        const CODE: &str = concat!($(include_str!($file)),+);
        Function {
            code: CODE,
            hash: LazyLock::new(|| Script::new(CODE).get_hash().to_owned()),
        }
    }};
}

pub(super) static RESERVE: Function = function!("common.lua", "reserve.lua");
pub(super) static SETTLE: Function = function!("common.lua", "settle.lua");
pub(super) static RENEW: Function = function!("common.lua", "renew.lua");
pub(super) static ACCOUNT: Function = function!("common.lua", "account.lua");
pub(super) static HOLDS: Function = function!("common.lua", "holds.lua");
pub(super) static SCAN: Function = function!("scan.lua");

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client or the server has failed.
    Redis(RedisError),
    Store(StoreError),
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let source = match failure {
            Failure::Redis(source) => source,
            Failure::Store(error) => return error,
        };
        let error = match source.kind() {
            ErrorKind::Server(ServerErrorKind::CrossSlot) => Self::misconfigured(
                "scopes of one request share no hash tag, so that this Redis cluster keeps them in different slots: \
                 name them as in `user:{acme}:42` and `tenant:{acme}`",
            ),
            ErrorKind::Server(ServerErrorKind::Moved) => Self::misconfigured(
                "this node of a Redis cluster does not have the scope: connect to the whole cluster, \
                 with `redis+cluster://` in place of `redis://`",
            ),
            _ => Self::unavailable("Redis failed"),
        };
        error.with_source(source)
    }
}

/// The error for an answer that this crate did not store.
pub(super) fn not_ours(text: &str) -> StoreError {
    StoreError::unreadable(format!("Redis holds something that is not ours: {text:?}"))
}

/// The error for a server that has not answered within [`PATIENCE`].
pub(super) fn late() -> StoreError {
    let seconds = PATIENCE.as_secs();
    StoreError::timed_out(format!("Redis has not answered for {seconds} seconds"))
}

/// A call of a function.
pub(super) struct Call {
    pub(super) function: &'static Function,
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<String>,
}

impl Call {
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        mut connection: impl ConnectionLike,
    ) -> Result<T, Failure> {
        let Function { code, hash } = self.function;
        let loaded = self.command("EVALSHA", hash);
        match ask(&loaded, &mut connection).await {
            // The server was restarted, or another node has taken over. EVAL loads the script where the keys are.
            Err(Failure::Redis(error))
                if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) =>
            {
                ask(&self.command("EVAL", code), &mut connection).await
            }
            answer => answer,
        }
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = cmd(name);
        let count = self.keys.len();
        command
            .arg(script)
            .arg(count)
            .arg(&self.keys)
            .arg(&self.args);
        command
    }
}

pub(super) async fn ask<T: FromRedisValue>(
    command: &Cmd,
    connection: &mut impl ConnectionLike,
) -> Result<T, Failure> {
    in_time(command.query_async(connection)).await
}

pub(super) async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
    let answer = timeout(PATIENCE, answer).await.map_err(|_| late())?;
    Ok(answer?)
}

/// Runs all of these, some concurrently, whether or not others fail. Returns the results in no order.
pub(super) async fn all<F, T>(work: impl IntoIterator<Item = F>) -> Vec<Result<T, Failure>>
where
    F: Future<Output = Result<T, Failure>> + Send + 'static,
    T: Send + 'static,
{
    let mut running = JoinSet::new();
    let mut done = Vec::new();
    let mut push = |ended: Result<_, JoinError>| {
        let over = |error| StoreError::unavailable("the runtime has ended").with_source(error);
        done.push(ended.unwrap_or_else(|error| Err(over(error).into())));
    };
    for work in work {
        if running.len() == ABREAST
            && let Some(ended) = running.join_next().await
        {
            push(ended);
        }
        running.spawn(work);
    }
    while let Some(ended) = running.join_next().await {
        push(ended);
    }
    done
}
