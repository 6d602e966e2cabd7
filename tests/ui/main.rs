//! The compiler's messages for wrong uses of the crate: they are part of the interface too.
//!
//! The messages are those of the newest stable Rust. `TRYBUILD=overwrite cargo test -p test-ui` updates them; review
//! the diff.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("mistakes/*.rs");
}
