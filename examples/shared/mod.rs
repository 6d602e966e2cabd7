//! What the upload examples share: how they start and stop, the command line, the store behind it, and where its quotas are.
#![allow(dead_code, reason = "no example uses all of it")]

pub(crate) mod flags;
pub(crate) mod quotas;
pub(crate) mod run;
pub(crate) mod store;
