//! What the upload examples share: the command line, and the store behind it.

pub(crate) mod flags;
pub(crate) mod store;
