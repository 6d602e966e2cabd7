//! How refusals are answered: in the client's protocol, and so that they arrive.

use super::{Unread, drain::Drains};
use crate::refusal::Answers;

/// The settings of refusals.
#[derive(Clone, Debug, Default)]
pub(crate) struct Responder {
    pub(crate) answers: Answers,
    pub(crate) drains: Drains,
}

impl Responder {
    /// Drains the unread rest concurrently with the answer.
    pub(crate) fn drain(&self, unread: Option<Unread>) {
        if let Some(unread) = unread {
            self.drains.start(unread);
        }
    }
}
