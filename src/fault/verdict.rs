//! What one error says.

use crate::cause::Fault;

/// What a function says about one error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// This is a storage failure.
    Fault(Fault),
    /// This is none, and neither is anything inside of it: a veto.
    NotOurs,
}
