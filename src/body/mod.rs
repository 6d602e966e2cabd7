//! The bodies of both directions.

mod drain;
mod ending;
mod exchange;
mod request;
mod responder;
mod response;
mod silence;
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
    silence::Silence,
    watch::Watch,
};
pub use self::{request::MeteredBody, response::ResponseBody};

/// A request body that the handler no longer reads, to be drained so that the answer arrives.
pub(crate) struct Unread {
    body: Rest,
    /// Whether the transport is about to reset the stream, so that only a delay is needed.
    is_reset: bool,
}

impl Unread {
    /// The rest of a body that has to be drained.
    pub(crate) fn new(body: Rest, drain: WhenDropped) -> Option<Self> {
        let is_reset = match drain {
            WhenDropped::Drain => false,
            WhenDropped::Reset => true,
            WhenDropped::DrainOncePolled => return None,
        };
        Some(Self { body, is_reset })
    }
}

/// The rest of a body, whatever its type.
pub(crate) type Rest = Pin<Box<dyn Discard + Send>>;

/// A body that can only be discarded, whatever its data type.
pub(crate) trait Discard {
    /// Discards the next frame and returns its length in bytes. None at the end, or after an error.
    fn poll_discard(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>>;

    /// Whether the body has ended.
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
