//! Tells an observer what becomes of a volume.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use super::{Shortfall, Volume, horizons::Edges};
use crate::observer::{Event, Observed, WeakObserved};

impl Volume {
    /// Tells the observer of each reading, and of each change, until the observer is gone. It takes a thread of its own: the
    /// thread that reads may hang, and an observer may block.
    ///
    /// # Panics
    ///
    /// If no thread can be started.
    pub(crate) fn tell(&self, observer: &Observed) {
        let (volume, observer) = (self.clone(), observer.downgrade());
        thread::Builder::new()
            .name("storage-guard-watch".into())
            .spawn(move || watch(&volume, &observer))
            .expect("a thread can be started");
    }
}

fn watch(volume: &Volume, observer: &WeakObserved) {
    let mut seen = Seen::new(volume);
    loop {
        let Some(observer) = observer.upgrade() else {
            return;
        };
        let ended = volume.filesystem().ended();
        seen.look(volume, |event| {
            // The watch goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| observer.observe(event)));
        });
        drop(observer);
        let may_be_stale_in = volume.may_be_stale_in();
        volume.filesystem().wait_for_end(ended, may_be_stale_in);
    }
}

/// What was seen of a volume before.
#[derive(Debug)]
struct Seen {
    /// The number of the reading.
    published: u64,
    is_full: bool,
    sight: Sight,
    /// The horizons that the forecast is below.
    edges: Edges,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sight {
    Fresh,
    Stale,
    Moved,
}

impl Seen {
    /// Nothing yet.
    fn new(volume: &Volume) -> Self {
        Self {
            published: 0,
            is_full: false,
            sight: Sight::Fresh,
            edges: volume.horizons.edges(),
        }
    }

    fn look(&mut self, volume: &Volume, tell: impl Fn(&Event<'_>)) {
        let (name, freshness) = (volume.name(), &volume.filesystem().freshness);
        let published = freshness.published();
        // The trend has a reading once its probe has ended.
        if published != self.published && published <= freshness.ended() {
            self.published = published;
            self.tell_reading(volume, &tell);
        }
        let sight = match (freshness.is_lost(), volume.is_stale()) {
            (true, _) => Sight::Moved,
            (false, true) => Sight::Stale,
            (false, false) => Sight::Fresh,
        };
        if sight != self.sight {
            self.sight = sight;
            tell(&match sight {
                Sight::Fresh => Event::Fresh { volume: name },
                Sight::Stale => Event::Stale { volume: name },
                Sight::Moved => Event::Moved { volume: name },
            });
        }
        // A volume that cannot be seen is neither.
        if sight != Sight::Fresh {
            return;
        }
        // To be observed must change nothing, so the level to resume is not armed.
        match volume.could_take_writes() {
            Err(Shortfall::Full { fault, .. }) if !self.is_full => {
                self.is_full = true;
                tell(&Event::Full {
                    volume: name,
                    fault,
                });
            }
            Ok(()) if self.is_full => {
                self.is_full = false;
                tell(&Event::Resumed { volume: name });
            }
            _ => {}
        }
    }

    /// Tells of a new reading, and of the horizons that the forecast falls below with it.
    fn tell_reading(&mut self, volume: &Volume, tell: impl Fn(&Event<'_>)) {
        let (name, forecast) = (volume.name(), volume.forecast());
        let read_at = volume.filesystem().trend().read_at();
        for horizon in read_at.map_or_else(Vec::new, |at| self.edges.check(at, forecast)) {
            tell(&Event::Horizon {
                volume: name,
                horizon,
                forecast,
            });
        }
        tell(&Event::Probed {
            volume: name,
            status: &volume.status(),
            took: volume.filesystem().freshness.took(),
            forecast,
        });
    }
}
