//! The handling of one request of an upload.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, request, response};

use super::{
    Outcome, Protocol, Step, Uploads,
    draw::{Draw, Drawn},
    location::resolve,
    open::Answer,
    part::Part,
    step::Kind,
};
use crate::{
    amount::Amount,
    body::Exchange,
    demand::Demand,
    price::Price,
    refusal::Asked,
    reservation::{BoxFuture, EndHook, ReservationOps},
    scope::Scopes,
    steps,
};

/// Determines a request's role in an upload from its head.
pub(super) struct FoundStep {
    pub(super) step: Step,
    pub(super) protocol: Arc<dyn Protocol>,
    pub(super) uploads: Uploads,
}

/// A request that is part of an upload.
pub(super) struct Visit {
    found: FoundStep,
    /// What the request would cost by itself.
    demand: Demand,
    at: At,
}

/// The state of the request.
enum At {
    /// It costs nothing, and its answer tells the limits.
    Options,
    /// It is answered 400.
    Malformed,
    /// It is answered 413.
    TooLarge,
    /// It is answered 503: what it begins cannot be remembered.
    Full,
    /// It begins an upload, whose reservation is still to be made.
    First,
    /// It draws from the upload.
    Open(Arc<Draw>),
}

impl steps::Steps for Uploads {
    fn find(&self, head: &request::Parts) -> Option<Box<dyn steps::FoundStep>> {
        Some(Box::new(self.step(head)?))
    }
}

impl steps::FoundStep for FoundStep {
    fn is_open(&self) -> bool {
        let is_of_one = !self.step.is_begin() && !self.step.is_options();
        is_of_one && self.uploads.registry.get(&self.step.key).is_some()
    }

    fn asks(&self) -> bool {
        self.step.is_options()
    }

    fn is_write(&self) -> bool {
        // A service may read a malformed head as that of a part.
        self.step.is_part() || matches!(self.step.kind, Kind::Malformed | Kind::TooLarge)
    }

    /// None if the upload is unknown.
    fn visit(self: Box<Self>, demand: Demand) -> Option<Box<dyn steps::Visit>> {
        let step = &self.step;
        let registry = &self.uploads.registry;
        let is_full = registry.remembered() >= self.uploads.most;
        let is_new_part = || {
            let known = registry.get(&step.key).filter(|_| step.part.is_some());
            known.is_some_and(|known| !known.has(&step.part))
        };
        let at = match step.kind {
            Kind::Options => At::Options,
            Kind::Malformed => At::Malformed,
            Kind::TooLarge => At::TooLarge,
            Kind::Begin if is_full => At::Full,
            Kind::Begin => At::First,
            _ if is_full && is_new_part() => At::Full,
            _ => match registry.draw(step, demand.bytes()) {
                Some(draw) => At::Open(draw),
                None if !step.begins_if_unknown() => return None,
                None if is_full => At::Full,
                None => At::First,
            },
        };
        Some(Box::new(Visit {
            found: *self,
            demand,
            at,
        }))
    }
}

impl steps::Visit for Visit {
    fn mark(&self, asked: &mut Asked) {
        if self.found.step.is_tus {
            // tus 1.0, section "Tus-Resumable": in every answer.
            let version = HeaderValue::from_static("1.0.0");
            asked.add_to_answer(HeaderName::from_static("tus-resumable"), version);
        }
    }

    fn whole(&self, demand: Demand) -> Option<Demand> {
        let At::First = self.at else { return None };
        let step = &self.found.step;
        let own = match (step.is_stored, demand.bytes()) {
            (false, _) => Demand::known(0),
            (true, Some(body)) if step.copied > 0 => {
                Demand::known(body.saturating_add(step.copied))
            }
            _ => demand,
        };
        let Some(whole) = step.whole else {
            return Some(own.with_objects(1));
        };
        let rest = whole.saturating_sub(step.offset.unwrap_or(0));
        let whole = Demand::known(rest.max(own.bytes().unwrap_or(0)));
        Some(whole.with_objects(1).replacing(demand.replaced()))
    }

    fn draw(&self, demand: Demand, grant: u64) -> steps::Draw {
        let draw = match &self.at {
            At::Open(draw) if draw.is_stored() => draw,
            At::Open(_) | At::Options => return steps::Draw::Price(Price::free()),
            At::Malformed | At::First => return steps::Draw::Price(Price::malformed()),
            At::TooLarge => return steps::Draw::Price(Price::too_large()),
            At::Full => return steps::Draw::Price(Price::unavailable()),
        };
        let missing = draw.missing();
        if missing == 0
            && let Some(Drawn { bytes, unclaimed }) = draw.draw(grant)
        {
            let copied = Amount::bytes(draw.copied());
            let demand = demand.with_objects(0).copying(copied);
            return steps::Draw::Price(Price::covered(demand, bytes, unclaimed));
        }
        let draw = Arc::clone(draw);
        steps::Draw::Grow(Box::pin(async move { draw.grow(missing, missing).await }))
    }

    fn begin(&mut self, whole: &Arc<dyn Exchange>) -> Option<Demand> {
        let At::First = self.at else { return None };
        let whole: Arc<dyn ReservationOps> = whole.clone();
        let FoundStep { step, uploads, .. } = &self.found;
        let (registry, body) = (&uploads.registry, self.demand.bytes());
        let upload = registry.upload(whole, step, &uploads.expiry);
        let draw = match step.is_begin() {
            true => Draw::enter(&upload, step, body),
            false => registry.begin(step, body, &upload, &uploads.expiry),
        };
        self.at = At::Open(draw?);
        Some(match body {
            Some(bytes) => Demand::known(bytes),
            None => Demand::unknown(),
        })
    }

    fn end_hook(&self) -> Option<EndHook> {
        let At::Open(draw) = &self.at else {
            return None;
        };
        let draw = Arc::clone(draw);
        Some(Box::new(move |outcome| draw.end(outcome)))
    }

    fn share(&self, own: Arc<dyn Exchange>) -> Arc<dyn Exchange> {
        match &self.at {
            At::Open(draw) => Arc::new(Part::new(own, Arc::clone(draw))),
            At::Options | At::Malformed | At::TooLarge | At::Full | At::First => own,
        }
    }

    fn answered(&self, answer: &mut response::Parts, success: bool) {
        match &self.at {
            At::Options if success => self.add_limits(answer),
            At::Open(draw) if success => {
                draw.answered(self.meaning(draw, answer));
                self.add_limits(answer);
            }
            At::Open(draw) if answer.status.is_client_error() => draw.answered(Answer::Refused),
            _ => {}
        }
    }

    fn scopes(&self) -> Option<Scopes> {
        let At::Open(draw) = &self.at else {
            return None;
        };
        Some(draw.upload().whole_reservation().scopes().clone())
    }

    fn settling(&self) -> Option<BoxFuture<bool>> {
        let At::Open(draw) = &self.at else {
            return None;
        };
        draw.settling()
    }
}

impl Visit {
    /// Tells the client the limits of the protocol, unless the service does.
    fn add_limits(&self, answer: &mut response::Parts) {
        let FoundStep {
            step,
            protocol,
            uploads,
        } = &self.found;
        for (name, value) in &protocol.limits(step, answer, uploads.expiry.idle) {
            let theirs = answer.headers.entry(name);
            theirs.or_insert_with(|| value.clone());
        }
    }

    /// What a successful answer means for the upload.
    fn meaning(&self, draw: &Draw, answer: &response::Parts) -> Answer {
        let FoundStep {
            step,
            protocol,
            uploads,
        } = &self.found;
        // RFC 4918, section 13: some of the resources still exist.
        if step.is_abort() && answer.status == StatusCode::MULTI_STATUS {
            return Answer::Open;
        }
        let step = Step {
            whole: draw.whole(),
            ..step.clone()
        };
        match protocol.outcome(&step, answer) {
            Outcome::OpenAt(location) if step.is_begin() => {
                let key = uploads.key(&resolve(&location, &step.key));
                Answer::OpenAs(key, uploads.expiry.clone())
            }
            Outcome::Open if step.is_begin() => Answer::Ordinary { objects: 0 },
            Outcome::Open | Outcome::OpenAt(_) => Answer::Open,
            Outcome::Complete => Answer::Complete,
            Outcome::Removed => Answer::Removed,
            Outcome::Ordinary => Answer::Ordinary {
                objects: self.demand.objects(),
            },
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let At::Open(draw) = &self.at {
            let objects = self.demand.objects();
            draw.answered(Answer::Missed { objects });
        }
    }
}
