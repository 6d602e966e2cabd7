//! How refusals are answered: in the client's words, and so that they arrive.

use std::time::Duration;

use http::Response;

use super::{Drain, ResponseBody, Unread};
use crate::refusal::{Answers, Asked, Refusal};

/// The settings of refusals.
#[derive(Clone, Debug)]
pub(crate) struct Responder {
    pub(crate) answers: Answers,
    /// The most that is read of a refused body, in bytes.
    pub(crate) drain_bytes: u64,
    /// For how long it is read at the most.
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
    /// The response to a request that is refused. What is left unread of its body is drained.
    pub(crate) fn refuse<R>(
        &self,
        refusal: Refusal,
        asked: &Asked,
        unread: Option<Unread>,
    ) -> Response<ResponseBody<R>> {
        let drain = self.drain(unread);
        self.answers
            .answer(refusal, asked)
            .map(|content| ResponseBody::refusal(content, drain))
    }

    /// Drains what is left unread. Returned where that has to hold the answer's end back.
    pub(super) fn drain(&self, unread: Option<Unread>) -> Option<Drain> {
        unread
            .and_then(|body| Drain::new(body, self.drain_bytes, self.drain_time))
            .and_then(Drain::start)
    }
}
