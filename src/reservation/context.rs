//! The state that all reservations of a guard share.

use std::{sync::Arc, time::Duration};

use crate::{
    cause::Resource,
    outage::Outage,
    quota::{Exceeded, QuotaError},
    time::within,
    volume::Volume,
    wait_queue::WaitQueue,
};

/// What a guard reserves from, and by which rules.
#[derive(Clone)]
pub(crate) struct Context<Q> {
    pub(crate) quota: Q,
    pub(crate) volume: Option<Volume>,
    pub(crate) rules: Rules,
}

/// The settings of a guard.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// How long a demand may wait for room.
    pub(crate) patience: Duration,
    /// The timeout for each answer of the quota source.
    pub(crate) quota_timeout: Duration,
    pub(crate) quota_outage: Outage,
    /// The queue of reservations that are short of quota.
    pub(crate) quota_queue: Arc<WaitQueue>,
    pub(crate) grants: Grants,
    /// The maximum that is reserved for a size hint, in bytes.
    pub(crate) hint_cap: u64,
}

/// The grants of a demand of unknown length, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grants {
    pub(crate) first: u64,
    pub(crate) most: u64,
}

impl Grants {
    /// A quarter more each time, so that the unused part of the grants stays small relative to the used one.
    pub(crate) fn next(self, reserved: u64) -> u64 {
        (reserved / 4).clamp(self.first, self.most)
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            patience: Duration::from_millis(500),
            quota_timeout: Duration::from_secs(2),
            quota_outage: Outage::Refuse,
            quota_queue: Arc::default(),
            grants: Grants {
                first: 64 << 10,
                most: 16 << 20,
            },
            hint_cap: 1 << 30,
        }
    }
}

impl Rules {
    /// Takes back what silent clients do not use of a scope, if that makes room. True if it is worth to ask again.
    pub(crate) fn takes_back(&self, exceeded: &Exceeded) -> bool {
        let left = exceeded.limit.saturating_sub(exceeded.used);
        let missing = exceeded.required.saturating_sub(left);
        exceeded.resource == Resource::Bytes
            && exceeded.required <= exceeded.limit
            && missing > 0
            && self
                .quota_queue
                .offers
                .take_back(&Some(exceeded.scope.clone()), missing)
    }

    /// The quota source's answer, unless it times out.
    pub(crate) async fn bounded<T>(
        &self,
        answer: impl Future<Output = Result<T, QuotaError>>,
    ) -> Result<T, QuotaError> {
        within(self.quota_timeout, answer)
            .await
            .unwrap_or_else(|| Err(too_late()))
    }
}

/// The quota source has timed out.
pub(crate) fn too_late() -> QuotaError {
    QuotaError::Unavailable("the quota source did not answer in time".into())
}
