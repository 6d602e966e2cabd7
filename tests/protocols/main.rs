//! The protocols that the guard supports: gRPC, WebDAV, and uploads of several requests.

#[cfg(feature = "tonic")]
mod calls_by_hand;
#[cfg(feature = "tonic")]
mod clients_that_send_on;
#[cfg(feature = "webdav")]
mod dav;
#[cfg(feature = "tonic")]
mod grpc;
#[cfg(feature = "tonic")]
mod grpc_web;
#[cfg(all(feature = "axum", feature = "tonic-health"))]
mod health;
#[cfg(feature = "tonic")]
mod resets;
mod several_requests;
mod silent_uploads;
#[cfg(feature = "tonic")]
mod trailers;
mod upload_answers;
#[cfg(feature = "axum")]
mod upload_protocols;
#[cfg(feature = "webdav")]
mod webdav;
