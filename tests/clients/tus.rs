//! tuspy, the Python client of the tus project.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use test_support::{example::Server, tus::*};
use tokio::task::spawn_blocking;

use crate::programs::{program, python};

/// The output of tuspy for an upload.
#[derive(Debug, Deserialize)]
struct Said {
    url: Option<String>,
    offset: u64,
    #[serde(default)]
    resumed_at: u64,
    status: Option<u16>,
    content: Option<String>,
}

impl Said {
    #[track_caller]
    fn path(&self) -> String {
        let url = self.url.as_deref();
        let (_, path) = url.and_then(|url| url.split_once("/files/")).unwrap();
        format!("/files/{path}")
    }

    #[track_caller]
    fn is_stored(&self, size: u64) -> String {
        assert_eq!((self.status, self.offset), (None, size), "{self:?}");
        self.path()
    }
}

/// tuspy, and the files that it uploads.
struct Tuspy {
    url: String,
    files: TempDir,
}

impl Tuspy {
    fn new(server: &Server) -> Self {
        Self {
            url: format!("http://{}/files", server.addr),
            files: tempfile::tempdir().unwrap(),
        }
    }

    /// A file to upload.
    fn file(&self, seed: u64, size: u64) -> PathBuf {
        let path = self.files.path().join(format!("{seed} {size}"));
        fs::write(&path, content(seed, size)).unwrap();
        path
    }

    /// Uploads a file, with flags given as words without spaces.
    async fn upload(&self, flags: &str, file: &Path) -> Said {
        let mut command = Command::new(python());
        command.arg(program("upload_tus.py"));
        command.args(flags.split_whitespace().map(OsString::from));
        command.arg(&self.url).arg(file);
        let output = spawn_blocking(move || command.output()).await.unwrap();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test]
#[ignore = "needs tuspy: run by `make test`"]
async fn chunks_arrive_whole() {
    let server = start(&[]);
    let tuspy = Tuspy::new(&server);
    let mut stored = 0;
    for flags in ["--chunk 65536", "--chunk 65536 --asynchronous", ""] {
        for size in [0, 1, 65535, 65536, 65537, 3 * 65536, MIB + 7] {
            let file = tuspy.file(size, size);
            let flags = format!("{flags} --metadata filename={size}");
            let path = tuspy.upload(&flags, &file).await.is_stored(size);
            assert!(read(&server, &path).await == content(size, size), "{size}");
            stored += size;
        }
    }
    assert_eq!(growing(&server), 0);
    until_used(&server, stored).await;
}

#[tokio::test]
#[ignore = "needs tuspy: run by `make test`"]
async fn an_interrupted_upload_is_resumed() {
    let server = start(&["--quota", "1MiB"]);
    let tuspy = Tuspy::new(&server);
    let file = tuspy.file(1, MIB);
    let first = tuspy.upload("--chunk 65536 --stop-at 196608", &file).await;
    assert_eq!(first.offset, 3 * 65536);
    let (url, path) = (first.url.clone().unwrap(), first.path());
    // In the middle of a chunk.
    let sent = &content(1, MIB)[3 * 65536..3 * 65536 + 1000];
    drop(begin(&server, &path, 3 * 65536, 65536, sent).await);
    assert_eq!(used(&server).await, MIB);

    let resume = format!("--chunk 100000 --resume {url}");
    let rest = tuspy.upload(&resume, &file).await;
    assert_eq!(rest.resumed_at, 3 * 65536 + 1000);
    assert_eq!(rest.is_stored(MIB), path);
    assert!(read(&server, &path).await == content(1, MIB));
    until_used(&server, MIB).await;
}

#[tokio::test]
#[ignore = "needs tuspy: run by `make test`"]
async fn an_upload_that_does_not_fit_is_refused_at_its_creation() {
    let server = start(&["--quota", "1MiB"]);
    let tuspy = Tuspy::new(&server);
    for asynchronous in ["", "--asynchronous"] {
        let flags = format!("--chunk 65536 --retries 3 {asynchronous}");
        let refused = tuspy.upload(&flags, &tuspy.file(1, MIB + 1)).await;
        assert_eq!((refused.status, refused.offset), (Some(507), 0));
        assert_eq!(refused.url, None);
        let said: Value = serde_json::from_str(&refused.content.unwrap()).unwrap();
        assert_eq!(said["reason"], "quota_exceeded");
    }
    assert_eq!(growing(&server), 0);

    let open = create(&server, 1).await;
    let exact = tuspy.file(1, MIB);
    let refused = tuspy.upload("--chunk 65536", &exact).await;
    assert_eq!(refused.status, Some(507));
    assert_eq!(delete(&server, &open).await, 204);
    let path = tuspy.upload("--chunk 65536", &exact).await.is_stored(MIB);
    assert!(read(&server, &path).await == content(1, MIB));
}

/// While an old connection hangs, which only the client knows to be dead.
#[tokio::test]
#[ignore = "needs tuspy: run by `make test`"]
async fn a_resumed_upload_does_not_wait_for_a_dead_connection() {
    let server = start(&["--quota", "1MiB"]);
    let tuspy = Tuspy::new(&server);
    let path = create(&server, MIB).await;
    let sent = &content(1, MIB)[..1000];
    let mut dead = begin(&server, &path, 0, MIB, sent).await;
    let resume = format!("--resume http://{}{path}", server.addr);
    let rest = tuspy.upload(&resume, &tuspy.file(1, MIB)).await;
    assert_eq!(rest.resumed_at, 1000);
    rest.is_stored(MIB);
    assert!(read(&server, &path).await == content(1, MIB));
    assert_eq!(answered(&mut dead).await, "HTTP/1.1 423 Locked");
}
