//! Engines in this process.

use std::{
    error::Error,
    future::{Ready, ready},
    sync::{Arc, Mutex},
};

use test_support::mounts::run;

/// An engine that handlers hold, and that can still be closed.
pub(crate) struct Engine<D>(Arc<Inner<D>>);

struct Inner<D> {
    open: Mutex<Option<D>>,
    errors: Mutex<Vec<String>>,
}

impl<D: Send + 'static> Engine<D> {
    pub(crate) fn new(engine: D) -> Self {
        Self(Arc::new(Inner {
            open: Mutex::new(Some(engine)),
            errors: Mutex::default(),
        }))
    }

    /// For `assert_refused` and `assert_not_refused`: runs `work` repeatedly.
    pub(crate) fn each_time<T: Send, E: Error + Send>(
        &self,
        work: impl Fn(&mut D) -> Result<T, E> + Clone + Send + Sync + 'static,
    ) -> impl Fn() -> Ready<Result<T, E>> + Clone + Send + Sync + 'static {
        let inner = self.0.clone();
        move || {
            let mut open = inner.open.lock().unwrap();
            let done = work(open.as_mut().expect("still open"));
            if let Err(error) = &done {
                inner.errors.lock().unwrap().push(format!("{error:?}"));
            }
            ready(done)
        }
    }

    /// The errors so far.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.0.errors.lock().unwrap().clone()
    }

    pub(crate) fn close(self) {
        drop(self.0.open.lock().unwrap().take());
    }
}

/// The maximum size of a file of this process from now on. For tests in `with_small_files`.
pub(crate) fn limit_files(bytes: &str) {
    let limit = format!("--fsize={bytes}:");
    run(
        "prlimit",
        ["--pid", &std::process::id().to_string(), &limit],
    );
}

/// Numbers that no engine can compress.
pub(crate) fn noise() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(0x9E37_79B9_7F4A_7C15), |number: &u64| {
        let number = number ^ (number << 13);
        let number = number ^ (number >> 7);
        Some(number ^ (number << 17))
    })
}

/// This many bytes of it.
pub(crate) fn noise_of(bytes: usize) -> Vec<u8> {
    noise().flat_map(u64::to_le_bytes).take(bytes).collect()
}
