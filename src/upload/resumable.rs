//! tus 1.0, and the IETF's resumable uploads.

use http::{HeaderMap, Method, header::LOCATION, request, response, uri::PathAndQuery};

use super::{Outcome, Protocol, Step};
use crate::head::decimal;

/// tus 1.0, and the IETF's resumable uploads (draft-ietf-httpbis-resumable-upload).
///
/// | request | is | and its answer |
/// |---|---|---|
/// | POST with `Tus-Resumable`, and `Upload-Length` or `Upload-Defer-Length` | the first | names the upload by its `Location` |
/// | any that writes, with `Upload-Complete` and no `Upload-Offset` | the first | the same |
/// | PATCH with `Upload-Offset` | a part | ends it by `Upload-Offset` (tus), or `Upload-Complete: ?1` |
/// | DELETE | the end | |
///
/// The partial uploads of tus's concatenation are ordinary uploads, and the final one is an ordinary request.
///
/// A request that brings the whole upload is not an upload of several requests. The same is true if the answer does
/// not say in the headers of its protocol that more is expected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resumable;

impl Protocol for Resumable {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        let headers = &head.headers;
        let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if head.method == Method::DELETE {
            return Some(Step::abort(path));
        }
        let is_tus = headers.contains_key("tus-resumable");
        let complete = headers.get("upload-complete");
        if !is_tus && complete.is_none() {
            return None;
        }
        // tus, section "Method overriding": for clients that cannot send a PATCH.
        let method = match headers.get("x-http-method-override") {
            Some(method) if is_tus => method.as_bytes(),
            _ => head.method.as_str().as_bytes(),
        };
        if method == b"DELETE" {
            return Some(Step::abort(path).in_tus());
        }
        let step = match number(headers, "upload-offset") {
            // A creation stays a creation, whatever its other headers say.
            _ if is_tus && is_created_by_tus(method, headers) => Step::begin(path),
            Some(offset) if method == b"PATCH" => Step::part(path).at_offset(offset),
            None if !is_tus => Step::begin(path),
            _ => return None,
        };
        let step = match number(headers, "upload-length") {
            Some(whole) => step.of_whole(whole),
            None => step,
        };
        Some(if is_tus { step.in_tus() } else { step })
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        let complete = answer.headers.get("upload-complete");
        let location = answer.headers.get(LOCATION);
        let location = location.and_then(|location| location.to_str().ok());
        let is_complete = match (number(&answer.headers, "upload-offset"), complete) {
            (_, Some(complete)) => complete == "?1",
            (Some(offset), None) => step.whole().is_some_and(|whole| offset >= whole),
            // An empty upload is complete from the start.
            (None, None) => step.is_begin() && step.whole() == Some(0),
        };
        let is_told = complete.is_some() || answer.headers.contains_key("tus-resumable");
        match location {
            _ if is_complete => Outcome::Complete,
            Some(location) if step.is_begin() && is_told => Outcome::OpenAt(location.to_owned()),
            // A service that answers so has treated it as an ordinary request.
            _ if step.is_begin() => Outcome::Complete,
            _ => Outcome::Open,
        }
    }
}

fn is_created_by_tus(method: &[u8], headers: &HeaderMap) -> bool {
    let says_length = ["upload-length", "upload-defer-length"];
    method == b"POST" && says_length.iter().any(|name| headers.contains_key(*name))
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    decimal(headers.get(name)?.as_bytes())
}
