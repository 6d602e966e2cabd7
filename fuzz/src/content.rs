//! The body of a request.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// After which silence a connection is lost. What is guarded is given up earlier.
const SILENCE: Duration = Duration::from_secs(600);
/// The longest pause, in seconds.
const LONGEST: u64 = 60;

/// A body in pieces, whose size hint may be wrong.
#[derive(Debug, Default)]
pub struct Content {
    pieces: VecDeque<Piece>,
    pause: Option<Pin<Box<Sleep>>>,
    hint: SizeHint,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    /// The connection is lost.
    End,
    /// The client sends nothing for so long.
    Pause(Duration),
}

impl Content {
    pub fn push(&mut self, data: Bytes) {
        self.pieces.push_back(Piece::Data(data));
    }

    /// It breaks off here.
    pub fn break_off(&mut self) {
        self.pieces.push_back(Piece::End);
    }

    /// Nothing comes from here on.
    pub fn fall_silent(&mut self) {
        self.pieces.extend([Piece::Pause(SILENCE), Piece::End]);
    }

    /// The next piece comes later. Half a second more, so that no two things happen at once where requests begin at whole
    /// seconds.
    pub fn pause(&mut self, seconds: u64) {
        let time = Duration::from_secs(seconds.min(LONGEST)) + Duration::from_millis(500);
        self.pieces.push_back(Piece::Pause(time));
    }

    pub fn set_hint(&mut self, hint: SizeHint) {
        self.hint = hint;
    }

    /// Sets the right hint.
    pub fn set_exact(&mut self) {
        let sizes = self.pieces.iter().map(|piece| match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::End | Piece::Pause(_) => 0,
        });
        self.hint = SizeHint::with_exact(sizes.sum());
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.pieces.pop_front() {
                Some(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Piece::Pause(time)) => self.pause = Some(Box::pin(sleep(time))),
                Some(Piece::End) => {
                    self.pieces.clear();
                    let lost = io::ErrorKind::ConnectionReset.into();
                    return Poll::Ready(Some(Err(lost)));
                }
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.pause.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
