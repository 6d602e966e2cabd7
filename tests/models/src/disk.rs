//! The disk is modelled as a number behind a lock, because the kernel's own locks order a write and a statvfs.

use loom::{
    sync::{Arc, Mutex},
    thread,
};

use crate::{amount::Amount, ledger::Ledger};

/// A disk of `size` bytes, and its ledger. The ledger has seen it empty.
#[derive(Clone)]
struct Disk {
    size: u64,
    used: Arc<Mutex<u64>>,
    ledger: Arc<Ledger>,
}

impl Disk {
    fn new(size: u64) -> Self {
        let disk = Self {
            size,
            used: Arc::new(Mutex::new(0)),
            ledger: Arc::new(Ledger::new()),
        };
        disk.probe();
        disk
    }

    fn probe(&self) {
        let epoch = self.ledger.begin();
        let is_settling = self.ledger.is_settling();
        let available = self.size - *self.used.lock().unwrap();
        let available = Amount::bytes(available);
        self.ledger.publish(epoch, available, is_settling);
    }

    /// Writes. Panics if more is promised than there is.
    fn write(&self, bytes: u64) {
        let mut used = self.used.lock().unwrap();
        *used += bytes;
        assert!(*used <= self.size, "promised more than there is");
    }

    /// A complete upload. Returns whether it was admitted.
    fn upload(&self, bytes: u64) -> bool {
        let amount = Amount::bytes(bytes);
        let admitted = self.ledger.claim(amount, Amount::ZERO).is_ok();
        if admitted {
            self.write(bytes);
            self.ledger.settle(amount);
        }
        admitted
    }

    fn is_quiet(&self) {
        // One reading for each bucket.
        self.probe();
        self.probe();
        assert_eq!(self.ledger.claimed(), Amount::ZERO);
        let free = self.size - *self.used.lock().unwrap();
        assert_eq!(self.ledger.free_bytes(), free as i64);
    }
}

/// Two uploads concurrent with a probe: never more than the disk's size, and no figures are lost.
///
/// Bounded to three preemptions a run: enough to interleave any step of a claim, a settlement and a probe with those
/// of another, and finished in seconds instead of hours.
#[test]
fn uploads_beside_a_probe_never_overfill() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let disk = Disk::new(3);
        let uploads: Vec<_> = (0..2)
            .map(|_| {
                let disk = disk.clone();
                thread::spawn(move || u64::from(disk.upload(1)) + u64::from(disk.upload(1)))
            })
            .collect();
        disk.probe();
        let stored: u64 = uploads
            .into_iter()
            .map(|upload| upload.join().unwrap())
            .sum();
        assert_eq!(stored, *disk.used.lock().unwrap());
        disk.is_quiet();
    });
}

/// Two claims for an amount that only fits one of them: exactly one succeeds.
#[test]
fn the_last_byte_goes_to_one() {
    loom::model(|| {
        let disk = Disk::new(1);
        let other = disk.clone();
        let upload = thread::spawn(move || other.upload(1));
        let here = disk.upload(1);
        assert!(here ^ upload.join().unwrap());
        disk.is_quiet();
    });
}

/// A settlement across two probes may be seen late, but never early.
#[test]
fn settling_across_probes_is_never_early() {
    loom::model(|| {
        let disk = Disk::new(2);
        let writer = disk.clone();
        let upload = thread::spawn(move || writer.upload(1));
        disk.probe();
        disk.probe();
        // Whatever the probes have seen, exactly one byte remains.
        let second = disk.upload(1);
        let third = disk.upload(1);
        let first = upload.join().unwrap();
        assert!(u64::from(first) + u64::from(second) + u64::from(third) <= 2);
        disk.is_quiet();
    });
}

/// Released while a probe runs: the whole amount is available again.
#[test]
fn releases_beside_a_probe_are_whole() {
    loom::model(|| {
        let disk = Disk::new(3);
        let other = disk.clone();
        let request = thread::spawn(move || {
            let amount = Amount::new(2, 0);
            if other.ledger.claim(amount, Amount::bytes(1)).is_ok() {
                other.ledger.release(amount);
            }
        });
        disk.probe();
        request.join().unwrap();
        disk.is_quiet();
    });
}
