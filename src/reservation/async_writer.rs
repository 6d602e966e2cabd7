//! An asynchronous writer that writes on blocking threads, and reports there.

use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSlice, Write},
    iter, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::AsyncWrite,
    task::{JoinHandle, spawn_blocking},
};

use super::{Reservation, writer::flush};

/// The most that one job writes, in bytes. As for `tokio::fs::File`.
const MOST: usize = 2 << 20;

/// An asynchronous writer to a file that reports bytes to its [`Reservation`] as soon as they have reached the volume.
/// It is made by [`Reservation::async_writer`].
///
/// Like `tokio::fs::File`, it takes up to 2 MiB at a time. It writes them on one of tokio's blocking threads while the
/// handler goes on. The thread that has written them reports them, so that nothing is counted twice while the handler
/// waits for the rest of the body.
///
/// A failure is returned by the next call: a write, a flush, a shutdown, or [`into_inner`](Self::into_inner). So end with one of
/// these; otherwise a full disk is not noticed. After a failure, all later calls fail with an error of the same kind.
///
/// Writes are cancel-safe: a write that is dropped while it is pending has written nothing. When the writer is dropped,
/// the bytes that it has taken are written all the same, and the inner writer is dropped after that.
///
/// # Panics
///
/// If it writes outside of a tokio runtime.
pub struct AsyncReportingWriter<W> {
    state: State<W>,
    reservation: Reservation,
}

enum State<W> {
    Idle(Job<W>),
    Busy(JoinHandle<(Job<W>, io::Result<()>)>),
    /// The inner writer is dropped.
    Failed(io::ErrorKind),
}

struct Job<W> {
    inner: W,
    content: Vec<u8>,
}

// The inner writer is never pinned.
impl<W> Unpin for AsyncReportingWriter<W> {}

impl Reservation {
    /// Wraps a blocking writer to the guarded volume, such as a [`std::fs::File`], in an asynchronous one that reports
    /// its bytes as [written](Self::written).
    ///
    /// Do not report the same bytes by [`written`](Self::written) too.
    ///
    /// ```
    /// use std::fs::File;
    /// use tokio::io::AsyncWriteExt;
    /// use tower_storage_guard::{Demand, Guard, Scopes, Volume};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("report");
    /// let guard = Guard::new(Volume::open(std::env::temp_dir())?);
    /// let reservation = guard.reserve(Scopes::NONE, Demand::known(100)).await?;
    /// let mut file = reservation.async_writer(File::create(path)?);
    /// file.write_all(&[7; 100]).await?;
    /// let file = file.into_inner().await?;
    /// assert_eq!(file.metadata()?.len(), 100);
    /// reservation.commit().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn async_writer<W: Write + Send + 'static>(&self, inner: W) -> AsyncReportingWriter<W> {
        AsyncReportingWriter {
            state: State::Idle(Job {
                inner,
                content: Vec::new(),
            }),
            reservation: self.clone(),
        }
    }
}

impl<W: Write + Send + 'static> AsyncReportingWriter<W> {
    /// Waits until everything is written, and returns the inner writer.
    ///
    /// # Errors
    ///
    /// If a write has failed. The inner writer is dropped then.
    pub async fn into_inner(mut self) -> io::Result<W> {
        let job = poll_fn(|cx| self.poll_job(cx)).await?;
        Ok(job.inner)
    }

    /// Waits until nothing is being written. The caller puts the job back, or begins the next.
    fn poll_job(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Job<W>>> {
        let ended = match &mut self.state {
            State::Busy(job) => Some(ready!(Pin::new(job).poll(cx))),
            State::Idle(_) | State::Failed(_) => None,
        };
        let failed = State::Failed(io::ErrorKind::Other);
        let error = match (mem::replace(&mut self.state, failed), ended) {
            (State::Idle(job), _) | (_, Some(Ok((job, Ok(()))))) => return Poll::Ready(Ok(job)),
            (_, Some(Ok((_, Err(error))))) => error,
            // The inner writer has panicked, or the runtime shuts down.
            (_, Some(Err(error))) => error.into(),
            (State::Failed(kind), None) => io::Error::new(kind, "an earlier write has failed"),
            (State::Busy(_), None) => io::ErrorKind::Other.into(),
        };
        self.state = State::Failed(error.kind());
        Poll::Ready(Err(error))
    }

    /// Takes what fits of these slices, and begins to write it.
    fn poll_take<'a>(
        &mut self,
        cx: &mut Context<'_>,
        slices: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        let mut job = ready!(self.poll_job(cx))?;
        job.content.clear();
        for slice in slices {
            let room = MOST - job.content.len();
            job.content
                .extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let taken = job.content.len();
        self.state = if taken == 0 {
            State::Idle(job)
        } else {
            let reservation = self.reservation.clone();
            State::Busy(spawn_blocking(move || job.run(&reservation)))
        };
        Poll::Ready(Ok(taken))
    }

    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let job = ready!(self.poll_job(cx))?;
        self.state = State::Idle(job);
        Poll::Ready(Ok(()))
    }
}

impl<W: Write> Job<W> {
    fn run(mut self, reservation: &Reservation) -> (Self, io::Result<()>) {
        let written = self.inner.write_all(&self.content);
        // The inner writer may have a buffer.
        let written = written.and_then(|()| flush(&mut self.inner));
        if written.is_ok() {
            reservation.written(self.content.len() as u64);
        }
        (self, written)
    }
}

impl<W: Write + Send + 'static> AsyncWrite for AsyncReportingWriter<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_take(cx, iter::once(content))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        content: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let slices = content.iter().map(|slice| &**slice);
        self.get_mut().poll_take(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_written(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_written(cx)
    }
}

impl<W: fmt::Debug> fmt::Debug for AsyncReportingWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut writer = f.debug_struct("AsyncReportingWriter");
        match &self.state {
            State::Idle(job) => writer.field("inner", &job.inner),
            State::Busy(_) => writer.field("state", &"writing"),
            State::Failed(kind) => writer.field("failed", kind),
        };
        writer.finish_non_exhaustive()
    }
}
