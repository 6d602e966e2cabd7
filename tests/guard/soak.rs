//! Honest clients beside hostile ones: whether they are served, and how late.
//!
//! Each hostile client has a user of its own, as it would behind authentication, and may have so much open at once. Without
//! such a limit, heads that come faster than the grace can hold all the room, each for a moment.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use test_support::{
    server::{Server, routes, serve, volume},
    times,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_storage_guard::{
    Scope, StorageGuardLayer,
    quota::{Limits, OpenQuota},
};

const MIB: usize = 1 << 20;
/// More than all hostile users together may have open.
const ROOM: usize = 1 << 30;
/// What a user may have open at once.
const EACH: u64 = 64 << 20;
const HONEST: usize = 4;

/// How long each run takes, and in `make soak`.
const RUN: Duration = Duration::from_secs(3);
const SOAK: Duration = Duration::from_secs(600);

async fn guarded() -> Server {
    let layer = StorageGuardLayer::new(volume(ROOM as u64))
        .patience(10 * RUN)
        .quota(OpenQuota::new(Limits::bytes(EACH).objects(100)))
        .scope_by(|head| {
            let user = head
                .headers
                .get("x-user")
                .and_then(|user| user.to_str().ok());
            Scope::from(user.unwrap_or("stranger"))
        });
    serve(routes().layer(layer)).await
}

fn head(user: &str, length: usize) -> Vec<u8> {
    format!("PUT /a HTTP/1.1\r\nhost: a\r\nx-user: {user}\r\ncontent-length: {length}\r\n\r\n")
        .into()
}

/// Uploads again and again on one connection. Returns how long each took.
async fn honest(address: SocketAddr, user: String, is_over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut request = head(&user, MIB);
    request.resize(request.len() + MIB, 7);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut took, mut answer) = (Vec::new(), vec![0; 4096]);
    while !is_over.load(SeqCst) {
        let begun = Instant::now();
        stream.write_all(&request).await.unwrap();
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        took.push(begun.elapsed());
    }
    took
}

/// What a hostile client does over and over.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Sends a head, and nothing more.
    Silence,
    /// A byte now and then.
    Trickle,
    /// More than there is, as fast as it goes.
    Flood,
    /// Leaves in the middle.
    Leave,
}

const ATTACKS: [Attack; 4] = [
    Attack::Silence,
    Attack::Trickle,
    Attack::Flood,
    Attack::Leave,
];
/// Clients of each kind.
const HOSTILE: usize = 8;

async fn attack(attack: Attack, address: SocketAddr, user: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    match attack {
        Attack::Silence => {
            stream.write_all(&head(user, EACH as usize)).await?;
            let _ = timeout(4 * RUN, stream.read(&mut [0; 1])).await;
        }
        Attack::Trickle => {
            stream.write_all(&head(user, EACH as usize)).await?;
            for _ in 0..20 {
                stream.write_all(&[7]).await?;
                sleep(Duration::from_millis(100)).await;
            }
        }
        Attack::Flood => {
            stream.write_all(&head(user, 4 * ROOM)).await?;
            for _ in 0..64 {
                stream.write_all(&[7; 64 << 10]).await?;
            }
        }
        Attack::Leave => {
            stream.write_all(&head(user, MIB)).await?;
            stream.write_all(&[7; 1000]).await?;
        }
    }
    Ok(())
}

/// The times of the honest clients, sorted, and the number of attacks.
async fn run(is_attacked: bool) -> (Vec<Duration>, usize) {
    let server = guarded().await;
    let (is_over, attacks) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients = JoinSet::new();
    for number in 0..HONEST {
        clients.spawn(honest(
            server.address,
            format!("honest {number}"),
            Arc::clone(&is_over),
        ));
    }
    let mut hostile = JoinSet::new();
    for kind in ATTACKS.into_iter().filter(|_| is_attacked) {
        for number in 0..HOSTILE {
            let (address, attacks) = (server.address, Arc::clone(&attacks));
            hostile.spawn(async move {
                loop {
                    // A connection that is closed on it is what it asked for.
                    let _ = attack(kind, address, &format!("{kind:?} {}", number % 2)).await;
                    attacks.fetch_add(1, SeqCst);
                }
            });
        }
    }
    sleep(if times(1) == 1 { RUN } else { SOAK }).await;
    is_over.store(true, SeqCst);
    let mut took: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    took.sort();
    (took, attacks.load(SeqCst))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_clients_are_served_beside_hostile_ones() {
    for is_attacked in [false, true] {
        let (took, attacks) = run(is_attacked).await;
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!(
            "{attacks} attacks: {} uploads of 1 MiB, all stored; median {:?}, p99 {:?}",
            took.len(),
            at(50),
            at(99),
        );
        assert_eq!(attacks > 0, is_attacked);
    }
}
