//! What the targets share: a runtime, requests from lines of text, their bodies, and a tree in memory.

mod content;
mod paths;
mod request;
mod service;
mod tree;

pub use self::{
    content::Content,
    paths::in_url,
    request::{Ask, asks},
    service::{Reply, call, read, reply, run},
    tree::{Files, Node},
};

use tower_storage_guard::{
    Amount,
    quota::{Limits, MemoryQuota},
};

/// The scope that requests are charged to.
pub const USER: &str = "user";

/// Checks the usage of a scope that has `stored` so much, when no request is in flight.
pub fn check(quota: &MemoryQuota, scope: &'static str, stored: Amount) {
    let usage = quota.usage(scope);
    assert_eq!(usage.held, Amount::ZERO, "{scope} holds something");
    let Amount { bytes, objects } = usage.used;
    assert!(
        bytes >= stored.bytes && objects >= stored.objects,
        "{scope} has {stored:?}, and only {:?} is charged",
        usage.used
    );
    let Limits {
        bytes: most_bytes,
        objects: most_objects,
        ..
    } = usage.limits;
    assert!(
        most_bytes.is_none_or(|most| bytes <= most)
            && most_objects.is_none_or(|most| objects <= most),
        "{scope} is above its limit: {usage:?}"
    );
}
