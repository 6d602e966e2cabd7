//! The open uploads, by key.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    Step,
    draw::Draw,
    open::{Expiry, Keeper, Upload},
};
use crate::reservation::{BoxFuture, ReservationOps};

/// The open uploads, by key.
///
/// One task expires them. It is started by the first request of an upload, and ends with the registry.
pub(crate) struct Registry {
    state: Mutex<State>,
    /// The number of uploads, with those that are not entered yet, and of their parts.
    remembered: Arc<AtomicUsize>,
    /// Wakes the task.
    next_due_changed: Arc<Notify>,
    itself: Weak<Registry>,
}

#[derive(Default)]
struct State {
    open: HashMap<Arc<str>, Open>,
    /// When uploads expire, and their keys.
    due: BTreeSet<(Instant, Arc<str>)>,
    task: Option<JoinHandle<()>>,
}

struct Open {
    upload: Arc<Upload>,
    /// When it expires, as in [`State::due`]. None before the end of its first part.
    due: Option<Instant>,
    expiry: Expiry,
}

/// An upload to which no further request belongs. When dropped, what was received is charged, unless it is removed.
struct Ended {
    upload: Arc<Upload>,
    is_removed: bool,
}

impl Ended {
    fn new(upload: Arc<Upload>) -> Self {
        Self {
            upload,
            is_removed: false,
        }
    }

    /// Asks the service whether it has removed what was received.
    async fn ask(mut self, hook: impl FnOnce() -> BoxFuture<bool>) {
        self.is_removed = hook().await;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // A hold that panics ends only its own upload, not the task or the request that has come upon it.
        let _ = catch_unwind(AssertUnwindSafe(|| match self.is_removed {
            true => self.upload.remove(),
            false => self.upload.close(),
        }));
    }
}

impl Registry {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            state: Mutex::default(),
            remembered: Arc::default(),
            next_due_changed: Arc::default(),
            itself: itself.clone(),
        })
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Upload>> {
        let state = self.state();
        Some(Arc::clone(&state.open.get(key)?.upload))
    }

    /// A request of an upload arrives. None if the upload is unknown.
    pub(super) fn draw(&self, step: &Step, body: Option<u64>) -> Option<Arc<Draw>> {
        // Under the lock, so that the upload cannot expire meanwhile.
        Draw::enter(&self.state().open.get(&*step.key)?.upload, step, body)
    }

    pub(super) fn remembered(&self) -> usize {
        self.remembered.load(Ordering::Relaxed)
    }

    pub(super) fn len(&self) -> usize {
        self.state().open.len()
    }

    pub(super) fn all(&self) -> Vec<Arc<Upload>> {
        let state = self.state();
        let open = state.open.values();
        open.map(|open| Arc::clone(&open.upload)).collect()
    }

    /// A new upload with its reservation for the whole. It is entered later.
    pub(super) fn upload(
        &self,
        whole: Arc<dyn ReservationOps>,
        step: &Step,
        expiry: &Expiry,
    ) -> Arc<Upload> {
        // Spawn now, because a request arrives on a runtime. It may end on a thread without one.
        self.keep_time(&mut self.state());
        Upload::new(
            whole,
            step,
            self.itself.clone(),
            expiry.grace,
            &self.remembered,
        )
    }

    /// Enters an upload with its first part. If it has an entry already, that entry gets the part.
    pub(super) fn begin(
        &self,
        step: &Step,
        body: Option<u64>,
        upload: &Arc<Upload>,
        expiry: &Expiry,
    ) -> Option<Arc<Draw>> {
        let mut state = self.state();
        let known = state.open.get(&*step.key);
        if let Some(draw) = known.and_then(|known| Draw::enter(&known.upload, step, body)) {
            return Some(draw);
        }
        let key = Arc::from(&*step.key);
        let ended = state.remove(&key);
        let open = Open::new(&key, upload, expiry);
        state.open.insert(key, open);
        let draw = Draw::enter(upload, step, body);
        drop(state);
        drop(ended);
        draw
    }

    /// Ends an upload. The rest of its reservation is released when the last reference is dropped.
    pub(super) fn remove(&self, key: &str) -> Option<Arc<Upload>> {
        self.state().remove(key)
    }

    /// Starts the task that expires uploads, unless it is running. It may have ended with the runtime of an earlier
    /// request.
    fn keep_time(&self, state: &mut State) {
        if state.task.as_ref().is_none_or(JoinHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
        {
            let changed = Arc::clone(&self.next_due_changed);
            state.task = Some(runtime.spawn(keep_time(self.itself.clone(), changed)));
        }
    }

    /// Ends the uploads that are due, and returns when the next is. Called on a runtime.
    fn expire(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut gone = Vec::new();
        let mut state = self.state();
        let State { open, due, .. } = &mut *state;
        while due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, key)) = due.pop_first()
        {
            if let Entry::Occupied(mut known) = open.entry(key) {
                known.get_mut().due = None;
                // An upload with a request in flight is due again after that.
                if known.get().upload.is_idle() {
                    gone.push(known.remove_entry());
                }
            }
        }
        let next = due.first().map(|(due, _)| *due);
        drop(state);
        for (key, Open { upload, expiry, .. }) in gone {
            let ended = Ended::new(upload);
            if let Some(hook) = expiry.hook {
                tokio::spawn(ended.ask(move || hook(key.to_string())));
            }
        }
        next
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain entries, consistent between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for Registry {
    fn park(&self, key: &str, upload: &Arc<Upload>, expiry: &Expiry) {
        let key = Arc::from(key);
        let open = Open::new(&key, upload, expiry);
        let mut state = self.state();
        let older = state.remove(&key);
        state.open.insert(key, open);
        drop(state);
        if let Some(older) = older {
            // Its content may still be there.
            drop(Ended::new(older));
        }
        self.rest(upload, true);
    }

    fn forget(&self, upload: &Arc<Upload>) {
        let mut state = self.state();
        let key = state.find(upload).and(upload.key());
        let gone = key.and_then(|key| state.remove(key));
        drop(state);
        // Releasing calls foreign code, so not under the lock.
        drop(gone);
    }

    fn rest(&self, upload: &Arc<Upload>, came: bool) {
        let mut state = self.state();
        if state.set_due(upload, came) {
            self.next_due_changed.notify_one();
        }
        self.keep_time(&mut state);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The task finds no registry any more.
        self.next_due_changed.notify_one();
    }
}

/// Expires uploads until the registry is gone.
async fn keep_time(registry: Weak<Registry>, changed: Arc<Notify>) {
    while let Some(next) = registry.upgrade().map(|registry| registry.expire()) {
        match next {
            Some(due) => drop(timeout_at(due, changed.notified()).await),
            None => changed.notified().await,
        }
    }
}

impl State {
    /// The entry of this upload, if it is still the one with its key.
    fn find(&mut self, upload: &Arc<Upload>) -> Option<&mut Open> {
        let open = self.open.get_mut(upload.key()?)?;
        Arc::ptr_eq(&open.upload, upload).then_some(open)
    }

    fn remove(&mut self, key: &str) -> Option<Arc<Upload>> {
        let (key, open) = self.open.remove_entry(key)?;
        if let Some(due) = open.due {
            self.due.remove(&(due, key));
        }
        Some(open.upload)
    }

    /// Sets when this upload expires: at once if it is overdue, and counted from now if something `came`. Returns
    /// true if it is the first to expire.
    fn set_due(&mut self, upload: &Arc<Upload>, came: bool) -> bool {
        let first = self.due.first().map(|(due, _)| *due);
        let Some((key, open)) = upload.key().zip(self.find(upload)) else {
            return false;
        };
        // Never expires if the clock cannot represent the time.
        let due = match open.due {
            Some(due) if !came => Some(due),
            None if !came => Some(Instant::now()),
            _ => Instant::now().checked_add(open.expiry.idle),
        };
        if let Some(before) = std::mem::replace(&mut open.due, due) {
            self.due.remove(&(before, Arc::clone(key)));
        }
        let Some(due) = due else { return false };
        self.due.insert((due, Arc::clone(key)));
        first.is_none_or(|first| due < first)
    }
}

impl Open {
    fn new(key: &Arc<str>, upload: &Arc<Upload>, expiry: &Expiry) -> Self {
        upload.set_key(key);
        Self {
            upload: Arc::clone(upload),
            due: None,
            expiry: expiry.clone(),
        }
    }
}
