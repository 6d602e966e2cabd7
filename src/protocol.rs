//! Protocols over HTTP that do not report a request's outcome in the status: the hooks for their answers.

use bytes::Bytes;
use http::{HeaderMap, request};
use http_body::Frame;
use tower::BoxError;

/// A protocol that reports a request's outcome elsewhere than in the status.
pub(crate) trait Protocol: Send + Sync {
    /// Whether the head of an answer reports failure, whatever its status is.
    fn has_failed(&self, head: &HeaderMap) -> bool;

    /// Finds the outcome of an answer after this head. None if the head has it.
    fn tail(&self, head: &HeaderMap) -> Option<Box<dyn Tail>>;

    /// The error that the inner service reads from a request body that has failed.
    fn body_error(&self, error: BoxError) -> BoxError;
}

/// Searches the frames of an answer for its outcome.
pub(crate) trait Tail: Send + Sync {
    /// Whether the content has the outcome. Otherwise only the trailers are read.
    fn is_in_content(&self) -> bool;

    /// Whether these data, or these trailers, report success. None if they do not have the outcome.
    fn read(&mut self, frame: Piece<'_>) -> Option<bool>;

    /// The frame that refuses the request after all, made from the headers of a refusal. None if the protocol has no
    /// place for it here.
    fn refuse(&self, headers: HeaderMap) -> Option<Last>;
}

/// The parts of an answer that a [`Tail`] is given.
pub(crate) enum Piece<'a> {
    Data(&'a [u8]),
    Trailers(&'a HeaderMap),
}

/// The frame of an answer that has its outcome.
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

/// Distinguishes a protocol's requests that write from those that do not.
pub(crate) trait Select: Send + Sync {
    /// Whether a request with this head is guarded. Asked for requests of a [`Protocol`] only. None if it is not one of
    /// this protocol.
    fn guards(&self, head: &request::Parts) -> Option<bool>;
}
