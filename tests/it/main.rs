//! The tests that stand outside of the crate.

mod allocations;
mod smoke;
