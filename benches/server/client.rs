//! A client of HTTP/1.1 that does as little as possible, so that the server is what is measured.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::servers::{COUNTS, REQUESTS, VARIANTS};

/// What is written at a time.
const PIECE: usize = 256 << 10;

#[derive(Clone, Copy)]
pub(crate) struct Upload {
    /// Below [`PIECE`], or a multiple of it.
    pub(crate) length: usize,
    pub(crate) is_chunked: bool,
}

impl fmt::Display for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length {
            length if length >= 1 << 20 => write!(f, "{} MiB", length >> 20)?,
            length => write!(f, "{} KiB", length >> 10)?,
        }
        f.write_str(if self.is_chunked { ", chunked" } else { "" })
    }
}

impl Upload {
    /// The head, what is repeated, and the end. A short request is one piece.
    fn pieces(self) -> [Vec<u8>; 3] {
        let framing = if self.is_chunked {
            "transfer-encoding: chunked".to_owned()
        } else {
            format!("content-length: {}", self.length)
        };
        let head = format!(
            "PUT /files/a.png HTTP/1.1\r\nhost: files.example.org\r\nuser-agent: curl/8.5.0\r\naccept: */*\r\n\
             content-type: image/png\r\n{framing}\r\n\r\n"
        );
        let mut piece = vec![7; self.length.min(PIECE)];
        let mut end = vec![];
        if self.is_chunked {
            let size = format!("{:x}\r\n", piece.len());
            piece = [size.as_bytes(), &piece, b"\r\n"].concat();
            end = b"0\r\n\r\n".to_vec();
        }
        if self.length < PIECE {
            return [[head.into_bytes(), piece, end].concat(), vec![], vec![]];
        }
        [head.into_bytes(), piece, end]
    }

    fn repetitions(self) -> usize {
        self.length / PIECE
    }
}

/// A connection that sends one upload again and again.
pub(crate) struct Connection {
    stream: tokio::net::TcpStream,
    upload: Upload,
    pieces: [Vec<u8>; 3],
    response: Response,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, upload: Upload) -> Self {
        let stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("a server");
        stream.set_nodelay(true).expect("a socket");
        Self {
            stream,
            upload,
            pieces: upload.pieces(),
            response: Response::default(),
        }
    }

    /// Sends the upload, and reads the answer.
    pub(crate) async fn send(&mut self) {
        let [head, piece, end] = &self.pieces;
        self.stream.write_all(head).await.expect("a server");
        for _ in 0..self.upload.repetitions() {
            self.stream.write_all(piece).await.expect("a server");
        }
        self.stream.write_all(end).await.expect("a server");
        while !self.response.is_complete() {
            let read = self.stream.read(self.response.space()).await;
            self.response.add(read.expect("a server"));
        }
        self.response.clear();
    }
}

/// The answer of a server. None of them has a body.
struct Response {
    buffer: [u8; 512],
    length: usize,
}

impl Default for Response {
    fn default() -> Self {
        Self {
            buffer: [0; 512],
            length: 0,
        }
    }
}

impl Response {
    fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.length..]
    }

    fn add(&mut self, read: usize) {
        assert_ne!(read, 0, "the server has closed the connection");
        self.length += read;
    }

    fn is_complete(&self) -> bool {
        self.buffer[..self.length].ends_with(b"\r\n\r\n")
    }

    fn clear(&mut self) {
        assert!(self.buffer.starts_with(b"HTTP/1.1 201 "));
        self.length = 0;
    }
}

/// Sends what is counted below valgrind, one request after the other. The last port is that of the server that ends counts.
pub(crate) fn count(ports: &[u16]) -> io::Result<()> {
    let upload = Upload {
        length: 1 << 10,
        is_chunked: false,
    };
    let [request, ..] = upload.pieces();
    let Some((control, ports)) = ports.split_last() else {
        return Err(io::Error::other("no servers"));
    };
    let mut control = open(*control)?;
    assert_eq!(ports.len(), VARIANTS.len());
    for port in ports {
        let mut server = open(*port)?;
        for _ in 0..=COUNTS {
            for _ in 0..REQUESTS {
                send(&mut server, &request)?;
            }
            send(&mut control, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        }
    }
    Ok(())
}

fn open(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn send(stream: &mut TcpStream, request: &[u8]) -> io::Result<()> {
    stream.write_all(request)?;
    let mut response = Response::default();
    while !response.is_complete() {
        let read = stream.read(response.space())?;
        response.add(read);
    }
    response.clear();
    Ok(())
}
