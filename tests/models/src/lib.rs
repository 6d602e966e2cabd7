//! Every interleaving of the atomics of the ledger and of a transfer, by a model checker.
//!
//! The ledger and the ends of a transfer are compiled from the crate's own source, with the atomics of loom.
#![cfg(test)]
#![allow(dead_code, unreachable_pub, reason = "the crate uses all of it")]

#[path = "../../../src/amount.rs"]
mod amount;
mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
}
mod disk;
#[path = "../../../src/body/ends.rs"]
mod ends;
#[path = "../../../src/volume/ledger.rs"]
mod ledger;
mod transfer;
