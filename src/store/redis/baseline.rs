//! The baseline of a store in Redis.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{MutexGuard, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use redis::{aio::ConnectionLike, cmd};
use tokio::time::timeout;

use super::{
    super::Baseline,
    RedisStore,
    script::{Failure, ask, not_ours},
};

/// How long a reservation that is answered waits for the baseline, and how long a node is left alone that has not sent it.
const AT_ONCE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_secs(1);

/// The last baseline that was read, and since when the node that has it is away.
pub(super) type Known = (Option<Baseline>, Option<Instant>);

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// Asks for the baseline right behind a call, so both take one round trip. Where it does not come along with the answer,
    /// this is the last one that is known: the node of a cluster that has it may be away, and stops only its own scopes.
    pub(super) async fn with_baseline<T>(
        &self,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<(T, Option<Baseline>), Failure> {
        let known = *self.known();
        if let Some((baseline, Some(since))) = known
            && since.elapsed() < PAUSE
        {
            return Ok((call.await?, baseline));
        }
        let (mut call, mut reading) = (pin!(call), pin!(self.read_baseline()));
        let mut read = None;
        let answer = poll_fn(|cx| {
            let answer = call.as_mut().poll(cx);
            if read.is_none()
                && let Poll::Ready(found) = reading.as_mut().poll(cx)
            {
                read = Some(found);
            }
            answer
        });
        let answer = answer.await?;
        let read = match (read, known) {
            (Some(read), _) => read.ok(),
            (None, None) => reading.await.ok(),
            (None, Some(_)) => timeout(AT_ONCE, reading).await.ok().and_then(Result::ok),
        };
        let baseline = match (read, known) {
            (Some(baseline), _) => baseline,
            (None, Some((last, _))) => {
                *self.known() = Some((last, Some(Instant::now())));
                last
            }
            (None, None) => None,
        };
        Ok((answer, baseline))
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn read_baseline(&self) -> Result<Option<Baseline>, Failure> {
        let mut command = cmd("GET");
        command.arg(self.keys.baseline());
        let number: Option<String> = ask(&command, &mut self.connection.clone()).await?;
        let parsed = number.map(|number| number.parse().map_err(|_| not_ours(&number)));
        let baseline = parsed.transpose()?.map(u64::into);
        *self.known() = Some((baseline, None));
        Ok(baseline)
    }

    pub(super) async fn begin_at(&self, new: Baseline) -> Result<Baseline, Failure> {
        let mut command = cmd("SET");
        command.arg(self.keys.baseline()).arg(new.get()).arg("NX");
        let _: Option<String> = ask(&command, &mut self.connection.clone()).await?;
        Ok(self.read_baseline().await?.unwrap_or(new))
    }
}
