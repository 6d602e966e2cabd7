//! The thread that scans collections.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    thread,
    time::Instant,
};

use super::{
    Shared,
    state::{State, Thread},
};
use crate::tree::{Depth, Walk};

impl Shared {
    /// Starts the thread unless it is already running.
    pub(super) fn start(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if state.thread == Thread::NotStarted {
            let shared = Arc::clone(self);
            thread::Builder::new()
                .name("storage-guard-scan".into())
                .spawn(move || shared.scan_until_stopped())?;
            state.thread = Thread::Runs;
        }
        Ok(())
    }

    /// Holds no lock during a scan, however long it takes.
    fn scan_until_stopped(&self) {
        let mut state = self.lock();
        while state.thread != Thread::Stops {
            let now = Instant::now();
            let at = match state.next() {
                Some((at, due)) if due <= now => at,
                Some((_, due)) => {
                    let waited = self.changed.wait_timeout(state, due - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                None => {
                    let waited = self.changed.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            let held = self.quota.usage(state.scope(at)).held;
            let scan = state.begin(at, held);
            drop(state);
            // A user's tree may panic. That is a failed scan, and the thread goes on.
            let measure = || {
                self.tree
                    .measure(&scan.path, Depth::Infinity, &Walk::whole())
            };
            let found = catch_unwind(AssertUnwindSafe(measure))
                .unwrap_or_else(|_| Err(io::Error::other("the tree panicked")));
            state = self.lock();
            let used = self.quota.usage(state.scope(at)).used;
            if let Some((scope, used)) = state.end(&scan, found, used) {
                self.quota.set_used(scope, used);
            }
            drop(state);
            self.scanned.notify_waiters();
            state = self.lock();
        }
    }
}
