//! What the example servers share: how they start and stop, the command line, the files, and where quotas are kept.

pub mod address;
pub mod change;
pub mod claim;
pub mod created;
#[cfg(feature = "postgres")]
pub mod database;
pub mod flags;
pub mod keep_free;
pub mod log;
pub mod place;
pub mod quotas;
pub mod run;
pub mod store;
#[cfg(feature = "stored")]
mod stored;
