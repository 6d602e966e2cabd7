//! The metered request body.

use std::{
    fmt,
    mem::ManuallyDrop,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use sync_wrapper::SyncFuture;
use tower::BoxError;

use super::{
    BodyEnd, Exchange,
    silence::{Awaited, Event},
    unread::{Rest, Unread, WhenDropped},
};
use crate::{refused::Refused, reservation::BoxFuture};

pin_project! {
    /// A request body that is counted as it is read, and cut when it exceeds the reserved size and the reservation
    /// cannot grow. The error is then [`Refused`].
    ///
    /// The body of an unguarded request is passed through unchanged.
    ///
    /// It is `Send` and `Sync` if `B` and its data are.
    ///
    /// # Its error
    ///
    /// The error is a [`BoxError`]: that of `B`, in the same box, or a [`Refused`]. Only the error of a remote
    /// procedure call is wrapped in an error without a source, because tonic treats a reset as the end of the stream.
    /// Other errors must stay as they are: axum finds the error of a body limit (`http_body_util::LengthLimitError`) by
    /// downcasts of a fixed depth, so a wrapper type of this crate would turn a 413 into a 400. For the same reason,
    /// put tower-http's `RequestBodyLimit` and the guard into one `ServiceBuilder`: each `Router::layer` whose layer
    /// changes the body type adds one level.
    ///
    /// For a service that needs a concrete error type, convert it with `map_err`:
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body::Body;
    /// use http_body_util::{BodyExt, Full};
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_storage_guard::{BoxError, MeteredBody, StorageGuardLayer, Volume};
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// #[error("reading the request failed")]
    /// struct ReadError(#[source] BoxError);
    ///
    /// async fn store<B: Body<Error = ReadError>>(_: Request<B>) -> Result<Response<String>, Infallible> {
    ///     Ok(Response::default())
    /// }
    ///
    /// # fn main() -> Result<(), BoxError> {
    /// let service = service_fn(store)
    ///     .map_request(|request: Request<MeteredBody<Full<Bytes>>>| request.map(|body| body.map_err(ReadError)));
    /// let service = StorageGuardLayer::new(Volume::open(std::env::temp_dir())?).layer(service);
    /// # drop(service.oneshot(Request::new(Full::default())));
    /// # Ok(())
    /// # }
    /// ```
    pub struct MeteredBody<B>
    where
        B: Body,
    {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B>
    where
        B: Body,
    {
        Open { #[pin] body: B },
        Metered { metered: Metered<B> },
    }
}

struct Metered<B: Body> {
    /// None once it has ended. Boxed so that it can be handed over for draining.
    body: Option<Pin<Box<B>>>,
    exchange: Arc<dyn Exchange>,
    received: u64,
    /// The limit of the meter when it was last read.
    reserved: u64,
    /// Boxed, because bodies are moved often.
    rare: Option<Box<Rare<B>>>,
    /// The next poll has more to do than to read a frame: one waits for room, or the client was awaited.
    is_waiting: bool,
    drain: WhenDropped,
    /// Receives an unfinished body, for the code that answers to drain.
    hand_on: fn(Pin<Box<B>>) -> Rest,
}

/// What few bodies have.
struct Rare<B: Body> {
    /// A frame that waits for room.
    growing: Option<(Frame<B::Data>, Growth)>,
    /// The wait for the client.
    awaited: Awaited,
    /// Others may have taken back what was not delivered.
    may_lack: bool,
}

impl<B: Body> Default for Rare<B> {
    fn default() -> Self {
        Self {
            growing: None,
            awaited: Awaited::default(),
            may_lack: false,
        }
    }
}

type Polled<B> = Poll<Option<Result<Frame<<B as Body>::Data>, BoxError>>>;

type Growth = SyncFuture<BoxFuture<Result<u64, Refused>>>;

impl<B: Body> MeteredBody<B> {
    /// Wraps a body that is not metered.
    pub(crate) fn open(body: B) -> Self {
        Self {
            kind: Kind::Open { body },
        }
    }

    /// Wraps a body that is metered, with room for so many bytes at first. None if it has ended already.
    #[inline]
    pub(crate) fn new(
        body: Option<Pin<Box<B>>>,
        exchange: Arc<dyn Exchange>,
        room: u64,
        drain: WhenDropped,
    ) -> Self
    where
        B: Send + 'static,
    {
        let has_ended = body.as_ref().is_none_or(|body| body.is_end_stream());
        let mut metered = Metered {
            body,
            received: 0,
            reserved: room,
            exchange,
            rare: None,
            is_waiting: drain == WhenDropped::DrainOncePolled,
            drain,
            hand_on: |body| body,
        };
        if has_ended {
            metered.end(None);
        }
        Self {
            kind: Kind::Metered { metered },
        }
    }
}

impl<B> Body for MeteredBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    // Not a type of this crate: see above.
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Open { body } => body.poll_frame(cx).map_err(Into::into),
            KindProj::Metered { metered } => metered.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Open { body } => body.is_end_stream(),
            Kind::Metered { metered } => metered.body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Open { body } => body.size_hint(),
            Kind::Metered { metered } => metered.size_hint(),
        }
    }
}

impl<B> Metered<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    /// Most frames take this way. A frame is large, and is written once: without the [`ManuallyDrop`] it would be copied, so that
    /// a panic can drop it. Now a panic leaks it.
    #[inline]
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled<B> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if self.is_waiting {
            return self.poll_waiting(cx);
        }
        let meter = self.exchange.meter();
        if meter.is_closed() {
            return Poll::Ready(Some(Err(self.closed())));
        }
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let frame = ManuallyDrop::new(frame);
                let received = self.received.saturating_add(length(&frame));
                if received > self.reserved {
                    return self.take(Some(Ok(ManuallyDrop::into_inner(frame))), cx);
                }
                self.received = received;
                meter.set_received(received);
                // A consumer may stop here and never poll again.
                if body.is_end_stream() {
                    self.end(None);
                }
                Poll::Ready(Some(Ok(ManuallyDrop::into_inner(frame))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.failed(error.into())))),
            Poll::Ready(None) => {
                self.end(None);
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }

    /// Like [`Self::poll_frame`], for the first poll after a wait.
    #[cold]
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Polled<B> {
        if self.exchange.meter().is_closed() {
            return Poll::Ready(Some(Err(self.closed())));
        }
        if self
            .rare
            .as_ref()
            .is_some_and(|rare| rare.growing.is_some())
        {
            return self.poll_growth(cx);
        }
        if self.drain == WhenDropped::DrainOncePolled {
            self.drain = WhenDropped::Drain;
        }
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
            return self.poll_silence(cx);
        };
        let is_empty = |frame: &Frame<B::Data>| frame.is_data() && length(frame) == 0;
        let has_come = !matches!(&frame, Some(Ok(frame)) if is_empty(frame));
        if has_come {
            self.is_waiting = false;
            if self.rare.as_mut().is_some_and(|rare| rare.awaited.came()) {
                self.go_on();
            }
        }
        self.take(frame, cx)
    }

    /// Counts what was read, and passes it on if there is room for it.
    #[cold]
    fn take(
        &mut self,
        frame: Option<Result<Frame<B::Data>, B::Error>>,
        cx: &mut Context<'_>,
    ) -> Polled<B> {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(self.failed(error.into())))),
            None => {
                self.end(None);
                return Poll::Ready(None);
            }
        };
        let received = self.received.saturating_add(length(&frame));
        if received > self.reserved && !self.has_room_for(received) {
            self.hold_back(frame);
            return self.poll_growth(cx);
        }
        self.pass(received);
        Poll::Ready(Some(Ok(frame)))
    }

    /// The answer has ended first, and with it the reservation.
    #[cold]
    fn closed(&mut self) -> BoxError {
        let refused = self.exchange.refused().unwrap_or_else(Refused::unavailable);
        self.give_up();
        refused.into()
    }

    #[cold]
    fn failed(&mut self, error: BoxError) -> BoxError {
        self.body = None;
        self.exchange.body_ended(BodyEnd::Failed);
        match self.exchange.rules().protocol {
            Some(protocol) => protocol.body_error(error),
            None => error,
        }
    }

    /// How much of what is reserved is for the body. The service copies the rest.
    fn room(&self) -> u64 {
        let demand = self.exchange.demand();
        if self.may_lack() && demand.stores_body() {
            // Without what the handler has reserved by itself, which was not taken back.
            return self.received.saturating_add(self.exchange.unread());
        }
        demand.room_for_body(self.exchange.meter().reserved())
    }

    /// Waits for the client, which has sent nothing more.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Polled<B> {
        self.is_waiting = true;
        let rare = self.rare.get_or_insert_default();
        let rules = self.exchange.rules();
        let silence = rules.responder.silence(rules.is_named_call);
        loop {
            match ready!(rare.awaited.poll(silence, self.received, cx)) {
                Event::Silent(since) => Arc::clone(&self.exchange).fall_silent(since),
                Event::Stalled => {
                    // The answer may take its time, and the room is not needed any more.
                    self.exchange.give_back_unread();
                    return Poll::Ready(Some(Err(self.cut(Refused::stalled()))));
                }
            }
        }
    }

    /// The client goes on after a silence, with what is left of its reservation.
    #[cold]
    fn go_on(&mut self) {
        self.exchange.go_on();
        if let Some(rare) = &mut self.rare {
            rare.may_lack = true;
        }
        self.reserved = self.room();
    }

    /// Whether the reservation has grown since its limit was read, so that there is room for all that was received.
    #[cold]
    fn has_room_for(&mut self, received: u64) -> bool {
        self.reserved = self.room();
        received <= self.reserved
    }

    /// Holds a frame that there is no room for, and begins to make room.
    #[cold]
    fn hold_back(&mut self, frame: Frame<B::Data>) {
        let received = self.received.saturating_add(length(&frame));
        let mut all = received;
        if self.may_lack() {
            // Everything that is to come has to be reserved again, so that it is not cut later.
            let demand = self.exchange.demand();
            let declared = demand.bytes().unwrap_or(0).saturating_sub(demand.copied());
            all = all.max(declared);
        }
        let need = all - self.reserved;
        let want = need.max(self.exchange.next_grant());
        let growth = SyncFuture::new(Arc::clone(&self.exchange).grow(need, want));
        self.rare.get_or_insert_default().growing = Some((frame, growth));
        self.is_waiting = true;
    }

    /// Waits until there is room for the frame that is held, or cuts the body.
    #[cold]
    fn poll_growth(&mut self, cx: &mut Context<'_>) -> Polled<B> {
        let Some(rare) = &mut self.rare else {
            return Poll::Ready(None);
        };
        let Some((_, growth)) = &mut rare.growing else {
            return Poll::Ready(None);
        };
        let grown = ready!(Pin::new(growth).poll(cx));
        let Some((frame, _)) = rare.growing.take() else {
            return Poll::Ready(None);
        };
        self.is_waiting = false;
        Poll::Ready(Some(match grown {
            Ok(_) => {
                self.reserved = self.room();
                self.pass(self.received.saturating_add(length(&frame)));
                Ok(frame)
            }
            Err(refused) => Err(self.cut(refused)),
        }))
    }

    /// Ends the body with an error.
    fn cut(&mut self, refused: Refused) -> BoxError {
        let unread = self.take_rest();
        self.exchange.cut(&refused, unread);
        self.end(None);
        refused.into()
    }

    /// Passes a frame on to the handler.
    #[inline]
    fn pass(&mut self, received: u64) {
        self.received = received;
        self.exchange.meter().set_received(received);
        // A consumer may stop here and never poll again.
        if self.body.as_ref().is_some_and(|body| body.is_end_stream()) {
            self.end(None);
        }
    }
}

impl<B: Body> Metered<B> {
    fn may_lack(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.may_lack)
    }

    fn end(&mut self, unread: Option<Unread>) {
        self.body = None;
        self.rare = None;
        if let Some(left) = self.exchange.body_ended(BodyEnd::Read(unread)) {
            self.drain(left);
        }
    }

    /// The code that answers is done. Its answer may still be on its way.
    #[cold]
    fn drain(&self, left: Unread) {
        if left.closes() {
            self.exchange.rules().responder.drain(Some(left));
        }
    }

    /// Ends the body early. The rest is handed to the code that answers.
    #[cold]
    fn give_up(&mut self) {
        let unread = self.take_rest();
        self.end(unread);
    }

    fn take_rest(&mut self) -> Option<Unread> {
        let body = self.body.take()?;
        Some(Unread::new((self.hand_on)(body), self.drain))
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.as_ref().map(|body| body.size_hint());
        let rest = rest.unwrap_or_else(|| SizeHint::with_exact(0));
        let growing = self.rare.as_ref().and_then(|rare| rare.growing.as_ref());
        match growing {
            Some((held, _)) => rest + SizeHint::with_exact(length(held)),
            None => rest,
        }
    }
}

/// In bytes of data: trailers are not counted.
fn length<D: Buf>(frame: &Frame<D>) -> u64 {
    frame.data_ref().map_or(0, |data| data.remaining() as u64)
}

impl<B: Body> Drop for Metered<B> {
    #[inline]
    fn drop(&mut self) {
        if self.body.is_some() {
            self.give_up();
        }
    }
}

impl<B: Body> fmt::Debug for MeteredBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("MeteredBody");
        if let Kind::Metered { metered } = &self.kind {
            debug.field("received", &metered.received);
        }
        debug.finish_non_exhaustive()
    }
}
