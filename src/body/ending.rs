//! How an answer ends: at the end of its content, or as its protocol says.

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::{
    protocol::{Last, Piece, Tail},
    refusal::{Answers, Asked},
    refused::Refused,
};

/// Where the outcome of an answer is, after its head was sent.
pub(crate) enum Ending {
    /// The head has the outcome. Only the transfer can still fail.
    Length {
        /// The length that was announced, in bytes.
        expected: Option<u64>,
        sent: u64,
    },
    /// The protocol sends it after the head.
    Tail { asked: Asked, tail: Box<dyn Tail> },
}

/// A frame that was read.
pub(super) enum Read<D> {
    /// It says nothing about the outcome.
    Goes(Frame<D>),
    /// It has the outcome: whether the request succeeded.
    Last(Last, bool),
}

impl Ending {
    /// The end of an answer whose head reports success.
    pub(crate) fn of_content(size: &SizeHint) -> Self {
        Self::Length {
            expected: size.exact(),
            sent: 0,
        }
    }

    /// The end of an answer with this head, if the protocol sends the outcome after the head. None if the head has
    /// it.
    pub(crate) fn of_protocol(asked: &Asked, head: &HeaderMap) -> Option<Self> {
        let tail = asked.protocol()?.tail(head)?;
        let asked = asked.clone();
        Some(Self::Tail { asked, tail })
    }

    /// Whether the answer ends where its content ends. Then it has the length that the inner service announced, and
    /// is complete at its end. Otherwise it may end in a refusal instead, which has another length.
    pub(super) fn is_of_content(&self) -> bool {
        matches!(self, Self::Length { .. })
    }

    pub(super) fn read<D: Buf + From<Bytes>>(&mut self, frame: Frame<D>) -> Read<D> {
        let tail = match self {
            Self::Length { sent, .. } => {
                let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                *sent = sent.saturating_add(bytes);
                return Read::Goes(frame);
            }
            Self::Tail { tail, .. } => tail,
        };
        match frame.into_data() {
            Ok(mut data) if tail.is_in_content() => {
                // Does not copy if the data are `Bytes`.
                let data = data.copy_to_bytes(data.remaining());
                match tail.read(Piece::Data(&data)) {
                    Some(success) => Read::Last(Last::Data(data), success),
                    None => Read::Goes(Frame::data(data.into())),
                }
            }
            Ok(data) => Read::Goes(Frame::data(data)),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => match tail.read(Piece::Trailers(&trailers)) {
                    Some(success) => Read::Last(Last::Trailers(trailers), success),
                    None => Read::Goes(Frame::trailers(trailers)),
                },
                Err(frame) => Read::Goes(frame),
            },
        }
    }

    /// Whether all of the content was sent when the body is dropped: a transport that has sent the announced length
    /// does not poll again.
    pub(super) fn is_success_when_dropped(&self) -> bool {
        matches!(self, Self::Length { expected, sent } if *expected == Some(*sent))
    }

    /// The frame that reports the refusal. None if the protocol has no place for it.
    pub(super) fn refusal(&self, answers: &Answers, refused: &Refused) -> Option<Last> {
        let Self::Tail { asked, tail } = self else {
            return None;
        };
        let answer = answers.answer(refused.clone().into(), asked);
        tail.refuse(answer.into_parts().0.headers)
    }
}
