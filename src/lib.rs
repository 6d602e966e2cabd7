//! Tower middleware that reserves storage for a request before it admits it, and answers HTTP 507 Insufficient Storage
//! when there is no room.
//!
//! A handler that compares free space with Content-Length checks too early. Sixteen uploads of 4 MiB that arrive
//! together all see the same 32 MiB free, and most of them fail in the middle. [`StorageGuardLayer`] reserves before
//! the inner service is called, counts while the body streams, and settles when the answer is known. It turns storage
//! errors from downstream into the same refusal.
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::put};
//! use tower::ServiceExt;
//! use tower_storage_guard::{Headroom, StorageGuardLayer, Volume};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let volume = Volume::open(std::env::temp_dir())?.keep_free(Headroom::percent(100));
//! let app = Router::new()
//!     .route("/files/{name}", put(|body: String| async move { StatusCode::CREATED }))
//!     .layer(StorageGuardLayer::new(volume));
//!
//! // Everything has to stay free here, so nothing fits.
//! let answer = app.oneshot(Request::put("/files/a").body(Body::from("content"))?).await?;
//! assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
//! # Ok(())
//! # }
//! ```
//!
//! One line guards the disk, and each further line adds one thing. This example adds a quota for each user, charges an
//! overwrite for the difference, and answers with a status that clients of S3 expect:
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::put};
//! use tower::ServiceExt;
//! use tower_storage_guard::{
//!     Amount, StorageGuardLayer, Volume,
//!     fault::Cause,
//!     quota::{Limits, MemoryQuota},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # async fn size_of(_: String) -> u64 { 3 }
//! let quota = MemoryQuota::new(Limits::bytes(10));
//! quota.set_used("user:42", Amount::new(8, 1));
//!
//! let guard = StorageGuardLayer::new(Volume::open(std::env::temp_dir())?)
//!     .quota(quota.clone())
//!     .scope_by(|head| head.headers.get("x-user").map(|_| "user:42"))
//!     .price_by_async(|head, demand| {
//!         let old = size_of(head.uri.path().to_owned());
//!         async move { demand.replacing(Amount::new(old.await, 1)) }
//!     })
//!     .status(Cause::QuotaExceeded, StatusCode::PAYLOAD_TOO_LARGE)?;
//! let app = Router::new()
//!     .route("/files/{name}", put(|body: String| async move { StatusCode::CREATED }))
//!     .layer(guard);
//!
//! let put = |content| Request::put("/files/a").header("x-user", "42").body(Body::from(content));
//! // Five bytes in the place of three: ten in all, which fits exactly.
//! assert_eq!(app.clone().oneshot(put("12345")?).await?.status(), StatusCode::CREATED);
//! assert_eq!(quota.usage("user:42").used, Amount::new(10, 1));
//! assert_eq!(app.oneshot(put("1234")?).await?.status(), StatusCode::PAYLOAD_TOO_LARGE);
//! # Ok(())
//! # }
//! ```
//!
//! # Which requests are guarded
//!
//! By default, every method is guarded except those that write nothing, and DELETE. A POST that stores nothing is guarded too: a
//! login, for example, which is refused when the disk is full. So put the layer around the routes that store something, or tell
//! requests apart with [`applies_when`](StorageGuardLayer::applies_when). The guide [`routes`](guide::routes) has an example.
//!
//! # Guides
//!
//! The module [`guide`] has a page for each task: charging users, the order of layers, errors, forms, jobs, stores, proxies,
//! tests and more.
//!
//! # When a request is admitted
//!
//! A request that [applies](StorageGuardLayer::applies_when) is answered 400 if its Content-Length is not a number, and 503 if
//! its price cannot be found. Otherwise its demand is admitted by this rule:
//!
//! 1. A demand for nothing is admitted.
//! 2. The volume's probe has not hung or failed for too long. Otherwise the [`Outage`] policy of the volume decides: 503, or
//!    point 3 is skipped.
//! 3. The demand, and the length that the client announced, fit on the [`Volume`] beside all that is claimed there and the
//!    [`Headroom`]. An exact fit is admitted. A volume that waits to [resume](Volume::resume_at) admits no bytes. Otherwise:
//!    507 `disk_full`.
//! 4. The same fits into each of its [`Scopes`], less the replaced content, beside all that is held there. A
//!    [soft limit](quota::Limits#soft-limits) is the limit once usage has been above it for its grace. Otherwise: 507
//!    `quota_exceeded`, or `collection_limit_reached` where it is a directory that is full (`dav::CollectionQuota`).
//!
//! A demand that finds no room waits for it for a moment, the [patience](Guard::patience), and behind uploads that wait
//! to grow. If the quota source does not answer, [`Guard::quota_outage`] decides.
//!
//! A body of unknown length is admitted on a small grant, and must find room to grow. A body that cannot grow is cut, and the
//! answer is 507 whatever the inner service says.
//!
//! A client that sends nothing keeps its room only as long as no other request would be refused for want of it
//! ([`stall_grace`](StorageGuardLayer::stall_grace)). After half a minute its request is answered 408
//! ([`stall_timeout`](StorageGuardLayer::stall_timeout)).
//!
//! # When it is settled
//!
//! A success (2xx, or 303) is charged for the bytes that were read of the body, or that the handler
//! [reports](Reservation). Everything else releases: another status, an error, a panic, a cancelled future, a client
//! that has disconnected.
//!
//! # What the inner service sees
//!
//! `Request<`[`MeteredBody`]`<B>>`, and a [`Reservation`] in the extensions. axum and tonic accept any body, so handlers
//! need no change.
//!
//! # Remote procedure calls
//!
//! Calls of gRPC, gRPC-Web and Connect are answered in their own format: RESOURCE_EXHAUSTED instead of 507. Each of them
//! is a POST, so name [those that write](StorageGuardLayer::calls); the others are never refused. gRPC calls have no
//! Content-Length, so they draw grants. A client can announce a length in metadata, as `x-upload-length`. See
//! [`refusal::Grpc`], and the module `tonic`.
//!
//! # When to use this, and when not
//!
//! - Use it where requests store something on a disk or under a quota that they share.
//! - To bound the size of one request, use tower-http's `RequestBodyLimit` or axum's `DefaultBodyLimit`. They answer 413,
//!   however much is free, and can be combined with this crate.
//! - To limit the rate of requests, use a rate limit (429).
//! - Layer it inside authentication, so that unauthenticated clients learn nothing about storage (RFC 4918, section
//!   8.1). Layer it inside CORS, so that its refusals have the headers that browsers need. See [`guide::order`].
//!
//! # Runtime
//!
//! The guard runs on tokio. Refused uploads are drained on tasks beside their answers, and every wait is bounded by tokio's
//! timer, so a test can pause it. The runtime must have its timer enabled, as that of `#[tokio::main]` has.
//!
//! Bodies and [`Reservation`]s may be used and dropped on threads that have no runtime. Such a thread has no timer: a bound
//! is only checked when something else wakes the task. A request that is refused outside of a runtime is dropped unread.
//!
//! # Features
//!
//! | feature | brings | for |
//! |---|---|---|
//! | `inodes` (default) | nothing new: fs4 depends on rustix already | inodes, and btrfs, which counts what is written only when it commits |
//! | `axum` | axum-core | [`Reservation`] as an extractor, and the error type for handlers; [`Readiness`] and [`operator::OperatorView`] as routes |
//! | `axum-multipart` | the same, multer | malformed multipart bodies are 400 in that error type |
//! | `tonic` | tonic without its server, tonic-types, prost | details in gRPC refusals, `tonic::Status` that keeps the error behind it. gRPC itself needs no feature |
//! | `tonic-health` | tonic-health, `tonic` | [`Readiness`] as `grpc.health.v1` |
//! | `webdav` | quick-xml | WebDAV: prices, quotas of collections and refusals, with `StorageGuardLayer::webdav` |
//! | `store-sqlite` | rusqlite with SQLite built in | quotas that outlive the process and are shared by the processes of one machine: `store::SqliteStore` |
//! | `store-postgres` | sqlx's PostgreSQL | the same for several machines: `store::PostgresStore` |
//! | `store-redis` | redis | the same in Redis or Valkey: `store::RedisStore` |
//! | `store` | crc32fast | the same in a store of your own: `store::Store` |
//! | `conformance` | `store` | tests for a store of your own: `store::conformance` |
//! | `metrics` | metrics | counters, gauges and histograms of what the guard does: `metrics::Metrics` |
//! | `test-util` | nothing | fakes and assertions for the tests of your service: `test_util` |
//! | `preflight` | serde_json, http-body-util | a route for clients that ask before they send: `preflight::Preflight` |
//! | `tracing` | tracing | an observer that sends `tracing` events: `tracing::Tracing` |
//! | `sqlx09`, `sqlx08`, `redis1` and others | the library of that name, in that version | its storage errors, see [`fault`] |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
// WebDAV is the only caller of some hooks of the core, and the core does not name it. With all features, dead code is found.
#![cfg_attr(not(feature = "webdav"), allow(dead_code))]
// See clippy.toml for the limits. Tests may be longer.
#![warn(clippy::missing_errors_doc, clippy::struct_excessive_bools)]
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

mod amount;
mod atomic;
#[cfg(feature = "axum")]
pub mod axum;
mod body;
mod calls;
mod cause;
#[cfg(feature = "webdav")]
mod collection;
mod config;
#[cfg(feature = "webdav")]
pub mod dav;
mod decide;
mod demand;
pub mod fault;
mod forecast;
mod future;
mod guard;
#[cfg(doc)]
pub mod guide;
mod head;
mod layer;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod observer;
mod offers;
pub mod operator;
mod outage;
#[cfg(feature = "preflight")]
pub mod preflight;
mod price;
mod protocol;
pub mod quota;
pub mod refusal;
mod refused;
mod reservation;
mod rpc;
mod scope;
mod service;
mod settings;
pub mod setup;
mod status;
mod steps;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "test-util")]
pub mod test_util;
mod time;
#[cfg(feature = "tonic")]
pub mod tonic;
#[cfg(feature = "tracing")]
pub mod tracing;
#[cfg(feature = "webdav")]
mod tree;
pub mod upload;
pub mod volume;
mod wait_queue;

pub use self::{
    amount::Amount,
    body::{MeteredBody, ResponseBody},
    config::ConfigError,
    demand::{Demand, InPlace},
    future::ResponseFuture,
    guard::{Guard, TryReserveError},
    layer::StorageGuardLayer,
    outage::Outage,
    price::Price,
    refused::{Figures, Internal, Reason, Refused},
    reservation::{AsyncReportingWriter, ReportingWriter, Reservation},
    scope::{Scope, Scopes},
    service::StorageGuard,
    volume::{Headroom, Probe, Readiness, Reading, Volume},
};
/// Any error, as Tower passes it on.
#[doc(no_inline)]
pub use tower::BoxError;

/// The example of README, which uses the feature `axum`.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;
