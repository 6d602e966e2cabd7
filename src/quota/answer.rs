//! The answer of a source, now or later.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

/// The answer of a quota source: ready at once, or a future.
///
/// A source that decides in memory answers at once, so that the request is not suspended. Both kinds can be awaited.
pub enum Answer<F: Future> {
    /// The answer is ready.
    Now(F::Output),
    /// The answer is a future.
    Later(F),
}

impl<F: Future> Answer<F> {
    /// Returns the answer if it is ready.
    ///
    /// # Errors
    ///
    /// The future, if the answer is not ready.
    pub fn now(self) -> Result<F::Output, F> {
        match self {
            Self::Now(output) => Ok(output),
            Self::Later(future) => Err(future),
        }
    }
}

impl<F: Future> IntoFuture for Answer<F> {
    type IntoFuture = Answering<F>;
    type Output = F::Output;

    fn into_future(self) -> Answering<F> {
        let state = match self {
            Self::Now(output) => State::Now {
                output: Some(output),
            },
            Self::Later(future) => State::Later { future },
        };
        Answering { state }
    }
}

impl<F: Future> fmt::Debug for Answer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

pin_project! {
    /// The future of an [`Answer`].
    pub struct Answering<F: Future> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F: Future> {
        Now { output: Option<F::Output> },
        Later { #[pin] future: F },
    }
}

impl<F: Future> Future for Answering<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().state.project() {
            StateProj::Now { output } => {
                Poll::Ready(output.take().expect("not polled after it was ready"))
            }
            StateProj::Later { future } => future.poll(cx),
        }
    }
}

impl<F: Future> fmt::Debug for Answering<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}
