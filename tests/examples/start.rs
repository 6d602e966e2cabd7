//! The startup of the examples, and their errors when they cannot start.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use test_support::{
    example::{Server, complaint, path_of},
    uploads::Uploads,
};

/// Where each listens by default, and one of its routes.
const EXAMPLES: [(&str, &str, &str); 5] = [
    ("axum-upload", "127.0.0.1:3000", "PUT    /files/NAME"),
    (
        "tonic-upload",
        "127.0.0.1:50051",
        "upload.v1.Uploads/PutSmall",
    ),
    ("tus-upload", "127.0.0.1:1080", "PATCH   /files/NAME"),
    ("webdav", "127.0.0.1:4918", "PROPFIND, PROPPATCH  /PATH"),
    ("documents", "127.0.0.1:3001", "PUT    /documents/ID"),
];

/// All of them.
const ALL: &[&str] = &[
    "axum-upload",
    "tonic-upload",
    "tus-upload",
    "webdav",
    "documents",
];
/// Those with quotas and users.
const UPLOADS: &[&str] = &["axum-upload", "tonic-upload", "tus-upload"];
const WEBDAV: &[&str] = &["webdav"];
const DOCUMENTS: &[&str] = &["documents"];

fn said_by(example: &str, flag: &str) -> String {
    let output = Command::new(path_of(example)).arg(flag).output().unwrap();
    assert!(output.status.success(), "{example} {flag}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_names_the_flags_the_port_and_the_routes() {
    let mut ports = HashSet::new();
    for (example, listen, route) in EXAMPLES {
        let help = said_by(example, "--help");
        assert!(help.contains(&format!("[default: {listen}]")), "{help}");
        assert!(help.contains(&format!("Usage: {example} ")), "{help}");
        let (_, routes) = help.split_once("\nRoutes:\n").unwrap();
        assert!(routes.contains(&format!("  {route}  ")), "{help}");
        assert!(ports.insert(listen.rsplit_once(':').unwrap().1));
        let own: &[_] = match example {
            "webdav" => &["--limit"],
            "documents" => &["--database-url", "--max-size"],
            _ => &["--quota", "--quota-store", "--user"],
        };
        for flag in [&["--listen", "--dir", "--keep-free"], own].concat() {
            assert!(help.contains(&format!("{flag} <")), "{flag}: {help}");
        }
    }
}

#[test]
fn version_is_that_of_the_crate() {
    for example in [ALL, &["quota-admin"]].concat() {
        let version = concat!(" ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(said_by(example, "--version"), format!("{example}{version}"));
    }
}

#[tokio::test]
async fn listens_at_a_name_and_keeps_a_share_of_the_disk_free() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(path_of("axum-upload"));
    command.args(["--listen", "localhost:0", "--keep-free", "5%", "--dir"]);
    let mut child = command
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line.trim_end().strip_prefix("listening on ").unwrap();
    let status = reqwest::get(format!("{url}/status")).await.unwrap();
    let status: serde_json::Value = status.json().await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let total = fs4::total_space(dir.path()).unwrap();
    assert_eq!(status["volume"]["headroom"], total.div_ceil(20));
}

/// `ulimit -f`: the kernel sends SIGXFSZ, which ends a process that does not handle it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_limit_on_files_is_413_and_ends_no_server() {
    for (example, path) in [("axum-upload", "/files/a"), ("webdav", "/a")] {
        let server = Server::start(example, &[]);
        let limit = ["--pid", &server.id().to_string(), "--fsize=1048576:"];
        assert!(
            Command::new("prlimit")
                .args(limit)
                .status()
                .unwrap()
                .success()
        );
        let refused = server.put(path, vec![7; 2 << 20]).await;
        assert_eq!(refused.status(), 413, "{example}");
        let said = refused.text().await.unwrap();
        assert!(said.contains("file_too_large"), "{example}: {said}");
        assert_eq!(
            server.put(path, vec![7; 1 << 10]).await.status(),
            201,
            "{example}"
        );
    }
}

/// The second would remove what the first is writing.
#[test]
fn a_second_server_does_not_touch_the_folder_of_the_first() {
    for example in ALL {
        let server = Server::start(example, &[]);
        let dir = server.dir.path();
        let before = fs::read_dir(dir).unwrap().count();
        // Where the servers that upload beside their files do it.
        let growing = dir.join(".uploads/growing");
        let has_uploads = growing.parent().unwrap().exists();
        if has_uploads {
            fs::write(&growing, "half").unwrap();
        }
        let flags = ["--listen", "127.0.0.1:0", "--dir", dir.to_str().unwrap()];
        let (said, code) = complaint(example, flags);
        let words = format!(
            "error: {}: another server uses this folder\n",
            dir.display()
        );
        assert_eq!((said, code), (words, Some(1)), "{example}");
        assert_eq!(fs::read_dir(dir).unwrap().count(), before, "{example}");
        assert_eq!(growing.exists(), has_uploads, "{example}");
        // However the first ends.
        let dir = server.killed();
        Server::start_in(dir, example, &[]);
    }
}

/// The only line that an example says that cannot start, which leaves nothing behind where it should have made a folder.
fn failure(example: &str, flags: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    failure_in(folder.path(), Command::new(path_of(example)), flags)
}

fn failure_in(folder: &Path, mut command: Command, flags: &[&str]) -> String {
    for (flag, value) in [("--dir", "made/if/missing"), ("--listen", "127.0.0.1:0")] {
        if !flags.contains(&flag) {
            command.args([flag, value]);
        }
    }
    let before = paths(folder);
    let output = command.args(flags).current_dir(folder).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.stdout, b"", "{command:?}: {said}");
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{command:?}: {said}");
    assert!(!said.contains("secret"), "{command:?}: {said}");
    assert_eq!(paths(folder), before, "{command:?}: {said}");
    said
}

/// Everything below a folder.
fn paths(folder: &Path) -> Vec<String> {
    let output = Command::new("find").arg(folder).output().unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    let mut paths: Vec<_> = found.lines().map(str::to_owned).collect();
    paths.sort();
    paths
}

#[test]
fn says_why_it_cannot_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let at_name = format!("localhost:{}", taken.port());
    let taken = taken.to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    let in_use = "Address already in use (os error 98)\n";
    for (examples, flags, words) in [
        (
            ALL,
            &["--listen", &*taken][..],
            format!("cannot listen on {taken}: {in_use}"),
        ),
        (
            ALL,
            &["--listen", &at_name],
            format!("cannot listen on {at_name}: {in_use}"),
        ),
        (
            ALL,
            &["--dir", file],
            format!("{file}: not a directory\n"),
        ),
        (
            ALL,
            &["--dir", "/proc"],
            "/proc: cannot write there: ".to_owned(),
        ),
        (
            ALL,
            &["--keep-free", "1000PiB"],
            "--keep-free is 1000.0 PiB, and the disk of made/if/missing has ".to_owned(),
        ),
        (
            UPLOADS,
            &["--user", "ann:a:1", "--user", "ann:b:1"],
            "--user: there are two users \"ann\"\n".to_owned(),
        ),
        (
            UPLOADS,
            &["--user", "ann:a:1", "--user", "bob:a:1"],
            "--user: two users have the same token\n".to_owned(),
        ),
        (
            WEBDAV,
            &["--limit", "/photos=1MiB", "--limit", "/photos/=2MiB"],
            "--limit: there are two limits for /photos\n".to_owned(),
        ),
        (
            UPLOADS,
            &["--quota-store", "sqlite:no/such/folder/file"],
            "sqlite:no/such/folder/file: ".to_owned(),
        ),
        (
            UPLOADS,
            &["--quota-store", "postgres://u:secret@127.0.0.1:1/d", "--user", "ann:a:1"],
            "postgres://127.0.0.1:1/d: error communicating with database: Connection refused (os error 111)\n"
                .to_owned(),
        ),
        (
            UPLOADS,
            &["--quota-store", "redis://u:secret@127.0.0.1:1"],
            "redis://127.0.0.1:1: cannot connect to Redis: Connection refused (os error 111)\n".to_owned(),
        ),
        (
            DOCUMENTS,
            &["--database-url", "postgres://u:secret@127.0.0.1:1/d"],
            "postgres://127.0.0.1:1/d: error communicating with database: Connection refused (os error 111)\n"
                .to_owned(),
        ),
        (
            DOCUMENTS,
            &["--database-url", "u:secret@127.0.0.1"],
            "--database-url: expected postgres://USER@HOST/DATABASE\n".to_owned(),
        ),
    ] {
        for example in examples {
            let said = failure(example, flags);
            assert!(said.starts_with(&format!("error: {words}")), "{example}: {said}");
        }
    }
}

/// Its pool would try for half a minute, and not tell why.
#[test]
fn a_database_that_is_silent_is_not_waited_for() {
    // Connections are accepted by the kernel.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u:secret@127.0.0.1:{port}/d");
    let said = |example, flag| failure(example, &[flag, &*url]);
    let words =
        format!("error: postgres://127.0.0.1:{port}/d: the server has not answered within 3s\n");
    std::thread::scope(|scope| {
        let both = [
            ("axum-upload", "--quota-store"),
            ("documents", "--database-url"),
        ];
        let both = both.map(|(example, flag)| scope.spawn(move || said(example, flag)));
        for one in both {
            assert_eq!(one.join().unwrap(), words);
        }
    });
}

/// What was there before is left alone.
#[test]
fn a_start_that_fails_touches_no_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in [".upload-1-1", "a", "ann/b", "ann/.upload-2-2"] {
        let path = folder.path().join("files").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    for example in UPLOADS {
        let command = Command::new(path_of(example));
        let store = "postgres://127.0.0.1:1/d";
        let flags = [
            "--dir",
            "files",
            "--user",
            "ann:a:1",
            "--user",
            "bob:b:1",
            "--quota-store",
            store,
        ];
        failure_in(folder.path(), command, &flags);
    }
}

/// Root may write anywhere, so that as root the examples run as another user.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_this_user_may_not_write_to() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const OTHER: &str = "65534";

    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let allow = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(root, 0o755);
    let is_root = fs::metadata(root).unwrap().uid() == 0;
    let program = |example: &str| {
        if !is_root {
            return Command::new(path_of(example));
        }
        // The other user may not reach the folder that it was built in.
        let program = root.join(example);
        if !program.exists() {
            fs::hard_link(path_of(example), &program)
                .or_else(|_| fs::copy(path_of(example), &program).map(drop))
                .unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", OTHER, "--regid", OTHER, "--clear-groups"]);
        command.arg(program);
        command
    };
    let closed = root.join("closed");
    fs::create_dir(&closed).unwrap();
    allow(&closed, 0o555);
    // As its owner, the folder; and within it, the folder of a user.
    let open = root.join("open");
    fs::create_dir_all(open.join("ann")).unwrap();
    allow(&open, 0o777);
    allow(&open.join("ann"), 0o555);
    let denied = "Permission denied (os error 13)\n";
    for example in ALL {
        let dir = closed.to_str().unwrap();
        let said = failure_in(root, program(example), &["--dir", dir]);
        assert_eq!(
            said,
            format!("error: {dir}: cannot write there: {denied}"),
            "{example}"
        );
        let dir = format!("{dir}/new");
        let said = failure_in(root, program(example), &["--dir", &dir]);
        assert_eq!(said, format!("error: {dir}: {denied}"), "{example}");
    }
    for example in UPLOADS {
        let dir = open.to_str().unwrap();
        let flags = ["--dir", dir, "--user", "ann:a:1", "--user", "bob:b:1"];
        let said = failure_in(root, program(example), &flags);
        assert_eq!(
            said,
            format!("error: {dir}/ann: cannot write there: {denied}"),
            "{example}"
        );
    }
    allow(&open.join("ann"), 0o755);
}

#[test]
fn says_what_is_wrong_with_a_flag() {
    for (examples, flags, words) in [
        (
            ALL,
            &["--listen", "3000"][..],
            "invalid value '3000' for '--listen <HOST:PORT>': expected HOST:PORT, such as localhost:3000\n",
        ),
        (
            ALL,
            &["--listen", "localhost:http"],
            "invalid value 'localhost:http' for '--listen <HOST:PORT>': expected HOST:PORT, such as localhost:3000\n",
        ),
        (
            ALL,
            &["--keep-free", "101%"],
            "invalid value '101%' for '--keep-free <SIZE>': a share is from 0% to 100%, in whole percent\n",
        ),
        (
            ALL,
            &["--keep-free", "much"],
            "invalid value 'much' for '--keep-free <SIZE>': couldn't parse \"much\" into a",
        ),
        (
            ALL,
            &["--keep-free", "1", "--keep-free", "2"],
            "the argument '--keep-free <SIZE>' cannot be used multiple times\n",
        ),
        (
            ALL,
            &["--keepfree", "1"],
            "unexpected argument '--keepfree' found\n\n  tip: a similar argument exists: '--keep-free'\n",
        ),
        (
            ALL,
            &["--dir"],
            "a value is required for '--dir <DIR>' but none was supplied\n",
        ),
        (
            UPLOADS,
            &["--quota", "much"],
            "invalid value 'much' for '--quota <SIZE>': couldn't parse \"much\" into a",
        ),
        (
            UPLOADS,
            &["--quota", "1GiB", "--quota", "2GiB"],
            "the argument '--quota <SIZE>' cannot be used multiple times\n",
        ),
        (
            UPLOADS,
            &["--quota-time-to-live", "0"],
            "invalid value '0' for '--quota-time-to-live <SECONDS>': number would be zero",
        ),
        (
            UPLOADS,
            &["--quota-store", "mysql://u:secret@h/d"],
            "invalid value for '--quota-store <STORE>': expected memory:, sqlite:PATH, postgres:",
        ),
        (
            UPLOADS,
            &["--user", "ann"],
            "invalid value 'ann' for '--user <NAME:TOKEN:LIMIT>': expected NAME:TOKEN:LIMIT\n",
        ),
        (
            UPLOADS,
            &["--user", "../ann:a:1"],
            "invalid value '../ann:a:1' for '--user <NAME:TOKEN:LIMIT>': a name must have 1 to 255 bytes and no slash",
        ),
        (
            UPLOADS,
            &["--user", "ann:a b:1"],
            "invalid value 'ann:a b:1' for '--user <NAME:TOKEN:LIMIT>': the token must be printable ASCII",
        ),
        (
            UPLOADS,
            &["--user", "ann:a:much"],
            "invalid value 'ann:a:much' for '--user <NAME:TOKEN:LIMIT>': the limit: ",
        ),
        (
            &["tus-upload"],
            &["--expire-after", "0"],
            "invalid value '0' for '--expire-after <SECONDS>': number would be zero",
        ),
        (
            WEBDAV,
            &["--limit", "/photos"],
            "invalid value '/photos' for '--limit <PATH=SIZE>': expected PATH=SIZE\n",
        ),
        (
            WEBDAV,
            &["--limit", "photos=1"],
            "invalid value 'photos=1' for '--limit <PATH=SIZE>': the path begins with a /\n",
        ),
        (
            WEBDAV,
            &["--limit", "/photos=much"],
            "invalid value '/photos=much' for '--limit <PATH=SIZE>': the size: ",
        ),
        (
            DOCUMENTS,
            &["--max-size", "1KiB"],
            "invalid value '1KiB' for '--max-size <SIZE>': the least is 16.0 KiB\n",
        ),
        (
            DOCUMENTS,
            &["--database-url", "postgres://h/d", "--keep-free", "1"],
            "the argument '--database-url <URL>' cannot be used with '--keep-free <SIZE>'\n",
        ),
    ] {
        for example in examples {
            let (said, code) = complaint(example, flags);
            assert!(
                said.starts_with(&format!("error: {words}")),
                "{example}: {said}"
            );
            assert!(!said.contains("secret"), "{said}");
            assert_eq!(code, Some(2), "{said}");
        }
    }
}

/// Its folder is gone, which no client is told.
#[tokio::test]
async fn failures_at_run_time_are_logged() {
    for (example, _, _) in EXAMPLES {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(path_of(example));
        command.stderr(File::create(log.path()).unwrap());
        let server = Server::start_with(tempfile::tempdir().unwrap(), command);
        // Below it, WebDAV uploads: without the folder itself, its answer would be 409.
        let gone = match example {
            "webdav" => server.dir.path().join(".uploads"),
            _ => server.dir.path().to_owned(),
        };
        fs::remove_dir_all(gone).unwrap();
        let (what, status) = match example {
            "tonic-upload" => {
                let status = Uploads::new(&server).put("a", "x").await.unwrap_err();
                assert_eq!(status.code() as i32, 13, "{status}");
                ("POST /upload.v1.Uploads/Put", "grpc-status 13")
            }
            "tus-upload" => {
                let upload = test_support::tus::creation(&server, 1);
                assert_eq!(upload.send().await.unwrap().status(), 500);
                ("POST /files", "500 Internal Server Error")
            }
            "documents" => {
                assert_eq!(server.put("/documents/a", "1").await.status(), 500);
                ("PUT /documents/a", "500 Internal Server Error")
            }
            _ => {
                let path = if example == "webdav" {
                    "/a"
                } else {
                    "/files/a"
                };
                assert_eq!(server.put(path, "x").await.status(), 500, "{example}");
                let what = if example == "webdav" {
                    "PUT /a"
                } else {
                    "PUT /files/a"
                };
                (what, "500 Internal Server Error")
            }
        };
        let said = fs::read_to_string(log.path()).unwrap();
        let line = format!("error: {what}: {status}: ");
        let error = said
            .strip_prefix(&line)
            .unwrap_or_else(|| panic!("{example}: {said:?}"));
        assert_eq!(error.lines().count(), 1, "{example}: {said}");
        if example != "documents" {
            assert!(
                error.contains("No such file or directory (os error 2)"),
                "{example}: {said}"
            );
        }
    }
}

/// Clients that are refused for want of room are no failure.
#[tokio::test]
async fn refusals_are_not_logged() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(path_of("axum-upload"));
    command
        .args(["--quota", "1"])
        .stderr(File::create(log.path()).unwrap());
    let server = Server::start_with(tempfile::tempdir().unwrap(), command);
    assert_eq!(server.put("/files/a", "too much").await.status(), 507);
    assert_eq!(server.get("/files/b").await.status(), 404);
    assert_eq!(fs::read_to_string(log.path()).unwrap(), "");
}
