//! Admission: price, reserve, and call the inner service.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Request, request};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use super::{Guarded, ONCE, State};
use crate::{
    body::{BodyRules, Exchange, HttpReservation, MeteredBody, Unread, WhenDropped},
    demand::Demand,
    guard::{Admission, Admit, Claim, admit},
    price::{Kind, Price},
    protocol::Protocol,
    quota::QuotaSource,
    refusal::Refusal,
    refused::Refused,
    reservation::{BoxFuture, Reservation, ReservationOps, Terms},
    scope::Scopes,
    settings::{Priced, Settings},
    steps::{Draw, Visit},
    time::Bound,
};

pin_project! {
    /// A request that has to wait for admission.
    #[project = DoorProj]
    pub(super) enum Door<S, B, Q: QuotaSource> {
        /// For the user's own pricing, which is looked at again each time that the bound is over.
        Price {
            price: Priced,
            look: Bound,
            scopes: Scopes,
            held: Option<Held<S, B>>,
        },
        /// For its reservation.
        Reserve {
            admission: Pin<Box<Admission<Q>>>,
            held: Option<Held<S, B>>,
        },
        /// For an additional reservation for all steps of an upload.
        Grow {
            growth: BoxFuture<Result<(), Refused>>,
            demand: Demand,
            held: Option<Held<S, B>>,
        },
    }
}

/// A request that waits, with the ready service for it.
pub(crate) struct Held<S, B> {
    pub(crate) service: S,
    pub(crate) head: request::Parts,
    pub(crate) body: B,
    /// How the body has to be handled if it is left unread.
    pub(crate) drain: WhenDropped,
    pub(crate) is_named_call: bool,
    pub(crate) protocol: Option<&'static dyn Protocol>,
    /// Set if the request is a step of an upload.
    pub(crate) visit: Option<Box<dyn Visit>>,
}

impl<S, B, Q> State<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource,
{
    pub(super) fn reserve(
        settings: &Settings<Q>,
        held: Held<S, B>,
        scopes: Scopes,
        price: Price,
    ) -> Self {
        let claim = match price.kind {
            Kind::Unknown => return Self::refused(held, Refused::unavailable().into()),
            Kind::Malformed => return Self::refused(held, Refusal::malformed()),
            Kind::Known => Claim::Demanded,
            Kind::Free => Claim::Nothing,
            Kind::Covered { bytes, unclaimed } => Claim::Covered { bytes, unclaimed },
        };
        let context = &settings.guard.context;
        let demand = price.demand;
        let outer = held.head.extensions.get::<Reservation>();
        let terms = Terms {
            demand,
            scopes: price.scopes.unwrap_or(scopes),
            gives_back: price.gives_back,
            on_start: price.on_start,
            outer: outer.map(|outer| outer.around(context.volume.as_ref(), &demand)),
        };
        match admit(context, terms, claim, false) {
            Admit::Now(decided) => Self::decided(settings, held, decided),
            Admit::Wait(admission) => Self::door(Door::Reserve {
                admission,
                held: Some(held),
            }),
        }
    }

    /// A request that draws from the reservation for all steps, and enlarges it if necessary.
    pub(super) fn drawn(settings: &Settings<Q>, held: Held<S, B>, demand: Demand) -> Self {
        let grant = settings.guard.context.rules.grants.first;
        let draw = match &held.visit {
            Some(visit) => visit.draw(demand, grant),
            None => Draw::Price(demand.into()),
        };
        match draw {
            Draw::Price(price) => Self::reserve(settings, held, Scopes::NONE, price),
            Draw::Grow(growth) => Self::door(Door::Grow {
                growth,
                demand,
                held: Some(held),
            }),
        }
    }

    #[inline(always)]
    fn decided(
        settings: &Settings<Q>,
        held: Held<S, B>,
        decided: Result<Arc<HttpReservation<Q>>, Refused>,
    ) -> Self {
        match decided {
            Ok(reservation) => Self::inside(settings, reservation, held),
            Err(refused) => Self::refused(held, refused.into()),
        }
    }

    /// Calls the inner service, with everything reserved.
    #[inline(always)]
    fn inside(
        settings: &Settings<Q>,
        reservation: Arc<HttpReservation<Q>>,
        mut held: Held<S, B>,
    ) -> Self {
        let mut exchange: Arc<dyn Exchange> = reservation.clone();
        if let Some(visit) = &mut held.visit {
            if let Some(demand) = visit.begin(&exchange) {
                // The whole is reserved. From here on the request is the first of its steps.
                return Self::drawn(settings, held, demand);
            }
            if let Some(hook) = visit.end_hook() {
                // It has not ended: only this future has access to it.
                let _ = reservation.on_end(hook);
            }
            exchange = visit.share(exchange);
        }
        let Held {
            mut service,
            mut head,
            body,
            drain,
            is_named_call,
            protocol,
            visit,
        } = held;
        let rules = BodyRules {
            responder: Arc::clone(&settings.http.responder),
            is_named_call,
            drain,
            protocol,
        };
        let body = MeteredBody::new(body, Arc::clone(&exchange), rules);
        let handle: Arc<dyn ReservationOps> = exchange;
        head.extensions.insert(Reservation::new(handle));
        Self::Inner {
            response: service.call(Request::from_parts(head, body)),
            guarded: Some(Guarded {
                reservation,
                visit,
                is_http_1: drain != WhenDropped::Reset,
                is_handed_on: false,
            }),
        }
    }
}

impl<S, B, Q> Door<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource,
{
    pub(super) fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        settings: &Settings<Q>,
    ) -> Poll<State<S, B, Q>> {
        Poll::Ready(match self.project() {
            DoorProj::Price {
                price,
                look,
                scopes,
                held,
            } => {
                let price = match price.as_mut().poll(cx) {
                    Poll::Ready(price) => price,
                    Poll::Pending => loop {
                        ready!(look.poll(cx));
                        if let (true, Some(held)) = (settings.is_in_doubt(), &held) {
                            break price_in_doubt(&held.head.method);
                        }
                        *look = Bound::new(look.after());
                    },
                };
                let scopes = mem::take(scopes);
                State::reserve(settings, held.take().expect(ONCE), scopes, price)
            }
            DoorProj::Reserve { admission, held } => {
                let decided = ready!(admission.poll(cx, false));
                State::decided(settings, held.take().expect(ONCE), decided)
            }
            DoorProj::Grow {
                growth,
                demand,
                held,
            } => {
                let grown = ready!(growth.as_mut().poll(cx));
                let held = held.take().expect(ONCE);
                match grown {
                    Ok(()) => State::drawn(settings, held, *demand),
                    Err(refused) => State::refused(held, refused.into()),
                }
            }
        })
    }
}

/// The price of a request while the filesystem hangs, so that nothing can be measured there. A removal is never refused.
pub(crate) fn price_in_doubt(method: &Method) -> Price {
    match *method {
        Method::DELETE => Price::free(),
        _ => Price::unavailable(),
    }
}

impl<S, B> Held<S, B>
where
    B: Body + Send + 'static,
{
    /// The body, which no handler has seen.
    pub(super) fn unread(self) -> Unread {
        Unread::new(Box::pin(self.body), self.drain)
    }
}
