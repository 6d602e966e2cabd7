//! tus 1.0, and the IETF's resumable uploads.

use http::{HeaderMap, Method, header::LOCATION, request, response, uri::PathAndQuery};

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
/// Other answers are not in the words of these protocols: the request is then not one of several, and what it brought
/// is charged at once. The same is true of a request that brings the whole upload.
///
/// A header that is there twice, or is not a number, is malformed: the request is answered 400.
///
/// The partial uploads of tus's concatenation are ordinary uploads, and the final one is an ordinary request. If the
/// service copies them, let its handler [grow](crate::Reservation::grow) the reservation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resumable;

/// tus, section "Method overriding".
const METHOD: &str = "x-http-method-override";

impl Protocol for Resumable {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if head.method == Method::DELETE {
            return Some(Step::abort(path));
        }
        let is_tus = head.headers.contains_key("tus-resumable");
        let may_write = is_write(&head.method) || head.headers.contains_key(METHOD);
        if !may_write || !is_tus && !head.headers.contains_key("upload-complete") {
            return None;
        }
        let step = read(head, path, is_tus).unwrap_or_else(|Malformed| Some(Step::malformed()))?;
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
