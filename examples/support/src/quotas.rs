//! The quotas of a server: in memory, or in a store that outlives the process and may be shared.

use std::{collections::HashMap, future::pending, io, path::PathBuf, sync::Arc, time::Duration};

use tower_storage_guard::{
    BoxError, Reservation, Scope, Scopes,
    observer::Observer,
    quota::{AnyQuota, Change, Limits, MemoryQuota, Usage},
};

use crate::place::Place;
#[cfg(feature = "stored")]
use crate::stored::Stored;

/// The quotas, wherever they are kept. Cheap to clone.
///
/// A service that uses only one kind of store does not need this type.
#[derive(Clone)]
pub struct Quotas {
    /// For the guard.
    pub source: AnyQuota,
    kept: Kept,
}

#[derive(Clone)]
enum Kept {
    Memory(MemoryQuota),
    #[cfg(feature = "stored")]
    Stored(Stored),
}

impl Quotas {
    /// With the limits of scopes that have none of their own. Charges that have not reached the store yet are in the directory
    /// `journal`, and what was intended there is resolved by `made`.
    pub async fn open(
        place: &Place,
        journal: PathBuf,
        time_to_live: Duration,
        has_leases: bool,
        limits: HashMap<Scope, Limits>,
        made: impl Fn(&[u8]) -> io::Result<Change> + Send + 'static,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self, BoxError> {
        #[cfg(feature = "stored")]
        if let Some(store) = place.open().await.map_err(|error| place.error(&*error))? {
            let opening = Stored::open(
                store,
                journal,
                time_to_live,
                has_leases,
                limits,
                made,
                observer,
            );
            let stored = opening.await?;
            return Ok(Self {
                source: stored.source(),
                kept: Kept::Stored(stored),
            });
        }
        let _ = (place, journal, time_to_live, has_leases, made, observer);
        let quota = MemoryQuota::new(Limits::UNLIMITED);
        for (scope, limits) in limits {
            quota.set_limits(scope, limits);
        }
        Ok(Self {
            source: AnyQuota::new(quota.clone()),
            kept: Kept::Memory(quota),
        })
    }

    /// Whether the files were counted when this was opened.
    pub fn is_counted(&self) -> bool {
        match &self.kept {
            Kept::Memory(_) => false,
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.is_counted(),
        }
    }

    /// Declares that the files are counted.
    pub async fn declare_counted(&self) -> Result<(), BoxError> {
        match &self.kept {
            Kept::Memory(_) => Ok(()),
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.declare_counted().await,
        }
    }

    /// Waits until the store was emptied. Uploads are refused then, until the files are declared counted.
    pub async fn emptied(&self) {
        match &self.kept {
            Kept::Memory(_) => pending().await,
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.emptied().await,
        }
    }

    /// Whether a scope has neither charges nor limits.
    pub async fn is_new(&self, scope: &Scope) -> Result<bool, BoxError> {
        match &self.kept {
            Kept::Memory(quota) => Ok(quota.usage(scope).used.is_zero()),
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.is_new(scope).await,
        }
    }

    pub async fn set_limits(&self, scope: &Scope, limits: Limits) -> Result<(), BoxError> {
        match &self.kept {
            Kept::Memory(quota) => {
                quota.set_limits(scope, limits);
                Ok(())
            }
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.set_limits(scope, limits).await,
        }
    }

    pub async fn usage(&self, scope: &Scope) -> Result<Usage, BoxError> {
        match &self.kept {
            Kept::Memory(quota) => Ok(quota.usage(scope)),
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.usage(scope).await,
        }
    }

    /// Notes that what `scopes` store is about to change. A process that is killed before the change is settled finds the
    /// note at its next start.
    pub async fn intend(&self, scopes: &Scopes, note: &str) -> Intent {
        match &self.kept {
            Kept::Memory(quota) => {
                let _ = note;
                Intent::Memory(quota.clone(), scopes.clone())
            }
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => Intent::Stored(quota.intend(scopes, note).await),
        }
    }

    /// Charges a change that had no reservation.
    pub async fn charge(&self, scopes: &Scopes, change: Change) {
        match &self.kept {
            Kept::Memory(quota) => scopes.iter().for_each(|scope| quota.adjust(scope, change)),
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.charge(scopes, change).await,
        }
    }

    /// Waits until every charge is in the store.
    pub async fn are_settled(&self) {
        match &self.kept {
            Kept::Memory(_) => {}
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.are_settled().await,
        }
    }

    /// The number of charges and releases that are not in the store yet.
    pub fn unsettled(&self) -> usize {
        match &self.kept {
            Kept::Memory(_) => 0,
            #[cfg(feature = "stored")]
            Kept::Stored(quota) => quota.unsettled(),
        }
    }
}

/// A change that is about to be made.
pub enum Intent {
    /// Not noted.
    Memory(MemoryQuota, Scopes),
    #[cfg(feature = "stored")]
    Stored(crate::stored::Intent),
}

impl Intent {
    /// Commits a reservation, whose change was made. Returns the intent if the reservation has ended before.
    pub async fn commit(self, reservation: &Reservation) -> Option<Self> {
        match self {
            Self::Memory(..) => (!reservation.commit().await).then_some(self),
            #[cfg(feature = "stored")]
            Self::Stored(intent) => intent.commit(reservation).await.err().map(Self::Stored),
        }
    }

    /// Charges the change that was made: zero if none was. It is charged even if the future is dropped.
    pub async fn settle(self, change: Change) {
        match self {
            Self::Memory(quota, scopes) => {
                scopes.iter().for_each(|scope| quota.adjust(scope, change));
            }
            #[cfg(feature = "stored")]
            Self::Stored(intent) => crate::stored::charged(intent.settle(change)).await,
        }
    }
}
