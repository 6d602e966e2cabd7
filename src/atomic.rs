//! The atomics of the ledger. `tests/models` compiles the same ledger with those of a model checker instead.

pub(crate) use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
