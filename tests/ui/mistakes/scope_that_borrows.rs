//! The head is gone before the request is settled, so a scope cannot borrow from it.

use tower_storage_guard::{
    StorageGuardLayer,
    quota::{Limits, MemoryQuota},
};

fn main() {
    let quota = MemoryQuota::new(Limits::bytes(1_000));
    let _layer = StorageGuardLayer::quota_only(quota).scope_by(|head| head.uri.path());
}
