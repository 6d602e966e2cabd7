//! The places of a reservation in the queues for growth.

use super::context::Rules;
use crate::{volume::Volume, wait_queue::Ticket};

/// The reservation's places in the queues for growth.
#[derive(Debug)]
pub(super) struct Tickets {
    pub(super) volume: Option<Ticket>,
    pub(super) quota: Ticket,
}

impl Tickets {
    /// Makes places for a reservation with a claim on this volume.
    pub(super) fn new(volume: Option<&Volume>, rules: &Rules) -> Self {
        Self {
            volume: volume.map(|volume| volume.filesystem().queue.ticket()),
            quota: rules.quota_queue.ticket(),
        }
    }

    pub(super) fn reinstate(&self) {
        self.quota.reinstate();
        self.volume.iter().for_each(Ticket::reinstate);
    }
}
