//! The state that all reservations of a guard share.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    cause::Resource,
    observer::{Event, Observed},
    outage::Outage,
    quota::{Exceeded, QuotaError},
    refused::Refused,
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

impl<Q> Context<Q> {
    /// The name of the volume.
    pub(crate) fn volume_name(&self) -> Option<&str> {
        self.volume.as_ref().map(Volume::name)
    }

    /// Whether the reading of the volume is too old, so that demands for room are refused.
    pub(crate) fn refuses_unseen(&self) -> bool {
        self.volume.as_ref().is_some_and(Volume::refuses_unseen)
    }

    /// Whether the volume's probe has been hanging or failing for longer than a demand waits. What looks at the filesystem, and
    /// is not ready by then, hangs with it.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let volume = self.volume.as_ref();
        volume.is_some_and(|volume| volume.is_in_doubt_for(self.rules.patience))
    }

    /// Tells the observer of a demand that was refused.
    #[cold]
    pub(crate) fn tell_refused(&self, refused: &Refused) {
        if let Some(observer) = &self.rules.observer {
            observer.observe(&Event::Refused {
                volume: self.volume_name(),
                reason: refused.reason(),
                internal: refused.internal(),
            });
        }
    }
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
    pub(crate) observer: Option<Observed>,
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
            observer: None,
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
        let asked = self.began();
        let answer = within(self.quota_timeout, answer).await;
        let answer = answer.unwrap_or_else(|| Err(too_late()));
        self.tell_of_wait(asked);
        self.tell_of_quota(answer.as_ref().err());
        answer
    }

    /// When something begins, if that is observed.
    pub(crate) fn began(&self) -> Option<Instant> {
        self.observer.as_ref().map(|_| Instant::now())
    }

    /// Tells the observer if the quota source, which was asked then, has answered late.
    pub(crate) fn tell_of_wait(&self, asked: Option<Instant>) {
        if let (Some(observer), Some(asked)) = (&self.observer, asked) {
            observer.quota_took(asked.elapsed(), self.quota_timeout);
        }
    }

    /// Tells the observer what the quota source has answered, if that is news.
    pub(crate) fn tell_of_quota(&self, error: Option<&QuotaError>) {
        let Some(observer) = &self.observer else {
            return;
        };
        match error {
            Some(QuotaError::Unavailable(error)) => observer.quota_fails(&**error),
            None | Some(QuotaError::Exceeded(_)) => observer.quota_answers(),
        }
    }
}

/// The quota source has timed out.
pub(crate) fn too_late() -> QuotaError {
    QuotaError::Unavailable("the quota source did not answer in time".into())
}
