//! The observer of a guard, with what it was told of the quota source.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Event, Observer};

/// The observer of a guard. Clones are one.
#[derive(Clone)]
pub(crate) struct Observed(Arc<Inner<dyn Observer>>);

struct Inner<O: ?Sized> {
    quota: Absence,
    observer: O,
}

/// Whether something that is asked is away, and since when.
#[derive(Debug, Default)]
pub(crate) struct Absence {
    /// Whether it is, so that answers need no lock.
    is_away: AtomicBool,
    since: Mutex<Option<Instant>>,
}

impl Absence {
    /// It has answered. Returns how long it was away, if it was.
    pub(crate) fn ends(&self) -> Option<Duration> {
        if !self.is_away.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.set(None)?.elapsed())
    }

    /// It has not answered. Returns whether it had before.
    pub(crate) fn begins(&self) -> bool {
        !self.is_away.load(Ordering::Relaxed) && self.set(Some(Instant::now())).is_none()
    }

    /// Sets since when it is away, unless that is known. Returns what was known.
    fn set(&self, since: Option<Instant>) -> Option<Instant> {
        let mut known = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *known;
        *known = since.and(before.or(since));
        self.is_away.store(known.is_some(), Ordering::Relaxed);
        before
    }
}

impl Observed {
    pub(crate) fn new(observer: impl Observer) -> Self {
        Self(Arc::new(Inner {
            quota: Absence::default(),
            observer,
        }))
    }

    pub(crate) fn observe(&self, event: &Event<'_>) {
        self.0.observer.observe(event);
    }

    pub(crate) fn downgrade(&self) -> WeakObserved {
        WeakObserved(Arc::downgrade(&self.0))
    }

    /// The quota source has decided.
    pub(crate) fn quota_answers(&self) {
        if let Some(after) = self.0.quota.ends() {
            self.observe(&Event::QuotaBack { after });
        }
    }

    /// The quota source could not decide.
    pub(crate) fn quota_fails(&self, error: &(dyn Error + 'static)) {
        if self.0.quota.begins() {
            self.observe(&Event::QuotaAway { error });
        }
    }

    /// The quota source took so long to answer.
    pub(crate) fn quota_took(&self, took: Duration, timeout: Duration) {
        if took > timeout / 2 {
            self.observe(&Event::QuotaSlow { took });
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

/// The observer of a guard that may be gone.
pub(crate) struct WeakObserved(Weak<Inner<dyn Observer>>);

impl WeakObserved {
    pub(crate) fn upgrade(&self) -> Option<Observed> {
        self.0.upgrade().map(Observed)
    }
}

impl fmt::Debug for WeakObserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakObserved").finish_non_exhaustive()
    }
}
