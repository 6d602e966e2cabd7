//! Services in the shapes of real ones, before and after they have taken the guard.
#![cfg(target_os = "linux")]

mod anyhow_errors;
mod clients;
mod file_server;
mod record_server;
