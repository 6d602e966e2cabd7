//! Every crate of the AWS SDK, by `aws-smithy-types`.
//!
//! The error of an operation holds the service's answer as an [`ErrorMetadata`] two errors further in, with a
//! code of [`s3_codes`](super::s3_codes). The SDK keeps it this way for every code that the service's model does not
//! define, which is true of all of these.
//!
//! Two kinds of errors cannot be classified. Errors that the model defines (DynamoDB's
//! `ItemCollectionSizeLimitExceededException`) have types in the service's own crate, which this crate does not
//! depend on. An answer without a code is in a type that depends on the operation, whatever its status.

use std::error::Error;

use aws_smithy_types::error::ErrorMetadata;

use super::{
    Verdict,
    library::{Library, of_type},
    s3_codes,
};

pub(super) const LIBRARY: Library = Library {
    look,
    inside: |_| None,
    types: &[of_type::<ErrorMetadata>],
};

fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
    s3_codes::verdict(error.downcast_ref::<ErrorMetadata>()?.code()?)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::fault::{Cause, Classifier, Fault, classify};

    fn meta(code: &str) -> ErrorMetadata {
        // The message is the store's text and is not used for the decision.
        let builder = ErrorMetadata::builder().message("XMinioStorageFull");
        builder.code(code).build()
    }

    #[test]
    fn codes_decide() {
        for (code, expected) in [
            ("XMinioStorageFull", Some(Cause::DiskFull)),
            ("QuotaExceeded", Some(Cause::QuotaExceeded)),
            ("SlowDown", None),
            ("AccessDenied", None),
        ] {
            let fault = classify(&io::Error::other(meta(code)));
            assert_eq!(fault.map(|fault| fault.cause), expected, "{code}");
        }
    }

    #[test]
    fn no_code_decides_nothing() {
        assert_eq!(classify(&ErrorMetadata::builder().build()), None);
    }

    #[test]
    fn a_service_may_fail_with_it() {
        assert_eq!(
            Classifier::default().classify_any(&meta("XMinioStorageFull")),
            Some(Fault::DISK_FULL)
        );
    }
}
