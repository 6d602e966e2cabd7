//! The lease of one scope: what this node may give away of it, what requests hold, and what was charged.

use std::{mem, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use super::super::{HoldId, Keep, Settlement};
use crate::{
    amount::Amount,
    cause::Resource,
    quota::{Change, Exceeded},
    scope::Scope,
};

/// How often leases are reviewed. Two windows and a round trip are less than the second after which idle budget is back in
/// the store.
pub(super) const WINDOW: Duration = Duration::from_millis(400);
/// How many requests within two windows make a scope worth a lease.
const HOT: u32 = 8;
/// The share of what is left that a lease takes at most, as its denominator. The rest is for other nodes.
const SHARE: u64 = 8;
/// How long a scope has no lease after a refusal.
const QUIET: Duration = Duration::from_secs(1);
/// After how many windows charges are given to the store.
const SETTLED_AFTER: u8 = 2;

/// The hold in the store is the sum of `free`, `held`, and what `spent` has added.
///
/// That is so until `sure`, by the clock of this node. The clock only measures how much time has passed, so it need not
/// agree with any other. After `sure`, the store may have given everything to other nodes.
#[derive(Default)]
pub(super) struct Lease {
    in_store: InStore,
    /// When a soft limit that usage is above may be enforced. From then on the store decides.
    in_force_from: Option<Instant>,
    /// What the next requests may take.
    free: Amount,
    /// What requests under way have taken.
    held: Amount,
    spent: Option<Spent>,
    /// How much should be free.
    target: Amount,
    this: Window,
    last: Window,
    pub(super) calls: Calls,
}

/// What the store has of a lease.
struct InStore {
    id: HoldId,
    /// Whether the store may have a hold under this id.
    is_there: bool,
    /// Until when it certainly has it.
    sure: Option<Instant>,
    /// Whether the hold in the store may differ from what is recorded here.
    needs_resync: bool,
}

impl Default for InStore {
    fn default() -> Self {
        Self {
            id: HoldId::unique(),
            is_there: false,
            sure: None,
            needs_resync: false,
        }
    }
}

/// What has been charged, and the store has not been told. Charges that cancel out are recorded too: they have moved room
/// between `free` and `spent` all the same.
#[derive(Clone, Copy, Default)]
struct Spent {
    change: Change,
    /// For how many windows the store has not been told.
    windows: u8,
}

/// The calls to the store about a lease.
#[derive(Default)]
pub(super) struct Calls {
    /// How many requests ask the store again with everything leased given back. Nothing is leased until they are done.
    pub(super) asking_again: u32,
    /// Until when nothing is leased.
    quiet: Option<Instant>,
    /// Whether a task is asking the store for more.
    pub(super) is_growing: bool,
    /// Whether a task is giving back to the store what is not needed.
    pub(super) is_turning: bool,
    /// Held during every call.
    pub(super) gate: Arc<Mutex<()>>,
}

impl Calls {
    fn is_quiet(&self, now: Instant) -> bool {
        self.quiet.is_some_and(|quiet| quiet > now)
    }
}

/// The requests of one window.
#[derive(Clone, Copy, Default)]
struct Window {
    /// How many there were, and how much they took.
    requests: u32,
    asked: Amount,
    /// How much was free all the time.
    idle: Amount,
}

/// How much of what is free goes back to the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Back {
    /// What was free for a whole window.
    Idle,
    All,
}

/// How much more to lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Chunk {
    pub(super) amount: Amount,
    /// How much must fit, so that other nodes find some.
    pub(super) left: Amount,
    /// Whether it is the first of its hold.
    is_first: bool,
}

impl Lease {
    /// Counts a request. Returns whether it can be served from what is free.
    pub(super) fn asked(&mut self, need: Amount, now: Instant) -> bool {
        self.this.requests = self.this.requests.saturating_add(1);
        self.expire(now);
        fits(need, self.free)
    }

    /// Counts the demand of a request that was admitted. A refused one says nothing of what is needed.
    pub(super) fn let_in(&mut self, demand: Amount) {
        self.this.asked = self.this.asked + demand;
    }

    /// Takes a demand from what is free. [`asked`](Self::asked) has returned true.
    pub(super) fn take(&mut self, demand: Amount) {
        self.let_in(demand);
        self.free = self.free - demand;
        self.held = self.held + demand;
        self.this.idle = least(self.this.idle, self.free);
    }

    /// Returns what a request has taken.
    ///
    /// The clock is not read here: [`asked`](Self::asked) drops what has expired before it is taken again.
    pub(super) fn end(&mut self, held: Amount) {
        self.held = self.held - held;
        if self.in_store.sure.is_some() {
            self.free = self.free + held;
        } else {
            self.in_store.needs_resync |= self.in_store.is_there;
        }
    }

    /// Records a charge, for which room is no longer free.
    pub(super) fn spend(&mut self, change: Change) {
        // Saturates: a charge beyond everything that is free is on the disk already.
        self.free = self.free - change.gain();
        self.this.idle = least(self.this.idle, self.free);
        if change != Change::ZERO {
            let spent = self.spent.get_or_insert_default();
            spent.change = spent.change.then(change);
        }
    }

    /// The id of the hold in the store, and of its charges in the journal.
    pub(super) fn id(&self) -> HoldId {
        self.in_store.id
    }

    /// Whether there is anything that the store should know before it refuses a request.
    pub(super) fn has_anything(&self) -> bool {
        let calls = &self.calls;
        self.in_store.is_there || calls.is_growing || calls.is_turning || self.spent.is_some()
    }

    /// Whether the store may have a hold for it.
    pub(super) fn is_there(&self) -> bool {
        self.in_store.is_there
    }

    /// Whether there are enough requests to be worth a lease.
    pub(super) fn is_hot(&self) -> bool {
        self.this.requests.saturating_add(self.last.requests) >= HOT
    }

    /// Whether more should be leased, before a request finds too little.
    pub(super) fn is_low(&self) -> bool {
        self.free.bytes < self.target.bytes / 4 || self.free.objects < self.target.objects / 4
    }

    /// Whether the store may be asked for more now.
    pub(super) fn may_grow(&self, now: Instant) -> bool {
        let calls = &self.calls;
        !calls.is_growing && calls.asking_again == 0 && self.is_hot() && !calls.is_quiet(now)
    }

    /// Leases nothing for a while, because the limit is near or the store is away.
    pub(super) fn quiet(&mut self, now: Instant) {
        self.calls.quiet = Some(now + QUIET);
    }

    /// How much more is needed for about a second.
    pub(super) fn wants(&mut self, now: Instant) -> Option<Chunk> {
        if self.calls.asking_again > 0 || self.calls.is_quiet(now) {
            return None;
        }
        self.expire(now);
        let is_first = self.in_store.sure.is_none();
        if is_first && (self.in_store.is_there || self.spent.is_some() || !self.held.is_zero()) {
            // The store has to be told first what it does not know of the previous hold.
            self.in_store.needs_resync = true;
            return None;
        }
        // A window that has just begun says little.
        let window = self.last.asked.max(self.this.asked);
        self.target = target(window);
        let amount = self.target - self.free;
        let left = |amount: u64| amount.saturating_mul(SHARE);
        (!amount.is_zero()).then(|| Chunk {
            amount,
            left: Amount::new(left(amount.bytes), left(amount.objects)),
            is_first,
        })
    }

    /// A smaller chunk, where the first does not fit. None when it would not be worth a round trip.
    pub(super) fn wants_less(&self, mut chunk: Chunk, full: &Exceeded) -> Option<Chunk> {
        let share = full.limit.saturating_sub(full.used) / SHARE;
        let requests = u64::from(self.this.requests.saturating_add(self.last.requests)).max(1);
        let lately = self.this.asked + self.last.asked;
        let Chunk { amount, left, .. } = &mut chunk;
        let (amount, left, lately) = match full.resource {
            Resource::Objects => (&mut amount.objects, &mut left.objects, lately.objects),
            _ => (&mut amount.bytes, &mut left.bytes, lately.bytes),
        };
        *amount = share.min(*amount);
        *left = *amount;
        let usual = lately / requests;
        let is_worth_it = share >= usual.saturating_mul(HOT.into()).max(1);
        is_worth_it.then_some(chunk)
    }

    /// Returns the hold that is to grow in the store. Until the answer, it is unknown what the store holds.
    pub(super) fn begin_growing(&mut self) -> HoldId {
        self.in_store.is_there = true;
        self.in_store.id
    }

    /// The store has admitted a chunk, and holds it until `sure`.
    pub(super) fn grown(&mut self, chunk: Chunk, sure: Instant, now: Instant) {
        self.expire(now);
        if sure <= now || self.in_store.sure.is_none() && !chunk.is_first {
            // The store may hold this, and nothing of what it held before.
            self.in_store.needs_resync = true;
            return;
        }
        self.free = self.free + chunk.amount;
        self.in_store.sure = Some(sure);
    }

    /// Notes when a soft limit will be enforced, by the last answer of the store.
    pub(super) fn holds_from(&mut self, in_force_from: Option<Instant>) {
        self.in_force_from = in_force_from;
    }

    /// The store has refused a chunk.
    pub(super) fn not_grown(&mut self, chunk: Chunk) {
        self.in_store.is_there &= !chunk.is_first;
    }

    /// The store has failed, and may have made the hold.
    pub(super) fn lost(&mut self, now: Instant) {
        self.in_store.needs_resync = true;
        self.quiet(now);
    }

    /// Begins a new window. Returns whether the store should be told something.
    pub(super) fn next_window(&mut self, time_to_live: Duration, now: Instant) -> bool {
        self.expire(now);
        // As much as a chunk is not idle.
        let idle = self.this.idle - target(self.this.asked);
        self.last = Window { idle, ..self.this };
        self.this = Window {
            idle: self.free,
            ..Window::default()
        };
        let mut is_due = false;
        if let Some(spent) = &mut self.spent {
            spent.windows = spent.windows.saturating_add(1);
            is_due = spent.windows >= SETTLED_AFTER;
        }
        is_due || !idle.is_zero() || self.in_store.needs_resync || self.is_old(time_to_live, now)
    }

    /// Whether it is to be renewed: three times in its time to live.
    fn is_old(&self, time_to_live: Duration, now: Instant) -> bool {
        let sure_until = now + time_to_live * 2 / 3;
        let InStore { is_there, sure, .. } = self.in_store;
        is_there && sure.is_none_or(|sure| sure < sure_until)
    }

    /// Whether it can be forgotten.
    pub(super) fn is_empty(&self, now: Instant) -> bool {
        !self.has_anything()
            && self.held.is_zero()
            && self.calls.asking_again == 0
            && self.this.requests == 0
            && self.last.requests == 0
            && !self.calls.is_quiet(now)
            // No call to the store is under way or waits for the gate.
            && Arc::strong_count(&self.calls.gate) == 1
    }

    /// The settlement that tells the store what was charged, and how much to hold from now on.
    pub(super) fn turn(
        &mut self,
        scope: &Scope,
        back: Back,
        time_to_live: Duration,
        now: Instant,
    ) -> Option<Settlement> {
        self.expire(now);
        let free = match back {
            Back::Idle => self.free - self.last.idle,
            Back::All => Amount::ZERO,
        };
        let has_news = free != self.free || self.spent.is_some() || self.in_store.needs_resync;
        if !has_news && !self.is_old(time_to_live, now) {
            return None;
        }
        self.free = free;
        self.last.idle = Amount::ZERO;
        self.this.idle = least(self.this.idle, free);
        let spent = self.spent.take().unwrap_or_default();
        let ended = mem::take(&mut self.in_store);
        let mut settlement = Settlement::new(ended.id, scope.clone(), spent.change);
        let amount = self.free + self.held;
        if !amount.is_zero() {
            self.in_store.is_there = true;
            self.in_store.sure = ended.sure;
            settlement.keep = Some(Keep::new(self.in_store.id, amount, time_to_live));
        }
        Some(settlement)
    }

    /// The store has taken the last settlement, and holds what it keeps until `sure`.
    pub(super) fn turned(&mut self, sure: Instant, now: Instant) {
        if !self.in_store.is_there {
            return;
        }
        let was_sure = self.in_store.sure.is_some();
        self.expire(now);
        if now >= sure {
            self.in_store.needs_resync = true;
        } else if self.in_store.sure.is_some() || !was_sure {
            // If the lease was not sure before, nothing was free, so the settlement is all that the store holds.
            self.in_store.sure = Some(sure);
        }
    }

    /// Drops what is free once the store may have given it to others, or may refuse it.
    fn expire(&mut self, now: Instant) {
        let has_passed = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if has_passed(self.in_store.sure) {
            self.lapse();
        }
        if has_passed(self.in_force_from) && !self.free.is_zero() {
            // It goes back to the store, which still holds it.
            self.free = Amount::ZERO;
            self.this.idle = Amount::ZERO;
            self.last.idle = Amount::ZERO;
            self.in_store.needs_resync |= self.in_store.is_there;
        }
    }

    /// Drops what is free: the store may have given it to others.
    pub(super) fn lapse(&mut self) {
        self.in_store.sure = None;
        self.free = Amount::ZERO;
        self.this.idle = Amount::ZERO;
        self.last.idle = Amount::ZERO;
        // What requests have taken must be held again.
        self.in_store.needs_resync |= self.in_store.is_there;
    }
}

/// How much should be free, by the demand of one window: enough for four.
fn target(asked: Amount) -> Amount {
    let four = |amount: u64| amount.saturating_mul(4);
    Amount::new(four(asked.bytes), four(asked.objects))
}

fn fits(need: Amount, free: Amount) -> bool {
    need.bytes <= free.bytes && need.objects <= free.objects
}

fn least(one: Amount, other: Amount) -> Amount {
    Amount::new(one.bytes.min(other.bytes), one.objects.min(other.objects))
}
