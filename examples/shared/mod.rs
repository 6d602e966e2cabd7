//! What the upload examples share: how they start and stop, the command line, and the store behind it.
#![allow(dead_code, reason = "no example uses all of it")]

pub(crate) mod flags;
pub(crate) mod run;
pub(crate) mod store;
