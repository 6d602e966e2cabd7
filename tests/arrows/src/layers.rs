//! The order of this crate's modules: the one place to change when a module is added or moved.

use crate::order::Exception;

/// From bottom to top. A module imports from lower layers only. Names that are no modules yet are ignored.
pub const LAYERS: &[&[&str]] = &[
    &["amount", "atomic"],
    &["scope"],
    // Cause, Resource, Fault.
    &["cause", "fault::cause"],
    &["blocking", "outage", "time"],
    &["demand"],
    &["price"],
    // The wait queue.
    &["line"],
    &["quota"],
    &["volume"],
    &["guard", "reservation"],
    &["classify", "fault"],
    &["rpc"],
    &["refusal"],
    &["body"],
    &["future"],
    &["layer", "service"],
    &["dav", "upload"],
    &["quota::stored", "store"],
    &["axum", "tonic"],
];

/// Imports inside of one layer.
pub const EXCEPTIONS: &[Exception<'static>] = &[
    Exception {
        from: "layer",
        to: "service",
        reason: "a layer makes its service",
    },
    Exception {
        from: "service",
        to: "layer",
        reason: "`StorageGuard::layer` starts a layer, as in tower-http",
    },
];
