//! `mysql_async`: the error numbers of MySQL and MariaDB, judged in `mysql_codes.rs`.

use std::error::Error;

use super::{
    Verdict,
    library::{Library, of_type},
    mysql_codes,
};

/// Judges the errors of one version.
macro_rules! version {
    ($mysql_async:ident) => {
        use super::*;

        use ::$mysql_async::ServerError;

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            inside: |_| None,
            types: &[of_type::<::$mysql_async::Error>],
        };

        /// The source of `::$mysql_async::Error::Server`.
        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            let error = error.downcast_ref::<ServerError>()?;
            mysql_codes::verdict(error.code, &error.message)
        }

        #[cfg(test)]
        mod tests {
            tests!($mysql_async);
        }
    };
}

#[cfg(test)]
macro_rules! tests {
    ($mysql_async:ident) => {
        use super::*;
        use crate::fault::{Cause, classify};

        #[test]
        fn numbers() {
            for (code, expected) in [
                (1021, Some(Cause::DatabaseFull)),
                (1114, Some(Cause::DatabaseFull)),
                (1026, Some(Cause::DatabaseFull)),
                (1030, None),
                (1041, None),
                (1062, None),
                (1205, None),
            ] {
                let error = ::$mysql_async::Error::Server(ServerError {
                    code,
                    message: "Error writing file 'x' (errno: 28 \"No space left on device\")"
                        .into(),
                    state: "HY000".into(),
                });
                assert_eq!(
                    classify(&error).map(|fault| fault.cause),
                    expected,
                    "{code}"
                );
                let wrapped = anyhow::Error::from(error).context("while storing");
                assert_eq!(
                    classify(&*wrapped).map(|fault| fault.cause),
                    expected,
                    "{code}"
                );
            }
        }
    };
}

#[cfg(feature = "mysql_async036")]
pub(super) mod mysql_async036 {
    version!(mysql_async036);
}

#[cfg(feature = "mysql_async037")]
pub(super) mod mysql_async037 {
    version!(mysql_async037);
}
