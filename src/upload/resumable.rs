//! tus 1.0, and the IETF's resumable uploads.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, header::LOCATION, request, response,
    uri::PathAndQuery,
};

use super::{Outcome, Protocol, Step};
use crate::head::{Malformed, is_write, number, only};

/// tus 1.0, and the IETF's resumable uploads (draft-ietf-httpbis-resumable-upload).
///
/// | request | is | and its answer |
/// |---|---|---|
/// | POST with `Tus-Resumable`, and `Upload-Length` or `Upload-Defer-Length` | the first | names the upload by its `Location`, with `Tus-Resumable` or `Upload-Complete` |
/// | any that writes, with `Upload-Complete` and no `Upload-Offset` | the first | the same |
/// | PATCH with `Upload-Offset` | a part | has `Tus-Resumable` and `Upload-Offset`, which ends it at its length, or `Upload-Complete`, which ends it by `?1` |
/// | DELETE | the end | is a success |
///
/// A request with any other successful answer does not belong to an upload of several requests, and its content is
/// charged at once. The same is true of a request that brings the whole upload.
///
/// A header that is there twice, or is not a number, is malformed: the request is answered 400.
///
/// The partial uploads of tus's concatenation are ordinary uploads, and the final one is an ordinary request. If the
/// service copies them, let its handler [grow](crate::Reservation::grow) the reservation.
///
/// # The largest upload
///
/// [`max_size`](Self::max_size) refuses larger uploads when they are announced, and tells clients of the IETF's draft beforehand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resumable {
    max_size: Option<u64>,
}

impl Resumable {
    /// Recognises uploads of any size.
    pub const fn new() -> Self {
        Self { max_size: None }
    }

    /// Sets the largest upload, in bytes, and tells clients.
    ///
    /// An upload that announces more is answered 413 before the service is called. Successful answers of the IETF's draft
    /// and to OPTIONS get `Upload-Limit` with `max-size` and `max-age`, the time of
    /// [`expire_after`](super::Uploads::expire_after). Those to OPTIONS get `Tus-Max-Size` of tus 1.0 too. What the service
    /// has set stays. The size is a property of the service, and never the room that is
    /// free at the moment, because by the draft it must not shrink during an upload. The service bounds uploads that
    /// announce no length.
    ///
    /// Defaults to none.
    #[must_use]
    pub const fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = Some(bytes);
        self
    }

    /// Returns the headers that tell clients the largest upload, for uploads that are kept for `idle`: `Upload-Limit` of
    /// the IETF's draft, and `Tus-Max-Size` of tus 1.0. None without [`max_size`](Self::max_size).
    ///
    /// The layer adds them to answers. Use them where no layer can: in an interim 104 (Upload Resumption Supported), which
    /// should have `Upload-Limit` too.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_storage_guard::upload::Resumable;
    ///
    /// let headers = Resumable::new().max_size(1 << 30).headers(Duration::from_secs(3_600));
    /// assert_eq!(headers["upload-limit"], "max-size=1073741824, max-age=3600");
    /// assert_eq!(headers["tus-max-size"], "1073741824");
    /// ```
    pub fn headers(&self, idle: Duration) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(bytes) = self.max_size {
            headers.insert(TUS_MAX_SIZE, bytes.into());
            headers.insert(UPLOAD_LIMIT, upload_limit(bytes, idle));
        }
        headers
    }
}

const UPLOAD_LIMIT: HeaderName = HeaderName::from_static("upload-limit");
const TUS_MAX_SIZE: HeaderName = HeaderName::from_static("tus-max-size");

/// The value of `Upload-Limit`. Integers have fifteen digits at most (RFC 9651, section 3.3.1).
fn upload_limit(bytes: u64, idle: Duration) -> HeaderValue {
    const MOST: u64 = 999_999_999_999_999;

    let (bytes, idle) = (bytes.min(MOST), idle.as_secs().min(MOST));
    let value = format!("max-size={bytes}, max-age={idle}");
    HeaderValue::try_from(value).expect("it is ASCII")
}

/// tus, section "Method overriding".
const METHOD: &str = "x-http-method-override";

impl Protocol for Resumable {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if head.method == Method::DELETE {
            return Some(Step::abort(path));
        }
        let is_tus = head.headers.contains_key("tus-resumable");
        let is_overridden = head.headers.contains_key(METHOD);
        if head.method == Method::OPTIONS && !is_overridden && self.max_size.is_some() {
            return Some(Step::options());
        }
        let may_write = is_write(&head.method) || is_overridden;
        if !may_write || !is_tus && !head.headers.contains_key("upload-complete") {
            return None;
        }
        let mut step =
            read(head, path, is_tus).unwrap_or_else(|Malformed| Some(Step::malformed()))?;
        if self.max_size.is_some_and(|most| step.whole() > Some(most)) {
            step = Step::too_large();
        }
        Some(if is_tus { step.in_tus() } else { step })
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        let headers = &answer.headers;
        let says_tus = headers.contains_key("tus-resumable");
        let (Ok(offset), Ok(complete), Ok(location)) = (
            number(headers, "upload-offset"),
            is_complete(headers),
            only(headers, LOCATION.as_str()),
        ) else {
            return Outcome::Ordinary;
        };
        let location = location.and_then(|location| str::from_utf8(location).ok());
        if step.is_abort() {
            // A service that overlooks `X-HTTP-Method-Override` has created or continued an upload.
            let is_removed = offset.is_none() && location.is_none() && (says_tus || !step.is_tus);
            return if is_removed {
                Outcome::Removed
            } else {
                Outcome::Open
            };
        }
        let is_told = match step.is_begin() {
            true => says_tus,
            // The same: a creation names a place.
            false => says_tus && offset.is_some() && location.is_none(),
        };
        if !is_told && complete.is_none() {
            return Outcome::Ordinary;
        }
        let is_whole = |offset| step.whole().is_some_and(|whole| offset >= whole);
        // An empty upload is complete from the start.
        let is_complete = complete.unwrap_or_else(|| is_whole(offset.unwrap_or(0)));
        match location {
            _ if is_complete => Outcome::Complete,
            _ if !step.is_begin() => Outcome::Open,
            Some(location) => Outcome::OpenAt(location.to_owned()),
            // Without a place, no later request can refer to it.
            None => Outcome::Ordinary,
        }
    }

    fn limits(&self, step: &Step, answer: &response::Parts, idle: Duration) -> HeaderMap {
        let mut headers = self.headers(idle);
        if !step.is_options() {
            // tus tells it in answers to OPTIONS only.
            headers.remove(TUS_MAX_SIZE);
            if !answer.headers.contains_key("upload-complete") {
                headers.clear();
            }
        }
        headers
    }
}

fn read(head: &request::Parts, path: &str, is_tus: bool) -> Result<Option<Step>, Malformed> {
    let headers = &head.headers;
    let offset = number(headers, "upload-offset")?;
    let whole = number(headers, "upload-length")?;
    let is_deferred = only(headers, "upload-defer-length")?.is_some();
    is_complete(headers)?;
    // tus, section "Method overriding": for clients that cannot send a PATCH. Services differ in its case.
    let method = match only(headers, METHOD)? {
        Some(method) if is_tus => method,
        _ => head.method.as_str().as_bytes(),
    };
    let is = |name: &[u8]| method.eq_ignore_ascii_case(name);
    if is(b"DELETE") {
        return Ok(Some(Step::abort(path)));
    }
    let step = match offset {
        // A creation stays a creation, whatever its other headers say.
        _ if is_tus && is(b"POST") && (whole.is_some() || is_deferred) => Step::begin(path),
        Some(offset) if is(b"PATCH") => Step::part(path).at_offset(offset),
        None if !is_tus && is_write(&head.method) => Step::begin(path),
        _ => return Ok(None),
    };
    Ok(Some(match whole {
        Some(whole) => step.of_whole(whole),
        None => step,
    }))
}

/// `Upload-Complete`: a boolean, which may have parameters (RFC 9651, section 3.3.6).
fn is_complete(headers: &HeaderMap) -> Result<Option<bool>, Malformed> {
    let value = only(headers, "upload-complete")?;
    let value = value.map(|value| value.split(|byte| *byte == b';').next());
    value
        .map(|value| match value.unwrap_or_default().trim_ascii() {
            b"?0" => Ok(false),
            b"?1" => Ok(true),
            _ => Err(Malformed),
        })
        .transpose()
}
