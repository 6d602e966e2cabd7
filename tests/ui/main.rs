//! What the compiler says where the crate is used in a wrong way: that is a part of the interface too.
//!
//! The text is that of the newest stable Rust. `TRYBUILD=overwrite cargo test -p test-ui` writes it anew; read the diff.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("mistakes/*.rs");
}
