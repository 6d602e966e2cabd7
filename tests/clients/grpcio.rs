//! The gRPC example, called by Python's grpcio, which uses gRPC's C core.
//!
//! `programs/upload_grpc.py` makes the calls, and prints the answers. The expectations are here.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use prost::Message as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::{
    example::Server,
    mounts::{fill_but, in_runtime, run, tmpfs, with_own_mounts},
    times,
    uploads::Uploads,
};
use tokio::task::spawn_blocking;

use crate::programs::{program, python};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The size of one of many uploads. A few of these with their framing are not a whole number of MiB.
const LARGE: u64 = 4 * MIB - 64 * KIB;

/// The result of a call.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(default)]
    name: String,
    code: String,
    number: i32,
    message: String,
    /// As grpcio-status decodes them.
    details: Vec<Value>,
    /// How much of the content was sent.
    #[serde(default)]
    sent: u64,
    /// How much was to be sent before the call was cancelled.
    until: Option<u64>,
    stored: Option<u64>,
    #[serde(default)]
    milliseconds: u64,
}

impl Said {
    fn answered(&self) -> (&str, i32, &str) {
        (&self.code, self.number, &self.message)
    }

    /// The detail of this type.
    fn detail(&self, name: &str) -> Option<&Value> {
        let name = format!("type.googleapis.com/google.rpc.{name}");
        self.details.iter().find(|detail| detail["@type"] == name)
    }

    /// Whether a disk is full. The client learns no more than that about a disk.
    #[track_caller]
    fn is_disk_full(&self) {
        let full = ("RESOURCE_EXHAUSTED", 8, "Server storage capacity reached");
        assert_eq!(self.answered(), full, "{self:?}");
        let info = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "DISK_FULL",
            "domain": "tower-storage-guard",
            "metadata": {"resource": "bytes", "temporary": "true"},
        });
        assert_eq!(self.details, [info]);
    }

    /// The reason of the refusal.
    fn reason(&self) -> &str {
        let info = self.detail("ErrorInfo");
        let info = info.unwrap_or_else(|| panic!("{self:?}"));
        info["reason"].as_str().unwrap()
    }

    /// Checks that a scope has too little left. Returns what is used, and what is required.
    #[track_caller]
    fn is_over_quota(&self, scope: &str, limit: u64) -> (u64, u64) {
        let exceeded = ("RESOURCE_EXHAUSTED", 8, "Storage quota exceeded");
        assert_eq!(self.answered(), exceeded, "{self:?}");
        // No RetryInfo, because clients would repeat the call.
        assert_eq!(self.details.len(), 2, "{self:?}");
        let violations = &self.detail("QuotaFailure").unwrap()["violations"];
        let violation = json!({"subject": scope, "description": "Storage quota exceeded"});
        assert_eq!(violations, &json!([violation]));

        let info = self.detail("ErrorInfo").unwrap();
        assert_eq!(info["reason"], "QUOTA_EXCEEDED");
        assert_eq!(info["domain"], "tower-storage-guard");
        let metadata = &info["metadata"];
        let figure = |key: &str| -> u64 { metadata[key].as_str().unwrap().parse().unwrap() };
        let (used, required) = (figure("used_bytes"), figure("required_bytes"));
        let is_temporary = required <= limit;
        let all = json!({
            "limit_bytes": limit.to_string(),
            "used_bytes": used.to_string(),
            "required_bytes": required.to_string(),
            "resource": "bytes",
            "temporary": is_temporary.to_string(),
        });
        assert_eq!(metadata, &all);
        assert!(used <= limit && used + required > limit, "{info}");
        (used, required)
    }
}

/// Python with grpcio, and the files that it uploads and fetches.
struct Client {
    address: String,
    flags: Vec<OsString>,
    files: TempDir,
}

impl Client {
    fn new(server: &Server) -> Self {
        let files = tempfile::tempdir().unwrap();
        let proto = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../examples/tonic-upload/proto"
        );
        let descriptors = protox::compile(["upload.proto"], [proto]).unwrap();
        fs::write(files.path().join(DESCRIPTORS), descriptors.encode_to_vec()).unwrap();
        fs::create_dir(files.path().join(FETCHED)).unwrap();
        Self {
            address: server.addr.clone(),
            flags: Vec::new(),
            files,
        }
    }

    /// Sets the user for the following calls.
    fn bearing(mut self, token: &str) -> Self {
        self.flags = ["--token", token].map(OsString::from).into();
        self
    }

    /// A file to upload, whose content is different at every position.
    fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, content(name, size)).unwrap();
        path
    }

    /// A sparse file to upload, which takes no room here.
    fn zeros(&self, name: &str, size: u64) -> PathBuf {
        let path = self.files.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// Runs a command, given as words without spaces, on files or other arguments.
    fn begin<A: AsRef<OsStr>>(&self, words: &str, rest: impl IntoIterator<Item = A>) -> Child {
        let mut command = Command::new(python());
        command.arg(program("upload_grpc.py")).args(&self.flags);
        command.arg(&self.address);
        command.arg(self.files.path().join(DESCRIPTORS));
        command.args(words.split(' ')).args(rest);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// The results of its calls.
    async fn all<A: AsRef<OsStr>>(
        &self,
        words: &str,
        rest: impl IntoIterator<Item = A>,
    ) -> Vec<Said> {
        ended(self.begin(words, rest)).await
    }

    /// The result of its only call.
    async fn one<A: AsRef<OsStr>>(&self, words: &str, rest: impl IntoIterator<Item = A>) -> Said {
        only(self.all(words, rest).await)
    }

    async fn put(&self, file: &Path) -> Said {
        self.one("put", [file]).await
    }

    async fn put_small(&self, file: &Path) -> Said {
        self.one("put-small", [file]).await
    }

    async fn get(&self, name: &str) -> Said {
        let folder = self.files.path().join(FETCHED);
        self.one("get", [folder.as_path(), Path::new(name)]).await
    }

    async fn delete(&self, name: &str) -> Said {
        self.one("delete", [name]).await
    }

    fn fetched(&self, name: &str) -> Vec<u8> {
        fs::read(self.files.path().join(FETCHED).join(name)).unwrap()
    }
}

const DESCRIPTORS: &str = ".descriptors";
const FETCHED: &str = ".fetched";

async fn ended(child: Child) -> Vec<Said> {
    let output = spawn_blocking(|| child.wait_with_output()).await.unwrap();
    let output = output.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines = str::from_utf8(&output.stdout).unwrap().lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn only(said: Vec<Said>) -> Said {
    let [said] = said.try_into().unwrap();
    said
}

/// The content of the file with this name. No two blocks are equal, because 251 is prime.
fn content(name: &str, size: u64) -> Vec<u8> {
    let seed = name.bytes().fold(0, u8::wrapping_add);
    let period: Vec<_> = (0..251_u8).map(|i| i.wrapping_add(seed)).collect();
    let mut content = period.repeat(size.div_ceil(251) as usize);
    content.truncate(size as usize);
    content
}

#[tokio::test]
#[ignore = "needs grpcio: run by `make test`"]
async fn stores_reads_and_deletes() {
    let server = Server::start("tonic-upload", &[]);
    let client = Client::new(&server);
    let sizes = [0, 5, 64 * KIB, 64 * KIB + 1, 3 * MIB];
    let names = sizes.map(|size| format!("é {size}"));
    for command in ["put", "put-small"] {
        let files = names.iter().zip(sizes);
        let files = files.map(|(name, size)| client.file(name, size));
        let stored = client.all(command, files).await;
        for ((said, name), size) in stored.iter().zip(&names).zip(sizes) {
            assert_eq!(said.answered(), ("OK", 0, ""), "{said:?}");
            assert_eq!((&said.name, said.stored), (name, Some(size)));
        }
        assert_eq!(stored.len(), sizes.len());
        for (name, size) in names.iter().zip(sizes) {
            assert_eq!(client.get(name).await.answered(), ("OK", 0, ""));
            assert!(client.fetched(name) == content(name, size), "{name}");
        }
    }
    let mut sorted = names.to_vec();
    sorted.sort();
    assert_eq!(server.names(), sorted);
    let ours = Uploads::new(&server);
    ours.until_used(1 << 30, sizes.iter().sum()).await;

    for code in [("OK", 0, ""), NOT_FOUND] {
        let deleted = client.all("delete", &names).await;
        assert_eq!(deleted.len(), names.len());
        for said in deleted {
            assert_eq!(said.answered(), code, "{said:?}");
        }
    }
    assert_eq!(client.get(&names[1]).await.answered(), NOT_FOUND);
    assert_eq!(server.names(), [""; 0]);
    ours.until_used(1 << 30, 0).await;
}

const NOT_FOUND: (&str, i32, &str) = ("NOT_FOUND", 5, "there is no file of this name");

#[tokio::test]
#[ignore = "needs grpcio: run by `make test`"]
async fn strangers_are_turned_away() {
    // There is no room at all, and unauthenticated clients do not learn that.
    let flags = ["--user", "ann:token:1MiB", "--keep-free", "100%"];
    let server = Server::start("tonic-upload", &flags);
    for client in [Client::new(&server), Client::new(&server).bearing("wrong")] {
        let file = client.file("a", 2 * MIB);
        for said in [
            client.put(&file).await,
            client.put_small(&file).await,
            client.get("a").await,
            client.delete("a").await,
        ] {
            assert_eq!(said.answered(), ("UNAUTHENTICATED", 16, "who are you?"));
            assert!(said.details.is_empty(), "{said:?}");
        }
    }
    assert_eq!(server.names(), ["ann"]);
}

/// An error that is not a storage fault keeps its own code, and has no details.
#[tokio::test]
#[ignore = "needs grpcio: run by `make test`"]
async fn mistakes_have_codes_of_their_own() {
    const NAMELESS: &str = "the name comes first";
    const INVALID_NAME: &str =
        "a name must have 1 to 255 bytes and no slash, and not begin with a dot";

    let server = Server::start("tonic-upload", &["--quota", "8MiB"]);
    let client = Client::new(&server);
    let (small, large) = (client.file("a", 1), client.file("b", 4 * MIB));
    let (small, large) = (small.to_str().unwrap(), large.to_str().unwrap());
    fs::create_dir(server.dir.path().join("folder")).unwrap();
    let invalid = |message| ("INVALID_ARGUMENT", 3, message);
    for (words, rest, answer) in [
        ("parts", &[][..], invalid(NAMELESS)),
        ("parts", &[""], invalid(NAMELESS)),
        ("parts", &["chunk=x", "name=a"], invalid(NAMELESS)),
        ("parts", &["name=a", "name=b"], invalid("there is one name")),
        (
            "parts",
            &["name=a", "chunk=x", ""],
            invalid("there is nothing in a message"),
        ),
        ("put --name ../a", &[small], invalid(INVALID_NAME)),
        ("put-small --name .a", &[small], invalid(INVALID_NAME)),
        ("get", &[FETCHED, "a/b"], invalid(INVALID_NAME)),
        ("delete", &["../a"], invalid(INVALID_NAME)),
        ("get", &[FETCHED, "a"], NOT_FOUND),
        ("delete", &["a"], NOT_FOUND),
    ] {
        let said = client.one(words, rest).await;
        assert_eq!(said.answered(), answer, "{words} {rest:?}");
        assert!(said.details.is_empty(), "{said:?}");
    }
    for (words, file, code, number) in [
        ("put --name folder", small, "FAILED_PRECONDITION", 9),
        ("put-small --name a", large, "OUT_OF_RANGE", 11),
    ] {
        let said = client.one(words, [file]).await;
        assert_eq!((&*said.code, said.number), (code, number), "{said:?}");
        assert!(said.details.is_empty(), "{said:?}");
    }
    server.until_nothing_is_left_behind().await;
    assert_eq!(server.names(), ["folder"]);
    Uploads::new(&server).until_used(8 * MIB, 0).await;
}

#[tokio::test]
#[ignore = "needs grpcio: run by `make test`"]
async fn a_quota_refusal_has_the_scope_and_the_figures() {
    const ANN: u64 = 1000 * KIB;
    const BOB: u64 = 500 * KIB;
    const EVERYONE: u64 = 1450 * KIB;
    let flags = "--user ann:a:1000KiB --user bob:b:500KiB --quota 1450KiB";
    let flags: Vec<_> = flags.split(' ').collect();
    let server = Server::start("tonic-upload", &flags);
    let ann = Client::new(&server).bearing("a");
    let bob = Client::new(&server).bearing("b");
    let is_too_much = async |client: &Client, size: u64, scope: &str, limit: u64, used: u64| {
        let file = client.file("b", size);
        for said in [client.put(&file).await, client.put_small(&file).await] {
            // The admitted part is counted by then, and so is its framing.
            let (now, required) = said.is_over_quota(scope, limit);
            let all = now + required - used;
            assert!(now >= used && all <= size + 20 * KIB, "{said:?}");
        }
    };
    let whole = ann.put(&ann.file("a", 900 * KIB)).await;
    assert_eq!(whole.stored, Some(900 * KIB));
    is_too_much(&ann, 101 * KIB, "user:ann", ANN, 900 * KIB).await;
    is_too_much(&bob, 501 * KIB, "user:bob", BOB, 0).await;
    let whole = bob.put_small(&bob.file("a", 480 * KIB)).await;
    assert_eq!(whole.stored, Some(480 * KIB));
    is_too_much(&ann, 80 * KIB, "everyone", EVERYONE, 1380 * KIB).await;

    server.until_nothing_is_left_behind().await;
    let ours = Uploads::new(&server);
    ours.bearing("a").until_used(ANN, 900 * KIB).await;
    ours.bearing("b").until_used(BOB, 480 * KIB).await;
}

/// A client that announces the length of its upload, and waits for an answer, never sends it.
#[tokio::test]
#[ignore = "needs grpcio: run by `make test`"]
async fn a_hint_is_refused_at_the_door() {
    const LIMIT: u64 = 8 * MIB;
    let server = Server::start("tonic-upload", &["--quota", "8MiB"]);
    let client = Client::new(&server);
    let put = async |size: u64, words: &str| {
        let words = format!("put --hint {size}{words}");
        client.one(&words, [client.zeros("a", size)]).await
    };
    for (size, words) in [
        (LIMIT + 1, " --patient"),
        (64 * MIB, " --patient"),
        (LIMIT + 1, ""),
        (64 * MIB, ""),
    ] {
        let said = put(size, words).await;
        // Before anything is reserved.
        assert_eq!(said.is_over_quota("everyone", LIMIT), (0, size));
        println!("hint {size}{words}: {} bytes sent", said.sent);
        assert!(words.is_empty() || said.sent == 0, "{said:?}");
        assert!(said.sent <= 4 * MIB, "{said:?}");
    }
    assert_eq!(server.names(), [""; 0]);
    let fits = LIMIT - 64 * KIB;
    assert_eq!(put(fits, "").await.stored, Some(fits));
}

/// However much is still to come, the status always arrives with its details. The connection stays usable.
#[tokio::test]
#[ignore = "needs grpcio: run by `make test`"]
async fn a_stream_that_is_cut_has_its_status() {
    const LIMIT: u64 = 512 * KIB;
    const TIMES: usize = 20;
    let server = Server::start("tonic-upload", &["--quota", "512KiB"]);
    let client = Client::new(&server);
    for size in [MIB, 64 * MIB] {
        let file = client.zeros("a", size);
        for channels in [1, TIMES] {
            let words = format!("put --times {TIMES} --channels {channels}");
            let all = client.all(&words, [&file]).await;
            let with_status = all.iter().filter(|said| said.number == 8);
            println!(
                "{:2} MiB over {channels:2} channels: {} of {TIMES} statuses, {} to {} ms, {} to {} KiB sent",
                size / MIB,
                with_status.count(),
                all.iter().map(|said| said.milliseconds).min().unwrap(),
                all.iter().map(|said| said.milliseconds).max().unwrap(),
                all.iter().map(|said| said.sent).min().unwrap() / KIB,
                all.iter().map(|said| said.sent).max().unwrap() / KIB,
            );
            assert_eq!(all.len(), TIMES);
            for said in &all {
                let (_, required) = said.is_over_quota("everyone", LIMIT);
                // In mid-stream: content has arrived, and the client has not sent most of it yet.
                assert!(required > 1 && said.sent <= 4 * MIB, "{said:?}");
            }
            server.until_nothing_is_left_behind().await;
            assert_eq!(server.names(), [""; 0]);
        }
    }
    Uploads::new(&server).until_used(LIMIT, 0).await;
}

fn start_on_tmpfs(options: &str, quota: &str) -> (Server, Client) {
    let dir = tempfile::tempdir().unwrap();
    tmpfs(dir.path(), options);
    // The whole disk is available to uploads.
    let flags = [
        "--keep-free",
        "0",
        "--quota-store",
        "memory:",
        "--quota",
        quota,
    ];
    let server = Server::start_in(dir, "tonic-upload", &flags);
    let client = Client::new(&server);
    (server, client)
}

#[test]
#[ignore = "needs grpcio, mounts filesystems: run by `make test`"]
fn a_disk_that_fills_up() {
    with_own_mounts(|| {
        in_runtime(async {
            let (server, client) = start_on_tmpfs("size=32m", "48MiB");
            let (a, b) = (client.file("a", MIB), client.file("b", 4 * MIB));
            assert_eq!(client.put(&a).await.stored, Some(MIB));
            let mut upload = client.begin("put --hold 1048576", [b]);
            server.until_received(MIB).await;
            // Written by a program without a guard.
            fill_but(server.dir.path(), MIB);
            upload.stdin.take().unwrap().write_all(b"\n").unwrap();
            only(ended(upload).await).is_disk_full();
            server.until_nothing_is_left_behind().await;
            assert_eq!(server.names(), ["a", "filler"]);

            fs::remove_file(server.dir.path().join("filler")).unwrap();
            fill_but(server.dir.path(), 0);
            let small = client.file("c", 1);
            for refused in [client.put(&small).await, client.put_small(&small).await] {
                refused.is_disk_full();
            }
            server.until_nothing_is_left_behind().await;
            assert_eq!(client.get("a").await.code, "OK");
            assert!(client.fetched("a") == content("a", MIB));
            assert_eq!(client.delete("a").await.code, "OK");
            let half = client.file("b", MIB / 2);
            assert_eq!(client.put(&half).await.stored, Some(MIB / 2));
            assert_eq!(server.names(), ["b", "filler"]);
        });
    });
}

/// Sixteen concurrent streams, over `channels` channels. Returns how many were acknowledged, which are all that are
/// stored.
async fn stampede(server: &Server, client: &Client, channels: usize) -> usize {
    let names: Vec<_> = (0..16).map(|i| format!("{i:02}")).collect();
    let files = names.iter().map(|name| client.file(name, LARGE));
    let words = format!("put --at-once --channels {channels}");
    let all = client.all(&words, files).await;
    assert_eq!(all.len(), names.len());
    server.until_nothing_is_left_behind().await;
    let mut stored = Vec::new();
    for (said, name) in all.iter().zip(names) {
        assert_eq!(said.name, name);
        if said.code == "OK" {
            assert_eq!(said.stored, Some(LARGE));
            let there = fs::read(server.dir.path().join(&name)).unwrap();
            assert!(there == content(&name, LARGE), "{name} is torn");
            stored.push(name);
        } else {
            said.is_disk_full();
        }
    }
    assert_eq!(server.names(), stored);
    let late = all.iter().map(|said| said.milliseconds).max().unwrap();
    println!(
        "{channels} channels: {} whole files in {late} ms",
        stored.len()
    );
    stored.len()
}

async fn stampedes(channels: usize) {
    let (server, client) = start_on_tmpfs("size=32m", "48MiB");
    for _ in 0..times(2) {
        let stored = stampede(&server, &client, channels).await;
        // On a busy machine, one or two uploads too many may be refused now and then.
        assert!((6..=8).contains(&stored), "{stored}");
        // The ledger is as before: one after the other, those that fit are admitted.
        let mut all = stored;
        loop {
            let file = client.file(&format!("more {all}"), LARGE);
            if client.put(&file).await.code != "OK" {
                break;
            }
            all += 1;
        }
        assert_eq!(all, 8);
        server.until_nothing_is_left_behind().await;
        assert_eq!(server.names().len(), 8);
        delete(&client, server.names()).await;
    }
    is_empty(&server, &client, 48 * MIB).await;
}

/// Nothing is stored, and nothing reserved: if the disk is as large as the quota, an upload that needs both to the
/// last byte is admitted.
async fn is_empty(server: &Server, client: &Client, quota: u64) {
    assert_eq!(server.names(), [""; 0]);
    let size = format!("remount,size={quota}");
    let remount = ["-o", &size].map(Path::new);
    run("mount", remount.into_iter().chain([server.dir.path()]));
    let expecting = async |bytes: u64| {
        let words = format!("put-small --hint {bytes}");
        client.one(&words, [client.zeros("all", 0)]).await
    };
    // The disk is asked first. Until the server has read its new size, the quota refuses.
    let started = Instant::now();
    while expecting(quota + 1).await.reason() != "DISK_FULL" {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(expecting(quota).await.answered(), ("OK", 0, ""));
    // The framing is smaller than the rest.
    let content = quota - 64 * KIB;
    let stored = client.put(&client.zeros("all", content)).await;
    assert_eq!(stored.stored, Some(content), "{stored:?}");
    assert_eq!(server.names(), ["all"]);
    delete(client, ["all"]).await;
    assert_eq!(server.names(), [""; 0]);
}

async fn delete<A: AsRef<OsStr>>(client: &Client, names: impl IntoIterator<Item = A>) {
    for said in client.all("delete", names).await {
        assert_eq!(said.code, "OK", "{said:?}");
    }
}

#[test]
#[ignore = "needs grpcio, mounts filesystems: run by `make test`"]
fn a_stampede_over_one_channel() {
    with_own_mounts(|| in_runtime(stampedes(1)));
}

#[test]
#[ignore = "needs grpcio, mounts filesystems: run by `make test`"]
fn a_stampede_over_sixteen_channels() {
    with_own_mounts(|| in_runtime(stampedes(16)));
}

/// Two hundred streams, each cancelled at a random point by RST_STREAM.
struct GivenUp {
    disk: u64,
    quota: u64,
    /// The size of the file of which each stream uploads a part.
    size: u64,
    /// Whether each stream ends at its point, so that it is processed while it is cancelled.
    ends: bool,
    /// Whether it is cancelled by a deadline, which the server knows, instead of a cancellation.
    by_deadline: bool,
}

/// All eight concurrent streams fit, including their grants beyond what they have sent.
const ROOMY: GivenUp = GivenUp {
    disk: 32 * MIB,
    quota: 32 * MIB,
    size: MIB,
    ends: false,
    by_deadline: false,
};

impl GivenUp {
    const COUNT: usize = 200;

    /// Returns how many were cancelled, refused, and stored.
    async fn run(&self) -> (usize, usize, usize) {
        let size = format!("size={}", self.disk);
        let (server, client) = start_on_tmpfs(&size, &self.quota.to_string());
        let file = client.file("a", self.size);
        let mut words = format!("cancel --count {} --at-once 8", Self::COUNT);
        words += if self.ends { " --ends" } else { "" };
        words += if self.by_deadline {
            " --by-deadline"
        } else {
            ""
        };
        let all = client.all(&words, [file]).await;
        assert_eq!(all.len(), Self::COUNT);
        let (mut given_up, mut refused, mut stored) = (0, 0, 0);
        for said in &all {
            match &*said.code {
                "CANCELLED" => given_up += 1,
                // Unless the server noticed first, and has cancelled it.
                "DEADLINE_EXCEEDED" if self.by_deadline => given_up += 1,
                "OK" if self.ends => stored += 1,
                _ => {
                    assert_eq!(said.number, 8, "{said:?}");
                    let reasons = ["DISK_FULL", "QUOTA_EXCEEDED"];
                    assert!(reasons.contains(&said.reason()), "{said:?}");
                    refused += 1;
                }
            }
        }
        println!("{given_up} given up, {refused} refused, {stored} stored");
        // The server may still be about to start with the last ones.
        tokio::time::sleep(Duration::from_millis(250)).await;
        server.until_nothing_is_left_behind().await;
        if self.ends {
            self.delete_those_that_are_whole(&server, &client, &all)
                .await;
        }
        is_empty(&server, &client, self.quota).await;
        (given_up, refused, stored)
    }

    /// Acknowledged files exist. Cancelled ones may exist too, but only complete, and are then charged.
    async fn delete_those_that_are_whole(&self, server: &Server, client: &Client, all: &[Said]) {
        let content = content("a", self.size);
        let mut names = Vec::new();
        let mut charged = 0;
        for said in all {
            let Ok(stored) = fs::read(server.dir.path().join(&said.name)) else {
                assert_ne!(said.code, "OK", "{said:?}");
                continue;
            };
            // It is passed on in chunks, and counted when it is sent.
            let whole = said.until.unwrap() as usize;
            assert!(stored == content[..whole], "{said:?}");
            charged += whole as u64;
            names.push(&*said.name);
        }
        println!("{} files, {charged} bytes", names.len());
        assert_eq!(server.names(), names);
        Uploads::new(server).until_used(self.quota, charged).await;
        delete(client, names).await;
    }
}

#[test]
#[ignore = "needs grpcio, mounts filesystems: run by `make test`"]
fn cancelled_with_room() {
    with_own_mounts(|| {
        in_runtime(async {
            assert_eq!(ROOMY.run().await, (GivenUp::COUNT, 0, 0));
        });
    });
}

/// Some of them queue for the room of the others.
#[test]
#[ignore = "needs grpcio, mounts filesystems: run by `make test`"]
fn cancelled_with_little_room() {
    with_own_mounts(|| {
        in_runtime(async {
            let streams = GivenUp {
                disk: 2 * MIB,
                quota: 2 * MIB,
                ..ROOMY
            };
            let (given_up, _, _) = streams.run().await;
            assert!(given_up >= GivenUp::COUNT / 2);
        });
    });
}

/// Just before the end, or just after.
#[test]
#[ignore = "needs grpcio, mounts filesystems: run by `make test`"]
fn cancelled_while_they_are_carried_out() {
    with_own_mounts(|| {
        in_runtime(async {
            let streams = GivenUp {
                // More than the quota, by what it takes for files to lie in whole pages.
                disk: 64 * MIB,
                size: 128 * KIB,
                ends: true,
                ..ROOMY
            };
            let (given_up, refused, stored) = streams.run().await;
            assert!(given_up > 0 && refused == 0 && stored > 0);
        });
    });
}

#[test]
#[ignore = "needs grpcio, mounts filesystems: run by `make test`"]
fn given_up_at_their_deadlines() {
    with_own_mounts(|| {
        in_runtime(async {
            let streams = GivenUp {
                by_deadline: true,
                ..ROOMY
            };
            assert_eq!(streams.run().await, (GivenUp::COUNT, 0, 0));
        });
    });
}
