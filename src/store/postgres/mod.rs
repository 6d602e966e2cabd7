//! Quotas in PostgreSQL.

mod loan;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    PgPool, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout;
use tower::BoxError;

use super::{
    Account, Baseline, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreError,
    StoreFuture,
    sql::{Columns, PATIENCE, amount, columns, judge, limit, limits, lives, milliseconds, signed},
    time::{Clocks, EngineTime},
};
use crate::{
    amount::Amount,
    quota::{Change, Crossed, Limits, OverFor, OverSoftLimit, QuotaError, over},
    scope::{Scope, Scopes},
};

/// A [`Store`] in PostgreSQL 12 or later, on a pool of the application's own [`sqlx`].
///
/// ```no_run
/// use sqlx::postgres::PgPoolOptions;
/// use tower_storage_guard::{
///     StorageGuardLayer,
///     quota::Limits,
///     store::{PostgresStore, StoredQuota},
/// };
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new().max_connections(8).connect("postgres://app@db/app").await?;
/// let quota = StoredQuota::new(PostgresStore::new(pool), Limits::bytes(1 << 30));
/// let layer = StorageGuardLayer::quota_only(quota);
/// # Ok(())
/// # }
/// ```
///
/// # The schema
///
/// The schema has four tables and some functions, all named `storage_guard_…`, in the first schema of the search path.
/// They are created by the first call that misses them. If the service has no right to create them, call
/// [`migrate`](Self::migrate) with a pool that has, and grant the service the use of the tables and functions.
///
/// # Calls
///
/// Each call is one statement, and one round trip. The pool may add its own, such as the test of each connection before it
/// is handed out. No lock outlives a statement, so a process that stops delays no other one. Holds expire by the clock of
/// the server. If that is set while a process uses the store, forward or back, the next call of the process notices, and keeps
/// a correction in the database.
///
/// Leave the isolation level at "read committed". A stricter one breaks no limit, but many concurrent calls for the same
/// scope fail under it.
///
/// # When the server is away
///
/// Each call fails after five seconds at the latest. Connections of failed calls are closed rather than given back to the
/// pool, so that the pool has new ones as soon as there is a server, the same or another.
///
/// # Bounds
///
/// No scope counts more than [`i64::MAX`] bytes or objects.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pool: PgPool,
    clocks: Arc<Clocks>,
}

/// The one clock of a server.
const CLOCK: &str = "server";

impl PostgresStore {
    /// Creates a store in the database of this pool. Sends nothing yet.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            clocks: Arc::default(),
        }
    }

    /// Creates the tables and functions that are missing.
    ///
    /// Calls do this by themselves when tables or functions are missing. Call it with a pool that has the right to create them,
    /// where the service has not.
    ///
    /// # Errors
    ///
    /// When the server is away, or does not allow it.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        in_time(loan::migrate(&self.pool)).await
    }

    async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        in_time(loan::rows(&self.pool, query)).await
    }

    /// Runs a query whose last two parameters are the time that is expected, and that returns the time in these columns.
    async fn timed_rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
        [time, ahead]: [usize; 2],
    ) -> Result<Vec<PgRow>, StoreError> {
        let query = || {
            let expected = self.clocks.expected(CLOCK);
            query()
                .bind(expected.map(|expected| expected.time))
                .bind(expected.map(|expected| expected.ahead))
        };
        let rows = self.rows(query).await?;
        if let Some(row) = rows.first() {
            let number = |column| row.try_get(column).map_err(unreadable);
            let (time, ahead) = (number(time)?, number(ahead)?);
            self.clocks.note(CLOCK, EngineTime { time, ahead });
        }
        Ok(rows)
    }

    async fn set_aside(&self, reserve: &Reserve) -> Result<Reserved, QuotaError> {
        if reserve.scopes.is_empty() {
            return Ok(Reserved::default());
        }
        let need = reserve.amount.max(reserve.expected);
        let places = 0..reserve.scopes.len();
        let defaults = places.map(|place| columns(reserve.default_at(place)));
        let defaults = transposed(defaults);
        let query = || {
            let query = sqlx::query(
                "SELECT * FROM storage_guard_2_reserve(
                    $1::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14
                )",
            )
            .bind(reserve.id.to_string())
            .bind(reserve.scopes.iter().map(name).collect::<Vec<_>>())
            .bind(milliseconds(reserve.time_to_live))
            .bind(signed(reserve.amount.bytes))
            .bind(signed(reserve.amount.objects))
            .bind(i64::try_from(need.bytes).ok())
            .bind(i64::try_from(need.objects).ok());
            defaults.iter().fold(query, Query::bind)
        };
        let rows = self.timed_rows(query, [16, 17]).await?;
        let (is_reserved, accounts) = read_accounts(&rows).map_err(unreadable)?;
        let mut reserved = judge(reserve, &accounts)?;
        reserved.baseline = read_baseline(&rows, 15)?;
        if !is_reserved || accounts.len() < reserve.scopes.len() {
            // The function in the database is not the one of the schema.
            let error = "PostgreSQL has refused what fits: its functions were changed";
            return Err(StoreError::unreadable(error).into());
        }
        Ok(reserved)
    }
}

impl Store for PostgresStore {
    fn reserve<'a>(&'a self, reserve: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        Box::pin(self.set_aside(reserve))
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, Vec<OverSoftLimit>> {
        Box::pin(async {
            let (parts, reviews) = (Parts::of(settlements), Reviews::of(settlements));
            let query = || {
                let query = sqlx::query(
                    "SELECT * FROM storage_guard_2_settle(
                        $1::text[]::uuid[], $2, $3, $4, $5::text[]::uuid[], $6, $7, $8,
                        $9, $10, $11, $12, $13, $14, $15, $16
                    )",
                )
                .bind(&parts.ids)
                .bind(&parts.names)
                .bind(&parts.bytes)
                .bind(&parts.objects)
                .bind(&parts.kept)
                .bind(&parts.kept_bytes)
                .bind(&parts.kept_objects)
                .bind(&parts.kept_milliseconds)
                .bind(&reviews.names)
                .bind(&reviews.are_charged)
                .bind(&reviews.are_known);
                reviews.softs.iter().fold(query, Query::bind)
            };
            let rows = self.timed_rows(query, [0, 1]).await?;
            let over: Result<Vec<_>, _> = rows.iter().map(read_over).collect();
            Ok(over?.concat())
        })
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let each = holds.iter();
            let (ids, names): (Vec<_>, Vec<_>) = each
                .flat_map(|(id, scopes)| scopes.iter().map(|scope| (id.to_string(), name(scope))))
                .unzip();
            let query = || {
                sqlx::query(
                    "SELECT * FROM storage_guard_2_renew($1::text[]::uuid[], $2, $3, $4, $5)",
                )
                .bind(&ids)
                .bind(&names)
                .bind(milliseconds(time_to_live))
            };
            self.timed_rows(query, [0, 1]).await.map(drop)
        })
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        const ACCOUNT: &str = "
            SELECT account.used_bytes, account.used_objects, account.has_limits,
                account.hard_bytes, account.hard_objects, account.soft_bytes, account.soft_objects, account.grace,
                account.unmatched_bytes, account.unmatched_objects, held.bytes, held.objects,
                time.now - account.over_bytes, time.now - account.over_objects
            FROM (
                SELECT coalesce(sum(bytes), 0)::bigint AS bytes, coalesce(sum(objects), 0)::bigint AS objects
                FROM storage_guard_holds WHERE key = sha256($1) AND expires > (SELECT storage_guard_2_now())
            ) AS held
            CROSS JOIN (SELECT storage_guard_2_milliseconds(storage_guard_2_now()) AS now) AS time
            LEFT JOIN storage_guard_accounts AS account ON account.key = sha256($1)";
        Box::pin(async {
            let rows = self.rows(|| sqlx::query(ACCOUNT).bind(name(scope))).await?;
            let row = rows.first().ok_or_else(|| unreadable("there is no row"))?;
            read_account(row, 0).map_err(unreadable)
        })
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Limits>) -> StoreFuture<'a, ()> {
        const SET_LIMITS: &str = "
            INSERT INTO storage_guard_accounts
                (scope, has_limits, hard_bytes, hard_objects, soft_bytes, soft_objects, grace)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (key) DO UPDATE SET
                has_limits = excluded.has_limits,
                hard_bytes = excluded.hard_bytes, hard_objects = excluded.hard_objects,
                soft_bytes = excluded.soft_bytes, soft_objects = excluded.soft_objects,
                grace = excluded.grace";
        Box::pin(async move {
            let query = || {
                let columns = limits.map(columns).unwrap_or_default();
                let query = sqlx::query(SET_LIMITS).bind(name(scope));
                let query = query.bind(limits.is_some());
                columns.into_iter().fold(query, Query::bind)
            };
            self.rows(query).await.map(drop)
        })
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        const SET_USED: &str = "
            INSERT INTO storage_guard_accounts (scope, used_bytes, used_objects) VALUES ($1, $2, $3)
            ON CONFLICT (key) DO UPDATE SET
                used_bytes = excluded.used_bytes, used_objects = excluded.used_objects";
        Box::pin(async move {
            let query = || {
                let query = sqlx::query(SET_USED).bind(name(scope));
                query.bind(signed(used.bytes)).bind(signed(used.objects))
            };
            self.rows(query).await.map(drop)
        })
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        // Usage changes with each request, and this is called rarely, so an index would cost more than it saves.
        const LARGEST: &str = "
            SELECT account.scope, account.used_bytes, account.used_objects, account.has_limits,
                account.hard_bytes, account.hard_objects, account.soft_bytes, account.soft_objects, account.grace,
                account.unmatched_bytes, account.unmatched_objects, held.bytes, held.objects,
                time.now - account.over_bytes, time.now - account.over_objects
            FROM (
                SELECT * FROM storage_guard_accounts WHERE used_bytes <> 0 OR used_objects <> 0
                ORDER BY used_bytes DESC, scope LIMIT $1
            ) AS account
            CROSS JOIN (SELECT storage_guard_2_milliseconds(storage_guard_2_now()) AS now) AS time
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(bytes), 0)::bigint AS bytes, coalesce(sum(objects), 0)::bigint AS objects
                FROM storage_guard_holds AS hold
                WHERE hold.key = account.key AND expires > (SELECT storage_guard_2_now())
            ) AS held
            ORDER BY account.used_bytes DESC, account.scope";
        Box::pin(async move {
            let rows = self
                .rows(|| sqlx::query(LARGEST).bind(limit(count)))
                .await?;
            rows.iter()
                .map(|row| {
                    let account = read_account(row, 1).map_err(unreadable)?;
                    Ok((read_scope(row, 0)?, account))
                })
                .collect()
        })
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        const HOLDS: &str = "
            SELECT scope, replace(id::text, '-', ''), bytes, objects,
                (extract(epoch FROM expires - moment) * 1000)::bigint
            FROM storage_guard_holds, storage_guard_2_now() AS moment
            WHERE expires > moment AND ($1::bytea IS NULL OR key = sha256($1)) LIMIT $2";
        Box::pin(async move {
            let name = scope.map(name);
            let query = || sqlx::query(HOLDS).bind(name).bind(limit(count));
            let rows = self.rows(query).await?;
            rows.iter().map(read_hold).collect()
        })
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        const REMOVE: &str = "DELETE FROM storage_guard_accounts WHERE key = sha256($1)";
        Box::pin(async {
            let query = || sqlx::query(REMOVE).bind(name(scope));
            self.rows(query).await.map(drop)
        })
    }

    fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
        // Kept among the accounts, so that it goes when they go.
        const BASELINE: &str =
            "SELECT hard_bytes FROM storage_guard_accounts WHERE key = sha256('\\xff')";
        Box::pin(async {
            let rows = self.rows(|| sqlx::query(BASELINE)).await?;
            read_baseline(&rows, 0)
        })
    }

    fn set_baseline(&self, new: Baseline) -> StoreFuture<'_, Baseline> {
        // The update changes nothing, and returns the row that is there.
        const SET_BASELINE: &str = "
            INSERT INTO storage_guard_accounts AS account (scope, hard_bytes) VALUES ('\\xff', $1)
            ON CONFLICT (key) DO UPDATE SET hard_bytes = account.hard_bytes RETURNING hard_bytes";
        Box::pin(async move {
            let number = new.get().cast_signed();
            let rows = self.rows(|| sqlx::query(SET_BASELINE).bind(number)).await?;
            Ok(read_baseline(&rows, 0)?.unwrap_or(new))
        })
    }
}

/// The columns of settlements: one element for each settlement and scope.
#[derive(Default)]
struct Parts<'a> {
    ids: Vec<String>,
    names: Vec<&'a [u8]>,
    bytes: Vec<i64>,
    objects: Vec<i64>,
    kept: Vec<Option<String>>,
    kept_bytes: Vec<i64>,
    kept_objects: Vec<i64>,
    kept_milliseconds: Vec<i64>,
}

impl<'a> Parts<'a> {
    fn of(settlements: &'a [Settlement]) -> Self {
        let mut parts = Self::default();
        let mut charged = HashSet::new();
        for settlement in settlements {
            let Settlement { id, scopes, .. } = settlement;
            // Of several settlements of one id, the first that is more than a release counts.
            let (change, keep) = match settlement.is_remembered() && charged.insert(*id) {
                true => (settlement.change, settlement.keep),
                false => (Change::ZERO, None),
            };
            let (amount, time_to_live) = keep
                .map(|keep| (keep.amount, keep.time_to_live))
                .unwrap_or_default();
            for scope in scopes {
                parts.ids.push(id.to_string());
                parts.names.push(name(scope));
                parts.bytes.push(change.bytes);
                parts.objects.push(change.objects);
                parts.kept.push(keep.map(|keep| keep.id.to_string()));
                parts.kept_bytes.push(signed(amount.bytes));
                parts.kept_objects.push(signed(amount.objects));
                parts.kept_milliseconds.push(milliseconds(time_to_live));
            }
        }
        parts
    }
}

/// The columns of what is reviewed: one element for each scope.
struct Reviews<'a> {
    names: Vec<&'a [u8]>,
    are_charged: Vec<bool>,
    /// Whether the default limits are known.
    are_known: Vec<bool>,
    /// Their soft limits and graces.
    softs: [Vec<Option<i64>>; 3],
}

impl<'a> Reviews<'a> {
    fn of(settlements: &'a [Settlement]) -> Self {
        let mut scopes: HashMap<&Scope, (bool, Option<Limits>)> = HashMap::new();
        for settlement in settlements {
            for (index, scope) in settlement.scopes.iter().enumerate() {
                let (is_charged, default) = scopes.entry(scope).or_default();
                *is_charged |= settlement.change != Change::ZERO;
                *default = default.or(settlement.default_at(index));
            }
        }
        let defaults = scopes.values().map(|(_, default)| default);
        let [_, _, soft_bytes, soft_objects, graces] =
            transposed(defaults.map(|default| default.map(columns).unwrap_or_default()));
        Self {
            names: scopes.keys().map(|scope| name(scope)).collect(),
            are_charged: scopes.values().map(|(is_charged, _)| *is_charged).collect(),
            are_known: scopes
                .values()
                .map(|(_, default)| default.is_some())
                .collect(),
            softs: [soft_bytes, soft_objects, graces],
        }
    }
}

/// Columns of limits, from those of each scope.
fn transposed(all: impl Iterator<Item = Columns>) -> [Vec<Option<i64>>; 5] {
    let mut columns: [Vec<_>; 5] = Default::default();
    for of_one in all {
        for (column, limit) in columns.iter_mut().zip(of_one) {
            column.push(limit);
        }
    }
    columns
}

/// Bounds a call: the pool waits for longer than a request may, and a server that hangs waits forever.
async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match timeout(PATIENCE, work).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::timed_out("PostgreSQL did not answer in time")),
    }
}

fn unreadable(error: impl Into<BoxError>) -> StoreError {
    StoreError::unreadable("PostgreSQL has answered in a form that is not ours").with_source(error)
}

fn name(scope: &Scope) -> &[u8] {
    scope.as_str().as_bytes()
}

fn read_baseline(rows: &[PgRow], column: usize) -> Result<Option<Baseline>, StoreError> {
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let number: Option<i64> = row.try_get(column).map_err(unreadable)?;
    Ok(number.map(|number| number.cast_unsigned().into()))
}

fn read_accounts(rows: &[PgRow]) -> sqlx::Result<(bool, Vec<Account>)> {
    let accounts: sqlx::Result<_> = rows.iter().map(|row| read_account(row, 1)).collect();
    let is_reserved = rows.first().map(|row| row.try_get(0)).transpose()?;
    Ok((is_reserved.unwrap_or(false), accounts?))
}

/// Usage, whether there are limits, the limits, what is unmatched, what is held, and for how long the timers have run. What is
/// held is not NULL.
fn read_account(row: &PgRow, from: usize) -> sqlx::Result<Account> {
    let number = |column| row.try_get::<Option<i64>, _>(from + column);
    let own = limits([number(3)?, number(4)?, number(5)?, number(6)?, number(7)?]);
    let has_limits: Option<bool> = row.try_get(from + 2)?;
    let mut account = Account {
        own: has_limits.unwrap_or(false).then_some(own),
        used: Change {
            bytes: number(0)?.unwrap_or(0),
            objects: number(1)?.unwrap_or(0),
        },
        unmatched: amount(number(8)?.unwrap_or(0), number(9)?.unwrap_or(0)),
        held: read_amount(row, from + 10)?,
        over: OverFor::new(number(12)?.map(lives), number(13)?.map(lives)),
    };
    account.stop_below_zero();
    Ok(account)
}

/// The soft limits that the scope of a row is above, after the time. None if it has no scope.
fn read_over(row: &PgRow) -> Result<Vec<OverSoftLimit>, StoreError> {
    let number = |column| row.try_get::<Option<i64>, _>(column).map_err(unreadable);
    let crossed = |column| row.try_get(column).map_err(unreadable);
    if row
        .try_get::<Option<&[u8]>, _>(2)
        .map_err(unreadable)?
        .is_none()
    {
        return Ok(Vec::new());
    }
    let used = read_amount(row, 3).map_err(unreadable)?;
    let limits = limits([None, None, number(5)?, number(6)?, number(7)?]);
    let over_for = OverFor::new(number(8)?.map(lives), number(9)?.map(lives));
    let crossed = Crossed {
        bytes: crossed(10)?,
        objects: crossed(11)?,
    };
    Ok(over(&read_scope(row, 2)?, &limits, used, over_for, crossed).collect())
}

fn read_amount(row: &PgRow, from: usize) -> sqlx::Result<Amount> {
    Ok(amount(row.try_get(from)?, row.try_get(from + 1)?))
}

fn read_scope(row: &PgRow, column: usize) -> Result<Scope, StoreError> {
    let name: Vec<u8> = row.try_get(column).map_err(unreadable)?;
    let name = String::from_utf8(name).map_err(unreadable)?;
    Ok(name.into())
}

fn read_hold(row: &PgRow) -> Result<HoldEntry, StoreError> {
    let text: String = row.try_get(1).map_err(unreadable)?;
    Ok(HoldEntry {
        id: text.parse().map_err(unreadable)?,
        scope: read_scope(row, 0)?,
        amount: read_amount(row, 2).map_err(unreadable)?,
        expires_in: lives(row.try_get(4).map_err(unreadable)?),
    })
}
