//! The bodies of both directions.

mod request;
mod response;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::Body;

pub use self::{request::MeteredBody, response::ResponseBody};
pub(crate) use self::{request::WhenDropped, response::Drain};

/// A request body that nobody reads any more, to be drained so that the answer arrives.
pub(crate) type Unread = Pin<Box<dyn Discard + Send>>;

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
