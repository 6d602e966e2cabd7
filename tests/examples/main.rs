//! The example servers, from the outside.

mod axum_upload;
mod documents;
mod kills;
mod metrics;
#[cfg(target_os = "linux")]
mod metrics_of_disks;
#[cfg(target_os = "linux")]
mod nodes;
mod proto;
mod quota_admin;
mod quota_store;
mod small;
mod start;
mod stop;
mod tonic_upload;
mod tus_upload;
mod webdav;
