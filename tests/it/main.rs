//! The tests that stand outside of the crate.

mod arrival;
mod client_matrix;
mod server;
mod smoke;
