//! An example that runs as a server of its own.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tempfile::TempDir;

use crate::{eventually, running::signal};

/// The maximum time for any operation that a test waits for.
const BOUND: Duration = Duration::from_secs(30);

/// A running example, with a folder of its own. Killed when dropped.
pub struct Server {
    child: Child,
    /// `127.0.0.1:PORT`
    pub addr: String,
    pub client: Client,
    pub dir: TempDir,
}

impl Server {
    pub fn start(example: &str, flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), example, flags)
    }

    pub fn start_in(dir: TempDir, example: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(path_of(example));
        command.args(flags);
        Self::start_with(dir, command)
    }

    pub fn start_with(dir: TempDir, mut command: Command) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        // Ends without a line if the server cannot start: its error is on stderr then.
        BufReader::new(out).read_line(&mut line).unwrap();
        let addr = line.trim_end().strip_prefix("listening on http://");
        Self {
            addr: addr.expect("the server says where it listens").to_owned(),
            child,
            client: Client::new(),
            dir,
        }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("http://{}{path}", self.addr))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub async fn put(&self, path: &str, content: impl Into<reqwest::Body>) -> Response {
        let request = self.request(Method::PUT, path).body(content);
        request.send().await.unwrap()
    }

    /// The names of everything in the folder, including hidden files, except for the quotas' own files.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with(".quotas.")).collect();
        names.sort();
        names
    }

    /// The sizes of the temporary files.
    fn uploading(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let temporary = entries.map(Result::unwrap).filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().starts_with(b".upload-")
        });
        // It may have been removed by now.
        temporary
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .collect()
    }

    /// Waits until this many bytes of an upload are in its temporary file.
    pub async fn until_received(&self, bytes: u64) {
        let is_there = || self.uploading().iter().any(|size| *size >= bytes);
        eventually("so much of an upload", is_there).await;
    }

    /// Waits until no temporary file is left.
    pub async fn until_nothing_is_left_behind(&self) {
        eventually("nothing left behind", || self.uploading().is_empty()).await;
    }

    /// Asks for the status until it is as expected.
    pub async fn status_when(&self, token: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let request = self.request(Method::GET, "/status").bearer_auth(token);
            let status: Value = request.send().await.unwrap().json().await.unwrap();
            if is_so(&status) {
                return status;
            }
            assert!(start.elapsed() < BOUND, "still {status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The memory that it has, in bytes.
    #[cfg(target_os = "linux")]
    pub fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes: usize = line.unwrap().trim_end_matches("kB").trim().parse().unwrap();
        kibibytes * 1024
    }

    /// The number of its threads.
    #[cfg(target_os = "linux")]
    pub fn threads(&self) -> usize {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        threads.unwrap().count()
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(self.child.id(), "TERM");
    }

    /// Kills it without a chance to clean up, and keeps its folder.
    pub fn killed(mut self) -> TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Waits until the process has ended by itself, and keeps its folder.
    pub async fn ended(mut self) -> (ExitStatus, TempDir) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < BOUND, "the server does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let empty = tempfile::tempdir().unwrap();
        (status, std::mem::replace(&mut self.dir, empty))
    }
}

/// The output of an example that cannot start, and its exit code.
pub fn complaint<A: AsRef<OsStr>>(
    example: &str,
    flags: impl IntoIterator<Item = A>,
) -> (String, Option<i32>) {
    let output = Command::new(path_of(example)).args(flags).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let said = String::from_utf8(output.stderr).unwrap();
    (said, output.status.code())
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if the process has ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program of an example. The first call builds all of them, so that none is older than its source.
pub fn path_of(example: &str) -> PathBuf {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(build);
    let path = FOLDER
        .join(example)
        .with_extension(env::consts::EXE_EXTENSION);
    assert!(path.exists(), "no example is called {example}");
    path
}

/// Set if `make test` has just built the examples.
const BUILT: &str = "STORAGE_GUARD_EXAMPLES";

/// Builds the examples as `cargo test --workspace --all-features` builds their dependencies, and returns their
/// folder.
fn build() -> PathBuf {
    // `target/PROFILE`, relative to `target/PROFILE/deps/TEST-HASH`.
    let test = env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap();
    if env::var_os(BUILT).is_some() {
        return folder.into();
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--workspace",
        "--all-features",
        "--bins",
        "--examples",
    ]);
    cargo.arg("--target-dir").arg(folder.parent().unwrap());
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    // Variables that cargo sets for this test. Build scripts that read them would run again, and so would everything
    // that depends on them.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    let output = cargo.current_dir(root).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{cargo:?}: {said}");
    folder.into()
}
