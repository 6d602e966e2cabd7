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
    Amount, Outage, Price, Scopes,
    body::{MeteredBody, Unread, WhenDropped},
    layer::{Priced, Settings, too_late},
    price::Kind,
    quota::{QuotaError, QuotaSource},
    refusal::Refusal,
    reservation::{Cell, Reservation, refuse_exceeded, refuse_shortfall},
    time::Bound,
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
}

/// The same, with what it wants.
pub(super) struct Wanted<S, B> {
    held: Held<S, B>,
    scopes: Scopes,
    price: Price,
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
        let (demand, kind) = (price.demand, price.kind);
        if kind == Kind::Unknown {
            return Self::refused(held, Refusal::unavailable());
        }
        let (bytes, least) = match demand.bytes() {
            Some(bytes) => (bytes, bytes),
            // Nobody knows how little it may be.
            None if demand.expected() == 0 => (settings.grants.first, 1),
            None => {
                let hinted = demand.expected().min(settings.hint_cap);
                (hinted, hinted)
            }
        };
        let wanted = Wanted {
            held,
            scopes,
            price,
        };
        let blocks = Amount::ZERO;
        if kind == Kind::Free {
            let bytes = u64::MAX;
            return Self::at_quota(settings, wanted, Admitted { bytes, blocks });
        }
        let Some(volume) = &settings.volume else {
            return Self::at_quota(settings, wanted, Admitted { bytes, blocks });
        };
        let amount = Amount::new(bytes, demand.objects());
        let admission = Admission::new(amount, least, demand.expected(), settings.patience);
        // There is room nearly always, and then nobody has to wait at the door.
        match admission.claim(volume) {
            Ok(admitted) => Self::at_quota(settings, wanted, admitted),
            Err(_) => Self::door(Door::Volume {
                admission,
                wanted: Some(wanted),
            }),
        }
    }

    fn at_quota(settings: &Arc<Settings<Q>>, wanted: Wanted<S, B>, admitted: Admitted) -> Self {
        let Wanted {
            held,
            scopes,
            price,
        } = wanted;
        let cell = Cell::new(Arc::clone(settings), scopes, price, admitted);
        let cell = Arc::new(cell);
        if cell.scopes().is_empty() {
            Self::inside(cell, held)
        } else {
            Self::ask_quota(settings, cell, held)
        }
    }

    fn ask_quota(settings: &Settings<Q>, cell: Arc<Cell<Q>>, held: Held<S, B>) -> Self {
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
        settings: &Settings<Q>,
        cell: Arc<Cell<Q>>,
        held: Held<S, B>,
        answer: Result<Q::Hold, QuotaError>,
    ) -> Self {
        let refusal = match answer {
            Ok(hold) => {
                cell.set_hold(hold);
                return Self::inside(cell, held);
            }
            Err(QuotaError::Exceeded(exceeded)) if cell.makes_do_with_less(&exceeded) => {
                return Self::ask_quota(settings, cell, held);
            }
            Err(QuotaError::Exceeded(exceeded)) => refuse_exceeded(&exceeded),
            Err(_) if settings.quota_outage == Outage::Admit => {
                return Self::inside(cell, held);
            }
            Err(_) => Refusal::unavailable(),
        };
        // The room on the volume is for others now.
        drop(cell);
        Self::refused(held, refusal)
    }

    /// Calls the inner service, with everything set aside.
    fn inside(cell: Arc<Cell<Q>>, held: Held<S, B>) -> Self {
        let Held {
            mut service,
            mut head,
            body,
            is_call,
        } = held;
        cell.begin();
        let drain = when_dropped(head.version, &head.headers);
        let body = MeteredBody::new(body, cell.clone(), drain, is_call);
        head.extensions.insert(Reservation::new(cell.clone()));
        Self::Inner {
            response: service.call(Request::from_parts(head, body)),
            guarded: Some(Guarded {
                cell,
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
