//! The page of `axum-upload`, in headless Chromium.
#![cfg(target_os = "linux")]

mod browser;
mod looks;
mod plain;
mod screenshots;
mod uploads;
mod users;
mod visit;
mod wire;
