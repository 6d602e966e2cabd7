//! The bodies of both directions.

mod drain;
mod ending;
mod exchange;
mod request;
mod responder;
mod response;
mod watch;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::Body;

pub(crate) use self::{
    ending::Ending,
    exchange::{BodyEnd, Exchange, HttpReservation},
    request::WhenDropped,
    responder::Responder,
    watch::Watch,
};
pub use self::{request::MeteredBody, response::ResponseBody};

/// A request body that nobody reads any more, to be drained so that the answer arrives.
pub(crate) struct Unread {
    body: Rest,
    /// Whether the transport is about to reset the stream, and only has to be held off for a while.
    is_reset: bool,
}

impl Unread {
    /// The rest of a body, where somebody has to drain it.
    pub(crate) fn new(body: Rest, drain: WhenDropped) -> Option<Self> {
        let is_reset = match drain {
            WhenDropped::Drain => false,
            WhenDropped::Reset => true,
            WhenDropped::DrainOncePolled => return None,
        };
        Some(Self { body, is_reset })
    }
}

/// What is left of a body, whatever its type.
pub(crate) type Rest = Pin<Box<dyn Discard + Send>>;

/// A body that can only be thrown away, whatever its data are.
pub(crate) trait Discard {
    /// The number of bytes thrown away next. None at the end, or after an error.
    fn poll_discard(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>>;

    /// Whether there is nothing left.
    fn is_done(&self) -> bool;
}

impl<B: Body> Discard for B {
    fn poll_discard(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        Poll::Ready(match ready!(self.poll_frame(cx)) {
            Some(Ok(frame)) => Some(frame.data_ref().map_or(0, |data| data.remaining() as u64)),
            Some(Err(_)) | None => None,
        })
    }

    fn is_done(&self) -> bool {
        self.is_end_stream()
    }
}
