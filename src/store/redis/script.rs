//! Calls to Redis.

use std::{sync::LazyLock, time::Duration};

use redis::{
    Cmd, ErrorKind, FromRedisValue, ParsingError, RedisError, RedisResult, Script, ServerErrorKind,
    aio::ConnectionLike, cmd,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};

use super::super::{StoreError, StoreErrorKind};

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
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("Redis has not answered for {} seconds", PATIENCE.as_secs())]
    Late,
    #[error(
        "scopes of one request share no hash tag, so that this Redis cluster keeps them in different slots: \
         name them as in `user:{{acme}}:42` and `tenant:{{acme}}`"
    )]
    Apart(#[source] RedisError),
    #[error(
        "this node of a Redis cluster does not have the scope: connect to the whole cluster, \
         with `redis+cluster://` in place of `redis://`"
    )]
    Elsewhere(#[source] RedisError),
    #[error(
        "not the URL of a store in Redis: `redis://host:6379`, or `redis+cluster://host:6379,other:6379`"
    )]
    Url(#[source] RedisError),
    #[error("cannot connect to Redis")]
    NoConnection(#[source] RedisError),
    #[error("Redis failed")]
    Redis(#[from] RedisError),
    #[error("Redis has answered in a form that is not ours")]
    Odd(#[from] ParsingError),
    #[error("Redis holds something that is not ours: {0:?}")]
    NotOurs(String),
    #[error("the runtime has ended")]
    Over(#[from] JoinError),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let kind = match failure {
            Failure::Late => StoreErrorKind::TimedOut,
            Failure::Apart(_) | Failure::Elsewhere(_) | Failure::Url(_) => {
                StoreErrorKind::Misconfigured
            }
            Failure::Odd(_) | Failure::NotOurs(_) => StoreErrorKind::Unreadable,
            Failure::NoConnection(_) | Failure::Redis(_) | Failure::Over(_) => {
                StoreErrorKind::Unavailable
            }
        };
        let error = Self::new(kind, failure.to_string());
        match failure {
            Failure::Late | Failure::NotOurs(_) => error,
            Failure::Odd(source) => error.with_source(source),
            Failure::Over(source) => error.with_source(source),
            Failure::Apart(source)
            | Failure::Elsewhere(source)
            | Failure::Url(source)
            | Failure::NoConnection(source)
            | Failure::Redis(source) => error.with_source(source),
        }
    }
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
    let answer = timeout(PATIENCE, answer).await;
    answer
        .map_err(|_| Failure::Late)?
        .map_err(|error| match error.kind() {
            ErrorKind::Server(ServerErrorKind::CrossSlot) => Failure::Apart(error),
            ErrorKind::Server(ServerErrorKind::Moved) => Failure::Elsewhere(error),
            _ => Failure::Redis(error),
        })
}

/// Runs all of these, some concurrently, whether or not others fail. Returns the results in no order.
pub(super) async fn all<F, T>(work: impl IntoIterator<Item = F>) -> Vec<Result<T, Failure>>
where
    F: Future<Output = Result<T, Failure>> + Send + 'static,
    T: Send + 'static,
{
    let mut running = JoinSet::new();
    let mut done = Vec::new();
    let mut push =
        |ended: Result<_, JoinError>| done.push(ended.unwrap_or_else(|over| Err(over.into())));
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
