//! Price, reserve, call, settle: the way of a request as one future.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, StatusCode, Version,
    header::{self, HeaderName},
    request,
};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{
    Amount, Demand, Outage, Refused, Scopes,
    body::{Drain, MeteredBody, ResponseBody, Unread, WhenDropped},
    fault::{self, Cause, Fault, Resource, Source},
    layer::{Priced, Settings, too_late},
    quota::{QuotaError, QuotaHold, QuotaSource},
    refusal::{Asked, Refusal},
    reservation::{Cell, Ended, Reservation, refuse_exceeded, refuse_shortfall},
    time::Bound,
    volume::{Admission, Admitted, Look, Volume},
};

pin_project! {
    /// The answer to come.
    pub struct ResponseFuture<S, B, Q>
    where
        S: Service<Request<MeteredBody<B>>>,
        B: Body,
        Q: QuotaSource,
    {
        settings: Arc<Settings<Q>>,
        asked: Asked,
        #[pin]
        state: State<S, B, Q>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, Q>
    where
        S: Service<Request<MeteredBody<B>>>,
        B: Body,
        Q: QuotaSource,
    {
        /// Still outside. Boxed, as nearly every request goes straight in, and is moved around on its way.
        Door { door: Pin<Box<Door<S, B, Q>>> },
        /// There is no room. Boxed as well.
        Refused { refused: Option<Box<(Refusal, Held<S, B>)>> },
        /// The inner service, with everything set aside.
        Inner { #[pin] response: S::Future, guarded: Option<Guarded<Q>> },
        /// Its answer was a success: what it stored is charged before the answer is sent.
        Commit {
            #[pin] commit: <Q::Hold as QuotaHold>::Commit,
            time: Bound,
            response: Option<S::Response>,
        },
        /// It was a fault, or the body was cut.
        Failed { failed: Option<Box<Failed>> },
        Done,
    }
}

/// A request that failed for want of storage, and what is left to do before it is answered.
struct Failed {
    refusal: Refusal,
    /// A full disk does not say what it lacks. The next reading does.
    look: Option<Look>,
    /// What the inner service said in headers.
    headers: HeaderMap,
    unread: Option<Unread>,
}

pin_project! {
    /// A request that has to wait before it is let in.
    #[project = DoorProj]
    enum Door<S, B, Q>
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
}

/// The same, with what it wants.
struct Wanted<S, B> {
    held: Held<S, B>,
    scopes: Scopes,
    demand: Demand,
}

/// A request inside. Dropped before it is settled, all that was set aside for it is released.
struct Guarded<Q: QuotaSource> {
    cell: Arc<Cell<Q>>,
    /// Whether somebody else settles it.
    is_handed_on: bool,
}

impl<Q: QuotaSource> Drop for Guarded<Q> {
    fn drop(&mut self) {
        // The body or the handle may outlive the request, in some task of the handler's.
        if !self.is_handed_on {
            self.cell.end(false);
        }
    }
}

impl<S, B, Q> ResponseFuture<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body,
    Q: QuotaSource,
{
    /// A request that is not guarded.
    pub(crate) fn open(settings: Arc<Settings<Q>>, asked: Asked, response: S::Future) -> Self {
        let guarded = None;
        Self::new(settings, asked, State::Inner { response, guarded })
    }

    /// A request that cannot be carried out.
    pub(crate) fn refused(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        held: Held<S, B>,
        refusal: Refusal,
    ) -> Self {
        Self::new(settings, asked, State::refused(held, refusal))
    }

    /// A request whose price is still to be found.
    pub(crate) fn price(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        held: Held<S, B>,
        scopes: Scopes,
        price: Priced,
    ) -> Self {
        let held = Some(held);
        let door = Door::Price {
            price,
            scopes,
            held,
        };
        Self::new(settings, asked, State::door(door))
    }

    /// A request that wants to store something.
    pub(crate) fn reserve(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        held: Held<S, B>,
        scopes: Scopes,
        demand: Demand,
    ) -> Self
    where
        B: Send + 'static,
        Q: Send + Sync + 'static,
    {
        let state = State::at_volume(&settings, held, scopes, demand);
        Self::new(settings, asked, state)
    }

    fn new(settings: Arc<Settings<Q>>, asked: Asked, state: State<S, B, Q>) -> Self {
        Self {
            settings,
            asked,
            state,
        }
    }
}

impl<S, B, Q> State<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body,
    Q: QuotaSource,
{
    #[cold]
    fn door(door: Door<S, B, Q>) -> Self {
        let door = Box::pin(door);
        Self::Door { door }
    }

    #[cold]
    fn failed(
        settings: &Settings<Q>,
        cell: Option<&Arc<Cell<Q>>>,
        refusal: Refusal,
        headers: HeaderMap,
    ) -> Self {
        let volume = settings.volume.as_ref();
        let look = volume.and_then(|volume| {
            // The next request shall know of it, whatever this one is told.
            volume.refresh();
            let is_unclear = refusal.fault() == Some(Fault::DISK_FULL) && volume.counts_inodes();
            is_unclear.then(|| Look::new(volume, settings.patience))
        });
        Self::Failed {
            failed: Some(Box::new(Failed {
                refusal,
                look,
                headers,
                unread: cell.and_then(|cell| {
                    let unread = cell.take_unread();
                    cell.end(false);
                    unread
                }),
            })),
        }
    }

    fn refused(held: Held<S, B>, refusal: Refusal) -> Self {
        Self::Refused {
            refused: Some(Box::new((refusal, held))),
        }
    }
}

impl<S, B, Q> State<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body + Send + 'static,
    Q: QuotaSource + Send + Sync + 'static,
{
    fn at_volume(
        settings: &Arc<Settings<Q>>,
        held: Held<S, B>,
        scopes: Scopes,
        demand: Demand,
    ) -> Self {
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
            demand,
        };
        let Some(volume) = &settings.volume else {
            let blocks = Amount::ZERO;
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
            demand,
        } = wanted;
        let cell = Cell::new(Arc::clone(settings), scopes, demand, admitted);
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
        } = held;
        let drain = when_dropped(head.version, &head.headers);
        let body = MeteredBody::new(body, cell.clone(), drain);
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
    fn poll(
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
                let demand = ready!(price.as_mut().poll(cx));
                let scopes = std::mem::take(scopes);
                let held = held.take().expect(ONCE);
                State::at_volume(settings, held, scopes, demand)
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

impl<S, B, R, Q> Future for ResponseFuture<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>, Response = Response<R>>,
    S::Error: 'static,
    B: Body + Send + 'static,
    R: Body,
    R::Data: From<Bytes>,
    R::Error: Into<BoxError>,
    Q: QuotaSource + Send + Sync + 'static,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let settings = &*this.settings;
        let refuse =
            |refusal, unread| Poll::Ready(Ok(answer(settings, this.asked, refusal, unread)));
        loop {
            match this.state.as_mut().project() {
                StateProj::Door { door } => {
                    let next = ready!(door.as_mut().poll(cx, settings));
                    this.state.set(next);
                }
                StateProj::Refused { refused } => {
                    let (refusal, held) = *refused.take().expect(ONCE);
                    this.state.set(State::Done);
                    return refuse(refusal, held.unread());
                }
                StateProj::Inner { response, guarded } => {
                    let answered = ready!(response.poll(cx));
                    let guarded = guarded.take();
                    // The inner future may still hold the request's body.
                    this.state.set(State::Done);
                    let cell = guarded.as_ref().map(|guarded| &guarded.cell);
                    let mut response = match answered {
                        Ok(response) => response,
                        Err(error) => {
                            let refusal = cell
                                .and_then(|cell| cell.refused())
                                .or_else(|| of_error(settings, &error));
                            let Some(refusal) = refusal else {
                                return Poll::Ready(Err(error));
                            };
                            let headers = HeaderMap::new();
                            this.state
                                .set(State::failed(settings, cell, refusal, headers));
                            continue;
                        }
                    };
                    let refusal = cell
                        .and_then(|cell| cell.refused())
                        .or_else(|| of_response(settings, &response));
                    if let Some(refusal) = refusal {
                        let (head, body) = response.into_parts();
                        drop(body);
                        this.state
                            .set(State::failed(settings, cell, refusal, head.headers));
                        continue;
                    }
                    let Some(guarded) = guarded else {
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    };
                    let success = match &settings.success {
                        // A guard inside has refused it, in a dialect that says so in its own way.
                        _ if response.extensions().get::<Refusal>().is_some() => false,
                        None => means_success(response.status()),
                        Some(success) => {
                            let (head, body) = response.into_parts();
                            let success = success(&head);
                            response = Response::from_parts(head, body);
                            success
                        }
                    };
                    if !success {
                        // Dropped, it releases.
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    }
                    let ended = match guarded.cell.end_if_read() {
                        Ok(ended) => ended,
                        Err(refusal) => {
                            // Cut just now, by another thread.
                            let (head, body) = response.into_parts();
                            drop(body);
                            let cell = Some(&guarded.cell);
                            this.state
                                .set(State::failed(settings, cell, refusal, head.headers));
                            continue;
                        }
                    };
                    match ended.map(Ended::into_commit) {
                        Some(Some((hold, change))) => this.state.set(State::Commit {
                            commit: hold.commit(change),
                            time: Bound::new(settings.quota_timeout),
                            response: Some(response),
                        }),
                        Some(None) => return Poll::Ready(Ok(response.map(ResponseBody::inner))),
                        None => {
                            // Still being read behind the answer. Both have to end.
                            let cell = guarded.hand_on();
                            let watched = |body| ResponseBody::watched(body, cell);
                            return Poll::Ready(Ok(response.map(watched)));
                        }
                    }
                }
                StateProj::Commit {
                    commit,
                    time,
                    response,
                } => {
                    // By its contract the source does not lose the charge when nobody waits longer.
                    if commit.poll(cx).is_pending() {
                        ready!(time.poll(cx));
                    }
                    let response = response.take().expect(ONCE);
                    this.state.set(State::Done);
                    settings.quota_line.ring();
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                StateProj::Failed { failed } => {
                    let look = failed.as_mut().and_then(|failed| failed.look.as_mut());
                    if let (Some(look), Some(volume)) = (look, &settings.volume) {
                        ready!(look.poll(cx, volume));
                    }
                    let failed = *failed.take().expect(ONCE);
                    this.state.set(State::Done);
                    let mut refusal = failed.refusal;
                    if failed.look.is_some()
                        && settings.volume.as_ref().is_some_and(Volume::lacks_inodes)
                    {
                        refusal = Fault::new(Cause::DiskFull, Resource::Objects).into();
                    }
                    let mut response = answer(settings, this.asked, refusal, failed.unread);
                    carry_over(failed.headers, response.headers_mut());
                    return Poll::Ready(Ok(response));
                }
                StateProj::Done => panic!("polled after it was ready"),
            }
        }
    }
}

/// Why an `Option` of a state is there: the state is left in the same poll in which it is taken.
const ONCE: &str = "taken once, when the state is left";

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

impl<S, B> Held<S, B>
where
    B: Body + Send + 'static,
{
    /// The body, if somebody has to drain it for the answer to arrive.
    fn unread(self) -> Option<Unread> {
        let drain = when_dropped(self.head.version, &self.head.headers);
        Unread::new(Box::pin(self.body), drain)
    }
}

impl<Q: QuotaSource> Guarded<Q> {
    /// Leaves the settling to somebody else.
    fn hand_on(mut self) -> Arc<Cell<Q>> {
        self.is_handed_on = true;
        Arc::clone(&self.cell)
    }
}

/// The refusal behind a service's error.
fn of_error<E: 'static, Q>(settings: &Settings<Q>, error: &E) -> Option<Refusal> {
    let fault = settings.classifier.classify_any(error)?;
    Some(fault.into())
}

/// The refusal behind an answer, if it is one that the guard has not made.
fn of_response<R, Q>(settings: &Settings<Q>, response: &Response<R>) -> Option<Refusal> {
    let is_507 = response.status() == StatusCode::INSUFFICIENT_STORAGE;
    if response.extensions().is_empty() && !is_507 {
        return None;
    }
    let extensions = response.extensions();
    if extensions.get::<Refusal>().is_some() {
        return None;
    }
    if let Some(fault) = extensions.get::<Fault>() {
        return Some((*fault).into());
    }
    if let Some(source) = extensions.get::<Source>() {
        let error = source.error();
        if let Some(refused) = fault::find::<Refused>(error) {
            return Some(refused.refusal().clone());
        }
        if let Some(fault) = settings.classifier.classify(error) {
            return Some(fault.into());
        }
    }
    // Nobody says why. A full disk is what it means most often.
    is_507.then(|| Fault::DISK_FULL.into())
}

/// Whether a request was carried out that is answered so, unless the user decides.
fn means_success(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SEE_OTHER
}

/// Renders a refusal, with what has to be drained behind it.
fn answer<R, Q>(
    settings: &Settings<Q>,
    asked: &Asked,
    refusal: Refusal,
    unread: Option<Unread>,
) -> Response<ResponseBody<R>> {
    let drain = unread
        .and_then(|body| Drain::new(body, settings.drain_bytes, settings.drain_time))
        .and_then(Drain::start);
    settings
        .answers
        .answer(refusal, asked)
        .map(|content| ResponseBody::refusal(content, drain))
}

/// What describes the content that the refusal takes the place of, or how it is sent.
const OF_CONTENT: [HeaderName; 21] = [
    header::ACCEPT_RANGES,
    header::AGE,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::RETRY_AFTER,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// Keeps what other layers inside have said: cookies, request ids, CORS.
fn carry_over(inner: HeaderMap, refusal: &mut HeaderMap) {
    let mut last = None;
    for (name, value) in inner {
        last = name.or(last);
        if let Some(name) = &last
            && !OF_CONTENT.contains(name)
        {
            refusal.append(name, value);
        }
    }
}

impl<S, B, Q> fmt::Debug for ResponseFuture<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body,
    Q: QuotaSource,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
