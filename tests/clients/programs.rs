//! Python programs, and their requirements.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// `target/clients/bin/python`, relative to `target/PROFILE/deps/clients-HASH`.
pub(crate) fn python() -> PathBuf {
    let test = env::current_exe().unwrap();
    let clients = test.ancestors().nth(3).unwrap().join("clients");
    let installed = fs::read(clients.join("requirements.txt")).unwrap_or_default();
    assert!(
        installed == fs::read(program("requirements.txt")).unwrap(),
        "{} has not what tests/clients/programs/requirements.txt asks for: `make test` installs it",
        clients.display()
    );
    clients.join("bin/python")
}

pub(crate) fn program(name: &str) -> PathBuf {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    clients.join(name)
}
