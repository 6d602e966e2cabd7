//! Servers that are killed in the middle of requests: what is charged is what is on the disk, and what was answered is
//! there.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::Method;
use reqwest::Client;
use tempfile::TempDir;
use test_support::{Dice, example::Server, redis, times, tus};
use tokio::time::{sleep, timeout};
use tower_storage_guard::{
    Amount,
    quota::Limits,
    store::{RedisStore, SqliteStore, Store},
};

/// How many times each kind of server is killed: 250 times in `make soak`.
const KILLS: u32 = 10;
const CLIENTS: u64 = 6;
/// How soon a server answers, and has charged what it finds.
const SOON: Duration = Duration::from_secs(5);

/// What a client knows of its files: the sizes that each may have. None is no file.
type Known = BTreeMap<String, Vec<Option<usize>>>;

/// The content of a file of this size: a part of it, or of two files, is noticed.
fn content(size: usize) -> Vec<u8> {
    vec![(size % 251) as u8; size]
}

/// Stores, replaces and removes files of its own until the server is gone.
async fn work(addr: String, number: u64, seed: u64, known: Arc<Mutex<Known>>) {
    let (client, mut dice) = (Client::new(), Dice::new(seed));
    let name = |dice: &mut Dice| format!("{number}-{}", dice.roll(3));
    loop {
        let (name, other) = (name(&mut dice), name(&mut dice));
        let size = |dice: &mut Dice| dice.roll(20_000) as usize;
        let url = format!("http://{addr}/files/{name}");
        let (request, outcome) = match dice.roll(10) {
            0..=5 => {
                let size = size(&mut dice);
                (
                    client.put(url).body(content(size)),
                    vec![(name, Some(size))],
                )
            }
            6..=7 => (client.request(Method::DELETE, url), vec![(name, None)]),
            _ => {
                // Both may have one name. The last one stays then.
                let sizes = [size(&mut dice), size(&mut dice)];
                let mut body = Vec::new();
                for (name, size) in [&name, &other].into_iter().zip(sizes) {
                    let part = "--edge\r\ncontent-disposition: form-data; name=\"file\"; filename=";
                    body.extend(format!("{part}\"{name}\"\r\n\r\n").as_bytes());
                    body.extend(content(size));
                    body.extend(b"\r\n");
                }
                body.extend(b"--edge--\r\n");
                let form = client.post(format!("http://{addr}/files"));
                let form = form.header("content-type", "multipart/form-data; boundary=edge");
                let outcome = [(name, Some(sizes[0])), (other, Some(sizes[1]))];
                (form.body(body), outcome.into())
            }
        };
        for (name, size) in &outcome {
            known
                .lock()
                .unwrap()
                .entry(name.clone())
                .or_insert(vec![None])
                .push(*size);
        }
        let Ok(answer) = request.send().await else {
            return;
        };
        let status = answer.status();
        assert!(status.is_success() || status == 404, "{status}");
        for (name, size) in outcome {
            known.lock().unwrap().insert(name, vec![size]);
        }
    }
}

/// Uploads files in two parts by tus, and removes some, until the server is gone.
async fn work_by_tus(addr: String, seed: u64) {
    let (client, mut dice) = (Client::new(), Dice::new(seed));
    let request = |method: &str, path: &str| {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = client.request(method, format!("http://{addr}{path}"));
        request.header("tus-resumable", "1.0.0")
    };
    loop {
        let size = 2 + dice.roll(20_000) as usize;
        let creation = request("POST", "/files").header("upload-length", size);
        let Ok(created) = creation.send().await else {
            return;
        };
        let path = created.headers()["location"].to_str().unwrap().to_owned();
        let half = dice.roll(size as u64 - 1) as usize;
        for (offset, size) in [(0, half), (half, size - half)] {
            let part = request("PATCH", &path).header("content-type", tus::PART);
            let part = part.header("upload-offset", offset).body(content(size));
            let Ok(answer) = part.send().await else {
                return;
            };
            assert_eq!(answer.status(), 204);
        }
        if dice.roll(3) == 0 && request("DELETE", &path).send().await.is_err() {
            return;
        }
    }
}

/// The files in a folder, with their sizes. Each is whole.
fn files(dir: &Path) -> BTreeMap<String, usize> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let files = files.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let files = files.filter(|(name, _)| !name.starts_with('.'));
    files
        .map(|(name, path)| (name, fs::read(path).unwrap().len()))
        .collect()
}

/// Waits until what is charged is what is on the disk.
async fn is_exact(store: &dyn Store, dirs: &[&Path], round: u32) {
    let sizes = dirs.iter().flat_map(|dir| files(dir).into_values());
    let stored = sizes.fold(Amount::ZERO, |sum, size| sum + Amount::new(size as u64, 1));
    let everyone = "everyone".into();
    let (mut used, began) = (Amount::ZERO, Instant::now());
    while began.elapsed() < SOON {
        let account = store.account(&everyone).await.unwrap();
        used = account.usage(Limits::UNLIMITED).used;
        if used == stored {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!(
        "{used:?} charged and {stored:?} on the disk after {} kills",
        round + 1
    );
}

fn start(example: &str, dir: TempDir, flags: &[&str]) -> Server {
    let began = Instant::now();
    let server = Server::start_in(dir, example, flags);
    assert!(
        began.elapsed() < SOON,
        "it took {:?} to start",
        began.elapsed()
    );
    server
}

/// Kills servers that share a store, one after the other and both at once, while clients are at work.
async fn are_killed(kinds: &[Vec<&str>], open: impl AsyncFn(&Path) -> Arc<dyn Store>) {
    let mut dice = Dice::new(kinds.len() as u64);
    let mut servers: Vec<_> = kinds
        .iter()
        .map(|flags| start("axum-upload", tempfile::tempdir().unwrap(), flags))
        .collect();
    let store = open(servers[0].dir.path()).await;
    for round in 0..times(KILLS) {
        let known: Vec<Arc<Mutex<Known>>> = servers
            .iter()
            .map(|server| {
                let files = files(server.dir.path()).into_iter();
                let known = files.map(|(name, size)| (name, vec![Some(size)]));
                Arc::new(Mutex::new(known.collect()))
            })
            .collect();
        let clients: Vec<_> = servers
            .iter()
            .zip(&known)
            .flat_map(|(server, known)| {
                let dice = &mut dice;
                let clients = (0..CLIENTS).map(|number| {
                    let seed = dice.roll(u64::MAX);
                    tokio::spawn(work(server.addr.clone(), number, seed, Arc::clone(known)))
                });
                clients.collect::<Vec<_>>()
            })
            .collect();
        sleep(Duration::from_millis(10 + dice.roll(100))).await;
        let killed: Vec<_> = servers.into_iter().map(Server::killed).collect();
        for client in timeout(SOON, join_all(clients)).await.unwrap() {
            client.unwrap();
        }
        for (dir, known) in killed.iter().zip(known) {
            let found = files(dir.path());
            for (name, sizes) in &*known.lock().unwrap() {
                let size = found.get(name).copied();
                assert!(
                    sizes.contains(&size),
                    "{name} has {size:?} and not {sizes:?}"
                );
                if let Some(size) = size {
                    assert!(
                        fs::read(dir.path().join(name)).unwrap() == content(size),
                        "{name} is torn"
                    );
                }
            }
        }
        servers = killed
            .into_iter()
            .zip(kinds)
            .map(|(dir, flags)| start("axum-upload", dir, flags))
            .collect();
        let dirs: Vec<_> = servers.iter().map(|server| server.dir.path()).collect();
        is_exact(&*store, &dirs, round).await;
    }
}

async fn beside(dir: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open_existing(dir.join(".quotas.db")).unwrap())
}

const SQLITE: [&str; 2] = ["--quota-store", "sqlite:"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_and_its_charge_stay_together() {
    are_killed(&[SQLITE.into()], beside).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_and_its_charge_stay_together_with_leases() {
    let flags = [&SQLITE[..], &["--quota-leases"]].concat();
    are_killed(&[flags], beside).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn files_of_two_servers_and_their_charges_stay_together() {
    let database = redis::Server::start();
    let url = database.url();
    let flags = vec!["--quota-store", &*url];
    let with_leases = [&flags[..], &["--quota-leases"]].concat();
    are_killed(&[flags, with_leases], async |_| {
        Arc::new(RedisStore::connect(&url).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_several_requests_and_its_charge_stay_together() {
    let mut server = start("tus-upload", tempfile::tempdir().unwrap(), &SQLITE);
    let store = beside(server.dir.path()).await;
    let mut dice = Dice::new(7);
    for round in 0..times(KILLS) {
        let clients = (0..CLIENTS).map(|_| {
            let seed = dice.roll(u64::MAX);
            tokio::spawn(work_by_tus(server.addr.clone(), seed))
        });
        let clients: Vec<_> = clients.collect();
        sleep(Duration::from_millis(10 + dice.roll(100))).await;
        let dir = server.killed();
        for client in timeout(SOON, join_all(clients)).await.unwrap() {
            client.unwrap();
        }
        server = start("tus-upload", dir, &SQLITE);
        is_exact(&*store, &[server.dir.path()], round).await;
    }
}

/// A start looks at what was intended, and not at all files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_many_files_is_there_soon() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..100_000 {
        fs::write(dir.path().join(format!("file-{number}")), "x").unwrap();
    }
    // It counts them, which takes as long as the disk and the machine are busy.
    let began = Instant::now();
    let server = Server::start_in(dir, "axum-upload", &SQLITE);
    println!("the first start took {:?}", began.elapsed());
    let store = beside(server.dir.path()).await;
    is_exact(&*store, &[server.dir.path()], 0).await;
    let known = Arc::default();
    let client = tokio::spawn(work(server.addr.clone(), 0, 1, known));
    sleep(Duration::from_millis(50)).await;
    let dir = server.killed();
    client.await.unwrap();
    let began = Instant::now();
    let server = start("axum-upload", dir, &SQLITE);
    let answer = server.put("/files/another", "content").await;
    assert_eq!(answer.status(), 201);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    println!("the first answer came after {:?}", began.elapsed());
    is_exact(&*store, &[server.dir.path()], 1).await;
}
