//! Error codes of stores that speak S3, whichever client the error comes from.
//!
//! | code | status | whose | cause |
//! |---|---|---|---|
//! | `XMinioStorageFull` | 507 | MinIO | `disk_full` |
//! | `XMinioAdminBucketQuotaExceeded` | 400 | MinIO | `quota_exceeded` |
//! | `QuotaExceeded` | 403 | Ceph | `quota_exceeded`, of a user or a bucket, in bytes or in objects |
//! | any other or none | 507 | | `disk_full`, because the status says so |
//!
//! A full store is `disk_full` although the disk is not the guarded server's own: the cause tells the client whether
//! its own share is used up or the storage shared by all clients.
//!
//! Not storage: `SlowDown`, `ServiceUnavailable`, `TooManyRequests`, `RequestLimitExceeded` (rates), `EntityTooLarge`,
//! `TooManyParts` (limits of a request), `TooManyBuckets`, `ServiceQuotaExceededException`, `LimitExceededException`
//! (how much of a service may be set up), `AccessDenied`. Amazon's own S3 has no code for a full store: it never is.
//!
//! MinIO: `cmd/api-errors.go`. Ceph: `rgw_common.cc` (`rgw_http_s3_errors`), "Quota Management". Amazon: "Error
//! responses" of the S3 API.

use super::{Cause, Fault, Resource, Verdict};

/// The verdict for a code.
pub(super) fn verdict(code: &str) -> Option<Verdict> {
    let cause = match code {
        "XMinioStorageFull" => Cause::DiskFull,
        "XMinioAdminBucketQuotaExceeded" | "QuotaExceeded" => Cause::QuotaExceeded,
        _ => return None,
    };
    Some(Verdict::Fault(Fault::new(cause, Resource::Bytes)))
}

/// The verdict for an answer: by its code if it is known, or else by its status.
#[cfg(any(
    feature = "object_store012",
    feature = "object_store013",
    feature = "object_store014",
    feature = "opendal054",
    feature = "opendal055",
    feature = "opendal059"
))]
pub(super) fn of_answer(is_507: bool, code: Option<&str>) -> Option<Verdict> {
    code.and_then(verdict)
        .or_else(|| is_507.then_some(Verdict::Fault(Fault::DISK_FULL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK_FULL: Verdict = Verdict::Fault(Fault::DISK_FULL);
    const QUOTA_EXCEEDED: Verdict =
        Verdict::Fault(Fault::new(Cause::QuotaExceeded, Resource::Bytes));

    #[test]
    fn codes() {
        for (code, expected) in [
            ("XMinioStorageFull", Some(DISK_FULL)),
            ("XMinioAdminBucketQuotaExceeded", Some(QUOTA_EXCEEDED)),
            ("QuotaExceeded", Some(QUOTA_EXCEEDED)),
            ("QuotaExceededException", None),
            ("ServiceQuotaExceededException", None),
            ("XMinioAdminNoSuchQuotaConfiguration", None),
            ("EntityTooLarge", None),
            ("SlowDown", None),
            ("", None),
        ] {
            assert_eq!(verdict(code), expected, "{code}");
        }
    }

    #[test]
    #[cfg(any(
        feature = "object_store012",
        feature = "object_store013",
        feature = "object_store014",
        feature = "opendal054",
        feature = "opendal055",
        feature = "opendal059"
    ))]
    fn the_code_comes_before_the_status() {
        assert_eq!(of_answer(true, Some("QuotaExceeded")), Some(QUOTA_EXCEEDED));
        assert_eq!(of_answer(true, Some("SlowDown")), Some(DISK_FULL));
        assert_eq!(of_answer(true, None), Some(DISK_FULL));
        assert_eq!(of_answer(false, Some("XMinioStorageFull")), Some(DISK_FULL));
        assert_eq!(of_answer(false, Some("SlowDown")), None);
        assert_eq!(of_answer(false, None), None);
    }
}
