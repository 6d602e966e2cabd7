//! Quotas that outlive the process: a [`StoredQuota`] over a [`Store`].

mod keeper;
mod source;
mod store;

pub use self::{
    keeper::Settled,
    source::{StoredHold, StoredQuota},
    store::{
        Account, Ceilings, HoldEntry, HoldId, Reserve, Reserved, Settlement, Store, StoreFuture,
    },
};
