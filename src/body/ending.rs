//! How an answer ends: where its content ends, or as its protocol says.

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::{
    protocol::{Last, Piece, Tail},
    refusal::{Answers, Asked},
    refused::Refused,
};

/// Where the outcome of an answer is, whose head is out.
pub(crate) enum Ending {
    /// The head has said it all. What can still fail is the sending.
    Length {
        /// The length that was announced, in bytes.
        expected: Option<u64>,
        sent: u64,
    },
    /// The protocol says it behind the head.
    Tail {
        asked: Box<Asked>,
        tail: Box<dyn Tail>,
    },
}

/// A frame that was read.
pub(super) enum Read<D> {
    /// It says nothing of the outcome.
    Goes(Frame<D>),
    /// It says the outcome: whether that is success.
    Last(Last, bool),
}

impl Ending {
    /// The end of an answer whose head says success.
    pub(crate) fn of_content(size: &SizeHint) -> Self {
        Self::Length {
            expected: size.exact(),
            sent: 0,
        }
    }

    /// The end of an answer with this head, where the protocol says it. None where the head has said it.
    pub(crate) fn of_protocol(asked: &Asked, head: &HeaderMap) -> Option<Self> {
        let tail = asked.protocol()?.tail(head)?;
        let asked = Box::new(asked.clone());
        Some(Self::Tail { asked, tail })
    }

    /// Whether it ends where its content ends. Then that is as long as the inner service says, and whole at its
    /// end. Otherwise it may end in a refusal instead, which is longer or shorter.
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
                // For `Bytes` this copies nothing.
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

    /// Whether all of it was sent when it is dropped: a transport that has sent the announced length does not poll it
    /// again.
    pub(super) fn is_success_when_dropped(&self) -> bool {
        matches!(self, Self::Length { expected, sent } if *expected == Some(*sent))
    }

    /// What says that the request was refused after all. None where there is no place for it.
    pub(super) fn refusal(&self, answers: &Answers, refused: &Refused) -> Option<Last> {
        let Self::Tail { asked, tail } = self else {
            return None;
        };
        let answer = answers.answer(refused.clone().into(), asked);
        tail.refuse(answer.into_parts().0.headers)
    }
}
