//! The startup of the examples, and their errors when they cannot start.

use std::{fs, net::TcpListener, process::Command};

use test_support::example::{Server, complaint, path_of};

const EXAMPLES: [(&str, &str); 2] = [
    ("axum-upload", "127.0.0.1:3000"),
    ("tonic-upload", "127.0.0.1:50051"),
];

#[test]
fn each_has_a_place_of_its_own_to_listen() {
    for (example, listen) in EXAMPLES {
        let output = Command::new(path_of(example)).arg("--help").output();
        let help = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(help.contains(&format!("[default: {listen}]")), "{help}");
        for flag in [
            "--listen",
            "--dir",
            "--keep-free",
            "--quota",
            "--quota-store",
            "--user",
        ] {
            assert!(help.contains(flag), "{flag}: {help}");
        }
    }
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
    for example in [
        "axum-upload",
        "tonic-upload",
        "tus-upload",
        "webdav",
        "documents",
    ] {
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

#[test]
fn says_why_it_cannot_start() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file) = (folder.path().join("dir"), folder.path().join("file"));
    fs::write(&file, "").unwrap();
    let (dir, file) = (dir.to_str().unwrap(), file.to_str().unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (flags, words) in [
        (&["--dir", file][..], format!("error: {file}: ")),
        (
            &["--listen", &taken, "--dir", dir],
            format!("error: cannot listen on {taken}: "),
        ),
        (
            &["--dir", dir, "--user", "ann:a:1", "--user", "ann:b:1"],
            "error: there are two users \"ann\"".to_owned(),
        ),
        (
            &["--dir", dir, "--user", "ann:a:1", "--user", "bob:a:1"],
            "error: two users have the same token".to_owned(),
        ),
        (
            &["--dir", dir, "--quota-store", "sqlite:no/such/folder/file"],
            "error: sqlite:no/such/folder/file: ".to_owned(),
        ),
        (
            &[
                "--dir",
                dir,
                "--quota-store",
                "postgres://u:secret@127.0.0.1:1/d",
            ],
            "error: postgres://127.0.0.1:1/d: ".to_owned(),
        ),
    ] {
        for (example, _) in EXAMPLES {
            let (said, code) = complaint(example, flags);
            assert!(said.starts_with(&words), "{said}");
            assert!(!said.contains("secret"), "{said}");
            assert_eq!((said.lines().count(), code), (1, Some(1)), "{said}");
        }
    }
}

#[test]
fn says_what_is_wrong_with_a_flag() {
    for (flags, words) in [
        (["--quota", "much"], "'much' for '--quota <SIZE>'"),
        (["--listen", "here"], "'here' for '--listen <ADDR>'"),
        (["--user", "ann"], "expected NAME:TOKEN:LIMIT"),
        (["--user", "../ann:a:1"], "no slash"),
        (["--user", "ann:a b:1"], "the token must be printable ASCII"),
        (["--user", "ann:a:much"], "the limit: "),
        (
            ["--quota-store", "mysql://u:secret@h/d"],
            "invalid value for '--quota-store <STORE>': expected memory:, sqlite:PATH, postgres:",
        ),
    ] {
        for (example, _) in EXAMPLES {
            let (said, code) = complaint(example, flags);
            assert!(
                said.starts_with("error: ") && said.contains(words),
                "{said}"
            );
            assert!(!said.contains("secret"), "{said}");
            assert_eq!(code, Some(2), "{said}");
        }
    }
}
