//! The verdict on one error.

use crate::cause::Fault;

/// The verdict of a function on one error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// The error is a storage failure.
    Fault(Fault),
    /// The error is not a storage failure, and neither is any error inside it: a veto.
    NotOurs,
}
