//! Writers that report what has reached the volume.

use std::{
    fs,
    future::poll_fn,
    io::{self, BufWriter, IoSlice, Write},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use test_support::eventually;
use tokio::{
    fs::File,
    io::{AsyncWrite, AsyncWriteExt},
};
use tower_storage_guard::{Demand, Guard, Probe, Reading, Reservation, Scopes, Volume};

const RESERVED: u64 = 1_000;

/// A reservation of 1,000 bytes on a volume whose readings are counted.
struct Job {
    volume: Volume,
    readings: Arc<AtomicUsize>,
    reservation: Reservation,
}

struct Counted(Arc<AtomicUsize>);

impl Probe for Counted {
    fn read(&mut self) -> io::Result<Reading> {
        self.0.fetch_add(1, SeqCst);
        Ok(Reading::new(1 << 20, 1 << 20))
    }
}

impl Job {
    async fn begin() -> Self {
        let readings = Arc::default();
        let volume = Volume::from_probe(Counted(Arc::clone(&readings))).unwrap();
        let guard = Guard::new(volume.clone());
        let demand = Demand::known(RESERVED);
        let reservation = guard.reserve(Scopes::NONE, demand).await.unwrap();
        Self {
            volume,
            readings,
            reservation,
        }
    }

    /// How much was reported. Waits for a reading that began later.
    async fn reported(&self) -> u64 {
        let before = self.readings.load(SeqCst);
        // One may have been under way, and the last must have been published.
        eventually("readings", || {
            self.volume.refresh();
            self.readings.load(SeqCst) >= before + 3
        })
        .await;
        RESERVED - self.volume.status().claimed
    }
}

/// A writer that takes a few bytes at a time, and may fail.
#[derive(Clone, Default)]
struct Inner(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    written: Vec<u8>,
    /// What the next flushes do. They succeed when there is nothing.
    flushes: Vec<Poll<io::ErrorKind>>,
    /// Fails once this much is written.
    room: Option<usize>,
}

impl Inner {
    fn that_flushes(flushes: impl Into<Vec<Poll<io::ErrorKind>>>) -> Self {
        let inner = Self::default();
        inner.0.lock().unwrap().flushes = flushes.into();
        inner
    }

    fn with_room(room: usize) -> Self {
        let inner = Self::default();
        inner.0.lock().unwrap().room = Some(room);
        inner
    }

    fn written(&self) -> Vec<u8> {
        self.0.lock().unwrap().written.clone()
    }

    fn next_flush(&self) -> Poll<io::Result<()>> {
        let mut script = self.0.lock().unwrap();
        match script.flushes.is_empty() {
            true => Poll::Ready(Ok(())),
            false => script.flushes.remove(0).map(|kind| Err(kind.into())),
        }
    }
}

impl Write for Inner {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let mut script = self.0.lock().unwrap();
        if script
            .room
            .is_some_and(|room| script.written.len() + content.len() > room)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = content.len().min(3);
        script.written.extend_from_slice(&content[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.next_flush() {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("a blocking writer does not wait"),
        }
    }
}

impl AsyncWrite for Inner {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Write::write(self.get_mut(), content))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        cx.waker().wake_by_ref();
        self.next_flush()
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[tokio::test]
async fn each_blocking_write_is_reported() {
    let job = Job::begin().await;
    let inner = Inner::default();
    let mut writer = job.reservation.writer(inner.clone());
    assert_eq!(Write::write(&mut writer, b"hello").unwrap(), 3);
    assert_eq!(job.reported().await, 3);
    Write::write_all(&mut writer, b"lo, world").unwrap();
    assert_eq!(job.reported().await, 12);
    let slices = [IoSlice::new(b"!!"), IoSlice::new(b"!")];
    assert_eq!(Write::write_vectored(&mut writer, &slices).unwrap(), 2);
    assert_eq!(job.reported().await, 14);
    assert_eq!(inner.written(), b"hello, world!!");
}

#[tokio::test]
async fn what_is_in_a_buffer_is_not_reported() {
    let job = Job::begin().await;
    let buffer = BufWriter::with_capacity(100, Vec::new());
    let mut writer = job.reservation.writer(buffer).flush_every(50);
    Write::write_all(&mut writer, &[7; 49]).unwrap();
    assert_eq!(job.reported().await, 0);
    assert_eq!(writer.get_ref().get_ref().len(), 0);
    Write::write_all(&mut writer, &[7; 11]).unwrap();
    assert_eq!(job.reported().await, 60);
    Write::write_all(&mut writer, &[7; 20]).unwrap();
    Write::flush(&mut writer).unwrap();
    assert_eq!(job.reported().await, 80);
    assert_eq!(writer.get_ref().get_ref().len(), 80);
    Write::write_all(&mut writer, &[7; 20]).unwrap();
    // Dropped with what it has not flushed.
    drop(writer.into_inner());
    assert_eq!(job.reported().await, 80);

    // The other way round, each buffer is one report.
    let job = Job::begin().await;
    let mut buffer = BufWriter::with_capacity(100, job.reservation.writer(Vec::new()));
    buffer.write_all(&[7; 60]).unwrap();
    assert_eq!(job.reported().await, 0);
    buffer.write_all(&[7; 60]).unwrap();
    assert_eq!(job.reported().await, 60);
    buffer.flush().unwrap();
    assert_eq!(job.reported().await, 120);
}

#[tokio::test]
async fn what_a_flush_has_failed_on_is_not_reported() {
    let job = Job::begin().await;
    let full = io::ErrorKind::StorageFull;
    let mut writer = job
        .reservation
        .writer(Inner::that_flushes([Poll::Ready(full)]));
    let failed = Write::write(&mut writer, b"abc").unwrap_err();
    assert_eq!(failed.kind(), full);
    // As tokio's file, which does not repeat the error.
    Write::flush(&mut writer).unwrap();
    assert_eq!(job.reported().await, 0);
}

#[tokio::test]
async fn an_interrupted_flush_does_not_repeat_the_write() {
    let job = Job::begin().await;
    let interrupted = Poll::Ready(io::ErrorKind::Interrupted);
    let inner = Inner::that_flushes([interrupted, interrupted]);
    let mut writer = job.reservation.writer(inner.clone());
    Write::write_all(&mut writer, b"abcdef").unwrap();
    assert_eq!(inner.written(), b"abcdef");
    assert_eq!(job.reported().await, 6);
}

#[tokio::test]
async fn a_write_whose_flush_is_pending_is_reported_by_the_next_call() {
    let job = Job::begin().await;
    let inner = Inner::that_flushes([Poll::Pending, Poll::Pending]);
    let mut writer = job.reservation.writer(inner.clone());
    assert_eq!(AsyncWriteExt::write(&mut writer, b"abc").await.unwrap(), 3);
    assert_eq!(job.reported().await, 0);
    // A write that is given up while it waits for the flush has written nothing.
    poll_fn(|cx| {
        let pending = Pin::new(&mut writer).poll_write(cx, b"xyz");
        assert!(pending.is_pending());
        Poll::Ready(())
    })
    .await;
    assert_eq!(inner.written(), b"abc");
    AsyncWriteExt::flush(&mut writer).await.unwrap();
    assert_eq!(job.reported().await, 3);
    AsyncWriteExt::write_all(&mut writer, b"def").await.unwrap();
    AsyncWriteExt::shutdown(&mut writer).await.unwrap();
    assert_eq!(job.reported().await, 6);
    assert_eq!(inner.written(), b"abcdef");
}

#[tokio::test]
async fn a_failed_flush_fails_the_asynchronous_write() {
    let job = Job::begin().await;
    let full = io::ErrorKind::StorageFull;
    for flushes in [
        vec![Poll::Ready(full)],
        vec![Poll::Pending, Poll::Ready(full)],
    ] {
        let mut writer = job.reservation.writer(Inner::that_flushes(flushes));
        let failed = AsyncWriteExt::write_all(&mut writer, b"abcdef").await;
        assert_eq!(failed.unwrap_err().kind(), full);
        AsyncWriteExt::flush(&mut writer).await.unwrap();
        assert_eq!(job.reported().await, 0);
    }
}

#[tokio::test]
async fn a_copy_reports_while_its_source_has_nothing() {
    let job = Job::begin().await;
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("file")).await.unwrap();
    let mut writer = job.reservation.writer(file);
    let (mut client, mut source) = tokio::io::duplex(64);
    let copying = tokio::spawn(async move { tokio::io::copy(&mut source, &mut writer).await });
    client.write_all(&[7; 100]).await.unwrap();
    eventually("reported", || {
        job.volume.refresh();
        job.volume.status().claimed == RESERVED - 100
    })
    .await;
    drop(client);
    assert_eq!(copying.await.unwrap().unwrap(), 100);
}

#[tokio::test]
async fn an_async_writer_reports_without_another_call() {
    let job = Job::begin().await;
    let folder = tempfile::tempdir().unwrap();
    let file = fs::File::create(folder.path().join("file")).unwrap();
    let mut writer = job.reservation.async_writer(file);
    writer.write_all(&[7; 100]).await.unwrap();
    eventually("reported", || {
        job.volume.refresh();
        job.volume.status().claimed == RESERVED - 100
    })
    .await;
    let slices = [IoSlice::new(&[7; 50]), IoSlice::new(&[7; 50])];
    assert!(writer.is_write_vectored());
    assert_eq!(writer.write_vectored(&slices).await.unwrap(), 100);
    assert_eq!(writer.write(&[]).await.unwrap(), 0);
    let file = writer.into_inner().await.unwrap();
    assert_eq!(file.metadata().unwrap().len(), 200);
    assert_eq!(job.reported().await, 200);
}

#[tokio::test]
async fn an_async_writer_writes_what_is_larger_than_its_buffer() {
    let job = Job::begin().await;
    let content: Vec<_> = (0..5 << 20).map(|at: u32| (at % 251) as u8).collect();
    let mut writer = job.reservation.async_writer(Vec::new());
    writer.write_all(&content).await.unwrap();
    writer.flush().await.unwrap();
    assert!(writer.into_inner().await.unwrap() == content);
    // No more than was reserved.
    assert_eq!(job.reported().await, RESERVED);
}

#[tokio::test]
async fn an_async_writer_that_has_failed_stays_failed() {
    let job = Job::begin().await;
    let full = io::ErrorKind::StorageFull;
    let inner = Inner::with_room(10);
    let mut writer = job.reservation.async_writer(inner.clone());
    AsyncWriteExt::write_all(&mut writer, b"12345")
        .await
        .unwrap();
    // Taken, and fails behind that.
    AsyncWriteExt::write_all(&mut writer, b"6789012345")
        .await
        .unwrap();
    let failed = AsyncWriteExt::flush(&mut writer).await.unwrap_err();
    assert_eq!(failed.kind(), full);
    assert_eq!(
        AsyncWriteExt::flush(&mut writer).await.unwrap_err().kind(),
        full
    );
    assert_eq!(
        AsyncWriteExt::write(&mut writer, b"6")
            .await
            .unwrap_err()
            .kind(),
        full
    );
    assert_eq!(writer.into_inner().await.err().unwrap().kind(), full);
    assert_eq!(job.reported().await, 5);

    let inner = Inner::that_flushes([Poll::Ready(full)]);
    let mut writer = job.reservation.async_writer(inner);
    AsyncWriteExt::write_all(&mut writer, b"12345")
        .await
        .unwrap();
    let failed = AsyncWriteExt::shutdown(&mut writer).await.unwrap_err();
    assert_eq!(failed.kind(), full);
    assert_eq!(job.reported().await, 5);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_device_is_noticed_and_nothing_is_reported() {
    let job = Job::begin().await;
    let full = io::ErrorKind::StorageFull;
    let device = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let failed = job.reservation.writer(device()).write_all(b"content");
    assert_eq!(failed.unwrap_err().kind(), full);

    let mut writer = job.reservation.writer(File::from_std(device()));
    writer.write_all(b"content").await.unwrap();
    assert_eq!(writer.flush().await.unwrap_err().kind(), full);
    writer.flush().await.unwrap();

    let mut writer = job.reservation.async_writer(device());
    writer.write_all(b"content").await.unwrap();
    assert_eq!(writer.into_inner().await.unwrap_err().kind(), full);
    assert_eq!(job.reported().await, 0);
}

#[tokio::test]
async fn an_async_writer_that_is_dropped_writes_what_it_has_taken() {
    let job = Job::begin().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mut writer = job
        .reservation
        .async_writer(fs::File::create(&path).unwrap());
    writer.write_all(&[7; 100]).await.unwrap();
    drop(writer);
    eventually("written", || fs::metadata(&path).unwrap().len() == 100).await;

    // A report behind the end changes nothing.
    let mut writer = job
        .reservation
        .async_writer(fs::File::create(&path).unwrap());
    job.reservation.release();
    writer.write_all(&[7; 100]).await.unwrap();
    writer.into_inner().await.unwrap();
    assert_eq!(job.reported().await, RESERVED);
}

#[tokio::test]
async fn a_panic_of_the_inner_writer_is_an_error() {
    struct Panics;

    impl Write for Panics {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("as the test wants it");
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let job = Job::begin().await;
    let mut writer = job.reservation.async_writer(Panics);
    writer.write_all(b"content").await.unwrap();
    assert!(writer.flush().await.is_err());
    assert!(writer.into_inner().await.is_err());
    assert_eq!(job.reported().await, 0);
}
