//! Filesystems and a network of a test's own.
//!
//! A test that mounts runs again as a process in a mount namespace of its own. Its mounts are invisible to other
//! processes, and are removed when that process ends, in whatever way.

use std::{
    any::type_name,
    env,
    ffi::OsStr,
    fs::File,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use fs4::FileExt;
use tempfile::TempDir;

use crate::{
    running::{Running, signal},
    times,
};

/// Set in the process that runs a test for the second time.
const AGAIN: &str = "STORAGE_GUARD_TEST_AGAIN";

/// Runs a test in a mount namespace of its own. Without root also in a user namespace, which is sufficient for tmpfs,
/// bind mounts and FUSE.
///
/// `test` must be a closure directly inside the test function, whose name is taken from the closure's type.
pub fn with_own_mounts<F: FnOnce()>(test: F) {
    again(unshare(&["--mount", "--propagation", "private"]), test);
}

/// Like [`with_own_mounts`], in a network namespace of its own, whose interface is down.
pub fn with_own_network<F: FnOnce()>(test: F) {
    again(unshare(&["--net"]), test);
}

/// A command that runs another in namespaces of its own: these, and without root one of users.
pub fn unshare(what: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(what);
    if !is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare
}

/// Like [`with_own_mounts`], for filesystems in image files: the kernel only gives loop devices to the real root.
pub fn with_own_loop_mounts<F: FnOnce()>(test: F) {
    assert!(
        env::var_os(AGAIN).is_some() || is_root(),
        "this test mounts an image through a loop device, which takes real root: run it as root, or leave it out"
    );
    with_own_mounts(test);
}

/// Runs a test in which no file may grow beyond one MiB, and in which exceeding that does not kill the process.
pub fn with_small_files<F: FnOnce()>(test: F) {
    let mut shell = Command::new("sh");
    // POSIX counts in units of 512 bytes, bash in units of 1024.
    shell.args(["-c", r#"trap "" XFSZ; ulimit -S -f 1024 && exec "$0" "$@""#]);
    again(shell, test);
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.trim_ascii() == b"0"
}

/// Runs the test in this process if it is the second one already. Otherwise starts the second by `wrapper`.
fn again<F: FnOnce()>(mut wrapper: Command, test: F) {
    if env::var_os(AGAIN).is_some() {
        return test();
    }
    let (_crate, name) = type_name::<F>().split_once("::").unwrap();
    let name = name.trim_end_matches("::{{closure}}");
    let output = wrapper
        // A hung filesystem must not hang the tests.
        .args(["timeout", "--signal=KILL", &times(300).to_string()])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(AGAIN, "1")
        .output()
        .expect("unshare, sh and timeout are needed");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success() && said.contains(" 1 passed"),
        "{wrapper:?} ended with {}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
}

/// A new tmpfs at `at`, with mount options such as `size=32m`.
pub fn tmpfs(at: &Path, options: &str) -> PathBuf {
    std::fs::create_dir_all(at).unwrap();
    let args = ["-t", "tmpfs", "-o", options, "tmpfs"].map(OsStr::new);
    run("mount", args.into_iter().chain([at.as_os_str()]));
    at.to_path_buf()
}

/// Unmounts what is mounted `at`. A probe may be reading it at this moment, and then it is busy.
pub fn unmount(at: &Path) {
    let begun = Instant::now();
    loop {
        let output = Command::new("umount").arg(at).output().unwrap();
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let is_busy = said.contains("busy") && begun.elapsed() < Duration::from_secs(10);
        assert!(is_busy, "umount of {at:?}: {said}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A new filesystem in an image of this many MiB below `folder`, made by `mkfs` with its options.
pub fn image(folder: &Path, mebibytes: u64, mkfs: &str, options: &[&str]) -> PathBuf {
    let (image, at) = (folder.join("image"), folder.join("mounted"));
    File::create(&image)
        .unwrap()
        .set_len(mebibytes << 20)
        .unwrap();
    std::fs::create_dir(&at).unwrap();
    let options = options.iter().map(OsStr::new);
    run(mkfs, options.chain([image.as_os_str()]));
    // The loop device is removed with the mount.
    let args = ["-o", "loop"].map(OsStr::new).into_iter();
    run("mount", args.chain([image.as_os_str(), at.as_os_str()]));
    at
}

/// A folder that a process passes through to another one, in a mount namespace of the test's own.
pub struct Passed {
    at: PathBuf,
    process: Running,
    _real: TempDir,
}

impl Passed {
    pub fn through(at: &Path) -> Self {
        let device = || std::fs::metadata(at).unwrap().dev();
        let before = device();
        let real = tempfile::tempdir().unwrap();
        let mut bindfs = Command::new("bindfs");
        bindfs.arg("-f").arg(real.path()).arg(at);
        let log = tempfile::NamedTempFile::new().unwrap();
        Self {
            at: at.to_owned(),
            process: Running::start(&mut bindfs, log.path(), || device() != before),
            _real: real,
        }
    }

    /// Whatever looks there hangs until what this returns is dropped.
    pub fn stop(&self) -> Stopped {
        signal(self.process.id(), "STOP");
        Stopped(self.process.id())
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// A stopped process, which goes on when this is dropped.
pub struct Stopped(u32);

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

/// Runs the async part of a test that mounts.
pub fn in_runtime(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

/// A file that leaves this many bytes of the filesystem free, or fewer if others write there meanwhile.
pub fn fill_but(folder: &Path, left: u64) {
    let filler = File::create(folder.join("filler")).unwrap();
    let begun = Instant::now();
    loop {
        let free = fs4::available_space(folder).unwrap();
        match filler.allocate(free.saturating_sub(left)) {
            Ok(()) => break,
            // What was free when it was measured is not free any more.
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                assert!(begun.elapsed() < Duration::from_secs(10), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    // Writing to preallocated blocks may allocate others for metadata.
    filler.sync_all().unwrap();
}

/// Runs a program, which must succeed.
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) {
    let mut command = Command::new(program);
    let output = command
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
}
