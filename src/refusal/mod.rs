//! The answer to a client when there is no room.
//!
//! A [`Refusal`] has the reason, and a [`Dialect`] makes the response in the client's protocol. [`Grpc`] answers
//! remote procedure calls: gRPC, gRPC-Web and Connect. [`Http`] answers all other clients, in JSON,
//! `application/problem+json`, plain text or HTML, as the client's `Accept` selects. With feature `webdav`, `Dav`
//! answers WebDAV clients, if it is [added](crate::StorageGuardLayer::dialect).
//!
//! ```
//! use http::Request;
//! use tower_storage_guard::{
//!     fault::{Cause, Fault, Resource},
//!     refusal::{Asked, Dialect, Http, Refusal},
//! };
//!
//! # fn main() -> Result<(), http::Error> {
//! let request = Request::put("/photos/1").body(())?;
//! let refusal = Refusal::from(Fault::new(Cause::DiskFull, Resource::Bytes));
//!
//! let response = Http::default().render(&refusal, &Asked::from(&request));
//! assert_eq!(response.status(), 507);
//! assert_eq!(
//!     response.body(),
//!     concat!(
//!         r#"{"error":"Insufficient Storage","message":"Server storage capacity reached","#,
//!         r#""reason":"disk_full","resource":"bytes","temporary":true}"#,
//!     ),
//! );
//! # Ok(())
//! # }
//! ```
//!
//! The refusal is in the extensions of every response that the guard makes, so that outer layers can read it,
//! whatever the dialect.
//!
//! # `Retry-After`
//!
//! The guard sends none unless it is configured for a cause. A 507 is temporary, but a request that was a user's action
//! must not be repeated without a new one (RFC 4918, section 11.5). Clients repeat a request when they receive the
//! header.

mod answers;
mod asked;
mod carry_over;
mod code;
#[cfg(feature = "webdav")]
mod dav;
#[cfg(feature = "tonic")]
mod details;
mod escape;
mod grpc;
mod http;
pub(crate) mod json;
mod negotiate;
mod rate_limit;
mod value;

#[cfg(feature = "test-util")]
pub(crate) use self::code::Code;
#[cfg(feature = "webdav")]
pub use self::dav::Dav;
#[cfg(feature = "tonic")]
pub(crate) use self::details::status;
pub(crate) use self::{
    answers::Answers,
    carry_over::carry_over,
    rate_limit::{LARGEST, add_rate_limits, quoted},
};
pub use self::{
    asked::{Asked, Dialect},
    grpc::Grpc,
    http::Http,
    value::{Refusal, RefusalKind},
};
pub use crate::refused::Figures;
