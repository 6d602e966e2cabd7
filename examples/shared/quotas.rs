//! Where quotas are kept: in memory, or in a store that outlives the process and may be shared.

use std::{ffi::OsStr, fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use clap::{Arg, Command, builder::TypedValueParser, error::ErrorKind};
use futures_util::future::{BoxFuture, Either};
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tower_storage_guard::{
    Amount, BoxError, Scope, Scopes,
    quota::{
        Account, Answer, Change, Journal, LeasedHold, LeasedQuota, Limits, MemoryHold, MemoryQuota,
        PostgresStore, QuotaError, QuotaHold, QuotaSource, RedisStore, Settled, SqliteStore, Store,
        StoredHold, StoredQuota, Usage,
    },
};

/// How long a database may take to answer the first time.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long somebody waits for a charge to be in the store. It gets there all the same.
const CHARGED: Duration = Duration::from_secs(2);

/// Where they are kept.
#[derive(Clone)]
pub(crate) enum Place {
    Memory,
    /// A file. Without a name, the one that a server has beside its uploads.
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
    /// A server or a cluster, by its URL.
    Redis(String),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        match scheme {
            "memory" if rest.is_empty() => Ok(Self::Memory),
            // Both `sqlite:a/b` and `sqlite:///a/b` are usual.
            "sqlite" => Ok(Self::Sqlite(rest.strip_prefix("//").unwrap_or(rest).into())),
            "postgres" | "postgresql" => match text.parse() {
                Ok(options) => Ok(Self::Postgres(Box::new(options))),
                Err(error) => Err(format!("that is no address of PostgreSQL: {error}")),
            },
            "redis" | "rediss" | "redis+unix" | "redis+cluster" | "rediss+cluster"
                if rest.starts_with("//") =>
            {
                Ok(Self::Redis(text.to_owned()))
            }
            _ => {
                let places = "memory:, sqlite:PATH, postgres://USER@HOST/DATABASE or redis://HOST";
                Err(format!("expected {places}"))
            }
        }
    }
}

/// Without what is secret.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(options) => {
                let (host, port) = (options.get_host(), options.get_port());
                let database = options.get_database().unwrap_or(options.get_username());
                write!(f, "postgres://{host}:{port}/{database}")
            }
            Self::Redis(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                write!(f, "{scheme}://{host}")
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads a place from the command line. It does not repeat what is wrong, as clap would: a password may be in it.
#[derive(Clone)]
pub(crate) struct PlaceParser;

impl TypedValueParser for PlaceParser {
    type Value = Place;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Place, clap::Error> {
        let text = value.to_str().ok_or("it is not text".to_owned());
        text.and_then(str::parse).map_err(|error| {
            let arg = arg.map(Arg::to_string).unwrap_or_default();
            let message = format!("invalid value for '{arg}': {error}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

impl Place {
    /// With the name of the file that a server has beside its uploads.
    pub(crate) fn or_beside(self, file: impl FnOnce() -> PathBuf) -> Self {
        match self {
            Self::Sqlite(path) if path.as_os_str().is_empty() => Self::Sqlite(file()),
            place => place,
        }
    }

    /// Opens the store, and makes it if it is missing. None for memory.
    async fn open(&self) -> Result<Option<Arc<dyn Store>>, BoxError> {
        Ok(Some(match self {
            Self::Memory => return Ok(None),
            Self::Sqlite(path) => {
                let path = path.clone();
                Arc::new(spawn_blocking(|| SqliteStore::open(path)).await??)
            }
            Self::Postgres(options) => {
                connect(options).await?.close().await?;
                Arc::new(postgres(options))
            }
            Self::Redis(url) => Arc::new(RedisStore::connect(url).await?),
        }))
    }

    /// Opens a store that is there already, for a tool to look into.
    pub(crate) async fn look_into(&self) -> Result<Arc<dyn Store>, BoxError> {
        let store = self.open_existing().await;
        store.map_err(|error| format!("{self}: {error}").into())
    }

    async fn open_existing(&self) -> Result<Arc<dyn Store>, BoxError> {
        Ok(match self {
            Self::Memory => return Err("nobody can look into another process".into()),
            Self::Sqlite(path) => {
                let path = path.clone();
                Arc::new(spawn_blocking(|| SqliteStore::open_existing(path)).await??)
            }
            Self::Postgres(options) => {
                let mut connection = connect(options).await?;
                let look = "SELECT to_regclass('storage_guard_accounts') IS NOT NULL";
                let is_there: bool = sqlx::query_scalar(look).fetch_one(&mut connection).await?;
                connection.close().await?;
                if !is_there {
                    return Err("there are no quotas in the database".into());
                }
                Arc::new(postgres(options))
            }
            // Nothing is made there before it is used.
            Self::Redis(url) => Arc::new(RedisStore::connect(url).await?),
        })
    }
}

/// A pool would go on trying for a while, and not say what is wrong.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, BoxError> {
    match timeout(PATIENCE, options.connect()).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err("the server does not answer".into()),
    }
}

fn postgres(options: &PgConnectOptions) -> PostgresStore {
    let pool = PgPoolOptions::new().max_connections(8);
    PostgresStore::new(pool.connect_lazy_with(options.clone()))
}

/// The quotas themselves, and the one type that the examples know. Cheap to clone.
///
/// A service that has decided where it keeps them needs none of this: each of the two is a source already.
#[derive(Clone)]
pub(crate) enum Quotas {
    Memory(MemoryQuota),
    Stored(StoredQuota<Arc<dyn Store>>),
    Leased(LeasedQuota<Arc<dyn Store>>),
}

impl Quotas {
    /// Without limits on anything. Charges that the store has not taken yet are in the directory `journal`.
    pub(crate) async fn open(
        place: &Place,
        journal: PathBuf,
        time_to_live: Duration,
        has_leases: bool,
    ) -> Result<Self, BoxError> {
        let store = place.open().await;
        let Some(store) = store.map_err(|error| format!("{place}: {error}"))? else {
            return Ok(Self::Memory(MemoryQuota::new(Limits::UNLIMITED)));
        };
        let journal = spawn_blocking(|| Journal::open(journal)).await??;
        let quota = StoredQuota::new(store, Limits::UNLIMITED)
            .time_to_live(time_to_live)
            .journal(journal);
        Ok(match has_leases {
            true => Self::Leased(LeasedQuota::new(quota)),
            false => Self::Stored(quota),
        })
    }

    fn stored(&self) -> Option<&StoredQuota<Arc<dyn Store>>> {
        match self {
            Self::Memory(_) => None,
            Self::Stored(quota) => Some(quota),
            Self::Leased(quota) => Some(quota.stored()),
        }
    }

    /// Whether nobody has said anything about a scope yet, and nothing was charged.
    pub(crate) async fn is_new(&self, scope: &Scope) -> Result<bool, BoxError> {
        match self.stored() {
            None => Ok(true),
            Some(quota) => {
                let account = quota.admin().account(scope).await?;
                Ok(account == Account::default())
            }
        }
    }

    pub(crate) async fn set_limits(&self, scope: &Scope, limits: Limits) -> Result<(), BoxError> {
        match self {
            Self::Memory(quota) => quota.set_limits(scope, limits),
            Self::Stored(quota) => quota.admin().set_limits(scope, limits).await?,
            Self::Leased(quota) => quota.stored().admin().set_limits(scope, limits).await?,
        }
        Ok(())
    }

    pub(crate) async fn usage(&self, scope: &Scope) -> Result<Usage, BoxError> {
        match self {
            Self::Memory(quota) => Ok(quota.usage(scope)),
            Self::Stored(quota) => quota.usage(scope).await,
            Self::Leased(quota) => quota.stored().usage(scope).await,
        }
    }

    /// Charges what changed without a reservation.
    pub(crate) async fn charge(&self, scopes: &Scopes, change: Change) {
        match self {
            Self::Memory(quota) => scopes.iter().for_each(|scope| quota.adjust(scope, change)),
            Self::Stored(quota) => {
                // Not to be waited for forever, and not lost then.
                let _ = timeout(CHARGED, quota.adjust(scopes.clone(), change)).await;
            }
            Self::Leased(quota) => {
                let adjusted = quota.stored().adjust(scopes.clone(), change);
                let _ = timeout(CHARGED, adjusted).await;
            }
        }
    }

    /// Waits until every charge is in the store.
    pub(crate) async fn are_settled(&self) {
        if let Self::Leased(quota) = self {
            quota.settled().await;
        }
        while self.unsettled() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many charges and releases are not in the store.
    pub(crate) fn unsettled(&self) -> usize {
        self.stored().map_or(0, StoredQuota::unsettled)
    }
}

impl QuotaSource for Quotas {
    type Future = BoxFuture<'static, Result<Hold, QuotaError>>;
    type Hold = Hold;

    fn reserve(&self, scopes: &Scopes, demand: Amount, expected: Amount) -> Answer<Self::Future> {
        match self {
            Self::Memory(quota) => wrap(quota.reserve(scopes, demand, expected), Hold::Memory),
            Self::Stored(quota) => wrap(quota.reserve(scopes, demand, expected), Hold::Stored),
            Self::Leased(quota) => wrap(quota.reserve(scopes, demand, expected), Hold::Leased),
        }
    }

    fn give_back(&self, scopes: &Scopes, amount: Amount) {
        match self {
            Self::Memory(quota) => quota.give_back(scopes, amount),
            Self::Stored(quota) => quota.give_back(scopes, amount),
            Self::Leased(quota) => quota.give_back(scopes, amount),
        }
    }
}

fn wrap<F, H>(answer: Answer<F>, wrap: fn(H) -> Hold) -> Answer<<Quotas as QuotaSource>::Future>
where
    F: Future<Output = Result<H, QuotaError>> + Send + 'static,
    H: 'static,
{
    match answer.now() {
        Ok(decided) => Answer::Now(decided.map(wrap)),
        Err(coming) => Answer::Later(Box::pin(async move { coming.await.map(wrap) })),
    }
}

type Growing = BoxFuture<'static, Result<(), QuotaError>>;

/// What any of them has set aside.
pub(crate) enum Hold {
    Memory(MemoryHold),
    Stored(StoredHold<Arc<dyn Store>>),
    Leased(LeasedHold<Arc<dyn Store>>),
}

impl QuotaHold for Hold {
    type Commit = Either<<MemoryHold as QuotaHold>::Commit, Settled>;
    type Grow = Either<
        <MemoryHold as QuotaHold>::Grow,
        Either<Growing, <LeasedHold<Arc<dyn Store>> as QuotaHold>::Grow>,
    >;

    fn grow(&mut self, more: Amount) -> Self::Grow {
        match self {
            Self::Memory(hold) => Either::Left(hold.grow(more)),
            Self::Stored(hold) => Either::Right(Either::Left(hold.grow(more))),
            Self::Leased(hold) => Either::Right(Either::Right(hold.grow(more))),
        }
    }

    fn commit(self, change: Change) -> Self::Commit {
        match self {
            Self::Memory(hold) => Either::Left(hold.commit(change)),
            Self::Stored(hold) => Either::Right(hold.commit(change)),
            Self::Leased(hold) => Either::Right(hold.commit(change)),
        }
    }
}
