//! `tiberius`: SQL Server and Azure SQL.
//!
//! The numbers are those of "Database Engine events and errors" in the documentation of SQL Server, and of "Troubleshoot
//! … errors" in that of Azure SQL Database.
//!
//! | error | cause |
//! |---|---|
//! | 1101, 1105 no room in a filegroup | `DatabaseFull` |
//! | 9002 transaction log full | `DatabaseFull` |
//! | 3959, 3966, 3967 version store in tempdb full | `DatabaseFull` |
//! | 1827 more than the licence allows for a database | `DatabaseFull` |
//! | 40544 a database has reached its size quota, 1132 an elastic pool its storage limit | `QuotaExceeded` |
//! | 3257 not enough room on a volume to restore a database | `DiskFull` |
//!
//! Not storage: 701, 802, 8645, 8651 and 41805 memory, 41823 and 41840 the quota of in-memory tables, 1204 locks,
//! 3958 a row version that is missing ("probably" for want of room), 5144 and 5145 file growth that took too long,
//! 40552 a transaction too large, 10928 and 10929 concurrency limits, 1205 a deadlock, 2601 and 2627 uniqueness.

use std::error::Error;

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, of_type},
};

/// Judges the errors of one version.
macro_rules! version {
    ($tiberius:ident) => {
        use super::*;

        use ::$tiberius::error::Error as TiberiusError;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside: |_| None,
            types: &[of_type::<TiberiusError>],
        };

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            judge(error.downcast_ref::<TiberiusError>()?.code()?)
        }

        #[cfg(test)]
        mod tests {
            tests!($tiberius);
        }
    };
}

fn judge(code: u32) -> Option<Verdict> {
    let cause = match code {
        1101 | 1105 | 1827 | 3959 | 3966 | 3967 | 9002 => Cause::DatabaseFull,
        1132 | 40544 => Cause::QuotaExceeded,
        3257 => Cause::DiskFull,
        _ => return None,
    };
    Some(Verdict::Fault(Fault::new(cause, Resource::Bytes)))
}

#[cfg(test)]
macro_rules! tests {
    ($tiberius:ident) => {
        use super::*;

        /// The library has no constructor for such an error: see the downstream tests.
        #[test]
        fn codes_decide() {
            for (codes, cause) in [
                (
                    &[1101, 1105, 1827, 3959, 3966, 3967, 9002][..],
                    Cause::DatabaseFull,
                ),
                (&[1132, 40544], Cause::QuotaExceeded),
                (&[3257], Cause::DiskFull),
            ] {
                for &code in codes {
                    let fault = Fault::new(cause, Resource::Bytes);
                    assert_eq!(judge(code), Some(Verdict::Fault(fault)), "{code}");
                }
            }
            for code in [
                0, 701, 802, 1100, 1106, 1204, 1205, 2601, 2627, 3958, 5144, 5145, 8645, 8651,
                9001, 10928, 40549, 40552, 41805, 41823, 41840,
            ] {
                assert_eq!(judge(code), None, "{code}");
            }
        }

        #[test]
        fn only_server_errors_are_examined() {
            assert_eq!(look(&TiberiusError::Protocol("1105".into())), None);
            assert_eq!(look(&std::io::Error::other("1105")), None);
        }
    };
}

#[cfg(feature = "tiberius012")]
pub(super) mod tiberius012 {
    version!(tiberius012);
}

#[cfg(feature = "tiberius013")]
pub(super) mod tiberius013 {
    version!(tiberius013);
}
