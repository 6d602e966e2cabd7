//! `scylla`: ScyllaDB and Apache Cassandra.
//!
//! | answer | cause |
//! |---|---|
//! | write failure with "Critical disk utilization: rejected write mutation" | `DiskFull` |
//! | write timeout or write failure whose write type is CDC | `DatabaseFull` |
//!
//! ScyllaDB returns the first once a node's disk is filled to its `critical_disk_utilization_level` ("Critical disk
//! utilization", in its manual under "Troubleshooting"); only this text distinguishes it from other write failures.
//! Cassandra returns the second when `cdc_total_space` is used up (the specification of the native protocol, version
//! 4, section 9).
//!
//! Not storage: every other timeout, failure and overload, and rate limits. A Cassandra node whose disk is full fails
//! writes or leaves the cluster (`disk_failure_policy`), as a node whose disk is broken does, and the answer does not
//! distinguish the two.

use std::error::Error;

use scylla::errors::{
    DbError, ExecutionError, NextPageError, PagerExecutionError, PrepareError, RequestAttemptError,
    RequestError, WriteType,
};

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, of_type},
};

pub(super) const LIBRARY: Library = Library {
    look,
    inside,
    types: &[
        of_type::<ExecutionError>,
        of_type::<PagerExecutionError>,
        of_type::<RequestError>,
        of_type::<RequestAttemptError>,
    ],
};

/// Transparent variants expose the source of their inner error, which has none.
fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(ExecutionError::LastAttemptError(attempt)) = error.downcast_ref() {
        Some(attempt)
    } else if let Some(RequestError::LastAttemptError(attempt)) = error.downcast_ref() {
        Some(attempt)
    } else if let Some(NextPageError::RequestFailure(request)) = error.downcast_ref() {
        Some(request)
    } else if let Some(PrepareError::AllAttemptsFailed { first_attempt }) = error.downcast_ref() {
        Some(first_attempt)
    } else {
        None
    }
}

fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let RequestAttemptError::DbError(answer, says) = error.downcast_ref()? else {
        return None;
    };
    match answer {
        DbError::WriteTimeout { write_type, .. } | DbError::WriteFailure { write_type, .. }
            if *write_type == WriteType::Cdc =>
        {
            Some(CDC_FULL)
        }
        DbError::WriteFailure { .. }
            if says.starts_with("Critical disk utilization: rejected write") =>
        {
            Some(DISK_FULL)
        }
        _ => None,
    }
}

const DISK_FULL: Verdict = Verdict::Fault(Fault::DISK_FULL);
const CDC_FULL: Verdict = Verdict::Fault(Fault::new(Cause::DatabaseFull, Resource::Bytes));

#[cfg(test)]
mod tests {
    use scylla::statement::Consistency;

    use super::*;
    use crate::fault::classify;

    const REJECTED: &str = "Critical disk utilization: rejected write mutation";

    fn write_failure(write_type: WriteType) -> DbError {
        DbError::WriteFailure {
            consistency: Consistency::Quorum,
            received: 1,
            required: 2,
            numfailures: 2,
            write_type,
        }
    }

    fn write_timeout(write_type: WriteType) -> DbError {
        DbError::WriteTimeout {
            consistency: Consistency::Quorum,
            received: 1,
            required: 2,
            write_type,
        }
    }

    fn answer(error: DbError, says: &str) -> RequestAttemptError {
        RequestAttemptError::DbError(error, says.to_owned())
    }

    #[test]
    fn answers_decide() {
        for (error, says, verdict) in [
            (write_failure(WriteType::Simple), REJECTED, Some(DISK_FULL)),
            (write_failure(WriteType::Cdc), "", Some(CDC_FULL)),
            (write_timeout(WriteType::Cdc), "", Some(CDC_FULL)),
            (
                write_failure(WriteType::Simple),
                "Operation failed for ks.t - received 1 responses",
                None,
            ),
            (
                write_failure(WriteType::Simple),
                "not: Critical disk utilization: rejected write",
                None,
            ),
            (
                write_timeout(WriteType::Simple),
                "Operation timed out for ks.t",
                None,
            ),
            // The message may repeat what the client has sent.
            (DbError::SyntaxError, REJECTED, None),
            (DbError::Invalid, REJECTED, None),
            (DbError::Overloaded, "too many requests", None),
            (DbError::ServerError, "No space left on device", None),
        ] {
            let error = answer(error, says);
            assert_eq!(look(&error), verdict, "{error}");
        }
    }

    #[test]
    fn found_in_every_error_that_a_request_ends_with() {
        let wrapped = |attempt: RequestAttemptError| -> Vec<tower::BoxError> {
            let request = || RequestError::LastAttemptError(attempt.clone());
            vec![
                ExecutionError::LastAttemptError(attempt.clone()).into(),
                request().into(),
                PagerExecutionError::NextPageError(NextPageError::RequestFailure(request())).into(),
                ExecutionError::PrepareError(PrepareError::AllAttemptsFailed {
                    first_attempt: attempt.clone(),
                })
                .into(),
            ]
        };
        for error in wrapped(answer(write_failure(WriteType::Simple), REJECTED)) {
            assert_eq!(classify(&*error), Some(Fault::DISK_FULL), "{error:?}");
        }
        for error in wrapped(answer(write_failure(WriteType::Simple), "Operation failed")) {
            assert_eq!(classify(&*error), None, "{error:?}");
        }
    }
}
