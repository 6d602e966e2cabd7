//! One scope's lease: how much this node may give away of it, and what has become of it.

use std::{mem, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use super::super::{Ceilings, HoldId, Keep, Reserve, Settlement};
use crate::{
    amount::Amount,
    fault::Resource,
    quota::{Change, Exceeded},
    scope::{Scope, Scopes},
};

/// How often a lease is looked at: two such times and a round trip are less than the second after which idle budget is
/// back in its store.
pub(super) const WINDOW: Duration = Duration::from_millis(400);
/// So many requests within two windows make a scope worth a lease.
const HOT: u32 = 8;
/// A lease is so small a share of what is left that others find some, too.
const SHARE: u64 = 8;
/// How long a scope has no lease after its limit has shown.
const QUIET: Duration = Duration::from_secs(1);
/// Charges are given to the store after so many windows.
const SETTLED_AFTER: u8 = 2;

/// What the store holds for this node is `free`, `held`, and what `spent` has added.
///
/// That is so until `sure`, by this node's own clock: it has only measured a time, and nobody compares it with another
/// one's. After it, the store may have given all of it to others.
pub(super) struct Lease {
    id: HoldId,
    /// Whether the store may hold anything under this id.
    is_there: bool,
    sure: Option<Instant>,
    /// For whoever asks next.
    free: Amount,
    /// With requests that are under way.
    held: Amount,
    /// What has been stored, and the store has not been told.
    spent: Change,
    /// Whether there is any of it: what cancels out has moved room all the same.
    has_spent: bool,
    /// For how many windows it has not.
    windows: u8,
    /// What the store holds is not what is written here.
    is_off: bool,
    /// How much should be free.
    target: Amount,
    /// Whether what is asked for is all that there is.
    is_first: bool,
    this: Window,
    last: Window,
    /// How many have the store decide with all that is leased given back. Nothing is leased anew until they know.
    pub(super) deciding: u32,
    quiet: Option<Instant>,
    /// Whether somebody is on the way to the store for more.
    pub(super) is_growing: bool,
    /// Whether somebody is on the way to it with what is not needed.
    pub(super) is_turning: bool,
    /// Held by whoever talks with the store about this lease.
    pub(super) gate: Arc<Mutex<()>>,
}

/// What has happened lately.
#[derive(Clone, Copy, Default)]
struct Window {
    /// How many have asked, and for how much.
    requests: u32,
    asked: Amount,
    /// How much has been free all the time.
    idle: Amount,
}

/// How much of what is free goes back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Back {
    /// What has idled.
    Idle,
    All,
}

/// How much more is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Chunk {
    pub(super) amount: Amount,
    /// This must fit, so that others find some.
    pub(super) left: Amount,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            id: HoldId::unique(),
            is_there: false,
            sure: None,
            free: Amount::ZERO,
            held: Amount::ZERO,
            spent: Change::ZERO,
            has_spent: false,
            windows: 0,
            is_off: false,
            target: Amount::ZERO,
            is_first: false,
            this: Window::default(),
            last: Window::default(),
            deciding: 0,
            quiet: None,
            is_growing: false,
            is_turning: false,
            gate: Arc::default(),
        }
    }
}

impl Lease {
    /// Somebody asks. Whether that much is free.
    pub(super) fn asked(&mut self, need: Amount, now: Instant) -> bool {
        self.this.requests = self.this.requests.saturating_add(1);
        self.expire(now);
        fits(need, self.free)
    }

    /// Somebody was let in with so much. What is refused says nothing of what is needed.
    pub(super) fn let_in(&mut self, demand: Amount) {
        self.this.asked = self.this.asked + demand;
    }

    /// Gives away what is free: [`asked`](Self::asked) has said so.
    pub(super) fn take(&mut self, demand: Amount) {
        self.let_in(demand);
        self.free = self.free - demand;
        self.held = self.held + demand;
        self.this.idle = least(self.this.idle, self.free);
    }

    /// A request is over: what it took comes back.
    ///
    /// Whether it is still worth something is for whoever takes it to say: that saves a look at the clock.
    pub(super) fn end(&mut self, held: Amount) {
        self.held = self.held - held;
        if self.sure.is_some() {
            self.free = self.free + held;
        } else {
            self.is_off |= self.is_there;
        }
    }

    /// The store is to be told of this. Room for it is no longer free.
    pub(super) fn spend(&mut self, change: Change) {
        // What is beyond all of it is on the disk already.
        self.free = self.free - change.gain();
        self.this.idle = least(self.this.idle, self.free);
        self.spent = self.spent.then(change);
        self.has_spent |= change != Change::ZERO;
    }

    /// The name of its hold in the store, and of what is charged to it.
    pub(super) fn id(&self) -> HoldId {
        self.id
    }

    /// Whether there is anything that the store should know before somebody is refused.
    pub(super) fn has_anything(&self) -> bool {
        self.is_there || self.is_growing || self.is_turning || self.has_spent
    }

    /// Whether the store may hold something for it.
    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    /// Whether so many ask that leasing is worth it.
    pub(super) fn is_hot(&self) -> bool {
        self.this.requests.saturating_add(self.last.requests) >= HOT
    }

    /// Whether more should be fetched, before somebody misses it.
    pub(super) fn is_low(&self) -> bool {
        self.free.bytes < self.target.bytes / 4 || self.free.objects < self.target.objects / 4
    }

    /// Whether anybody may ask the store for more now.
    pub(super) fn may_grow(&self, now: Instant) -> bool {
        !self.is_growing
            && self.deciding == 0
            && self.is_hot()
            && self.quiet.is_none_or(|quiet| quiet <= now)
    }

    /// The limit has shown, or the store is away: all is asked of the store, for a while.
    pub(super) fn quiet(&mut self, now: Instant) {
        self.quiet = Some(now + QUIET);
    }

    /// How much more would do for about a second.
    pub(super) fn wants(&mut self, now: Instant) -> Option<Chunk> {
        if self.deciding > 0 || self.quiet.is_some_and(|quiet| quiet > now) {
            return None;
        }
        self.expire(now);
        self.is_first = self.sure.is_none();
        if self.is_first && (self.is_there || self.has_spent || !self.held.is_zero()) {
            // First the store has to be told.
            self.is_off = true;
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
        })
    }

    /// A smaller one, where the first does not fit. None when it would not be worth its way.
    pub(super) fn wants_less(&self, chunk: Chunk, full: &Exceeded) -> Option<Chunk> {
        let share = full.limit.saturating_sub(full.used) / SHARE;
        let requests = u64::from(self.this.requests.saturating_add(self.last.requests)).max(1);
        let lately = self.this.asked + self.last.asked;
        let Chunk {
            mut amount,
            mut left,
        } = chunk;
        let usual = match full.resource {
            Resource::Objects => {
                amount.objects = amount.objects.min(share);
                left.objects = amount.objects;
                lately.objects / requests
            }
            _ => {
                amount.bytes = amount.bytes.min(share);
                left.bytes = amount.bytes;
                lately.bytes / requests
            }
        };
        let is_worth_it = share >= usual.saturating_mul(HOT.into()).max(1);
        is_worth_it.then_some(Chunk { amount, left })
    }

    /// What to ask of the store. From here on nobody knows what it holds, until it has answered.
    pub(super) fn grow(
        &mut self,
        scope: &Scope,
        chunk: Chunk,
        default: Ceilings,
        time_to_live: Duration,
    ) -> Reserve {
        self.is_there = true;
        Reserve {
            id: self.id,
            scopes: scope.clone().into(),
            amount: chunk.amount,
            expected: chunk.left,
            default,
            time_to_live,
        }
    }

    /// The store has said yes to what was asked at that time.
    pub(super) fn grown(
        &mut self,
        amount: Amount,
        asked: Instant,
        time_to_live: Duration,
        now: Instant,
    ) {
        self.expire(now);
        let sure = asked + time_to_live;
        if sure <= now || self.sure.is_none() && !self.is_first {
            // It may hold this, and nothing of what it held before.
            self.is_off = true;
            return;
        }
        self.free = self.free + amount;
        self.sure = Some(sure);
    }

    /// The store has said no.
    pub(super) fn not_grown(&mut self) {
        self.is_there &= !self.is_first;
    }

    /// The store has said nothing, and may have done it.
    pub(super) fn lost(&mut self, now: Instant) {
        self.is_off = true;
        self.quiet(now);
    }

    /// A window is over. Whether the store should be told something.
    pub(super) fn next_window(&mut self, time_to_live: Duration, now: Instant) -> bool {
        self.expire(now);
        // Not idle is what lasts for as long as a chunk does.
        let idle = self.this.idle - target(self.this.asked);
        self.last = Window { idle, ..self.this };
        self.this = Window {
            idle: self.free,
            ..Window::default()
        };
        if self.has_spent {
            self.windows = self.windows.saturating_add(1);
        }
        !idle.is_zero()
            || self.is_off
            || self.windows >= SETTLED_AFTER
            || self.is_old(time_to_live, now)
    }

    /// Whether it is to be renewed: three times as often as it would have to be.
    fn is_old(&self, time_to_live: Duration, now: Instant) -> bool {
        let sure_until = now + time_to_live * 2 / 3;
        self.is_there && self.sure.is_none_or(|sure| sure < sure_until)
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_empty(&self, now: Instant) -> bool {
        !self.has_anything()
            && self.held.is_zero()
            && self.deciding == 0
            && self.this.requests == 0
            && self.last.requests == 0
            && self.quiet.is_none_or(|quiet| quiet <= now)
            // Nobody talks about it.
            && Arc::strong_count(&self.gate) == 1
    }

    /// What to tell the store: what has been stored, and how much it holds from now on.
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
        let has_news = free != self.free || self.has_spent || self.is_off;
        if !has_news && !self.is_old(time_to_live, now) {
            return None;
        }
        self.free = free;
        self.last.idle = Amount::ZERO;
        self.this.idle = least(self.this.idle, free);
        self.is_off = false;
        self.has_spent = false;
        self.windows = 0;
        let ended = mem::replace(&mut self.id, HoldId::unique());
        let amount = self.free + self.held;
        self.is_there = !amount.is_zero();
        if !self.is_there {
            // Whatever comes next is the first.
            self.sure = None;
        }
        Some(Settlement {
            id: ended,
            scopes: Scopes::from(scope.clone()),
            change: mem::take(&mut self.spent),
            keep: self.is_there.then_some(Keep {
                id: self.id,
                amount,
                time_to_live,
            }),
        })
    }

    /// The store has taken that.
    pub(super) fn turned(&mut self, asked: Instant, time_to_live: Duration, now: Instant) {
        if !self.is_there {
            return;
        }
        let was_sure = self.sure.is_some();
        self.expire(now);
        let sure = asked + time_to_live;
        if now >= sure {
            self.is_off = true;
        } else if self.sure.is_some() || !was_sure {
            // What it was not sure of before, it had nothing of that is free.
            self.sure = Some(sure);
        }
    }

    /// What is not sure any more is not given away.
    fn expire(&mut self, now: Instant) {
        if self.sure.is_some_and(|sure| sure <= now) {
            self.sure = None;
            self.free = Amount::ZERO;
            self.this.idle = Amount::ZERO;
            self.last.idle = Amount::ZERO;
            // What requests hold is to be held again.
            self.is_off |= self.is_there;
        }
    }
}

/// How much should be free where so much is asked for within a window: enough for four of them.
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
