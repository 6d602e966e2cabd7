//! The guard in this process: what it admits, what it refuses, and how it answers.

mod advice;
mod allocations;
#[cfg(feature = "axum")]
mod arrival;
mod bare_hyper;
mod bounds;
mod by_hand;
mod bypasses;
#[cfg(feature = "axum")]
mod clients_that_leave;
#[cfg(feature = "webdav")]
mod collections;
mod cuts;
mod dialects;
#[cfg(all(feature = "axum", target_os = "linux"))]
mod disks;
#[cfg(feature = "axum")]
mod failures;
mod growth;
mod guard;
#[cfg(target_os = "linux")]
mod hang;
mod holds;
#[cfg(feature = "axum")]
mod limits;
#[cfg(all(feature = "metrics", feature = "test-util"))]
mod metrics;
#[cfg(all(feature = "axum", feature = "test-util"))]
mod observer;
#[cfg(all(feature = "axum", feature = "conformance", feature = "test-util"))]
mod operator;
mod price;
mod reservations;
mod silence;
#[cfg(feature = "axum")]
mod soak;
mod soft_limits;
#[cfg(all(feature = "axum", target_os = "linux"))]
mod store;
mod volume;
#[cfg(all(feature = "webdav", target_os = "linux"))]
mod webdav;
mod writers;
