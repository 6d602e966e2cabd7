//! Third-party clients, and how they handle a refusal.

mod client_matrix;
#[cfg(target_os = "linux")]
mod grpcio;
mod our_own;
mod programs;
#[cfg(target_os = "linux")]
mod proxies;
mod tus;
mod webdav;
