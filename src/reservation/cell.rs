//! What body, handle and answer of one request share, and how it ends.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
};

use bytes::Bytes;
use http::Response;

use super::{Refused, growth::Tickets};
use crate::{
    Amount, Demand, Price, Scopes,
    body::Unread,
    fault::Resource,
    layer::Settings,
    price::{During, Ending, Underway},
    quota::{Change, Exceeded, QuotaHold, QuotaSource},
    refusal::{Asked, Refusal},
    time::within,
    volume::Admitted,
};

/// Something that is awaited, rarely enough to be boxed.
pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What body and handle see of a [`Cell`], whatever the quota source is.
pub(crate) trait Charged: Send + Sync {
    fn meter(&self) -> &Meter;
    fn demand(&self) -> Demand;
    fn written(&self, bytes: u64);
    fn report(&self, change: &mut dyn FnMut(&mut Report));
    /// Sets `want` bytes more aside, or at least `need`.
    fn grow(self: Arc<Self>, need: u64, want: u64) -> Later<Result<(), Refused>>;
    fn replaces(self: Arc<Self>, replaced: Amount) -> Later<Result<(), Refused>>;
    /// A growth was refused, and its body goes on all the same: nobody has to wait for its end.
    fn pardon(&self);
    /// How much to ask for when the body has passed what is set aside, in bytes.
    fn next_grant(&self) -> u64;
    /// The body was cut. What is left of it may have to be drained.
    fn cut(&self, refused: &Refused, unread: Option<Unread>);
    fn body_ended(&self, end: BodyEnd);
    /// The answer was sent whole, or was not. The handle's end where the body's came before.
    fn answer_ended(self: Arc<Self>, success: bool) -> Later<()>;
    /// Wakes the answer that is being sent, when the body is cut.
    fn watch(&self, waker: &Waker);
    /// Commits now. False where it has ended before, or was cut.
    fn commit(self: Arc<Self>) -> Later<bool>;
    fn has_ended(&self) -> bool;
    /// Why the body was cut, if it was.
    fn refusal(&self) -> Option<Refusal>;
    /// The refusal in the client's dialect.
    fn answer(&self, refusal: Refusal, asked: &Asked) -> Response<Bytes>;
    /// Drains what is left unread.
    fn drain(&self);
}

/// How a body ended.
pub(crate) enum BodyEnd {
    /// Read to its end, or as far as the handler wanted. What is left may have to be drained.
    Read(Option<Unread>),
    /// The client is gone, or broke the protocol.
    Failed,
}

/// The figures that every frame touches.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(super) reserved: AtomicU64,
    received: AtomicU64,
    /// The reservation has ended, or the body was cut: no more of it may be read.
    closed: AtomicBool,
}

impl Meter {
    #[inline]
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn set_received(&self, bytes: u64) {
        // Only the body writes it.
        self.received.store(bytes, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Sets so many bytes more aside.
    pub(super) fn raise(&self, bytes: u64) {
        self.reserved.fetch_add(bytes, Ordering::AcqRel);
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// What the handler said.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(super) stored: Option<u64>,
    pub(super) made: Option<u64>,
}

/// What body, handle and answer of one request share.
pub(crate) struct Cell<Q: QuotaSource> {
    pub(super) settings: Arc<Settings<Q>>,
    pub(super) scopes: Scopes,
    pub(super) demand: Demand,
    during: Option<During>,
    /// Whether the inner service was called, and may have made something.
    called: AtomicBool,
    pub(super) meter: Meter,
    books: Mutex<Books<Q::Hold>>,
}

/// Everything that is looked at once in a while.
pub(super) struct Books<H> {
    /// Claimed on the volume, in whole blocks: for what is reserved and for what is growing.
    pub(super) blocks: Amount,
    /// Bytes that growths under way have claimed on the volume, and not yet in the scopes.
    pub(super) growing: u64,
    /// Of the blocks, what has settled already, as reported.
    pub(super) settled: u64,
    written: u64,
    pub(super) hold: Option<H>,
    /// What the hold is, as far as its source has answered.
    pub(super) held: Amount,
    /// Whether the source is being asked for more, and who waits for the answer to ask next.
    pub(super) asking: bool,
    pub(super) askers: Vec<Waker>,
    /// What replacing gives back to the scopes.
    pub(super) replaced: Amount,
    /// What others get back when it has succeeded.
    gives_back: Vec<(Scopes, Amount)>,
    report: Report,
    pub(super) tickets: Option<Arc<Tickets>>,
    refusal: Option<Refused>,
    body_ended: bool,
    body_failed: bool,
    unread: Option<Unread>,
    /// The answer was a success, and was sent before the body ended.
    answered: bool,
    watcher: Option<Waker>,
    underway: Option<Underway>,
    pub(super) ended: bool,
}

/// How a reservation took its end.
pub(crate) enum Ended<H> {
    /// It had ended already.
    Before,
    /// Just now, with what there is to commit if there is a hold.
    Now(Option<(H, Change)>),
}

impl<H> Ended<H> {
    pub(crate) fn into_commit(self) -> Option<(H, Change)> {
        match self {
            Self::Before => None,
            Self::Now(commit) => commit,
        }
    }
}

impl<Q: QuotaSource> Cell<Q> {
    /// A cell for what the volume has claimed.
    pub(crate) fn new(
        settings: Arc<Settings<Q>>,
        scopes: Scopes,
        price: Price,
        admitted: Admitted,
    ) -> Self {
        let Admitted { bytes, blocks } = admitted;
        let demand = price.demand;
        let tickets = demand
            .bytes()
            .is_none()
            .then(|| Arc::new(Tickets::new(&settings)));
        Self {
            settings,
            scopes: price.scopes.unwrap_or(scopes),
            demand,
            during: price.during,
            called: AtomicBool::new(false),
            meter: Meter {
                reserved: AtomicU64::new(bytes),
                received: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            },
            books: Mutex::new(Books {
                blocks,
                growing: 0,
                settled: 0,
                written: 0,
                hold: None,
                held: Amount::ZERO,
                asking: false,
                askers: Vec::new(),
                replaced: demand.replaced(),
                gives_back: price.gives_back,
                report: Report::default(),
                tickets,
                refusal: None,
                body_ended: false,
                body_failed: false,
                unread: None,
                answered: false,
                watcher: None,
                underway: None,
                ended: false,
            }),
        }
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    pub(crate) fn set_hold(&self, hold: Q::Hold) {
        let held = self.asked();
        let mut books = self.books();
        books.hold = Some(hold);
        books.held = held;
    }

    /// The inner service is about to be called.
    pub(crate) fn begin(&self) {
        self.called.store(true, Ordering::Release);
        if let Some(during) = &self.during {
            let underway = during.begin();
            self.books().underway = Some(underway);
        }
    }

    /// Sets what is told when the reservation has ended. Returned where it has.
    pub(crate) fn when_ended(&self, underway: Underway) -> Result<(), Underway> {
        let mut books = self.books();
        if books.ended {
            return Err(underway);
        }
        books.underway = Some(underway);
        Ok(())
    }

    /// What the quota is asked to set aside at the door.
    pub(crate) fn asked(&self) -> Amount {
        self.in_scopes(self.meter.reserved()) - self.demand.replaced()
    }

    /// What must fit into the quota, though it is not set aside.
    pub(crate) fn expected(&self) -> Amount {
        let bytes = self.demand.expected().max(self.meter.reserved());
        self.in_scopes(bytes) - self.demand.replaced()
    }

    /// What the scopes are to hold where so many bytes are set aside, before what is replaced.
    pub(super) fn in_scopes(&self, bytes: u64) -> Amount {
        Amount::new(bytes, self.demand.objects()) + self.demand.moved()
    }

    /// Lowers what the quota is asked for to what it has, where the length is unknown: at the door the
    /// request may need less than a grant. False where that is of no use.
    pub(crate) fn makes_do_with_less(&self, exceeded: &Exceeded) -> bool {
        let is_grant = self.demand.bytes().is_none() && self.demand.expected() == 0;
        let left = exceeded.limit.saturating_sub(exceeded.used);
        let less = left.saturating_add(self.demand.replaced().bytes);
        let helps = is_grant
            && exceeded.resource == Resource::Bytes
            && left > 0
            && less < self.meter.reserved();
        if helps {
            self.meter.reserved.store(less, Ordering::Release);
        }
        helps
    }

    /// Why the body was cut, if it was.
    #[inline]
    pub(crate) fn refused(&self) -> Option<Refusal> {
        // A cut closes the meter, so that the lock is not needed for all the others.
        if self.meter.is_closed() {
            self.why_closed()
        } else {
            None
        }
    }

    #[cold]
    fn why_closed(&self) -> Option<Refusal> {
        let books = self.books();
        let refused = books.refusal.as_ref()?;
        Some(refused.refusal().clone())
    }

    pub(crate) fn take_unread(&self) -> Option<Unread> {
        self.books().unread.take()
    }

    /// Nothing is given back: part of the request has failed, and nobody knows which.
    pub(crate) fn keep_all(&self) {
        self.books().gives_back.clear();
    }

    /// Ends the reservation, if this is the first to do so. The volume's part is done here; what there is
    /// to commit is returned.
    pub(crate) fn end(&self, success: bool) -> Ended<Q::Hold> {
        self.end_in(self.books(), success)
    }

    /// Ends the reservation as a success, if the body has been read. None if it still is.
    ///
    /// # Errors
    ///
    /// If the body was cut, and nothing ends here.
    pub(crate) fn end_if_read(&self) -> Result<Option<Ended<Q::Hold>>, Refusal> {
        let books = self.books();
        match &books.refusal {
            Some(refused) => Err(refused.refusal().clone()),
            None if books.body_ended => Ok(Some(self.end_in(books, true))),
            None => Ok(None),
        }
    }

    fn end_in(&self, mut books: MutexGuard<'_, Books<Q::Hold>>, success: bool) -> Ended<Q::Hold> {
        if std::mem::replace(&mut books.ended, true) {
            return Ended::Before;
        }
        self.meter.close();
        // Under the lock, so that no cut can come between: what was cut is never charged.
        let success = success && books.refusal.is_none();
        // The service may write more by itself, beside the body.
        let received = self.meter.received().saturating_add(self.demand.copied());
        let stored = if success {
            books.report.stored.unwrap_or(received)
        } else {
            0
        };
        // After a failure the partial file may still be there: what was read stays claimed until the
        // probe has looked.
        let partial = if success { 0 } else { received };
        let on_disk = stored.max(partial).max(books.written);
        let (claimed, settled) = (books.blocks, books.settled);
        let made = books.report.made.unwrap_or(self.demand.objects());
        let stored_in_scopes = Amount::new(stored, made) + self.demand.moved();
        let change = Change::between(stored_in_scopes, books.replaced);
        let (hold, tickets) = (books.hold.take(), books.tickets.take());
        let (unread, watcher) = (books.unread.take(), books.watcher.take());
        let gives_back = std::mem::take(&mut books.gives_back);
        let underway = books.underway.take();
        drop(books);

        // All of this is others' code, or wakes others: not under the lock.
        drop((unread, watcher));
        if let Some(volume) = &self.settings.volume {
            let on_disk = volume.in_blocks(Amount::bytes(on_disk)).bytes;
            let settling = on_disk.min(claimed.bytes).saturating_sub(settled);
            // Who was sent away at the door has made nothing that a probe could see.
            let kept = match self.called.load(Ordering::Acquire) {
                true => claimed.objects,
                false => 0,
            };
            volume.settle(Amount::new(settling, kept));
            volume.release(Amount::new(
                claimed.bytes - settled - settling,
                claimed.objects - kept,
            ));
        }
        if success {
            for (scopes, amount) in gives_back {
                self.settings.quota.give_back(&scopes, amount);
            }
        }
        if let Some(underway) = underway {
            let received = self.meter.received();
            underway(Ending {
                success,
                received,
                stored,
            });
        }
        drop(tickets);
        let hold = hold.filter(|_| success);
        if hold.is_none() {
            self.settings.quota_line.ring();
        }
        Ended::Now(hold.map(|hold| (hold, change)))
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books<Q::Hold>> {
        // Whole between any two statements; and a reservation must end whatever panicked.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q> Cell<Q>
where
    Q: QuotaSource + Send + Sync + 'static,
{
    /// Commits, and waits for it as long as the quota source has time.
    ///
    /// The source is told here, not in the future: nobody may be left to poll that. By its contract it does
    /// not lose the charge then.
    fn settle(self: Arc<Self>, commit: Option<(Q::Hold, Change)>) -> Later<()> {
        let commit = commit.map(|(hold, change)| hold.commit(change));
        Box::pin(async move {
            if let Some(commit) = commit {
                within(self.settings.quota_timeout, commit).await;
                self.settings.quota_line.ring();
            }
        })
    }
}

impl<Q> Charged for Cell<Q>
where
    Q: QuotaSource + Send + Sync + 'static,
{
    fn meter(&self) -> &Meter {
        &self.meter
    }

    fn demand(&self) -> Demand {
        self.demand
    }

    fn written(&self, bytes: u64) {
        let mut books = self.books();
        if books.ended {
            return;
        }
        books.written = books.written.saturating_add(bytes);
        let Some(volume) = &self.settings.volume else {
            return;
        };
        // A block is taken by its first byte. Counted as promised beside that, it would be one too many
        // for an upload that fits exactly.
        let settled = volume
            .in_blocks(Amount::bytes(books.written))
            .bytes
            .min(books.blocks.bytes);
        volume.settle(Amount::bytes(settled.saturating_sub(books.settled)));
        books.settled = settled.max(books.settled);
    }

    fn report(&self, change: &mut dyn FnMut(&mut Report)) {
        change(&mut self.books().report);
    }

    fn grow(self: Arc<Self>, need: u64, want: u64) -> Later<Result<(), Refused>> {
        Box::pin(async move { self.set_more_aside(need, want).await })
    }

    fn replaces(self: Arc<Self>, replaced: Amount) -> Later<Result<(), Refused>> {
        Box::pin(async move { self.hold_what_is_not_replaced(replaced).await })
    }

    fn pardon(&self) {
        let tickets = self.books().tickets.clone();
        if let Some(tickets) = tickets {
            tickets.pardon();
        }
    }

    fn next_grant(&self) -> u64 {
        self.settings.grants.next(self.meter.reserved())
    }

    fn cut(&self, refused: &Refused, unread: Option<Unread>) {
        self.meter.close();
        let mut books = self.books();
        books.refusal.get_or_insert_with(|| refused.clone());
        // Together with the refusal: whoever sees that may answer at once, on another thread.
        let useless = if books.ended {
            unread
        } else {
            std::mem::replace(&mut books.unread, unread)
        };
        let watcher = books.watcher.take();
        drop(books);
        drop(useless);
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    fn body_ended(&self, end: BodyEnd) {
        let mut books = self.books();
        books.body_ended = true;
        books.body_failed = matches!(end, BodyEnd::Failed);
        let (answered, failed) = (books.answered, books.body_failed);
        let is_answered = answered || books.ended;
        match end {
            // Somebody may have to answer, and drain it.
            BodyEnd::Read(Some(unread)) if !is_answered => books.unread = Some(unread),
            BodyEnd::Read(_) | BodyEnd::Failed => {}
        }
        drop(books);
        if answered && let Some((hold, change)) = self.end(!failed).into_commit() {
            // Nobody is left to wait for it.
            drop(hold.commit(change));
        }
    }

    fn answer_ended(self: Arc<Self>, success: bool) -> Later<()> {
        let mut books = self.books();
        books.answered = success && !books.body_ended;
        if books.answered {
            drop(books);
            return Box::pin(std::future::ready(()));
        }
        // The handler answered before it had read everything, so that it cannot have known.
        let success = success && !books.body_failed;
        let commit = self.end_in(books, success).into_commit();
        self.settle(commit)
    }

    fn watch(&self, waker: &Waker) {
        match &mut self.books().watcher {
            // The same one nearly always, and then there is nothing to clone.
            Some(watcher) => watcher.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn commit(self: Arc<Self>) -> Later<bool> {
        let books = self.books();
        if books.ended || books.refusal.is_some() {
            return Box::pin(std::future::ready(false));
        }
        let commit = self.end_in(books, true).into_commit();
        let settled = self.settle(commit);
        Box::pin(async move {
            settled.await;
            true
        })
    }

    fn has_ended(&self) -> bool {
        self.books().ended
    }

    fn refusal(&self) -> Option<Refusal> {
        self.refused()
    }

    fn answer(&self, refusal: Refusal, asked: &Asked) -> Response<Bytes> {
        self.settings.answers.answer(refusal, asked)
    }

    fn drain(&self) {
        self.settings.drain(self.take_unread());
    }
}

impl Report {
    /// Sets what is stored, unless the handler has said so.
    pub(crate) fn stored_unless_said(&mut self, bytes: u64) {
        self.stored.get_or_insert(bytes);
    }
}

impl<Q: QuotaSource> Drop for Cell<Q> {
    fn drop(&mut self) {
        // Whatever happened: it ends.
        self.end(false);
    }
}
