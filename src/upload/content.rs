//! What an upload has received, and what requests in flight have drawn for more.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The received content of an upload, by part. Content at offsets, or at the end, has no name.
#[derive(Default)]
pub(super) struct Contents {
    parts: HashMap<Option<Box<str>>, Content>,
    /// The sum of the sizes. Wide, because clients choose the offset of a part.
    sizes: u128,
    /// What requests in flight have drawn, beyond these sizes.
    drawn: u128,
    remembered: Remembered,
}

/// How many named parts one upload remembers, and itself, in the sum of all uploads.
#[derive(Default)]
struct Remembered {
    of_all: Arc<AtomicUsize>,
    number: usize,
}

impl Remembered {
    fn set(&mut self, number: usize) {
        // Wraps around where it gets less.
        let more = number.wrapping_sub(mem::replace(&mut self.number, number));
        self.of_all.fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What a request in flight uses of the claims on the volume.
#[derive(Default)]
pub(super) struct Claims {
    /// Bytes that are claimed for the upload, and bytes that are claimed for this request.
    of_upload: u64,
    of_request: u64,
    /// Bytes that were reported as written to the disk, and the upload's bytes that settled with them.
    written: u64,
    settled: u64,
    /// Bytes that are drawn for no part in particular.
    stray: u64,
    has_ended: bool,
}

/// The end of a request's claims.
pub(super) struct Unused {
    /// How much of the upload's claim settles.
    pub(super) settling: u64,
    /// How much of it was not used.
    pub(super) of_upload: u64,
    /// What was drawn for no part in particular.
    pub(super) stray: u64,
}

impl Claims {
    /// Enters `bytes`, of which `of_upload` are claimed for the upload. Returns the rest.
    pub(super) fn draw(&mut self, bytes: u64, of_upload: u64, is_stray: bool) -> u64 {
        if is_stray {
            self.stray = self.stray.saturating_add(bytes);
        }
        self.of_upload += of_upload;
        self.of_request += bytes - of_upload;
        bytes - of_upload
    }

    /// Gives up `bytes` that were drawn. Returns how many of them were claimed for the upload, and how many were drawn for
    /// no part in particular.
    pub(super) fn undraw(&mut self, bytes: u64) -> (u64, u64) {
        let (of_upload, stray) = (
            bytes.min(self.of_upload - self.settled),
            bytes.min(self.stray),
        );
        self.of_upload -= of_upload;
        self.stray -= stray;
        (of_upload, stray)
    }

    /// `bytes` more have reached the disk. Returns how much of the upload's claim settles.
    pub(super) fn write(&mut self, bytes: u64) -> u64 {
        if self.has_ended {
            // What was not used is available to other requests now.
            return 0;
        }
        self.written = self.written.saturating_add(bytes);
        self.settle(0)
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The request has ended, and has left this much on the disk.
    pub(super) fn end(&mut self, on_disk: u64) -> Unused {
        self.has_ended = true;
        let settling = self.settle(on_disk);
        Unused {
            settling,
            of_upload: self.of_upload - self.settled,
            stray: self.stray,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Gives up the upload's claims that have not settled, and returns how many bytes they were.
    pub(super) fn give_up(&mut self) -> u64 {
        if self.has_ended {
            return 0;
        }
        self.of_upload - mem::replace(&mut self.of_upload, self.settled)
    }

    /// The part of the upload's claim that settles once `received` bytes of the body have reached the disk. The claim
    /// of this request alone is used first.
    fn settle(&mut self, received: u64) -> u64 {
        let on_disk = received.max(self.written);
        let settled = on_disk.saturating_sub(self.of_request);
        let settled = settled.min(self.of_upload).max(self.settled);
        settled - mem::replace(&mut self.settled, settled)
    }
}

/// Where a request brings content.
pub(super) struct Place {
    pub(super) part: Option<Box<str>>,
    pub(super) offset: Option<u64>,
    /// Where it begins, as far as there is content.
    pub(super) from: u64,
    /// The number of the request.
    pub(super) number: u64,
}

impl Place {
    /// At the end of what was received.
    pub(super) fn is_appended(&self) -> bool {
        self.part.is_none() && self.offset.is_none()
    }
}

#[derive(Default)]
struct Content {
    /// Where it ends, as the client counts. After a failure, where it may end.
    length: u64,
    /// The difference between what handlers report as stored and what they have read.
    correction: i128,
    /// The largest length that it has had. The claim for that has settled.
    reached: u64,
    /// The latest request that brings it, where that begins, and what it has drawn.
    claims: Weak<Mutex<Claims>>,
    by: u64,
    from: u64,
    drawn: u64,
    /// The last request that has succeeded.
    sure_by: u64,
}

impl Content {
    fn corrected(&self, length: u64) -> u64 {
        let size = i128::from(length).saturating_add(self.correction);
        u64::try_from(size.max(0)).unwrap_or(u64::MAX)
    }

    fn size(&self) -> u64 {
        self.corrected(self.length)
    }

    /// Where the latest request ends, by what it has drawn.
    fn end_of_draw(&self) -> u64 {
        self.corrected(self.from).saturating_add(self.drawn)
    }

    /// What the latest request needs beyond the size.
    fn beyond(&self) -> u64 {
        self.end_of_draw().saturating_sub(self.size())
    }
}

impl Contents {
    /// Content that was there before, of an upload that counts in this sum.
    pub(super) fn with(
        part: &Option<Box<str>>,
        before: u64,
        remembered: &Arc<AtomicUsize>,
    ) -> Self {
        let mut contents = Self {
            remembered: Remembered {
                of_all: Arc::clone(remembered),
                number: 0,
            },
            ..Self::default()
        };
        contents.count();
        if before > 0 {
            contents.change(part, |content| {
                (content.length, content.reached) = (before, before);
            });
        }
        contents
    }

    pub(super) fn has(&self, part: &Option<Box<str>>) -> bool {
        self.parts.contains_key(part)
    }

    /// The bytes that were received, or may have been.
    pub(super) fn sizes(&self) -> u128 {
        self.sizes
    }

    /// The bytes that requests in flight may store in addition.
    pub(super) fn drawn(&self) -> u128 {
        self.drawn
    }

    pub(super) fn reached(&self, part: &Option<Box<str>>) -> u64 {
        self.parts.get(part).map_or(0, |content| content.reached)
    }

    /// A request arrives that brings a part. Returns the claims of the request that it supersedes.
    pub(super) fn enter(
        &mut self,
        at: &Place,
        claims: &Arc<Mutex<Claims>>,
    ) -> Option<Arc<Mutex<Claims>>> {
        self.change(&at.part, |content| {
            (content.by, content.from, content.drawn) = (at.number, at.from, 0);
            mem::replace(&mut content.claims, Arc::downgrade(claims)).upgrade()
        })
    }

    /// What everything takes beside this request, and what the request has drawn.
    pub(super) fn taken_beside(&self, at: &Place) -> u128 {
        let all = self.sizes + self.drawn;
        match self.parts.get(&at.part) {
            Some(content) if content.by == at.number => {
                let own = content.size().max(content.end_of_draw());
                all - u128::from(own) + u128::from(content.end_of_draw())
            }
            _ => all,
        }
    }

    /// A request draws `bytes` more. Returns how many of them were never received before. None if it draws for no
    /// part in particular: it appends, or was superseded.
    pub(super) fn draw(&mut self, at: &Place, bytes: u64) -> Option<u64> {
        let is_latest = |content: &Content| content.by == at.number;
        if !self.parts.get(&at.part).is_some_and(is_latest) {
            self.drawn += u128::from(bytes);
            return None;
        }
        Some(self.change(&at.part, |content| {
            let from = content.from.saturating_add(content.drawn);
            let to = from.saturating_add(bytes);
            content.drawn = content.drawn.saturating_add(bytes);
            to - content.reached.clamp(from, to)
        }))
    }

    /// A request gives up `bytes` that it has drawn, of which `stray` are for no part in particular.
    pub(super) fn undraw(&mut self, at: &Place, bytes: u64, stray: u64) {
        self.drawn -= u128::from(stray);
        let is_latest = |content: &Content| content.by == at.number;
        if self.parts.get(&at.part).is_some_and(is_latest) {
            self.change(&at.part, |content| {
                content.drawn = content.drawn.saturating_sub(bytes - stray);
            });
        }
    }

    /// A request has ended, which drew `stray` bytes for no part in particular.
    pub(super) fn leave(&mut self, at: &Place, stray: u64) {
        self.drawn -= u128::from(stray);
        let is_latest = |content: &Content| content.by == at.number;
        if self.parts.get(&at.part).is_some_and(is_latest) {
            self.change(&at.part, |content| {
                (content.by, content.from, content.drawn) = (0, 0, 0);
                content.claims = Weak::new();
            });
            self.tidy(&at.part);
        }
    }

    /// The service has stored what `came`.
    pub(super) fn set(&mut self, at: &Place, came: u64, stored: u64) {
        let difference = i128::from(stored) - i128::from(came);
        let (number, offset) = (at.number, at.offset.unwrap_or(0));
        if at.is_appended() {
            self.change(&at.part, |content| {
                content.length = content.length.saturating_add(came);
                content.correction = content.correction.saturating_add(difference);
                content.reached = content.reached.max(content.length);
            });
        } else {
            self.change(&at.part, |content| {
                let before = if offset == 0 { 0 } else { content.correction };
                let new = Content {
                    length: offset.saturating_add(came),
                    correction: before.saturating_add(difference),
                    ..Content::default()
                };
                // Of two that were in flight at once, either may be the one that stays.
                if number > content.sure_by || new.size() > content.size() {
                    (content.length, content.correction) = (new.length, new.correction);
                }
                content.sure_by = content.sure_by.max(number);
                if came > 0 {
                    content.reached = content.reached.max(new.length);
                }
            });
        }
        self.tidy(&at.part);
    }

    /// A request has failed, and the service may have kept what `came`.
    pub(super) fn raise(&mut self, at: &Place, came: u64) {
        self.change(&at.part, |content| {
            let is_late = at.number < content.sure_by;
            if at.is_appended() {
                content.length = content.length.saturating_add(came);
            } else if at.from > 0 && !is_late {
                content.length = content.length.max(at.from.saturating_add(came));
            } else if came > content.size() && !is_late {
                (content.length, content.correction) = (came, 0);
            }
            content.reached = content.reached.max(content.length);
        });
    }

    /// Everything was removed, except what requests in flight bring.
    pub(super) fn clear(&mut self) {
        let parts: Vec<_> = self.parts.keys().cloned().collect();
        for part in parts {
            self.change(&part, |content| {
                (content.length, content.correction) = (0, 0);
            });
        }
    }

    fn change<T>(&mut self, part: &Option<Box<str>>, change: impl FnOnce(&mut Content) -> T) -> T {
        let content = self.parts.entry(part.clone()).or_default();
        self.sizes -= u128::from(content.size());
        self.drawn -= u128::from(content.beyond());
        let changed = change(content);
        self.sizes += u128::from(content.size());
        self.drawn += u128::from(content.beyond());
        self.count();
        changed
    }

    /// Clients choose the names, without a bound on their number.
    fn tidy(&mut self, part: &Option<Box<str>>) {
        let is_used = |content: &Content| {
            content.by != 0
                || content.reached != 0
                || content.correction != 0
                || content.length != 0
        };
        if !self.parts.get(part).is_some_and(is_used) {
            self.parts.remove(part);
            self.count();
        }
    }

    fn count(&mut self) {
        let unnamed = usize::from(self.parts.contains_key(&None));
        self.remembered.set(1 + self.parts.len() - unnamed);
    }
}
