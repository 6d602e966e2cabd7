//! What the guard knows of protocols: gRPC, WebDAV, and uploads of several requests.

mod calls_by_hand;
mod clients_that_send_on;
mod dav;
mod grpc;
mod grpc_web;
mod health;
mod resets;
mod several_requests;
mod trailers;
mod webdav;
