//! Third-party servers, started by tests.

use std::{
    net::{TcpListener, TcpStream},
    ops::Range,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// A server that the test has started. Killed when dropped.
pub struct Running(Child);

impl Running {
    /// Starts it, and waits until it `is_ready`, at most a minute. Its output goes to `log`.
    pub fn start(command: &mut Command, log: &Path, is_ready: impl Fn() -> bool) -> Self {
        let file = std::fs::File::create(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut running = Self(child);
        let began = Instant::now();
        while !is_ready() {
            let has_ended = running.0.try_wait().unwrap().is_some();
            let is_late = began.elapsed() > Duration::from_secs(60);
            assert!(
                !has_ended && !is_late,
                "{command:?} does not come up:\n{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that is free, and that neither a client nor another test of this process gets meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    /// Below the ports that the kernel gives to clients.
    const PORTS: Range<u32> = 20_000..32_000;
    loop {
        // Processes begin at different ports.
        let place = std::process::id()
            .wrapping_mul(61)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + place % PORTS.len() as u32;
        let port = port.try_into().expect("the range is of ports");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Whether a server listens at a port of this machine.
pub fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Lets a program see the clock that the variables of libfaketime say.
#[cfg(target_os = "linux")]
pub fn by_another_clock(command: &mut Command) -> &mut Command {
    // Of Debian's package. Its command `faketime` sometimes fails if a killed process has left a semaphore behind, and would
    // be an additional process between the test and the program.
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(Result::unwrap);
    let library = folders
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|library| library.exists());
    let library = library.expect("the package libfaketime is installed");
    // The allocator of Redis asks for the time while it starts, and libfaketime allocates to answer. So it is that of libc.
    command.env("LD_PRELOAD", format!("{} libc.so.6", library.display()));
    // This clock cannot be set by an operator.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// Lets a program see a clock that is ahead by what a file says now, such as `+7200`, in seconds.
#[cfg(target_os = "linux")]
pub fn by_clock_of<'a>(command: &'a mut Command, file: &std::path::Path) -> &'a mut Command {
    by_another_clock(command)
        .env("FAKETIME_TIMESTAMP_FILE", file)
        .env("FAKETIME_NO_CACHE", "1")
}

/// Sends a signal such as `STOP`. The process may have ended.
///
/// # Panics
///
/// If it is alive and does not get the signal.
pub fn signal(id: u32, name: &str) {
    let id = id.to_string();
    let sent = Command::new("kill").args(["-s", name, &id]).status();
    let has_ended = || !Path::new("/proc").join(&id).exists();
    assert!(
        sent.unwrap().success() || has_ended(),
        "{name} was not sent"
    );
}
