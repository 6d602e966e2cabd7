//! The WebDAV example, and requests of a client.

use std::{collections::BTreeMap, convert::Infallible, fs, io::ErrorKind, path::Path};

use axum::{Router, extract::Request};
use dav_server::{DavHandler, localfs::LocalFs, memls::MemLs};
use futures_util::stream;
use reqwest::Method;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::example::Server;

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;

/// Both may become full, because there is no headroom.
pub fn start(limits: &[&str]) -> Server {
    start_in(tempfile::tempdir().unwrap(), limits)
}

pub fn start_in(dir: TempDir, limits: &[&str]) -> Server {
    let limits = limits.iter().flat_map(|limit| ["--limit", limit]);
    let flags: Vec<_> = ["--keep-free", "0"].into_iter().chain(limits).collect();
    Server::start_in(dir, "webdav", &flags)
}

/// Content that is different at every position, and for every seed.
pub fn content(seed: usize, size: usize) -> Vec<u8> {
    (0..size).map(|i| (i ^ i >> 8 ^ seed) as u8).collect()
}

/// With a length that the client does not announce.
pub fn unannounced(content: &[u8]) -> reqwest::Body {
    let chunks = content.chunks(16 * KIB).map(<[u8]>::to_vec);
    let chunks: Vec<Result<_, Infallible>> = chunks.map(Ok).collect();
    reqwest::Body::wrap_stream(stream::iter(chunks))
}

/// All files with their contents, and uploads in progress.
pub fn files(server: &Server) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                match fs::read(&path) {
                    Ok(content) => drop(files.insert(name.to_owned(), content)),
                    // An upload has ended meanwhile.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{name}"),
                }
            }
        }
    }
    let (root, mut files) = (server.dir.path(), BTreeMap::new());
    walk(root, root, &mut files);
    files
}

/// The same dav-server, without the guard.
pub async fn unguarded(dir: &Path) -> String {
    let dav = DavHandler::builder()
        .filesystem(LocalFs::new(dir, true, false, false))
        .locksystem(MemLs::new())
        .build_handler();
    let app = Router::new().fallback(move |request: Request| {
        let dav = dav.clone();
        async move { dav.handle(request).await }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    addr.to_string()
}

pub fn names(server: &Server) -> Vec<String> {
    files(server).into_keys().collect()
}

pub async fn put(server: &Server, path: &str, content: impl Into<reqwest::Body>) -> u16 {
    server.put(path, content).await.status().as_u16()
}

pub async fn send(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = headers
        .iter()
        .fold(server.request(method, path), |request, (name, value)| {
            request.header(*name, *value)
        });
    request.send().await.unwrap().status().as_u16()
}
