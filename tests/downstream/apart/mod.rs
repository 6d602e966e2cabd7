//! What cannot be part of this package: crates of their own below the target folder, with lock files of their own.

use std::{env, fs, path::PathBuf, process::Command};

/// Our own tests need rusqlite and sqlx's SQLite driver. Both link SQLite, so that only an old rusqlite is in our
/// lock file. A user who does not need both is not held back.
#[test]
#[ignore = "asks the registry: run by `make test`"]
fn the_newest_rusqlite_is_classified() {
    let folder = test_apart(
        "newest_rusqlite",
        r#"
        tower-storage-guard = { path = "<root>", default-features = false, features = ["rusqlite"] }
        rusqlite = { version = ">=0.40", default-features = false, features = ["bundled"] }
        "#,
    );
    let lock = fs::read_to_string(folder.join("Cargo.lock")).unwrap();
    let (_, rusqlite) = lock.split_once("name = \"rusqlite\"\n").unwrap();
    println!("rusqlite: {}", rusqlite.lines().next().unwrap());
}

/// RocksDB is not among our dependencies, as it takes many minutes to compile.
#[test]
#[ignore = "compiles RocksDB: run by `make rocksdb`"]
fn rocksdb_is_classified_by_its_text() {
    test_apart(
        "rocksdb",
        r#"
        tower-storage-guard = { path = "<root>", features = ["axum"] }
        rocksdb = { version = "0.25", default-features = false, features = ["bindgen-runtime"] }
        anyhow = "1"
        axum = "0.8"
        fs4 = "1"
        reqwest = { version = "0.13", default-features = false }
        serde_json = "1"
        tempfile = "3"
        tokio = { version = "1", features = ["net", "rt-multi-thread"] }
        "#,
    );
}

/// Runs the tests in the file of this name, in a crate with these dependencies. Cargo takes the newest of them.
fn test_apart(name: &str, dependencies: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    // `target/apart/NAME`, seen from `target/PROFILE/deps/storage_guard_downstream-HASH`.
    let test = env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    let folder = target.join("apart").join(name);
    let path = format!("{root}/tests/downstream/apart/{name}.rs");
    let dependencies = dependencies.replace("<root>", root);
    let manifest = format!(
        r#"
        [package]
        name = "{name}_apart"
        edition = "2024"
        [lib]
        path = "{path}"
        [workspace]
        [profile.dev]
        debug = false
        [dependencies]
        {dependencies}"#
    );
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    // So that versions are chosen anew.
    let _ = fs::remove_file(folder.join("Cargo.lock"));
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo
        .args(["test", "--lib"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .args(["--", "--include-ignored"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("test result: ok"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder
}
