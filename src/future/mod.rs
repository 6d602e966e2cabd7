//! Price, reserve, call, settle: the processing of a request as one future.

mod advice;
mod answered;
mod door;
mod empty;
mod verdict;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

pub(crate) use self::door::{Declared, Held, admitted, plain_terms};
use self::{advice::advise, answered::Next, door::Door, verdict::plain_status};
use crate::{
    body::{HttpReservation, MeteredBody, ResponseBody, Transfer, Unread, WhenDropped},
    cause::{Cause, Fault, Resource},
    demand::Demand,
    guard::Admit,
    quota::{Answer, QuotaHold, QuotaSource},
    refusal::{Asked, Refusal, carry_over},
    reservation::{BoxFuture, ReservationOps},
    scope::Scopes,
    settings::Settings,
    steps::Visit,
    time::Bound,
    volume::{Look, Volume},
};

pin_project! {
    /// The response future of [`StorageGuard`](crate::StorageGuard).
    ///
    /// Dropping it cancels the request, which [releases](crate#when-it-is-settled) its reservation.
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
        /// Waiting for admission. Boxed, because nearly every request is admitted at once, and the future is moved
        /// often.
        Door { door: Pin<Box<Door<S, B, Q>>> },
        /// Refused for want of room. Also boxed.
        Refused { refused: Option<Box<(Refusal, Held<S, B>)>> },
        /// Calling the inner service, with everything reserved.
        Inner { #[pin] response: S::Future, guarded: Option<Guarded<Q>> },
        /// The inner service has succeeded: what it stored is charged before the answer is sent.
        Commit {
            #[pin] commit: <Q::Hold as QuotaHold>::Commit,
            time: Bound,
            response: Option<S::Response>,
            advised: Advised,
        },
        /// The same for a complete upload. Boxed, because few requests are the last of several.
        Complete { settled: BoxFuture<bool>, response: Option<S::Response>, advised: Advised },
        /// The answer was a fault, or the body was cut.
        Failed { failed: Option<Box<Failed>> },
        Done,
    }
}

/// A request that failed for want of storage, and the work to do before it is answered.
struct Failed {
    refusal: Refusal,
    /// A full disk's error does not name the resource. The next reading shows it.
    look: Option<Look>,
    /// The inner service's answer by its headers.
    headers: HeaderMap,
    unread: Option<Unread>,
}

impl Failed {
    fn at_the_door(refusal: Refusal, unread: Option<Unread>) -> Self {
        Self {
            refusal,
            look: None,
            headers: HeaderMap::new(),
            unread,
        }
    }

    /// Waits for the reading that says what a full disk lacks.
    fn poll_look(&mut self, cx: &mut Context<'_>, volume: Option<&Volume>) -> Poll<()> {
        if let (Some(look), Some(volume)) = (&mut self.look, volume) {
            ready!(look.poll(cx, volume));
            if volume.lacks_inodes() {
                self.refusal = Fault::new(Cause::DiskFull, Resource::Objects).into();
            }
        }
        Poll::Ready(())
    }
}

/// A request in the inner service. If it is dropped before it is settled, its whole reservation is released.
struct Guarded<Q: QuotaSource> {
    reservation: Arc<HttpReservation<Q>>,
    visit: Option<Box<dyn Visit>>,
    is_http_1: bool,
    /// Whether the answer's body settles the request.
    is_handed_on: bool,
}

impl<Q: QuotaSource> Drop for Guarded<Q> {
    fn drop(&mut self) {
        // The body or the handle may outlive the request, for example in a task that the handler has spawned.
        if !self.is_handed_on {
            self.reservation.end(false);
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

    /// A request that cannot be processed.
    pub(crate) fn refused(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        held: Held<S, B>,
        refusal: Refusal,
    ) -> Self {
        Self::new(settings, asked, State::refused(held, refusal))
    }

    /// A request that was admitted at once.
    #[inline(always)]
    pub(crate) fn inside(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        reservation: Arc<HttpReservation<Q>>,
        drain: WhenDropped,
        response: S::Future,
    ) -> Self {
        let guarded = Some(Guarded::new(reservation, None, drain));
        Self {
            settings,
            asked,
            state: State::Inner { response, guarded },
        }
    }

    /// A request that is refused, or has to wait.
    #[cold]
    pub(crate) fn undecided(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        held: Held<S, B>,
        decision: Admit<Q, Transfer>,
    ) -> Self
    where
        B: Send + 'static,
    {
        let state = State::by_decision(&settings, held, decision);
        Self::new(settings, asked, state)
    }

    /// A request that has to reserve storage.
    pub(crate) fn priced(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        held: Held<S, B>,
        demand: Demand,
    ) -> Self
    where
        B: Send + 'static,
        Q: Send + Sync + 'static,
    {
        let state = State::priced(&settings, held, demand);
        Self::new(settings, asked, state)
    }

    /// A request that draws from the reservation for all steps.
    pub(crate) fn drawn(
        settings: Arc<Settings<Q>>,
        asked: Asked,
        held: Held<S, B>,
        demand: Demand,
    ) -> Self
    where
        B: Send + 'static,
        Q: Send + Sync + 'static,
    {
        let state = State::drawn(&settings, held, demand);
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
        reservation: Option<&Arc<HttpReservation<Q>>>,
        refusal: Refusal,
        headers: HeaderMap,
    ) -> Self {
        let context = &settings.guard.context;
        let volume = context.volume.as_ref();
        let look = volume.and_then(|volume| {
            // The next request has to see it, whatever this request is answered.
            volume.refresh();
            let is_unclear = refusal.fault() == Some(Fault::DISK_FULL) && volume.counts_inodes();
            is_unclear.then(|| Look::new(volume, context.rules.patience))
        });
        Self::Failed {
            failed: Some(Box::new(Failed {
                refusal,
                look,
                headers,
                unread: reservation.and_then(|reservation| {
                    let unread = reservation.take_unread();
                    reservation.end(false);
                    unread
                }),
            })),
        }
    }

    fn commit(
        settings: &Settings<Q>,
        commit: <Q::Hold as QuotaHold>::Commit,
        response: Option<S::Response>,
        advised: Advised,
    ) -> Self {
        Self::Commit {
            commit,
            time: Bound::new(settings.guard.context.rules.quota_timeout),
            response,
            advised,
        }
    }

    #[cold]
    fn refused(held: Held<S, B>, refusal: Refusal) -> Self {
        Self::Refused {
            refused: Some(Box::new((refusal, held))),
        }
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
    Q: QuotaSource,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let settings = &*this.settings;
        loop {
            let StateProj::Inner { response, guarded } = this.state.as_mut().project() else {
                match ready!(this.state.as_mut().poll_waiting(cx, settings, this.asked)) {
                    Some(answer) => return Poll::Ready(Ok(answer)),
                    None => continue,
                }
            };
            let answered = ready!(response.poll(cx));
            let guarded = guarded.take();
            // The inner future may still hold the request's body.
            this.state.set(State::Done);
            // Nearly every answer is a success, and nothing has to wait.
            if let Some(status) = plain_status(&answered) {
                let settled = match &guarded {
                    None => Some(Answer::Now(())),
                    Some(guarded) => guarded.settle_plainly(settings, this.asked, status),
                };
                match settled {
                    Some(Answer::Now(())) => {
                        return Poll::Ready(answered.map(|it| it.map(ResponseBody::inner)));
                    }
                    Some(Answer::Later(commit)) => {
                        let response = answered.ok();
                        this.state
                            .set(State::commit(settings, commit, response, None));
                        continue;
                    }
                    None => {}
                }
            }
            match State::by_answer(settings, this.asked, guarded, answered) {
                Next::Wait(state) => this.state.set(state),
                Next::Done(response) => return Poll::Ready(response),
            }
        }
    }
}

impl<S, B, R, Q> State<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>, Response = Response<R>>,
    S::Error: 'static,
    B: Body + Send + 'static,
    R: Body,
    Q: QuotaSource,
{
    /// Polls what is not in the inner service. Returns the answer, or none if another state follows.
    #[cold]
    fn poll_waiting(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        settings: &Settings<Q>,
        asked: &Asked,
    ) -> Poll<Option<Response<ResponseBody<R>>>> {
        let response = match self.as_mut().project() {
            StateProj::Door { door } => {
                let next = ready!(door.as_mut().poll(cx, settings));
                self.set(next);
                return Poll::Ready(None);
            }
            StateProj::Refused { refused } => {
                let (refusal, held) = *refused.take().expect(ONCE);
                let failed = Failed::at_the_door(refusal, held.unread());
                answer(settings, asked, failed)
            }
            StateProj::Commit {
                commit,
                time,
                response,
                advised,
            } => {
                // By its contract the source keeps the charge even if this future is dropped.
                if commit.poll(cx).is_pending() {
                    ready!(time.poll(cx));
                }
                settings.guard.context.rules.quota_queue.notify();
                charged(settings, response.take().expect(ONCE), advised)
            }
            StateProj::Complete {
                settled,
                response,
                advised,
            } => {
                ready!(settled.as_mut().poll(cx));
                charged(settings, response.take().expect(ONCE), advised)
            }
            StateProj::Failed { failed } => {
                let volume = settings.guard.volume();
                ready!(failed.as_mut().expect(ONCE).poll_look(cx, volume));
                answer(settings, asked, *failed.take().expect(ONCE))
            }
            StateProj::Inner { .. } => return Poll::Ready(None),
            StateProj::Done => panic!("polled after it was ready"),
        };
        self.set(Self::Done);
        Poll::Ready(Some(response))
    }
}

/// Why the values in a state are present: a state is left in the same poll in which they are taken.
const ONCE: &str = "taken once, when the state is left";

impl<Q: QuotaSource> Guarded<Q> {
    #[inline]
    fn new(
        reservation: Arc<HttpReservation<Q>>,
        visit: Option<Box<dyn Visit>>,
        drain: WhenDropped,
    ) -> Self {
        Self {
            reservation,
            visit,
            is_http_1: drain != WhenDropped::Reset,
            is_handed_on: false,
        }
    }

    /// Settles a request that has succeeded, and whose body was read: nearly every one. None where it is another; then nothing has
    /// happened.
    #[inline(always)]
    fn settle_plainly(
        &self,
        settings: &Settings<Q>,
        asked: &Asked,
        status: StatusCode,
    ) -> Option<Answer<<Q::Hold as QuotaHold>::Commit>> {
        let is_success = status.is_success() && status != StatusCode::MULTI_STATUS
            || status == StatusCode::SEE_OTHER;
        let judges = settings.http.success.is_some() || asked.protocol().is_some();
        let advises = settings.http.advice.is_any();
        if !is_success || judges || advises || self.visit.is_some() {
            return None;
        }
        let ended = self.reservation.end_if_plain()?;
        let Some((hold, change)) = ended.into_commit() else {
            return Some(Answer::Now(()));
        };
        let answer = hold.commit(change);
        if let Answer::Now(()) = answer {
            settings.guard.context.rules.quota_queue.notify();
        }
        Some(answer)
    }

    /// The scopes that the request is charged to, or the whole that it is a part of.
    #[cold]
    fn scopes(&self) -> Scopes {
        let whole = self.visit.as_ref().and_then(|visit| visit.scopes());
        whole.unwrap_or_else(|| self.reservation.scopes().clone())
    }

    fn advised(&self, settings: &Settings<Q>) -> Advised {
        let advises = settings.http.advice.is_any();
        advises.then(|| Box::new(self.scopes()))
    }

    /// Whether the answer comes before the end of the request, on a connection that others may use behind it (HTTP/1).
    fn is_early(&self) -> bool {
        self.is_http_1 && self.reservation.is_unfinished()
    }

    /// Leaves the settlement to the answer's body.
    fn hand_on(mut self) -> Arc<HttpReservation<Q>> {
        self.is_handed_on = true;
        Arc::clone(&self.reservation)
    }
}

/// The scopes of whose quotas the answer tells. None if the layer tells nothing. Boxed, because few do.
type Advised = Option<Box<Scopes>>;

/// The answer of a success that is charged.
fn charged<R, Q: QuotaSource>(
    settings: &Settings<Q>,
    mut response: Response<R>,
    advised: &Advised,
) -> Response<ResponseBody<R>> {
    if let Some(scopes) = advised {
        advise(settings, scopes, &mut response);
    }
    response.map(ResponseBody::inner)
}

/// Renders a refusal, and drains the unread rest.
fn answer<R, Q>(
    settings: &Settings<Q>,
    asked: &Asked,
    failed: Failed,
) -> Response<ResponseBody<R>> {
    let responder = &settings.http.responder;
    let response = responder.answers.answer(failed.refusal, asked);
    let mut response = response.map(ResponseBody::refusal);
    carry_over(failed.headers, response.headers_mut());
    if let Some(unread) = failed.unread {
        close_after(&mut response, unread.closes());
        responder.drains.start(unread);
    }
    response
}

/// Announces that the connection closes behind an answer which comes before the end of its request. A proxy that uses it again
/// would take the rest for another request.
fn close_after<R>(response: &mut Response<R>, closes: bool) {
    if closes {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
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
