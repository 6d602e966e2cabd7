//! Admission: price, reserve, and call the inner service.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Method, Request, request};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use super::{Guarded, ONCE, State, empty::FirstData};
use crate::{
    body::{BodyRules, Exchange, HttpReservation, MeteredBody, Transfer, Unread, WhenDropped},
    cause::Resource,
    demand::Demand,
    guard::{Admission, Admit, Claim, admit},
    head::Lines,
    price::{Kind, Price},
    protocol::Protocol,
    quota::QuotaSource,
    refusal::Refusal,
    refused::Refused,
    reservation::{BoxFuture, RareTerms, Reservation, ReservationOps, Terms},
    scope::Scopes,
    settings::{PriceBy, ScopeBy, Settings},
    steps::{Draw, Visit},
    time::Bound,
};

pin_project! {
    /// A request that has to wait for admission.
    #[project = DoorProj]
    pub(super) enum Door<S, B, Q: QuotaSource> {
        /// For the user's own pricing, which is looked at again each time that the bound is over.
        Price {
            price: BoxFuture<Price>,
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
        /// For the first data of a body without a length that was refused: an empty one fits.
        First {
            first: FirstData,
            held: Option<Held<S, B>>,
        },
    }
}

/// A request that waits, with the ready service for it.
pub(crate) struct Held<S, B> {
    pub(crate) service: S,
    pub(crate) head: request::Parts,
    /// None once it has been read, and was empty.
    pub(crate) body: Option<Pin<Box<B>>>,
    pub(crate) declared: Declared,
    /// Set if the request is a step of an upload.
    pub(crate) visit: Option<Box<dyn Visit>>,
    /// Set if the size of the body is not known, and nothing else decides what is reserved for it.
    pub(crate) may_be_empty: bool,
}

/// What a request's head declares, beside its demand.
#[derive(Clone, Copy)]
pub(crate) struct Declared {
    /// How the body has to be handled if it is left unread.
    pub(crate) drain: WhenDropped,
    pub(crate) is_named_call: bool,
    pub(crate) protocol: Option<&'static dyn Protocol>,
}

impl Declared {
    pub(crate) fn transfer<Q>(&self, settings: &Settings<Q>) -> Transfer {
        Transfer::new(BodyRules {
            responder: Arc::clone(&settings.http.responder),
            is_named_call: self.is_named_call,
            protocol: self.protocol,
        })
    }
}

/// What a request reserves, and from what.
struct Priced {
    terms: Terms,
    claim: Claim,
}

/// Why a request has no price.
enum Unpriced {
    Unknown,
    Malformed,
    TooLarge,
}

impl Priced {
    /// Whether the size of the body is not known, and nothing else decides what is reserved for it.
    const fn may_be_empty(&self) -> bool {
        matches!(self.claim, Claim::Demanded) && self.terms.demand.has_no_size()
    }

    fn new<Q>(
        settings: &Settings<Q>,
        head: &request::Parts,
        scopes: Scopes,
        price: Price,
    ) -> Result<Self, Unpriced> {
        let claim = match price.kind {
            Kind::Known => Claim::Demanded,
            Kind::Unknown => return Err(Unpriced::Unknown),
            Kind::Malformed => return Err(Unpriced::Malformed),
            Kind::TooLarge => return Err(Unpriced::TooLarge),
            Kind::Free | Kind::Counted => Claim::Nothing,
            Kind::Covered { bytes, unclaimed } => Claim::Covered { bytes, unclaimed },
        };
        let mut terms = Terms {
            demand: price.demand,
            scopes: price.scopes.unwrap_or(scopes),
            rare: price.rare,
        };
        if let Some(outer) = head.extensions.get::<Reservation>() {
            terms.rare = Some(inside_of(settings, outer, terms.demand, terms.rare));
        }
        Ok(Self { terms, claim })
    }
}

/// Adds the outer reservation. By value: what is hot keeps the demand in registers.
#[cold]
fn inside_of<Q>(
    settings: &Settings<Q>,
    outer: &Reservation,
    demand: Demand,
    rare: Option<Box<RareTerms>>,
) -> Box<RareTerms> {
    let volume = settings.guard.context.volume.as_ref();
    let mut rare = rare.unwrap_or_default();
    rare.outer = Some(outer.around(volume, &demand));
    rare
}

/// What a request reserves that costs what its head declares. None if a price, or its scopes, have to be computed.
#[inline(always)]
pub(crate) fn plain_terms<Q>(
    settings: &Settings<Q>,
    head: &request::Parts,
    demand: Demand,
) -> Option<Terms> {
    let http = &settings.http;
    if http.price.is_some() {
        return None;
    }
    let scopes = match &http.scopes {
        None => Scopes::NONE,
        Some(ScopeBy::At(scopes)) => scopes(head),
        Some(ScopeBy::Later(_)) => return None,
    };
    let outer = head.extensions.get::<Reservation>();
    let rare = outer.map(|outer| inside_of(settings, outer, demand, None));
    Some(Terms {
        demand,
        scopes,
        rare,
    })
}

/// The request for the inner service, with everything reserved.
#[inline(always)]
pub(crate) fn admitted<B, Q>(
    reservation: &Arc<HttpReservation<Q>>,
    mut head: request::Parts,
    body: Pin<Box<B>>,
    drain: WhenDropped,
) -> Request<MeteredBody<B>>
where
    B: Body + Send + 'static,
    Q: QuotaSource,
{
    let handle: Arc<dyn ReservationOps> = reservation.clone();
    head.extensions.insert(Reservation::new(handle));
    let room = reservation.room_for_body();
    let body = MeteredBody::new(Some(body), reservation.clone(), room, drain);
    Request::from_parts(head, body)
}

impl<S, B, Q> State<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource,
{
    /// A request that costs what the user's own pricing says, or what its head declares.
    #[cold]
    pub(super) fn priced(settings: &Settings<Q>, held: Held<S, B>, demand: Demand) -> Self {
        let http = &settings.http;
        let head = &held.head;
        let scopes = match &http.scopes {
            None => Scopes::NONE,
            Some(ScopeBy::At(scopes)) => scopes(head),
            Some(ScopeBy::Later(scopes)) => {
                let scopes = scopes(head);
                return Self::scoped_later(settings, held, demand, scopes);
            }
        };
        match price_of(settings, head, demand) {
            Ok(price) => Self::reserve(settings, held, scopes, price),
            Err(price) => Self::await_price(settings, held, scopes, price),
        }
    }

    #[cold]
    fn scoped_later(
        settings: &Settings<Q>,
        held: Held<S, B>,
        demand: Demand,
        scopes: BoxFuture<Scopes>,
    ) -> Self {
        let price = price_of(settings, &held.head, demand);
        let both = Box::pin(async {
            let scopes = scopes.await;
            let mut price = match price {
                Ok(price) => price,
                Err(price) => price.await,
            };
            price.scopes.get_or_insert(scopes);
            price
        });
        Self::await_price(settings, held, Scopes::NONE, both)
    }

    #[cold]
    fn await_price(
        settings: &Settings<Q>,
        held: Held<S, B>,
        scopes: Scopes,
        price: BoxFuture<Price>,
    ) -> Self {
        let patience = settings.guard.context.rules.patience;
        Self::door(Door::Price {
            price,
            look: Bound::new(patience.max(Duration::from_millis(50))),
            scopes,
            held: Some(held),
        })
    }

    fn reserve(settings: &Settings<Q>, mut held: Held<S, B>, scopes: Scopes, price: Price) -> Self {
        match Priced::new(settings, &held.head, scopes, price) {
            Ok(priced) => {
                held.may_be_empty = priced.may_be_empty();
                let context = &settings.guard.context;
                let transfer = || held.declared.transfer(settings);
                let decided = admit(context, priced.terms, priced.claim, transfer);
                Self::by_decision(settings, held, decided)
            }
            Err(Unpriced::Malformed) => Self::refused(held, Refusal::malformed()),
            Err(Unpriced::TooLarge) => Self::refused(held, Refusal::too_large()),
            Err(Unpriced::Unknown) => Self::turned_away(settings, held, Refused::unavailable()),
        }
    }

    pub(super) fn by_decision(
        settings: &Settings<Q>,
        held: Held<S, B>,
        decision: Admit<Q, Transfer>,
    ) -> Self {
        match decision {
            Admit::Now(decided) => Self::decided(settings, held, decided),
            Admit::Wait(admission) => Self::door(Door::Reserve {
                admission,
                held: Some(held),
            }),
        }
    }

    /// A request that draws from the reservation for all steps, and enlarges it if necessary.
    pub(super) fn drawn(settings: &Settings<Q>, mut held: Held<S, B>, demand: Demand) -> Self {
        let grant = settings.guard.context.rules.grants.first;
        let draw = match &held.visit {
            Some(visit) => visit.draw(demand, grant),
            None => Draw::Price(demand.into()),
        };
        match draw {
            Draw::Price(price) => Self::reserve(settings, held, Scopes::NONE, price),
            Draw::Grow(growth) => {
                held.may_be_empty = demand.has_no_size();
                Self::door(Door::Grow {
                    growth,
                    demand,
                    held: Some(held),
                })
            }
        }
    }

    fn decided(
        settings: &Settings<Q>,
        held: Held<S, B>,
        decided: Result<Arc<HttpReservation<Q>>, Refused>,
    ) -> Self {
        match decided {
            Ok(reservation) => Self::inside(settings, reservation, held),
            Err(refused) => Self::no_room(settings, held, refused),
        }
    }

    /// A refusal, unless the body is empty.
    #[cold]
    fn no_room(settings: &Settings<Q>, held: Held<S, B>, refused: Refused) -> Self {
        let lacks_bytes = (refused.fault()).is_some_and(|fault| fault.resource == Resource::Bytes);
        // Where the client waits for `100 Continue`, the first read of the body would ask for all of it.
        let may_read = held.declared.drain != WhenDropped::DrainOncePolled;
        if held.may_be_empty && lacks_bytes && may_read {
            return Self::door(Door::First {
                first: FirstData::new(refused, settings.guard.context.rules.patience),
                held: Some(held),
            });
        }
        Self::turned_away(settings, held, refused)
    }

    /// A refusal that is final.
    #[cold]
    fn turned_away(settings: &Settings<Q>, held: Held<S, B>, refused: Refused) -> Self {
        settings.guard.context.tell_refused(&refused);
        Self::refused(held, refused.into())
    }

    /// The same request, whose body is known to be empty now.
    fn again(settings: &Settings<Q>, held: Held<S, B>) -> Self {
        let head = &held.head;
        let lines = Lines::read(&head.headers, &settings.http.hints);
        match lines.demand(&head.method, || Some(0)) {
            Ok(demand) => match &held.visit {
                Some(visit) => match visit.whole(demand) {
                    Some(whole) => Self::priced(settings, held, whole),
                    None => Self::drawn(settings, held, demand),
                },
                None => Self::priced(settings, held, demand),
            },
            Err(_) => Self::refused(held, Refusal::invalid_length()),
        }
    }

    /// Calls the inner service, with everything reserved.
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
            declared: Declared { drain, .. },
            visit,
            ..
        } = held;
        let room = exchange.demand().room_for_body(exchange.meter().reserved());
        let body = MeteredBody::new(body, Arc::clone(&exchange), room, drain);
        let handle: Arc<dyn ReservationOps> = exchange;
        head.extensions.insert(Reservation::new(handle));
        let response = service.call(Request::from_parts(head, body));
        let guarded = Some(Guarded::new(reservation, visit, drain));
        Self::Inner { response, guarded }
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
                        if let (true, Some(held)) = (settings.guard.context.is_in_doubt(), &held) {
                            break price_in_doubt(&held.head.method);
                        }
                        *look = Bound::new(look.after());
                    },
                };
                let scopes = mem::take(scopes);
                State::reserve(settings, held.take().expect(ONCE), scopes, price)
            }
            DoorProj::Reserve { admission, held } => {
                let of = held.as_ref().expect(ONCE);
                let transfer = || of.declared.transfer(settings);
                let decided = ready!(admission.poll(cx, transfer));
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
                    Err(refused) => State::no_room(settings, held, refused),
                }
            }
            DoorProj::First { first, held } => {
                let body = &mut held.as_mut().expect(ONCE).body;
                let refused = ready!(first.poll(cx, body));
                let held = held.take().expect(ONCE);
                match refused {
                    Some(refused) => State::turned_away(settings, held, refused),
                    None => State::again(settings, held),
                }
            }
        })
    }
}

/// The price of a request, or its future.
fn price_of<Q>(
    settings: &Settings<Q>,
    head: &request::Parts,
    demand: Demand,
) -> Result<Price, BoxFuture<Price>> {
    match &settings.http.price {
        None => Ok(demand.into()),
        Some(PriceBy::At(price)) => Ok(price(head, demand)),
        // The function may look at the filesystem, and would hang with it.
        Some(PriceBy::Later(_)) if settings.guard.context.refuses_unseen() => {
            Ok(price_in_doubt(&head.method))
        }
        Some(PriceBy::Later(price)) => Err(price(head, demand)),
    }
}

/// The price of a request while the filesystem hangs, so that nothing can be measured there. A removal is never refused.
fn price_in_doubt(method: &Method) -> Price {
    match *method {
        Method::DELETE => Price::free(),
        _ => Price::unavailable(),
    }
}

impl<S, B> Held<S, B>
where
    B: Body + Send + 'static,
{
    /// The body, which no handler has seen. None if it is empty.
    pub(super) fn unread(self) -> Option<Unread> {
        let body = self.body?;
        Some(Unread::new(body, self.declared.drain))
    }
}
