//! The response body: the inner service's, or a refusal.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::Watch;

pin_project! {
    /// The body of an answer that went through the guard.
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Inner { #[pin] body: B },
        // Boxed, because bodies are moved often.
        Watched { #[pin] body: B, watch: Box<Watch> },
        Refusal { content: Bytes },
    }
}

impl<B> ResponseBody<B> {
    /// The inner service's body.
    pub(crate) fn inner(body: B) -> Self {
        Self {
            kind: Kind::Inner { body },
        }
    }

    /// The inner service's body, of an answer that is not known to be a success before it has ended.
    pub(crate) fn watched(body: B, watch: Watch) -> Self {
        Self {
            kind: Kind::Watched {
                body,
                watch: Box::new(watch),
            },
        }
    }

    /// A refusal's content.
    pub(crate) fn refusal(content: Bytes) -> Self {
        Self {
            kind: Kind::Refusal { content },
        }
    }
}

/// An empty body. Layers of tower-http that answer by themselves, such as `CorsLayer`, need it where they are outside of the
/// guard.
impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::refusal(Bytes::new())
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Inner { body } => body.poll_frame(cx).map_err(Into::into),
            KindProj::Watched { body, watch } => watch.poll_frame(body, cx),
            KindProj::Refusal { content } => {
                let content = std::mem::take(content);
                let frame = (!content.is_empty()).then(|| Ok(Frame::data(content.into())));
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Watched { body, watch } => watch.is_end_stream(body),
            Kind::Refusal { content } => content.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Watched { body, watch } => watch.size_hint(body),
            Kind::Refusal { content } => SizeHint::with_exact(content.len() as u64),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Inner { .. } => "ResponseBody::Inner",
            Kind::Watched { .. } => "ResponseBody::Watched",
            Kind::Refusal { .. } => "ResponseBody::Refusal",
        })
    }
}
