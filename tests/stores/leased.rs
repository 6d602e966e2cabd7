//! Leases: never a byte over the limit, no refusal while another node has idle budget, few round trips.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use test_support::{Dice, times};
use tokio::time::{Instant, advance, sleep};
use tower_storage_guard::{
    Amount, Scope, Scopes,
    quota::{Change, Limits, QuotaError, QuotaHold, QuotaSource, SoftLimitHook},
    store::{LeasedHold, LeasedQuota, Store, StoredQuota, conformance::ReferenceStore},
};

use super::{exceeded, figures, line::Line};

type Quota = LeasedQuota<Arc<Line<ReferenceStore>>>;
type Hold = LeasedHold<Arc<Line<ReferenceStore>>>;

const LATENCY: Duration = Duration::from_millis(2);
const LIVES: Duration = Duration::from_secs(30);

/// A node of its own, with its connection to the store.
fn node(store: &Arc<ReferenceStore>, limits: Limits) -> (Quota, Arc<Line<ReferenceStore>>) {
    let line = Arc::new(Line::new(Arc::clone(store), LATENCY));
    let stored = StoredQuota::builder(Arc::clone(&line), limits)
        .time_to_live(LIVES)
        .build();
    (LeasedQuota::new(stored), line)
}

async fn take(quota: &Quota, scopes: impl Into<Scopes>, bytes: u64) -> Result<Hold, QuotaError> {
    let answer = quota.reserve(&scopes.into(), Amount::bytes(bytes), Amount::ZERO);
    answer.await
}

async fn store(quota: &Quota, scopes: impl Into<Scopes>, bytes: u64) {
    let hold = take(quota, scopes, bytes).await.expect("it fits");
    hold.commit(Amount::bytes(bytes).into()).await;
}

/// One request at each interval, for this long.
async fn steady(quota: &Quota, scope: &str, bytes: u64, every: Duration, during: Duration) -> u64 {
    let end = Instant::now() + during;
    let mut requests = 0;
    while Instant::now() < end {
        store(quota, scope, bytes).await;
        requests += 1;
        sleep(every).await;
    }
    requests
}

#[tokio::test(start_paused = true)]
async fn in_the_steady_state_a_hundred_requests_cost_one_round_trip() {
    for (per_second, bytes) in [(250, 1_000), (1_000, 50_000), (5_000, 7)] {
        let reference = Arc::new(ReferenceStore::default());
        let (quota, line) = node(&reference, Limits::bytes(1 << 50));
        let every = Duration::from_secs(1) / per_second;
        steady(&quota, "user", bytes, every, Duration::from_secs(5)).await;
        let before = line.trips();
        let requests = steady(&quota, "user", bytes, every, Duration::from_secs(60)).await;
        let trips = line.trips() - before;
        assert!(
            trips * 100 <= requests,
            "{trips} round trips for {requests} requests, {per_second} in a second"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn few_requests_lease_nothing() {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, line) = node(&reference, Limits::bytes(1 << 50));
    let every = Duration::from_secs(1);
    steady(&quota, "user", 10, every, Duration::from_secs(20)).await;
    // One to reserve it, one to charge it.
    assert_eq!(line.trips(), 40);
    assert_eq!(figures(&*reference, "user").await, (200, 0));
}

#[tokio::test(start_paused = true)]
async fn idle_budget_is_returned_within_a_second() {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, _) = node(&reference, Limits::bytes(1 << 40));
    let every = Duration::from_millis(1);
    let requests = steady(&quota, "user", 1_000, every, Duration::from_secs(3)).await;
    let stored = requests as i64 * 1_000;
    let long = take(&quota, "user", 1_000).await.unwrap();
    let (used, held) = figures(&*reference, "user").await;
    assert!(used < stored && held > 1_000, "{used} used, {held} held");
    sleep(Duration::from_secs(1)).await;
    // The amount in flight stays leased, and the rest is returned.
    let (used, held) = figures(&*reference, "user").await;
    assert_eq!(held - 1_000, (stored - used) as u64, "nothing is free");
    sleep(Duration::from_millis(400)).await;
    assert_eq!(figures(&*reference, "user").await, (stored, 1_000));
    drop(long);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(figures(&*reference, "user").await, (stored, 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_returns_idle_budget_before_a_refusal() {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, _) = node(&reference, Limits::bytes(1_000_000));
    for _ in 0..40 {
        store(&quota, "user", 1_000).await;
    }
    sleep(Duration::from_millis(10)).await;
    let (used, held) = figures(&*reference, "user").await;
    assert!(held as i64 > 40_000 - used, "something is leased");
    // The whole rest, to the byte, and then not one more.
    let all = take(&quota, "user", 960_000).await.expect("it fits");
    let full = exceeded(take(&quota, "user", 1).await);
    assert_eq!(
        (full.limit, full.used, full.required),
        (1_000_000, 1_000_000, 1)
    );
    all.commit(Change::ZERO).await;
    // An amount that a request releases at this moment is available to the next one.
    drop(take(&quota, "user", 960_000).await.expect("it fits"));
    drop(take(&quota, "user", 960_000).await.expect("it fits again"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_away_above_a_soft_limit_after_its_grace() {
    const GRACE: Duration = Duration::from_secs(60);
    let reference = Arc::new(ReferenceStore::default());
    let limits = Limits::bytes(1 << 40).soft_bytes(10_000).grace(GRACE);
    let (one, line) = node(&reference, limits);
    let (other, _) = node(&reference, limits);
    let crossings = Arc::new(Mutex::new(Vec::new()));
    for quota in [&one, &other] {
        let crossings = Arc::clone(&crossings);
        quota.on_soft_limit(SoftLimitHook::new(move |over| {
            crossings.lock().unwrap().push((Instant::now(), over.used));
        }));
    }
    let user = Scopes::from("user");
    let every = Duration::from_millis(10);
    steady(&one, "user", 500, every, Duration::from_secs(2)).await;
    let told = crossings.lock().unwrap().clone();
    let [(crossed, used)] = told[..] else {
        panic!("{told:?} is not one crossing");
    };
    assert!(used > 10_000);
    let [over] = &one.over_soft_limits(&user)[..] else {
        panic!("it is above the soft limit");
    };
    assert!(over.grace.is_some_and(|left| left < GRACE));

    // Both nodes lease on, up to the end of the grace, and not beyond it.
    let end = crossed + GRACE;
    while Instant::now() + every * 2 < end {
        store(&one, "user", 500).await;
        store(&other, "user", 500).await;
        sleep(every).await;
    }
    let trips = line.trips();
    store(&one, "user", 1).await;
    assert_eq!(line.trips(), trips, "it was leased");
    sleep(end.saturating_duration_since(Instant::now())).await;
    for quota in [&one, &other] {
        assert_eq!(exceeded(take(quota, "user", 1).await).limit, 10_000);
    }
    let (used, _) = figures(&*reference, "user").await;
    one.charge(
        &user,
        Change::between(Amount::ZERO, Amount::bytes(used as u64 - 10_000)),
    );
    sleep(Duration::from_secs(2)).await;
    drop(
        take(&other, "user", 1)
            .await
            .expect("usage is at the soft limit"),
    );
    assert_eq!(crossings.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn budget_of_another_node_is_available_a_second_later() {
    let reference = Arc::new(ReferenceStore::default());
    let (one, _) = node(&reference, Limits::bytes(1_000_000));
    let (other, _) = node(&reference, Limits::bytes(1_000_000));
    for _ in 0..40 {
        store(&one, "user", 1_000).await;
    }
    sleep(Duration::from_millis(10)).await;
    exceeded(take(&other, "user", 960_000).await);
    sleep(Duration::from_secs(1)).await;
    take(&other, "user", 960_000).await.expect("it fits");
    exceeded(take(&one, "user", 1).await);
}

#[tokio::test(start_paused = true)]
async fn an_expired_lease_grants_nothing() {
    let reference = Arc::new(ReferenceStore::default());
    let (one, line) = node(&reference, Limits::bytes(1_000_000));
    let (other, _) = node(&reference, Limits::bytes(1_000_000));
    let busy = Duration::from_millis(1);
    steady(&one, "user", 10, busy, Duration::from_secs(2)).await;
    let slow = take(&one, "user", 10).await.expect("it fits");
    // It continues with its leased budget, as long as that lasts.
    line.cut(true);
    store(&one, "user", 10).await;
    let start = Instant::now();
    let mut let_in = 0;
    while start.elapsed() < LIVES + Duration::from_secs(1) {
        let answer = take(&one, "user", 1).await;
        if let Ok(hold) = answer {
            let_in += 1;
            drop(hold);
            assert!(start.elapsed() < LIVES, "from a lease that is over");
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(let_in > 0);
    // Its lease is over by the store's clock as well: the other node may use all but the known charges.
    let (used, held) = figures(&*reference, "user").await;
    assert_eq!(held, 0, "{:?}", reference.holds(None, 9).await);
    let all = take(&other, "user", 1_000_000 - used as u64)
        .await
        .expect("it fits");
    assert!(matches!(
        take(&one, "user", 1).await,
        Err(QuotaError::Unavailable(_))
    ));
    line.cut(false);
    // Its charges are not lost, and the hold of its request is made again.
    sleep(Duration::from_secs(4)).await;
    let (now, held) = figures(&*reference, "user").await;
    assert!(now > used, "{now} after {used}");
    assert_eq!(held, 1_000_000 - used as u64 + 10);
    exceeded(take(&one, "user", 1).await);
    drop((all, slow));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(figures(&*reference, "user").await, (now, 0));
    store(&one, "user", 1_000_000 - now as u64).await;
}

/// The store has lost its leases with everything else, and may give the room to others.
#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_leases_of_an_emptied_store() {
    const LIMIT: u64 = 1_000_000;
    let reference = Arc::new(ReferenceStore::default());
    let (quota, line) = node(&reference, Limits::bytes(LIMIT));
    let (other, _) = node(&reference, Limits::bytes(LIMIT));
    let every = Duration::from_millis(4);
    let mut stored = 1_000 * steady(&quota, "user", 1_000, every, Duration::from_secs(1)).await;
    let trips = line.trips();
    let held = take(&quota, "user", 1_000).await.unwrap();
    assert_eq!(line.trips(), trips, "there is a lease");
    reference.clear();
    // The first asks the store, and so notices. The second would fit into the lease.
    let unavailable = |answer| assert!(matches!(answer, Err(QuotaError::Unavailable(_))));
    unavailable(take(&quota, "user", LIMIT / 2).await);
    unavailable(take(&quota, "user", 1).await);
    let count = Amount::bytes(stored).into();
    other.stored().adjust(Scope::from("user"), count).await;
    other.stored().declare_counted().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    // What was charged a moment before may be counted and charged.
    let (used, in_store) = figures(&reference, "user").await;
    assert!(used >= stored as i64);
    assert_eq!(in_store, 1_000, "only what a request has");
    let rest = LIMIT - used as u64 - 1_000;
    let all = take(&other, "user", rest).await.unwrap();
    exceeded(take(&quota, "user", 1).await);
    drop(all);
    held.commit(Amount::bytes(1_000).into()).await;
    stored += 1_000;
    quota.settled().await;
    let (used, held) = figures(&reference, "user").await;
    assert!(used >= stored as i64 && held == 0, "{used} {held}");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_owner_leaves_nothing_behind() {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, _) = node(&reference, Limits::bytes(1_000_000));
    for _ in 0..40 {
        store(&quota, "user", 1_000).await;
    }
    quota.charge(
        &"user".into(),
        Change::between(Amount::ZERO, Amount::bytes(500)),
    );
    let hold = take(&quota, "user", 100).await.unwrap();
    quota.settled().await;
    assert_eq!(figures(&*reference, "user").await, (39_500, 100));
    drop(quota);
    hold.commit(Amount::bytes(100).into()).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(figures(&*reference, "user").await, (39_600, 0));
}

/// The number of round trips for a thousand requests for `scopes`, at 250 per second, while `others` ask for more
/// than there is once per second.
async fn trips_beside(scopes: &str, others: Scopes, bytes: u64) -> u64 {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, line) = node(&reference, Limits::bytes(1 << 40));
    let full = Scope::from("full");
    reference
        .set_limits(&full, Some(Limits::bytes(0)))
        .await
        .unwrap();
    let refused = async {
        loop {
            exceeded(take(&quota, others.clone(), bytes).await);
            sleep(Duration::from_secs(1)).await;
        }
    };
    let every = Duration::from_millis(4);
    let requests = tokio::select! {
        requests = steady(&quota, scopes, 1_000, every, Duration::from_secs(30)) => requests,
        () = refused => unreachable!("it goes on"),
    };
    line.trips() * 1_000 / requests
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_takes_no_lease_away() {
    let trips = trips_beside("user", ["user", "full"].into(), 1).await;
    assert!(
        trips < 100,
        "{trips} round trips, for a limit of another scope"
    );
    let trips = trips_beside("user", "user".into(), 1 << 41).await;
    assert!(
        trips < 20,
        "{trips} round trips, for requests that exceed the limit"
    );
}

#[tokio::test(start_paused = true)]
async fn refused_requests_do_not_wait_for_each_other() {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, _) = node(&reference, Limits::bytes(100));
    let all = take(&quota, "user", 100).await.expect("it fits");
    let asked = (0..2_000).map(async |number| {
        sleep(Duration::from_millis(number)).await;
        let start = Instant::now();
        exceeded(take(&quota, "user", 1).await);
        start.elapsed()
    });
    let waited = futures_util::future::join_all(asked).await;
    let longest = waited.into_iter().max().unwrap();
    assert!(longest < LATENCY * 20, "{longest:?}");
    drop(all);
}

#[tokio::test(start_paused = true)]
async fn charges_that_cancel_out_leave_nothing_held() {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, _) = node(&reference, Limits::bytes(1_000_000));
    for _ in 0..40 {
        store(&quota, "user", 1_000).await;
    }
    quota.settled().await;
    for _ in 0..20 {
        store(&quota, "user", 1_000).await;
        quota.charge(
            &"user".into(),
            Change::between(Amount::ZERO, Amount::bytes(1_000)),
        );
    }
    take(&quota, "user", 960_000).await.expect("it fits");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(figures(&*reference, "user").await, (40_000, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_cancelled_during_the_decision_leaves_no_hold() {
    let reference = Arc::new(ReferenceStore::default());
    let (quota, _) = node(&reference, Limits::bytes(1_000));
    for patience in 1..40 {
        for _ in 0..10 {
            store(&quota, "user", 1).await;
        }
        drop(take(&quota, "user", 100).await);
        let patience = Duration::from_millis(patience);
        let _ = tokio::time::timeout(patience, take(&quota, "user", 900)).await;
        quota.charge(
            &"user".into(),
            Change::between(Amount::ZERO, Amount::bytes(10)),
        );
        sleep(Duration::from_secs(2)).await;
        assert_eq!(figures(&*reference, "user").await, (0, 0), "{patience:?}");
    }
}

/// What was stored in fact, and what is reserved in fact.
#[derive(Default)]
struct Truth(Mutex<HashMap<Scope, (i64, i64)>>);

impl Truth {
    fn change(&self, scopes: &Scopes, used: i64, held: i64, limit: i64) {
        let mut truth = self.0.lock().unwrap();
        for scope in scopes {
            let figures = truth.entry(scope.clone()).or_default();
            *figures = (figures.0 + used, figures.1 + held);
            assert!(figures.0 + figures.1 <= limit, "{scope}: {figures:?}");
        }
    }

    /// How much of these bytes can be removed: what was stored in all of the scopes.
    fn removable(&self, scopes: &Scopes, bytes: i64) -> i64 {
        let truth = self.0.lock().unwrap();
        let used = |scope| truth.get(scope).map_or(0, |figures| figures.0);
        let least = scopes.iter().map(used).min().unwrap_or(0);
        bytes.min(least).max(0)
    }

    fn fits(&self, scopes: &Scopes, bytes: u64, limit: i64) -> bool {
        let truth = self.0.lock().unwrap();
        scopes.iter().all(|scope| {
            let (used, held) = truth.get(scope).copied().unwrap_or_default();
            used + held + bytes as i64 <= limit
        })
    }

    fn used(&self, scope: &str) -> i64 {
        self.0
            .lock()
            .unwrap()
            .get(&Scope::from(scope))
            .map_or(0, |figures| figures.0)
    }
}

fn any_scopes(dice: &mut Dice) -> Scopes {
    match dice.roll(4) {
        0 => "user:1".into(),
        1 => ["user:1", "tenant"].into(),
        2 => ["tenant", "user:2"].into(),
        _ => "tenant".into(),
    }
}

/// Uploads, one after another, by one client of one node.
async fn client(quota: Quota, truth: Arc<Truth>, mut dice: Dice, limit: i64) -> (u32, u32) {
    let (mut let_in, mut refused) = (0, 0);
    for _ in 0..120 {
        let (scopes, bytes) = (any_scopes(&mut dice), dice.roll(40));
        let demand = Amount::bytes(bytes);
        let expected = Amount::bytes(dice.roll(60));
        match quota.reserve(&scopes, demand, expected).await {
            Ok(mut hold) => {
                let_in += 1;
                truth.change(&scopes, 0, bytes as i64, limit);
                let mut held = bytes;
                if dice.roll(3) == 0 {
                    let more = dice.roll(20);
                    if hold.grow(Amount::bytes(more)).await.is_ok() {
                        truth.change(&scopes, 0, more as i64, limit);
                        held += more;
                    }
                }
                sleep(Duration::from_millis(dice.roll(15))).await;
                if dice.roll(3) == 0 {
                    truth.change(&scopes, 0, -(held as i64), limit);
                    drop(hold);
                } else {
                    let replaced = truth.removable(&scopes, dice.roll(11) as i64);
                    let change = dice.roll(held + 1) as i64 - replaced;
                    truth.change(&scopes, change, -(held as i64), limit);
                    hold.commit(Change {
                        bytes: change,
                        objects: 0,
                    })
                    .await;
                }
            }
            Err(QuotaError::Exceeded(_)) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
        if dice.roll(20) == 0 {
            let removed = truth.removable(&scopes, 5);
            truth.change(&scopes, -removed, 0, limit);
            quota.charge(
                &scopes,
                Change::between(Amount::ZERO, Amount::bytes(removed as u64)),
            );
        }
        let pause = [0, 1, 5, 300][dice.roll(4) as usize];
        sleep(Duration::from_millis(dice.roll(pause + 1))).await;
    }
    (let_in, refused)
}

/// Random requests of many clients on three nodes: the limit is never exceeded, not even by a byte. Afterwards all
/// nodes and the store agree with what was stored in fact.
#[tokio::test(start_paused = true)]
async fn with_several_nodes_the_sum_never_passes_a_limit() {
    for seed in 0..u64::from(times(12)) {
        let reference = Arc::new(ReferenceStore::default());
        let limit = [300, 2_000, 6_000][seed as usize % 3];
        let nodes = [(); 3].map(|()| node(&reference, Limits::bytes(limit as u64)));
        let truth = Arc::new(Truth::default());
        let clients = (0..18).map(|number| {
            let quota = nodes[number % 3].0.clone();
            let dice = Dice::new(seed * 1_000 + number as u64);
            tokio::spawn(client(quota, Arc::clone(&truth), dice, limit))
        });
        let clients: Vec<_> = clients.collect();
        let (mut let_in, mut refused) = (0, 0);
        for client in clients {
            let counts = client.await.unwrap();
            (let_in, refused) = (let_in + counts.0, refused + counts.1);
        }
        assert!(let_in > 200, "{let_in} admitted, {refused} refused");
        sleep(Duration::from_secs(2)).await;
        for scope in ["user:1", "user:2", "tenant"] {
            let figures = figures(&*reference, scope).await;
            assert_eq!(figures, (truth.used(scope), 0), "{scope}, seed {seed}");
        }
        assert!(reference.holds(None, 9).await.unwrap().is_empty());
    }
}

/// One request at a time: a request that is refused although it fits is admitted a second later.
#[tokio::test(start_paused = true)]
async fn a_request_refused_for_idle_budget_elsewhere_is_admitted_a_second_later() {
    let mut refused_for_idle = 0;
    for seed in 0..u64::from(times(20)) {
        let (reference, limit) = (Arc::new(ReferenceStore::default()), 3_000);
        let nodes = [(); 3].map(|()| node(&reference, Limits::bytes(limit as u64)).0);
        let truth = Truth::default();
        let mut dice = Dice::new(seed);
        let mut open: Vec<(Hold, Scopes, u64)> = Vec::new();
        for _ in 0..600 {
            let quota = &nodes[dice.roll(3) as usize];
            match dice.roll(10) {
                0..6 => {
                    let (scopes, bytes) = (any_scopes(&mut dice), dice.roll(60));
                    let hold = match take(quota, scopes.clone(), bytes).await {
                        Ok(hold) => hold,
                        Err(_) if truth.fits(&scopes, bytes, limit) => {
                            refused_for_idle += 1;
                            sleep(Duration::from_secs(1)).await;
                            take(quota, scopes.clone(), bytes)
                                .await
                                .expect("it fits, and there is no other request")
                        }
                        Err(_) => continue,
                    };
                    truth.change(&scopes, 0, bytes as i64, limit);
                    open.push((hold, scopes, bytes));
                }
                6..9 if !open.is_empty() => {
                    let (hold, scopes, held) =
                        open.swap_remove(dice.roll(open.len() as u64) as usize);
                    let replaced = truth.removable(&scopes, 20 * i64::from(dice.roll(3) == 0));
                    let change = dice.roll(held + 1) as i64 - replaced;
                    truth.change(&scopes, change, -(held as i64), limit);
                    hold.commit(Change {
                        bytes: change,
                        objects: 0,
                    })
                    .await;
                }
                _ => advance(Duration::from_millis(dice.roll(200))).await,
            }
        }
        drop(open);
    }
    assert!(refused_for_idle > 0, "nothing was put to the test");
}
