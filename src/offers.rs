//! What reservations can give back whose clients send nothing.
//!
//! A client that is silent keeps its reservation as long as no other request needs the room. So its reservation is
//! offered here, and a request that would be refused takes back what it lacks: from those that have been silent for the
//! longest time first, and only if all of it comes together.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

use crate::scope::Scope;

/// A resource that may be short: the volume, or a scope's quota.
pub(crate) type Shortage = Option<Scope>;

/// A reservation whose client is silent.
pub(crate) trait Silent: Send + Sync {
    /// Gives back what the client has not delivered. False if it has gone on meanwhile.
    fn take_back(&self) -> bool;
}

/// The offers of one volume, or of the scopes of one guard.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    /// The number of resources with offers, so that no lock is needed where there are none.
    count: AtomicUsize,
    numbers: AtomicU64,
    offered: Mutex<HashMap<Shortage, BTreeMap<Place, Offered>>>,
}

/// The time from which on it is offered, and the number of the offer.
type Place = (Instant, u64);

struct Offered {
    bytes: u64,
    by: Weak<dyn Silent>,
}

impl Offers {
    /// Offers `bytes` of a resource, from a time on.
    pub(crate) fn add(
        self: &Arc<Self>,
        of: Shortage,
        from: Instant,
        bytes: u64,
        by: Weak<dyn Silent>,
    ) -> Offer {
        let at = (from, self.numbers.fetch_add(1, Ordering::Relaxed));
        let mut offered = self.offered();
        let offer = Offered { bytes, by };
        offered.entry(of.clone()).or_default().insert(at, offer);
        self.count.store(offered.len(), Ordering::SeqCst);
        drop(offered);
        Offer {
            offers: Arc::clone(self),
            of,
            at,
        }
    }

    /// Takes back `missing` bytes of a resource, or nothing if less is offered. True if anything came back.
    pub(crate) fn take_back(&self, of: &Shortage, missing: u64) -> bool {
        // There is nearly never one.
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let silent = self.longest_silent(of, missing);
        // Not under the lock: it releases claims, and calls quota sources.
        let taken = silent.iter().filter_map(Weak::upgrade);
        taken.filter(|silent| silent.take_back()).count() > 0
    }

    /// Removes the oldest offers that come to `missing` bytes together.
    fn longest_silent(&self, of: &Shortage, missing: u64) -> Vec<Weak<dyn Silent>> {
        let mut offered = self.offered();
        let Some(offers) = offered.get_mut(of) else {
            return Vec::new();
        };
        let (mut bytes, mut places) = (0u64, Vec::new());
        for (at, offer) in offers.range(..=(Instant::now(), u64::MAX)) {
            if bytes >= missing {
                break;
            }
            bytes = bytes.saturating_add(offer.bytes);
            places.push(*at);
        }
        if bytes < missing {
            return Vec::new();
        }
        let silent = places.iter().filter_map(|at| offers.remove(at));
        silent.map(|offer| offer.by).collect()
    }

    fn offered(&self) -> MutexGuard<'_, HashMap<Shortage, BTreeMap<Place, Offered>>> {
        // Plain entries, consistent between any two statements.
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}

/// An offer. Withdrawn on drop.
#[derive(Debug)]
pub(crate) struct Offer {
    offers: Arc<Offers>,
    of: Shortage,
    at: Place,
}

impl Drop for Offer {
    fn drop(&mut self) {
        let mut offered = self.offers.offered();
        if let Some(offers) = offered.get_mut(&self.of) {
            offers.remove(&self.at);
            if offers.is_empty() {
                offered.remove(&self.of);
            }
        }
        self.offers.count.store(offered.len(), Ordering::SeqCst);
    }
}
