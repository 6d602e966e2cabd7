//! Servers in an outage, and processes that are killed.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use redis::aio::ConnectionManagerConfig;
#[cfg(target_os = "linux")]
use test_support::mounts::with_own_network;
use tower_storage_guard::{
    Amount, Scopes,
    quota::{Change, Limits, QuotaHold, QuotaSource},
    store::{HoldId, RedisStore, Settlement, Store, StoredQuota},
};

use super::{
    super::{
        an_emptied_store_is_an_outage, figures, hold,
        process::{Process, part, ready},
        settle,
    },
    server::{Cluster, Server, store_with, until},
    unavailable,
};
/// Longer than the timeout of a store.
const BOUND: Duration = Duration::from_secs(7);

/// Asserts that a reservation is not decided, and that the caller learns this in time.
async fn is_away<S: Store>(store: &S, scope: &str) -> String {
    let began = Instant::now();
    let why = unavailable(hold(store, scope, 1, 100).await);
    assert!(
        began.elapsed() < BOUND,
        "after {:?}: {why}",
        began.elapsed()
    );
    why
}

async fn is_back<S: Store>(store: &S, scope: &str) {
    until("it is back", async || {
        let Ok(id) = hold(store, scope, 1, 100).await else {
            return false;
        };
        settle(store, id, scope, 0).await;
        true
    })
    .await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_killed_server_restarts_with_everything_that_it_had_answered() {
    let mut server = Server::start();
    let store = server.store().await;
    let quota = StoredQuota::new(server.store().await, Limits::bytes(100));
    let id = hold(&store, "user", 60, 100).await.unwrap();
    settle(&store, HoldId::unique(), "user", 10).await;
    for number in 1..=3 {
        server.kill();
        is_away(&store, "user").await;
        let change = Amount::bytes(1).into();
        let settled = quota.adjust("user", change);
        assert_eq!(quota.unsettled(), 1);
        server.start_again();
        is_back(&store, "user").await;
        settled.await;
        assert_eq!(figures(&store, "user").await, (10 + number, 60));
    }
    settle(&store, id, "user", 5).await;
    assert_eq!(figures(&store, "user").await, (18, 0));
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_wiped_server_starts_from_empty_state() {
    let server = Server::start();
    let store = server.store().await;
    let id = hold(&store, "user", 60, 100).await.unwrap();
    settle(&store, HoldId::unique(), "user", 10).await;
    // It loses its scripts first, then the rest.
    server.ask::<()>("SCRIPT FLUSH").await.unwrap();
    assert_eq!(figures(&store, "user").await, (10, 60));
    for wipe in ["FLUSHALL", "SCRIPT FLUSH"] {
        server.ask::<()>(wipe).await.unwrap();
    }
    hold(&store, "user", 100, 100).await.unwrap();
    // The content is on the disk, although Redis has lost its state.
    store.renew(&[(id, "user".into())], BOUND).await.unwrap();
    settle(&store, id, "user", 60).await;
    assert_eq!(figures(&store, "user").await, (60, 100));
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn an_emptied_server_is_an_outage_until_it_is_counted() {
    let server = Server::start();
    let flush = async || server.ask::<()>("FLUSHALL").await.unwrap();
    an_emptied_store_is_an_outage(server.store().await, flush).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn calls_to_a_hung_server_time_out_and_count_once() {
    let server = Server::start();
    // With the client's timeout, and with the store's alone.
    let impatient = ConnectionManagerConfig::new();
    let patient = ConnectionManagerConfig::new().set_response_timeout(None);
    for (user, config) in [("one", impatient), ("other", patient)] {
        let store = store_with(&server, config).await;
        let id = hold(&store, user, 60, 100).await.unwrap();
        // Loads the script: a call of a script that is not loaded is sent twice.
        settle(&store, HoldId::unique(), user, 0).await;
        server.signal("STOP");
        is_away(&store, user).await;
        let settlement = Settlement::new(id, user, Amount::bytes(50).into());
        let began = Instant::now();
        store.settle(&[settlement]).await.unwrap_err();
        assert!(began.elapsed() < BOUND);
        server.signal("CONT");
        // The answer was lost, but the request was carried out.
        until("it is charged", async || {
            figures(&store, user).await.0 == 50
        })
        .await;
        for _ in 0..2 {
            settle(&store, id, user, 50).await;
            // A hold whose answer was lost stays until it expires.
            assert_eq!(figures(&store, user).await, (50, 1));
        }
    }
}

/// Whether the operating system still considers a connection to this port of this machine as up.
#[cfg(target_os = "linux")]
fn is_connected(port: u16) -> bool {
    let connections = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    // Number, local address, remote address, state: in hexadecimal digits.
    connections.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words[2].ends_with(&format!(":{port:04X}")) && words[3] == "01"
    })
}

#[cfg(target_os = "linux")]
fn set_network(to: &str) {
    let mut ip = std::process::Command::new("ip");
    let set = ip.args(["link", "set", "lo", to]).status();
    assert!(set.unwrap().success());
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs redis-server, unshare and ip"]
fn calls_to_a_machine_that_vanishes_time_out() {
    with_own_network(|| {
        set_network("up");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let server = Server::start();
            let store = server.store().await;
            hold(&store, "user", 1, 100).await.unwrap();
            assert!(is_connected(server.port()));
            set_network("down");
            is_away(&store, "user").await;
            // The operating system would retry for a quarter of an hour.
            until("the connection is given up", async || {
                !is_connected(server.port())
            })
            .await;
            is_away(&store, "user").await;
            set_network("up");
            is_back(&store, "user").await;
        });
    });
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_node_that_is_away_stops_only_its_own_scopes() {
    let mut cluster = Cluster::start().await;
    let store = cluster.store().await;
    // By their slots: 5061, 866 and 12182.
    let (here, there) = ("bar", "foo");
    for scope in [here, there] {
        settle(&store, HoldId::unique(), scope, 10).await;
    }
    cluster.nodes[2].kill();
    is_away(&store, there).await;
    let began = Instant::now();
    hold(&store, here, 5, 100).await.unwrap();
    assert!(began.elapsed() < BOUND);
    // Settlements that are possible are made.
    let charge = |scope: &str| Settlement::new(HoldId::unique(), scope, Amount::bytes(1).into());
    let both = [charge(there), charge(here)];
    store.settle(&both).await.unwrap_err();
    assert_eq!(figures(&store, here).await, (11, 5));
    cluster.nodes[2].start_again();
    is_back(&store, there).await;
    until("it is settled", async || store.settle(&both).await.is_ok()).await;
    assert_eq!(figures(&store, here).await, (11, 5));
    assert_eq!(figures(&store, there).await.0 % 10, 1);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_promoted_replica_continues_with_the_state_of_its_primary() {
    let cluster = Cluster::start().await;
    let store = cluster.store().await;
    let replica = Cluster::node();
    cluster.meet(&replica).await;
    let primary: String = cluster.nodes[2].ask("CLUSTER MYID").await.unwrap();
    let replicate = format!("CLUSTER REPLICATE {primary}");
    until("it knows its primary", async || {
        replica.ask::<()>(&replicate).await.is_ok()
    })
    .await;
    until("it is in step", async || {
        let info: String = replica.ask("INFO replication").await.unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    let id = hold(&store, "foo", 60, 100).await.unwrap();
    settle(&store, id, "foo", 50).await;
    let held = hold(&store, "foo", 30, 100).await.unwrap();
    replica.ask::<()>("CLUSTER FAILOVER").await.unwrap();
    until("it has taken over", async || {
        let role: String = replica.ask("INFO replication").await.unwrap();
        role.contains("role:master")
    })
    .await;
    is_back(&store, "foo").await;
    // It also remembers settlements.
    settle(&store, id, "foo", 50).await;
    assert_eq!(figures(&store, "foo").await, (50, 30));
    settle(&store, held, "foo", 30).await;
    assert_eq!(figures(&store, "foo").await, (80, 0));
    assert_eq!(store.largest(1).await.unwrap()[0].0.as_str(), "foo");
}

fn of_the_killed() -> Scopes {
    Scopes::from(["user:{acme}:42", "tenant:{acme}"])
}

const KILLED: &str = "redis::outage::\
    a_killed_process_frees_its_holds_and_leaves_no_partial_charge";

/// Holds and stores repeatedly, until it is killed.
async fn is_killed(url: &str) {
    let store = RedisStore::connect(url).await.unwrap();
    let quota = StoredQuota::builder(store, Limits::UNLIMITED)
        .time_to_live(Duration::from_secs(2))
        .build();
    let (scopes, amount) = (of_the_killed(), Amount::new(1 << 20, 1));
    let _held = quota.reserve(&"held".into(), amount, Amount::ZERO).await;
    for _ in 0..4 {
        let (quota, scopes) = (quota.clone(), scopes.clone());
        tokio::spawn(async move {
            for number in 0.. {
                if number == 1 {
                    ready();
                }
                let hold = quota.reserve(&scopes, amount, Amount::ZERO).await.unwrap();
                hold.commit(Change::from(amount)).await;
            }
        });
    }
    pending().await
}

/// The number of holds of users, and of tenants.
async fn held<S: Store>(store: &S) -> (usize, usize) {
    let holds = store.holds(None, 100).await.unwrap();
    let count = |prefix| {
        let scopes = holds.iter().map(|hold| hold.scope.as_str());
        scopes.filter(|scope| scope.starts_with(prefix)).count()
    };
    (count("user"), count("tenant"))
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_killed_process_frees_its_holds_and_leaves_no_partial_charge() {
    if let Some(url) = part() {
        return is_killed(&url).await;
    }
    let server = Server::start();
    let store = server.store().await;
    for round in 0..3 {
        let process = Process::start(KILLED, &server.url());
        // Longer than the time to live of a hold: it is renewed.
        tokio::time::sleep(Duration::from_millis(2_500 + 7 * round)).await;
        assert_eq!(figures(&store, "held").await, (0, 1 << 20));
        process.kill();
        let killed = Instant::now();
        until("its holds are gone", async || {
            let (user, tenant) = held(&store).await;
            if user != tenant {
                // Each scope is read by a call of its own, and holds expired in between. They have expired in both scopes.
                let (user, tenant) = held(&store).await;
                assert_eq!(user, tenant);
            }
            user + tenant == 0
        })
        .await;
        assert!(killed.elapsed() < Duration::from_millis(2_300));
        let mut accounts = Vec::new();
        for scope in &of_the_killed() {
            accounts.push(store.account(scope).await.unwrap());
        }
        assert_eq!(accounts[0], accounts[1]);
        let used = accounts[0].used;
        assert!(
            used.objects > 0 && used.bytes == used.objects << 20,
            "{used:?}"
        );
        assert_eq!(accounts[0].held, Amount::ZERO);
    }
}
