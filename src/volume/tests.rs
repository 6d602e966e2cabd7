use std::{
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::amount::Amount;

/// A disk whose figures the test sets.
#[derive(Clone, Default)]
struct Disk {
    available: Arc<AtomicU64>,
    inodes: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
}

const TOTAL: u64 = 1_000;

impl Probe for Disk {
    fn read(&mut self) -> io::Result<Reading> {
        if self.fails.load(SeqCst) {
            return Err(io::ErrorKind::Other.into());
        }
        let reading = Reading::new(self.available.load(SeqCst), TOTAL);
        Ok(reading.with_inodes(self.inodes.load(SeqCst), 100))
    }
}

impl Disk {
    fn volume(available: u64) -> (Self, Volume) {
        let disk = Self::default();
        disk.available.store(available, SeqCst);
        disk.inodes.store(50, SeqCst);
        let volume = Volume::from_probe(disk.clone()).unwrap();
        (disk, volume)
    }
}

/// Waits for a reading that begins after this call.
fn read(volume: &Volume) {
    let begun = volume.filesystem().begun();
    until(|| {
        volume.refresh();
        volume.filesystem().published() > begun
    });
}

fn until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "it never was so");
        std::thread::yield_now();
    }
}

fn claim(volume: &Volume, bytes: u64) -> Result<Amount, Shortfall> {
    volume.claim(Amount::bytes(bytes), 0)
}

/// A claim that fails permanently.
fn refuse(volume: &Volume, bytes: u64) -> Result<Amount, Shortfall> {
    claim(volume, bytes).inspect_err(|shortfall| volume.note_full(*shortfall, Amount::ZERO))
}

fn is_full(result: Result<Amount, Shortfall>, resource: Resource) -> bool {
    matches!(result, Err(Shortfall::Full { fault, .. })
        if fault == Fault::new(Cause::DiskFull, resource))
}

#[test]
fn an_exact_fit_above_the_headroom_is_admitted_and_one_more_is_not() {
    let (_, volume) = Disk::volume(500);
    let volume = volume.keep_free(Headroom::bytes(100).or_percent(20));
    assert!(is_full(claim(&volume, 301), Resource::Bytes));
    let blocks = claim(&volume, 300).unwrap();
    assert!(is_full(claim(&volume, 1), Resource::Bytes));
    assert!(claim(&volume, 0).is_ok());
    volume.release(blocks);
    assert!(claim(&volume, 300).is_ok());
}

#[test]
fn inodes_are_a_resource_of_their_own() {
    let (_, volume) = Disk::volume(500);
    let volume = volume.keep_free(Headroom::NONE.inodes(48));
    let claims: Vec<_> = (0..3).map(|_| volume.claim(Amount::new(1, 1), 0)).collect();
    assert!(claims[0].is_ok() && claims[1].is_ok());
    assert!(is_full(claims[2], Resource::Objects));
    // The bytes that were claimed before the inodes were found missing are released.
    assert_eq!(volume.status().claimed, 2);
    // Without an object, bytes still fit.
    assert!(claim(&volume, 498).is_ok());
}

#[test]
fn an_expected_amount_must_fit_and_is_not_claimed() {
    let (_, volume) = Disk::volume(500);
    assert!(is_full(
        volume.claim(Amount::bytes(10), 501),
        Resource::Bytes
    ));
    assert_eq!(volume.claim(Amount::bytes(10), 500), Ok(Amount::bytes(10)));
    assert_eq!(volume.status().claimed, 10);
}

#[test]
fn a_demand_beyond_the_whole_volume_is_hopeless() {
    let (_, volume) = Disk::volume(500);
    let volume = volume.keep_free(100);
    let hopeless = |bytes| match claim(&volume, bytes) {
        Err(Shortfall::Full { is_hopeless, .. }) => is_hopeless,
        other => panic!("{other:?}"),
    };
    assert!(!hopeless(900));
    assert!(hopeless(901));
    assert!(hopeless(u64::MAX));
}

#[test]
fn settled_claims_go_with_the_reading_that_sees_them() {
    let (disk, volume) = Disk::volume(500);
    let blocks = claim(&volume, 200).unwrap();
    disk.available.store(300, SeqCst);
    // Included in the reading, and still claimed: counted twice, which is safe.
    read(&volume);
    assert!(is_full(claim(&volume, 101), Resource::Bytes));
    volume.settle(blocks);
    read(&volume);
    let status = volume.status();
    assert_eq!((status.available, status.claimed), (300, 0));
    assert!(claim(&volume, 300).is_ok());
}

#[test]
fn a_full_volume_resumes_at_its_level() {
    let (disk, volume) = Disk::volume(150);
    let volume = volume.keep_free(100).resume_at(200);
    assert!(is_full(refuse(&volume, 51), Resource::Bytes));
    assert!(!volume.status().is_full, "it asked for more than there is");
    let all = claim(&volume, 50).unwrap();
    assert!(!volume.status().is_full, "nothing was refused since");
    assert!(is_full(refuse(&volume, 1), Resource::Bytes));
    assert!(volume.status().is_full);
    volume.release(all);
    let empty = volume.claim(Amount::objects(1), 0).unwrap();
    volume.release(empty);
    assert!(is_full(claim(&volume, 1), Resource::Bytes));
    assert!(claim(&volume, 0).is_ok());
    disk.available.store(199, SeqCst);
    read(&volume);
    assert!(is_full(claim(&volume, 1), Resource::Bytes));
    disk.available.store(200, SeqCst);
    read(&volume);
    assert!(claim(&volume, 1).is_ok());
    // In between, the answer depends on the previous state.
    disk.available.store(150, SeqCst);
    read(&volume);
    assert!(claim(&volume, 1).is_ok());
}

#[test]
fn one_request_that_is_too_large_does_not_close_the_volume() {
    let (_, volume) = Disk::volume(500);
    let volume = volume.keep_free(100).resume_at(200);
    assert!(is_full(refuse(&volume, 401), Resource::Bytes));
    assert!(claim(&volume, 100).is_ok());
    // Not even if less is free than the level, when it would not fit on the empty volume either.
    assert!(claim(&volume, 250).is_ok());
    assert!(is_full(refuse(&volume, 901), Resource::Bytes));
    assert!(claim(&volume, 10).is_ok());
}

#[test]
fn a_probe_that_fails_is_an_outage_once_the_reading_is_too_old() {
    let (disk, volume) = Disk::volume(500);
    let refusing = volume.clone().max_age(Duration::ZERO);
    let admitting = refusing.clone().outage(Outage::Admit);
    let patient = volume.clone().max_age(Duration::from_secs(3600));
    disk.fails.store(true, SeqCst);
    volume.refresh();
    until(|| refusing.status().is_stale);

    assert!(matches!(claim(&refusing, 1), Err(Shortfall::Unknown)));
    assert!(claim(&patient, 1).is_ok());
    // More than the total: admitted, because the reading is too old to decide.
    assert!(claim(&admitting, 5_000).is_ok());
    assert_eq!(volume.status().claimed, 5_001);

    disk.fails.store(false, SeqCst);
    read(&volume);
    assert!(!refusing.status().is_stale);
    assert!(is_full(claim(&admitting, 1), Resource::Bytes));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_awaited_whether_its_reading_fails_or_not() {
    let (disk, volume) = Disk::volume(500);
    for available in [400, 300] {
        disk.available.store(available, SeqCst);
        assert_eq!(volume.refresh().await.available, available);
    }
    disk.fails.store(true, SeqCst);
    disk.available.store(200, SeqCst);
    assert_eq!(volume.refresh().await.available, 300);
    // Dropped, the reading is taken all the same.
    disk.fails.store(false, SeqCst);
    drop(volume.refresh());
    until(|| volume.status().available == 200);
}

#[tokio::test]
async fn a_refresh_during_a_reading_waits_for_the_next() {
    #[derive(Default)]
    struct Slow {
        available: AtomicU64,
        looked: AtomicUsize,
        gate: Mutex<()>,
    }
    impl Probe for Arc<Slow> {
        fn read(&mut self) -> io::Result<Reading> {
            let available = self.available.load(SeqCst);
            self.looked.fetch_add(1, SeqCst);
            drop(self.gate.lock().unwrap());
            Ok(Reading::new(available, TOTAL))
        }
    }
    let disk = Arc::new(Slow::default());
    let volume = Volume::from_probe(Arc::clone(&disk)).unwrap();
    let closed = disk.gate.lock().unwrap();
    let looked = disk.looked.load(SeqCst);
    drop(volume.refresh());
    until(|| disk.looked.load(SeqCst) > looked);
    disk.available.store(400, SeqCst);
    let mut refresh = pin!(volume.refresh());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(refresh.as_mut().poll(&mut cx).is_pending());
    drop(closed);
    assert_eq!(refresh.await.available, 400);
}

#[test]
fn a_probe_that_panics_has_failed() {
    struct Faulty(bool);
    impl Probe for Faulty {
        fn read(&mut self) -> io::Result<Reading> {
            assert!(!std::mem::replace(&mut self.0, true), "as it is to be");
            Ok(Reading::new(500, TOTAL))
        }
    }
    assert!(Volume::from_probe(Faulty(true)).is_err());
    let volume = Volume::from_probe(Faulty(false))
        .unwrap()
        .max_age(Duration::ZERO);
    volume.refresh();
    until(|| volume.status().is_stale);
    assert!(matches!(claim(&volume, 1), Err(Shortfall::Unknown)));
}

#[test]
fn volumes_on_one_filesystem_share_its_ledger_and_not_their_headroom() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, two] = folders
        .each_ref()
        .map(|dir| Volume::open(dir.path()).unwrap());
    assert!(Arc::ptr_eq(one.filesystem(), two.filesystem()));
    let two = two.keep_free(Headroom::percent(100));
    let blocks = claim(&one, 1 << 20).unwrap();
    assert!(two.status().claimed >= 1 << 20);
    assert!(is_full(claim(&two, 1), Resource::Bytes));
    one.release(blocks);

    // The filesystem is found by the second path after the first is removed.
    let [first, _second] = folders;
    first.close().unwrap();
    read(&two);
    assert!(!two.status().is_stale);
}

#[test]
fn files_take_whole_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::open(folder.path()).unwrap();
    let block = volume.in_blocks(Amount::bytes(1)).bytes;
    assert!(block > 1, "a filesystem with blocks of one byte");
    assert_eq!(volume.in_blocks(Amount::bytes(block + 1)).bytes, 2 * block);
    assert_eq!(volume.in_blocks(Amount::ZERO), Amount::ZERO);
}

#[test]
fn a_missing_folder_cannot_be_guarded() {
    let folder = tempfile::tempdir().unwrap();
    let error = Volume::open(folder.path().join("missing")).unwrap_err();
    assert_eq!(error.io_error().kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("missing"));
}

fn closed(resource: Resource) -> Result<(), Closed> {
    Err(Closed::Full(Fault::new(Cause::DiskFull, resource)))
}

#[test]
fn a_volume_down_to_its_headroom_takes_no_writes() {
    let (disk, volume) = Disk::volume(101);
    let volume = volume.keep_free(Headroom::bytes(100).inodes(48));
    for (bytes, inodes, takes_writes) in [
        (101, 49, Ok(())),
        (100, 49, closed(Resource::Bytes)),
        (0, 49, closed(Resource::Bytes)),
        (101, 48, closed(Resource::Objects)),
        (1_000, 0, closed(Resource::Objects)),
        (100, 48, closed(Resource::Bytes)),
        (1_000, 100, Ok(())),
    ] {
        disk.available.store(bytes, SeqCst);
        disk.inodes.store(inodes, SeqCst);
        read(&volume);
        let found = volume.takes_writes();
        assert_eq!(found, takes_writes, "{bytes} bytes, {inodes} inodes");
        // A request that comes alone is answered the same.
        let claim = volume.claim(Amount::new(1, 1), 0);
        assert_eq!(claim.is_ok(), takes_writes.is_ok());
        claim.into_iter().for_each(|blocks| volume.release(blocks));
    }
}

#[test]
fn requests_in_flight_close_no_volume() {
    let (disk, volume) = Disk::volume(500);
    let volume = volume.keep_free(100).resume_at(200);
    let blocks = claim(&volume, 400).unwrap();
    assert!(is_full(refuse(&volume, 1), Resource::Bytes));
    assert!(volume.status().is_full);
    assert_eq!(volume.takes_writes(), Ok(()));
    // It does once it is on the disk, even before a reading shows that it is the same content.
    disk.available.store(150, SeqCst);
    read(&volume);
    assert_eq!(volume.takes_writes(), closed(Resource::Bytes));
    volume.release(blocks);
}

#[test]
fn a_volume_reported_as_full_stays_full_until_the_level() {
    let (disk, volume) = Disk::volume(100);
    let steady = volume.clone().keep_free(100).resume_at(200);
    let volume = volume.keep_free(100);
    assert_eq!(steady.takes_writes(), closed(Resource::Bytes));
    assert_eq!(volume.takes_writes(), closed(Resource::Bytes));
    disk.available.store(199, SeqCst);
    read(&volume);
    assert_eq!(volume.takes_writes(), Ok(()));
    assert_eq!(steady.takes_writes(), closed(Resource::Bytes));
    assert!(is_full(claim(&steady, 1), Resource::Bytes));
    disk.available.store(200, SeqCst);
    read(&volume);
    assert_eq!(steady.takes_writes(), Ok(()));
    // On the way down only the headroom counts.
    disk.available.store(101, SeqCst);
    read(&volume);
    assert_eq!(steady.takes_writes(), Ok(()));
}

#[test]
fn an_outage_takes_writes_if_configured() {
    let (disk, volume) = Disk::volume(0);
    let refusing = volume.max_age(Duration::ZERO);
    let admitting = refusing.clone().outage(Outage::Admit);
    disk.fails.store(true, SeqCst);
    refusing.refresh();
    until(|| refusing.status().is_stale);
    assert_eq!(refusing.takes_writes(), Err(Closed::Unknown));
    assert_eq!(admitting.takes_writes(), Ok(()));
    disk.fails.store(false, SeqCst);
    for volume in [refusing, admitting] {
        volume.refresh();
        until(|| volume.takes_writes() == closed(Resource::Bytes));
    }
}

#[test]
fn a_closed_volume_says_why() {
    let Err(full) = closed(Resource::Objects) else {
        unreachable!()
    };
    let fault = Fault::new(Cause::DiskFull, Resource::Objects);
    assert_eq!(crate::fault::classify(&full), Some(fault));
    assert_eq!(crate::fault::classify(&Closed::Unknown), None);
    let reasons = [full, Closed::Unknown].map(Closed::reason);
    assert_eq!(reasons, ["disk_full", "capacity_unknown"]);
}

#[test]
fn several_volumes_are_ready_when_all_are() {
    let ((first, one), (second, two)) = (Disk::volume(1), Disk::volume(1));
    let readiness = Readiness::new(one.clone()).and(two.clone());
    assert_eq!(readiness.takes_writes(), Ok(()));
    second.available.store(0, SeqCst);
    read(&two);
    assert_eq!(readiness.takes_writes(), closed(Resource::Bytes));
    first.inodes.store(0, SeqCst);
    read(&one);
    assert_eq!(readiness.takes_writes(), closed(Resource::Objects));
}

/// Counts how many times it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A disk that hangs while the test holds the lock.
struct Gated(Disk, Arc<Mutex<()>>);

impl Probe for Gated {
    fn read(&mut self) -> io::Result<Reading> {
        let _open = self.1.lock();
        self.0.read()
    }
}

#[test]
fn a_follower_is_woken_by_readings_and_not_by_requests() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let (disk, gate) = (Disk::default(), Arc::default());
    disk.available.store(500, SeqCst);
    disk.inodes.store(50, SeqCst);
    // No readings except the requested ones, and no timer.
    let volume = Volume::builder().probe_every(HOUR);
    let volume = volume
        .from_probe(Gated(disk.clone(), Arc::clone(&gate)))
        .unwrap();
    let volume = volume.max_age(HOUR).keep_free(100).resume_at(200);
    let readiness = Readiness::from(volume.clone());
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let times = || woken.0.load(SeqCst);
    // While a probe hangs, no reading wakes any task.
    let hangs = gate.lock().unwrap();
    volume.refresh();
    until(|| volume.filesystem().begun() == 2);

    let mut changed = pin!(readiness.changed(Ok(())));
    for _ in 0..10 {
        assert!(changed.as_mut().poll(&mut cx).is_pending());
        let blocks = claim(&volume, 400).unwrap();
        assert!(is_full(claim(&volume, 1), Resource::Bytes));
        volume.release(blocks);
    }
    assert_eq!(times(), 0);
    disk.available.store(150, SeqCst);
    drop(hangs);
    until(|| times() == 1);
    assert!(changed.as_mut().poll(&mut cx).is_pending());
    // No reading except for a refusal: the volume waits for its level now.
    let all = claim(&volume, 50).unwrap();
    assert!(is_full(refuse(&volume, 1), Resource::Bytes));
    assert_eq!(times(), 2);
    volume.release(all);
    let full = closed(Resource::Bytes);
    assert_eq!(changed.as_mut().poll(&mut cx), Poll::Ready(full));

    let mut changed = pin!(readiness.changed(full));
    assert!(changed.as_mut().poll(&mut cx).is_pending());
    disk.available.store(200, SeqCst);
    volume.refresh();
    until(|| times() == 3);
    assert_eq!(changed.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
}

/// One event in the life of a volume.
#[derive(Clone, Debug)]
enum Step {
    Claim(u64),
    /// The claim with this index, written whole or released.
    Write(usize),
    GiveBack(usize),
    Probe,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..400u64).prop_map(Step::Claim),
        2 => (0..8usize).prop_map(Step::Write),
        1 => (0..8usize).prop_map(Step::GiveBack),
        2 => Just(Step::Probe),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(test_support::times(64)))]

    /// For all sizes and orders: the claims never exceed the available space, and a demand that fits beside the
    /// claims is not refused once the reading is fresh.
    #[test]
    fn never_more_than_there_is(steps in steps(), headroom in 0..300u64) {
        let (disk, volume) = Disk::volume(TOTAL);
        let volume = volume.keep_free(headroom);
        let mut claims: Vec<Amount> = Vec::new();
        let mut used = 0;
        for step in steps {
            match step {
                Step::Claim(bytes) => {
                    read(&volume);
                    read(&volume);
                    let claimed: u64 = claims.iter().map(|claim| claim.bytes).sum();
                    let fits = used + claimed + bytes + headroom <= TOTAL;
                    let result = claim(&volume, bytes);
                    prop_assert_eq!(result.is_ok(), fits || bytes == 0);
                    claims.extend(result);
                }
                Step::Write(number) if number < claims.len() => {
                    let blocks = claims.swap_remove(number);
                    used += blocks.bytes;
                    prop_assert!(used + headroom <= TOTAL);
                    disk.available.store(TOTAL - used, SeqCst);
                    volume.settle(blocks);
                }
                Step::GiveBack(number) if number < claims.len() => {
                    volume.release(claims.swap_remove(number));
                }
                Step::Probe => read(&volume),
                Step::Write(_) | Step::GiveBack(_) => {}
            }
        }
        claims.into_iter().for_each(|blocks| volume.release(blocks));
        read(&volume);
        read(&volume);
        prop_assert_eq!(volume.status().claimed, 0);
    }
}
