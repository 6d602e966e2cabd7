//! What an engine does for quotas that outlive the process.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    str::FromStr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tower::BoxError;

use crate::{
    amount::Amount,
    quota::{Change, Limits, QuotaError, Usage},
    scope::{Scope, Scopes},
};

/// What a [`Store`] answers, in a while.
pub type StoreFuture<'a, T, E = BoxError> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// An engine that keeps limits, usage and holds for a [`StoredQuota`](super::StoredQuota).
///
/// What an implementation promises:
///
/// 1. Each call is one atomic step. No other process sees half of it, and after a crash it has happened or has not.
/// 2. A hold counts until it is settled, or until its time to live has passed by the *engine's* clock. Nobody asks the
///    clocks of the processes, which may disagree.
/// 3. What is settled is settled once, however often it is asked for: by its id.
/// 4. It fails in bounded time when the engine is away, or its caller may drop the future. Nothing is decided then, or
///    all of it: the caller cannot know, and settles what it has asked for.
pub trait Store: Send + Sync + 'static {
    /// Sets an amount aside in every scope, or in none. Where the hold is there already, that much more.
    ///
    /// # Errors
    ///
    /// [`QuotaError::Exceeded`] when a limit would be passed, and [`QuotaError::Unavailable`] when nobody can tell.
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError>;

    /// Ends holds: charges, and releases what they held. All that is asked for, or nothing.
    ///
    /// What has no hold any more is charged all the same. It is on the disk. No call ends what it keeps itself.
    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, ()>;

    /// Lets holds live so long from now on. Those that are gone stay gone.
    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()>;

    /// Where a scope stands. Its limits are those of its own; none where it has none.
    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account>;

    /// Gives a scope limits of its own, or takes them away.
    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Ceilings>) -> StoreFuture<'a, ()>;

    /// Says how much a scope has stored, whatever was counted so far.
    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()>;

    /// The scopes that use most bytes, the largest first.
    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>>;

    /// What is held in a scope, or anywhere: up to so many, in no order.
    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>>;

    /// Forgets a scope's usage and its own limits. What is held stays held.
    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()>;
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn reserve<'a>(&'a self, asked: &'a Reserve) -> StoreFuture<'a, Reserved, QuotaError> {
        S::reserve(self, asked)
    }

    fn settle<'a>(&'a self, settlements: &'a [Settlement]) -> StoreFuture<'a, ()> {
        S::settle(self, settlements)
    }

    fn renew<'a>(
        &'a self,
        holds: &'a [(HoldId, Scopes)],
        time_to_live: Duration,
    ) -> StoreFuture<'a, ()> {
        S::renew(self, holds, time_to_live)
    }

    fn account<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, Account> {
        S::account(self, scope)
    }

    fn set_limits<'a>(&'a self, scope: &'a Scope, limits: Option<Ceilings>) -> StoreFuture<'a, ()> {
        S::set_limits(self, scope, limits)
    }

    fn set_used<'a>(&'a self, scope: &'a Scope, used: Amount) -> StoreFuture<'a, ()> {
        S::set_used(self, scope, used)
    }

    fn largest(&self, count: usize) -> StoreFuture<'_, Vec<(Scope, Account)>> {
        S::largest(self, count)
    }

    fn holds<'a>(
        &'a self,
        scope: Option<&'a Scope>,
        count: usize,
    ) -> StoreFuture<'a, Vec<HoldEntry>> {
        S::holds(self, scope, count)
    }

    fn remove<'a>(&'a self, scope: &'a Scope) -> StoreFuture<'a, ()> {
        S::remove(self, scope)
    }
}

/// Names a hold, or a change without one. No two are the same, in no process and at no time.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HoldId(u128);

impl HoldId {
    /// A new one.
    pub fn unique() -> Self {
        static PROCESS: LazyLock<u64> = LazyLock::new(random);
        static NUMBER: LazyLock<AtomicU64> = LazyLock::new(|| random().into());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(u128::from(*PROCESS) << 64 | u128::from(number))
    }

    pub(super) fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

/// From the system's randomness, which keys every map of the standard library.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// 32 hexadecimal digits.
impl fmt::Display for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HoldId {
    type Err = std::num::ParseIntError;

    fn from_str(digits: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(digits, 16).map(Self)
    }
}

/// What is to be set aside.
#[derive(Clone, Debug)]
pub struct Reserve {
    /// The hold.
    pub id: HoldId,
    /// In all of these, or in none. None is twice in here.
    pub scopes: Scopes,
    /// How much.
    pub amount: Amount,
    /// What must fit too, and is not set aside. It says nothing where it is less than the amount.
    pub expected: Amount,
    /// The limits of scopes that have none of their own.
    pub default: Ceilings,
    /// How long the hold lives unless it is renewed.
    pub time_to_live: Duration,
}

/// What has been set aside.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reserved {
    /// The scopes that have passed their soft limit with this, and where they stand.
    pub warnings: Vec<(Scope, Account)>,
}

/// How much a scope may use, and from where on somebody should know.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Ceilings {
    /// No more than this.
    pub hard: Limits,
    /// Passing this is told, and nothing else.
    pub soft: Limits,
}

impl From<Limits> for Ceilings {
    fn from(hard: Limits) -> Self {
        Self {
            hard,
            soft: Limits::UNLIMITED,
        }
    }
}

/// The end of a hold, or a change without one.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Where this was settled before, nothing happens.
    pub id: HoldId,
    /// Whom it concerns.
    pub scopes: Scopes,
    /// By how much the usage of each changes.
    pub change: Change,
    /// What is held from now on in place of the hold.
    pub keep: Option<Keep>,
}

/// A hold that goes on under another name, in the step that ends the first one.
///
/// It is set whatever the limits say, and also where the first one had expired: its owner has given it to others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Keep {
    /// The new hold. Where it is there already, it is that much more.
    pub id: HoldId,
    /// How much it holds, in each scope.
    pub amount: Amount,
    /// How long it lives unless it is renewed.
    pub time_to_live: Duration,
}

impl Settlement {
    /// Of nothing at all.
    pub(super) fn nothing() -> Self {
        Self {
            id: HoldId::unique(),
            scopes: Scopes::NONE,
            change: Change::ZERO,
            keep: None,
        }
    }

    /// Whether a store must remember it, as it may be asked for again.
    pub fn is_remembered(&self) -> bool {
        self.change != Change::ZERO || self.keep.is_some()
    }
}

/// Where a scope stands in a store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Account {
    /// Its own limits.
    pub own: Option<Ceilings>,
    /// How much is stored. Below zero while a removal is counted, and what it removes is not yet.
    pub used: Change,
    /// How much is set aside.
    pub held: Amount,
}

impl Account {
    /// As it is enforced, where these are the default limits.
    pub fn usage(&self, default: Ceilings) -> Usage {
        Usage {
            limits: self.own.unwrap_or(default).hard,
            used: self.used.gain(),
            held: self.held,
        }
    }
}

/// One hold, in one scope.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HoldEntry {
    /// The hold.
    pub id: HoldId,
    /// One of its scopes.
    pub scope: Scope,
    /// How much it holds there.
    pub amount: Amount,
    /// How long it lives on unless it is renewed.
    pub expires_in: Duration,
}
