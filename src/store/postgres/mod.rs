//! Quotas in PostgreSQL.

mod loan;

use std::{collections::HashSet, time::Duration};

use sqlx::{
    PgPool, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout;
use tower::BoxError;

use super::{
    Account, Ceilings, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreFuture,
    sql::{PATIENCE, ceilings, columns, judge, milliseconds, signed},
};
use crate::{
    amount::Amount,
    quota::{Change, QuotaError},
    scope::{Scope, Scopes},
};

/// Quotas in PostgreSQL 12 or later, by your own pool of [`sqlx`].
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
/// Three tables and some functions, all named `storage_guard_…`, in the first schema of the search path. They are made
/// with the first call that misses them. Where the service may not make them, call [`migrate`](Self::migrate) with a
/// pool that may, and grant the service the use of tables and functions.
///
/// # Calls
///
/// Each is one statement, and one round trip. What the pool does on its own comes on top, such as the test of each
/// connection before it is handed out. Nobody's locks outlive a statement, so a process that stops keeps no other one
/// waiting. Holds expire by the server's clock.
///
/// Leave the isolation level at "read committed". With a stricter one nothing goes wrong, and calls for the same scope
/// fail when there are many at the same time.
///
/// # When the server is away
///
/// Each call fails after five seconds at the latest. Connections of failed calls are closed and not given back to the
/// pool, so that it has new ones as soon as there is a server, the same or another.
///
/// # Bounds
///
/// No scope counts more than [`i64::MAX`] bytes or objects.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pool: PgPool,
}

impl PostgresStore {
    /// Quotas in the database of this pool. Asks nothing yet.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Makes tables and functions that are missing. It is done when needed, and may be done before.
    ///
    /// # Errors
    ///
    /// When the server is away, or does not allow it.
    pub async fn migrate(&self) -> Result<(), BoxError> {
        in_time(loan::migrate(&self.pool)).await
    }

    async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, BoxError> {
        in_time(loan::rows(&self.pool, query)).await
    }

    async fn reserved(&self, asked: &Reserve) -> Result<Reserved, QuotaError> {
        if asked.scopes.is_empty() {
            return Ok(Reserved::default());
        }
        let need = asked.amount.max(asked.expected);
        let [hard_bytes, hard_objects, ..] = columns(asked.default);
        let query = || {
            sqlx::query(
                "SELECT * FROM storage_guard_1_reserve($1::uuid, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(asked.id.to_string())
            .bind(names(&asked.scopes))
            .bind(milliseconds(asked.time_to_live))
            .bind(signed(asked.amount.bytes))
            .bind(signed(asked.amount.objects))
            .bind(i64::try_from(need.bytes).ok())
            .bind(i64::try_from(need.objects).ok())
            .bind(hard_bytes)
            .bind(hard_objects)
        };
        let rows = self.rows(query).await.map_err(QuotaError::Unavailable)?;
        let (is_reserved, standing) =
            read_standing(&rows).map_err(|error| QuotaError::Unavailable(error.into()))?;
        let reserved = judge(asked, &standing)?;
        if !is_reserved || standing.len() < asked.scopes.len() {
            // Somebody has changed the function.
            let error = "PostgreSQL has refused what fits";
            return Err(QuotaError::Unavailable(error.into()));
        }
        Ok(reserved)
    }
}

impl Store for PostgresStore {
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        Box::pin(self.reserved(asked))
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, ()> {
        Box::pin(async {
            let parts = Parts::of(settlements);
            let query = || {
                sqlx::query(
                    "SELECT storage_guard_1_settle(
                        $1::text[]::uuid[], $2, $3, $4, $5::text[]::uuid[], $6, $7, $8
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
            };
            self.rows(query).await.map(drop)
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
                sqlx::query("SELECT storage_guard_1_renew($1::text[]::uuid[], $2, $3)")
                    .bind(&ids)
                    .bind(&names)
                    .bind(milliseconds(time_to_live))
            };
            self.rows(query).await.map(drop)
        })
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        const ACCOUNT: &str = "
            SELECT account.used_bytes, account.used_objects, account.has_limits,
                account.hard_bytes, account.hard_objects, account.soft_bytes, account.soft_objects,
                held.bytes, held.objects
            FROM (
                SELECT coalesce(sum(bytes), 0)::bigint AS bytes, coalesce(sum(objects), 0)::bigint AS objects
                FROM storage_guard_holds WHERE key = sha256($1) AND expires > clock_timestamp()
            ) AS held LEFT JOIN storage_guard_accounts AS account ON account.key = sha256($1)";
        Box::pin(async {
            let rows = self.rows(|| sqlx::query(ACCOUNT).bind(name(scope))).await?;
            let account = rows.first().map(|row| read_account(row, 0)).transpose()?;
            account.ok_or_else(|| "PostgreSQL has answered nothing".into())
        })
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Ceilings>) -> StoreFuture<'a, ()> {
        const SET_LIMITS: &str = "
            INSERT INTO storage_guard_accounts
                (scope, has_limits, hard_bytes, hard_objects, soft_bytes, soft_objects)
            VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (key) DO UPDATE SET
                has_limits = excluded.has_limits,
                hard_bytes = excluded.hard_bytes, hard_objects = excluded.hard_objects,
                soft_bytes = excluded.soft_bytes, soft_objects = excluded.soft_objects";
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
        // Asked for now and then, and used changes all the time: no index is worth it.
        const LARGEST: &str = "
            SELECT account.scope, account.used_bytes, account.used_objects, account.has_limits,
                account.hard_bytes, account.hard_objects, account.soft_bytes, account.soft_objects,
                held.bytes, held.objects
            FROM (
                SELECT * FROM storage_guard_accounts WHERE used_bytes <> 0 OR used_objects <> 0
                ORDER BY used_bytes DESC, scope LIMIT $1
            ) AS account
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(bytes), 0)::bigint AS bytes, coalesce(sum(objects), 0)::bigint AS objects
                FROM storage_guard_holds AS hold
                WHERE hold.key = account.key AND expires > clock_timestamp()
            ) AS held
            ORDER BY account.used_bytes DESC, account.scope";
        Box::pin(async move {
            let rows = self
                .rows(|| sqlx::query(LARGEST).bind(limit(count)))
                .await?;
            rows.iter()
                .map(|row| Ok((read_scope(row, 0)?, read_account(row, 1)?)))
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
                (extract(epoch FROM expires - clock_timestamp()) * 1000)::bigint
            FROM storage_guard_holds
            WHERE expires > clock_timestamp() AND ($1::bytea IS NULL OR key = sha256($1)) LIMIT $2";
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
}

/// Settlements, one element for each and each of its scopes.
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
            // The first one of an id that is more than a release counts.
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

/// The pool waits for longer than a request may, and a server that hangs forever.
async fn in_time<T>(work: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    match timeout(PATIENCE, work).await {
        Ok(result) => result,
        Err(_) => Err("PostgreSQL did not answer in time".into()),
    }
}

fn name(scope: &Scope) -> &[u8] {
    scope.as_str().as_bytes()
}

fn names(scopes: &Scopes) -> Vec<&[u8]> {
    scopes.iter().map(name).collect()
}

fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn read_standing(rows: &[PgRow]) -> sqlx::Result<(bool, Vec<Account>)> {
    let standing: sqlx::Result<_> = rows.iter().map(|row| read_account(row, 1)).collect();
    let is_reserved = rows.first().map(|row| row.try_get(0)).transpose()?;
    Ok((is_reserved.unwrap_or(false), standing?))
}

/// Used, whether there are limits, these, and held. All but what is held may be missing.
fn read_account(row: &PgRow, from: usize) -> sqlx::Result<Account> {
    let number = |column| row.try_get::<Option<i64>, _>(from + column);
    let limits = ceilings([number(3)?, number(4)?, number(5)?, number(6)?]);
    let has_limits: Option<bool> = row.try_get(from + 2)?;
    Ok(Account {
        own: has_limits.unwrap_or(false).then_some(limits),
        used: Change {
            bytes: number(0)?.unwrap_or(0),
            objects: number(1)?.unwrap_or(0),
        },
        held: read_amount(row, from + 7)?,
    })
}

/// None of ours is below zero.
fn read_amount(row: &PgRow, from: usize) -> sqlx::Result<Amount> {
    let (bytes, objects): (i64, i64) = (row.try_get(from)?, row.try_get(from + 1)?);
    Ok(Amount::new(
        bytes.max(0).unsigned_abs(),
        objects.max(0).unsigned_abs(),
    ))
}

fn read_scope(row: &PgRow, column: usize) -> Result<Scope, BoxError> {
    let name: Vec<u8> = row.try_get(column)?;
    Ok(String::from_utf8(name)?.into())
}

fn read_hold(row: &PgRow) -> Result<HoldEntry, BoxError> {
    let (id, lives): (String, i64) = (row.try_get(1)?, row.try_get(4)?);
    Ok(HoldEntry {
        id: id.parse()?,
        scope: read_scope(row, 0)?,
        amount: read_amount(row, 2)?,
        expires_in: Duration::from_millis(lives.max(0).unsigned_abs()),
    })
}
