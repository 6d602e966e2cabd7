//! The settings of a request's exchange: how refusals are answered, so that they arrive, and how long clients are awaited.

use std::sync::Arc;

use super::{Silence, drain::Drains, unread::Unread};
use crate::{protocol::Protocol, refusal::Answers};

/// The settings of a request's exchange.
#[derive(Clone, Debug)]
pub(crate) struct Responder {
    pub(crate) answers: Answers,
    pub(crate) drains: Drains,
    silence: Silence,
    /// The same for calls that were named.
    silence_of_calls: Silence,
}

/// How a body is read.
pub(crate) struct BodyRules {
    pub(crate) responder: Arc<Responder>,
    pub(crate) is_named_call: bool,
    /// Set if the protocol defines how requests end, and the error of its bodies.
    pub(crate) protocol: Option<&'static dyn Protocol>,
}

impl Default for Responder {
    fn default() -> Self {
        let silence = Silence::default();
        Self {
            answers: Answers::default(),
            drains: Drains::default(),
            silence,
            // A stream may have nothing to send for long.
            silence_of_calls: Silence {
                timeout: None,
                ..silence
            },
        }
    }
}

impl Responder {
    pub(crate) fn set_silence(&mut self, set: impl Fn(&mut Silence)) {
        set(&mut self.silence);
        set(&mut self.silence_of_calls);
    }

    /// How long the body of a request may be silent, or of a call that was named.
    pub(super) fn silence(&self, is_named_call: bool) -> &Silence {
        match is_named_call {
            true => &self.silence_of_calls,
            false => &self.silence,
        }
    }

    /// Drains the unread rest concurrently with the answer.
    pub(crate) fn drain(&self, unread: Option<Unread>) {
        if let Some(unread) = unread {
            self.drains.start(unread);
        }
    }
}
