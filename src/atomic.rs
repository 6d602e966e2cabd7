//! The atomics of the ledger. `tests/models` compiles the same ledger with those of a model checker in their place.

pub(crate) use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
