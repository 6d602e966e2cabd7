//! Code that tests of several packages, and the benches, share.

mod dice;
pub mod disk;
mod eventually;
#[cfg(feature = "examples")]
pub mod example;
#[cfg(target_os = "linux")]
pub mod mounts;
#[cfg(feature = "proto")]
pub mod proto {
    //! The messages and clients of the gRPC example.
    include!("../../../examples/tonic-upload/proto/upload.v1.rs");
}
#[cfg(target_os = "linux")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
pub mod running;
#[cfg(feature = "server")]
pub mod server;
pub mod service;
pub mod silent;
#[cfg(feature = "examples")]
pub mod tus;
#[cfg(feature = "examples")]
pub mod uploads;
#[cfg(feature = "examples")]
pub mod webdav;

pub use self::{dice::Dice, eventually::eventually};

/// Scales a number of repetitions: `make soak` multiplies it by `STORAGE_GUARD_TIMES`.
pub fn times(usual: u32) -> u32 {
    let times = std::env::var("STORAGE_GUARD_TIMES").ok();
    usual * times.map_or(1, |times| times.parse::<u32>().unwrap())
}
