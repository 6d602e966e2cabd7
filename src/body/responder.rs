//! How refusals are answered: in the client's protocol, and so that they arrive.

use std::time::Duration;

use super::{Unread, drain::drain};
use crate::refusal::Answers;

/// The settings of refusals.
#[derive(Clone, Debug)]
pub(crate) struct Responder {
    pub(crate) answers: Answers,
    /// The maximum number of bytes that are read of a refused body.
    pub(crate) drain_bytes: u64,
    /// The maximum time for which it is read.
    pub(crate) drain_time: Duration,
}

impl Default for Responder {
    fn default() -> Self {
        Self {
            answers: Answers::default(),
            drain_bytes: 1 << 30,
            drain_time: Duration::from_secs(30),
        }
    }
}

impl Responder {
    /// Drains the unread rest concurrently with the answer.
    pub(crate) fn drain(&self, unread: Option<Unread>) {
        if let Some(unread) = unread {
            drain(unread, self.drain_bytes, self.drain_time);
        }
    }
}
