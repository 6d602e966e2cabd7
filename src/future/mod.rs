//! Price, reserve, call, settle: the way of a request as one future.

mod door;
mod verdict;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

pub(crate) use self::door::Held;
use self::{
    door::Door,
    verdict::{carry_over, is_failed_call, means_success, of_error, of_response},
};
use crate::{
    Price, Scopes,
    body::{Ending, MeteredBody, ResponseBody, Unread, Watch},
    fault::{Cause, Fault, Resource},
    layer::{Priced, Settings},
    quota::{QuotaHold, QuotaSource},
    refusal::{Asked, Refusal},
    reservation::{Cell, Ended},
    time::Bound,
    volume::{Look, Volume},
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
        price: Price,
    ) -> Self
    where
        B: Send + 'static,
        Q: Send + Sync + 'static,
    {
        let state = State::at_volume(&settings, held, scopes, price);
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
                        // As in the trailers: there nobody asks what HTTP's status is either.
                        _ if is_failed_call(this.asked, response.headers()) => false,
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
                    if response.status() == StatusCode::MULTI_STATUS {
                        // RFC 4918, section 13: of a DELETE or a MOVE, that some of it is still there.
                        guarded.cell.keep_all();
                    }
                    if let Some(ending) = Ending::of_call(this.asked, response.headers()) {
                        // A refusal in its place would have another length.
                        response.headers_mut().remove(CONTENT_LENGTH);
                        let watch = Watch::new(guarded.hand_on(), ending);
                        let watched = |body| ResponseBody::watched(body, watch);
                        return Poll::Ready(Ok(response.map(watched)));
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
                            let ending = Ending::of_content(&response.body().size_hint());
                            let watch = Watch::new(guarded.hand_on(), ending);
                            let watched = |body| ResponseBody::watched(body, watch);
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

impl<Q: QuotaSource> Guarded<Q> {
    /// Leaves the settling to somebody else.
    fn hand_on(mut self) -> Arc<Cell<Q>> {
        self.is_handed_on = true;
        Arc::clone(&self.cell)
    }
}

/// Renders a refusal, with what has to be drained behind it.
fn answer<R, Q>(
    settings: &Settings<Q>,
    asked: &Asked,
    refusal: Refusal,
    unread: Option<Unread>,
) -> Response<ResponseBody<R>> {
    let drain = settings.drain(unread);
    settings
        .answers
        .answer(refusal, asked)
        .map(|content| ResponseBody::refusal(content, drain))
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
