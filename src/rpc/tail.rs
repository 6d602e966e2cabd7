//! The end of calls.

use http::HeaderMap;
use tower::BoxError;

use super::{Rpc, is_ok, trailers, web};
use crate::protocol::{Last, Piece, Protocol, Tail};

impl Protocol for Rpc {
    fn has_failed(&self, head: &HeaderMap) -> bool {
        is_ok(head) == Some(false)
    }

    fn tail(&self, head: &HeaderMap) -> Option<Box<dyn Tail>> {
        if is_ok(head).is_some() {
            // Trailers-Only: the call has ended with its head.
            return None;
        }
        match Self::of_answer(head)? {
            Self::Grpc => Some(Box::new(InTrailers)),
            Self::GrpcWeb => Some(Box::new(web::InContent::new(false))),
            Self::GrpcWebText => Some(Box::new(web::InContent::new(true))),
            Self::ConnectUnary | Self::ConnectStream => None,
        }
    }

    fn body_error(&self, error: BoxError) -> BoxError {
        BrokenOff { error }.into()
    }
}

/// gRPC: the status is in the trailers.
struct InTrailers;

impl Tail for InTrailers {
    fn is_in_content(&self) -> bool {
        false
    }

    fn read(&mut self, frame: Piece<'_>) -> Option<bool> {
        match frame {
            Piece::Data(_) => None,
            Piece::Trailers(trailers) => Some(is_ok(trailers) == Some(true)),
        }
    }

    fn refuse(&self, headers: HeaderMap) -> Option<Last> {
        trailers(headers).map(Last::Trailers)
    }
}

/// The client of a call disconnected before its request had ended.
///
/// tonic searches the source chain of a body's error for a reset by the client, and treats it as the end of the
/// stream: half an upload would look complete. So the error is not exposed as a source.
#[derive(Debug, thiserror::Error)]
#[error("the request broke off before its end")]
struct BrokenOff {
    /// For Debug.
    error: BoxError,
}
