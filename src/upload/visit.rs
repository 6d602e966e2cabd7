//! The handling of one request of an upload.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, request, response};

use super::{
    Draw, Drawn, Outcome, Protocol, Step, Upload, Uploads, location::resolve, open::Keeper,
    part::Part,
};
use crate::{
    body::Exchange,
    demand::Demand,
    price::Price,
    refusal::Asked,
    reservation::{self, BoxFuture, EndHook, ReservationOps},
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
    /// The length of the body, if it is known.
    wanted: Option<u64>,
    at: At,
}

/// The state of the request.
enum At {
    /// It begins an upload, whose reservation is still to be made.
    First,
    /// It brings a part.
    Part(Arc<Draw>),
    /// It finishes or aborts.
    Last(Arc<Upload>),
}

impl steps::Steps for Uploads {
    fn find(&self, head: &request::Parts) -> Option<Box<dyn steps::FoundStep>> {
        Some(Box::new(self.step(head)?))
    }
}

impl steps::FoundStep for FoundStep {
    fn is_open(&self) -> bool {
        !self.step.is_begin() && self.uploads.registry.get(&self.step.key).is_some()
    }

    /// None if the upload is unknown.
    fn visit(self: Box<Self>, demand: Demand) -> Option<Box<dyn steps::Visit>> {
        let wanted = demand.bytes();
        let (step, registry) = (&self.step, &self.uploads.registry);
        let at = if step.is_begin() {
            At::First
        } else if step.is_finish() || step.is_abort() {
            At::Last(registry.get(&step.key)?)
        } else {
            match registry.draw(step, wanted) {
                Some(draw) => At::Part(draw),
                None => {
                    // If nothing more is expected, it was complete before.
                    let is_to_come = step.whole? > step.offset.unwrap_or(0);
                    is_to_come.then_some(At::First)?
                }
            }
        };
        Some(Box::new(Visit {
            found: *self,
            wanted,
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
        let demand = demand.with_objects(1);
        let step = &self.found.step;
        Some(match step.whole {
            None => demand,
            Some(whole) => {
                let rest = whole.saturating_sub(step.offset.unwrap_or(0));
                Demand::known(rest.max(self.wanted.unwrap_or(0)))
                    .with_objects(1)
                    .replacing(demand.replaced())
            }
        })
    }

    fn draw(&self, demand: Demand, grant: u64) -> steps::Draw {
        let At::Part(draw) = &self.at else {
            // It should bring no content.
            return steps::Draw::Price(Price::free());
        };
        let missing = draw.missing();
        if missing == 0
            && let Some(Drawn { bytes, unclaimed }) = draw.draw(grant)
        {
            let demand = demand.with_objects(0);
            return steps::Draw::Price(Price::covered(demand, bytes, unclaimed));
        }
        let whole = Arc::clone(draw.upload().whole_reservation());
        steps::Draw::Grow(Box::pin(async move {
            let grown = Arc::clone(&whole).grow(missing, missing).await;
            if grown.is_err() {
                // The upload goes on, so no request waits for its end.
                whole.reinstate();
            }
            grown
        }))
    }

    fn begin(&mut self, whole: &Arc<dyn Exchange>) -> Option<Demand> {
        let At::First = self.at else { return None };
        let whole: Arc<dyn ReservationOps> = whole.clone();
        let FoundStep { step, uploads, .. } = &self.found;
        let registry = &uploads.registry;
        let upload = registry.upload(whole, step);
        let draw = if step.is_begin() {
            upload.enter(step, self.wanted)
        } else {
            registry.begin(step, self.wanted, &upload, uploads.idle)
        };
        self.at = At::Part(draw);
        Some(match self.wanted {
            Some(bytes) => Demand::known(bytes),
            None => Demand::unknown(),
        })
    }

    fn end_hook(&self) -> Option<EndHook> {
        let At::Part(draw) = &self.at else {
            return None;
        };
        let draw = Arc::clone(draw);
        Some(Box::new(move |outcome| draw.end(outcome)))
    }

    fn share(&self, own: Arc<dyn Exchange>) -> Arc<dyn Exchange> {
        match &self.at {
            At::First => own,
            At::Part(draw) => Arc::new(Part::new(own, Arc::clone(draw))),
            At::Last(upload) => {
                let is_finish = self.found.step.is_finish();
                Arc::new(Part::last(own, Arc::clone(upload), is_finish))
            }
        }
    }

    fn hear(mut self: Box<Self>, answer: &response::Parts) -> Box<dyn steps::Heard> {
        let FoundStep { step, protocol, .. } = &mut self.found;
        let says = match &self.at {
            At::First => Outcome::Open,
            // RFC 4918, section 13: some of the resources still exist.
            At::Last(_) if step.is_abort() => match answer.status {
                StatusCode::MULTI_STATUS => Outcome::Open,
                _ => Outcome::Complete,
            },
            At::Last(upload) => {
                step.whole = upload.whole();
                protocol.outcome(step, answer)
            }
            At::Part(draw) => {
                step.whole = draw.whole();
                protocol.outcome(step, answer)
            }
        };
        Box::new(Heard { visit: *self, says })
    }
}

/// A request that is part of an upload, and what its answer means for the upload.
struct Heard {
    visit: Visit,
    says: Outcome,
}

impl steps::Heard for Heard {
    fn end(self: Box<Self>, outcome: reservation::Outcome) -> Option<BoxFuture<bool>> {
        if let At::Part(draw) = &self.visit.at {
            draw.end(outcome);
        }
        if outcome.success {
            self.succeeded()
        } else {
            None
        }
    }

    fn succeeded(self: Box<Self>) -> Option<BoxFuture<bool>> {
        let Self { visit, says } = *self;
        let FoundStep { step, uploads, .. } = visit.found;
        let registry = &uploads.registry;
        let (upload, last) = match &visit.at {
            At::First => return None,
            At::Part(draw) => (draw.upload(), Some(&**draw)),
            At::Last(upload) => (upload, None),
        };
        match says {
            Outcome::OpenAt(location) if step.is_begin() => {
                let key = uploads.key(&resolve(&location, &step.key));
                registry.park(&key, upload, uploads.idle);
                None
            }
            // Without a Location no later request can refer to the upload.
            Outcome::Open | Outcome::OpenAt(_) if !step.is_begin() => None,
            _ if step.is_abort() => {
                registry.forget(upload);
                None
            }
            _ => Some(upload.complete(last)),
        }
    }
}
