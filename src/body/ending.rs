//! How an answer ends: where its content ends, or with the status of a call.

use bytes::{Buf, Bytes};
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};

use super::web::{self, WebReader};
use crate::{
    refusal::{Answers, Asked},
    refused::Refused,
    rpc::{self, GRPC_STATUS, Rpc},
};

/// Where the outcome of an answer is, whose head is out.
pub(crate) enum Ending {
    /// The head has said it all. What can still fail is the sending.
    Length {
        /// The length that was announced, in bytes.
        expected: Option<u64>,
        sent: u64,
    },
    /// gRPC: in the trailers.
    Trailers(Box<Asked>),
    /// gRPC-Web: in the last frame of the content.
    Web(Box<Web>),
}

pub(crate) struct Web {
    asked: Asked,
    reader: WebReader,
}

/// A frame that was read.
pub(super) enum Read<D> {
    /// It says nothing of the outcome.
    Goes(Frame<D>),
    /// It says the outcome: whether that is success.
    Last(Last, bool),
}

/// The frame of an answer that says how it ends.
pub(super) enum Last {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Last {
    pub(super) fn into_frame<D: From<Bytes>>(self) -> Frame<D> {
        match self {
            Self::Data(data) => Frame::data(data.into()),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

impl Ending {
    /// The end of an answer whose head says success.
    pub(crate) fn of_content(size: &SizeHint) -> Self {
        Self::Length {
            expected: size.exact(),
            sent: 0,
        }
    }

    /// The end of a call that is answered so. None where it is answered as any other request.
    pub(crate) fn of_call(asked: &Asked, head: &HeaderMap) -> Option<Self> {
        asked.rpc()?;
        if rpc::is_ok(head).is_some() {
            // Trailers-Only: it has ended with its head.
            return None;
        }
        match Rpc::of_answer(head)? {
            Rpc::Grpc => Some(Self::Trailers(Box::new(asked.clone()))),
            rpc @ (Rpc::GrpcWeb | Rpc::GrpcWebText) => {
                let reader = WebReader::new(rpc == Rpc::GrpcWebText);
                let asked = asked.clone();
                Some(Self::Web(Box::new(Web { asked, reader })))
            }
            Rpc::ConnectUnary | Rpc::ConnectStream => None,
        }
    }

    /// Whether it ends where its content ends. Then that is as long as the inner service says, and whole at its
    /// end. A call says how it ended, and may end in a refusal instead, which is longer or shorter.
    pub(super) fn is_of_content(&self) -> bool {
        matches!(self, Self::Length { .. })
    }

    pub(super) fn read<D: Buf + From<Bytes>>(&mut self, frame: Frame<D>) -> Read<D> {
        match self {
            Self::Length { sent, .. } => {
                let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                *sent = sent.saturating_add(bytes);
                Read::Goes(frame)
            }
            Self::Trailers(_) => match frame.into_trailers() {
                Ok(trailers) => {
                    let success = rpc::is_ok(&trailers) == Some(true);
                    Read::Last(Last::Trailers(trailers), success)
                }
                Err(frame) => Read::Goes(frame),
            },
            Self::Web(web) => match frame.into_data() {
                Ok(mut data) => {
                    // For `Bytes` this copies nothing.
                    let data = data.copy_to_bytes(data.remaining());
                    match web.reader.read(&data) {
                        Some(trailers) => {
                            let success = web::is_ok(&trailers);
                            Read::Last(Last::Data(data), success)
                        }
                        None => Read::Goes(Frame::data(data.into())),
                    }
                }
                Err(frame) => Read::Goes(frame),
            },
        }
    }

    /// Whether all of it was sent when nobody polls any more: a transport that has sent the announced
    /// length does not.
    pub(super) fn is_success_when_dropped(&self) -> bool {
        matches!(self, Self::Length { expected, sent } if *expected == Some(*sent))
    }

    /// What says that the request was refused after all. None where there is no place for it.
    pub(super) fn refusal(&self, answers: &Answers, refused: &Refused) -> Option<Last> {
        let asked = match self {
            Self::Length { .. } => return None,
            Self::Trailers(asked) => asked,
            Self::Web(web) if web.reader.is_between_frames() => &web.asked,
            Self::Web(_) => return None,
        };
        // The headers of a Trailers-Only answer are its trailers.
        let answer = answers.answer(refused.clone().into(), asked);
        let mut trailers = answer.into_parts().0.headers;
        trailers.remove(CONTENT_TYPE);
        trailers.get(GRPC_STATUS)?;
        Some(match self {
            Self::Web(web) => Last::Data(web::frame(&trailers, web.reader.is_text())),
            _ => Last::Trailers(trailers),
        })
    }
}
