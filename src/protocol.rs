//! Protocols over HTTP that do not say in the status how a request ended: where one takes part in an answer's way.

use bytes::Bytes;
use http::{HeaderMap, request};
use http_body::Frame;
use tower::BoxError;

/// A protocol that says how a request ended elsewhere than in the status.
pub(crate) trait Protocol: Send + Sync {
    /// Whether the head of an answer says that the request has failed, whatever its status is.
    fn has_failed(&self, head: &HeaderMap) -> bool;

    /// Reads how an answer ends behind this head. None where the head has said it.
    fn tail(&self, head: &HeaderMap) -> Option<Box<dyn Tail>>;

    /// The error that the inner service reads from a request body that has failed.
    fn body_error(&self, error: BoxError) -> BoxError;
}

/// Looks in the frames of an answer for what says how it ends.
pub(crate) trait Tail: Send + Sync {
    /// Whether the content is where it is said. Otherwise only the trailers are read.
    fn is_in_content(&self) -> bool;

    /// Whether these data, or these trailers, say that the request has succeeded. None where they do not say how it ended.
    fn read(&mut self, frame: Piece<'_>) -> Option<bool>;

    /// The frame that refuses the request after all, from the headers of an answer that does so. None where it has no
    /// place here.
    fn refuse(&self, headers: HeaderMap) -> Option<Last>;
}

/// What a [`Tail`] is shown of an answer.
pub(crate) enum Piece<'a> {
    Data(&'a [u8]),
    Trailers(&'a HeaderMap),
}

/// The frame of an answer that says how it ends.
pub(crate) enum Last {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Last {
    pub(crate) fn into_frame<D: From<Bytes>>(self) -> Frame<D> {
        match self {
            Self::Data(data) => Frame::data(data.into()),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

/// Tells a protocol's requests that write from those that do not.
pub(crate) trait Select: Send + Sync {
    /// Whether a request with this head is guarded. None where it is not the protocol's.
    fn guards(&self, head: &request::Parts) -> Option<bool>;
}
