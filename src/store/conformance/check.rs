//! Calls to a store under test, and what becomes of a wrong answer.

use std::{error::Error, fmt::Debug, panic::resume_unwind, sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::super::{Account, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoredQuota};
use crate::{
    amount::Amount,
    quota::{Change, Exceeded, Limits, OverFor, OverSoftLimit, QuotaError},
    scope::{Scope, Scopes},
};

/// A store of any type.
pub(super) type AnyStore = Arc<dyn Store>;

/// Longer than a run.
pub(super) const LONG: Duration = Duration::from_secs(60);
/// How long a quota may take to settle what it was given.
const PATIENCE: Duration = Duration::from_secs(10);

/// One handle on the store, and the rule that it is tested by.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) rule: &'static str,
    pub(super) store: AnyStore,
}

/// A reservation of bytes, with a limit for scopes that have none of their own.
pub(super) fn reserve(id: HoldId, scopes: impl Into<Scopes>, bytes: u64, limit: u64) -> Reserve {
    Reserve::new(id, scopes, Amount::bytes(bytes))
        .with_default(Limits::bytes(limit))
        .with_time_to_live(LONG)
}

/// A change of bytes.
pub(super) fn bytes(bytes: i64) -> Change {
    change(bytes, 0)
}

/// A change of bytes and objects.
pub(super) fn change(bytes: i64, objects: i64) -> Change {
    Change { bytes, objects }
}

/// An account, with whether its timers run in place of for how long they have.
pub(super) fn timeless(account: Account) -> Account {
    let OverFor { bytes, objects } = account.over;
    let [bytes, objects] = [bytes, objects].map(|over| over.map(|_| Duration::ZERO));
    account.with_over(OverFor::new(bytes, objects))
}

/// Answers have no order.
pub(super) fn in_order(mut over: Vec<OverSoftLimit>) -> Vec<OverSoftLimit> {
    over.sort_by_key(|over| (over.scope.clone(), over.resource.as_str()));
    over
}

/// The hold, the scope and the bytes of each entry.
pub(super) fn figures(entries: &[HoldEntry]) -> Vec<(HoldId, &str, u64)> {
    let entries = entries.iter();
    entries
        .map(|entry| (entry.id, entry.scope.as_str(), entry.amount.bytes))
        .collect()
}

/// Passes a panic of a task on.
pub(super) async fn join<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(output) => output,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(error) => panic!("the runtime has shut down: {error}"),
    }
}

impl Handle {
    /// Ends the run.
    pub(super) fn fail(&self, what: impl AsRef<str>) -> ! {
        panic!(
            "the store breaks the rule \"{}\": {}",
            self.rule,
            what.as_ref()
        )
    }

    /// Ends the run unless the store has answered as expected.
    pub(super) fn expect<T: Debug + PartialEq>(&self, what: &str, found: T, expected: T) {
        if found != expected {
            self.fail(format!("{what}: expected {expected:?}, found {found:?}"));
        }
    }

    /// Ends the run unless this is true.
    pub(super) fn expect_that(&self, is_true: bool, what: impl AsRef<str>) {
        if !is_true {
            self.fail(what);
        }
    }

    /// The answer to a call that must succeed.
    pub(super) fn done<T>(&self, call: &str, answer: Result<T, impl Error>) -> T {
        match answer {
            Ok(answer) => answer,
            Err(error) => self.fail(format!("`{call}` fails: {}", chain(&error))),
        }
    }

    /// The refusal by a quota that must refuse.
    pub(super) fn exceeded<T>(&self, what: &str, answer: Result<T, QuotaError>) -> Exceeded {
        match answer {
            Ok(_) => self.fail(format!("{what}: admitted, and a limit is passed")),
            Err(QuotaError::Exceeded(exceeded)) => exceeded,
            Err(error) => self.fail(format!("{what}: not decided: {}", chain(&error))),
        }
    }

    /// Makes a reservation that fits.
    pub(super) async fn admit(&self, what: &str, reserve: &Reserve) -> Reserved {
        match self.store.reserve(reserve).await {
            Ok(reserved) => reserved,
            Err(QuotaError::Exceeded(exceeded)) => {
                self.fail(format!("{what}: refused, and it fits: {exceeded:?}"))
            }
            Err(error) => self.fail(format!("{what}: not decided: {}", chain(&error))),
        }
    }

    /// Makes a reservation that does not fit.
    pub(super) async fn refuse(&self, what: &str, reserve: &Reserve) -> Exceeded {
        self.exceeded(what, self.store.reserve(reserve).await)
    }

    /// Holds bytes, which fit.
    pub(super) async fn hold(&self, scopes: impl Into<Scopes>, bytes: u64, limit: u64) -> HoldId {
        let id = HoldId::unique();
        let what = format!("a hold of {bytes} bytes, with a limit of {limit}");
        self.admit(&what, &reserve(id, scopes, bytes, limit)).await;
        id
    }

    /// Tries to hold bytes, which do not fit.
    pub(super) async fn refuse_hold(
        &self,
        scopes: impl Into<Scopes>,
        bytes: u64,
        limit: u64,
    ) -> Exceeded {
        let what = format!("a hold of {bytes} bytes, with a limit of {limit}");
        let reserve = reserve(HoldId::unique(), scopes, bytes, limit);
        self.refuse(&what, &reserve).await
    }

    pub(super) async fn settle_all(&self, settlements: &[Settlement]) -> Vec<OverSoftLimit> {
        in_order(self.done("settle", self.store.settle(settlements).await))
    }

    /// Charges bytes and objects without a hold, where a scope without limits of its own has these, if they are known.
    pub(super) async fn charge(
        &self,
        scopes: impl Into<Scopes>,
        change: Change,
        default: Option<Limits>,
    ) -> Vec<OverSoftLimit> {
        let mut charge = Settlement::new(HoldId::unique(), scopes, change);
        if let Some(default) = default {
            charge = charge.with_defaults(|_| default);
        }
        self.settle_all(&[charge]).await
    }

    /// Ends a hold, and charges bytes.
    pub(super) async fn settle(&self, id: HoldId, scopes: impl Into<Scopes>, change: i64) {
        let settlement = Settlement::new(id, scopes, bytes(change));
        self.settle_all(&[settlement]).await;
    }

    pub(super) async fn renew(&self, id: HoldId, scopes: impl Into<Scopes>) {
        let renewed = self.store.renew(&[(id, scopes.into())], LONG).await;
        self.done("renew", renewed);
    }

    pub(super) async fn account(&self, scope: &str) -> Account {
        self.done("account", self.store.account(&scope.into()).await)
    }

    /// Bytes used and held.
    pub(super) async fn figures(&self, scope: &str) -> (i64, u64) {
        let account = self.account(scope).await;
        (account.used.bytes, account.held.bytes)
    }

    /// Ends the run unless these bytes are used and held.
    pub(super) async fn expect_figures(&self, when: &str, scope: &str, figures: (i64, u64)) {
        let what = format!("bytes used and held in `{scope}` {when}");
        self.expect(&what, self.figures(scope).await, figures);
    }

    /// Ends the run unless a hold that was just made for [`LONG`] lives about as long.
    pub(super) fn expect_long(&self, entry: &HoldEntry) {
        let expires_in = entry.expires_in;
        self.expect_that(
            expires_in <= LONG && expires_in > LONG / 2,
            format!("a hold for {LONG:?} expires in {expires_in:?}"),
        );
    }

    /// The holds in a scope, up to nine.
    pub(super) async fn holds(&self, scope: &str) -> Vec<HoldEntry> {
        let scope = Scope::from(scope);
        self.done("holds", self.store.holds(Some(&scope), 9).await)
    }

    /// Waits until the store has taken everything from a quota.
    pub(super) async fn is_settled(&self, quota: &StoredQuota<AnyStore>) {
        let start = Instant::now();
        while quota.unsettled() > 0 {
            if start.elapsed() > PATIENCE {
                self.fail("the store does not take the settlements of a quota");
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An error and its sources.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
