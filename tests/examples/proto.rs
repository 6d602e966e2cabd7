//! The generated code of the gRPC example. It is checked in, so that the crate builds without a protobuf compiler.

use std::fs;

/// `BLESS=1 cargo test -p test-examples generated` updates it.
#[test]
fn the_generated_code_is_up_to_date() {
    const GENERATED: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/tonic-upload/proto/upload.v1.rs"
    );

    let descriptors = protox::compile(
        ["upload.proto"],
        [concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../examples/tonic-upload/proto"
        )],
    )
    .unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let expected = fs::read_to_string(out.path().join("upload.v1.rs")).unwrap();
    if std::env::var_os("BLESS").is_some() {
        fs::write(GENERATED, expected).unwrap();
        return;
    }
    let there = fs::read_to_string(GENERATED).unwrap_or_default();
    assert!(there == expected, "{GENERATED} is not what its proto says");
}
