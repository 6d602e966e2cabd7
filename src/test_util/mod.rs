//! Fakes and assertions for tests of your own service. A test decides the answers of a volume and of a quota source,
//! and checks refusals.
//!
//! | to test | use |
//! |---|---|
//! | a disk that is full, becomes full, or is gone | [`FakeVolume`] |
//! | a quota source that fails, or that does not answer | [`FakeQuota`] |
//! | what a client receives, in each [dialect](crate::refusal) | [`Received`] |
//!
//! Enable the feature in `[dev-dependencies]` only. The guide `testing` has a whole example.
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::put};
//! use tower::ServiceExt;
//! use tower_storage_guard::{
//!     StorageGuardLayer,
//!     fault::{Cause, Fault, Resource},
//!     test_util::{FakeVolume, Received},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = FakeVolume::new(1_000);
//! let app = Router::new()
//!     .route("/files/{name}", put(async |_: String| "stored"))
//!     .layer(StorageGuardLayer::new(disk.volume()));
//! let upload = || app.clone().oneshot(Request::put("/files/a").body(Body::from("content")).unwrap());
//! assert_eq!(upload().await?.status(), 200);
//!
//! disk.set_available(6);
//! let refused = Received::of(upload().await?).await;
//! refused.assert_json(Fault::new(Cause::DiskFull, Resource::Bytes));
//!
//! disk.set_available(7);
//! assert_eq!(upload().await?.status(), 200);
//! # Ok(())
//! # }
//! ```

mod quota;
mod received;
mod volume;

pub use self::{
    quota::{FakeHold, FakeQuota},
    received::Received,
    volume::FakeVolume,
};
