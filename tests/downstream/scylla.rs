//! ScyllaDB and Cassandra: neither is installed here, so the errors are made by the driver's constructors.

use scylla::{
    errors::{DbError, ExecutionError, RequestAttemptError, WriteType},
    statement::Consistency,
};
use tower_storage_guard::fault::Cause;

use crate::support::{assert_not_refused, assert_refused, with};

fn write_failure(write_type: WriteType, says: &str) -> ExecutionError {
    let failure = DbError::WriteFailure {
        consistency: Consistency::Quorum,
        received: 1,
        required: 2,
        numfailures: 2,
        write_type,
    };
    ExecutionError::LastAttemptError(RequestAttemptError::DbError(failure, says.to_owned()))
}

#[tokio::test]
async fn a_write_that_is_rejected_for_want_of_disk_is_a_fault() {
    let rejected = "Critical disk utilization: rejected write mutation";
    let work = async || Err::<(), _>(write_failure(WriteType::Simple, rejected));
    assert_refused(Cause::DiskFull, work).await;
    let work = async || Err::<(), _>(write_failure(WriteType::Cdc, ""));
    assert_refused(Cause::DatabaseFull, work).await;
}

#[tokio::test]
async fn other_write_failures_are_no_fault() {
    let says = "Operation failed for ks.t - received 1 responses and 2 failures";
    assert_not_refused(async || Err::<(), _>(write_failure(WriteType::Simple, says))).await;
    let overloaded = RequestAttemptError::DbError(DbError::Overloaded, "overloaded".to_owned());
    let work = with(&overloaded, async |it| {
        Err::<(), _>(ExecutionError::from(it))
    });
    assert_not_refused(work).await;
}
