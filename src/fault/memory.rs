//! What an engine last failed for.
//!
//! Some engines stop at a failure, and answer every later write that one has failed before, whatever it was. So it
//! has to be kept.

use std::{
    error::Error,
    sync::{Mutex, PoisonError},
};

use super::Fault;

/// What one error of an engine says about its state. None when the error is not that engine's, or says nothing
/// about it.
pub(super) type Sticky = fn(&(dyn Error + 'static)) -> Option<Said>;

/// What an engine says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(
    not(any(test, feature = "fjall", feature = "redb")),
    expect(dead_code, reason = "no engine here says anything")
)]
pub(super) enum Said {
    /// It fails now. The verdict on this error, or on one inside of it, says for what.
    Fails,
    /// It has failed before. For what, only the error at that time said.
    FailedBefore,
}

/// What engines last failed for, as far as one classifier has seen it.
pub(super) struct Memory(Vec<Engine>);

/// One of them.
pub(super) struct Engine {
    says: Sticky,
    fault: Mutex<Option<Fault>>,
}

impl Memory {
    /// Has seen nothing yet.
    pub(super) fn of(engines: &[Sticky]) -> Self {
        let engine = |&says| Engine {
            says,
            fault: Mutex::default(),
        };
        Self(engines.iter().map(engine).collect())
    }

    /// What an error says, and which engine says it.
    pub(super) fn said(&self, error: &(dyn Error + 'static)) -> Option<(&Engine, Said)> {
        self.0
            .iter()
            .find_map(|engine| Some((engine, (engine.says)(error)?)))
    }
}

impl Engine {
    pub(super) fn recall(&self) -> Option<Fault> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None is what it fails for when that is not storage.
    pub(super) fn remember(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}
