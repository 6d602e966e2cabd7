//! The chunks of ownCloud and Nextcloud.

use std::sync::Arc;

use http::{StatusCode, request, response};

use super::{Outcome, Protocol, Step, location::in_one_way};
use crate::head::{Malformed, number};

/// Uploads in chunks, as the sync clients of ownCloud and Nextcloud make them. Each upload has a folder with its
/// chunks, and ends with a MOVE of its `.file`.
///
/// | request | is | and its answer |
/// |---|---|---|
/// | MKCOL of the folder, with `OC-Total-Length` | the first | 201 or 204 |
/// | PUT of a chunk | a part, and the first where no MKCOL said a length | 200, 201 or 204 |
/// | MOVE of `.file`, of a chunk or of the folder | the last | is a success, but not 207 |
/// | DELETE of the folder | the end | the same |
///
/// A path that the service may map to another folder is malformed (400): one with dot segments, empty segments or
/// encoded slashes. So is an `OC-Total-Length` that is there twice or is not a number.
///
/// While the service assembles the file from the chunks, both may be on the disk. If it neither appends nor renames,
/// let its handler [grow](crate::Reservation::grow) the reservation.
#[derive(Clone, Debug)]
pub struct Chunks {
    under: Arc<str>,
}

impl Chunks {
    /// Recognises chunks in the folders of a path, such as `/remote.php/dav/uploads`.
    pub fn under(path: &str) -> Self {
        Self {
            under: in_one_way(path).trim_end_matches('/').into(),
        }
    }
}

impl Protocol for Chunks {
    fn step(&self, head: &request::Parts) -> Option<Step> {
        let path = in_one_way(head.uri.path());
        let path = path.trim_end_matches('/');
        let below = path.strip_prefix(&*self.under)?.strip_prefix('/')?;
        let (folder, name) = path.rsplit_once('/')?;
        // A resource directly in the folder belongs to no upload, but may be an upload's folder.
        let is_in_folder = below.contains('/');
        let step = match head.method.as_str() {
            "MKCOL" => Step::part(path),
            "PUT" if is_in_folder => Step::part(folder).named(name),
            // What has left the folder is not removed with it.
            "MOVE" => Step::finish(if is_in_folder { folder } else { path }),
            "DELETE" => Step::abort(path),
            _ => return None,
        };
        if below.split('/').any(is_ambiguous) {
            return Some(Step::malformed());
        }
        Some(match number(&head.headers, "oc-total-length") {
            Ok(Some(whole)) => step.of_whole(whole),
            Ok(None) => step,
            Err(Malformed) => Step::malformed(),
        })
    }

    fn outcome(&self, step: &Step, answer: &response::Parts) -> Outcome {
        match answer.status {
            // RFC 4918, section 13: some of the resources are where they were.
            StatusCode::MULTI_STATUS => Outcome::Open,
            _ if step.is_finish() => Outcome::Complete,
            _ if step.is_abort() => Outcome::Removed,
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => Outcome::Open,
            _ => Outcome::Ordinary,
        }
    }
}

/// Whether a service may take a normalised segment for another one, or for several.
fn is_ambiguous(segment: &str) -> bool {
    matches!(segment, "" | "." | "..") || ["%2F", "%00", "\\"].iter().any(|it| segment.contains(it))
}
