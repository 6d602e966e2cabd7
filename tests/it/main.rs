//! The tests that stand outside of the crate.

mod allocations;
mod arrival;
mod axum_upload;
mod client_matrix;
mod clients_that_leave;
mod collections;
mod dav;
#[cfg(target_os = "linux")]
mod disks;
mod found;
mod found_grpc;
mod grpc;
mod grpc_web;
#[cfg(target_os = "linux")]
mod grpcio;
mod guard;
#[cfg(target_os = "linux")]
mod hang;
mod health;
#[cfg(target_os = "linux")]
mod nodes;
mod price;
mod proto;
mod quota_admin;
mod quota_store;
mod server;
mod several_requests;
mod start;
mod stores;
mod support;
mod tonic_upload;
mod tus_example;
mod webdav;
mod webdav_example;
