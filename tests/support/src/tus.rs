//! The tus example, and requests of a client.

use std::{
    fs,
    time::{Duration, Instant},
};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{eventually, example::Server};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const PART: &str = "application/offset+octet-stream";
pub const USERS: [&str; 4] = ["--user", "ann:a:1000", "--user", "bob:b:500"];

pub fn start(flags: &[&str]) -> Server {
    let flags = [&["--keep-free", "0"], flags].concat();
    Server::start("tus-upload", &flags)
}

/// Content that is different at every position, and for every seed.
pub fn content(seed: u64, size: u64) -> Vec<u8> {
    (0..size).map(|i| (i ^ i >> 8 ^ seed) as u8).collect()
}

pub fn request(server: &Server, method: &str, path: &str) -> RequestBuilder {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    server
        .request(method, path)
        .header("tus-resumable", "1.0.0")
}

/// Sends a request, whose answer has to have the tus version.
pub async fn send(request: RequestBuilder) -> Response {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["tus-resumable"], "1.0.0", "{answer:?}");
    answer
}

pub async fn status(request: RequestBuilder) -> u16 {
    send(request).await.status().as_u16()
}

pub fn creation(server: &Server, length: u64) -> RequestBuilder {
    request(server, "POST", "/files").header("upload-length", length)
}

/// The path of a new upload.
pub async fn create(server: &Server, length: u64) -> String {
    created(creation(server, length)).await
}

pub async fn created(request: RequestBuilder) -> String {
    let answer = send(request).await;
    assert_eq!(answer.status(), StatusCode::CREATED, "{answer:?}");
    answer.headers()[LOCATION].to_str().unwrap().to_owned()
}

pub fn part(server: &Server, path: &str, offset: u64, content: &[u8]) -> RequestBuilder {
    request(server, "PATCH", path)
        .header("upload-offset", offset)
        .header(CONTENT_TYPE, PART)
        .body(content.to_vec())
}

/// Sends a part. Returns the offset of the upload after it.
pub async fn append(server: &Server, path: &str, offset: u64, content: &[u8]) -> u64 {
    let answer = send(part(server, path, offset, content)).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{answer:?}");
    number(&answer, "upload-offset")
}

/// The offset of an upload.
pub async fn offset(server: &Server, path: &str) -> u64 {
    let answer = send(request(server, "HEAD", path)).await;
    assert_eq!(answer.status(), StatusCode::OK);
    number(&answer, "upload-offset")
}

pub fn number(answer: &Response, header: &str) -> u64 {
    answer.headers()[header].to_str().unwrap().parse().unwrap()
}

pub async fn delete(server: &Server, path: &str) -> u16 {
    status(request(server, "DELETE", path)).await
}

pub async fn read(server: &Server, path: &str) -> Vec<u8> {
    let answer = server.get(path).await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.bytes().await.unwrap().into()
}

/// The refusal of a creation.
pub async fn refusal(request: RequestBuilder) -> Value {
    let answer = send(request).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert!(!answer.headers().contains_key(LOCATION));
    answer.json().await.unwrap()
}

/// The bytes that are stored and held, as the refusal of an upload reports them if only the disk has room for it.
pub async fn used(server: &Server) -> u64 {
    let refusal = refusal(creation(server, 2 << 30)).await;
    assert_eq!(refusal["reason"], "quota_exceeded", "{refusal}");
    refusal["used"].as_u64().unwrap()
}

/// Waits for that: a client cannot see when the server notices that it has disconnected.
pub async fn until_used(server: &Server, bytes: u64) {
    let start = Instant::now();
    loop {
        let used = used(server).await;
        if used == bytes {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "still {used}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The number of growing files.
pub fn growing(server: &Server) -> usize {
    fs::read_dir(server.dir.path().join(".uploads"))
        .unwrap()
        .count()
}

/// The size of the only growing file.
pub fn grown(server: &Server) -> u64 {
    let mut files = fs::read_dir(server.dir.path().join(".uploads")).unwrap();
    let file = files.next().unwrap().unwrap();
    assert!(files.next().is_none());
    file.metadata().unwrap().len()
}

/// Sends the beginning of a part, and waits until it is stored.
pub async fn begin(
    server: &Server,
    path: &str,
    offset: u64,
    announced: u64,
    sent: &[u8],
) -> TcpStream {
    let framing = format!("content-length: {announced}\r\nexpect: 100-continue");
    let mut stream = begin_framed(server, path, offset, &framing).await;
    // Without content, nothing else tells that it has arrived.
    for line in ["HTTP/1.1 100 Continue", ""] {
        assert_eq!(answered(&mut stream).await, line);
    }
    stream.write_all(sent).await.unwrap();
    let there = offset + sent.len() as u64;
    eventually("that it is stored", || grown(server) == there).await;
    stream
}

pub async fn begin_framed(server: &Server, path: &str, offset: u64, framing: &str) -> TcpStream {
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\ncontent-type: {PART}\r\n\
         upload-offset: {offset}\r\n{framing}\r\n\r\n"
    );
    let mut stream = TcpStream::connect(&server.addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// The next line of the answer.
pub async fn answered(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    while !said.windows(2).any(|end| end == b"\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "no answer");
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap().trim_end().to_owned()
}
