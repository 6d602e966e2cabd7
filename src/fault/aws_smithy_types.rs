//! Every crate of the AWS SDK, by `aws-smithy-types`.
//!
//! The error of an operation keeps what the service answered as an [`ErrorMetadata`] two errors further in, with the
//! code of [`s3_codes`](super::s3_codes). That is so for a code that the service's model does not know, which all of
//! those are.
//!
//! Out of reach are errors that the model knows (DynamoDB's `ItemCollectionSizeLimitExceededException`): their types
//! are in the service's own crate, which we do not bring. And an answer without a code, whatever its status: the
//! answer itself is in a type that depends on the operation.

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
        // The message is the store's text: it decides nothing.
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
