//! What the guard knows of protocols: gRPC, WebDAV, and uploads of several requests.

mod dav;
mod found_grpc;
mod grpc;
mod grpc_web;
mod health;
mod several_requests;
mod webdav;
