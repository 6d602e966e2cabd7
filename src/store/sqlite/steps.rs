//! The steps of a store, each within a transaction.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use rusqlite::{Error, OptionalExtension, Result, Row, Transaction, params, types::Type};

use super::super::{
    Account, Baseline, HoldEntry, HoldId, Keep, Reserve, Reserved, Settlement,
    sql::{amount, columns, judge, limit, limits, lives, milliseconds, signed},
};
use crate::{
    amount::Amount,
    quota::{Change, Crossed, Exceeded, Limits, OverFor, OverSince, OverSoftLimit, over},
    scope::{Scope, Scopes},
};

/// How long the tombstone of a settlement is kept, in milliseconds.
const REMEMBERED: i64 = 24 * 60 * 60 * 1_000;
/// How many tombstones are kept.
const MOST_REMEMBERED: i64 = 1_000_000;
/// How many old rows one settlement deletes: more than one settlement adds.
const SWEPT: i64 = 128;

pub(super) fn reserve(
    tx: &Transaction<'_>,
    now: i64,
    reserve: &Reserve,
) -> Result<std::result::Result<Reserved, Exceeded>> {
    let scopes = reserve.scopes.iter();
    let accounts: Result<Vec<_>> = scopes.map(|scope| stopped(tx, now, scope)).collect();
    let mut decision = judge(reserve, &accounts?);
    if let Ok(reserved) = &mut decision {
        reserved.baseline = baseline(tx)?;
        let held = Keep::new(reserve.id, reserve.amount, reserve.time_to_live);
        hold(tx, now, &reserve.scopes, held)?;
    }
    Ok(decision)
}

/// Adds to a hold in each of these scopes.
fn hold(tx: &Transaction<'_>, now: i64, scopes: &Scopes, held: Keep) -> Result<()> {
    let id = held.id.to_string();
    let expires = now.saturating_add(milliseconds(held.time_to_live));
    // An expired hold is gone, and does not grow.
    let mut hold = tx.prepare_cached(
        "INSERT INTO holds (scope, id, bytes, objects, expires) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT DO UPDATE SET
            bytes = iif(expires > ?6, bytes, 0) + excluded.bytes,
            objects = iif(expires > ?6, objects, 0) + excluded.objects,
            expires = excluded.expires",
    )?;
    let (bytes, objects) = (signed(held.amount.bytes), signed(held.amount.objects));
    for scope in scopes {
        hold.execute(params![scope.as_str(), id, bytes, objects, expires, now])?;
    }
    Ok(())
}

pub(super) fn settle(
    tx: &Transaction<'_>,
    now: i64,
    settlements: &[Settlement],
) -> Result<Vec<OverSoftLimit>> {
    let mut release = tx.prepare_cached("DELETE FROM holds WHERE scope = ?1 AND id = ?2")?;
    let mut remember =
        tx.prepare_cached("INSERT OR IGNORE INTO settled (id, settled) VALUES (?1, ?2)")?;
    let mut changes: HashMap<&Scope, Change> = HashMap::new();
    for scope in settlements.iter().flat_map(|settlement| &settlement.scopes) {
        stop_below_zero(tx, now, scope)?;
    }
    for settlement in settlements {
        let (id, scopes) = (settlement.id.to_string(), &settlement.scopes);
        for scope in scopes {
            release.execute(params![scope.as_str(), id])?;
        }
        if settlement.is_remembered() && remember.execute(params![id, now])? > 0 {
            for scope in scopes {
                let sum = changes.entry(scope).or_default();
                *sum = sum.then(settlement.change);
            }
            if let Some(kept) = settlement.keep {
                hold(tx, now, scopes, kept)?;
            }
        }
    }
    for (scope, change) in changes {
        let used = without_held(tx, scope)?.0.used;
        set_used(tx, scope, used.then(change))?;
    }
    let over = review(tx, now, settlements)?;
    sweep(tx, now)?;
    Ok(over)
}

/// Stops usage where it is as far below zero as is held, and reviews the timers of what was charged. Returns the soft limits that
/// usage is above.
fn review(
    tx: &Transaction<'_>,
    now: i64,
    settlements: &[Settlement],
) -> Result<Vec<OverSoftLimit>> {
    let is_charge = |settlement: &&Settlement| settlement.change != Change::ZERO;
    let charges = settlements.iter().filter(is_charge);
    let charged: HashSet<_> = charges.flat_map(|charge| &charge.scopes).collect();
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    for settlement in settlements {
        for (index, scope) in settlement.scopes.iter().enumerate() {
            stop_below_zero(tx, now, scope)?;
            let (account, since) = without_held(tx, scope)?;
            let Some(limits) = account.own.or(settlement.default_at(index)) else {
                continue;
            };
            if !seen.insert(scope) || !limits.has_soft() && since.is_never() {
                continue;
            }
            let (mut reviewed, used) = (since, account.used.gain());
            let mut crossed = Crossed::default();
            if charged.contains(scope) {
                crossed = reviewed.review(&limits, used, now);
            }
            if reviewed != since {
                tx.prepare_cached(
                    "UPDATE accounts SET over_bytes = ?2, over_objects = ?3 WHERE scope = ?1",
                )?
                .execute(params![
                    scope.as_str(),
                    reviewed.bytes,
                    reviewed.objects
                ])?;
            }
            all.extend(over(scope, &limits, used, elapsed(reviewed, now), crossed));
        }
    }
    Ok(all)
}

/// Deletes some of the rows that no longer count.
fn sweep(tx: &Transaction<'_>, now: i64) -> Result<()> {
    tx.prepare_cached(
        "DELETE FROM holds WHERE (scope, id) IN
            (SELECT scope, id FROM holds WHERE expires <= ?1 ORDER BY expires LIMIT ?2)",
    )?
    .execute(params![now, SWEPT])?;
    tx.prepare_cached(
        "DELETE FROM settled WHERE number IN (
            SELECT number FROM (SELECT number, settled FROM settled ORDER BY number LIMIT ?2)
            WHERE settled <= ?1 OR number <= (SELECT max(number) FROM settled) - ?3
        )",
    )?
    .execute(params![now - REMEMBERED, SWEPT, MOST_REMEMBERED])?;
    Ok(())
}

pub(super) fn renew(
    tx: &Transaction<'_>,
    now: i64,
    holds: &[(HoldId, Scopes)],
    time_to_live: Duration,
) -> Result<()> {
    let mut renew = tx.prepare_cached(
        "UPDATE holds SET expires = ?3 WHERE scope = ?1 AND id = ?2 AND expires > ?4",
    )?;
    let expires = now.saturating_add(milliseconds(time_to_live));
    for (id, scopes) in holds {
        let id = id.to_string();
        for scope in scopes {
            renew.execute(params![scope.as_str(), id, expires, now])?;
        }
    }
    Ok(())
}

/// Stops usage where it is as far below zero as is held.
fn stop_below_zero(tx: &Transaction<'_>, now: i64, scope: &Scope) -> Result<()> {
    let used = without_held(tx, scope)?.0.used;
    if used.bytes < 0 || used.objects < 0 {
        stopped(tx, now, scope)?;
    }
    Ok(())
}

/// The account, with what is cut off below zero written down: it stays so, whatever is held later.
fn stopped(tx: &Transaction<'_>, now: i64, scope: &Scope) -> Result<Account> {
    let mut account = whole(tx, now, scope)?;
    if account.stop_below_zero() {
        tx.prepare_cached(
            "UPDATE accounts SET unmatched_bytes = ?2, unmatched_objects = ?3 WHERE scope = ?1",
        )?
        .execute(params![
            scope.as_str(),
            signed(account.unmatched.bytes),
            signed(account.unmatched.objects)
        ])?;
        set_used(tx, scope, account.used)?;
    }
    Ok(account)
}

/// Usage, whether there are limits, the limits, what is unmatched, and the timers.
const ACCOUNT: &str =
    "used_bytes, used_objects, has_limits, hard_bytes, hard_objects, soft_bytes, soft_objects, grace,
    unmatched_bytes, unmatched_objects, over_bytes, over_objects";
/// How many columns these are.
const COLUMNS: usize = 12;

pub(super) fn account(tx: &Transaction<'_>, now: i64, scope: &Scope) -> Result<Account> {
    let mut account = whole(tx, now, scope)?;
    account.stop_below_zero();
    Ok(account)
}

fn whole(tx: &Transaction<'_>, now: i64, scope: &Scope) -> Result<Account> {
    let (account, since) = without_held(tx, scope)?;
    Ok(Account {
        held: held(tx, now, scope)?,
        over: elapsed(since, now),
        ..account
    })
}

/// Leaves out the sum of what is held, which would read every hold. The timers are beside it.
fn without_held(tx: &Transaction<'_>, scope: &Scope) -> Result<(Account, OverSince<i64>)> {
    let account = tx
        .prepare_cached(&format!("SELECT {ACCOUNT} FROM accounts WHERE scope = ?1"))?
        .query_row([scope.as_str()], read_account)
        .optional()?;
    Ok(account.unwrap_or_default())
}

fn read_account(row: &Row<'_>) -> Result<(Account, OverSince<i64>)> {
    let columns = [3, 4, 5, 6, 7].map(|column| row.get(column));
    let [bytes, objects, soft_bytes, soft_objects, grace] = columns;
    let own = limits([bytes?, objects?, soft_bytes?, soft_objects?, grace?]);
    let used = Change {
        bytes: row.get(0)?,
        objects: row.get(1)?,
    };
    let account = Account {
        own: row.get::<_, bool>(2)?.then_some(own),
        unmatched: amount(row.get(8)?, row.get(9)?),
        ..Account::new(used, Amount::ZERO)
    };
    let since = OverSince {
        bytes: row.get(10)?,
        objects: row.get(11)?,
    };
    Ok((account, since))
}

fn held(tx: &Transaction<'_>, now: i64, scope: &Scope) -> Result<Amount> {
    tx.prepare_cached(
        "SELECT coalesce(sum(bytes), 0), coalesce(sum(objects), 0) FROM holds
        WHERE scope = ?1 AND expires > ?2",
    )?
    .query_row(params![scope.as_str(), now], |row| {
        Ok(amount(row.get(0)?, row.get(1)?))
    })
}

pub(super) fn set_limits(
    tx: &Transaction<'_>,
    scope: &Scope,
    limits: Option<Limits>,
) -> Result<()> {
    let [hard_bytes, hard_objects, soft_bytes, soft_objects, grace] =
        limits.map(columns).unwrap_or_default();
    tx.execute(
        "INSERT INTO accounts
            (scope, has_limits, hard_bytes, hard_objects, soft_bytes, soft_objects, grace)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
        ON CONFLICT DO UPDATE SET
            has_limits = excluded.has_limits,
            hard_bytes = excluded.hard_bytes, hard_objects = excluded.hard_objects,
            soft_bytes = excluded.soft_bytes, soft_objects = excluded.soft_objects,
            grace = excluded.grace",
        params![
            scope.as_str(),
            limits.is_some(),
            hard_bytes,
            hard_objects,
            soft_bytes,
            soft_objects,
            grace
        ],
    )?;
    forget_empty(tx, scope)
}

pub(super) fn set_used(tx: &Transaction<'_>, scope: &Scope, used: Change) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO accounts (scope, used_bytes, used_objects) VALUES (?1, ?2, ?3)
        ON CONFLICT DO UPDATE SET
            used_bytes = excluded.used_bytes, used_objects = excluded.used_objects",
    )?
    .execute(params![scope.as_str(), used.bytes, used.objects])?;
    forget_empty(tx, scope)
}

/// Deletes the row of a scope that uses nothing, has no limits and nothing to report.
fn forget_empty(tx: &Transaction<'_>, scope: &Scope) -> Result<()> {
    tx.prepare_cached(
        "DELETE FROM accounts
        WHERE scope = ?1 AND used_bytes = 0 AND used_objects = 0 AND NOT has_limits
            AND unmatched_bytes = 0 AND unmatched_objects = 0
            AND over_bytes IS NULL AND over_objects IS NULL",
    )?
    .execute([scope.as_str()])?;
    Ok(())
}

pub(super) fn largest(
    tx: &Transaction<'_>,
    now: i64,
    count: usize,
) -> Result<Vec<(Scope, Account)>> {
    // Usage changes with each request, and this is called rarely, so an index would cost more than it saves.
    let mut largest = tx.prepare(&format!(
        "SELECT {ACCOUNT}, scope FROM accounts WHERE used_bytes <> 0 OR used_objects <> 0
        ORDER BY used_bytes DESC, scope LIMIT ?1"
    ))?;
    let rows = largest.query_map([limit(count)], |row| {
        let scope = Scope::from(row.get::<_, String>(COLUMNS)?);
        let (account, since) = read_account(row)?;
        let mut account = Account {
            held: held(tx, now, &scope)?,
            over: elapsed(since, now),
            ..account
        };
        account.stop_below_zero();
        Ok((scope, account))
    })?;
    rows.collect()
}

pub(super) fn holds(
    tx: &Transaction<'_>,
    now: i64,
    scope: Option<&Scope>,
    count: usize,
) -> Result<Vec<HoldEntry>> {
    let of_scope = match scope {
        Some(_) => "scope = ?3",
        None => "?3 IS NULL",
    };
    let mut holds = tx.prepare(&format!(
        "SELECT id, scope, bytes, objects, expires - ?1 FROM holds
        WHERE expires > ?1 AND {of_scope} LIMIT ?2"
    ))?;
    let rows = holds.query_map(
        params![now, limit(count), scope.map(Scope::as_str)],
        |row| {
            let not_ours = |error| Error::FromSqlConversionFailure(0, Type::Text, Box::new(error));
            Ok(HoldEntry {
                id: row.get::<_, String>(0)?.parse().map_err(not_ours)?,
                scope: row.get::<_, String>(1)?.into(),
                amount: amount(row.get(2)?, row.get(3)?),
                expires_in: lives(row.get(4)?),
            })
        },
    )?;
    rows.collect()
}

/// Kept among the accounts, so that it goes when they go.
pub(super) fn baseline(tx: &Transaction<'_>) -> Result<Option<Baseline>> {
    tx.prepare_cached("SELECT hard_bytes FROM accounts WHERE scope = CAST(x'FF' AS TEXT)")?
        .query_row([], |row| Ok(row.get::<_, i64>(0)?.cast_unsigned().into()))
        .optional()
}

pub(super) fn set_baseline(tx: &Transaction<'_>, new: Baseline) -> Result<Baseline> {
    tx.execute(
        "INSERT OR IGNORE INTO accounts (scope, hard_bytes) VALUES (CAST(x'FF' AS TEXT), ?1)",
        [new.get().cast_signed()],
    )?;
    Ok(baseline(tx)?.unwrap_or(new))
}

pub(super) fn remove(tx: &Transaction<'_>, scope: &Scope) -> Result<()> {
    tx.execute("DELETE FROM accounts WHERE scope = ?1", [scope.as_str()])?;
    Ok(())
}

/// How long a timer has run by now, in milliseconds of an engine.
fn elapsed(since: OverSince<i64>, now: i64) -> OverFor {
    since.elapsed(|since| lives(now.saturating_sub(since)))
}
