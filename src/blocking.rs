//! Work that blocks, off the thread of a request.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

/// Runs `work` where it may block: on tokio's threads for that, or on one of its own.
///
/// # Errors
///
/// When it panics, or no thread can be started.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        return runtime.spawn_blocking(work).await?;
    }
    on_a_thread(work).await
}

/// What a thread leaves, and who waits for it.
struct Slot<T> {
    result: Option<io::Result<T>>,
    waker: Option<Waker>,
}

type Shared<T> = Arc<Mutex<Slot<T>>>;

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let slot: Shared<T> = Arc::new(Mutex::new(Slot {
        result: None,
        waker: None,
    }));
    let done = Done(Arc::clone(&slot));
    std::thread::Builder::new()
        .name("storage-guard-tree".into())
        .spawn(move || {
            let result = work();
            lock(&done.0).result = Some(result);
        })?;
    poll_fn(move |cx| {
        let mut slot = lock(&slot);
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

/// Wakes whoever waits, whether the work has ended or panicked.
struct Done<T>(Shared<T>);

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        let mut slot = lock(&self.0);
        slot.result
            .get_or_insert_with(|| Err(io::Error::other("the work panicked")));
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn lock<T>(slot: &Mutex<Slot<T>>) -> MutexGuard<'_, Slot<T>> {
    // Two plain values, each valid at all times.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::mpsc, task::Context};

    use super::*;

    /// Wakes a channel, so that a lost wake shows.
    struct Bell(mpsc::Sender<()>);

    impl std::task::Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.send(()).unwrap();
        }
    }

    /// There is no runtime here.
    fn wait<T>(future: impl Future<Output = T>) -> T {
        let (rings, rung) = mpsc::channel();
        let waker = Waker::from(Arc::new(Bell(rings)));
        let (mut future, mut cx) = (pin!(future), Context::from_waker(&waker));
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
            rung.recv_timeout(std::time::Duration::from_secs(10))
                .expect("it is woken");
        }
    }

    #[test]
    fn without_a_runtime_it_runs_on_a_thread() {
        let here = std::thread::current().id();
        let (go, gone) = mpsc::channel();
        let work = run(move || {
            gone.recv().unwrap();
            Ok(std::thread::current().id())
        });
        go.send(()).unwrap();
        assert_ne!(wait(work).unwrap(), here);
    }

    #[test]
    fn what_fails_or_panics_is_an_error() {
        let failed = wait(run(|| Err::<(), _>(io::ErrorKind::NotFound.into())));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::NotFound);
        let panicked = wait(run(|| -> io::Result<()> {
            panic!("a tree of the user's own")
        }));
        assert!(panicked.is_err());
    }
}
