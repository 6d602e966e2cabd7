use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::volume::{Probe, Reading, Volume};

/// A volume whose room is set by a test.
///
/// A setter blocks until the volume has read the new room, five milliseconds at most. So the next request is decided by
/// it: no sleep is needed, and a paused clock makes no difference.
///
/// Content that requests store does not change the room that was set, because the handlers of a test may store nothing.
/// It stays claimed until the next reading: at the next setter, [`Volume::refresh`], or when a request is about to be
/// refused. If it matters, set the room that is left after an upload.
///
/// A reading has the time of the test, which may be paused: advance it between two of them for a
/// [forecast](Volume::forecast) in an instant.
///
/// It is a handle: clones set the room of the same volume.
///
/// ```
/// use tower_storage_guard::{Demand, Guard, Scopes, test_util::FakeVolume};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let disk = FakeVolume::new(1_000);
/// let guard = Guard::new(disk.volume().keep_free(100));
/// let mut admits = async |bytes| guard.reserve(Scopes::NONE, Demand::known(bytes)).await.is_ok();
/// assert!(admits(900).await);
///
/// disk.set_available(150);
/// assert!(admits(50).await);
/// assert!(!admits(51).await);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FakeVolume {
    volume: Volume,
    disk: Disk,
}

impl FakeVolume {
    /// Creates an empty volume of `total` bytes, which counts no inodes.
    ///
    /// # Panics
    ///
    /// If no thread can be started for its readings.
    pub fn new(total: u64) -> Self {
        let disk = Disk(Arc::new(Mutex::new(Some(now(Reading::new(total, total))))));
        let volume = Volume::builder()
            // The test decides when it reads.
            .probe_every(Duration::from_secs(3_600))
            .from_probe(disk.clone());
        Self {
            volume: volume.expect("a thread can be started"),
            disk,
        }
    }

    /// Returns the volume, for the guard. Its own settings, such as [`Volume::keep_free`], have their defaults.
    pub fn volume(&self) -> Volume {
        self.volume.clone()
    }

    /// Sets how many bytes are available, and finds the volume again if it was [lost](Self::lose). More than the total counts as
    /// the total. Blocks until the volume has read it.
    pub fn set_available(&self, bytes: u64) {
        let total = self.volume.status().total;
        self.set(Reading::new(bytes.min(total), total));
    }

    /// Sets the whole reading, with another total, or with inodes. Blocks until the volume has read it.
    pub fn set(&self, reading: Reading) {
        *self.disk.lock() = Some(now(reading));
        self.volume.filesystem().read_now();
    }

    /// Loses the volume, as a filesystem that is no longer mounted. Its [`Outage`](crate::Outage) policy decides from
    /// now on, which answers 503 by default, until room is set again. It blocks until the volume has noticed the loss.
    pub fn lose(&self) {
        *self.disk.lock() = None;
        self.volume.filesystem().read_now();
    }
}

fn now(mut reading: Reading) -> Reading {
    reading.at = Some(Instant::now().into_std());
    reading
}

/// None while it is lost.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<Option<Reading>>>);

impl Disk {
    fn lock(&self) -> MutexGuard<'_, Option<Reading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Disk {
    fn read(&mut self) -> io::Result<Reading> {
        self.lock()
            .ok_or_else(|| io::ErrorKind::StaleNetworkFileHandle.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{iter, sync::mpsc, time::Instant};

    use tokio::time::advance;

    use super::*;
    use crate::{
        amount::Amount, cause::Resource, demand::Demand, guard::Guard, observer::Event,
        refused::Reason, scope::Scopes, volume::Forecast,
    };

    async fn refusal(guard: &Guard, demand: Demand) -> Option<Reason> {
        let reserved = guard.reserve(Scopes::NONE, demand).await;
        reserved.err().map(|refused| refused.reason())
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_request_sees_what_was_set() {
        let disk = FakeVolume::new(100);
        let guard = Guard::new(disk.volume());
        for available in [50, 0, 100, 200, 7] {
            disk.set_available(available);
            let fits = available.min(100);
            assert_eq!(refusal(&guard, Demand::known(fits)).await, None);
            let reason = refusal(&guard, Demand::known(fits + 1)).await;
            let Some(Reason::Storage(fault)) = reason else {
                panic!("{available}: {reason:?}");
            };
            assert_eq!(fault.resource, Resource::Bytes);
        }
        assert_eq!(disk.volume().refresh().await.available, 7);
    }

    #[tokio::test]
    async fn it_can_be_lost_and_has_inodes_if_they_are_set() {
        let disk = FakeVolume::new(100);
        let guard = Guard::new(disk.volume());
        disk.lose();
        let one = Demand::known(1);
        assert_eq!(refusal(&guard, one).await, Some(Reason::Unavailable));
        disk.set(Reading::new(100, 200).with_inodes(1, 10));
        assert_eq!(refusal(&guard, one.with_objects(1)).await, None);
        let two = refusal(&guard, one.with_objects(2)).await;
        assert!(matches!(two, Some(Reason::Storage(fault)) if fault.resource == Resource::Objects));
        disk.lose();
        disk.set_available(1);
        assert_eq!(refusal(&guard, one).await, None);
        assert_eq!(disk.volume().status().total, 200);
    }

    /// What was stored is claimed until the test says how much is left.
    #[tokio::test]
    async fn what_is_stored_stays_claimed_until_the_next_reading() {
        let disk = FakeVolume::new(100);
        let guard = Guard::new(disk.volume());
        let stored = guard
            .reserve(Scopes::NONE, Demand::known(60))
            .await
            .unwrap();
        stored.commit().await;
        assert_eq!(disk.volume().status().claimed, Amount::bytes(60).bytes);
        disk.set_available(40);
        assert_eq!(disk.volume().status().claimed, 0);
        assert!(refusal(&guard, Demand::known(41)).await.is_some());
    }

    /// A volume above a headroom fills, is freed, and fills again.
    #[tokio::test(start_paused = true)]
    async fn the_forecast_follows_the_paused_clock() {
        const MINUTE: Duration = Duration::from_secs(60);

        let disk = FakeVolume::new(1_000_000);
        let (send, events) = mpsc::channel();
        let volume = disk.volume().horizons([MINUTE * 30, MINUTE * 60]);
        let volume = volume.keep_free(100_000);
        let guard = Guard::new(volume.clone()).observer(move |event: &Event<'_>| {
            // The test may have ended.
            let _ = send.send(match *event {
                Event::Horizon {
                    horizon, forecast, ..
                } => Some((horizon, forecast)),
                Event::Probed { .. } => None,
                _ => return,
            });
        });
        // The horizons that the forecast has fallen below with the next reading.
        let crossed = || {
            let next = || events.recv_timeout(Duration::from_secs(10)).unwrap();
            iter::from_fn(next).collect::<Vec<_>>()
        };
        assert_eq!(crossed(), []);
        let set = |available| {
            disk.set_available(available);
            crossed()
        };
        assert_eq!(volume.forecast(), Forecast::Unknown);
        // 9,000 bytes a minute: full after 100 minutes.
        let fill = async |minutes| {
            let mut all = Vec::new();
            for _ in 0..minutes {
                advance(MINUTE).await;
                all.extend(set(volume.status().available - 9_000));
            }
            all
        };
        assert_eq!(fill(9).await, []);
        let in_minutes = |left| Forecast::FullIn(MINUTE * left);
        assert_eq!(volume.forecast(), in_minutes(91));
        let both = [60, 30].map(|minutes| (MINUTE * minutes as u32, in_minutes(minutes as u32)));
        assert_eq!(fill(71).await, both);
        // What is claimed counts as what is used.
        let claim = guard.reserve(Scopes::NONE, Demand::known(90_000)).await;
        assert_eq!(volume.forecast(), in_minutes(10));
        drop(claim);
        assert_eq!(volume.forecast(), in_minutes(20));
        assert_eq!(set(0), []);
        assert_eq!(volume.forecast(), Forecast::Full);
        // Another headroom has another forecast.
        assert_eq!(volume.clone().keep_free(0).forecast(), Forecast::Full);
        disk.lose();
        assert_eq!(volume.forecast(), Forecast::Unknown);
        assert_eq!(set(1_000_000), []);
        for _ in 0..20 {
            advance(MINUTE).await;
            assert_eq!(set(1_000_000), []);
        }
        assert_eq!(volume.forecast(), Forecast::NotFilling);
        let full = [60, 30].map(|minutes| (MINUTE * minutes, Forecast::Full));
        assert_eq!(set(0), full);
    }

    /// No advance, no trend.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_stands_still_makes_no_forecast() {
        let disk = FakeVolume::new(1_000);
        for available in (1..30).rev() {
            disk.set_available(available);
            assert_eq!(disk.volume().forecast(), Forecast::Unknown);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_observer_that_panics_stops_no_readings_and_is_told_of_more() {
        let disk = FakeVolume::new(1_000);
        let (send, told) = mpsc::channel();
        let guard = Guard::new(disk.volume()).observer(move |event: &Event<'_>| {
            if let Event::Probed { status, .. } = event {
                send.send(status.available).unwrap();
            }
            panic!("as the test wants");
        });
        let next = || told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(next(), 1_000);
        for available in [0, 500, 0, 700] {
            advance(Duration::from_secs(1_000)).await;
            disk.set_available(available);
            assert_eq!(next(), available);
        }
        drop(guard);
    }

    #[test]
    fn a_setter_blocks_for_milliseconds() {
        let disk = FakeVolume::new(100);
        let begun = Instant::now();
        for available in 0..10 {
            disk.set_available(available);
            assert_eq!(disk.volume().status().available, available);
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
