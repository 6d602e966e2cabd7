//! Tests of the contract of [`Store`], for authors of stores.
//!
//! Call [`run`] from a test of your own. It panics with the rule that is broken, and with what was expected and found:
//!
//! ```
//! use std::sync::Arc;
//!
//! use tower_storage_guard::store::{Store, conformance};
//! # use tower_storage_guard::store::conformance::ReferenceStore as MyStore;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! // In a test with `#[tokio::test]`.
//! let store = Arc::new(MyStore::default());
//! conformance::run(Arc::clone(&store), store).await;
//! # });
//! ```
//!
//! A store that processes share should be given two handles that share nothing in this process. Open the file twice, or
//! connect twice:
//!
//! ```no_run
//! # #[cfg(feature = "store-sqlite")] {
//! use tower_storage_guard::store::{SqliteStore, conformance};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! # let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("quota.db");
//! conformance::run(SqliteStore::open(&path)?, SqliteStore::open(&path)?).await;
//! # Ok::<_, tower_storage_guard::store::StoreError>(())
//! # }).unwrap();
//! # }
//! ```
//!
//! # The rules
//!
//! | rule | of the [contract](Store) |
//! |---|---|
//! | a store has the baseline that was set first | 6 |
//! | an exact fit is admitted, and one byte more is not | 1 |
//! | a reservation holds in all of its scopes, or in none | 1 |
//! | what is expected must fit, and is not held | 1 |
//! | a settlement is idempotent | 3 |
//! | a hold expires unless it is renewed | 2 |
//! | a hold is kept under another id in one step | 1, 3 |
//! | limits are those of the scope, or the default ones | 1 |
//! | usage may be below zero by what is held | 1 |
//! | names are kept as they are | 1 |
//! | accounts can be read and corrected | 1 |
//! | concurrent requests never pass a limit | 1 |
//! | a charge above a soft limit crosses it once | 5 |
//! | a crossing is told once, and lasts until it is over | 3, 5 |
//! | a soft limit is enforced after its grace | 2, 5 |
//! | only a charge starts the timer of a soft limit | 5 |
//! | a quota over the store holds, charges and releases | 1 to 4 |
//! | what was just released is free | 1 |
//! | an admin reads and corrects accounts, as [`Admin`](super::Admin) promises | 1, 3 |
//! | random steps have the results of the [`ReferenceStore`] | 1, 3 |
//!
//! What it cannot test is up to the author: that a step survives a crash, and that calls fail in bounded time while the
//! engine is away.
//!
//! # Scopes
//!
//! Scopes that are reserved together have names such as `{all}user` and `{all}tenant`, with the same part in braces.
//! Engines that keep scopes apart by their names can use that, as the Redis store does.

mod admin;
mod check;
mod quota;
mod random;
mod reference;
mod rules;
mod soft;

use std::sync::Arc;

use self::check::{AnyStore, Handle};
pub use self::reference::ReferenceStore;
use super::Store;

/// Tests a store by two handles on it, as of two processes. The store must be empty, and used by nothing else.
///
/// A run takes some 15 seconds, for most of which it waits for holds to expire. It needs a tokio runtime with its timer
/// enabled. The timer must not be paused, unless the store goes by tokio's clock as well.
///
/// # Panics
///
/// When the store breaks a rule of the [contract](Store), with the name of the rule, or when a call to it fails.
pub async fn run<S: Store>(one: S, other: S) {
    let (one, other): (AnyStore, AnyStore) = (Arc::new(one), Arc::new(other));
    let by = |rule| {
        let handle = |store: &AnyStore| Handle {
            rule,
            store: Arc::clone(store),
        };
        [handle(&one), handle(&other)]
    };
    // First, because it needs a store that is new.
    rules::baseline(by("a store has the baseline that was set first")).await;
    rules::exact_fit(by("an exact fit is admitted, and one byte more is not")).await;
    rules::all_or_none(by("a reservation holds in all of its scopes, or in none")).await;
    rules::expected(by("what is expected must fit, and is not held")).await;
    rules::settled_once(by("a settlement is idempotent")).await;
    rules::expiry(by("a hold expires unless it is renewed")).await;
    rules::kept(by("a hold is kept under another id in one step")).await;
    rules::own_limits(by("limits are those of the scope, or the default ones")).await;
    rules::below_zero(by("usage may be below zero by what is held")).await;
    rules::names(by("names are kept as they are")).await;
    rules::accounts(by("accounts can be read and corrected")).await;
    rules::stampede(by("concurrent requests never pass a limit")).await;
    soft::crossing(by("a charge above a soft limit crosses it once")).await;
    soft::once(by("a crossing is told once, and lasts until it is over")).await;
    soft::grace(by("a soft limit is enforced after its grace")).await;
    soft::no_grace(by("only a charge starts the timer of a soft limit")).await;
    quota::holds(by("a quota over the store holds, charges and releases")).await;
    quota::just_released(by("what was just released is free")).await;
    admin::rules(by("an admin reads and corrects accounts")).await;
    random::steps(by("random steps have the results of the reference store")).await;
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        time::Duration,
    };

    use tokio::task::yield_now;

    use super::{check::LONG, *};
    use crate::{
        amount::Amount,
        quota::{Change, Limits, OverSoftLimit, QuotaError},
        scope::{Scope, Scopes},
        store::{
            Account, Baseline, HoldEntry, HoldId, Reserve, Reserved, Settlement, StoreError,
            StoreFuture,
        },
    };

    #[tokio::test(start_paused = true)]
    async fn the_reference_conforms_to_itself() {
        let reference = Arc::new(ReferenceStore::default());
        run(Arc::clone(&reference), reference).await;
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Defect {
        HasNoBaseline,
        HasNoLimits,
        ChargesFirstScopeOnly,
        HasOneDefault,
        IgnoresExpected,
        ForgetsIds,
        NeverExpires,
        DropsKeep,
        IgnoresOwnLimits,
        ForgetsCrossings,
        CrossesAgain,
        HasNoGrace,
        StopsAtZero,
        RenamesScopes,
        RemovesNothing,
        RefusesRenewal,
        ChecksThenTakes,
    }

    /// The reference with a defect.
    struct Broken(ReferenceStore, Defect);

    impl Store for Broken {
        fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
            let mut asked = asked.clone();
            match self.1 {
                Defect::HasNoLimits => asked.defaults.clear(),
                Defect::HasOneDefault => asked.defaults.truncate(1),
                Defect::ChargesFirstScopeOnly => {
                    asked.scopes = asked.scopes.iter().take(1).cloned().collect();
                }
                Defect::IgnoresExpected => asked.expected = Amount::ZERO,
                Defect::NeverExpires => asked.time_to_live = LONG,
                _ => {}
            }
            Box::pin(async move {
                if self.1 == Defect::ChecksThenTakes {
                    let mut check = asked.clone();
                    check.id = HoldId::unique();
                    self.0.reserve(&check).await?;
                    let release = Settlement::new(check.id, check.scopes, Change::ZERO);
                    self.0.settle(&[release]).await?;
                    yield_now().await;
                    for default in &mut asked.defaults {
                        *default = Limits::UNLIMITED;
                    }
                }
                let reserved = self.0.reserve(&asked).await?;
                let baseline = match self.1 {
                    Defect::HasNoBaseline => None,
                    _ => reserved.baseline,
                };
                Ok(Reserved::new(reserved.over, baseline))
            })
        }

        fn settle<'a>(
            &'a self,
            settlements: &'a [Settlement],
        ) -> StoreFuture<'a, Vec<OverSoftLimit>> {
            let mut settlements = settlements.to_vec();
            for settlement in &mut settlements {
                match self.1 {
                    Defect::DropsKeep => settlement.keep = None,
                    Defect::StopsAtZero => {
                        settlement.change.bytes = settlement.change.bytes.max(0);
                    }
                    _ => {}
                }
            }
            if self.1 == Defect::ForgetsIds {
                let releases = settlements
                    .iter()
                    .map(|one| Settlement::new(one.id, one.scopes.clone(), Change::ZERO));
                let mut all: Vec<_> = releases.collect();
                for settlement in settlements {
                    all.push(Settlement {
                        id: HoldId::unique(),
                        ..settlement
                    });
                }
                settlements = all;
            }
            Box::pin(async move {
                let mut over = self.0.settle(&settlements).await?;
                match self.1 {
                    Defect::ForgetsCrossings => over.clear(),
                    Defect::CrossesAgain => {
                        over.iter_mut()
                            .for_each(|over| over.has_just_crossed = true);
                    }
                    _ => {}
                }
                Ok(over)
            })
        }

        fn renew<'a>(
            &'a self,
            holds: &'a [(HoldId, Scopes)],
            time_to_live: Duration,
        ) -> StoreFuture<'a, ()> {
            match self.1 {
                Defect::RefusesRenewal => {
                    let source = StoreError::timed_out("the engine is slow");
                    let error = StoreError::unavailable("the engine failed").with_source(source);
                    Box::pin(async { Err(error) })
                }
                _ => self.0.renew(holds, time_to_live),
            }
        }

        fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
            self.0.account(scope)
        }

        fn set_limits<'a>(
            &'a self,
            scope: &'a Scope,
            limits: Option<Limits>,
        ) -> StoreFuture<'a, ()> {
            let ignored = self.1 == Defect::IgnoresOwnLimits;
            let grace = |limits: Limits| match self.1 {
                Defect::HasNoGrace => Limits {
                    grace: None,
                    ..limits
                },
                _ => limits,
            };
            self.0
                .set_limits(scope, limits.map(grace).filter(|_| !ignored))
        }

        fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
            self.0.set_used(scope, used)
        }

        fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
            self.0.largest(count)
        }

        fn holds<'a>(
            &'a self,
            scope: Option<&'a Scope>,
            count: usize,
        ) -> StoreFuture<'a, Vec<HoldEntry>> {
            Box::pin(async move {
                let mut holds = self.0.holds(scope, count).await?;
                if self.1 == Defect::RenamesScopes {
                    for hold in &mut holds {
                        hold.scope = hold.scope.as_str().replace('"', "").into();
                    }
                }
                Ok(holds)
            })
        }

        fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
            match self.1 {
                Defect::RemovesNothing => Box::pin(async { Ok(()) }),
                _ => self.0.remove(scope),
            }
        }

        fn baseline(&self) -> StoreFuture<'_, Option<Baseline>> {
            self.0.baseline()
        }

        fn set_baseline(&self, baseline: Baseline) -> StoreFuture<'_, Baseline> {
            self.0.set_baseline(baseline)
        }
    }

    /// The message for a store with this defect.
    fn message(defect: Defect) -> String {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            let store = Arc::new(Broken(ReferenceStore::default(), defect));
            runtime.block_on(run(Arc::clone(&store), store));
        }));
        let panicked = panicked.expect_err(&format!("{defect:?} is not found"));
        *panicked.downcast::<String>().unwrap()
    }

    #[test]
    fn each_defect_is_found_by_its_rule() {
        for (defect, rule) in [
            (
                Defect::HasNoLimits,
                "an exact fit is admitted, and one byte more is not",
            ),
            (
                Defect::HasNoBaseline,
                "a store has the baseline that was set first",
            ),
            (
                Defect::HasOneDefault,
                "a reservation holds in all of its scopes, or in none",
            ),
            (
                Defect::ChargesFirstScopeOnly,
                "a reservation holds in all of its scopes, or in none",
            ),
            (
                Defect::IgnoresExpected,
                "what is expected must fit, and is not held",
            ),
            (Defect::ForgetsIds, "a settlement is idempotent"),
            (Defect::NeverExpires, "a hold expires unless it is renewed"),
            (
                Defect::RefusesRenewal,
                "a hold expires unless it is renewed",
            ),
            (
                Defect::DropsKeep,
                "a hold is kept under another id in one step",
            ),
            (
                Defect::IgnoresOwnLimits,
                "limits are those of the scope, or the default ones",
            ),
            (
                Defect::ForgetsCrossings,
                "a charge above a soft limit crosses it once",
            ),
            (
                Defect::CrossesAgain,
                "a charge above a soft limit crosses it once",
            ),
            (
                Defect::HasNoGrace,
                "a soft limit is enforced after its grace",
            ),
            (
                Defect::StopsAtZero,
                "usage may be below zero by what is held",
            ),
            (Defect::RenamesScopes, "names are kept as they are"),
            (Defect::RemovesNothing, "accounts can be read and corrected"),
            (
                Defect::ChecksThenTakes,
                "concurrent requests never pass a limit",
            ),
        ] {
            let message = message(defect);
            let expected = format!("the store breaks the rule \"{rule}\": ");
            assert!(message.starts_with(&expected), "{defect:?}: {message}");
        }
    }

    #[test]
    fn a_message_has_the_figures_and_the_causes() {
        let message = self::message(Defect::StopsAtZero);
        assert!(
            message.contains("expected (-30, 30), found (0, 30)"),
            "{message}"
        );
        let message = self::message(Defect::RefusesRenewal);
        let causes = "`renew` fails: the engine failed: the engine is slow";
        assert!(message.contains(causes), "{message}");
    }
}
