//! Quotas in PostgreSQL, on a server of the test's own.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{PgPool, Row, postgres::PgPoolOptions};
use test_support::{
    Dice, eventually,
    postgres::{Server, options, pool},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower_storage_guard::{
    Amount, Scopes,
    quota::{Change, Limits, QuotaError, QuotaHold, QuotaSource},
    store::{HoldId, PostgresStore, Settlement, Store, StoredQuota, conformance},
};

use super::{
    a_set_clock_neither_frees_nor_keeps_a_hold, an_emptied_store_is_an_outage, figures, hold,
    process::{Process, part, ready},
    reserve, settle, sql,
};

async fn number(pool: &PgPool, query: &'static str) -> i64 {
    let row = sqlx::query(query).fetch_one(pool).await.unwrap();
    row.get(0)
}

async fn execute(pool: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql"]
async fn it_conforms() {
    let server = Server::new();
    let (one, other) = (Arc::new(server.store()), Arc::new(server.store()));
    conformance::run(one.clone(), other).await;
    sql::no_name_is_too_odd(&*one).await;
    sql::nothing_wraps(&*one).await;
    sql::an_id_counts_once_in_one_step(&*one).await;
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_settlement_is_remembered_for_a_day_and_a_release_is_not() {
    let server = Server::new();
    let (store, pool) = (server.store(), server.pool());
    for bytes in [1, 2, 3] {
        settle(&store, HoldId::unique(), "user", bytes).await;
    }
    let id = hold(&store, "user", 5, 100).await.unwrap();
    settle(&store, id, "user", 0).await;
    let rows = async || {
        number(
            &pool,
            "SELECT (SELECT count(*) FROM storage_guard_settled) * 100
                + (SELECT count(*) FROM storage_guard_holds) * 10
                + (SELECT count(*) FROM storage_guard_accounts)",
        )
        .await
    };
    assert_eq!(rows().await, 301);
    execute(
        &pool,
        "UPDATE storage_guard_settled SET settled = settled - interval '1 day'",
    )
    .await;
    settle(&store, HoldId::unique(), "user", -6).await;
    assert_eq!(rows().await, 100);
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn no_more_than_a_million_settlements_are_remembered() {
    const MOST: i64 = 1_000_000;
    let server = Server::new();
    let (store, pool) = (server.store(), server.pool());
    settle(&store, HoldId::unique(), "user", 1).await;
    let more = "INSERT INTO storage_guard_settled (id, settled)
        SELECT gen_random_uuid(), now() FROM generate_series(1, 1000299)";
    execute(&pool, more).await;
    let last = HoldId::unique();
    for rows in [MOST + 173, MOST + 46, MOST, MOST] {
        settle(&store, HoldId::unique(), "user", 1).await;
        let count = "SELECT count(*) FROM storage_guard_settled";
        assert_eq!(number(&pool, count).await, rows);
    }
    settle(&store, last, "user", 1).await;
    settle(&store, last, "user", 1).await;
    assert_eq!(figures(&store, "user").await, (6, 0));
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_process_that_is_killed_frees_its_holds_and_loses_no_charge() {
    const LIVES: Duration = Duration::from_secs(2);
    if let Some(part) = part() {
        // The child: it holds, charges, and is killed before it receives the answer.
        let (port, id) = part.split_once(' ').unwrap();
        let store = PostgresStore::new(pool(port.parse().unwrap()));
        let held = reserve(HoldId::unique(), "user", 80, 100).with_time_to_live(LIVES);
        store.reserve(&held).await.unwrap();
        ready();
        loop {
            settle(&store, id.parse().unwrap(), "user", 20).await;
        }
    }
    let (server, id) = (Server::new(), HoldId::unique());
    let store = server.store();
    assert_eq!(figures(&store, "user").await, (0, 0));
    let child = Process::start(
        "postgres::a_process_that_is_killed_frees_its_holds_and_loses_no_charge",
        &format!("{} {id}", server.port()),
    );
    child.kill();
    assert_eq!(figures(&store, "user").await.1, 80);
    // Whether the charge arrived or not, it counts once.
    settle(&store, id, "user", 20).await;
    let began = Instant::now();
    while figures(&store, "user").await != (20, 0) {
        assert!(began.elapsed() < LIVES);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs postgresql and faketime"]
async fn a_clock_that_is_set_neither_frees_nor_keeps_a_hold() {
    let mut server = Server::new();
    server.set_clock("+0");
    let port = server.port();
    let connect = async || PostgresStore::new(pool(port));
    a_set_clock_neither_frees_nor_keeps_a_hold(connect, |ahead| server.set_clock(ahead)).await;
}

/// A machine that has slept expects an earlier time than the others. It may change the time once, but not again and again.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn who_has_not_heard_of_a_correction_makes_none() {
    let server = Server::new();
    let pool = server.pool();
    server.store().migrate().await.unwrap();
    for (query, is_ahead) in [
        ("SELECT ahead FROM storage_guard_2_time(NULL, NULL)", false),
        ("SELECT ahead FROM storage_guard_2_time(0, 1)", false),
        ("SELECT ahead FROM storage_guard_2_time(0, 0)", true),
        (
            "SELECT ahead FROM storage_guard_2_time((extract(epoch FROM now()) * 1000)::bigint, 0)",
            true,
        ),
        (
            "SELECT ahead FROM storage_guard_2_time((extract(epoch FROM now()) * 1000)::bigint, (
                SELECT ahead FROM storage_guard_clock
            ))",
            false,
        ),
    ] {
        assert_eq!(
            number(&pool, query).await.abs() > 15_000,
            is_ahead,
            "{query}"
        );
    }
}

/// Callers are cancelled while the server works, and ask again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql"]
async fn a_charge_whose_answer_is_lost_counts_once() {
    let server = Server::new();
    let store = server.store();
    let mut expected = 0;
    for round in 0..40 {
        let id = hold(&store, "user", 5, u64::MAX).await.unwrap();
        for attempt in 0..4 {
            let patience = Duration::from_micros(100 + 200 * (round + attempt));
            let _ = tokio::time::timeout(patience, settle(&store, id, "user", 3)).await;
        }
        settle(&store, id, "user", 3).await;
        expected += 3;
        assert_eq!(figures(&store, "user").await, (expected, 0), "{round}");
    }
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_hung_server_is_an_outage_and_calls_time_out() {
    let server = Server::new();
    let store = server.store();
    settle(&store, HoldId::unique(), "user", 7).await;
    server.signal("STOP");
    // More than the pool has connections.
    let asked = (0..12).map(|_| sql::is_away(&store));
    futures_util::future::join_all(asked).await;
    // And with the connections in use abandoned.
    let left = tokio::time::timeout(Duration::from_millis(50), hold(&store, "user", 1, 10)).await;
    assert!(left.is_err());
    server.signal("CONT");
    sql::recovers(&store, "user", Duration::from_secs(10)).await;
    // The requests during the hang may have been carried out, and nothing else.
    assert_eq!(figures(&store, "user").await.0, 7);
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_server_that_is_killed_and_restarted_is_used_again() {
    let mut server = Server::new();
    let store = server.store();
    let quota = StoredQuota::new(store.clone(), Limits::bytes(100));
    let held = hold(&store, "user", 5, 100).await.unwrap();
    let stored = quota
        .reserve(&Scopes::from("user"), Amount::bytes(30), Amount::ZERO)
        .await
        .unwrap();
    server.kill();
    sql::is_away(&store).await;
    // Charged once the server is back.
    drop(stored.commit(Amount::bytes(20).into()));
    assert_eq!(quota.unsettled(), 1);
    server.start();
    sql::recovers(&store, "user", Duration::from_secs(10)).await;
    eventually("it is charged", || quota.unsettled() == 0).await;
    assert_eq!(figures(&store, "user").await, (20, 5));
    settle(&store, held, "user", 5).await;
    assert_eq!(figures(&store, "user").await, (25, 0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql"]
async fn missing_tables_and_functions_are_created_by_the_next_call() {
    let server = Server::new();
    let (store, pool) = (server.store(), server.pool());
    let many = async || {
        let tasks = (0..32).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let id = hold(&store, "user", 1, 100).await.unwrap();
                settle(&store, id, "user", 1).await;
            })
        });
        let tasks: Vec<_> = tasks.collect();
        for task in tasks {
            task.await.unwrap();
        }
    };
    many().await;
    assert_eq!(figures(&store, "user").await, (32, 0));
    execute(&pool, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    many().await;
    assert_eq!(figures(&store, "user").await, (32, 0));
    execute(&pool, "DROP FUNCTION storage_guard_2_lock").await;
    many().await;
    execute(
        &pool,
        "DROP TABLE storage_guard_holds, storage_guard_settled, storage_guard_clock",
    )
    .await;
    many().await;
    assert_eq!(figures(&store, "user").await, (96, 0));
    // As it was before there were soft limits with a grace.
    execute(
        &pool,
        "ALTER TABLE storage_guard_accounts DROP COLUMN grace, DROP COLUMN over_bytes, DROP COLUMN over_objects",
    )
    .await;
    sql::a_grace_is_kept(&store).await;
    execute(&pool, "DROP TABLE storage_guard_accounts").await;
    assert_eq!(figures(&store, "user").await, (0, 0));
    store.migrate().await.unwrap();
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn an_emptied_database_is_an_outage_until_it_is_counted() {
    let server = Server::new();
    let pool = server.pool();
    for empty in [
        "TRUNCATE storage_guard_accounts",
        "DROP TABLE storage_guard_accounts",
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    ] {
        an_emptied_store_is_an_outage(server.store(), async || execute(&pool, empty).await).await;
        execute(&pool, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    }
}

/// A server that has become a standby answers, but accepts no writes.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn connections_to_a_read_only_server_are_not_kept() {
    let server = Server::new();
    let store = server.store();
    settle(&store, HoldId::unique(), "user", 7).await;
    let mut admin = server.pool().acquire().await.unwrap();
    let becomes_a_standby = "
        ALTER DATABASE postgres SET default_transaction_read_only = on;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    sqlx::raw_sql(becomes_a_standby)
        .execute(&mut *admin)
        .await
        .unwrap();
    sql::is_away(&store).await;
    sql::is_away(&store).await;
    // Existing sessions continue as before.
    let there_is_another = "ALTER DATABASE postgres SET default_transaction_read_only = off";
    sqlx::raw_sql(there_is_another)
        .execute(&mut *admin)
        .await
        .unwrap();
    sql::recovers(&store, "user", Duration::ZERO).await;
    assert_eq!(figures(&store, "user").await, (7, 0));
}

/// Packets get lost, and no connection is closed, as when a machine disappears, or a firewall drops its state.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql"]
async fn dead_connections_do_not_fill_the_pool() {
    let server = Server::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // A pool that tests connections before it hands them out finds some of them by itself.
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .test_before_acquire(false)
        .connect_lazy_with(options(listener.local_addr().unwrap().port()));
    let store = PostgresStore::new(pool);
    let (cut, is_cut) = watch::channel(());
    let port = server.port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut is_cut = is_cut.clone();
            is_cut.mark_unchanged();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::select! {
                    // After the cut no byte gets through.
                    biased;
                    _ = is_cut.changed() => std::future::pending().await,
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                }
            });
        }
    });
    // All connections that it may have.
    let holds = (0..8).map(|_| hold(&store, "user", 1, 100));
    futures_util::future::join_all(holds).await;
    cut.send(()).unwrap();
    let brief = Duration::from_millis(100);
    let asked = (0..8).map(|_| tokio::time::timeout(brief, hold(&store, "user", 1, 100)));
    for answer in futures_util::future::join_all(asked).await {
        assert!(answer.is_err());
    }
    sql::recovers(&store, "user", Duration::ZERO).await;
    assert_eq!(figures(&store, "user").await, (0, 8));
}

/// All operations that lock, in all orders, many of them concurrently.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql"]
async fn concurrent_steps_never_deadlock() {
    let server = Server::new();
    let store = server.store();
    let tasks = (0..24).map(|seed| {
        let store = store.clone();
        tokio::spawn(async move { any_steps(&store, Dice::new(seed)).await })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut expected = 0;
    for task in tasks {
        expected += task.await.unwrap();
    }
    let mut used = 0;
    for scope in ["0", "1", "2", "3", "4", "5"] {
        used += figures(&store, scope).await.0;
    }
    assert_eq!(used, expected);
    let log = fs::read_to_string(server.folder().join("log")).unwrap();
    assert!(!log.contains("deadlock detected"), "{log}");
}

/// How much it has charged.
async fn any_steps(store: &PostgresStore, mut dice: Dice) -> i64 {
    let (mut open, mut charged): (Vec<(HoldId, Scopes)>, i64) = (Vec::new(), 0);
    for _ in 0..60 {
        let scopes = (0..1 + dice.roll(4)).map(|_| dice.roll(6).to_string());
        let scopes: Scopes = scopes.collect();
        let lives = Duration::from_millis(1 + dice.roll(500));
        let reserve = |id, scopes| reserve(id, scopes, 1, 1 << 40).with_time_to_live(lives);
        let asked = reserve(HoldId::unique(), scopes.clone());
        match dice.roll(6) {
            0..3 => {
                store.reserve(&asked).await.unwrap();
                open.push((asked.id, scopes));
            }
            3 if !open.is_empty() => {
                let (id, scopes) = open[dice.roll(open.len() as u64) as usize].clone();
                store.reserve(&reserve(id, scopes)).await.unwrap();
            }
            4 => store.renew(&open, lives).await.unwrap(),
            _ => {
                // The same holds are renewed meanwhile, in another order.
                let renewed: Vec<_> = open.iter().rev().cloned().collect();
                let settlements: Vec<_> = open
                    .iter()
                    .map(|(id, scopes)| {
                        let change = Change {
                            bytes: dice.roll(2) as i64,
                            objects: 0,
                        };
                        Settlement::new(*id, scopes.clone(), change)
                    })
                    .collect();
                let (settled, renewed) =
                    tokio::join!(store.settle(&settlements), store.renew(&renewed, lives));
                settled.unwrap();
                renewed.unwrap();
                charged += settlements
                    .iter()
                    .map(|one| one.change.bytes * one.scopes.len() as i64)
                    .sum::<i64>();
                open.clear();
            }
        }
    }
    charged
}

/// The limit holds at any isolation level. At a strict one, some requests are not decided.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs postgresql"]
async fn stricter_isolation_breaks_nothing() {
    let server = Server::new();
    let store = server.store();
    execute(
        &server.pool(),
        "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'",
    )
    .await;
    store.migrate().await.unwrap();
    let tasks = (0..32).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            match hold(&store, ["user", "tenant"], 10, 105).await {
                Ok(_) => 1,
                Err(QuotaError::Exceeded(_) | QuotaError::Unavailable(_)) => 0,
                Err(error) => panic!("{error:?}"),
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut held = 0;
    for task in tasks {
        held += task.await.unwrap();
    }
    assert!((1..=10).contains(&held), "{held}");
    assert_eq!(figures(&store, "user").await, (0, held * 10));
}
