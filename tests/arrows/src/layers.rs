//! The order of this crate's modules: the one place to change when a module is added or moved.

use crate::order::Exception;

/// From bottom to top. A module imports from lower layers only.
pub const LAYERS: &[&[&str]] = &[
    // The vocabulary.
    &["amount", "atomic", "forecast", "status"],
    &["cause", "config", "outage", "scope", "time"],
    &["decide", "demand", "refused"],
    &["observer"],
    // The core: reservable resources, and reservations.
    &["offers", "tree"],
    &["wait_queue"],
    &["quota"],
    &["volume"],
    &["reservation"],
    &["guard"],
    // Modules that only need the core.
    &["collection", "fault", "store"],
    // HTTP.
    &["head", "price", "protocol"],
    &["rpc"],
    &["refusal"],
    &["body"],
    &["steps"],
    &["settings", "setup"],
    &["future"],
    &["layer", "service"],
    // Protocols.
    &["calls", "dav", "upload"],
    &["operator"],
    // Frameworks.
    &["axum", "metrics", "preflight", "tonic", "tracing"],
    // For the tests of services.
    &["test_util"],
    // Pages of the documentation.
    &["guide"],
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
