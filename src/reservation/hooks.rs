//! Hooks for the life of a reservation.

use std::{fmt, sync::Arc};

use super::ops::Report;

/// Runs right before the inner service is called. The hook that it returns runs after settlement.
#[derive(Clone)]
pub(crate) struct StartHook(Arc<dyn Fn() -> EndHook + Send + Sync>);

/// Runs once, after a reservation has ended and everything that it gives back has been given back.
pub(crate) type EndHook = Box<dyn FnOnce(Outcome) + Send>;

/// How a reservation has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) success: bool,
    /// Bytes of the body that were read.
    pub(crate) received: u64,
    /// What the handler has reported.
    pub(crate) report: Report,
}

impl StartHook {
    pub(crate) fn new(start: impl Fn() -> EndHook + Send + Sync + 'static) -> Self {
        Self(Arc::new(start))
    }

    pub(super) fn start(&self) -> EndHook {
        (self.0)()
    }
}

impl fmt::Debug for StartHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartHook").finish_non_exhaustive()
    }
}
