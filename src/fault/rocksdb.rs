use super::{Cause, Fault, Resource, Verdict};

/// Classifies an error of RocksDB by its text, which is all that the error exposes.
///
/// RocksDB takes many minutes to compile, so no feature of this crate depends on it, and no classifier includes this
/// function. Add it:
///
/// ```
/// # mod rocksdb {
/// #     #[derive(Debug, thiserror::Error)]
/// #     #[error("{0}")]
/// #     pub struct Error(pub String);
/// #     impl AsRef<str> for Error {
/// #         fn as_ref(&self) -> &str { &self.0 }
/// #     }
/// # }
/// use tower_storage_guard::fault::{self, Cause, Classifier};
///
/// let classifier = Classifier::default()
///     .with(|error| fault::rocksdb(error.downcast_ref::<rocksdb::Error>()?.as_ref()));
/// # let text = "IO error: No space left on device: While appending to file: /db/1.log: No space left on device";
/// # let fault = classifier.classify(&rocksdb::Error(text.to_owned()));
/// # assert_eq!(fault.unwrap().cause, Cause::DiskFull);
/// ```
///
/// | text | verdict |
/// |---|---|
/// | `IO error: No space left on device` | [`DiskFull`](Cause::DiskFull) |
/// | `IO error: Space limit reached` | [`DatabaseFull`](Cause::DatabaseFull): the `SstFileManager` has a maximum |
/// | everything else | none |
///
/// Only the beginning of the text counts, where RocksDB puts the code and the subcode of its `Status`. These words
/// are never translated. The system's text and file names follow, so a disk quota, which has no subcode, cannot be
/// distinguished from a broken disk. Not storage: `Memory limit reached`, `Busy`, `TimedOut`, `Incomplete`.
///
/// After a failure, RocksDB answers writes with that failure until it has recovered or is reopened. It recovers from a
/// full disk by itself when it finds space. So the refusal remains correct.
///
/// "Status" and "Background Error Handling" in RocksDB's wiki; `Status::ToString` in its source.
pub fn rocksdb(text: &str) -> Option<Verdict> {
    let said = text.strip_prefix("IO error: ")?;
    // Then either nothing, or a colon and details.
    let is = |subcode| matches!(said.strip_prefix(subcode), Some(rest) if rest.is_empty() || rest.starts_with(':'));
    if is("No space left on device") {
        Some(Verdict::Fault(Fault::DISK_FULL))
    } else if is("Space limit reached") {
        Some(Verdict::Fault(Fault::new(
            Cause::DatabaseFull,
            Resource::Bytes,
        )))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_subcode_decide() {
        let full = "IO error: No space left on device";
        let limit = "IO error: Space limit reached";
        let details = ": While appending to file: /db/000004.log: No space left on device";
        for (text, cause) in [(full, Cause::DiskFull), (limit, Cause::DatabaseFull)] {
            let fault = Some(Verdict::Fault(Fault::new(cause, Resource::Bytes)));
            assert_eq!(rocksdb(text), fault);
            assert_eq!(rocksdb(&format!("{text}{details}")), fault);
        }
    }

    #[test]
    fn a_text_that_only_contains_the_words_is_ignored() {
        for text in [
            "",
            "No space left on device",
            "IO error: ",
            "IO error: No space left on device/000004.log: Permission denied",
            "IO error: While appending to file: /db/000004.log: Disk quota exceeded",
            "IO error: While open a file for appending: /IO error: No space left on device: x",
            "IO error: Memory limit reached",
            "Operation aborted: Memory limit reached",
            "Operation aborted: No space left on device",
            "Corruption: IO error: No space left on device",
            "Invalid argument: Space limit reached",
        ] {
            assert_eq!(rocksdb(text), None, "{text}");
        }
    }
}
