//! A client of the gRPC example.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{IntoStreamingRequest, Request, Status, transport::Channel};
use tonic_types::StatusExt;

use super::{
    example::Server,
    proto::{
        GetRequest, PutRequest, PutSmallRequest, put_request::Part, uploads_client::UploadsClient,
    },
};

/// The size of the pieces of a file.
const CHUNK: usize = 64 << 10;

/// A client with a connection of its own.
#[derive(Clone)]
pub struct Uploads {
    client: UploadsClient<Channel>,
    authorization: Option<String>,
}

impl Uploads {
    pub fn new(server: &Server) -> Self {
        let channel = Channel::from_shared(format!("http://{}", server.addr));
        Self {
            client: UploadsClient::new(channel.unwrap().connect_lazy()),
            authorization: None,
        }
    }

    /// The same client, with this token.
    pub fn bearing(&self, token: &str) -> Self {
        self.authorized(Some(format!("Bearer {token}")))
    }

    pub fn authorized(&self, authorization: Option<String>) -> Self {
        Self {
            client: self.client.clone(),
            authorization,
        }
    }

    /// Uploads in pieces. Returns the stored size.
    pub async fn put(&self, name: &str, content: impl Into<Bytes>) -> Result<u64, Status> {
        self.put_parts(stream::iter(pieces(name, content.into())))
            .await
    }

    pub async fn put_parts(
        &self,
        parts: impl Stream<Item = PutRequest> + Send + 'static,
    ) -> Result<u64, Status> {
        let request = self.asking(parts.into_streaming_request());
        let answer = self.client.clone().put(request).await?;
        Ok(answer.into_inner().stored)
    }

    /// Uploads in one message. Returns the stored size.
    pub async fn put_small(&self, name: &str, content: impl Into<Bytes>) -> Result<u64, Status> {
        let request = self.asking(Request::new(PutSmallRequest {
            name: name.to_owned(),
            data: content.into(),
        }));
        let answer = self.client.clone().put_small(request).await?;
        Ok(answer.into_inner().stored)
    }

    /// The pieces of a file, as they arrive.
    pub async fn get_pieces(&self, name: &str) -> Result<Vec<Bytes>, Status> {
        let name = name.to_owned();
        let request = self.asking(Request::new(GetRequest { name }));
        let pieces = self.client.clone().get(request).await?.into_inner();
        pieces.map_ok(|piece| piece.chunk).try_collect().await
    }

    pub async fn get(&self, name: &str) -> Result<Vec<u8>, Status> {
        Ok(self.get_pieces(name).await?.concat())
    }

    pub async fn delete(&self, name: &str) -> Result<(), Status> {
        let name = name.to_owned();
        let request = self.asking(Request::new(GetRequest { name }));
        self.client.clone().delete(request).await?;
        Ok(())
    }

    /// Begins an upload, and continues when told.
    pub fn begin(&self) -> Begun {
        let (parts, receiver) = mpsc::channel(1);
        let client = self.clone();
        let answer =
            tokio::spawn(async move { client.put_parts(ReceiverStream::new(receiver)).await });
        Begun { parts, answer }
    }

    /// Waits until this much is charged and held, as the refusal of an upload larger than `limit` reports.
    pub async fn until_used(&self, limit: u64, used: u64) {
        let mut said = None;
        for _ in 0..1000 {
            let mut request = self.asking(Request::new(PutSmallRequest::default()));
            let length = (limit + 1).to_string().parse().unwrap();
            request.metadata_mut().insert("upload-length", length);
            let refused = self.client.clone().put_small(request).await.unwrap_err();
            let info = refused.get_details_error_info();
            let figure = info.and_then(|mut info| info.metadata.remove("used_bytes"));
            if figure == Some(used.to_string()) {
                return;
            }
            said = Some((figure, refused));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not {used}: {said:?}");
    }

    fn asking<T>(&self, mut request: Request<T>) -> Request<T> {
        if let Some(authorization) = &self.authorization {
            let authorization = authorization.parse().unwrap();
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        request
    }
}

/// An upload in pieces, in progress. Aborted on drop.
pub struct Begun {
    parts: mpsc::Sender<PutRequest>,
    answer: JoinHandle<Result<u64, Status>>,
}

impl Begun {
    /// False if the server accepts no more.
    pub async fn send(&self, name: &str, content: impl Into<Bytes>) -> bool {
        self.send_parts(pieces(name, content.into())).await
    }

    pub async fn send_more(&self, content: impl Into<Bytes>) -> bool {
        self.send_parts(chunks(content.into())).await
    }

    async fn send_parts(&self, parts: impl Iterator<Item = PutRequest>) -> bool {
        for part in parts {
            if self.parts.send(part).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends the stream properly.
    pub async fn end(mut self) -> Result<u64, Status> {
        // Drops the sender, which ends the stream: the new one has no receiver.
        self.parts = mpsc::channel(1).0;
        (&mut self.answer).await.unwrap()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

/// A file as a stream: its name, then its content.
fn pieces(name: &str, content: Bytes) -> impl Iterator<Item = PutRequest> + Send + 'static {
    [self::name(name)].into_iter().chain(chunks(content))
}

fn chunks(content: Bytes) -> impl Iterator<Item = PutRequest> + Send + 'static {
    (0..content.len())
        .step_by(CHUNK)
        .map(move |begin| chunk(content.slice(begin..content.len().min(begin + CHUNK))))
}

pub fn name(name: &str) -> PutRequest {
    PutRequest {
        part: Some(Part::Name(name.to_owned())),
    }
}

pub fn chunk(content: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        part: Some(Part::Chunk(content.into())),
    }
}

/// An empty message.
pub fn nothing() -> PutRequest {
    PutRequest { part: None }
}
