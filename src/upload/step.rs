//! The role of a request in an upload, and what its answer means for the upload.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, request, response};

/// Recognises uploads of several requests, and tracks their progress.
///
/// [`Resumable`](super::Resumable) and [`Chunks`](super::Chunks) implement it. For a protocol of your own:
///
/// ```
/// use http::{StatusCode, request, response};
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
///     fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
///         if step.is_finish() {
///             Outcome::Complete
///         } else if answer.status == StatusCode::ACCEPTED {
///             Outcome::Open
///         } else {
///             // Not an answer of this protocol: the service has stored the content as a file of its own.
///             Outcome::Ordinary
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how uploads come in several requests",
    label = "not a `Protocol`",
    note = "use `Chunks` or `Resumable`, or implement `Protocol`"
)]
pub trait Protocol: Send + Sync + 'static {
    /// Returns the role of a request in an upload. None for requests that belong to no upload; they are priced like
    /// any other.
    ///
    /// If the service may read the head differently, such as a header that is there twice, return
    /// [`Step::malformed`].
    ///
    /// It is called for every request, so it should be fast.
    fn step(&self, head: &request::Parts) -> Option<Step>;

    /// Returns the meaning of a successful answer for the upload. It is not called for other answers, which change
    /// nothing. Neither is it called for a 207 to a [`Step::abort`], because some of the resources still exist (RFC
    /// 4918, section 13).
    ///
    /// A client chooses the head of its request, so the head alone must not keep a reservation. Return
    /// [`Outcome::Ordinary`] unless the answer follows the protocol. The handler may add information in extensions of
    /// its response, such as the key of the upload if only the content of the answer has it.
    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome;

    /// Returns the headers that tell the client the limits on uploads, for a successful answer. Each is added unless the
    /// service has set it. `idle` is how long an upload is [kept](super::Uploads::expire_after).
    ///
    /// Defaults to none.
    fn limits(&self, step: &Step, answer: &response::Parts, idle: Duration) -> HeaderMap {
        let _ = (step, answer, idle);
        HeaderMap::new()
    }
}

impl<T: Protocol + ?Sized> Protocol for Arc<T> {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        T::step(self, head)
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        T::outcome(self, step, answer)
    }

    fn limits(&self, step: &Step, answer: &response::Parts, idle: Duration) -> HeaderMap {
        T::limits(self, step, answer, idle)
    }
}

impl<T: Protocol + ?Sized> Protocol for Box<T> {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        T::step(self, head)
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        T::outcome(self, step, answer)
    }

    fn limits(&self, step: &Step, answer: &response::Parts, idle: Duration) -> HeaderMap {
        T::limits(self, step, answer, idle)
    }
}

/// The meaning of a successful answer for an upload.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// More is expected.
    ///
    /// For a [`Step::begin`] it means that the first part will begin the upload: the content of this request is
    /// charged, and no object for it.
    Open,
    /// More is expected, at this URI (RFC 9110, section 10.2.2: a reference, relative to the request's). For a
    /// [`Step::begin`], it names the upload. For other steps it is the same as [`Open`](Self::Open).
    OpenAt(String),
    /// The upload is complete, and is charged.
    Complete,
    /// The service has removed the content of the upload. Nothing is charged.
    Removed,
    /// The answer does not follow the protocol: the service has treated the request as an ordinary one.
    ///
    /// Its content is charged by itself, and it opens no upload. An upload that is open stays open.
    Ordinary,
}

/// The role of a request in an upload.
///
/// An upload is identified by a key that all of its requests have in common, usually a path. The content of every
/// request counts for the upload, at the end of the received content unless [`named`](Self::named) or
/// [`at_offset`](Self::at_offset) say otherwise.
#[derive(Clone, Debug)]
pub struct Step {
    pub(super) kind: Kind,
    pub(super) key: Box<str>,
    pub(super) part: Option<Box<str>>,
    pub(super) offset: Option<u64>,
    pub(super) whole: Option<u64>,
    pub(super) copied: u64,
    pub(super) is_stored: bool,
    pub(super) is_tus: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Begin,
    Part {
        /// It begins an upload that is unknown, even without its length.
        or_begin: bool,
    },
    Finish,
    Abort,
    /// It asks what uploads are taken.
    Options,
    Malformed,
    TooLarge,
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
        Self::new(Kind::Part { or_begin: false }, key)
    }

    /// Assembles the parts that were received, and may bring the last part.
    ///
    /// The length that its handler reports as [stored](crate::Reservation::stored) is that of the whole.
    pub fn finish(key: &str) -> Self {
        Self::new(Kind::Finish, key)
    }

    /// Ends the upload, and removes its content.
    pub fn abort(key: &str) -> Self {
        Self::new(Kind::Abort, key)
    }

    /// Asks what uploads the service takes, as OPTIONS does. It is admitted whatever room there is, and its answer gets
    /// the [limits](Protocol::limits). A request that the layer guards for another reason, such as a method that overrides its own,
    /// is priced like any other.
    pub fn options() -> Self {
        Self::new(Kind::Options, "")
    }

    /// Refuses the request, because its head is malformed, or ambiguous so that the service may read it differently.
    /// The request is answered 400, and the service is not called.
    pub fn malformed() -> Self {
        Self::new(Kind::Malformed, "")
    }

    /// Refuses the request, because its upload is larger than the service takes. The request is answered 413, and the
    /// service is not called.
    pub fn too_large() -> Self {
        Self::new(Kind::TooLarge, "")
    }

    fn new(kind: Kind, key: &str) -> Self {
        Self {
            kind,
            key: key.trim_end_matches('/').into(),
            part: None,
            offset: None,
            whole: None,
            copied: 0,
            is_stored: true,
            is_tus: false,
        }
    }

    /// Sets which part it is, for protocols with parts in any order. A part with the same name replaces the earlier
    /// one.
    #[must_use]
    pub fn named(mut self, part: &str) -> Self {
        self.part = Some(part.into());
        self
    }

    /// Sets the offset of the content in bytes, for protocols with parts in order. It takes the place of the content
    /// that was received from there on.
    #[must_use]
    pub fn at_offset(mut self, bytes: u64) -> Self {
        self.offset = Some(bytes);
        self
    }

    /// Sets the total length of the upload in bytes. It is reserved before the request is admitted.
    #[must_use]
    pub fn of_whole(mut self, bytes: u64) -> Self {
        self.whole = Some(bytes);
        self
    }

    /// Lets a [part](Self::part) begin the upload, if that is unknown, even if the whole length is not known.
    #[must_use]
    pub fn or_begin(mut self) -> Self {
        if self.kind == (Kind::Part { or_begin: false }) {
            self.kind = Kind::Part { or_begin: true };
        }
        self
    }

    /// Sets how many bytes the service copies for the part, in addition to the content of the request, such as for
    /// S3's UploadPartCopy. If the head does not tell, let the handler [grow](crate::Reservation::grow) the
    /// reservation, and report what it has [stored](crate::Reservation::stored).
    #[must_use]
    pub fn copying(mut self, bytes: u64) -> Self {
        self.copied = bytes;
        self
    }

    /// Says that the service does not store the content of the request, for example the list of parts that finishes an
    /// upload to S3. The request is admitted without room for it.
    #[must_use]
    pub fn not_stored(mut self) -> Self {
        self.is_stored = false;
        self
    }

    /// Returns the total length of the upload in bytes, if this or an earlier request announced it.
    pub fn whole(&self) -> Option<u64> {
        self.whole
    }

    /// Returns whether the request begins an upload whose key is in the answer.
    pub fn is_begin(&self) -> bool {
        self.kind == Kind::Begin
    }

    /// Returns whether the request assembles the parts that were received.
    pub fn is_finish(&self) -> bool {
        self.kind == Kind::Finish
    }

    /// Returns whether the request ends the upload, and removes its content.
    pub fn is_abort(&self) -> bool {
        self.kind == Kind::Abort
    }

    /// Returns whether the request asks what uploads the service takes.
    pub fn is_options(&self) -> bool {
        self.kind == Kind::Options
    }

    /// Whether it begins an upload that is unknown. If nothing more is to come, it was complete before.
    pub(super) fn begins_if_unknown(&self) -> bool {
        let is_to_come = |whole| whole > self.offset.unwrap_or(0);
        match self.kind {
            Kind::Part { or_begin } => or_begin || self.whole.is_some_and(is_to_come),
            _ => false,
        }
    }

    /// Whether it is there to bring content.
    pub(super) fn is_part(&self) -> bool {
        matches!(self.kind, Kind::Begin | Kind::Part { .. })
    }

    /// The client speaks tus, so every answer to it has to have the tus header.
    pub(super) fn in_tus(mut self) -> Self {
        self.is_tus = true;
        self
    }
}
