//! A disk whose figures the test sets.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tower_storage_guard::{Probe, Reading, Volume, volume::VolumeStatus};

#[derive(Clone)]
pub struct Disk {
    available: Arc<AtomicU64>,
    inodes: Arc<AtomicU64>,
}

impl Disk {
    pub fn new(available: u64) -> Self {
        Self {
            available: Arc::new(available.into()),
            inodes: Arc::new(u64::MAX.into()),
        }
    }

    pub fn with_inodes(self, inodes: u64) -> Self {
        self.set_inodes(inodes);
        self
    }

    pub fn set_available(&self, bytes: u64) {
        self.available.store(bytes, SeqCst);
    }

    pub fn set_inodes(&self, inodes: u64) {
        self.inodes.store(inodes, SeqCst);
    }

    pub fn volume(&self) -> Volume {
        Volume::from_probe(self.clone()).unwrap()
    }

    /// A volume that is probed at this interval.
    pub fn probed_every(&self, every: Duration) -> Volume {
        let volume = Volume::builder().probe_every(every);
        volume.from_probe(self.clone()).unwrap()
    }

    /// Waits until readings include everything that has settled, and nothing is claimed any more.
    pub async fn until_settled(volume: &Volume) {
        Self::until(volume, |status| {
            status.claimed == 0 && status.objects_claimed == 0
        })
        .await;
    }

    /// Waits until a volume's status satisfies the condition.
    pub async fn until(volume: &Volume, is_so: impl Fn(&VolumeStatus) -> bool) {
        let start = Instant::now();
        while !is_so(&volume.status()) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{:?}",
                volume.status()
            );
            volume.refresh();
            tokio::task::yield_now().await;
        }
    }
}

impl Probe for Disk {
    fn read(&mut self) -> io::Result<Reading> {
        let reading = Reading::new(self.available.load(SeqCst), 1 << 40);
        Ok(match self.inodes.load(SeqCst) {
            u64::MAX => reading,
            inodes => reading.with_inodes(inodes, 1_000),
        })
    }
}
