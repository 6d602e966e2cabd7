//! The uploads that are open, by their keys.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use super::{
    Step,
    open::{Draw, Upload},
};
use crate::time::Sleep;

/// The uploads that are open, by their keys.
pub(crate) struct Registry {
    open: Mutex<HashMap<Box<str>, Open>>,
    itself: Weak<Registry>,
}

struct Open {
    upload: Arc<Upload>,
    /// Until it expires. None while a part is in flight.
    sleep: Option<Sleep>,
    idle: Duration,
}

/// Looks after one upload when its time has come.
struct Alarm {
    registry: Weak<Registry>,
    key: Box<str>,
}

impl Registry {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            open: Mutex::default(),
            itself: itself.clone(),
        })
    }

    pub(super) fn weak(&self) -> Weak<Self> {
        self.itself.clone()
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Upload>> {
        let open = self.open();
        Some(Arc::clone(&open.get(key)?.upload))
    }

    /// A request with a part of an upload comes in. None where that is not known.
    pub(super) fn draw(&self, step: &Step, wanted: Option<u64>) -> Option<Arc<Draw>> {
        // Under the lock, so that the upload cannot expire in between.
        let open = self.open();
        let upload = Arc::clone(&open.get(&step.key)?.upload);
        Some(upload.enter(step, wanted))
    }

    pub(super) fn len(&self) -> usize {
        self.open().len()
    }

    /// Enters an upload with its first part, unless it is there already: then that gets the part.
    pub(super) fn begin(
        &self,
        step: &Step,
        wanted: Option<u64>,
        upload: &Arc<Upload>,
        idle: Duration,
    ) -> Arc<Draw> {
        let mut open = self.open();
        let known = open.entry(step.key.clone()).or_insert_with(|| {
            upload.set_key(&step.key);
            Open::new(upload, idle)
        });
        Arc::clone(&known.upload).enter(step, wanted)
    }

    /// Enters an upload that has got this key just now. Another of this key cannot be there any more.
    pub(super) fn park(&self, key: &str, upload: &Arc<Upload>, idle: Duration) {
        upload.set_key(key);
        let gone = self.open().insert(key.into(), Open::new(upload, idle));
        drop(gone);
        self.rest(upload);
    }

    /// Ends an upload. What is left of its reservation is released with the last that holds it.
    pub(super) fn remove(&self, key: &str) -> Option<Arc<Upload>> {
        let gone = self.open().remove(key);
        gone.map(|gone| gone.upload)
    }

    /// Ends this upload, if it is the one of its key.
    pub(super) fn forget(&self, upload: &Arc<Upload>) {
        let Some(key) = upload.key() else { return };
        let mut open = self.open();
        let is_it = open
            .get(key)
            .is_some_and(|open| Arc::ptr_eq(&open.upload, upload));
        let gone = is_it.then(|| open.remove(key));
        drop(open);
        // Releasing is others' code: not under the lock.
        drop(gone);
    }

    /// Begins to count its time, if no part is in flight.
    pub(super) fn rest(&self, upload: &Arc<Upload>) {
        let Some(key) = upload.key() else { return };
        let mut open = self.open();
        let Some(known) = open.get_mut(key) else {
            return;
        };
        if Arc::ptr_eq(&known.upload, upload) && upload.is_idle() {
            known.sleep = Some(Sleep::on_thread(known.idle));
            let is_over = self.look(key, known);
            let gone = is_over.then(|| open.remove(key));
            drop(open);
            drop(gone);
        }
    }

    /// Whether its time is over. If not, the alarm is set.
    fn look(&self, key: &str, open: &mut Open) -> bool {
        let alarm = Waker::from(Arc::new(Alarm {
            registry: self.weak(),
            key: key.into(),
        }));
        if !open.upload.is_idle() {
            open.sleep = None;
        }
        let sleep = open.sleep.as_mut();
        sleep.is_some_and(|sleep| sleep.poll(&mut Context::from_waker(&alarm)) == Poll::Ready(()))
    }

    fn expire(&self, key: &str) {
        let mut open = self.open();
        let is_over = open.get_mut(key).is_some_and(|known| self.look(key, known));
        let gone = is_over.then(|| open.remove(key));
        drop(open);
        drop(gone);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Box<str>, Open>> {
        // A map of plain entries, whole between any two statements.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn new(upload: &Arc<Upload>, idle: Duration) -> Self {
        Self {
            upload: Arc::clone(upload),
            sleep: None,
            idle,
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        if let Some(registry) = self.registry.upgrade() {
            registry.expire(&self.key);
        }
    }
}
