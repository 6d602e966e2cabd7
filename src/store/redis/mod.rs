//! Quotas in Redis or Valkey.

mod connect;
mod keys;
mod scan;
mod script;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    time::Duration,
};

use redis::{aio::ConnectionLike, cmd};
use tower::BoxError;

pub use self::connect::RedisConnection;
use self::{
    keys::{Keys, Kind, tag},
    scan::Walk,
    script::{ACCOUNT, Call, Failure, HOLDS, RENEW, RESERVE, SETTLE, all, ask},
};
use super::{
    Account, Ceilings, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement, Store, StoreFuture,
};
use crate::{
    amount::Amount,
    fault::Resource,
    quota::{Change, Exceeded, QuotaError},
    scope::{Scope, Scopes},
};

/// How long Redis remembers what is settled. Nobody asks again after so long.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a hold may live: a century, which leaves sums of milliseconds exact.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// How many settlements one script may settle, and how many holds it may renew.
const BATCH: usize = 64;

/// Keeps quotas in Redis or Valkey: a [`Store`] for [`StoredQuota`](super::StoredQuota).
///
/// ```no_run
/// use tower_storage_guard::{
///     StorageGuardLayer,
///     quota::Limits,
///     store::{RedisStore, StoredQuota},
/// };
///
/// # async fn start() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let store = RedisStore::connect("redis://127.0.0.1:6379").await?.prefix("uploads:");
/// let quota = StoredQuota::new(store, Limits::bytes(10 << 30));
/// let layer = StorageGuardLayer::quota_only(quota);
/// # Ok(())
/// # }
/// ```
///
/// # The connection
///
/// [`connect`](Self::connect) makes one from a URL. [`new`](Self::new) takes yours: any that can be cloned. One that connects
/// again by itself lets quotas recover by themselves: a `ConnectionManager`, or the connection of a `ClusterClient`. A
/// `MultiplexedConnection` does not, once it is lost. What is slow is given up after five seconds, or earlier where the
/// connection says so. When its machine vanishes without a word, a connection of your own lasts for as long as your system
/// tries, which may be a quarter of an hour: `redis::io::tcp::TcpSettings` bound that.
///
/// ```no_run
/// use redis::{Client, aio::{ConnectionManager, ConnectionManagerConfig}};
/// use tower_storage_guard::quota::RedisStore;
///
/// # fn start() -> Result<(), Box<dyn std::error::Error>> {
/// // The service may start before Redis does.
/// let client = Client::open("redis://127.0.0.1:6379")?;
/// let manager = ConnectionManager::new_lazy_with_config(client, ConnectionManagerConfig::new())?;
/// let store = RedisStore::new(manager);
/// # Ok(())
/// # }
/// ```
///
/// Each call is a script, or one plain command. Redis loads a script when it is first called, and again after a restart
/// or a failover, where that has lost it. There is nothing to set up. A user of Redis' that may do only what is needed has
/// `~quota:* +@read +@write +@scripting +time +cluster|slots`.
///
/// # How to name scopes
///
/// Redis Cluster runs a script only on keys of one slot, and the *hash tag* of a scope decides on its slot: what is between
/// the first `{` and the first `}` after it, or the whole name where there is none. So **scopes that one request charges
/// share a hash tag**:
///
/// | scopes | in a cluster |
/// |---|---|
/// | `user:{acme}:42`, `tenant:{acme}` | together, on one node |
/// | `user:42` | by itself, on any node |
/// | `user:42`, `tenant:acme` | [`QuotaError::Unavailable`], whose source says why: Redis' `CROSSSLOT` |
///
/// What a whole tenant does is then done by one node. Without a cluster, names do not matter. A [prefix](Self::prefix)
/// with a hash tag, as in `{quota}:`, keeps everything on one node of a cluster, and then they do not matter either.
///
/// # What a cluster does differently
///
/// [`settle`](Store::settle) and [`renew`](Store::renew) are one atomic step for each hash tag, not for the whole call.
/// Every settlement is in one step, and settled once. Only a change without a hold can have scopes with different hash
/// tags there: it is charged hash tag by hash tag, in each of them once.
///
/// # Versions
///
/// The tests run on Redis 7.0, alone and as a cluster, and have run on Valkey 8.0. Redis 5 and 6 have
/// the commands that are used, and are not tested.
///
/// # What Redis promises
///
/// * **Evicting keys is forgetting quotas.** Set `maxmemory-policy noeviction`. When memory is full then, nothing more is
///   set aside: [`QuotaError::Unavailable`].
/// * What is not on Redis' disk is lost with its process. `appendonly yes` loses a second at the most, and
///   `appendfsync always` nothing.
/// * Replicas follow a moment later. A failover may forget what was answered in that moment: holds, and charges too. What is
///   wrong then is put right by [`set_used`](Store::set_used).
/// * Only Redis' clock counts, of the node that has the scope.
///
/// # Cost
///
/// A reservation is one round trip, and so is a settlement of what waits with the same hash tag. In memory, a scope takes
/// 130 to 170 bytes, a hold 210 to 260 in each scope, and a charge 205 to 230, as it is remembered for a day: so many were
/// measured with short names in Redis 7.0 and Valkey 8.0. What a killed process held in a scope is thrown away when that scope
/// is used or looked at again.
///
/// [`largest`](Store::largest), and [`holds`](Store::holds) of any scope, have no index: they `SCAN` all keys of all
/// nodes, a thousand in one step. `largest` asks for the usage of every scope besides. They are for a person who looks, not
/// for every request: a million scopes took `largest` 6 to 15 seconds in a release build, and a minute in a debug build, on a
/// machine of two cores that had more to do. They see what has been there all the time, and may miss what comes or moves to
/// another node meanwhile.
///
/// Figures are exact, to the last byte: 64 bits, and not the 53 of a number in Lua.
#[derive(Clone)]
pub struct RedisStore<C> {
    connection: C,
    keys: Keys,
}

impl<C> RedisStore<C> {
    /// A store at the other end of this connection. It asks nothing yet.
    pub fn new(connection: C) -> Self {
        let keys = Keys {
            prefix: "quota:".into(),
        };
        Self { connection, keys }
    }

    /// What all its keys begin with. Stores with different prefixes share nothing. It must not contain `{}`, which Redis
    /// takes for a hash tag that is none.
    ///
    /// Defaults to `quota:`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.keys.prefix = prefix.into();
        self
    }
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// A call with the account of each scope, and when its holds end.
    fn call<'a>(
        &self,
        function: &'static script::Function,
        scopes: impl IntoIterator<Item = &'a Scope>,
        args: Vec<String>,
    ) -> Call {
        let scopes = scopes.into_iter();
        Call {
            function,
            keys: scopes.flat_map(|scope| self.pair(scope)).collect(),
            args,
        }
    }

    fn pair(&self, scope: &Scope) -> [String; 2] {
        [Kind::Account, Kind::Expiry].map(|kind| self.keys.of(kind, scope))
    }

    async fn set_aside(&self, asked: &Reserve) -> Result<Reserved, QuotaError> {
        let required = asked.amount.max(asked.expected);
        let args = vec![
            asked.id.to_string(),
            milliseconds(asked.time_to_live),
            text::of_amount(asked.amount),
            text::of_amount(required),
            text::of_ceilings(asked.default),
        ];
        let call = self.call(&RESERVE, &asked.scopes, args);
        // A scope by its number, and three figures of it.
        type Found = (usize, String, String, String);
        let (refusal, warnings): (Option<Found>, Vec<Found>) = call
            .run(self.connection.clone())
            .await
            .map_err(unavailable)?;
        let scope = |number: usize| {
            let scope = number
                .checked_sub(1)
                .and_then(|index| asked.scopes.iter().nth(index));
            scope
                .cloned()
                .ok_or_else(|| unavailable(Failure::NotOurs(number.to_string())))
        };
        if let Some((number, resource, limit, counted)) = refusal {
            let figure = |text: String| {
                text::figure(&text).ok_or_else(|| unavailable(Failure::NotOurs(text)))
            };
            let (resource, required) = match &*resource {
                "1" => (Resource::Bytes, required.bytes),
                _ => (Resource::Objects, required.objects),
            };
            let (limit, counted) = (figure(limit)?, figure(counted)?);
            let exceeded = Exceeded::new(scope(number)?, resource, limit, counted, required);
            return Err(exceeded.into());
        }
        let mut reserved = Reserved::default();
        for (number, used, held, limits) in warnings {
            let account = text::account(&used, &held, &limits).map_err(unavailable)?;
            reserved.warnings.push((scope(number)?, account));
        }
        Ok(reserved)
    }

    async fn end(&self, settlements: &[Settlement]) -> Result<(), Failure> {
        // Those that have the same hash tags are settled together.
        let mut groups: BTreeMap<BTreeSet<&str>, Vec<Part<'_>>> = BTreeMap::new();
        for settlement in settlements {
            let part = Part::whole(settlement);
            if !part.scopes.is_empty() {
                groups.entry(part.tags()).or_default().push(part);
            }
        }
        let mut work = Vec::new();
        for (tags, parts) in &groups {
            for parts in parts.chunks(BATCH) {
                let together = self.settle_in_one(parts);
                let by_tag =
                    |tag: &&str| -> Vec<_> { parts.iter().map(|part| part.in_tag(tag)).collect() };
                let apart = match tags.len() {
                    1 => Vec::new(),
                    _ => tags
                        .iter()
                        .map(by_tag)
                        .map(|parts| self.settle_in_one(&parts))
                        .collect(),
                };
                work.push(settle(self.connection.clone(), together, apart));
            }
        }
        all(work).await.into_iter().collect()
    }

    fn settle_in_one(&self, parts: &[Part<'_>]) -> Call {
        let (mut keys, mut args) = (Vec::new(), vec![milliseconds(REMEMBERED)]);
        for Part {
            id,
            change,
            keep,
            scopes,
        } in parts
        {
            let (kept, amount, time_to_live) = match keep {
                Some(keep) => (keep.id.to_string(), keep.amount, keep.time_to_live),
                None => Default::default(),
            };
            keys.extend(scopes.first().map(|scope| self.keys.settled(*id, scope)));
            keys.extend(scopes.iter().flat_map(|scope| self.pair(scope)));
            args.extend([
                id.to_string(),
                text::of_change(*change),
                kept,
                text::of_amount(amount),
                milliseconds(time_to_live),
                scopes.len().to_string(),
            ]);
        }
        Call {
            function: &SETTLE,
            keys,
            args,
        }
    }

    async fn keep(
        &self,
        holds: &[(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> Result<(), Failure> {
        let mut groups: BTreeMap<&str, Vec<(HoldId, &Scope)>> = BTreeMap::new();
        for (id, scopes) in holds {
            for scope in scopes {
                groups.entry(tag(scope)).or_default().push((*id, scope));
            }
        }
        let mut work = Vec::new();
        for holds in groups.values().flat_map(|holds| holds.chunks(BATCH)) {
            let mut call = Call {
                function: &RENEW,
                keys: Vec::new(),
                args: vec![milliseconds(time_to_live)],
            };
            for (id, scope) in holds {
                call.keys.push(self.keys.of(Kind::Expiry, scope));
                call.args.push(id.to_string());
            }
            let connection = self.connection.clone();
            work.push(async move { call.run(connection).await });
        }
        all(work).await.into_iter().collect()
    }

    async fn stand(&self, scope: &Scope) -> Result<Account, Failure> {
        let call = self.call(&ACCOUNT, [scope], Vec::new());
        let (used, held, limits): (String, String, String) =
            call.run(self.connection.clone()).await?;
        text::account(&used, &held, &limits)
    }

    /// One command for a scope's account.
    async fn change(&self, name: &str, scope: &Scope, fields: &[&str]) -> Result<(), Failure> {
        let mut command = cmd(name);
        command.arg(self.keys.of(Kind::Account, scope)).arg(fields);
        ask(&command, &mut self.connection.clone()).await
    }

    async fn top(&self, count: usize) -> Result<Vec<(Scope, Account)>, Failure> {
        let mut top = HashMap::new();
        let mut walk = Walk::start(self.connection.clone(), &self.keys, Kind::Account).await?;
        while let Some(scopes) = walk.next().await? {
            let used = walk.used(&scopes).await?;
            top.extend(used.into_iter().map(|(scope, used)| (scope, used.bytes)));
            // Not all of a million are kept.
            if top.len() > count.saturating_mul(2).saturating_add(1_000) {
                top = largest(top, count).into_iter().collect();
            }
        }
        let mut accounts = Vec::new();
        for (scope, _) in largest(top, count) {
            let account = self.stand(&scope).await?;
            accounts.push((scope, account));
        }
        accounts.sort_by_key(|(_, account)| std::cmp::Reverse(account.used.bytes));
        Ok(accounts)
    }

    async fn held(&self, scope: Option<&Scope>, count: usize) -> Result<Vec<HoldEntry>, Failure> {
        let ask = |scope: Scope| {
            // Redis counts no further.
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let call = self.call(&HOLDS, [&scope], vec![count.to_string()]);
            held(self.connection.clone(), call, scope)
        };
        if let Some(scope) = scope {
            return ask(scope.clone()).await;
        }
        let (mut holds, mut seen) = (Vec::new(), HashSet::new());
        let mut walk = Walk::start(self.connection.clone(), &self.keys, Kind::Expiry).await?;
        while holds.len() < count
            && let Some(scopes) = walk.next().await?
        {
            let new = scopes
                .into_iter()
                .filter(|scope| seen.insert(scope.clone()));
            for found in all(new.map(ask)).await {
                holds.extend(found?);
            }
        }
        holds.truncate(count);
        Ok(holds)
    }
}

/// A settlement, or as much of it as has one hash tag.
struct Part<'a> {
    id: HoldId,
    change: Change,
    keep: Option<Keep>,
    scopes: Vec<&'a Scope>,
}

impl<'a> Part<'a> {
    fn whole(settlement: &'a Settlement) -> Self {
        Self {
            id: settlement.id,
            change: settlement.change,
            keep: settlement.keep,
            scopes: settlement.scopes.iter().collect(),
        }
    }

    fn in_tag(&self, wanted: &str) -> Self {
        let scopes = self.scopes.iter().copied();
        Self {
            scopes: scopes.filter(|scope| tag(scope) == wanted).collect(),
            ..*self
        }
    }

    fn tags(&self) -> BTreeSet<&'a str> {
        self.scopes.iter().map(|scope| tag(scope)).collect()
    }
}

/// In one step, where Redis can: a process that ends halfway must not leave half of a charge.
///
/// Where a cluster cannot, nothing has been set aside either. What is charged without a hold is charged part by part then:
/// it has happened, and an error would be no use.
async fn settle<C>(connection: C, together: Call, apart: Vec<Call>) -> Result<(), Failure>
where
    C: ConnectionLike + Clone,
{
    match together.run(connection.clone()).await {
        Err(Failure::Apart(_)) if !apart.is_empty() => {
            for part in apart {
                part.run::<()>(connection.clone()).await?;
            }
            Ok(())
        }
        answer => answer,
    }
}

async fn held(
    connection: impl ConnectionLike,
    call: Call,
    scope: Scope,
) -> Result<Vec<HoldEntry>, Failure> {
    let found: Vec<(String, String, u64)> = call.run(connection).await?;
    let entries = found.into_iter().map(|(id, amount, rest)| {
        Ok(HoldEntry {
            amount: text::amount(&amount)?,
            id: id.parse().map_err(|_| Failure::NotOurs(id))?,
            scope: scope.clone(),
            expires_in: Duration::from_millis(rest),
        })
    });
    entries.collect()
}

/// The largest first.
fn largest(used: HashMap<Scope, i64>, count: usize) -> Vec<(Scope, i64)> {
    let mut all: Vec<_> = used.into_iter().collect();
    all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    all.truncate(count);
    all
}

/// No hold lives for no time at all.
fn milliseconds(duration: Duration) -> String {
    let at_least = Duration::from_millis(1);
    duration.clamp(at_least, LONGEST).as_millis().to_string()
}

fn unavailable(failure: Failure) -> QuotaError {
    QuotaError::Unavailable(failure.into())
}

impl<C> Store for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        Box::pin(async move {
            if asked.scopes.is_empty() {
                return Ok(Reserved::default());
            }
            self.set_aside(asked).await
        })
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, ()> {
        boxed(self.end(settlements))
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        boxed(self.keep(holds, time_to_live))
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        boxed(self.stand(scope))
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Ceilings>) -> StoreFuture<'a, ()> {
        boxed(async move {
            match limits.map(text::of_ceilings) {
                Some(limits) => self.change("HSET", scope, &["limits", &limits]).await,
                None => self.change("HDEL", scope, &["limits"]).await,
            }
        })
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        boxed(async move {
            match Change::from(used) {
                Change::ZERO => self.change("HDEL", scope, &["used"]).await,
                used => {
                    let used = text::of_change(used);
                    self.change("HSET", scope, &["used", &used]).await
                }
            }
        })
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        boxed(self.top(count))
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        boxed(self.held(scope, count))
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        boxed(self.change("HDEL", scope, &["used", "limits"]))
    }
}

fn boxed<'a, T: 'a>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'a,
) -> StoreFuture<'a, T> {
    Box::pin(async move { work.await.map_err(BoxError::from) })
}

impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.keys.prefix)
            .finish_non_exhaustive()
    }
}
