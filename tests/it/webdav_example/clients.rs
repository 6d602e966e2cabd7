//! Clients that nobody here wrote, and full disks.

use std::{
    fs::{self, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use axum::{Router, extract::Request};
use dav_server::{DavHandler, localfs::LocalFs, memls::MemLs};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::spawn_blocking};

use super::{KIB, MIB, content, files, names, put, send, start, start_in, unannounced};
use crate::support::{
    eventually,
    mounts::{in_runtime, run, tmpfs, with_own_mounts},
    server::Server,
};

/// Runs a client, in a folder of its own, with these lines to read.
async fn client<A: AsRef<std::ffi::OsStr>>(
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
        // Dropped at once, so that the client sees its end.
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

/// The same dav-server, with nothing of ours.
async fn unguarded(dir: &Path) -> String {
    let dav = DavHandler::builder()
        .filesystem(LocalFs::new(dir, true, false, false))
        .locksystem(MemLs::new())
        .build_handler();
    let app = Router::new().fallback(move |request: Request| {
        let dav = dav.clone();
        async move { dav.handle(request).await }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    addr.to_string()
}

/// Its lines, each as it was in the end.
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
    // It has charged what is left, and no more.
    let left: usize = files(&server).values().map(Vec::len).sum();
    let rest = content(1, MIB - left);
    let _ = send(&server, "MKCOL", "/litmus/", &[]).await;
    assert_eq!(
        put(
            &server,
            "/litmus/more",
            unannounced(&content(1, rest.len() + 1))
        )
        .await,
        507
    );
    assert_eq!(put(&server, "/litmus/rest", rest).await, 201);
}

/// Three files of 400 KB, of which two fit, and one that fills the rest. It comes first.
fn tree(at: &Path) -> PathBuf {
    let tree = at.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    for (seed, name) in ["b", "c", "d"].into_iter().enumerate() {
        fs::write(tree.join(name), content(seed, 400_000)).unwrap();
    }
    fs::write(tree.join("sub/rest"), content(9, MIB - 800_000)).unwrap();
    tree
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs rclone: run by `make test`"]
async fn rclone_reports_a_tree_over_the_limit() {
    let home = tempfile::tempdir().unwrap();
    let tree = tree(home.path());
    let server = start(&["/photos=1MiB"]);
    let url = format!("http://{}", server.addr);
    let copy = || {
        let args = ["copy", "--config", "/dev/null", "--webdav-url", &url];
        let args = args.map(str::to_owned).into_iter();
        let tree = tree.to_str().unwrap().to_owned();
        client(
            "rclone",
            args.chain([tree, ":webdav:photos".to_owned()]),
            home.path(),
            "",
        )
    };
    let output = copy().await;
    println!("exit {:?}: {}", output.status.code(), said(&output));
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("507 Insufficient Storage"));

    // Which two of the three have fitted is chance. All that is there is whole.
    let there = files(&server);
    assert_eq!(there.len(), 3, "{:?}", there.keys());
    for (name, content) in &there {
        let name = name.strip_prefix("photos/").unwrap();
        assert!(*content == fs::read(tree.join(name)).unwrap(), "{name}");
    }
    // Full to the last byte.
    assert_eq!(put(&server, "/photos/x", "x").await, 507);

    // With room for the third, the rest of the work is done.
    assert_eq!(send(&server, "DELETE", "/photos/sub/", &[]).await, 204);
    fs::remove_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("d"), content(5, MIB - 800_000)).unwrap();
    fs::write(tree.join("c"), content(6, 400_000)).unwrap();
    fs::write(tree.join("b"), content(7, 400_000)).unwrap();
    for name in ["b", "c", "d"] {
        let _ = send(&server, "DELETE", &format!("/photos/{name}"), &[]).await;
    }
    let output = copy().await;
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(names(&server), ["photos/b", "photos/c", "photos/d"]);
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
    // What it says is between one prompt and the next.
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
    for (name, size) in [("exact", 64 * MIB), ("more", 64 * MIB + 1)] {
        fs::write(home.path().join(name), content(size, size)).unwrap();
    }
    let server = start(&["/photos=64MiB"]);
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
    assert!(files(&server)["photos/a"] == content(64 * MIB, 64 * MIB));
    assert_eq!(names(&server), ["photos/a"]);
}

/// A mount of davfs2, gone when dropped.
struct Mount {
    at: PathBuf,
    /// Its configuration and its cache.
    _home: TempDir,
}

impl Mount {
    fn new(server: &Server) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (at, cache) = (home.path().join("mounted"), home.path().join("cache"));
        for folder in [&at, &cache] {
            fs::create_dir(folder).unwrap();
        }
        // It becomes a user of its own.
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&cache, Permissions::from_mode(0o777)).unwrap();
        let conf = home.path().join("davfs2.conf");
        let settings = format!(
            "ask_auth 0\nuse_locks 0\ncache_dir {}\ndelay_upload 0\nfile_refresh 0\ndir_refresh 0\n",
            cache.display()
        );
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
        // Without its helper, which would wait for uploads that can never be. The daemon ends by it.
        let _ = Command::new("umount").arg("-i").arg(&self.at).status();
    }
}

/// What is refused at once, davfs2 passes on as ENOSPC. Its uploads begin behind `close`, whose result the
/// kernel drops, and `fsync` reaches its cache alone: there is no call that could fail for a refused PUT,
/// whatever the server is. The file stays in its cache.
#[test]
#[ignore = "mounts davfs2: run by `make test`"]
fn davfs2_maps_the_refusal_to_enospc() {
    with_own_mounts(|| {
        in_runtime(async {
            let server = start(&["/photos=100KiB"]);
            for folder in ["/photos/", "/other/"] {
                assert_eq!(send(&server, "MKCOL", folder, &[]).await, 201);
            }
            let (exact, more) = (content(1, 100 * KIB), content(2, 100 * KIB + 1));
            assert_eq!(put(&server, "/other/more", more.clone()).await, 201);
            let mount = Mount::new(&server);
            let work = {
                let (exact, more) = (exact.clone(), more.clone());
                move || {
                    fs::write(mount.path("photos/exact"), &exact).unwrap();
                    // Over its length again, by as much, and then by more.
                    fs::write(mount.path("photos/exact"), &exact).unwrap();
                    fs::write(mount.path("photos/more"), &more).unwrap();
                    let error = fs::rename(mount.path("other/more"), mount.path("photos/moved"));
                    let error = error.unwrap_err();
                    println!("rename: {error}");
                    assert_eq!(error.kind(), ErrorKind::StorageFull);
                    assert!(fs::read(mount.path("other/more")).unwrap() == more);
                    mount
                }
            };
            let mount = spawn_blocking(work).await.unwrap();
            let whole = [
                ("other/more".to_owned(), more),
                ("photos/exact".to_owned(), exact),
            ];
            eventually("the upload of what fits", || {
                files(&server) == whole.clone().into()
            })
            .await;
            spawn_blocking(|| drop(mount)).await.unwrap();
            assert!(files(&server) == whole.into());
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
            // What is on its way is not counted twice.
            let fits = content(2, 10 * MIB);
            assert_eq!(put(&server, "/fits", unannounced(&fits)).await, 201);
            // Old and new do not fit beside each other.
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
