//! One request's way through its upload.

use std::sync::Arc;

use http::{StatusCode, response};

use super::{Draw, Outcome, Protocol, Step, Upload, Uploads, location::resolve};
use crate::{
    Demand,
    price::Ending,
    reservation::{Charged, Later, Part},
};

/// What a request is to an upload, by its head.
pub(crate) struct FoundStep {
    pub(super) step: Step,
    pub(super) protocol: Arc<dyn Protocol>,
    pub(super) uploads: Uploads,
}

/// A request that is part of an upload.
pub(crate) struct Visit {
    found: FoundStep,
    /// What the body brings, where its length is known.
    wanted: Option<u64>,
    at: At,
}

/// How far it has come.
enum At {
    /// It begins an upload, for which everything is still to be set aside.
    First,
    /// It brings a part.
    Part(Arc<Draw>),
    /// It finishes or aborts.
    Last(Arc<Upload>),
}

impl FoundStep {
    /// Whether it is part of an upload that is open.
    pub(crate) fn is_of_open_upload(&self) -> bool {
        !self.step.is_begin() && self.uploads.registry.get(&self.step.key).is_some()
    }

    /// None where the request is priced like any other: nobody knows of the upload.
    pub(crate) fn visit(self, demand: Demand) -> Option<Visit> {
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
                    // Where nothing is to come, it was whole before.
                    let is_to_come = step.whole? > step.offset.unwrap_or(0);
                    is_to_come.then_some(At::First)?
                }
            }
        };
        Some(Visit {
            found: self,
            wanted,
            at,
        })
    }
}

impl Visit {
    /// The client speaks tus.
    pub(crate) fn is_tus(&self) -> bool {
        self.found.step.is_tus
    }

    /// What the first request of an upload wants: all of it. None for the other requests.
    pub(crate) fn whole(&self, demand: Demand) -> Option<Demand> {
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

    /// What the request draws, if it brings a part of an upload that is known.
    pub(crate) fn draw(&self) -> Option<&Arc<Draw>> {
        match &self.at {
            At::Part(draw) => Some(draw),
            At::First | At::Last(_) => None,
        }
    }

    /// What body and handle see, given what is the request's own.
    pub(crate) fn charged(&self, own: Arc<dyn Charged>) -> Arc<dyn Charged> {
        match &self.at {
            At::First => own,
            At::Part(draw) => Arc::new(Part::new(own, Arc::clone(draw))),
            At::Last(upload) => {
                let is_finish = self.found.step.is_finish();
                Arc::new(Part::last(own, Arc::clone(upload), is_finish))
            }
        }
    }

    /// What the first request of an upload wanted is set aside in `cell`. From here on it brings a part, and that is
    /// returned. None for the other requests.
    pub(crate) fn begin(&mut self, cell: &Arc<dyn Charged>) -> Option<Demand> {
        let At::First = self.at else { return None };
        let FoundStep { step, uploads, .. } = &self.found;
        let registry = &uploads.registry;
        let upload = registry.upload(cell, step);
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

    /// What a successful answer says of the upload.
    pub(crate) fn hear(mut self, answer: &response::Parts) -> Answered {
        let FoundStep { step, protocol, .. } = &mut self.found;
        let says = match &self.at {
            At::First => Outcome::Open,
            // RFC 4918, section 13: some of it is still there.
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
        Answered { visit: self, says }
    }
}

/// A request that is part of an upload, and what its answer says of that.
pub(crate) struct Answered {
    visit: Visit,
    says: Outcome,
}

impl Answered {
    /// The request has ended. Returned as by [`Self::succeeded`].
    pub(crate) fn end(self, ending: Ending) -> Option<Later<bool>> {
        if let At::Part(draw) = &self.visit.at {
            draw.end(ending);
        }
        if ending.success {
            self.succeeded()
        } else {
            None
        }
    }

    /// The request has succeeded, and has ended. Returned where the upload is complete: what is left to wait for.
    pub(crate) fn succeeded(self) -> Option<Later<bool>> {
        let FoundStep { step, uploads, .. } = self.visit.found;
        let registry = &uploads.registry;
        let (upload, last) = match &self.visit.at {
            At::First => return None,
            At::Part(draw) => (draw.upload(), Some(&**draw)),
            At::Last(upload) => (upload, None),
        };
        match self.says {
            Outcome::OpenAt(location) if step.is_begin() => {
                let key = uploads.key(&resolve(&location, &step.key));
                registry.park(&key, upload, uploads.idle);
                None
            }
            // Nobody could ever find one that has no place.
            Outcome::Open | Outcome::OpenAt(_) if !step.is_begin() => None,
            _ if step.is_abort() => {
                registry.forget(upload);
                None
            }
            _ => Some(upload.complete(last)),
        }
    }
}
