//! The chunks of ownCloud and Nextcloud.

use std::sync::Arc;

use http::{request, response};

use super::{Outcome, Protocol, Step, location::in_one_way};
use crate::head::decimal;

/// Uploads in chunks, as the sync clients of ownCloud and Nextcloud make them: a folder for each upload, chunks in it,
/// and a MOVE of its `.file` at the end.
///
/// | request | is |
/// |---|---|
/// | MKCOL of the folder, with `OC-Total-Length` | the first |
/// | PUT of a chunk | a part, and the first where no MKCOL said a length |
/// | MOVE of `.file` in the folder | the last |
/// | DELETE of the folder | the end |
///
/// While the service assembles the file from the chunks, both may be on the disk. If it neither appends nor renames,
/// let its handler [grow](crate::Reservation::grow) the reservation.
#[derive(Clone, Debug)]
pub struct Chunks {
    under: Arc<str>,
}

impl Chunks {
    /// Chunks in the folders of a path, such as `/remote.php/dav/uploads`.
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
            "MKCOL" => Step::part(path).named(""),
            "PUT" if is_in_folder => Step::part(folder).named(name),
            "MOVE" if is_in_folder && name == ".file" => return Some(Step::finish(folder)),
            "DELETE" => return Some(Step::abort(path)),
            _ => return None,
        };
        let whole = head.headers.get("oc-total-length");
        Some(match whole.and_then(|whole| decimal(whole.as_bytes())) {
            Some(whole) => step.of_whole(whole),
            None => step,
        })
    }

    fn outcome(&self, step: &Step, _: &response::Parts) -> Outcome {
        if step.is_finish() {
            Outcome::Complete
        } else {
            Outcome::Open
        }
    }
}
