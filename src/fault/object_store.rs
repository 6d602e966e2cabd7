//! `object_store`.
//!
//! | where | recognised | cause |
//! |---|---|---|
//! | a local filesystem | `std::io`, further in | as `std::io` |
//! | S3, and any other store over HTTP | status 507, and the codes of [`s3_codes`](super::s3_codes) | as there |
//!
//! The library keeps a remote store's answer in a private type, so only its text can be examined. The classifier
//! reads the inner error whose text begins with the library's own words, followed by the status and the content. Of
//! the content it reads the first `<Code>` of an `<Error>`: values that users choose, such as a key, come later and
//! are escaped. The text of the outer errors contains the address, so it is not used.
//!
//! The library retries every 5xx answer, by default ten times within three minutes, before it fails. Disable this
//! with `RetryConfig::max_retries`, or requests to a full MinIO wait. If a `CompleteMultipartUpload` is answered 200
//! with an error as content, the library drops that error and reports only a failure to read the content.

use std::{error::Error, iter};

use super::{
    Verdict,
    library::{Library, of_type},
    s3_codes,
};

/// Judges the errors of one version.
macro_rules! version {
    ($object_store:ident) => {
        use super::*;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside: |_| None,
            types: &[of_type::<::$object_store::Error>],
        };

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            let error = error.downcast_ref::<::$object_store::Error>()?;
            iter::successors(error.source(), |&error| error.source())
                .take(MOST_ERRORS)
                .find_map(|error| answer(error.to_string().strip_prefix(ANSWERED)?))
        }

        #[cfg(test)]
        mod tests {
            tests!($object_store);
        }
    };
}

/// What the error for an answer begins with: `RequestError::Status`.
const ANSWERED: &str = "Server returned non-2xx status code: ";

/// Deeper than the library wraps.
const MOST_ERRORS: usize = 8;

/// Parses `507 Insufficient Storage: <content>`.
fn answer(text: &str) -> Option<Verdict> {
    let (status, content) = text.split_once(": ")?;
    s3_codes::of_answer(status.starts_with("507 "), code(content))
}

/// The code in an S3 error.
fn code(content: &str) -> Option<&str> {
    let content = content.trim_start();
    let root = match content.strip_prefix("<?xml") {
        Some(declared) => declared.split_once("?>")?.1.trim_start(),
        None => content,
    };
    let (_, code) = root.strip_prefix("<Error")?.split_once("<Code>")?;
    code.split_once("</Code>").map(|(code, _)| code)
}

#[cfg(test)]
macro_rules! tests {
    ($object_store:ident) => {
        use std::io;

        use tower::BoxError;

        use crate::fault::{Cause, Classifier, Fault, classify};

        /// Imitates the library's own error, which cannot be constructed here.
        #[derive(Debug, thiserror::Error)]
        #[error("Error performing PUT http://store/bucket/key in 1ms - {0}")]
        struct Retry(#[source] Status);

        #[derive(Debug, thiserror::Error)]
        #[error("Server returned non-2xx status code: {0}")]
        struct Status(String);

        fn generic(source: impl Into<BoxError>) -> ::$object_store::Error {
            ::$object_store::Error::Generic {
                store: "S3",
                source: source.into(),
            }
        }

        fn cause(answer: &str) -> Option<Cause> {
            let error = || generic(Retry(Status(answer.to_owned())));
            let found = classify(&error());
            assert_eq!(classify(&io::Error::from(error())), found, "{answer}");
            assert_eq!(classify(&generic(error())), found, "{answer}");
            let forbidden = ::$object_store::Error::PermissionDenied {
                path: "key".to_owned(),
                source: Retry(Status(answer.to_owned())).into(),
            };
            assert_eq!(classify(&forbidden), found, "{answer}");
            found.map(|fault| fault.cause)
        }

        #[test]
        fn status_and_code_of_an_answer() {
            let declared = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
            let minio = "<Error><Code>XMinioStorageFull</Code><Message>a</Message></Error>";
            let ceph = "<Error><Code>QuotaExceeded</Code><Message></Message></Error>";
            for (answer, expected) in [
                (
                    format!("507 Insufficient Storage: {declared}\n{minio}"),
                    Some(Cause::DiskFull),
                ),
                (
                    format!("507 Insufficient Storage: {ceph}"),
                    Some(Cause::QuotaExceeded),
                ),
                ("507 Insufficient Storage: ".to_owned(), Some(Cause::DiskFull)),
                (
                    format!("403 Forbidden: {declared}{ceph}"),
                    Some(Cause::QuotaExceeded),
                ),
                (
                    "400 Bad Request: <Error><Code>XMinioAdminBucketQuotaExceeded</Code></Error>".to_owned(),
                    Some(Cause::QuotaExceeded),
                ),
                (
                    "400 Bad Request: <Error><Code>EntityTooLarge</Code></Error>".to_owned(),
                    None,
                ),
                (
                    "503 Service Unavailable: <Error><Code>SlowDown</Code></Error>".to_owned(),
                    None,
                ),
                // Values that users choose come after the code.
                (
                    "403 Forbidden: <Error><Code>AccessDenied</Code><Key>507 QuotaExceeded</Key></Error>"
                        .to_owned(),
                    None,
                ),
                (
                    "403 Forbidden: <Error><Code>AccessDenied</Code><Code>QuotaExceeded</Code></Error>"
                        .to_owned(),
                    None,
                ),
                ("500 Internal Server Error: 507 ".to_owned(), None),
                ("403 Forbidden: QuotaExceeded".to_owned(), None),
                ("403 Forbidden: <html><Code>QuotaExceeded</Code></html>".to_owned(), None),
            ] {
                assert_eq!(cause(&answer), expected, "{answer}");
            }
        }

        #[test]
        fn the_same_words_elsewhere_are_ignored() {
            let named = "Server returned non-2xx status code: 507 Insufficient Storage: ";
            assert_eq!(
                classify(&Status("507 Insufficient Storage: ".to_owned())),
                None
            );
            assert_eq!(classify(&generic(format!("at {named}"))), None);
            let missing = ::$object_store::Error::NotFound {
                path: named.to_owned(),
                source: io::Error::from(io::ErrorKind::NotFound).into(),
            };
            assert_eq!(classify(&missing), None);
        }

        #[test]
        fn an_io_error_within_is_reached() {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            assert_eq!(classify(&generic(full)), Some(Fault::DISK_FULL));
        }

        #[test]
        fn a_service_may_fail_with_it() {
            let error = generic(Retry(Status("507 Insufficient Storage: ".to_owned())));
            assert_eq!(
                Classifier::default().classify_any(&error),
                Some(Fault::DISK_FULL)
            );
        }
    };
}

#[cfg(feature = "object_store012")]
pub(super) mod object_store012 {
    version!(object_store012);
}

#[cfg(feature = "object_store013")]
pub(super) mod object_store013 {
    version!(object_store013);
}

#[cfg(feature = "object_store014")]
pub(super) mod object_store014 {
    version!(object_store014);
}
