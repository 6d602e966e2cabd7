//! The codes of gRPC and Connect.

use http::StatusCode;

use super::{Refusal, RefusalKind};

/// The code of a refusal. The numbers are gRPC's, names and statuses Connect's.
pub(crate) struct Code {
    pub(crate) number: u16,
    pub(crate) name: &'static str,
    pub(crate) status: StatusCode,
}

impl Code {
    pub(crate) const fn of(refusal: &Refusal) -> Self {
        let (number, name, status) = match refusal.kind() {
            RefusalKind::Storage(_) => (8, "resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
            RefusalKind::Unavailable => (14, "unavailable", StatusCode::SERVICE_UNAVAILABLE),
            RefusalKind::Stalled => (4, "deadline_exceeded", StatusCode::GATEWAY_TIMEOUT),
            RefusalKind::TooLarge => (11, "out_of_range", StatusCode::BAD_REQUEST),
            RefusalKind::InvalidLength | RefusalKind::Malformed => {
                (3, "invalid_argument", StatusCode::BAD_REQUEST)
            }
        };
        Self {
            number,
            name,
            status,
        }
    }
}
