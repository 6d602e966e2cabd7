//! The tests that stand outside of the crate.

mod guard;
mod smoke;
mod support;
