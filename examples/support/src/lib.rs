//! What the example servers share: how they start and stop, the command line, the files, and where quotas are kept.

pub mod change;
pub mod claim;
pub mod flags;
pub mod place;
pub mod quotas;
pub mod run;
pub mod store;
#[cfg(feature = "stored")]
mod stored;
