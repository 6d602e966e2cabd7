//! The way from the browser to the server, which counts what is sent, and holds it back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use test_support::example::Server;
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinHandle,
    time::interval,
};

/// A proxy in front of a server. It ends when this is dropped.
pub(crate) struct Wire {
    /// `127.0.0.1:PORT`
    pub(crate) addr: String,
    sent: Arc<AtomicU64>,
    allowed: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Wire {
    pub(crate) async fn to(server: &Server) -> Self {
        let listener = listen();
        let addr = listener.local_addr().unwrap().to_string();
        let sent = Arc::new(AtomicU64::new(0));
        let (allowed, limit) = watch::channel(u64::MAX);
        let (counter, server) = (Arc::clone(&sent), server.addr.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((browser, _)) = listener.accept().await {
                tokio::spawn(carry(
                    browser,
                    server.clone(),
                    Arc::clone(&counter),
                    limit.clone(),
                ));
            }
        });
        Self {
            addr,
            sent,
            allowed,
            accepting,
        }
    }

    /// How many bytes the browser has sent, over all connections.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Lets each connection send this many bytes in all, and no more for now. The browser fills the buffers of the kernel beyond
    /// that.
    pub(crate) fn allow(&self, bytes: u64) {
        self.allowed.send_replace(bytes);
    }

    /// Lets each connection send this many bytes more in each second, until a test allows anything else.
    pub(crate) fn pace(&self, bytes_per_second: u64) {
        let allowed = self.allowed.clone();
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(20));
            let mut last = *allowed.borrow();
            let mut more = |now: &mut u64| {
                let is_ours = *now == last;
                if is_ours {
                    last += bytes_per_second / 50;
                    *now = last;
                }
                is_ours
            };
            while allowed.send_if_modified(&mut more) {
                ticks.tick().await;
            }
        });
    }
}

/// The kernel would buffer up to 32 MiB of what is held back, and the browser takes that for sent.
fn listen() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(256 << 10).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket.listen(64).unwrap()
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(
    browser: TcpStream,
    server: String,
    sent: Arc<AtomicU64>,
    allowed: watch::Receiver<u64>,
) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_browser, mut to_browser) = browser.into_split();
    let (mut from_server, to_server) = server.into_split();
    // Either way may end first, and the connection with it: a browser that cancels closes it.
    tokio::select! {
        _ = carry_up(from_browser, to_server, sent, allowed) => {}
        _ = io::copy(&mut from_server, &mut to_browser) => {}
    }
}

async fn carry_up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    sent: Arc<AtomicU64>,
    mut allowed: watch::Receiver<u64>,
) -> io::Result<()> {
    let (mut buffer, mut total) = (vec![0; 64 << 10], 0);
    loop {
        let size = tokio::select! {
            size = from.read(&mut buffer), if total < *allowed.borrow() => size?,
            _ = allowed.changed() => continue,
        };
        if size == 0 {
            return Ok(());
        }
        total += size as u64;
        sent.fetch_add(size as u64, Ordering::Relaxed);
        to.write_all(&buffer[..size]).await?;
    }
}
