//! Remembers the last failure of an engine.
//!
//! Some engines stop after a failure, and answer every later write that an earlier one has failed, without the
//! reason. So the reason has to be remembered.

use std::{
    error::Error,
    sync::{Mutex, PoisonError},
};

use super::Fault;

/// Reads an engine's state from one of its errors. None when the error is another engine's, or does not report a
/// state.
pub(super) type Sticky = fn(&(dyn Error + 'static)) -> Option<Said>;

/// The state that an engine reports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(
    not(any(
        test,
        feature = "fjall2",
        feature = "fjall3",
        feature = "redb2",
        feature = "redb3",
        feature = "redb4"
    )),
    expect(dead_code, reason = "no engine here says anything")
)]
pub(super) enum Said {
    /// It fails now. The verdict on this error, or on one inside it, is the reason.
    Fails,
    /// It has failed before. Only the error at that time had the reason.
    FailedBefore,
}

/// The last failures of engines, as far as one classifier has seen them.
pub(super) struct Memory(Vec<Engine>);

/// One engine's entry.
pub(super) struct Engine {
    says: Sticky,
    fault: Mutex<Option<Fault>>,
}

impl Memory {
    /// An empty memory.
    pub(super) fn of(engines: &[Sticky]) -> Self {
        let engine = |&says| Engine {
            says,
            fault: Mutex::default(),
        };
        Self(engines.iter().map(engine).collect())
    }

    /// The state that an error reports, and the engine that reports it.
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

    /// None if the failure is not a storage failure.
    pub(super) fn remember(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}
