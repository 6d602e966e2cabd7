//! What was set aside for a request, and its end.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    Amount, Demand, Scopes,
    body::Unread,
    fault::{Cause, Fault, Resource},
    layer::Settings,
    line::{Short, Shortage, Ticket},
    outage::Outage,
    quota::{Change, Exceeded, QuotaError, QuotaHold, QuotaSource},
    refusal::{Figures, Refusal},
    time::within,
    volume::{Admitted, Shortfall},
};

/// A handle on what is set aside for a request, in its extensions. Cheap to clone.
///
/// It needs no care: what the body brought is committed when the answer is a success, and everything is
/// released on any other end. A handler that knows better says so:
///
/// - [`written`](Self::written) as bytes reach the disk, so that a large upload in flight is not counted
///   twice, on the disk and as promised;
/// - [`stored`](Self::stored) when what it keeps is not what it read, for instance after compression;
/// - [`replaces`](Self::replaces) when it overwrites;
/// - [`grow`](Self::grow) before it writes more than was set aside.
///
/// With feature `axum` it is an extractor.
#[derive(Clone)]
pub struct Reservation(Arc<dyn Charged>);

impl Reservation {
    pub(crate) fn new(charged: Arc<dyn Charged>) -> Self {
        Self(charged)
    }

    /// What the request wanted at the door.
    pub fn demand(&self) -> Demand {
        self.0.demand()
    }

    /// Bytes set aside so far.
    pub fn reserved(&self) -> u64 {
        self.0.meter().reserved()
    }

    /// Bytes of the body that were read so far.
    pub fn received(&self) -> u64 {
        self.0.meter().received()
    }

    /// Bytes set aside and not read yet.
    pub fn remaining(&self) -> u64 {
        self.reserved().saturating_sub(self.received())
    }

    /// Reports that `bytes` more have reached the filesystem: a write of them has returned.
    ///
    /// A buffered writer must be flushed first. `tokio::fs::File` is one.
    pub fn written(&self, bytes: u64) {
        self.0.written(bytes);
    }

    /// Sets how many bytes are stored in the end, where that is not what was read.
    ///
    /// They count even where they are more than was set aside, as they are there. Better
    /// [`grow`](Self::grow) first.
    pub fn stored(&self, bytes: u64) {
        self.0.report(&mut |report| report.stored = Some(bytes));
    }

    /// Sets how many objects are made in the end, where that is not what was asked for.
    pub fn made(&self, objects: u64) {
        self.0.report(&mut |report| report.made = Some(objects));
    }

    /// Corrects what is replaced. Scopes are charged for the difference.
    ///
    /// # Errors
    ///
    /// Where it is less than the demand said, the quota must hold the rest too, and has no room for it.
    pub async fn replaces(&self, replaced: Amount) -> Result<(), Refused> {
        Arc::clone(&self.0).replaces(replaced).await
    }

    /// Commits what was stored, now, whatever is answered and whether or not the client is still there.
    ///
    /// For a handler that cannot take back what it has done: files that have got their names. Nothing more
    /// of the body can be read then. False where the reservation has ended before, since the client left
    /// or the body was cut: nothing is charged then.
    pub async fn commit(&self) -> bool {
        Arc::clone(&self.0).commit().await
    }

    /// Whether it has ended: committed or released. A task that outlives its request can tell by this.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// Sets `bytes` more aside, on the volume and in every scope.
    ///
    /// # Errors
    ///
    /// When there is no room for them. What was set aside before stays.
    pub async fn grow(&self, bytes: u64) -> Result<(), Refused> {
        Arc::clone(&self.0).grow(bytes, bytes).await
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("reserved", &self.reserved())
            .field("received", &self.received())
            .finish_non_exhaustive()
    }
}

/// There was no room. The error of a body that was cut, and of a reservation that cannot grow.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message())]
pub struct Refused(Box<Refusal>);

impl Refused {
    pub(crate) fn new(refusal: Refusal) -> Self {
        Self(Box::new(refusal))
    }

    /// The refusal that the client is answered.
    pub fn refusal(&self) -> &Refusal {
        &self.0
    }
}

type Growth = Pin<Box<dyn Future<Output = Result<(), Refused>> + Send>>;

/// What body and handle see of a [`Cell`], whatever the quota source is.
pub(crate) trait Charged: Send + Sync {
    fn meter(&self) -> &Meter;
    fn demand(&self) -> Demand;
    fn written(&self, bytes: u64);
    fn report(&self, change: &mut dyn FnMut(&mut Report));
    fn grow(self: Arc<Self>, need: u64, want: u64) -> Growth;
    fn replaces(self: Arc<Self>, replaced: Amount) -> Growth;
    /// How much to ask for when the body has passed what is set aside, in bytes.
    fn next_grant(&self) -> u64;
    /// The body was cut.
    fn cut(&self, refused: &Refused);
    fn body_ended(&self, end: BodyEnd);
    /// The answer was sent whole, or was not. The handle's end where the body's came before.
    fn answer_ended(self: Arc<Self>, success: bool) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Commits now. False where it has ended before, or was cut.
    fn commit(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>>;
    fn has_ended(&self) -> bool;
    /// Why the body was cut, if it was.
    fn refusal(&self) -> Option<Refusal>;
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
    reserved: AtomicU64,
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

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// What the handler said.
#[derive(Debug, Default)]
pub(crate) struct Report {
    stored: Option<u64>,
    made: Option<u64>,
}

/// What body, handle and answer of one request share.
pub(crate) struct Cell<Q: QuotaSource> {
    settings: Arc<Settings<Q>>,
    scopes: Scopes,
    demand: Demand,
    meter: Meter,
    books: Mutex<Books<Q::Hold>>,
}

/// Everything that is looked at once in a while.
struct Books<H> {
    /// Claimed on the volume, in whole blocks.
    blocks: Amount,
    /// Of these, what has settled already, as reported.
    settled: u64,
    written: u64,
    hold: Option<H>,
    /// What replacing gives back to the scopes.
    replaced: Amount,
    report: Report,
    tickets: Option<Arc<Tickets>>,
    refusal: Option<Refused>,
    body_ended: bool,
    body_failed: bool,
    unread: Option<Unread>,
    /// The answer was a success, and was sent before the body ended.
    answered: bool,
    ended: bool,
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

/// The reservation's places in line.
#[derive(Debug)]
struct Tickets {
    volume: Option<Ticket>,
    quota: Ticket,
}

impl<Q: QuotaSource> Cell<Q> {
    /// A cell for what the volume has claimed.
    pub(crate) fn new(
        settings: Arc<Settings<Q>>,
        scopes: Scopes,
        demand: Demand,
        admitted: Admitted,
    ) -> Self {
        let Admitted { bytes, blocks } = admitted;
        let tickets = demand
            .bytes()
            .is_none()
            .then(|| Arc::new(Tickets::new(&settings)));
        Self {
            settings,
            scopes,
            demand,
            meter: Meter {
                reserved: AtomicU64::new(bytes),
                received: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            },
            books: Mutex::new(Books {
                blocks,
                settled: 0,
                written: 0,
                hold: None,
                replaced: demand.replaced(),
                report: Report::default(),
                tickets,
                refusal: None,
                body_ended: false,
                body_failed: false,
                unread: None,
                answered: false,
                ended: false,
            }),
        }
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    pub(crate) fn set_hold(&self, hold: Q::Hold) {
        self.books().hold = Some(hold);
    }

    /// What the quota is asked to set aside at the door.
    pub(crate) fn asked(&self) -> Amount {
        Amount::new(self.meter.reserved(), self.demand.objects()) - self.demand.replaced()
    }

    /// What must fit into the quota, though it is not set aside.
    pub(crate) fn expected(&self) -> Amount {
        let bytes = self.demand.expected().max(self.meter.reserved());
        Amount::new(bytes, self.demand.objects()) - self.demand.replaced()
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
    pub(crate) fn refused(&self) -> Option<Refusal> {
        // A cut closes the meter, so that the lock is not needed for all the others.
        if !self.meter.is_closed() {
            return None;
        }
        let books = self.books();
        let refused = books.refusal.as_ref()?;
        Some(refused.refusal().clone())
    }

    pub(crate) fn take_unread(&self) -> Option<Unread> {
        self.books().unread.take()
    }

    /// Ends the reservation, if this is the first to do so. The volume's part is done here; what there is
    /// to commit is returned.
    pub(crate) fn end(&self, success: bool) -> Ended<Q::Hold> {
        self.end_in(self.books(), success)
    }

    /// Ends the reservation as a success, if the body has been read. None if it still is.
    pub(crate) fn end_if_read(&self) -> Option<Ended<Q::Hold>> {
        let books = self.books();
        books.body_ended.then(|| self.end_in(books, true))
    }

    fn end_in(&self, mut books: MutexGuard<'_, Books<Q::Hold>>, success: bool) -> Ended<Q::Hold> {
        if std::mem::replace(&mut books.ended, true) {
            return Ended::Before;
        }
        self.meter.close();
        let received = self.meter.received();
        let stored = if success {
            books.report.stored.unwrap_or(received)
        } else {
            0
        };
        if let Some(volume) = &self.settings.volume {
            // After a failure the partial file may still be there: what was read stays claimed until
            // the probe has looked.
            let on_disk = stored
                .max(if success { 0 } else { received })
                .max(books.written);
            let blocks = volume
                .in_blocks(Amount::new(on_disk, books.blocks.objects))
                .bytes
                .min(books.blocks.bytes);
            let settling = blocks.saturating_sub(books.settled);
            let left = books.blocks.bytes - books.settled - settling;
            volume.settle(Amount::new(settling, books.blocks.objects));
            volume.release(Amount::bytes(left));
        }
        let (hold, tickets) = (books.hold.take(), books.tickets.take());
        let made = books.report.made.unwrap_or(self.demand.objects());
        let change = Change::between(Amount::new(stored, made), books.replaced);
        drop(books);
        // Outside the lock, as both are others' code: dropping a hold releases it.
        let hold = hold.filter(|_| success);
        drop(tickets);
        let line = &self.settings.quota_line;
        if hold.is_none() {
            line.ring();
        }
        Ended::Now(hold.map(|hold| (hold, change)))
    }

    fn books(&self) -> MutexGuard<'_, Books<Q::Hold>> {
        // Whole between any two statements; and a reservation must end whatever panicked.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tickets(&self) -> Arc<Tickets> {
        let mut books = self.books();
        Arc::clone(
            books
                .tickets
                .get_or_insert_with(|| Arc::new(Tickets::new(&self.settings))),
        )
    }
}

impl Tickets {
    fn new<Q>(settings: &Settings<Q>) -> Self {
        let volume = settings.volume.as_ref();
        Self {
            volume: volume.map(|volume| volume.filesystem().line.ticket()),
            quota: settings.quota_line.ticket(),
        }
    }
}

impl<Q> Cell<Q>
where
    Q: QuotaSource + Send + Sync + 'static,
{
    /// Sets more aside: `want` bytes, or at least `need`. First on the volume, then in the scopes.
    async fn set_more_aside(self: Arc<Self>, need: u64, want: u64) -> Result<(), Refused> {
        let tickets = self.tickets();
        let extra = Extra::claim(&self, &tickets, need, want).await?;
        let held = self.hold_more(&tickets, need, extra.bytes).await?;
        extra.keep(held)
    }

    /// Grows the hold, and returns by how much.
    async fn hold_more(&self, tickets: &Tickets, need: u64, want: u64) -> Result<u64, Refused> {
        if self.scopes.is_empty() {
            return Ok(want);
        }
        let keys: Vec<Shortage> = self.scopes.iter().cloned().map(Some).collect();
        let patience = self.settings.patience;
        tickets
            .quota
            .grow(patience, || async {
                if tickets.quota.yields(&keys) {
                    let refusal = Refusal::from(Fault::new(Cause::QuotaExceeded, Resource::Bytes));
                    return Err(Short {
                        of: keys.first().cloned(),
                        error: Refused::new(refusal),
                    });
                }
                match self.try_hold(want).await {
                    Err(Short { of: Some(_), .. }) if need < want => {
                        self.try_hold(need).await.map(|()| need)
                    }
                    tried => tried.map(|()| want),
                }
                .map_err(|short| Short {
                    of: short.of.filter(|_| tickets.quota.has_company()),
                    ..short
                })
            })
            .await
    }

    async fn try_hold(&self, bytes: u64) -> Result<(), Short<Refused>> {
        let growth = {
            let mut books = self.books();
            // What replacing gives back comes first.
            let reserved = self.meter.reserved();
            let free = |reserved: u64| reserved.saturating_sub(books.replaced.bytes);
            let more = free(reserved.saturating_add(bytes)) - free(reserved);
            match &mut books.hold {
                Some(hold) if more > 0 => hold.grow(Amount::bytes(more)),
                // Let in without a hold, while the source was away.
                _ => return Ok(()),
            }
        };
        match self.settings.bounded(growth).await {
            Ok(()) => Ok(()),
            Err(QuotaError::Exceeded(exceeded)) => Err(Short {
                of: Some(Some(exceeded.scope.clone())),
                error: Refused::new(refuse_exceeded(&exceeded)),
            }),
            Err(_) if self.settings.quota_outage == Outage::Admit => Ok(()),
            Err(_) => Err(Short {
                of: None,
                error: Refused::new(Refusal::unavailable()),
            }),
        }
    }
}

/// A claim on the volume that is not the reservation's yet. Dropped, it is given back.
struct Extra<'a, Q: QuotaSource> {
    cell: &'a Cell<Q>,
    bytes: u64,
    blocks: Amount,
}

impl<'a, Q: QuotaSource> Extra<'a, Q> {
    async fn claim(
        cell: &'a Cell<Q>,
        tickets: &Tickets,
        need: u64,
        want: u64,
    ) -> Result<Self, Refused> {
        let (Some(volume), Some(ticket)) = (&cell.settings.volume, &tickets.volume) else {
            return Ok(Self {
                cell,
                bytes: want,
                blocks: Amount::ZERO,
            });
        };
        let filesystem = volume.filesystem();
        let begun = filesystem.begun();
        ticket
            .grow(cell.settings.patience, || async {
                // With little room left, small grants: what one upload holds and does not need,
                // another lacks.
                let want = want.min(volume.room() / 8).max(need);
                let shortfall = if ticket.yields(&[None]) {
                    volume.full()
                } else {
                    match cell.claim_more(want).or_else(|_| cell.claim_more(need)) {
                        Ok((bytes, blocks)) => {
                            return Ok(Self {
                                cell,
                                bytes,
                                blocks,
                            });
                        }
                        Err(shortfall) => shortfall,
                    }
                };
                filesystem.want_reading();
                let is_waiting_of_use = filesystem.published() <= begun
                    || ticket.has_company()
                    || volume.could_have_room(Amount::bytes(need), 0, cell.in_flight());
                Err(Short {
                    of: (is_waiting_of_use && !matches!(shortfall, Shortfall::Unknown))
                        .then_some(None),
                    error: Refused::new(refuse_shortfall(shortfall)),
                })
            })
            .await
    }

    /// Makes it the reservation's: as many bytes of it as the scopes hold too.
    fn keep(mut self, held: u64) -> Result<(), Refused> {
        let mut books = self.cell.books();
        if books.ended {
            // The answer came first. Nothing more can be stored.
            return Err(Refused::new(Refusal::unavailable()));
        }
        let kept = if self.bytes == held {
            self.blocks
        } else {
            Amount::bytes(self.cell.blocks_for_more(held, books.blocks.bytes))
        };
        books.blocks = books.blocks + kept;
        self.blocks = self.blocks - kept;
        self.cell.meter.reserved.fetch_add(held, Ordering::AcqRel);
        Ok(())
    }
}

impl<Q: QuotaSource> Drop for Extra<'_, Q> {
    fn drop(&mut self) {
        if let Some(volume) = &self.cell.settings.volume {
            volume.release(self.blocks);
        }
    }
}

impl<Q: QuotaSource> Cell<Q> {
    /// Claims `bytes` more on the volume.
    fn claim_more(&self, bytes: u64) -> Result<(u64, Amount), Shortfall> {
        let Some(volume) = &self.settings.volume else {
            return Ok((bytes, Amount::ZERO));
        };
        let claimed = self.books().blocks.bytes;
        let blocks = Amount::bytes(self.blocks_for_more(bytes, claimed));
        volume.claim(blocks, 0).map(|blocks| (bytes, blocks))
    }

    /// What this request has claimed and not settled.
    fn in_flight(&self) -> Amount {
        let books = self.books();
        books.blocks - Amount::bytes(books.settled)
    }

    /// How many blocks, in bytes, it takes beside those claimed to set `bytes` more aside.
    fn blocks_for_more(&self, bytes: u64, claimed: u64) -> u64 {
        let reserved = Amount::bytes(self.meter.reserved().saturating_add(bytes));
        let volume = self.settings.volume.as_ref();
        volume.map_or(0, |volume| {
            volume.in_blocks(reserved).bytes.saturating_sub(claimed)
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

    fn grow(self: Arc<Self>, need: u64, want: u64) -> Growth {
        Box::pin(self.set_more_aside(need, want))
    }

    fn replaces(self: Arc<Self>, replaced: Amount) -> Growth {
        Box::pin(async move {
            let growth = {
                let mut books = self.books();
                let reserved = Amount::new(self.meter.reserved(), self.demand.objects());
                let more = (reserved - replaced) - (reserved - books.replaced);
                match &mut books.hold {
                    Some(hold) if !more.is_zero() => Some(hold.grow(more)),
                    _ => None,
                }
            };
            if let Some(growth) = growth {
                match self.settings.bounded(growth).await {
                    Ok(()) => {}
                    Err(QuotaError::Exceeded(exceeded)) => {
                        return Err(Refused::new(refuse_exceeded(&exceeded)));
                    }
                    Err(_) if self.settings.quota_outage == Outage::Admit => {}
                    Err(_) => return Err(Refused::new(Refusal::unavailable())),
                }
            }
            self.books().replaced = replaced;
            Ok(())
        })
    }

    fn next_grant(&self) -> u64 {
        self.settings.grants.next(self.meter.reserved())
    }

    fn cut(&self, refused: &Refused) {
        self.meter.close();
        self.books().refusal.get_or_insert_with(|| refused.clone());
    }

    fn body_ended(&self, end: BodyEnd) {
        let mut books = self.books();
        books.body_ended = true;
        books.body_failed = matches!(end, BodyEnd::Failed);
        if let BodyEnd::Read(unread) = end {
            books.unread = unread;
        }
        let (answered, failed) = (books.answered, books.body_failed);
        drop(books);
        if answered && failed {
            self.end(false);
        } else if answered && let Some((hold, change)) = self.end(true).into_commit() {
            // Nobody is left to wait for it; the source sees to it by its contract.
            drop(hold.commit(change));
        }
    }

    fn answer_ended(self: Arc<Self>, success: bool) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut books = self.books();
        let wait = success && !books.body_ended && books.refusal.is_none();
        books.answered = wait;
        // The handler answered before it had read everything, so that it cannot have known.
        let success = success && books.refusal.is_none() && !books.body_failed;
        drop(books);
        let commit = if wait {
            None
        } else {
            self.end(success).into_commit()
        };
        // Called here, not in the future: nobody may be left to poll that.
        let commit = commit.map(|(hold, change)| hold.commit(change));
        Box::pin(async move {
            if let Some(commit) = commit {
                within(self.settings.quota_timeout, commit).await;
                self.settings.quota_line.ring();
            }
        })
    }

    fn commit(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let was_cut = self.books().refusal.is_some();
        let ended = if was_cut {
            Ended::Before
        } else {
            self.end(true)
        };
        let is_first = matches!(ended, Ended::Now(_));
        let commit = ended
            .into_commit()
            .map(|(hold, change)| hold.commit(change));
        Box::pin(async move {
            if let Some(commit) = commit {
                within(self.settings.quota_timeout, commit).await;
                self.settings.quota_line.ring();
            }
            is_first
        })
    }

    fn has_ended(&self) -> bool {
        self.books().ended
    }

    fn refusal(&self) -> Option<Refusal> {
        self.refused()
    }
}

impl<Q: QuotaSource> Drop for Cell<Q> {
    fn drop(&mut self) {
        // Whatever happened: it ends.
        self.end(false);
    }
}

/// What a client is told when the volume has no room.
pub(crate) fn refuse_shortfall(shortfall: Shortfall) -> Refusal {
    match shortfall {
        Shortfall::Full { fault, is_hopeless } => Refusal::from(fault).with_temporary(!is_hopeless),
        Shortfall::Unknown => Refusal::unavailable(),
    }
}

/// What a client is told when a scope has no room: the figures too, if they are its own.
pub(crate) fn refuse_exceeded(exceeded: &Exceeded) -> Refusal {
    let refusal = Refusal::from(Fault::new(exceeded.cause, exceeded.resource))
        .with_temporary(exceeded.required <= exceeded.limit);
    if exceeded.scope.is_disclosed() {
        refusal.with_figures(Figures {
            limit: exceeded.limit,
            used: exceeded.used,
            required: exceeded.required,
        })
    } else {
        refusal
    }
}
