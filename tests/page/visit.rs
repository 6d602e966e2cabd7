//! The page in a browser, and what is behind it.

use std::{fs::File, path::PathBuf};

use serde_json::json;
use tempfile::TempDir;
use test_support::example::Server;

use crate::{browser::Browser, wire::Wire};

pub(crate) const MIB: u64 = 1 << 20;

/// The page in a browser, and what is behind it.
pub(crate) struct Visit {
    pub(crate) browser: Browser,
    pub(crate) wire: Wire,
    pub(crate) server: Server,
    /// Files of the user.
    own: TempDir,
}

impl Visit {
    pub(crate) async fn to(flags: &[&str]) -> Self {
        Self::to_server(Server::start("axum-upload", flags)).await
    }

    pub(crate) async fn to_server(server: Server) -> Self {
        let (browser, wire) = tokio::join!(Browser::start(), Wire::to(&server));
        browser.open(&wire.addr).await;
        Self {
            browser,
            wire,
            server,
            own: tempfile::tempdir().unwrap(),
        }
    }

    /// A file of the user's, of zeros.
    pub(crate) fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.own.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// Chooses files for the queue.
    pub(crate) async fn choose(&self, files: &[(&str, u64)]) {
        let paths = files
            .iter()
            .map(|(name, size)| self.file(name, *size).to_str().unwrap().to_owned());
        let paths: Vec<_> = paths.collect();
        self.browser.fill("#chosen", &paths.join("\n")).await;
    }

    /// The number in an element's attribute or property.
    pub(crate) async fn number(&self, expression: &str) -> f64 {
        self.browser
            .value(&format!("Number({expression})"))
            .await
            .as_f64()
            .unwrap()
    }

    /// Puts a file on the server by another client.
    pub(crate) async fn put(&self, name: &str, size: u64) {
        let content = vec![0; size.try_into().unwrap()];
        let stored = self.server.put(&format!("/files/{name}"), content).await;
        assert!(stored.status().is_success());
    }

    pub(crate) async fn until_stored(&self, name: &str) {
        self.browser
            .until(&format!(
                "{} && document.querySelector('#uploads').hidden",
                row(name)
            ))
            .await;
    }
}

/// The row of a stored file.
pub(crate) fn row(name: &str) -> String {
    format!(
        "document.querySelector({})",
        json!(format!("#files [data-name=\"{name}\"]"))
    )
}
