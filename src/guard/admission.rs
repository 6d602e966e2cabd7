//! The admission of a demand: a claim on the volume, then a hold in the scopes.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{
    amount::Amount,
    outage::Outage,
    quota::{Answer, QuotaError, QuotaSource},
    refused::Refused,
    reservation::{Adapter, Context, Pending, Shared, Terms, Unkept, too_late},
    time::Bound,
    volume::{Claimed, WaitForRoom, Wanted},
};

/// The pause before a quota source is asked again. A store hears a little later of what was given back.
const PAUSE: Duration = Duration::from_millis(10);

/// When room was taken back for a demand in a scope. A store may not have heard of it yet.
type CameBack = Instant;

/// What has to be claimed on the volume.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Claim {
    /// The amount of the demand.
    Demanded,
    /// Nothing, because the body has no bound.
    Nothing,
    /// Another reservation holds `bytes` for this one, and of these, `unclaimed` have to be claimed again.
    Covered { bytes: u64, unclaimed: u64 },
}

/// A decision: ready, or pending.
pub(crate) enum Admit<Q: QuotaSource, A: Adapter> {
    Now(Result<Arc<Shared<Q, A>>, Refused>),
    Wait(Pin<Box<Admission<Q>>>),
}

pin_project! {
    /// A demand that waits for its decision. Dropped, it reserves nothing.
    #[project = AdmissionProj]
    pub(crate) enum Admission<Q: QuotaSource> {
        /// For room on the volume.
        Volume {
            room: WaitForRoom,
            terms: Option<(Arc<Context<Q>>, Terms)>,
            claim: Claim,
        },
        /// For the quota source.
        Quota {
            #[pin]
            hold: Q::Future,
            asked: Option<Instant>,
            time: Bound,
            pending: Option<Pending<Q>>,
            came_back: Option<CameBack>,
        },
        /// Before it asks the quota source again.
        Again {
            pause: Bound,
            pending: Option<Pending<Q>>,
            came_back: Option<CameBack>,
        },
    }
}

/// Reserves what `terms` say, as far as that can be decided at once. The adapter is made for a reservation.
#[inline(always)]
pub(crate) fn admit<Q: QuotaSource, A: Adapter>(
    context: &Arc<Context<Q>>,
    mut terms: Terms,
    claim: Claim,
    adapter: impl FnOnce() -> A,
) -> Admit<Q, A> {
    if context.rules.observer.is_some() {
        terms.rare = Some(terms.rare.unwrap_or_default());
    }
    let (bytes, least, expected) = wanted(context, &terms, claim);
    let mut claimed = Claimed {
        bytes,
        blocks: Amount::ZERO,
    };
    if let Some(volume) = terms.volume(context).filter(|_| needs_claim(claim)) {
        let wanted = Wanted {
            bytes,
            least,
            expected,
            objects: terms.demand.objects(),
            reach: terms.reach(context),
        };
        // There is nearly always room, and then nothing has to wait.
        claimed = match wanted.claim(volume) {
            Ok(claimed) => claimed,
            Err(shortfall) => {
                let room = WaitForRoom::new(wanted, shortfall, volume, context.rules.patience);
                return wait_for_room(context, terms, claim, room);
            }
        };
    }
    claimed.bytes = granted(claim, claimed.bytes);
    if terms.scopes.is_empty() || claim == Claim::Nothing {
        let context = Arc::clone(context);
        return Admit::Now(Ok(make(context, terms, claimed, None, adapter())));
    }
    // The source is foreign code, and may panic.
    let unkept = Unkept::new(context.volume.as_ref(), claimed.blocks);
    let (asked, expected) = (terms.asked(claimed.bytes), terms.expected(claimed.bytes));
    let answer = context.quota.reserve(&terms.scopes, asked, expected);
    unkept.keep();
    match answer {
        Answer::Now(Ok(hold)) => {
            let context = Arc::clone(context);
            Admit::Now(Ok(make(context, terms, claimed, Some(hold), adapter())))
        }
        answer => {
            let pending = Pending::new(Arc::clone(context), terms, claimed);
            by_answer(pending, answer, adapter, None)
        }
    }
}

#[inline(always)]
fn make<Q: QuotaSource, A: Adapter>(
    context: Arc<Context<Q>>,
    terms: Terms,
    claimed: Claimed,
    hold: Option<Q::Hold>,
    adapter: A,
) -> Arc<Shared<Q, A>> {
    Arc::new(Shared::new(context, terms, claimed, hold, adapter))
}

#[cold]
fn wait_for_room<Q: QuotaSource, A: Adapter>(
    context: &Arc<Context<Q>>,
    mut terms: Terms,
    claim: Claim,
    room: WaitForRoom,
) -> Admit<Q, A> {
    terms.begin_to_wait(&context.rules);
    let terms = Some((Arc::clone(context), terms));
    Admit::Wait(Box::pin(Admission::Volume { room, terms, claim }))
}

/// The bytes to claim, the smallest sufficient amount, and the amount that must fit in addition.
#[inline(always)]
fn wanted<Q>(context: &Context<Q>, terms: &Terms, claim: Claim) -> (u64, u64, u64) {
    let (demand, rules) = (&terms.demand, &context.rules);
    match (claim, demand.bytes()) {
        (Claim::Nothing, _) => (u64::MAX, 0, 0),
        (Claim::Covered { unclaimed, .. }, _) => (unclaimed, unclaimed, 0),
        (Claim::Demanded, Some(bytes)) => (bytes, bytes, demand.expected()),
        // The minimum is unknown. What a truncation frees is part of the first grant, as its blocks are claimed.
        (Claim::Demanded, None) if demand.has_no_size() => {
            let freed = terms.reach(context).freed();
            (rules.grants.first.max(freed), 1, 0)
        }
        (Claim::Demanded, None) => {
            let hinted = demand.expected().min(rules.hint_cap);
            (hinted, hinted, demand.expected())
        }
    }
}

/// Whether these terms would be admitted now. Reserves nothing.
pub(super) async fn would_fit<Q: QuotaSource>(
    context: &Context<Q>,
    terms: &Terms,
) -> Result<(), Refused> {
    let (_, least, expected) = wanted(context, terms, Claim::Demanded);
    let bytes = least.max(expected);
    if let Some(volume) = &context.volume {
        let on_volume = terms.reach(context).on_volume(bytes);
        let amount = Amount::new(on_volume, terms.demand.objects());
        let fits = volume.would_fit(amount);
        fits.map_err(|shortfall| Refused::from(shortfall).with_needed(amount))?;
    }
    if terms.scopes.is_empty() {
        return Ok(());
    }
    // What is only expected must fit, and is not held.
    let expected = terms.expected(bytes);
    let answer = context.quota.reserve(&terms.scopes, Amount::ZERO, expected);
    let decided = match answer.now() {
        Ok(decided) => decided,
        Err(deciding) => context.rules.bounded(deciding).await,
    };
    match decided {
        Ok(_) => Ok(()),
        Err(QuotaError::Unavailable(_)) if context.rules.quota_outage == Outage::Admit => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn needs_claim(claim: Claim) -> bool {
    match claim {
        Claim::Demanded => true,
        Claim::Nothing => false,
        Claim::Covered { unclaimed, .. } => unclaimed > 0,
    }
}

/// The bytes that are reserved if nothing, or only a part, is claimed.
fn granted(claim: Claim, wanted: u64) -> u64 {
    match claim {
        Claim::Covered { bytes, .. } => bytes,
        Claim::Demanded | Claim::Nothing => wanted,
    }
}

/// Asks the quota source, for a demand that had to wait.
fn ask_quota<Q: QuotaSource, A: Adapter>(
    pending: Pending<Q>,
    adapter: impl FnOnce() -> A,
    came_back: Option<CameBack>,
) -> Admit<Q, A> {
    if pending.scopes().is_empty() {
        return Admit::Now(Ok(reservation(pending, None, adapter)));
    }
    let answer = pending.ask();
    by_answer(pending, answer, adapter, came_back)
}

#[cold]
fn by_answer<Q: QuotaSource, A: Adapter>(
    mut pending: Pending<Q>,
    answer: Answer<Q::Future>,
    adapter: impl FnOnce() -> A,
    came_back: Option<CameBack>,
) -> Admit<Q, A> {
    let error = match answer {
        Answer::Now(Ok(hold)) => {
            return Admit::Now(Ok(reservation(pending, Some(hold), adapter)));
        }
        Answer::Now(Err(error)) => {
            pending.context().rules.tell_of_quota(Some(&error));
            error
        }
        Answer::Later(hold) => {
            return Admit::Wait(Box::pin(Admission::Quota {
                hold,
                asked: pending.context().rules.began(),
                time: Bound::new(pending.context().rules.quota_timeout),
                pending: Some(pending),
                came_back,
            }));
        }
    };
    let mut exceeded = match error {
        QuotaError::Exceeded(exceeded) => exceeded,
        QuotaError::Unavailable(_) if pending.context().rules.quota_outage == Outage::Admit => {
            return Admit::Now(Ok(reservation(pending, None, adapter)));
        }
        error => return Admit::Now(Err(error.into())),
    };
    if pending.makes_do_with_less(&mut exceeded) {
        return ask_quota(pending, adapter, None);
    }
    let rules = &pending.context().rules;
    if rules.takes_back(&exceeded) {
        return ask_quota(pending, adapter, Some(Instant::now()));
    }
    if came_back.is_some_and(|since| since.elapsed() < rules.patience) {
        return Admit::Wait(Box::pin(Admission::Again {
            pause: Bound::new(PAUSE),
            pending: Some(pending),
            came_back,
        }));
    }
    Admit::Now(Err(Refused::from(&exceeded)))
}

fn reservation<Q: QuotaSource, A: Adapter>(
    pending: Pending<Q>,
    hold: Option<Q::Hold>,
    adapter: impl FnOnce() -> A,
) -> Arc<Shared<Q, A>> {
    let (context, terms, claimed) = pending.keep();
    make(context, terms, claimed, hold, adapter())
}

impl<Q: QuotaSource> Admission<Q> {
    /// The refusal of a demand that does not wait. None if the quota source answers later.
    pub(super) fn why_not_now(&self) -> Option<Refused> {
        match self {
            Self::Volume { room, .. } => Some(room.refused()),
            Self::Quota { .. } | Self::Again { .. } => None,
        }
    }

    /// The decision.
    ///
    /// # Panics
    ///
    /// If it is polled after it was ready.
    pub(crate) fn poll<A: Adapter>(
        self: &mut Pin<Box<Self>>,
        cx: &mut TaskContext<'_>,
        adapter: impl Fn() -> A,
    ) -> Poll<Result<Arc<Shared<Q, A>>, Refused>> {
        loop {
            let decided = match self.as_mut().project() {
                AdmissionProj::Volume { room, terms, claim } => {
                    let (context, waiting) = terms.as_ref().expect(NOT_READY);
                    let claimed = match waiting.volume(context) {
                        Some(volume) => ready!(room.poll(cx, volume)),
                        None => Ok(Claimed::default()),
                    };
                    let (context, terms) = terms.take().expect(NOT_READY);
                    match claimed {
                        Ok(mut claimed) => {
                            claimed.bytes = granted(*claim, claimed.bytes);
                            ask_quota(Pending::new(context, terms, claimed), &adapter, None)
                        }
                        Err(refused) => Admit::Now(Err(refused)),
                    }
                }
                AdmissionProj::Quota {
                    hold,
                    asked,
                    time,
                    pending,
                    came_back,
                } => {
                    let answer = match hold.poll(cx) {
                        Poll::Ready(answer) => answer,
                        Poll::Pending => {
                            ready!(time.poll(cx));
                            Err(too_late())
                        }
                    };
                    let pending = pending.take().expect(NOT_READY);
                    pending.context().rules.tell_of_wait(*asked);
                    by_answer(pending, Answer::Now(answer), &adapter, *came_back)
                }
                AdmissionProj::Again {
                    pause,
                    pending,
                    came_back,
                } => {
                    ready!(pause.poll(cx));
                    let pending = pending.take().expect(NOT_READY);
                    ask_quota(pending, &adapter, *came_back)
                }
            };
            match decided {
                Admit::Now(decided) => return Poll::Ready(decided),
                Admit::Wait(wait) => *self = wait,
            }
        }
    }
}

/// Why the values that a decision needs are present.
const NOT_READY: &str = "a future is not polled after it was ready";
