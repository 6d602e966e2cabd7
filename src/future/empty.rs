//! The first data of a body without a length, for which there is no room: an empty body needs none.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http_body::Body;

use crate::{refused::Refused, time::Bound};

/// The wait for the first data of a body.
pub(super) struct FirstData {
    refused: Option<Refused>,
    patience: Bound,
}

impl FirstData {
    pub(super) fn new(refused: Refused, patience: Duration) -> Self {
        Self {
            refused: Some(refused),
            patience: Bound::new(patience),
        }
    }

    /// The refusal, or none if the body has ended without a frame that the handler would see.
    pub(super) fn poll<B: Body>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Option<Pin<Box<B>>>,
    ) -> Poll<Option<Refused>> {
        let mut arrived = 0;
        loop {
            // It was found empty before.
            let Some(reading) = body else {
                return Poll::Ready(None);
            };
            match reading.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.data_ref().map(Buf::remaining) {
                    Some(0) => continue,
                    length => arrived = length.unwrap_or(0),
                },
                // The client is gone.
                Poll::Ready(Some(Err(_))) => {}
                Poll::Ready(None) => {
                    *body = None;
                    continue;
                }
                Poll::Pending => ready!(self.patience.poll(cx)),
            }
            break;
        }
        let refused = self.refused.take().expect(super::ONCE);
        Poll::Ready(Some(refused.needing(arrived as u64)))
    }
}
