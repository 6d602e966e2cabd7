//! Calls that go by the clock of Redis, and correct it. See [`time`](super::super::time).

use std::sync::OnceLock;

use redis::{FromRedisValue, aio::ConnectionLike};

use super::{
    super::time::{Clocks, EngineTime},
    RedisStore,
    scan::slots,
    script::{Call, Failure},
};

/// The name of the one clock of a server, and the hash tag of its key.
const ONE: &str = "-";

#[derive(Default)]
pub(super) struct Time {
    clocks: Clocks,
    is_cluster: OnceLock<bool>,
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone,
{
    /// Runs a call on scopes that have this hash tag.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        tag: &str,
        mut call: Call,
    ) -> Result<T, Failure> {
        let clock = if self.has_one_clock().await? {
            ONE
        } else {
            tag
        };
        let expected = self.time.clocks.expected(clock);
        call.keys.push(self.keys.ahead(clock));
        let numbers =
            expected.map(|expected| [expected.time, expected.ahead].map(|n| n.to_string()));
        call.args.extend(numbers.unwrap_or_default());
        let (time, ahead, answer) = call.run(self.connection.clone()).await?;
        self.time.clocks.note(clock, EngineTime { time, ahead });
        Ok(answer)
    }

    /// Each node of a cluster has a clock, and a script there reads no keys of other slots. So there is one for each hash tag.
    async fn has_one_clock(&self) -> Result<bool, Failure> {
        if self.keys.have_one_slot() {
            return Ok(true);
        }
        if let Some(is_cluster) = self.time.is_cluster.get() {
            return Ok(!is_cluster);
        }
        let is_cluster = slots(&mut self.connection.clone()).await?.is_some();
        Ok(!self.time.is_cluster.get_or_init(|| is_cluster))
    }
}
