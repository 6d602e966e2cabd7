//! The tests that stand outside of the crate.

mod axum_upload;
mod smoke;
mod support;
