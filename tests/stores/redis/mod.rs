//! Redis: a server that the test starts, and a cluster.

mod exact;
mod outage;
pub(crate) mod server;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::Script;
use test_support::running::free_port;
use tower_storage_guard::{
    Amount, Scope, Scopes,
    quota::{Change, Limits, QuotaError},
    store::{HoldId, Keep, RedisStore, Settlement, Store, StoredQuota, conformance},
};

#[cfg(target_os = "linux")]
use self::server::until;
use self::server::{Cluster, Server};
#[cfg(target_os = "linux")]
use super::a_set_clock_neither_frees_nor_keeps_a_hold;
use super::{exceeded, figures, hold, reserve, settle};

/// The error of a call that was not decided, and its sources.
fn unavailable<T>(answer: Result<T, QuotaError>) -> String {
    match answer {
        Err(QuotaError::Unavailable(error)) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            text
        }
        Err(QuotaError::Exceeded(exceeded)) => panic!("refused: {exceeded:?}"),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("admitted"),
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_conforms() {
    let server = Server::start();
    let (one, other) = (server.store().await, server.store().await);
    conformance::run(Arc::new(one), Arc::new(other)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_cluster_conforms() {
    let cluster = Cluster::start().await;
    let (one, other) = (cluster.store().await, cluster.store().await);
    conformance::run(Arc::new(one), Arc::new(other)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server and faketime"]
async fn a_clock_that_is_set_neither_frees_nor_keeps_a_hold() {
    let mut server = Server::start();
    server.set_clock("+0");
    let url = server.url();
    let connect = async || RedisStore::connect(&url).await.unwrap();
    a_set_clock_neither_frees_nor_keeps_a_hold(connect, |ahead| server.set_clock(ahead)).await;
}

/// The correction cannot be kept then.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server and faketime"]
async fn a_clock_that_is_set_frees_nothing_while_memory_is_full() {
    let mut server = Server::start();
    server.set_clock("+0");
    let store = server.store().await;
    hold(&store, "user", 7, 100).await.unwrap();
    server.ask::<()>("CONFIG SET maxmemory 1").await.unwrap();
    server.set_clock("+7200");
    for charged in 1..=2 {
        settle(&store, HoldId::unique(), "user", 1).await;
        assert_eq!(figures(&store, "user").await, (charged, 7));
    }
    server.ask::<()>("CONFIG SET maxmemory 0").await.unwrap();
    exceeded(hold(&store, "user", 92, 100).await);
    assert_eq!(figures(&server.store().await, "user").await, (2, 7));
}

/// The clocks of all nodes are set.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server and faketime"]
async fn the_clocks_of_a_cluster_that_are_set_neither_free_nor_keep_a_hold() {
    let mut cluster = Cluster::start().await;
    cluster.set_clocks("+0");
    let url = cluster.url();
    let connect = async || RedisStore::connect(&url).await.unwrap();
    until("the cluster is up again", async || {
        hold(&connect().await, "other", 1, 100).await.is_ok()
    })
    .await;
    a_set_clock_neither_frees_nor_keeps_a_hold(connect, |ahead| cluster.set_clocks(ahead)).await;
}

/// A machine that has slept expects an earlier time than the others. It may change the time once, but not again and again.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn who_has_not_heard_of_a_correction_makes_none() {
    const CLOCK: &str = concat!(
        include_str!("../../../src/store/redis/common.lua"),
        "return {clock()}"
    );
    let server = Server::start();
    let client = server.client();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // The time, and how far the clock is ahead.
    let mut clock = async |expected: &str, told_ahead: &str| -> (i64, i64) {
        let script = Script::new(CLOCK);
        let mut call = script.key("ahead");
        call.arg(expected).arg(told_ahead);
        call.invoke_async(&mut connection).await.unwrap()
    };
    let (real, ahead) = clock("", "").await;
    assert_eq!(ahead, 0);
    assert_eq!(clock("5", "1").await.1, 0);
    let (time, ahead) = clock("5", "0").await;
    assert_eq!(time, 5);
    assert!((0..10_000).contains(&(ahead + 5 - real)), "{ahead}");
    assert_eq!(clock(&real.to_string(), "0").await.1, ahead);
    assert_eq!(clock(&real.to_string(), &ahead.to_string()).await.0, real);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn stores_with_different_prefixes_share_nothing() {
    let server = Server::start();
    let prefixes = ["a:", "*:", "[ab]:", "{a}:", ""];
    let mut stores = Vec::new();
    for (number, prefix) in prefixes.iter().enumerate() {
        let store = server.store().await.prefix(*prefix);
        settle(&store, HoldId::unique(), "user", number as i64 + 1).await;
        hold(&store, "user", 7, 100).await.unwrap();
        stores.push(store);
    }
    for (number, store) in stores.iter().enumerate() {
        assert_eq!(figures(store, "user").await, (number as i64 + 1, 7));
        assert_eq!(store.largest(9).await.unwrap().len(), 1);
        assert_eq!(store.holds(None, 9).await.unwrap().len(), 1);
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_charge_is_remembered_for_a_day_and_a_release_is_not() {
    let server = Server::start();
    let store = server.store().await;
    let id = hold(&store, "user", 7, 100).await.unwrap();
    settle(&store, id, "user", 0).await;
    assert_eq!(server.ask::<usize>("DBSIZE").await.unwrap(), 0);

    let id = hold(&store, "user", 7, 100).await.unwrap();
    settle(&store, id, "user", 7).await;
    let settled = "quota:{user}settled";
    let day = 24 * 60 * 60 * 1_000;
    let lives = async || {
        let left: u64 = server.ask(&format!("PTTL {settled}")).await.unwrap();
        assert!(left <= day && left > day - 60_000, "{left}");
        let ids = format!("ZRANGE {settled} 0 -1");
        server.ask::<Vec<String>>(&ids).await.unwrap()
    };
    assert_eq!(lives().await, [id.to_string()]);
    // The rest is the user's account.
    assert_eq!(server.ask::<usize>("DBSIZE").await.unwrap(), 2);

    // A settlement that keeps something is remembered even without a charge.
    let kept = keeping(HoldId::unique(), "user".into(), 3);
    store.settle(std::slice::from_ref(&kept)).await.unwrap();
    assert_eq!(lives().await, [id.to_string(), kept.id.to_string()]);

    // Those of the day before go with the next.
    for id in [id, kept.id] {
        let age = format!("ZINCRBY {settled} -{day} {id}");
        server.ask::<String>(&age).await.unwrap();
    }
    let next = HoldId::unique();
    settle(&store, next, "user", 1).await;
    assert_eq!(lives().await, [next.to_string()]);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn no_more_than_so_many_settlements_of_a_hash_tag_are_remembered() {
    const MOST: usize = 100_000;
    let server = Server::start();
    let store = server.store().await;
    settle(&store, HoldId::unique(), "user", 1).await;
    let settled = "quota:{user}settled";
    let newest = format!("ZRANGE {settled} -1 -1 WITHSCORES");
    let (_, moment): (String, u64) = server.ask(&newest).await.unwrap();
    // In parts, each of which a busy server answers in time.
    let mut added = 0;
    for part in (0..MOST).step_by(5_000) {
        let more = (part..part + 5_000).map(|n| format!(" {moment} {n}"));
        let more: String = more.collect();
        let now: usize = server.ask(&format!("ZADD {settled}{more}")).await.unwrap();
        added += now;
    }
    assert_eq!(added, MOST);
    let last = HoldId::unique();
    settle(&store, last, "user", 1).await;
    settle(&store, last, "user", 1).await;
    let count = format!("ZCARD {settled}");
    assert_eq!(server.ask::<usize>(&count).await.unwrap(), MOST);
    assert_eq!(figures(&store, "user").await, (2, 0));
}

/// Releases, and keeps this many bytes.
fn keeping(id: HoldId, scopes: Scopes, bytes: u64) -> Settlement {
    let amount = Amount::bytes(bytes);
    let keep = Keep::new(HoldId::unique(), amount, Duration::from_secs(60));
    Settlement::new(id, scopes, Change::ZERO).with_keep(keep)
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_kept_amount_does_not_restore_an_expired_hold() {
    let server = Server::start();
    let store = server.store().await;
    let kept = keeping(HoldId::unique(), "user".into(), 5);
    let brief =
        reserve(kept.keep.unwrap().id, "user", 90, 100).with_time_to_live(Duration::from_millis(1));
    store.reserve(&brief).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    store.settle(&[kept]).await.unwrap();
    assert_eq!(figures(&store, "user").await, (0, 5));
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn without_a_cluster_names_do_not_matter() {
    let server = Server::start();
    let store = server.store().await;
    let scopes = || Scopes::from(["user:42", "tenant:acme"]);
    let id = hold(&store, scopes(), 60, 100).await.unwrap();
    exceeded(hold(&store, scopes(), 41, 100).await);
    settle(&store, id, scopes(), 50).await;
    settle(&store, id, scopes(), 50).await;
    for scope in &scopes() {
        assert_eq!(figures(&store, scope.as_str()).await, (50, 0));
    }
    // Everything in one step: there is one mark.
    assert_eq!(server.ask::<usize>("DBSIZE").await.unwrap(), 3);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_cluster_rejects_scopes_in_different_slots_but_charges_them() {
    let cluster = Cluster::start().await;
    let store = cluster.store().await;
    let apart = || Scopes::from(["user:42", "tenant:acme", "user:43"]);
    let why = unavailable(hold(&store, apart(), 1, 100).await);
    assert!(
        why.contains("share no hash tag") && why.contains("CrossSlot"),
        "{why}"
    );

    // Later charges are not delayed by it.
    let quota = StoredQuota::new(cluster.store().await, Limits::bytes(100));
    let change = Change {
        bytes: 9,
        objects: 1,
    };
    quota.adjust(apart(), change).await;
    let id = HoldId::unique();
    settle(&store, id, apart(), 0).await;
    for _ in 0..2 {
        settle(&store, id, apart(), 4).await;
    }
    for scope in &apart() {
        assert_eq!(figures(&store, scope.as_str()).await, (13, 0));
    }
    let kept = [keeping(HoldId::unique(), apart(), 2)];
    for _ in 0..2 {
        store.settle(&kept).await.unwrap();
    }
    for scope in &apart() {
        assert_eq!(figures(&store, scope.as_str()).await, (13, 2));
    }

    let together = Scopes::from(["user:{acme}:42", "tenant:{acme}"]);
    hold(&store, together, 1, 100).await.unwrap();
    let on_one_node = store.prefix("{all}:");
    hold(&on_one_node, apart(), 1, 100).await.unwrap();
    assert_eq!(on_one_node.holds(None, 9).await.unwrap().len(), 3);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn scopes_on_every_node_are_found() {
    let cluster = Cluster::start().await;
    let store = Arc::new(cluster.store().await);
    let name = |number: u64| Scope::from(format!("user:{number}"));
    let mut settlements = Vec::new();
    for number in 0..3_000 {
        let amount = Amount::new(number * 7_919 % 3_001, 1);
        let settlement = Settlement::new(HoldId::unique(), name(number), amount.into());
        settlements.push(settlement);
    }
    store.settle(&settlements).await.unwrap();
    store.settle(&settlements).await.unwrap();
    let limits = Some(Limits::bytes(1));
    store.set_limits(&"limited".into(), limits).await.unwrap();
    settlements.sort_by_key(|settlement| -settlement.change.bytes);
    for count in [0, 1, 2, 50, 2_999] {
        let found = store.largest(count).await.unwrap();
        let expected: Vec<_> = settlements[..count]
            .iter()
            .map(|settlement| (settlement.scopes.iter().next().unwrap(), settlement.change))
            .collect();
        let found: Vec<_> = found
            .iter()
            .map(|(scope, account)| (scope, account.used))
            .collect();
        assert_eq!(found, expected);
    }

    for number in 0..40 {
        hold(&*store, name(number), 5, u64::MAX).await.unwrap();
    }
    assert_eq!(store.holds(None, 15).await.unwrap().len(), 15);
    let mut all = store.holds(None, 1_000).await.unwrap();
    all.sort_by(|one, other| one.scope.as_str().cmp(other.scope.as_str()));
    all.dedup_by(|one, other| one.scope == other.scope);
    assert_eq!(all.len(), 40);
    let some: Vec<_> = all
        .iter()
        .map(|held| (held.id, held.scope.clone().into()))
        .collect();
    store.renew(&some, Duration::from_millis(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(store.holds(None, 1_000).await.unwrap(), []);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_without_memory_refuses_holds_and_accepts_charges() {
    let server = Server::start();
    let store = server.store().await;
    let id = hold(&store, "user", 7, 100).await.unwrap();
    server.ask::<()>("CONFIG SET maxmemory 1").await.unwrap();
    let why = unavailable(hold(&store, "user", 1, 100).await);
    assert!(why.contains("maxmemory"), "{why}");
    settle(&store, id, "user", 6).await;
    settle(&store, HoldId::unique(), "user", 1).await;
    assert_eq!(figures(&store, "user").await, (7, 0));
    let kept = keeping(HoldId::unique(), "user".into(), 3);
    store.settle(&[kept]).await.unwrap();
    assert_eq!(figures(&store, "user").await, (7, 3));
    server.ask::<()>("CONFIG SET maxmemory 0").await.unwrap();
    hold(&store, "user", 90, 100).await.unwrap();
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn keys_of_other_programs_are_an_error_and_change_nothing() {
    let server = Server::start();
    let store = server.store().await;
    let scopes = || Scopes::from(["good", "bad"]);
    server
        .ask::<()>("SET quota:{bad}account:bad 1")
        .await
        .unwrap();
    unavailable(hold(&store, scopes(), 1, 100).await);
    let settlement = Settlement::new(HoldId::unique(), scopes(), Amount::bytes(1).into());
    store.settle(&[settlement]).await.unwrap_err();
    store.account(&"bad".into()).await.unwrap_err();
    assert_eq!(figures(&store, "good").await, (0, 0));
    assert_eq!(server.ask::<usize>("DBSIZE").await.unwrap(), 1);
    server
        .ask::<()>("DEL quota:{bad}account:bad")
        .await
        .unwrap();
    for used in [
        "HSET quota:{bad}account:bad used x",
        "HSET quota:{bad}account:bad used 1.5",
    ] {
        server.ask::<()>(used).await.unwrap();
        unavailable(hold(&store, scopes(), 1, 100).await);
        store.account(&"bad".into()).await.unwrap_err();
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_redis_user_needs_exactly_the_documented_permissions() {
    let server = Server::start();
    let rights =
        "on >secret resetkeys ~quota:* nocommands +@read +@write +@scripting +time +cluster|slots";
    let user = format!("ACL SETUSER quotas {rights}");
    server.ask::<()>(&user).await.unwrap();
    let url = format!("redis://quotas:secret@127.0.0.1:{}", server.port());
    let connect = async || Arc::new(RedisStore::connect(&url).await.unwrap());
    conformance::run(connect().await, connect().await).await;
}

/// The error of a connection that is not made, and its sources.
async fn not_connected(url: &str) -> String {
    let began = Instant::now();
    let error = RedisStore::connect(url).await.expect_err(url);
    assert!(began.elapsed() < Duration::from_secs(6), "{url}");
    unavailable::<()>(Err(error.into()))
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_url_connects_to_a_server_or_a_cluster_or_fails_with_a_reason() {
    for url in [
        "postgres://host",
        "redis+cluster://",
        "redis://",
        "postgres+cluster://host",
        "not a url",
        "redis://host:port",
        "redis+cluster://host:port",
    ] {
        let why = not_connected(url).await;
        assert!(why.contains("not the URL"), "{url}: {why}");
    }
    let away = free_port();
    for scheme in ["redis", "redis+cluster"] {
        let why = not_connected(&format!("{scheme}://me:secret@127.0.0.1:{away}")).await;
        assert!(why.contains("Connection refused"), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }

    let server = Server::start();
    let url = |user: &str| format!("redis://{user}127.0.0.1:{}", server.port());
    let numbered = RedisStore::connect(&format!("{}/3", url("")))
        .await
        .unwrap();
    settle(&numbered, HoldId::unique(), "user", 7).await;
    assert_eq!(figures(&server.store().await, "user").await, (0, 0));
    let why = not_connected(&url("").replace("redis", "rediss")).await;
    assert!(why.contains("TLS"), "{why}");
    let why = not_connected(&url("").replace("redis", "redis+cluster")).await;
    assert!(why.contains("cluster support disabled"), "{why}");
    server
        .ask::<()>("CONFIG SET requirepass secret")
        .await
        .unwrap();
    RedisStore::connect(&url(":secret@")).await.unwrap();
    for user in ["", ":wrong@", "nobody:secret@"] {
        let why = not_connected(&url(user)).await;
        assert!(!why.contains("secret") && !why.contains("wrong"), "{why}");
        assert!(why.to_lowercase().contains("authentication"), "{why}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_cluster_is_found_by_one_node_that_is_up_and_is_no_server() {
    let cluster = Cluster::start().await;
    let url = format!(
        "redis+cluster://127.0.0.1:{},{}",
        free_port(),
        &cluster.nodes[1].url()[8..]
    );
    let store = RedisStore::connect(&url).await.unwrap();
    for scope in ["foo", "bar", "user:42"] {
        hold(&store, scope, 1, 100).await.unwrap();
    }
    // `foo` is on the last node.
    let why = unavailable(hold(&cluster.nodes[0].store().await, "foo", 1, 100).await);
    assert!(why.contains("redis+cluster://"), "{why}");
}
