//! Guides: one task on each page, with an example that is compiled and run with the crate's tests.
//!
//! | task | guide |
//! |---|---|
//! | charge the user, the team or the tenant that stores | [`charging`] |
//! | guard some routes, and let the others pass | [`routes`] |
//! | choose the order of layers: authentication, CORS, decompression, timeouts, two guards | [`order`] |
//! | change the status or the body of a refusal | [`answers`] |
//! | keep an error type of your own | [`errors`] |
//! | log and count refusals | [`observing`] |
//! | export metrics to Prometheus, with alerts and a dashboard | [`metrics`] |
//! | show operators what is full, and tell them before it is | [`operating`] |
//! | report what is written, so that as many uploads as possible fit | [`writing`] |
//! | store the files of a form | [`multipart`] |
//! | charge what is kept after compression or deduplication | [`compression`] |
//! | reserve for background jobs | [`jobs`] |
//! | keep quotas in SQLite, PostgreSQL or Redis | [`stores`] |
//! | guard the volume of a database | [`databases`] |
//! | guard hyper 1 without a framework | [`hyper`] |
//! | run behind nginx or haproxy | [`proxies`] |
//! | test your own 507 | [`testing`] |
//!
//! The modules are part of the documentation only: there is nothing in them to import.
//!
//! Most examples send requests to a router without a socket. Volumes and quotas are made small, so that the refusal can be
//! shown.

/// Charging the user, the team or the tenant that stores.
///
#[doc = include_str!("charging.md")]
pub mod charging {}

/// Guarding some routes, and letting the others pass.
///
#[doc = include_str!("routes.md")]
pub mod routes {}

/// The order of layers around the guard.
///
#[doc = include_str!("order.md")]
pub mod order {}

/// Changing the status or the body of a refusal.
///
#[doc = include_str!("answers.md")]
pub mod answers {}

/// Keeping an error type of your own.
///
#[doc = include_str!("errors.md")]
pub mod errors {}

/// Logging and counting refusals.
///
#[doc = include_str!("observing.md")]
pub mod observing {}

/// Showing operators what is full, and telling them before it is. The example needs the feature `axum`.
///
#[cfg_attr(feature = "axum", doc = include_str!("operating.md"))]
pub mod operating {}

/// Exporting metrics to Prometheus, with alerts and a dashboard. The examples need the feature `metrics`.
///
#[cfg_attr(feature = "metrics", doc = include_str!("metrics.md"))]
pub mod metrics {}

/// Reporting written bytes, so that as many uploads as possible fit.
///
#[doc = include_str!("writing.md")]
pub mod writing {}

/// Storing the files of a form. The example needs the feature `axum`.
///
#[cfg_attr(feature = "axum", doc = include_str!("multipart.md"))]
pub mod multipart {}

/// Charging the content that is kept after compression or deduplication.
///
#[doc = include_str!("compression.md")]
pub mod compression {}

/// Reserving for background jobs.
///
#[doc = include_str!("jobs.md")]
pub mod jobs {}

/// Quotas in SQLite, PostgreSQL or Redis. The examples need the features of the stores.
///
#[cfg_attr(
    all(feature = "store-sqlite", feature = "store-postgres", feature = "store-redis"),
    doc = include_str!("stores.md")
)]
pub mod stores {}

/// Guarding the volume of a database.
///
#[doc = include_str!("databases.md")]
pub mod databases {}

/// Guarding hyper 1 without a framework.
///
#[doc = include_str!("hyper.md")]
pub mod hyper {}

/// Running behind nginx or haproxy.
///
#[doc = include_str!("proxies.md")]
pub mod proxies {}

/// Testing your own 507. The examples need the feature `test-util`.
///
#[cfg_attr(feature = "test-util", doc = include_str!("testing.md"))]
pub mod testing {}
