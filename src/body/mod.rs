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
    request::{BodyRules, WhenDropped},
    responder::Responder,
    silence::Silence,
    watch::Watch,
};
pub use self::{request::MeteredBody, response::ResponseBody};

/// The rest of a request body that the handler no longer reads.
pub(crate) struct Unread {
    body: Rest,
    drain: WhenDropped,
}

impl Unread {
    pub(crate) fn new(body: Rest, drain: WhenDropped) -> Self {
        Self { body, drain }
    }

    /// Whether the connection cannot be used any more, because the answer comes before the end of the request (HTTP/1).
    pub(crate) fn closes(&self) -> bool {
        self.drain != WhenDropped::Reset && !self.body.is_done()
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
