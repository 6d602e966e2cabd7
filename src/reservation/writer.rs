//! A writer that reports what has reached the volume.

use std::{
    fmt,
    io::{self, IoSlice, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::io::AsyncWrite;

use super::Reservation;

pin_project! {
    /// A writer that flushes, and reports to its [`Reservation`] the bytes that have reached the volume. It is made by
    /// [`Reservation::writer`].
    ///
    /// It implements [`Write`] or [`AsyncWrite`], as the inner writer does. Bytes that are only in a buffer of the
    /// inner writer are never reported, because they are not on the volume yet. Each report is preceded by a flush.
    /// Bytes of a write or a flush that has failed are not reported either.
    ///
    /// It flushes after each write, which takes no measurable time where the inner writer has no buffer: [`std::fs::File`], tokio's
    /// `File`. Put a `BufWriter` around this writer, not inside of it: then each of its buffers is one write. For an inner writer
    /// that must have a buffer see [`flush_every`](Self::flush_every).
    ///
    /// It cannot seek, because bytes that are written twice take their blocks once.
    ///
    /// # Asynchronous writers
    ///
    /// An `AsyncWrite` must return as soon as it has taken bytes. So the bytes of a write are reported by the next
    /// call: a write, a flush or a shutdown. `tokio::io::copy` flushes while it waits for its source, so it reports
    /// everything in time. A loop that awaits the request's body between two writes has the last of them unreported
    /// while it waits. Flush after each write, or use [`Reservation::async_writer`], which reports by itself.
    ///
    /// Writes are cancel-safe: a write that is dropped while it is pending has written nothing.
    pub struct ReportingWriter<W> {
        #[pin]
        inner: W,
        unreported: Unreported,
    }
}

/// Bytes that the inner writer has taken, and that were not reported yet.
struct Unreported {
    reservation: Reservation,
    bytes: u64,
    flush_every: u64,
}

impl Reservation {
    /// Wraps a writer to the guarded volume, so that its bytes are flushed and reported as [written](Self::written).
    ///
    /// Do not report the same bytes by [`written`](Self::written) too.
    ///
    /// ```
    /// use std::{fs::File, io::Write};
    /// use tower_storage_guard::{Demand, Guard, Scopes, Volume};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("report");
    /// let guard = Guard::new(Volume::open(std::env::temp_dir())?);
    /// let reservation = guard.reserve(Scopes::NONE, Demand::known(100)).await?;
    /// let mut file = reservation.writer(File::create(path)?);
    /// file.write_all(&[7; 100])?;
    /// reservation.commit().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn writer<W>(&self, inner: W) -> ReportingWriter<W> {
        ReportingWriter {
            inner,
            unreported: Unreported {
                reservation: self.clone(),
                bytes: 0,
                flush_every: 0,
            },
        }
    }
}

impl<W> ReportingWriter<W> {
    /// Sets how many bytes may be written before the writer flushes and reports by itself. It always reports when it is
    /// flushed.
    ///
    /// Use it for an inner writer with a buffer, such as an encoder. With a buffer of 256 KiB, writes of 8 KiB are five
    /// times as fast with one flush in 256 KiB as with a flush after each. Up to `bytes` count twice until they are
    /// reported, on the volume and as claimed. So each upload under way may need that much more room.
    ///
    /// Defaults to 0: after each write.
    #[must_use]
    pub fn flush_every(mut self, bytes: u64) -> Self {
        self.unreported.flush_every = bytes;
        self
    }

    /// Returns the inner writer.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// Returns the inner writer. Bytes that are written to it directly are not reported.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Returns the inner writer. Bytes that were not flushed are not reported.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl Unreported {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn is_due(&self) -> bool {
        self.bytes > 0 && self.bytes >= self.flush_every
    }

    /// What a flush has ended with.
    fn flushed(&mut self, result: io::Result<()>) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        // After an error it is unknown what is on the volume, and tokio's file says so only once. All of it stays claimed.
        result?;
        if bytes > 0 {
            self.reservation.written(bytes);
        }
        Ok(())
    }
}

impl<W: Write> ReportingWriter<W> {
    fn flush_if_due(&mut self, written: usize) -> io::Result<usize> {
        self.unreported.add(written);
        if self.unreported.is_due() {
            self.unreported.flushed(flush(&mut self.inner))?;
        }
        Ok(written)
    }
}

impl<W: Write> Write for ReportingWriter<W> {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(content)?;
        self.flush_if_due(written)
    }

    fn write_vectored(&mut self, content: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.inner.write_vectored(content)?;
        self.flush_if_due(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unreported.flushed(flush(&mut self.inner))
    }
}

/// Flushes, however often it is interrupted: a caller would take that for a write that did not happen, and repeat it.
pub(super) fn flush(writer: &mut impl Write) -> io::Result<()> {
    loop {
        match writer.flush() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl<W: AsyncWrite> ReportingWriter<W> {
    /// Writes by `write`, once all that was due before has been reported.
    fn poll_write_by(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut W>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut this = self.project();
        if this.unreported.is_due() {
            let flushed = ready!(this.inner.as_mut().poll_flush(cx));
            this.unreported.flushed(flushed)?;
        }
        let written = ready!(write(this.inner.as_mut(), cx))?;
        this.unreported.add(written);
        if this.unreported.is_due()
            && let Poll::Ready(flushed) = this.inner.poll_flush(cx)
        {
            // The error would not come again.
            this.unreported.flushed(flushed)?;
        }
        // A flush that is pending goes on at the next call: these bytes were taken.
        Poll::Ready(Ok(written))
    }
}

impl<W: AsyncWrite> AsyncWrite for ReportingWriter<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |inner, cx| inner.poll_write(cx, content))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        content: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |inner, cx| inner.poll_write_vectored(cx, content))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let flushed = ready!(this.inner.poll_flush(cx));
        Poll::Ready(this.unreported.flushed(flushed))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let shut_down = ready!(this.inner.poll_shutdown(cx));
        Poll::Ready(this.unreported.flushed(shut_down))
    }
}

impl<W: fmt::Debug> fmt::Debug for ReportingWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportingWriter")
            .field("inner", &self.inner)
            .field("unreported", &self.unreported.bytes)
            .finish_non_exhaustive()
    }
}
