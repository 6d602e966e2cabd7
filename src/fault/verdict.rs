//! The verdict on one error.

use crate::cause::Fault;

/// The verdict of a function on one error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// The error is a storage failure.
    Fault(Fault),
    /// The content is larger than a file can be, by a limit of the process or of the filesystem. The request is answered 413.
    TooLarge,
    /// The error is not a storage failure, and neither is any error inside it: a veto.
    NotOurs,
}

impl Verdict {
    pub(crate) const fn fault(self) -> Option<Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            Self::TooLarge | Self::NotOurs => None,
        }
    }
}
