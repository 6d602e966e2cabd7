//! `opendal`.
//!
//! | service | recognised | cause |
//! |---|---|---|
//! | `fs`, and others on files | `std::io`, further in | as `std::io` |
//! | `s3` | the codes of [`s3_codes`](super::s3_codes) | as there |
//! | every service over HTTP | status 507 | `disk_full` |
//!
//! The library has no error kind for want of storage. For S3 the message begins with `S3Error { code: "…"`. For other
//! services the library keeps the head of the answer in a context. No method exposes the context, and in older versions
//! none exposes the message. `{:#?}` prints both with every text quoted, so a user's value cannot imitate a line of it.
//!
//! The library classifies a full disk as a temporary failure, so its `RetryLayer` retries it. It does not retry 507.

use std::error::Error;

use super::{
    Verdict,
    library::{Library, of_type},
    s3_codes,
};

/// Judges the errors of one version.
macro_rules! version {
    ($opendal:ident) => {
        use super::*;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside: |_| None,
            types: &[of_type::<::$opendal::Error>],
        };

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            let error = error.downcast_ref::<::$opendal::Error>()?;
            judge(&format!("{error:#?}"))
        }

        #[cfg(test)]
        mod tests {
            tests!($opendal);
        }
    };
}

/// Judges an error by its fields.
fn judge(shown: &str) -> Option<Verdict> {
    // The inner error comes last, and may have any `Debug` output.
    let fields = || {
        shown
            .lines()
            .take_while(|line| !line.starts_with("    source: "))
    };
    s3_codes::of_answer(is_507(fields), s3_code(fields()))
}

fn s3_code<'a>(mut fields: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let message = fields.find_map(|line| line.strip_prefix("    message: \""))?;
    let (code, _) = message
        .strip_prefix(r#"S3Error { code: \""#)?
        .split_once(r#"\""#)?;
    Some(code)
}

/// Whether the answer in the context has this status. The context is a list of pairs: the line `"response",` is
/// followed by the head of the answer.
fn is_507<'a, L: Iterator<Item = &'a str>>(fields: impl Fn() -> L) -> bool {
    let lines = || fields().map(str::trim_start);
    lines()
        .zip(lines().skip(1))
        .any(|(key, value)| key == "\"response\"," && value.starts_with("\"Parts { status: 507, "))
}

#[cfg(test)]
macro_rules! tests {
    ($opendal:ident) => {
        use std::io;

        use ::$opendal::{Error, ErrorKind};

        use crate::fault::{Cause, Classifier, Fault, classify};

        fn error(message: &str) -> Error {
            Error::new(ErrorKind::Unexpected, message)
                .with_operation("Writer::close")
                .with_context("uri", "http://store/bucket/key")
        }

        /// As the library does with the head of an answer.
        fn with_answer(error: Error, status: u16) -> Error {
            let answer = http::Response::builder().status(status).body(()).unwrap();
            let (parts, ()) = answer.into_parts();
            error.with_context("response", format!("{parts:?}"))
        }

        fn answered(status: u16, message: &str) -> Error {
            with_answer(error(message), status)
        }

        fn cause(error: Error) -> Option<Cause> {
            let found = classify(&error);
            assert_eq!(classify(&io::Error::from(error)), found);
            found.map(|fault| fault.cause)
        }

        #[test]
        fn codes_of_s3() {
            let s3 = |code: &str| {
                let message = "XMinioStorageFull";
                format!(
                    "S3Error {{ code: {code:?}, message: {message:?}, resource: \"\", request_id: \"\" }}"
                )
            };
            for (status, code, expected) in [
                (507, "XMinioStorageFull", Some(Cause::DiskFull)),
                (
                    400,
                    "XMinioAdminBucketQuotaExceeded",
                    Some(Cause::QuotaExceeded),
                ),
                (403, "QuotaExceeded", Some(Cause::QuotaExceeded)),
                (200, "XMinioStorageFull", Some(Cause::DiskFull)),
                (503, "SlowDown", None),
                (400, "EntityTooLarge", None),
                (403, "AccessDenied", None),
                (404, "", None),
            ] {
                assert_eq!(
                    cause(answered(status, &s3(code))),
                    expected,
                    "{status} {code}"
                );
            }
            assert_eq!(cause(error(&format!("not {}", s3("QuotaExceeded")))), None);
        }

        #[test]
        fn the_status_of_any_service() {
            assert_eq!(cause(answered(507, "")), Some(Cause::DiskFull));
            assert_eq!(cause(answered(507, "<html>")), Some(Cause::DiskFull));
            assert_eq!(cause(answered(500, "")), None);
            // Not the first context, nor the last.
            let after = answered(507, "").with_context("path", "a\nb");
            assert_eq!(cause(after), Some(Cause::DiskFull));
            let before = error("").with_context("path", "response");
            let before = with_answer(before, 507);
            assert_eq!(cause(before), Some(Cause::DiskFull));
        }

        #[test]
        fn values_that_users_choose_are_ignored() {
            let head = "Parts { status: 507, version: HTTP/1.1 }";
            let lines = format!("\"response\",\n\"{head}\"");
            for text in [head, &lines, "response", "\"response\","] {
                let named = error(text)
                    .with_context("path", text)
                    .with_context("path", format!("\"{head}"))
                    .with_context("response", "Parts { status: 500, version: HTTP/1.1 }")
                    .set_source(io::Error::other(text.to_owned()));
                assert_eq!(cause(named), None, "{text}");
            }
        }

        #[test]
        fn an_io_error_within_is_reached() {
            let full = || io::Error::from(io::ErrorKind::StorageFull);
            assert_eq!(cause(error("").set_source(full())), Some(Cause::DiskFull));
            let missing = io::Error::from(io::ErrorKind::NotFound);
            assert_eq!(cause(error("").set_source(missing)), None);
        }

        #[test]
        fn a_service_may_fail_with_it() {
            assert_eq!(
                Classifier::default().classify_any(&answered(507, "")),
                Some(Fault::DISK_FULL)
            );
        }
    };
}

#[cfg(feature = "opendal054")]
pub(super) mod opendal054 {
    version!(opendal054);
}

#[cfg(feature = "opendal055")]
pub(super) mod opendal055 {
    version!(opendal055);
}

#[cfg(feature = "opendal059")]
pub(super) mod opendal059 {
    version!(opendal059);
}
