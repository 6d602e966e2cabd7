//! Paths in URLs.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use percent_encoding::percent_decode_str;

/// The path of a resource, as dav-server reads it: segments are decoded one by one, empty ones and `.` are dropped, and
/// `..` drops the one before. None if it is none.
pub fn in_url(path: &str) -> Option<PathBuf> {
    let mut found: Vec<OsString> = Vec::new();
    for segment in path.strip_prefix('/')?.split('/') {
        let segment: Vec<u8> = percent_decode_str(segment).collect();
        match &*segment {
            b"" | b"." => {}
            b".." => drop(found.pop()?),
            name if name.contains(&b'/') || name.contains(&0) => return None,
            _ => found.push(OsString::from_vec(segment)),
        }
    }
    Some(found.iter().collect())
}
