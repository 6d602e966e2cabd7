//! The role of a request in an upload, and what its answer means for the upload.

use std::sync::Arc;

use http::{request, response};

/// Recognises uploads of several requests, and tracks their progress.
///
/// [`Resumable`](super::Resumable) and [`Chunks`](super::Chunks) implement it. For a protocol of your own:
///
/// ```
/// use http::{request, response};
/// use tower_storage_guard::upload::{Outcome, Protocol, Step};
///
/// /// `PUT /blobs/{digest}?part=3` with `x-whole`, and an empty POST there at the end.
/// struct Blobs;
///
/// impl Protocol for Blobs {
///     fn step(&self, head: &request::Parts) -> Option<Step> {
///         let path = head.uri.path();
///         if !path.starts_with("/blobs/") {
///             return None;
///         }
///         match head.method.as_str() {
///             "PUT" => {
///                 let whole = head.headers.get("x-whole")?.to_str().ok()?.parse().ok()?;
///                 let part = head.uri.query()?;
///                 Some(Step::part(path).named(part).of_whole(whole))
///             }
///             "POST" => Some(Step::finish(path)),
///             _ => None,
///         }
///     }
///
///     fn outcome(&self, step: &Step, _: &response::Parts) -> Outcome {
///         if step.is_finish() { Outcome::Complete } else { Outcome::Open }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how uploads come in several requests",
    label = "not a `Protocol`",
    note = "use `Chunks` or `Resumable`, or implement `Protocol`"
)]
pub trait Protocol: Send + Sync + 'static {
    /// Returns the role of a request in an upload. None for requests that belong to no upload.
    ///
    /// Called for every request, so it should be fast.
    fn step(&self, head: &request::Parts) -> Option<Step>;

    /// Returns what a successful answer means for the upload. It is not called for a [`Step::abort`].
    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome;
}

impl<T: Protocol + ?Sized> Protocol for Arc<T> {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        T::step(self, head)
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        T::outcome(self, step, answer)
    }
}

impl<T: Protocol + ?Sized> Protocol for Box<T> {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        T::step(self, head)
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        T::outcome(self, step, answer)
    }
}

/// What a successful answer means for an upload.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// More is expected.
    Open,
    /// More is expected, at this URI (RFC 9110, section 10.2.2: a reference, relative to the request's).
    /// The required outcome of a [`Step::begin`].
    OpenAt(String),
    /// The upload is complete.
    Complete,
}

/// The role of a request in an upload.
///
/// An upload is identified by a key that all of its requests have in common, usually a path.
#[derive(Clone, Debug)]
pub struct Step {
    pub(super) kind: Kind,
    pub(super) key: Box<str>,
    pub(super) part: Box<str>,
    pub(super) offset: Option<u64>,
    pub(super) whole: Option<u64>,
    pub(super) is_tus: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Begin,
    Part,
    Finish,
    Abort,
}

impl Step {
    /// Begins an upload whose key is in the answer. It may bring the first part. `path` is the request's, which the
    /// answer may refer to.
    pub fn begin(path: &str) -> Self {
        let begin = Self::new(Kind::Begin, "").at_offset(0);
        Self {
            key: path.into(),
            ..begin
        }
    }

    /// Brings a part. It also begins the upload, if that is unknown and the [whole](Self::of_whole) is known.
    pub fn part(key: &str) -> Self {
        Self::new(Kind::Part, key)
    }

    /// Brings no content, and assembles what was received: the upload is complete if that succeeds.
    pub fn finish(key: &str) -> Self {
        Self::new(Kind::Finish, key)
    }

    /// Ends the upload, and removes what was received.
    pub fn abort(key: &str) -> Self {
        Self::new(Kind::Abort, key)
    }

    fn new(kind: Kind, key: &str) -> Self {
        Self {
            kind,
            key: key.trim_end_matches('/').into(),
            part: "".into(),
            offset: None,
            whole: None,
            is_tus: false,
        }
    }

    /// Sets which part it is, for protocols with parts in any order. A part with the same name replaces the earlier
    /// one.
    #[must_use]
    pub fn named(mut self, part: &str) -> Self {
        self.part = part.into();
        self
    }

    /// Sets the offset of the part in bytes, for protocols with parts in order.
    #[must_use]
    pub fn at_offset(mut self, bytes: u64) -> Self {
        self.offset = Some(bytes);
        self
    }

    /// Sets the total length of the upload in bytes.
    #[must_use]
    pub fn of_whole(mut self, bytes: u64) -> Self {
        self.whole = Some(bytes);
        self
    }

    /// The total length of the upload in bytes, if this or an earlier request announced it.
    pub fn whole(&self) -> Option<u64> {
        self.whole
    }

    /// Whether it begins an upload whose key is in the answer.
    pub fn is_begin(&self) -> bool {
        self.kind == Kind::Begin
    }

    /// Whether it assembles what was received.
    pub fn is_finish(&self) -> bool {
        self.kind == Kind::Finish
    }

    /// Whether it ends the upload, and removes what was received.
    pub fn is_abort(&self) -> bool {
        self.kind == Kind::Abort
    }

    /// The client speaks tus, so every answer to it has to have the tus header.
    pub(super) fn in_tus(mut self) -> Self {
        self.is_tus = true;
        self
    }
}
