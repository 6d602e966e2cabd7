//! The way in: price, volume, quota, and the inner service.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Version, header, request};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use super::{Guarded, ONCE, State};
use crate::{
    Amount, Demand, Outage, Price, Refused, Scopes,
    body::{MeteredBody, Unread, WhenDropped},
    layer::{Priced, Settings, too_late},
    price::Kind,
    quota::{QuotaError, QuotaSource},
    refusal::Refusal,
    reservation::{Cell, Charged, Later, Reservation, refuse_exceeded, refuse_shortfall},
    time::Bound,
    upload::{Drawn, Visit},
    volume::{Admission, Admitted},
};

pin_project! {
    /// A request that has to wait before it is let in.
    #[project = DoorProj]
    pub(super) enum Door<S, B, Q>
    where
        S: Service<Request<MeteredBody<B>>>,
        B: Body,
        Q: QuotaSource,
    {
        /// The user's own pricing takes a look at something.
        Price { price: Priced, scopes: Scopes, held: Option<Held<S, B>> },
        /// `volume.claim`
        Volume { admission: Admission, wanted: Option<Wanted<S, B>> },
        /// An upload needs more than is set aside for it.
        Upload {
            growth: Later<Result<(), Refused>>,
            demand: Demand,
            held: Option<Held<S, B>>,
        },
        /// `quota.reserve.await`
        Quota {
            #[pin] hold: Q::Future,
            time: Bound,
            cell: Option<Arc<Cell<Q>>>,
            held: Option<Held<S, B>>,
        },
    }
}

/// A request that waits at the door, with the service that is ready for it.
pub(crate) struct Held<S, B> {
    pub(crate) service: S,
    pub(crate) head: request::Parts,
    pub(crate) body: B,
    pub(crate) is_call: bool,
    /// Where it is part of an upload.
    pub(crate) visit: Option<Box<Visit>>,
}

/// The same, with what it wants.
pub(super) struct Wanted<S, B> {
    held: Held<S, B>,
    scopes: Scopes,
    price: Price,
}

impl<S, B> Wanted<S, B> {
    fn new(held: Held<S, B>, scopes: Scopes, price: Price) -> Self {
        Self {
            held,
            scopes,
            price,
        }
    }
}

impl<S, B, Q> State<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource + Send + Sync + 'static,
{
    pub(super) fn at_volume(
        settings: &Arc<Settings<Q>>,
        held: Held<S, B>,
        scopes: Scopes,
        price: Price,
    ) -> Self {
        let demand = price.demand;
        let unclaimed = |bytes| Admitted {
            bytes,
            blocks: Amount::ZERO,
        };
        let (bytes, least, expected) = match (price.kind, demand.bytes()) {
            (Kind::Unknown, _) => return Self::refused(held, Refusal::unavailable()),
            (Kind::Free, _) => {
                let wanted = Wanted::new(held, scopes, price);
                return Self::at_quota(settings, wanted, unclaimed(u64::MAX));
            }
            (Kind::Part(drawn), _) if drawn.unclaimed == 0 => {
                let wanted = Wanted::new(held, scopes, price);
                return Self::at_quota(settings, wanted, unclaimed(drawn.bytes));
            }
            (Kind::Part(drawn), _) => (drawn.unclaimed, drawn.unclaimed, 0),
            (Kind::Known, Some(bytes)) => (bytes, bytes, demand.expected()),
            // Nobody knows how little it may be.
            (Kind::Known, None) if demand.expected() == 0 => (settings.grants.first, 1, 0),
            (Kind::Known, None) => {
                let hinted = demand.expected().min(settings.hint_cap);
                (hinted, hinted, demand.expected())
            }
        };
        let wanted = Wanted::new(held, scopes, price);
        let Some(volume) = &settings.volume else {
            return Self::at_quota(settings, wanted, unclaimed(bytes));
        };
        let amount = Amount::new(bytes, demand.objects());
        let admission = Admission::new(amount, least, expected, settings.patience);
        // There is room nearly always, and then nobody has to wait at the door.
        match admission.claim(volume) {
            Ok(admitted) => Self::at_quota(settings, wanted, admitted),
            Err(_) => Self::door(Door::Volume {
                admission,
                wanted: Some(wanted),
            }),
        }
    }

    /// A request that is part of an upload: more is set aside for that if need be, and it draws what it brings.
    pub(super) fn at_upload(settings: &Arc<Settings<Q>>, held: Held<S, B>, demand: Demand) -> Self {
        let draw = held.visit.as_ref().and_then(|visit| visit.draw());
        let Some(draw) = draw else {
            // It brings nothing, or so it should.
            return Self::at_volume(settings, held, Scopes::NONE, Price::free());
        };
        let missing = draw.missing();
        if missing == 0
            && let Some(drawn) = draw.draw(settings.grants.first)
        {
            let demand = demand.with_objects(0);
            return Self::at_volume(settings, held, Scopes::NONE, Price::part(demand, drawn));
        }
        let growth = Arc::clone(draw.upload().cell()).grow(missing, missing);
        Self::door(Door::Upload {
            growth,
            demand,
            held: Some(held),
        })
    }

    fn at_quota(settings: &Arc<Settings<Q>>, wanted: Wanted<S, B>, admitted: Admitted) -> Self {
        let Wanted {
            held,
            scopes,
            price,
        } = wanted;
        let admitted = match price.kind {
            // The rest is claimed for the upload.
            Kind::Part(Drawn { bytes, .. }) => Admitted { bytes, ..admitted },
            _ => admitted,
        };
        let cell = Cell::new(Arc::clone(settings), scopes, price, admitted);
        let cell = Arc::new(cell);
        if cell.scopes().is_empty() {
            Self::inside(settings, cell, held)
        } else {
            Self::ask_quota(settings, cell, held)
        }
    }

    fn ask_quota(settings: &Arc<Settings<Q>>, cell: Arc<Cell<Q>>, held: Held<S, B>) -> Self {
        let (scopes, asked, expected) = (cell.scopes(), cell.asked(), cell.expected());
        match settings.quota.reserve(scopes, asked, expected).now() {
            Ok(answer) => Self::by_quota(settings, cell, held, answer),
            Err(hold) => Self::door(Door::Quota {
                hold,
                time: Bound::new(settings.quota_timeout),
                cell: Some(cell),
                held: Some(held),
            }),
        }
    }

    fn by_quota(
        settings: &Arc<Settings<Q>>,
        cell: Arc<Cell<Q>>,
        held: Held<S, B>,
        answer: Result<Q::Hold, QuotaError>,
    ) -> Self {
        let refusal = match answer {
            Ok(hold) => {
                cell.set_hold(hold);
                return Self::inside(settings, cell, held);
            }
            Err(QuotaError::Exceeded(exceeded)) if cell.makes_do_with_less(&exceeded) => {
                return Self::ask_quota(settings, cell, held);
            }
            Err(QuotaError::Exceeded(exceeded)) => refuse_exceeded(&exceeded),
            Err(_) if settings.quota_outage == Outage::Admit => {
                return Self::inside(settings, cell, held);
            }
            Err(_) => Refusal::unavailable(),
        };
        // The room on the volume is for others now.
        drop(cell);
        Self::refused(held, refusal)
    }

    /// Calls the inner service, with everything set aside.
    fn inside(settings: &Arc<Settings<Q>>, cell: Arc<Cell<Q>>, mut held: Held<S, B>) -> Self {
        cell.begin();
        let mut charged: Arc<dyn Charged> = cell.clone();
        if let Some(visit) = &mut held.visit {
            if let Some(demand) = visit.begin(&charged) {
                // All of the upload is set aside. From here on the request is the first of its parts.
                return Self::at_upload(settings, held, demand);
            }
            if let Some(draw) = visit.draw().cloned() {
                // It has not: nobody else has seen it yet.
                let _ = cell.when_ended(Box::new(move |ending| draw.end(ending)));
            }
            charged = visit.charged(charged);
        }
        let Held {
            mut service,
            mut head,
            body,
            is_call,
            visit,
        } = held;
        let drain = when_dropped(head.version, &head.headers);
        let body = MeteredBody::new(body, charged.clone(), drain, is_call);
        head.extensions.insert(Reservation::new(charged));
        Self::Inner {
            response: service.call(Request::from_parts(head, body)),
            guarded: Some(Guarded {
                cell,
                visit,
                is_handed_on: false,
            }),
        }
    }
}

impl<S, B, Q> Door<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource + Send + Sync + 'static,
{
    pub(super) fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        settings: &Arc<Settings<Q>>,
    ) -> Poll<State<S, B, Q>> {
        Poll::Ready(match self.project() {
            DoorProj::Price {
                price,
                scopes,
                held,
            } => {
                let price = ready!(price.as_mut().poll(cx));
                let scopes = std::mem::take(scopes);
                let held = held.take().expect(ONCE);
                State::at_volume(settings, held, scopes, price)
            }
            DoorProj::Volume { admission, wanted } => {
                let volume = settings.volume.as_ref().expect("somebody waits for it");
                let admitted = ready!(admission.poll(cx, volume));
                let wanted = wanted.take().expect(ONCE);
                match admitted {
                    Ok(admitted) => State::at_quota(settings, wanted, admitted),
                    Err(shortfall) => State::refused(wanted.held, refuse_shortfall(shortfall)),
                }
            }
            DoorProj::Upload {
                growth,
                demand,
                held,
            } => {
                let grown = ready!(growth.as_mut().poll(cx));
                let held = held.take().expect(ONCE);
                match grown {
                    Ok(()) => State::at_upload(settings, held, *demand),
                    Err(refused) => {
                        // The upload goes on. Nobody has to wait for its end.
                        if let Some(draw) = held.visit.as_ref().and_then(|visit| visit.draw()) {
                            draw.upload().cell().pardon();
                        }
                        State::refused(held, refused.refusal().clone())
                    }
                }
            }
            DoorProj::Quota {
                hold,
                time,
                cell,
                held,
            } => {
                let answer = match hold.poll(cx) {
                    Poll::Ready(answer) => answer,
                    Poll::Pending => {
                        ready!(time.poll(cx));
                        Err(too_late())
                    }
                };
                let cell = cell.take().expect(ONCE);
                let held = held.take().expect(ONCE);
                State::by_quota(settings, cell, held, answer)
            }
        })
    }
}

impl<S, B> Held<S, B>
where
    B: Body + Send + 'static,
{
    /// The body, if somebody has to drain it for the answer to arrive.
    pub(super) fn unread(self) -> Option<Unread> {
        let drain = when_dropped(self.head.version, &self.head.headers);
        Unread::new(Box::pin(self.body), drain)
    }
}

/// What has to become of a body that is left unread.
fn when_dropped(version: Version, headers: &HeaderMap) -> WhenDropped {
    if version >= Version::HTTP_2 {
        WhenDropped::Reset
    } else if headers
        .get_all(header::EXPECT)
        .iter()
        .any(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        WhenDropped::DrainOncePolled
    } else {
        WhenDropped::Drain
    }
}
