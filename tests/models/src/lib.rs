//! Every interleaving of the ledger's atomics, by a model checker.
//!
//! The ledger is compiled from the crate's own source, with the atomics of loom.
#![cfg(test)]
#![allow(dead_code, unreachable_pub, reason = "the crate uses all of it")]

#[path = "../../../src/amount.rs"]
mod amount;
mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
}
mod disk;
#[path = "../../../src/volume/ledger.rs"]
mod ledger;
