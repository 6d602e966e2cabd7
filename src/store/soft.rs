//! What this process knows of soft limits, from the answers of the store.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    quota::{Limits, OverSoftLimit, SoftLimitHooks},
    scope::{Scope, Scopes},
};

/// The limits of a scope that has none of its own.
pub(super) type LimitsBy = dyn Fn(&Scope) -> Limits + Send + Sync;

/// How long an answer is remembered where there are many.
const REMEMBERED: Duration = Duration::from_secs(2 * 60);

/// The soft limits that scopes are above by the last answer about each, the default limits, and what is told of crossings.
pub(super) struct SoftLimits {
    /// The limits of each scope that has none of its own.
    pub(super) limits: Box<LimitsBy>,
    pub(super) hooks: SoftLimitHooks,
    known: Mutex<HashMap<Scope, Known>>,
}

/// An answer of the store about one scope.
struct Known {
    /// When it was asked for.
    asked: Instant,
    over: Vec<OverSoftLimit>,
}

impl SoftLimits {
    pub(super) fn new(limits: Box<LimitsBy>) -> Arc<Self> {
        Arc::new(Self {
            limits,
            hooks: SoftLimitHooks::default(),
            known: Mutex::default(),
        })
    }

    /// Notes what the store has answered to a call that was begun at this time, about these scopes, and tells of crossings.
    pub(super) fn learn<'a>(
        &self,
        scopes: impl IntoIterator<Item = &'a Scope>,
        over: Vec<OverSoftLimit>,
        asked: Instant,
    ) {
        let mut known = self.known();
        if over.is_empty() && known.is_empty() {
            return;
        }
        for scope in scopes {
            known.remove(scope);
        }
        if known.len() == known.capacity() {
            known.retain(|_, known| known.asked.elapsed() < REMEMBERED);
            // So this is not done again for as many.
            let count = known.len() + over.len();
            known.reserve(count);
        }
        for one in &over {
            let over = Vec::new();
            let known = known.entry(one.scope.clone());
            let known = known.or_insert_with(|| Known { asked, over });
            known.over.push(OverSoftLimit {
                has_just_crossed: false,
                ..one.clone()
            });
        }
        drop(known);
        // Foreign code: the task that settles goes on for all others.
        let _ = catch_unwind(AssertUnwindSafe(|| self.hooks.tell(&over)));
    }

    /// The soft limits that these scopes are above.
    pub(super) fn over(&self, scopes: &Scopes) -> Vec<OverSoftLimit> {
        let all = self.known();
        let mut found = Vec::new();
        for scope in scopes {
            let Some(Known { asked, over }) = all.get(scope) else {
                continue;
            };
            let elapsed = asked.elapsed();
            found.extend(over.iter().map(|over| OverSoftLimit {
                // With the discretion of the request.
                scope: scope.clone(),
                grace: over.grace.map(|grace| grace.saturating_sub(elapsed)),
                ..over.clone()
            }));
        }
        found
    }

    /// When the first soft limit of a scope will be enforced, at the earliest, by the clock of this process.
    pub(super) fn in_force_from(&self, scope: &Scope) -> Option<Instant> {
        let all = self.known();
        let Known { asked, over } = all.get(scope)?;
        let graces = over.iter().filter_map(|over| over.grace);
        asked.checked_add(graces.min()?)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Scope, Known>> {
        // Consistent between any two statements.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
