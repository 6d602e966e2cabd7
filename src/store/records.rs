//! What passes between a quota and its store.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    num::ParseIntError,
    str::FromStr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    amount::Amount,
    quota::{Change, Limits, OverFor, OverSoftLimit, Usage},
    scope::{Scope, Scopes},
};

/// How long a hold lives by default, unless it is renewed.
pub(super) const TIME_TO_LIVE: Duration = Duration::from_secs(30);

/// Identifies a hold, or a change without one. Unique among all processes and over time: it is random.
///
/// Its text is a hexadecimal number, which [`FromStr`] reads.
///
/// # Errors
///
/// Text that is no hexadecimal number of up to 128 bits is not read.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HoldId(u128);

impl HoldId {
    /// Returns a new id.
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

/// A random number. `RandomState` takes its keys from the operating system.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Writes 32 hexadecimal digits.
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
    type Err = ParseIntError;

    fn from_str(digits: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(digits, 16).map(Self)
    }
}

/// Names the count that the usage in a store is based on.
///
/// A store keeps it with the usage, so that both go together: a store that was deleted, flushed, or restarted without its
/// data has none. Usage begins at zero there, whatever is on the disk.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Baseline(u64);

impl Baseline {
    /// Creates a baseline that differs from all others.
    pub fn unique() -> Self {
        Self(random())
    }

    /// Returns the number that a store keeps.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// From the number that a store has kept.
impl From<u64> for Baseline {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// A request to reserve something.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reserve {
    /// The hold that is made, or added to.
    pub id: HoldId,
    /// The scopes to charge: all of them, or none. Each is in here once.
    pub scopes: Scopes,
    /// How much to reserve in each scope.
    pub amount: Amount,
    /// How much must fit in each scope without being reserved. Less than `amount` says nothing.
    pub expected: Amount,
    /// The limits of each scope that has none of its own, in the order of the scopes. A scope without an element here is
    /// unlimited.
    pub defaults: Vec<Limits>,
    /// How long the hold lives from now on, unless it is renewed.
    pub time_to_live: Duration,
}

impl Reserve {
    /// Creates a request for an amount in scopes that are unlimited by default, for 30 seconds.
    pub fn new(id: HoldId, scopes: impl Into<Scopes>, amount: Amount) -> Self {
        Self {
            id,
            scopes: scopes.into(),
            amount,
            expected: Amount::ZERO,
            defaults: Vec::new(),
            time_to_live: TIME_TO_LIVE,
        }
    }

    /// Sets [`expected`](Self::expected).
    #[must_use]
    pub fn with_expected(mut self, expected: Amount) -> Self {
        self.expected = expected;
        self
    }

    /// Sets the same [default limits](Self::defaults) for all scopes.
    #[must_use]
    pub fn with_default(self, default: Limits) -> Self {
        self.with_defaults(|_| default)
    }

    /// Sets the [default limits](Self::defaults) of each scope.
    #[must_use]
    pub fn with_defaults(mut self, default: impl Fn(&Scope) -> Limits) -> Self {
        self.defaults = self.scopes.iter().map(default).collect();
        self
    }

    /// Returns the default limits of the scope at an index.
    pub fn default_at(&self, index: usize) -> Limits {
        self.defaults.get(index).copied().unwrap_or_default()
    }

    /// Sets [`time_to_live`](Self::time_to_live).
    #[must_use]
    pub fn with_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = time_to_live;
        self
    }
}

/// The answer to a [`Reserve`] that was admitted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Reserved {
    /// The soft limits that the scopes are above. A reservation crosses none: a charge does.
    pub over: Vec<OverSoftLimit>,
    /// The baseline of the store, read in the same step as the usage or after it.
    pub baseline: Option<Baseline>,
}

impl Reserved {
    /// Creates an answer with these soft limits, in a store with this baseline.
    pub fn new(over: Vec<OverSoftLimit>, baseline: Option<Baseline>) -> Self {
        Self { over, baseline }
    }
}

/// The end of a hold, or a change without one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settlement {
    /// The hold, and the key by which the settlement is idempotent.
    pub id: HoldId,
    /// The scopes to charge.
    pub scopes: Scopes,
    /// By how much the usage of each scope changes.
    pub change: Change,
    /// A hold that takes the place of the ended one.
    pub keep: Option<Keep>,
    /// The limits of each scope that has none of its own, in the order of the scopes: for their soft limits. Of a scope without
    /// an element here they are unknown, and its timers stay as they are unless it has limits of its own.
    pub defaults: Vec<Limits>,
}

impl Settlement {
    /// Creates a settlement that ends a hold and charges a change.
    pub fn new(id: HoldId, scopes: impl Into<Scopes>, change: Change) -> Self {
        Self {
            id,
            scopes: scopes.into(),
            change,
            keep: None,
            defaults: Vec::new(),
        }
    }

    /// Sets the [default limits](Self::defaults) of each scope.
    #[must_use]
    pub fn with_defaults(mut self, default: impl Fn(&Scope) -> Limits) -> Self {
        self.defaults = self.scopes.iter().map(default).collect();
        self
    }

    /// Returns the default limits of the scope at an index, if they are known.
    pub fn default_at(&self, index: usize) -> Option<Limits> {
        self.defaults.get(index).copied()
    }

    /// Sets [`keep`](Self::keep).
    #[must_use]
    pub fn with_keep(mut self, keep: Keep) -> Self {
        self.keep = Some(keep);
        self
    }

    /// A settlement that does nothing. It comes through the queue behind all earlier ones.
    pub(super) fn nothing() -> Self {
        Self::new(HoldId::unique(), Scopes::NONE, Change::ZERO)
    }

    /// Returns whether a store must keep a tombstone of the id, so that the settlement is idempotent.
    ///
    /// A plain release needs no tombstone, because a second release finds no hold.
    pub fn is_remembered(&self) -> bool {
        self.change != Change::ZERO || self.keep.is_some()
    }
}

/// A hold that goes on under another id, in the same step that ends the first one.
///
/// It is set whatever the limits say, and also where the first hold has expired: its owner has given the amount to
/// requests already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Keep {
    /// The new hold. If it exists already, the amount is added to it.
    pub id: HoldId,
    /// How much it holds in each scope.
    pub amount: Amount,
    /// How long it lives from now on, unless it is renewed.
    pub time_to_live: Duration,
}

impl Keep {
    /// Creates a hold of an amount, for a time.
    pub fn new(id: HoldId, amount: Amount, time_to_live: Duration) -> Self {
        Self {
            id,
            amount,
            time_to_live,
        }
    }
}

/// The limits and figures of a scope in a store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Account {
    /// The limits of its own.
    pub own: Option<Limits>,
    /// How much is stored. Below zero while a removal is counted before the charge of what it removes, by what is
    /// reserved at most.
    pub used: Change,
    /// How much is reserved.
    pub held: Amount,
    /// How much was given back beyond that, since the account was made: it had not been charged, and is no credit. If it
    /// grows, the scope needs a recount.
    pub unmatched: Amount,
    /// For how long usage has been above the soft limits, as of the last charge.
    pub over: OverFor,
}

impl Account {
    /// Creates an account without limits of its own.
    pub fn new(used: Change, held: Amount) -> Self {
        Self {
            own: None,
            used,
            held,
            unmatched: Amount::ZERO,
            over: OverFor::default(),
        }
    }

    /// Sets [`own`](Self::own).
    #[must_use]
    pub fn with_own(mut self, own: Option<Limits>) -> Self {
        self.own = own;
        self
    }

    /// Sets [`over`](Self::over).
    #[must_use]
    pub fn with_over(mut self, over: OverFor) -> Self {
        self.over = over;
        self
    }

    /// Stops usage where it is as far below zero as is held. Returns whether that changes anything.
    #[cfg(any(
        test,
        feature = "conformance",
        feature = "store-postgres",
        feature = "store-sqlite"
    ))]
    pub(super) fn stop_below_zero(&mut self) -> bool {
        let beyond = self.used.stop_below(self.held);
        self.unmatched = self.unmatched + beyond;
        !beyond.is_zero()
    }

    /// Returns the limits and figures that are enforced where these are the default limits.
    pub fn usage(&self, default: Limits) -> Usage {
        Usage {
            limits: self.own.unwrap_or(default),
            used: self.used.gain(),
            held: self.held,
            over: self.over,
        }
    }
}

/// One hold, in one of its scopes.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct HoldEntry {
    /// The hold.
    pub id: HoldId,
    /// One of its scopes.
    pub scope: Scope,
    /// How much it holds there.
    pub amount: Amount,
    /// How long it lives from now on, unless it is renewed.
    pub expires_in: Duration,
}

impl HoldEntry {
    /// Creates an entry for a hold of an amount in a scope, and how long it lives.
    pub fn new(id: HoldId, scope: Scope, amount: Amount, expires_in: Duration) -> Self {
        Self {
            id,
            scope,
            amount,
            expires_in,
        }
    }
}
