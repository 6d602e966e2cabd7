//! A part of a test that runs in a process of its own, which may be stopped and killed.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use test_support::running::signal;

const PART: &str = "STORE_TEST_PART";
const READY: &str = "[ready]";

/// Killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Runs the test of this name in a child process with this role, and waits until the child is [`ready`].
    pub(crate) fn start(test: &str, part: &str) -> Self {
        Self::start_with(Command::new(env::current_exe().unwrap()), test, part)
    }

    /// Like [`start`](Self::start), with an environment. The command is this program.
    pub(crate) fn start_with(mut program: Command, test: &str, part: &str) -> Self {
        let mut child = program
            .args(["--exact", test, "--include-ignored", "--nocapture"])
            .env(PART, part)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process = Self(child);
        assert!(
            lines.any(|line| line.unwrap().contains(READY)),
            "{test} has ended early"
        );
        // It may print more.
        std::thread::spawn(move || lines.for_each(drop));
        process
    }

    /// Stops it, as a debugger does, or a machine that sleeps.
    pub(crate) fn stop(&self) {
        signal(self.0.id(), "STOP");
    }

    /// Kills it, without a chance to clean up.
    pub(crate) fn kill(self) {}

    /// Waits until it has finished.
    pub(crate) fn ends(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The role of this process. None in the test itself.
pub(crate) fn part() -> Option<String> {
    env::var(PART).ok()
}

/// Reports that this process has done its work, or is about to.
pub(crate) fn ready() {
    println!("{READY}");
}
