//! The atomics that are model-checked. `tests/models` compiles the same files with those of a model checker instead.

pub(crate) use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
