//! Texts that name a full disk or an exceeded quota.
//!
//! A text is no reason to refuse, because it may repeat what a client has sent. It is a reason to look at the error: see
//! [`Classifier::on_suspect`](super::Classifier::on_suspect), whose documentation has this list too.

/// In lower case. Each names storage without its context: "quota exceeded" alone is mostly a rate, and "not enough space"
/// often a buffer.
const NAMES: &[&str] = &[
    // ENOSPC and EDQUOT, as systems and languages write them. 122 and 112 have other meanings on other systems.
    "no space left on",
    "enospc",
    "os error 28",
    "errno 28",
    "errno: 28",
    "errcode: 28",
    "disk quota exceeded",
    "disc quota exceeded",
    "edquot",
    // Windows.
    "there is not enough space on the disk",
    // Databases, engines and stores.
    "disk full",
    "disk is full",
    "insufficient disk space",
    "not enough disk space",
    "out of disk space",
    "insufficient storage",
    "storage full",
    "storage is full",
    "storagefull",
    "storage quota",
    "space quota",
    "mdb_map_full",
];

/// Whether a text contains one of the names. A number must not go on: 28 is not 280.
pub(super) fn names_full_storage(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    NAMES.iter().any(|name| {
        let is_number = name.ends_with(|last: char| last.is_ascii_digit());
        let goes_on = |at: usize| text[at + name.len()..].starts_with(|c: char| c.is_ascii_digit());
        text.match_indices(name)
            .any(|(at, _)| !(is_number && goes_on(at)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systems_and_servers_write() {
        for text in [
            "No space left on device (os error 28)",
            "there is no space left on the volume",
            "Kein Platz mehr auf dem Gerät (os error 28)",
            "[Errno 28] write failed",
            "Error writing file '/tmp/x' (Errcode: 28)",
            "write /data/1.blk: ENOSPC",
            "Disk quota exceeded",
            "Disc quota exceeded",
            "There is not enough space on the disk. (os error 112)",
            "database or disk is full",
            "Disk full (/tmp/x); waiting for someone to free some space...",
            "507 Insufficient Storage",
            "XMinioStorageFull: Storage backend has reached its minimum free drive threshold",
            "you are over your space quota",
            "MDB_MAP_FULL: Environment mapsize limit reached",
            "NO SPACE LEFT ON DEVICE",
        ] {
            assert!(names_full_storage(text), "{text}");
        }
    }

    #[test]
    fn what_names_something_else() {
        for text in [
            "",
            "Quota exceeded for requests per minute",
            "not enough space in the buffer",
            "out of memory",
            "Permission denied (os error 13)",
            "unknown (os error 280)",
            "errno: 281",
            "Connection reset by peer",
            "Read-only file system",
        ] {
            assert!(!names_full_storage(text), "{text}");
        }
        assert!(names_full_storage("os error 280, then os error 28"));
    }
}
