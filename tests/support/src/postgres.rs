//! PostgreSQL, started by a test.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

#[cfg(feature = "stores")]
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tempfile::TempDir;
#[cfg(feature = "stores")]
use tower_storage_guard::store::PostgresStore;

use crate::running::{Running, by_clock_of, free_port, signal};

/// A server with a folder of its own, and its superuser `guard`. Stopped when dropped.
pub struct Server {
    // Dropped first: it writes to the folder.
    running: Option<Running>,
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    language: String,
}

impl Server {
    /// A server that does not wait for the disk.
    #[expect(clippy::new_without_default, reason = "it starts a server")]
    pub fn new() -> Self {
        Self::with(&["fsync=off"], "")
    }

    /// With settings, and in a language such as `de`. English if that is empty.
    pub fn with(settings: &[&str], language: &str) -> Self {
        let mut server = Self {
            running: None,
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
            settings: settings.iter().map(|setting| setting.to_string()).collect(),
            language: language.to_owned(),
        };
        if let Some((user, group)) = owner() {
            chown(server.folder.path(), Some(user), Some(group)).unwrap();
        }
        let made = program("initdb")
            .args(["--no-sync", "--auth=trust", "--username=guard"])
            .args(["--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        server.start();
        server
    }

    /// Sets its clock, as with `+7200`: seconds that it is ahead. Before the first time, it is restarted.
    pub fn set_clock(&mut self, ahead: &str) {
        let (clock, has_clock) = (self.clock(), self.clock().exists());
        fs::write(clock, ahead).unwrap();
        if !has_clock {
            self.kill();
            self.start();
        }
    }

    fn clock(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    /// Starts it again.
    pub fn start(&mut self) {
        let (port, data) = (self.port.to_string(), self.data());
        let mut command = program("postgres");
        command.arg("-D").arg(&data);
        command.args(["-h", "127.0.0.1", "-p", &port, "-k", ""]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.env("LANGUAGE", &self.language);
        if self.clock().exists() {
            by_clock_of(&mut command, &self.clock());
        }
        let is_ready = || {
            let asked = program("pg_isready")
                .args(["-q", "-h", "127.0.0.1", "-p", &port])
                .status();
            asked.unwrap().success()
        };
        let log = self.folder.path().join("log");
        self.running = Some(Running::start(&mut command, &log, is_ready));
    }

    /// Kills it, without a chance to clean up.
    pub fn kill(&mut self) {
        let processes = self.processes();
        self.running = None;
        until_gone(&processes);
    }

    /// `STOP` makes all of its processes hang, and `CONT` continue.
    pub fn signal(&self, name: &str) {
        for id in self.processes() {
            signal(id, name);
        }
    }

    /// All of its processes, including those that serve connections.
    fn processes(&self) -> Vec<u32> {
        let Some(running) = &self.running else {
            return Vec::new();
        };
        let id = running.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().map(|id| id.parse().unwrap());
        std::iter::once(id).chain(children).collect()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL for a command line, with a password that is not used.
    pub fn url(&self) -> String {
        format!("postgres://guard:secret@127.0.0.1:{}/postgres", self.port)
    }
}

#[cfg(feature = "stores")]
impl Server {
    pub fn pool(&self) -> PgPool {
        pool(self.port)
    }

    pub fn store(&self) -> PostgresStore {
        PostgresStore::new(self.pool())
    }

    pub async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool()).await.unwrap();
    }

    /// A tablespace `small` on a filesystem of this size, in a mount namespace.
    pub async fn add_small_tablespace(&self, size: &str) {
        let at = self.folder.path().join("small");
        let (user, group) = owner().expect("a test that mounts PostgreSQL's files runs as root");
        crate::mounts::tmpfs(&at, &format!("size={size},uid={user},gid={group}"));
        let sql = format!("CREATE TABLESPACE small LOCATION '{}'", at.display());
        let sql = sqlx::AssertSqlSafe(sql);
        sqlx::raw_sql(sql).execute(&self.pool()).await.unwrap();
    }
}

/// Connections to the server at a port of this machine.
#[cfg(feature = "stores")]
pub fn pool(port: u16) -> PgPool {
    PgPoolOptions::new()
        .max_connections(8)
        .connect_lazy_with(options(port))
}

#[cfg(feature = "stores")]
pub fn options(port: u16) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username("guard")
        .database("postgres")
}

impl Drop for Server {
    fn drop(&mut self) {
        let processes = self.processes();
        // If it were killed at once, it would leave shared memory behind.
        if let Some(&id) = processes.first() {
            signal(id, "CONT");
            signal(id, "INT");
        }
        let began = Instant::now();
        let data = self.data();
        while data.join("postmaster.pid").exists() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.running = None;
        until_gone(&processes);
    }
}

/// They end soon after the server, which has told them to end or has been killed.
fn until_gone(processes: &[u32]) {
    let are_gone = |id: &u32| !Path::new(&format!("/proc/{id}")).exists();
    let began = Instant::now();
    while !processes.iter().all(are_gone) && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program of PostgreSQL. It does not run as root.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    if let Some((user, group)) = owner() {
        command.uid(user).gid(group);
    }
    command.current_dir("/").env_remove("PGDATA");
    command
}

/// The path of a program of PostgreSQL, of the newest installed version: Debian does not put them into the PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let programs =
        versions.filter_map(|version| Some(version.ok()?.path().join("bin").join(program)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).map(|folder| folder.join(program));
    let newest = programs.filter(|path| path.exists()).max();
    newest.or_else(|| others.into_iter().find(|path| path.exists()))
}

/// The user and group of Debian's package, if the test runs as root.
pub fn owner() -> Option<(u32, u32)> {
    let id = |args: &[&str]| -> u32 {
        let answer = Command::new("id").args(args).output().unwrap();
        let text = String::from_utf8(answer.stdout).unwrap();
        text.trim().parse().expect("there is a user postgres")
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}
