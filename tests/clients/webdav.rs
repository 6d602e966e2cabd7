//! Third-party WebDAV clients, and full disks.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    eventually,
    example::Server,
    mounts::{in_runtime, run, tmpfs, with_own_mounts},
    webdav::*,
};
use tokio::task::spawn_blocking;

/// Runs a client, in a folder of its own, with these lines as input.
async fn client<A: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = A>,
    home: &Path,
    input: &str,
) -> Output {
    let mut command = Command::new("timeout");
    command.arg("120").arg(program).args(args);
    command.current_dir(home).env("HOME", home);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let ended = spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // Dropped at once, so that the client sees the end of its input.
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    });
    ended.await.unwrap()
}

fn said(output: &Output) -> String {
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said += &String::from_utf8_lossy(&output.stderr);
    said
}

/// Its lines, each in its final form.
async fn litmus(addr: &str) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    let output = client(
        "litmus",
        ["-k", &format!("http://{addr}/")],
        home.path(),
        "",
    )
    .await;
    let lines = String::from_utf8_lossy(&output.stdout);
    let lines = lines.lines().map(|line| line.rsplit('\r').next().unwrap());
    let lines: Vec<_> = lines.map(|line| line.trim().to_owned()).collect();
    let of = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(of("summary for"), 5, "{}", said(&output));
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs litmus: run by `make test`"]
async fn litmus_passes_as_without_the_guard() {
    let dir = tempfile::tempdir().unwrap();
    let without = litmus(&unguarded(dir.path()).await).await;
    let server = start(&["/litmus=1MiB"]);
    let with = litmus(&server.addr).await;
    for (name, lines) in [("without the guard", &without), ("with the guard", &with)] {
        println!("{name}:");
        for line in lines.iter().filter(|line| line.contains("summary for")) {
            println!("  {line}");
        }
    }
    assert_eq!(without, with);
    // A temporary file was seen beside the file of its last PUT.
    let is_in_progress = |name: &String| name.starts_with(".uploads/");
    eventually("no upload in progress", || {
        !names(&server).iter().any(is_in_progress)
    })
    .await;
    // The files that litmus leaves are charged, and nothing more.
    let all = files(&server);
    let sizes = || all.iter().map(|(name, file)| (name, file.len()));
    let left: usize = sizes().map(|(_, size)| size).sum();
    let rest = content(1, MIB - left);
    let _ = send(&server, "MKCOL", "/litmus/", &[]).await;
    let more = unannounced(&content(1, rest.len() + 1));
    let status = put(&server, "/litmus/more", more).await;
    let stored = files(&server);
    let stored: Vec<_> = stored
        .iter()
        .map(|(name, file)| (name, file.len()))
        .collect();
    assert_eq!(
        status,
        507,
        "{stored:?}, and before {:?}",
        sizes().collect::<Vec<_>>()
    );
    assert_eq!(put(&server, "/litmus/rest", rest).await, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs rclone: run by `make test`"]
async fn rclone_reports_a_tree_over_the_limit() {
    let home = tempfile::tempdir().unwrap();
    let tree = home.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let server = start(&["/photos=1MiB"]);
    let url = format!("http://{}", server.addr);
    let copy = async || {
        let args = ["copy", "--config", "/dev/null", "--webdav-url", &url];
        let args = args
            .into_iter()
            .chain([tree.to_str().unwrap(), ":webdav:photos"]);
        let output = client("rclone", args, home.path(), "").await;
        let said = said(&output);
        println!("exit {:?}: {said}", output.status.code());
        (output.status.code(), said)
    };
    let write = |name: &str, size| {
        let content = content(size, size);
        fs::write(tree.join(name), &content).unwrap();
        (format!("photos/{name}"), content)
    };

    // To the last byte.
    let fits = [
        write("a", 400_000),
        write("b", 400_000),
        write("sub/c", MIB - 800_000),
    ];
    assert_eq!(copy().await.0, Some(0));
    assert!(files(&server) == fits.clone().into());

    let more = write("d", 400_001);
    let (code, said) = copy().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("d: Failed to copy: "), "{said}");
    assert!(said.contains("507 Insufficient Storage"), "{said}");
    assert!(files(&server) == fits.clone().into());

    // All at once: which of them fit is random. The stored files are complete.
    assert_eq!(send(&server, "DELETE", "/photos/", &[]).await, 204);
    assert_eq!(copy().await.0, Some(1));
    let there = files(&server);
    assert!((2..4).contains(&there.len()), "{:?}", there.keys());
    let all = fits.into_iter().chain([more]).collect::<BTreeMap<_, _>>();
    assert!(there.iter().all(|(name, content)| all[name] == *content));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs rclone: run by `make test`"]
async fn rclone_shows_how_much_fits() {
    let home = tempfile::tempdir().unwrap();
    let server = start(&["/=1MiB"]);
    assert_eq!(put(&server, "/a", content(1, 300_000)).await, 201);
    let url = format!("http://{}", server.addr);
    let args = ["about", "--json", "--config", "/dev/null"];
    let args = args.into_iter().chain(["--webdav-url", &url, ":webdav:"]);
    let output = client("rclone", args, home.path(), "").await;
    let about: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{about}");
    assert_eq!(
        (&about["used"], &about["free"]),
        (&300_000.into(), &748_576.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs cadaver: run by `make test`"]
async fn cadaver_shows_the_refusal() {
    let home = tempfile::tempdir().unwrap();
    for (name, size) in [("exact", MIB), ("more", MIB + 1), ("small", 10)] {
        fs::write(home.path().join(name), content(size, size)).unwrap();
    }
    let server = start(&["/photos=1MiB"]);
    let url = format!("http://{}/", server.addr);
    let lines = [
        ("mkcol photos", "succeeded"),
        ("mkcol other", "succeeded"),
        ("put more photos/more", "507 Insufficient Storage"),
        ("put exact photos/exact", "succeeded"),
        ("put exact photos/exact", "succeeded"),
        ("put small photos/small", "507 Insufficient Storage"),
        ("put more photos/exact", "507 Insufficient Storage"),
        ("put small other/small", "succeeded"),
        ("copy other photos/copy", "507 Insufficient Storage"),
        ("delete photos/exact", "succeeded"),
        ("copy other photos/copy", "succeeded"),
    ];
    let mut input: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
    input += "quit\n";
    let output = client("cadaver", [url], home.path(), &input).await;
    let said = said(&output);
    println!("{said}");
    // Its output is between one prompt and the next.
    let answers: Vec<_> = said.split("dav:/> ").skip(1).collect();
    for ((line, word), answer) in lines.iter().zip(&answers) {
        assert!(answer.contains(word), "{line}: {answer}");
    }
    assert_eq!(names(&server), ["other/small", "photos/copy/small"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs curl: run by `make test`"]
async fn curl_shows_the_refusal() {
    let home = tempfile::tempdir().unwrap();
    for (name, size) in [("exact", 8 * MIB), ("more", 8 * MIB + 1)] {
        fs::write(home.path().join(name), content(size, size)).unwrap();
    }
    let server = start(&["/photos=8MiB"]);
    send(&server, "MKCOL", "/photos/", &[]).await;
    let url = format!("http://{}/photos/a", server.addr);
    for from in ["more", "exact"] {
        for is_announced in [true, false] {
            let shell = match is_announced {
                true => format!("curl -sS -w '\\n%{{http_code}}' -T {from} {url}"),
                false => format!("curl -sS -w '\\n%{{http_code}}' -T - {url} < {from}"),
            };
            let output = client("sh", ["-c", &shell], home.path(), "").await;
            let status = said(&output);
            let status = status.lines().last().unwrap_or_default();
            match (from, is_announced) {
                ("more", _) => assert_eq!(status, "507", "{}", said(&output)),
                (_, true) => assert_eq!(status, "201", "{}", said(&output)),
                (_, false) => assert_eq!(status, "204", "{}", said(&output)),
            }
        }
    }
    assert!(files(&server)["photos/a"] == content(8 * MIB, 8 * MIB));
    assert_eq!(names(&server), ["photos/a"]);
}

/// A mount of davfs2, unmounted when dropped.
struct Mount {
    at: PathBuf,
    /// Its configuration and its cache.
    _home: TempDir,
}

impl Mount {
    fn new(server: &Server, locks: bool) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (at, cache) = (home.path().join("mounted"), home.path().join("cache"));
        for folder in [&at, &cache] {
            fs::create_dir(folder).unwrap();
        }
        // It drops privileges to a user of its own.
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&cache, Permissions::from_mode(0o777)).unwrap();
        let conf = home.path().join("davfs2.conf");
        let settings = [
            "ask_auth 0".to_owned(),
            format!("cache_dir {}", cache.display()),
            format!("use_locks {}", u8::from(locks)),
            // When it is closed, and as it is on the server.
            "delay_upload 0".to_owned(),
            "file_refresh 0".to_owned(),
            "dir_refresh 0".to_owned(),
        ];
        let settings = settings.join("\n") + "\n";
        fs::write(&conf, settings).unwrap();
        let options = format!("conf={},uid=0,gid=0", conf.display());
        let url = format!("http://{}/", server.addr);
        run("mount.davfs", ["-o", &options, &url, at.to_str().unwrap()]);
        Self { at, _home: home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Without its helper, which would wait for uploads that can never succeed. The daemon is stopped this way.
        let _ = Command::new("umount").arg("-i").arg(&self.at).status();
    }
}

/// davfs2 locks files that it opens for writing, and the LOCK of a new name makes a file. If that is refused, `open` fails: a
/// disk without inodes refuses it.
///
/// No other call can fail for want of room, whatever the server is: davfs2 uploads after `close`, whose result the
/// kernel has dropped by then, `fsync` only reaches its cache, and a MOVE that is refused is EIO.
#[test]
#[ignore = "mounts davfs2: run by `make test`"]
fn davfs2_maps_the_refusal_to_enospc() {
    with_own_mounts(|| {
        in_runtime(async {
            let dir = tempfile::tempdir().unwrap();
            tmpfs(dir.path(), "size=16m,nr_inodes=40");
            let server = start_in(dir, &[]);
            assert_eq!(put(&server, "/before", "x").await, 201);
            let mount = Mount::new(&server, true);
            // With the ones that the server needs for an upload.
            let mut number = 0;
            while put(&server, &format!("/{number}"), "").await == 201 {
                number += 1;
            }
            assert!(number > 20, "{number}");
            let work = move || {
                let error = File::create(mount.path("more")).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                mount
            };
            let mount = spawn_blocking(work).await.unwrap();
            for number in 0..4 {
                assert_eq!(
                    send(&server, "DELETE", &format!("/{number}"), &[]).await,
                    204
                );
            }
            let work = move || {
                fs::write(mount.path("after"), "x").unwrap();
                mount
            };
            let mount = spawn_blocking(work).await.unwrap();
            let is_there = || files(&server).get("after").is_some_and(|file| file == b"x");
            eventually("the upload", is_there).await;
            assert!(!files(&server).contains_key("more"));
            spawn_blocking(|| drop(mount)).await.unwrap();
        });
    });
}

/// In a collection that has no byte left: the lock, the empty file, and its times.
#[test]
#[ignore = "mounts davfs2: run by `make test`"]
fn davfs2_touches_a_new_file_in_a_full_collection() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = start(&["/photos=100KiB"]);
            assert_eq!(send(&server, "MKCOL", "/photos/", &[]).await, 201);
            let exact = content(1, 100 * KIB);
            assert_eq!(put(&server, "/photos/exact", exact.clone()).await, 201);
            let mount = Mount::new(&server, true);
            let work = move || {
                run("touch", [mount.path("photos/more")]);
                fs::write(mount.path("elsewhere"), "x").unwrap();
                mount
            };
            let mount = spawn_blocking(work).await.unwrap();
            let whole = [
                ("elsewhere".to_owned(), b"x".to_vec()),
                ("photos/exact".to_owned(), exact),
                ("photos/more".to_owned(), Vec::new()),
            ];
            eventually("the uploads", || files(&server) == whole.clone().into()).await;
            spawn_blocking(|| drop(mount)).await.unwrap();
        });
    });
}

#[test]
#[ignore = "mounts davfs2: run by `make test`"]
fn uploads_by_davfs2_are_complete_or_absent() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = start(&["/photos=100KiB"]);
            for folder in ["/photos/", "/other/"] {
                assert_eq!(send(&server, "MKCOL", folder, &[]).await, 201);
            }
            let (exact, more) = (content(1, 100 * KIB), content(2, 100 * KIB + 1));
            let mount = Mount::new(&server, false);
            let work = {
                let (exact, more) = (exact.clone(), more.clone());
                move || {
                    fs::write(mount.path("photos/more"), &more).unwrap();
                    fs::write(mount.path("photos/exact"), &exact).unwrap();
                    fs::write(mount.path("other/more"), &more).unwrap();
                    mount
                }
            };
            let mount = spawn_blocking(work).await.unwrap();
            let whole = [
                ("other/more".to_owned(), more.clone()),
                ("photos/exact".to_owned(), exact.clone()),
            ];
            eventually("the upload", || files(&server) == whole.clone().into()).await;
            let work = move || {
                // Full: the same amount again, and then more.
                fs::write(mount.path("photos/exact"), &exact[..KIB]).unwrap();
                fs::write(mount.path("photos/exact"), &exact).unwrap();
                fs::write(mount.path("photos/exact"), &more).unwrap();
                fs::rename(mount.path("other/more"), mount.path("photos/moved")).unwrap_err();
                fs::write(mount.path("other/last"), "x").unwrap();
                mount
            };
            let mount = spawn_blocking(work).await.unwrap();
            let last = "other/last".to_owned();
            eventually("the upload", || names(&server).contains(&last)).await;
            let whole = whole.into_iter().chain([(last, b"x".to_vec())]).collect();
            assert!(files(&server) == whole);
            spawn_blocking(|| drop(mount)).await.unwrap();
            assert!(files(&server) == whole);
        });
    });
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk_leaves_nothing_behind() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=16m");
            let server = start_in(tempfile::tempdir_in(disk).unwrap(), &[]);
            let large = content(1, 17 * MIB);
            for body in [large.clone().into(), unannounced(&large)] {
                assert_eq!(put(&server, "/large", body).await, 507);
                assert_eq!(names(&server), [""; 0]);
            }
            // An upload in flight is not counted twice.
            let fits = content(2, 10 * MIB);
            assert_eq!(put(&server, "/fits", unannounced(&fits)).await, 201);
            // The old and the new file do not fit together.
            for body in [
                large[..10 * MIB].to_vec().into(),
                unannounced(&large[..10 * MIB]),
            ] {
                assert_eq!(put(&server, "/fits", body).await, 507);
                assert!(files(&server)["fits"] == fits);
            }
            let to = [("destination", "/copy")];
            assert_eq!(send(&server, "COPY", "/fits", &to).await, 507);
            assert_eq!(names(&server), ["fits"]);
            assert_eq!(send(&server, "DELETE", "/fits", &[]).await, 204);
            assert_eq!(
                put(&server, "/other", large[..15 * MIB].to_vec()).await,
                201
            );
        });
    });
}
