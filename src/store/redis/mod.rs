//! Quotas in Redis or Valkey.

mod baseline;
mod clock;
mod connect;
mod keys;
mod scan;
mod script;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::{ErrorKind, ServerErrorKind, aio::ConnectionLike, cmd};

pub use self::connect::RedisConnection;
use self::{
    baseline::Known,
    clock::Time,
    keys::{KeyKind, Keys, tag},
    scan::Walk,
    script::{ACCOUNT, Call, Failure, Function, HOLDS, RENEW, RESERVE, SETTLE, all, ask, not_ours},
};
use super::{
    Account, Baseline, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreError,
    StoreFuture,
};
use crate::{
    amount::Amount,
    cause::Resource,
    quota::{Change, Exceeded, Limits, OverSoftLimit, QuotaError},
    scope::{Scope, Scopes},
};

/// How long Redis keeps the tombstone of a settlement. No settlement is repeated after that.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// How many of them with one hash tag.
const MOST_REMEMBERED: u64 = 100_000;
/// The longest time to live: a century, which leaves sums of milliseconds exact.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// How many settlements, or renewals, one script may make.
const BATCH: usize = 64;

/// A [`Store`] in Redis or Valkey, on one server or in a cluster.
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
/// [`connect`](Self::connect) makes a connection from a URL. [`new`](Self::new) takes one of your own, of any type that can
/// be cloned:
///
/// - A `ConnectionManager`, or the connection of a `ClusterClient`, reconnects by itself. The quota recovers with it.
/// - A `MultiplexedConnection` does not reconnect once it is lost.
///
/// Each call fails after five seconds at the latest, or earlier if the connection says so. If the machine of the server
/// vanishes without a word, a connection of your own lasts for as long as the operating system tries, which may be a
/// quarter of an hour. `redis::io::tcp::TcpSettings` bounds that.
///
/// ```no_run
/// use redis::{Client, aio::{ConnectionManager, ConnectionManagerConfig}};
/// use tower_storage_guard::store::RedisStore;
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
/// Each call is a script, or one plain command; the first one also asks whether this is a cluster. A script is loaded by its first call, and again after a restart or a
/// failover that has lost it, so there is nothing to set up. The least that a Redis user needs is
/// `~quota:* +@read +@write +@scripting +time +cluster|slots`.
///
/// # How to name scopes
///
/// A Redis cluster runs a script only on keys of one slot. The *hash tag* of a scope decides on its slot: the text between
/// the first `{` and the first `}` after it, or the whole name if there is none. So **scopes that one request charges must
/// share a hash tag**:
///
/// | scopes | in a cluster |
/// |---|---|
/// | `user:{acme}:42`, `tenant:{acme}` | together, on one node |
/// | `user:42` | by itself, on any node |
/// | `user:42`, `tenant:acme` | [`QuotaError::Unavailable`], with `CROSSSLOT` of Redis as a source |
///
/// All requests of a tenant are then decided by one node. Without a cluster, names do not matter. A
/// [prefix](Self::prefix) with a hash tag, such as `{quota}:`, keeps all scopes on one node of a cluster, and names do not
/// matter either.
///
/// # What a cluster does differently
///
/// [`settle`](Store::settle) and [`renew`](Store::renew) are one atomic step for each hash tag, not for the whole call.
/// Each settlement is one step, and settled once. Only a change without a hold can have scopes with different hash tags
/// there: it is charged by hash tag, once in each.
///
/// The [baseline](super::Baseline) is on one node. A cluster that has lost another node's data is not seen to be emptied.
///
/// # Versions
///
/// The tests run on Redis 7.0, alone and as a cluster, and have run on Valkey 8.0. Redis 5 and 6 have the commands that are
/// used, and are not tested.
///
/// # What Redis promises
///
/// * **Evicting keys is forgetting quotas.** Set `maxmemory-policy noeviction`. When memory is full, nothing more is set
///   aside then: [`QuotaError::Unavailable`].
/// * What is not on the disk of Redis is lost with its process. `appendonly yes` loses a second at the most, and
///   `appendfsync always` nothing.
/// * Replicas follow a moment later. A failover may forget the holds and charges that were answered in that moment.
///   [`Admin::rescan`](super::Admin::rescan) puts usage right.
/// * Holds expire by the clock of the node that has the scope. If that is set while a process uses the store, forward or
///   back, the next call of the process notices, and keeps a correction in Redis. In a cluster there is one for each hash tag,
///   and a process notices it for those that it has used within two minutes.
///
/// # Cost
///
/// A reservation is one round trip, and so is a settlement of everything that waits with the same hash tag. In memory, a
/// scope takes 130 to 170 bytes, and a hold 210 to 260 in each scope: measured with short names in Redis 7.0 and Valkey 8.0.
/// A charge is remembered for a day, of the last 100,000 with one hash tag, and takes 50 bytes for that where there are few,
/// and 145 where there are many (Redis 7.0). What a killed process held in a scope is deleted when that scope
/// is next used or looked at.
///
/// [`largest`](Store::largest), and [`holds`](Store::holds) of all scopes, have no index: they `SCAN` all keys of all
/// nodes, a thousand in one step, and `largest` asks for the usage of every scope as well. They are for administration, and
/// not for every request: with a million scopes, `largest` took 6 to 15 seconds in a release build, on two busy cores. They
/// see what was there all the time, and may miss what comes or moves to another node meanwhile.
///
/// Figures are exact to the last byte: they have 64 bits, where a number in Lua has 53.
#[derive(Clone)]
pub struct RedisStore<C> {
    connection: C,
    keys: Keys,
    known: Arc<Mutex<Option<Known>>>,
    time: Arc<Time>,
}

impl<C> RedisStore<C> {
    /// Creates a store at the other end of this connection. Sends nothing yet.
    pub fn new(connection: C) -> Self {
        let keys = Keys {
            prefix: "quota:".into(),
        };
        Self {
            connection,
            keys,
            known: Arc::default(),
            time: Arc::default(),
        }
    }

    /// Sets what all keys begin with. Stores with different prefixes share nothing.
    ///
    /// It must not contain `{}`, since Redis then ignores the hash tags of the scopes. Defaults to `quota:`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.keys.prefix = prefix.into();
        self.known = Arc::default();
        self.time = Arc::default();
        self
    }
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// A call with two keys for each scope: its account, and the expiry of its holds.
    fn call<'a>(
        &self,
        function: &'static Function,
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
        [KeyKind::Account, KeyKind::Expiry].map(|kind| self.keys.of(kind, scope))
    }

    async fn set_aside(&self, reserve: &Reserve) -> Result<Reserved, QuotaError> {
        if reserve.scopes.is_empty() {
            return Ok(Reserved::default());
        }
        let required = reserve.amount.max(reserve.expected);
        let mut args = vec![
            reserve.id.to_string(),
            milliseconds(reserve.time_to_live),
            text::of_amount(reserve.amount),
            text::of_amount(required),
        ];
        let places = 0..reserve.scopes.len();
        args.extend(places.map(|place| text::of_limits(reserve.default_at(place))));
        let call = self.call(&RESERVE, &reserve.scopes, args);
        // The number of a scope, the resource, the limit and what is counted.
        type Refusal = (usize, String, String, String);
        let first = reserve.scopes.iter().next().map(tag).unwrap_or_default();
        let answer = self.with_baseline(self.run(first, call)).await;
        let ((refusal, over), baseline): ((Option<Refusal>, Vec<Over>), _) =
            answer.map_err(StoreError::from)?;
        let scope = |number: usize| {
            let index = number.checked_sub(1);
            let scope = index.and_then(|index| reserve.scopes.as_slice().get(index));
            scope.cloned().ok_or_else(|| not_ours(&number.to_string()))
        };
        if let Some((number, resource, limit, counted)) = refusal {
            let resource = self::resource(&resource);
            let required = resource.of(required);
            let (limit, counted) = (text::figure(&limit)?, text::figure(&counted)?);
            let exceeded = Exceeded::new(scope(number)?, resource, limit, counted, required);
            return Err(exceeded.into());
        }
        Ok(Reserved::new(self.read_over(over)?, baseline))
    }

    fn read_over(&self, all: Vec<Over>) -> Result<Vec<OverSoftLimit>, StoreError> {
        let read = |(key, resource, limit, used, left, crossed): Over| {
            let scope = self.keys.scope(KeyKind::Account, key.as_bytes());
            let scope = scope.ok_or_else(|| not_ours(&key))?;
            let (limit, used) = (text::figure(&limit)?, text::figure(&used)?);
            Ok(OverSoftLimit {
                grace: text::time(&left)?,
                has_just_crossed: crossed == 1,
                ..OverSoftLimit::new(scope, self::resource(&resource), limit, used)
            })
        };
        all.into_iter().map(read).collect()
    }

    async fn end(&self, settlements: &[Settlement]) -> Result<Vec<OverSoftLimit>, Failure> {
        // Settlements with the same hash tags are made together.
        let mut groups: BTreeMap<BTreeSet<&str>, Vec<Settlement>> = BTreeMap::new();
        for settlement in settlements {
            let tags: BTreeSet<_> = settlement.scopes.iter().map(tag).collect();
            if !tags.is_empty() {
                groups.entry(tags).or_default().push(settlement.clone());
            }
        }
        let mut work = Vec::new();
        for (tags, settlements) in &groups {
            for together in settlements.chunks(BATCH) {
                let of_tag = |tag: &&str| {
                    let parts: Vec<_> = together.iter().map(|one| in_tag(one, tag)).collect();
                    (tag.to_string(), self.settle_in_one(&parts))
                };
                let apart = match tags.len() {
                    1 => Vec::new(),
                    _ => tags.iter().map(of_tag).collect(),
                };
                let first = tags.first().copied().unwrap_or_default().to_owned();
                let together = (first, self.settle_in_one(together));
                work.push(settle(self.clone(), together, apart));
            }
        }
        let over: Result<Vec<_>, _> = all(work).await.into_iter().collect();
        Ok(self.read_over(over?.concat())?)
    }

    fn settle_in_one(&self, settlements: &[Settlement]) -> Call {
        let mut keys = Vec::new();
        let mut args = vec![milliseconds(REMEMBERED), MOST_REMEMBERED.to_string()];
        for settlement in settlements {
            let (id, scopes) = (settlement.id, &settlement.scopes);
            let (kept, amount, time_to_live) = match settlement.keep {
                Some(keep) => (keep.id.to_string(), keep.amount, keep.time_to_live),
                None => Default::default(),
            };
            let first = scopes.iter().next();
            keys.extend(first.map(|scope| self.keys.settled(scope)));
            keys.extend(scopes.iter().flat_map(|scope| self.pair(scope)));
            args.extend([
                id.to_string(),
                text::of_change(settlement.change),
                kept,
                text::of_amount(amount),
                milliseconds(time_to_live),
                scopes.len().to_string(),
            ]);
            let defaults = (0..scopes.len()).map(|place| settlement.default_at(place));
            args.extend(defaults.map(|default| default.map(text::of_limits).unwrap_or_default()));
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
        let chunks = groups
            .iter()
            .flat_map(|(tag, holds)| holds.chunks(BATCH).map(move |holds| (*tag, holds)));
        for (tag, holds) in chunks {
            let mut call = Call {
                function: &RENEW,
                keys: Vec::new(),
                args: vec![milliseconds(time_to_live)],
            };
            for (id, scope) in holds {
                call.keys.push(self.keys.of(KeyKind::Expiry, scope));
                call.args.push(id.to_string());
            }
            let (store, tag) = (self.clone(), tag.to_owned());
            work.push(async move { store.run(&tag, call).await });
        }
        all(work).await.into_iter().collect()
    }

    async fn stand(&self, scope: &Scope) -> Result<Account, Failure> {
        let call = self.call(&ACCOUNT, [scope], Vec::new());
        let fields: [String; 5] = self.run(tag(scope), call).await?;
        Ok(text::account(fields.each_ref().map(|field| &**field))?)
    }

    /// One command for a scope's account.
    async fn change(&self, name: &str, scope: &Scope, fields: &[&str]) -> Result<(), Failure> {
        let mut command = cmd(name);
        command
            .arg(self.keys.of(KeyKind::Account, scope))
            .arg(fields);
        ask(&command, &mut self.connection.clone()).await
    }

    async fn top(&self, count: usize) -> Result<Vec<(Scope, Account)>, Failure> {
        let mut top = HashMap::new();
        let mut walk = Walk::start(self.connection.clone(), &self.keys, KeyKind::Account).await?;
        while let Some(scopes) = walk.next().await? {
            let used = walk.used(&scopes).await?;
            top.extend(used.into_iter().map(|(scope, used)| (scope, used.bytes)));
            // Bounds what is kept of a million scopes.
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
            held(self.clone(), call, scope)
        };
        if let Some(scope) = scope {
            return ask(scope.clone()).await;
        }
        let (mut holds, mut seen) = (Vec::new(), HashSet::new());
        let mut walk = Walk::start(self.connection.clone(), &self.keys, KeyKind::Expiry).await?;
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

/// A soft limit that a scope is above: the key of its account, the resource, the limit, what is used, milliseconds until it is
/// enforced or `-`, and 1 if it was crossed.
type Over = (String, String, String, String, String, u8);

fn resource(number: &str) -> Resource {
    match number {
        "1" => Resource::Bytes,
        _ => Resource::Objects,
    }
}

/// The part of a settlement with one hash tag.
fn in_tag(settlement: &Settlement, wanted: &str) -> Settlement {
    let scopes = settlement.scopes.iter().enumerate();
    let (places, scopes): (Vec<_>, Vec<_>) =
        scopes.filter(|(_, scope)| tag(scope) == wanted).unzip();
    let defaults = places
        .iter()
        .map_while(|place| settlement.default_at(*place));
    Settlement {
        defaults: defaults.collect(),
        scopes: scopes.into_iter().cloned().collect(),
        ..settlement.clone()
    }
}

/// Settles in one step, so that a process that ends halfway leaves no half of a charge.
///
/// A cluster cannot do that for scopes with different hash tags. There is no hold in such scopes, only a change without one,
/// which has happened: it is charged part by part.
async fn settle<C>(
    store: RedisStore<C>,
    (tag, together): (String, Call),
    apart: Vec<(String, Call)>,
) -> Result<Vec<Over>, Failure>
where
    C: ConnectionLike + Clone,
{
    match store.run(&tag, together).await {
        Err(Failure::Redis(error))
            if error.kind() == ErrorKind::Server(ServerErrorKind::CrossSlot)
                && !apart.is_empty() =>
        {
            let mut over = Vec::new();
            for (tag, part) in apart {
                over.extend(store.run::<Vec<Over>>(&tag, part).await?);
            }
            Ok(over)
        }
        answer => answer,
    }
}

async fn held<C>(store: RedisStore<C>, call: Call, scope: Scope) -> Result<Vec<HoldEntry>, Failure>
where
    C: ConnectionLike + Clone,
{
    let found: Vec<(String, String, u64)> = store.run(tag(&scope), call).await?;
    let entries = found.into_iter().map(|(id, amount, rest)| {
        Ok(HoldEntry {
            amount: text::amount(&amount)?,
            id: id.parse().map_err(|_| not_ours(&id))?,
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

/// In milliseconds, and at least one.
fn milliseconds(duration: Duration) -> String {
    let at_least = Duration::from_millis(1);
    duration.clamp(at_least, LONGEST).as_millis().to_string()
}

impl<C> Store for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    fn reserve<'a>(&'a self, reserve: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        Box::pin(self.set_aside(reserve))
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>> {
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

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()> {
        boxed(async move {
            match limits.map(text::of_limits) {
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
        boxed(self.change("HDEL", scope, &["used", "limits", "unmatched", "over"]))
    }

    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
        boxed(self.read_baseline())
    }

    fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline> {
        boxed(self.begin_at(baseline))
    }
}

fn boxed<'a, T: 'a>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'a,
) -> StoreFuture<'a, T> {
    Box::pin(async move { work.await.map_err(StoreError::from) })
}

impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.keys.prefix)
            .finish_non_exhaustive()
    }
}
