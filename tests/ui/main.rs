//! The compiler's messages for wrong uses of the crate: they are part of the interface too.
//!
//! The messages are those of the newest stable Rust. `TRYBUILD=overwrite cargo test -p test-ui` updates them; review
//! the diff.

use std::env;

#[test]
fn mistakes_are_explained() {
    // `make test` compiles with clippy in the place of rustc, which says more than that.
    // SAFETY: this is the only test of the process, and no other thread reads the environment.
    unsafe { env::remove_var("RUSTC_WORKSPACE_WRAPPER") };
    trybuild::TestCases::new().compile_fail("mistakes/*.rs");
}
