//! MongoDB's answers, by a responder that speaks its protocol: the driver itself creates its errors from them.

use std::{io, net::SocketAddr};

use super::{
    BULK_WRITE, insert_many, insert_one,
    mongodb::{
        Client, Collection,
        bson::{Document, doc, oid::ObjectId},
        error::Result,
        options::{ClientOptions, ServerAddress},
    },
    update,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower_storage_guard::fault::Cause;

use crate::support::{assert_becomes, assert_not_refused};

/// The number of `OP_MSG` in the head of a message.
const MSG: i32 = 2013;

/// Answers the handshake like a server of version 8 behind a load balancer, and everything else with the same answer.
struct Responder {
    client: Client,
    task: JoinHandle<()>,
}

impl Responder {
    async fn start(answer: Document) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, answer.clone()));
            }
        });
        Self {
            client: client(addr),
            task,
        }
    }

    /// A handler's work with a collection of this server.
    fn work<T: 'static, Fut: Future<Output = Result<T>> + Send + 'static>(
        &self,
        work: fn(Collection<Document>) -> Fut,
    ) -> impl Fn() -> Fut + Clone + Send + Sync + 'static {
        let collection = self.client.database("store").collection("documents");
        move || work(collection.clone())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Behind a load balancer, a driver does not monitor its servers, so only the test's requests are sent.
fn client(addr: SocketAddr) -> Client {
    let host = ServerAddress::Tcp {
        host: addr.ip().to_string(),
        port: Some(addr.port()),
    };
    let mut options = ClientOptions::builder().hosts(vec![host]).build();
    options.load_balanced = Some(true);
    // Retrying a write needs sessions and adds nothing to the test.
    options.retry_writes = Some(false);
    Client::with_options(options).unwrap()
}

async fn converse(mut stream: TcpStream, answer: Document) -> io::Result<()> {
    let service = ObjectId::new();
    loop {
        // Length, request, response to, operation, then the flags of the message and the kind of its first section.
        let mut head = [0; 21];
        stream.read_exact(&mut head).await?;
        let number = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let (length, request) = (number(0), number(4));
        assert_eq!((number(12), head[20]), (MSG, 0));
        let mut rest = vec![0; usize::try_from(length).unwrap() - head.len()];
        stream.read_exact(&mut rest).await?;
        let asked = Document::from_reader(&mut rest.as_slice()).unwrap();
        let said = match asked.keys().next().unwrap().as_str() {
            "hello" => doc! {
                "ok": 1, "isWritablePrimary": true, "msg": "isdbgrid", "serviceId": service,
                "minWireVersion": 0, "maxWireVersion": 25, "maxBsonObjectSize": 16 << 20,
                "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
            },
            _ => answer.clone(),
        };
        let mut section = Vec::new();
        said.to_writer(&mut section).unwrap();
        let length = i32::try_from(head.len() + section.len()).unwrap();
        let mut message = Vec::new();
        for number in [length, 1, request, MSG, 0] {
            message.extend(number.to_le_bytes());
        }
        message.push(0);
        message.extend(section);
        stream.write_all(&message).await?;
    }
}

/// An error of the server, as each command reports it.
#[derive(Clone, Copy)]
struct Error {
    code: i32,
    name: &'static str,
    message: &'static str,
}

impl Error {
    /// The whole command failed.
    fn of_command(self) -> Document {
        let Self {
            code,
            name,
            message,
        } = self;
        doc! { "ok": 0, "code": code, "codeName": name, "errmsg": message }
    }

    /// The second of two writes failed.
    fn of_write(self) -> Document {
        let error = doc! { "index": 1, "code": self.code, "errmsg": self.message };
        doc! { "ok": 1, "n": 1, "nModified": 0, "writeErrors": [error] }
    }

    /// The write is carried out, but not as far as the write concern requires.
    fn of_concern(self) -> Document {
        let error = doc! { "code": self.code, "codeName": self.name, "errmsg": self.message };
        doc! { "ok": 1, "n": 1, "nModified": 0, "writeConcernError": error }
    }

    /// One of the writes of a `bulkWrite` failed: they come as a cursor.
    fn in_bulk(self) -> Document {
        let error = doc! { "ok": 0, "idx": 0, "code": self.code, "errmsg": self.message, "n": 0 };
        let cursor = doc! { "id": 0_i64, "ns": "admin.$cmd.bulkWrite", "firstBatch": [error] };
        doc! {
            "ok": 1, "cursor": cursor, "nErrors": 1, "nInserted": 0, "nMatched": 0, "nModified": 0,
            "nUpserted": 0, "nDeleted": 0,
        }
    }
}

/// Asserts the classification of an error wherever it is reported. Without a cause, that it is not a refusal.
async fn becomes(error: Error, cause: Option<Cause>) {
    for answer in [error.of_command(), error.of_write(), error.of_concern()] {
        let server = Responder::start(answer).await;
        assert_becomes(cause, server.work(insert_one)).await;
        assert_becomes(cause, server.work(insert_many)).await;
        assert_becomes(cause, server.work(update)).await;
    }
    for answer in [error.of_command(), error.in_bulk()] {
        let Some(bulk_write) = BULK_WRITE else { break };
        let server = Responder::start(answer).await;
        assert_becomes(cause, server.work(bulk_write)).await;
    }
}

#[tokio::test]
async fn a_full_disk() {
    let error = Error {
        code: 14031,
        name: "OutOfDiskSpace",
        message: "available disk space of 1 bytes is less than required minimum of 2",
    };
    becomes(error, Some(Cause::DiskFull)).await;
}

#[tokio::test]
async fn a_quota_of_atlas() {
    let error = Error {
        code: 8000,
        name: "AtlasError",
        message: "you are over your space quota, using 513 MB of 512 MB",
    };
    becomes(error, Some(Cause::QuotaExceeded)).await;
}

#[tokio::test]
async fn other_refusals_of_atlas_are_no_fault() {
    let error = Error {
        code: 8000,
        name: "AtlasError",
        message: "user is not allowed to do action [insert] on [store.documents]",
    };
    becomes(error, None).await;
}

#[tokio::test]
async fn a_duplicate_key_is_no_fault() {
    let error = Error {
        code: 11000,
        name: "DuplicateKey",
        message: "E11000 duplicate key error: { a: \"OutOfDiskSpace\" }",
    };
    becomes(error, None).await;
}

#[tokio::test]
async fn memory_and_time_are_no_faults() {
    let message = "the operation exceeded its limit";
    for (code, name) in [(146, "ExceededMemoryLimit"), (50, "MaxTimeMSExpired")] {
        becomes(
            Error {
                code,
                name,
                message,
            },
            None,
        )
        .await;
    }
}

/// What a client sees if a server finds its disk full in the middle of a write, and terminates.
#[tokio::test]
async fn a_connection_that_broke_is_no_fault() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(listener.local_addr().unwrap());
    let task = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let server = Responder { client, task };
    assert_not_refused(server.work(insert_one)).await;
}
