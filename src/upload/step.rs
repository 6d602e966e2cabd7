//! What a request is to an upload, and what its answer says of it.

use std::sync::Arc;

use http::{request, response};

/// How uploads of several requests are told from others, and how far they are.
///
/// [`Resumable`](super::Resumable) and [`Chunks`](super::Chunks) are two. For one of your own:
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
    /// What a request is to an upload. None for those that are no part of any.
    ///
    /// Asked for every request, so it should be quick.
    fn step(&self, head: &request::Parts) -> Option<Step>;

    /// What a successful answer says of the upload. It is not asked about a [`Step::abort`].
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

/// What a successful answer says of an upload.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// There is more to come.
    Open,
    /// There is more to come, to this URI (RFC 9110, section 10.2.2: a reference, relative to the request's).
    /// What a [`Step::begin`] has to come to.
    OpenAt(String),
    /// It is all there.
    Complete,
}

/// What a request is to an upload.
///
/// An upload is named by a key: whatever all of its requests have in common. Most often that is a path.
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
    /// Begins an upload whose key its answer tells. It may bring the first part. `path` is the request's, which that
    /// answer may refer to.
    pub fn begin(path: &str) -> Self {
        let begin = Self::new(Kind::Begin, "").at_offset(0);
        Self {
            key: path.into(),
            ..begin
        }
    }

    /// Brings a part. It begins the upload too, where that is not known and the [whole](Self::of_whole) is.
    pub fn part(key: &str) -> Self {
        Self::new(Kind::Part, key)
    }

    /// Brings nothing, and makes one of what came: all is there if that succeeds.
    pub fn finish(key: &str) -> Self {
        Self::new(Kind::Finish, key)
    }

    /// Ends the upload, and removes what came.
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

    /// Sets which of the parts it is, where they may come in any order. The same part may come again, and takes the
    /// place of what it was.
    #[must_use]
    pub fn named(mut self, part: &str) -> Self {
        self.part = part.into();
        self
    }

    /// Sets how many bytes came before it, where parts come one after the other.
    #[must_use]
    pub fn at_offset(mut self, bytes: u64) -> Self {
        self.offset = Some(bytes);
        self
    }

    /// Sets how long the whole upload is, in bytes.
    #[must_use]
    pub fn of_whole(mut self, bytes: u64) -> Self {
        self.whole = Some(bytes);
        self
    }

    /// How long the whole upload is, in bytes, as far as this or an earlier request said.
    pub fn whole(&self) -> Option<u64> {
        self.whole
    }

    /// Whether it begins an upload whose key its answer tells.
    pub fn is_begin(&self) -> bool {
        self.kind == Kind::Begin
    }

    /// Whether it makes one of what came.
    pub fn is_finish(&self) -> bool {
        self.kind == Kind::Finish
    }

    /// Whether it ends the upload, and removes what came.
    pub fn is_abort(&self) -> bool {
        self.kind == Kind::Abort
    }

    /// The client speaks tus, and every answer to it has to say so.
    pub(super) fn in_tus(mut self) -> Self {
        self.is_tus = true;
        self
    }
}
