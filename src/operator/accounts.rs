//! Which scopes are busiest, asked of a quota source.

use std::{pin::Pin, sync::Arc};

use tokio::task::yield_now;
use tower::BoxError;

use crate::{
    quota::{MemoryQuota, Usage},
    scope::Scope,
};

/// The future of [`Accounts::busiest`].
pub type AccountsFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<(Scope, Usage)>, BoxError>> + Send + 'a>>;

/// A quota source that can list its scopes, for an [`OperatorView`](super::OperatorView).
///
/// [`MemoryQuota`], `CollectionQuota`, `StoredQuota` and `LeasedQuota` implement it. Implement it for a source of your
/// own, with the query that finds the scopes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot list its scopes",
    label = "not `Accounts`",
    note = "give the `MemoryQuota`, `CollectionQuota`, `StoredQuota` or `LeasedQuota` itself, or implement `Accounts`"
)]
pub trait Accounts: Send + Sync + 'static {
    /// Resolves to the scopes with most bytes, used and held, the largest first: up to `count`.
    fn busiest(&self, count: usize) -> AccountsFuture<'_>;

    /// Returns the backlog of the store that keeps the accounts, without asking the store. None if this process keeps
    /// them.
    fn backlog(&self) -> Option<Backlog> {
        None
    }
}

/// The settlements that a store has not taken yet, and the state of the store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Backlog {
    /// The number of settlements that the store has not taken.
    pub unsettled: usize,
    /// Whether all charges among them are in a journal, so that a kill would lose none.
    pub is_journaled: bool,
    /// Whether requests are refused because the store was emptied, until it is declared counted.
    pub is_emptied: bool,
    /// The number of scopes that have a lease. None without leases.
    pub leases: Option<usize>,
}

impl<A: Accounts + ?Sized> Accounts for Arc<A> {
    fn busiest(&self, count: usize) -> AccountsFuture<'_> {
        A::busiest(self, count)
    }

    fn backlog(&self) -> Option<Backlog> {
        A::backlog(self)
    }
}

/// Looks at each account, under one of 128 locks at a time, and lets other tasks run in between. By bytes used and held, and
/// no scope that has none.
impl Accounts for MemoryQuota {
    fn busiest(&self, count: usize) -> AccountsFuture<'_> {
        Box::pin(async move {
            let mut busiest = Vec::new();
            for shard in 0..Self::SHARDS {
                self.visit_shard(shard, |scope, usage| {
                    enter(&mut busiest, count, scope, usage)
                });
                yield_now().await;
            }
            Ok(busiest)
        })
    }
}

/// Enters a scope into a list of the `count` busiest.
fn enter(busiest: &mut Vec<(Scope, Usage)>, count: usize, scope: &Scope, usage: Usage) {
    let bytes = |usage: &Usage| (usage.used + usage.held).bytes;
    if bytes(&usage) == 0 {
        return;
    }
    let place = busiest.partition_point(|(_, other)| bytes(other) >= bytes(&usage));
    if place < count {
        busiest.truncate(count - 1);
        busiest.insert(place, (scope.clone(), usage));
    }
}

#[cfg(feature = "webdav")]
impl Accounts for crate::collection::CollectionQuota {
    /// Of all its scopes, and without the collections that have not been scanned yet.
    fn busiest(&self, count: usize) -> AccountsFuture<'_> {
        self.quota().busiest(count)
    }
}

#[cfg(feature = "store")]
mod stored {
    use super::{Accounts, AccountsFuture, Backlog};
    use crate::store::{LeasedQuota, Store, StoredQuota};

    /// By what is used alone, as the [store](Store::largest) lists them.
    impl<S: Store> Accounts for StoredQuota<S> {
        fn busiest(&self, count: usize) -> AccountsFuture<'_> {
            Box::pin(async move { Ok(self.largest(count).await?) })
        }

        fn backlog(&self) -> Option<Backlog> {
            Some(Backlog {
                unsettled: self.unsettled(),
                is_journaled: self.is_journaled(),
                is_emptied: self.is_emptied(),
                leases: None,
            })
        }
    }

    /// As of the [quota that it leases from](LeasedQuota::stored).
    impl<S: Store> Accounts for LeasedQuota<S> {
        fn busiest(&self, count: usize) -> AccountsFuture<'_> {
            self.stored().busiest(count)
        }

        fn backlog(&self) -> Option<Backlog> {
            let backlog = self.stored().backlog()?;
            Some(Backlog {
                leases: Some(self.leases()),
                ..backlog
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        amount::Amount,
        quota::{Limits, QuotaSource},
        scope::Scopes,
    };

    fn busiest(quota: &MemoryQuota, count: usize) -> Vec<(String, u64)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let busiest = runtime.unwrap().block_on(quota.busiest(count)).unwrap();
        let shown = busiest.into_iter().map(|(scope, usage)| {
            let bytes = (usage.used + usage.held).bytes;
            (scope.as_str().to_owned(), bytes)
        });
        shown.collect()
    }

    #[test]
    fn what_is_held_counts_as_what_is_used() {
        let quota = MemoryQuota::new(Limits::bytes(100));
        quota.set_used("a", Amount::bytes(10));
        quota.set_used("b", Amount::bytes(20));
        quota.set_limits("c", Limits::bytes(7));
        let hold = quota.reserve(&Scopes::from("a"), Amount::bytes(11), Amount::ZERO);
        let hold = hold.now().ok().unwrap().unwrap();
        assert_eq!(busiest(&quota, 9), [("a".into(), 21), ("b".into(), 20)]);
        drop(hold);
        assert_eq!(busiest(&quota, 9), [("b".into(), 20), ("a".into(), 10)]);
        assert_eq!(busiest(&quota, 0), []);
    }

    proptest! {
        #[test]
        fn they_are_the_largest(used in prop::collection::vec(0..1_000_u64, 0..300), count in 0..40_usize) {
            let quota = MemoryQuota::new(Limits::UNLIMITED);
            for (user, used) in used.iter().enumerate() {
                quota.set_used(format!("user:{user}"), Amount::bytes(*used));
            }
            let mut expected: Vec<_> = used.into_iter().filter(|used| *used != 0).collect();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            expected.truncate(count);
            let found: Vec<_> = busiest(&quota, count).into_iter().map(|(_, bytes)| bytes).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
