//! Volumes: the age of readings, requests that do not close a volume, and the cleanup of a dropped volume.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use test_support::{
    disk::Disk,
    eventually,
    service::{chunked, full, put, read_all},
};
use tower::{Layer, service_fn};
use tower_storage_guard::{Probe, Reading, StorageGuardLayer, Volume};

use crate::by_hand::{HOUR, send};

/// A disk whose probe can be delayed, and is counted.
#[derive(Clone, Default)]
struct Slow {
    reads: Arc<AtomicUsize>,
    way: Arc<tokio::sync::Mutex<()>>,
}

impl Probe for Slow {
    fn read(&mut self) -> io::Result<Reading> {
        self.reads.fetch_add(1, SeqCst);
        let _way = self.way.blocking_lock();
        Ok(Reading::new(1_000, 1_000))
    }
}

#[tokio::test]
async fn a_volume_that_is_probed_rarely_takes_requests_during_the_next_probe() {
    let disk = Slow::default();
    let age = Duration::from_millis(1_500);
    let volume = Volume::builder().probe_every(HOUR);
    let volume = volume.from_probe(disk.clone()).unwrap().max_age(age);
    eventually("older than a second", || volume.status().age > age).await;
    assert_eq!(disk.reads.load(SeqCst), 1);

    let _held_up = disk.way.lock().await;
    volume.refresh();
    eventually("a probe", || disk.reads.load(SeqCst) == 2).await;
    assert!(!volume.status().is_stale);
    let service = StorageGuardLayer::new(volume).layer(service_fn(read_all));
    assert_eq!(send(service, put(full(10))).await, 201);
}

#[tokio::test]
async fn an_empty_request_is_admitted_despite_an_outdated_reading() {
    let disk = Slow::default();
    let volume = Volume::from_probe(disk.clone()).unwrap();
    let volume = volume.max_age(Duration::ZERO);
    let _held_up = disk.way.lock().await;
    volume.refresh();
    eventually("too old", || volume.status().is_stale).await;
    let service = StorageGuardLayer::new(volume)
        .price_by(|_, demand| demand.with_objects(0))
        .layer(service_fn(read_all));
    assert_eq!(send(service.clone(), put(full(0))).await, 201);
    assert_eq!(send(service, put(full(1))).await, 503);
}

#[tokio::test]
async fn a_request_admitted_by_a_second_check_closes_nothing() {
    let disk = Disk::new(50);
    let volume = disk.probed_every(HOUR).resume_at(500);
    disk.set_available(200);
    let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
    assert_eq!(send(service.clone(), put(full(100))).await, 201);
    assert!(!volume.status().is_full);
    assert_eq!(send(service, put(full(50))).await, 201);
}

/// Only the headroom does.
#[tokio::test]
async fn a_request_for_more_than_there_is_closes_nothing() {
    let disk = Disk::new(300);
    let volume = disk.volume().keep_free(100).resume_at(400);
    let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
    for content in [full(500), chunked(5, 100)] {
        assert_eq!(send(service.clone(), put(content)).await, 507);
        assert!(!volume.status().is_full);
        assert_eq!(send(service.clone(), put(full(10))).await, 201);
        Disk::until_settled(&volume).await;
    }
    disk.set_available(100);
    Disk::until(&volume, |status| status.available == 100).await;
    assert_eq!(send(service.clone(), put(full(1))).await, 507);
    assert!(volume.status().is_full);
    disk.set_available(300);
    Disk::until(&volume, |status| status.available == 300).await;
    assert_eq!(send(service, put(full(10))).await, 507);
}

#[tokio::test]
async fn a_hopeless_request_closes_nothing() {
    let volume = Disk::new(400).volume().resume_at(500);
    let service = StorageGuardLayer::new(volume.clone()).layer(service_fn(read_all));
    for content in [full(10), chunked(1, 10)] {
        let mut hopeless = put(content);
        let length = "100000000000000000".parse().unwrap();
        hopeless.headers_mut().insert("upload-length", length);
        assert_eq!(send(service.clone(), hopeless).await, 507);
        assert!(!volume.status().is_full);
        assert_eq!(send(service.clone(), put(full(100))).await, 201);
    }
}

#[tokio::test]
async fn a_volume_that_is_dropped_leaves_no_thread() {
    let disk = Slow::default();
    for _ in 0..50 {
        let volume = Volume::builder().probe_every(HOUR);
        drop(volume.from_probe(disk.clone()).unwrap());
    }
    // Every thread owns its probe.
    let probes = || Arc::strong_count(&disk.reads) - 1;
    eventually("no probe is left", || probes() == 0).await;
}
