//! Redis, started by a test.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use redis::{Client, FromRedisValue, RedisResult, cmd};
use tempfile::{NamedTempFile, TempDir};
#[cfg(feature = "stores")]
use tower_storage_guard::store::{RedisConnection, RedisStore};

use crate::running::{Running, free_port, signal};

/// A server. Killed when dropped.
pub struct Server {
    // Dropped first: it writes to the folder.
    running: Option<Running>,
    folder: Folder,
    /// Separate, because a full disk must not affect it.
    log: NamedTempFile,
    /// What its clock says, if that can be set.
    clock: Option<NamedTempFile>,
    launcher: Vec<String>,
    options: Vec<String>,
    port: u16,
}

enum Folder {
    Own(TempDir),
    Given(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Own(folder) => folder.path(),
            Self::Given(folder) => folder,
        }
    }
}

impl Server {
    /// A server that has written everything to its disk that it has answered.
    pub fn start() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server that persists nothing, unless the options ask for it, and then in a folder of its own.
    pub fn with<A: AsRef<str>>(options: &[A]) -> Self {
        let folder = Folder::Own(tempfile::tempdir().unwrap());
        Self::launch(&["redis-server"], folder, options)
    }

    /// Like [`with`](Self::with), in an existing folder, started by these words instead of `redis-server`.
    pub fn by<A: AsRef<str>>(launcher: &[&str], folder: &Path, options: &[A]) -> Self {
        Self::launch(launcher, Folder::Given(folder.into()), options)
    }

    fn launch<A: AsRef<str>>(launcher: &[&str], folder: Folder, options: &[A]) -> Self {
        let mut server = Self {
            running: None,
            folder,
            log: NamedTempFile::new().unwrap(),
            clock: None,
            launcher: launcher.iter().map(|word| word.to_string()).collect(),
            options: options
                .iter()
                .map(|option| option.as_ref().to_owned())
                .collect(),
            port: free_port(),
        };
        server.start_again();
        server
    }

    /// Sets its clock, as with `+7200`: seconds that it is ahead. Before the first time, it is restarted.
    #[cfg(target_os = "linux")]
    pub fn set_clock(&mut self, ahead: &str) {
        let clock = self
            .clock
            .get_or_insert_with(|| NamedTempFile::new().unwrap());
        let is_new = clock.path().metadata().unwrap().len() == 0;
        std::fs::write(clock.path(), ahead).unwrap();
        if is_new {
            self.kill();
            self.start_again();
        }
    }

    pub fn start_again(&mut self) {
        let mut words = self.launcher.iter().map(OsStr::new);
        let mut command = Command::new(words.next().expect("a program"));
        let port = self.port;
        command
            .args(words)
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--dir"])
            .arg(self.folder.path())
            .args(&self.options);
        #[cfg(target_os = "linux")]
        if let Some(clock) = &self.clock {
            crate::running::by_clock_of(&mut command, clock.path());
        }
        self.running = Some(Running::start(&mut command, self.log.path(), || {
            answers(port)
        }));
    }

    /// Kills it, like a power cut.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// `STOP` makes it hang, and `CONT` continue.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.running.as_ref().expect("it runs").id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn options(&self) -> &[String] {
        &self.options
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> Client {
        Client::open(("127.0.0.1", self.port)).unwrap()
    }

    /// Sends a command, given as words.
    pub async fn ask<T: FromRedisValue>(&self, words: &str) -> RedisResult<T> {
        let mut words = words.split_whitespace();
        let mut asked = cmd(words.next().unwrap());
        for word in words {
            asked.arg(word);
        }
        let mut connection = self.client().get_multiplexed_async_connection().await?;
        asked.query_async(&mut connection).await
    }
}

#[cfg(feature = "stores")]
impl Server {
    pub async fn store(&self) -> RedisStore<RedisConnection> {
        RedisStore::connect(&self.url()).await.unwrap()
    }
}

/// Whether it serves at a port: it listens before it has read what it has stored.
fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut answer = [0; 8];
    stream.write_all(b"PING\r\n").unwrap();
    // A server with TLS or a password answers otherwise, but has nothing to read.
    !(stream.read(&mut answer).is_ok() && answer == *b"-LOADING")
}
