//! The rest of a request body that the handler does not read.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::Version;
use http_body::Body;

/// The rest of a request body that the handler no longer reads.
pub(crate) struct Unread {
    pub(super) body: Rest,
    pub(super) drain: WhenDropped,
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

/// How the rest of a body is handled that is not read to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WhenDropped {
    /// The transport resets the stream by itself (HTTP/2). If the reset directly follows the answer, some clients
    /// lose the answer.
    Reset,
    /// The client is sending: the body has to be read, or the answer is lost (HTTP/1).
    Drain,
    /// The client may wait for `100 Continue`, which the first poll of the body asks for.
    DrainOncePolled,
}

impl WhenDropped {
    #[inline]
    pub(crate) fn of(version: Version, expects_continue: bool) -> Self {
        if version >= Version::HTTP_2 {
            Self::Reset
        } else if expects_continue {
            Self::DrainOncePolled
        } else {
            Self::Drain
        }
    }
}
