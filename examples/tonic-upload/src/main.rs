//! A gRPC upload server that never admits more than it can store.
//!
//! ```sh
//! cargo run --release -p tonic-upload
//! ```
//!
//! `examples/tonic-upload/proto/upload.proto` defines its interface. `--help` lists the flags and the routes.

use std::{error::Error, pin::Pin, process::ExitCode, time::Duration};

use example_support::{
    flags::Program,
    log::LogFailures,
    run::{run, until_stopped},
    store::{Folder, Name, NotAFile, Store, Upload},
};
use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use tokio::net::TcpListener;
use tokio_util::io::ReaderStream;
use tonic::{
    Request, Response, Status, Streaming,
    server::NamedService,
    service::{InterceptorLayer, LayerExt},
    transport::{Server, server::TcpIncoming},
};
use tonic_health::server::health_reporter;
use tower::ServiceBuilder;
use tower_storage_guard::{
    Amount, BoxError, Reservation, StorageGuardLayer,
    tonic::{health, reservation, status},
};

use self::proto::{
    DeleteReply, GetReply, GetRequest, PutReply, PutRequest, PutSmallRequest,
    put_request::Part,
    uploads_server::{Uploads, UploadsServer},
};

/// Checked in, so that this builds without a protobuf compiler.
#[allow(unreachable_pub)]
mod proto {
    include!("../proto/upload.v1.rs");
}

/// The largest message: a chunk, or a small file with its name. tonic buffers it completely.
const MESSAGE: usize = 4 << 20;
/// The size of the chunks in which a file is sent.
const CHUNK: usize = 64 << 10;

const PROGRAM: Program = Program {
    name: env!("CARGO_BIN_NAME"),
    listen: "127.0.0.1:50051",
    routes: "  \
  upload.v1.Uploads/Put          stores a file in pieces: its name, then its content
  upload.v1.Uploads/PutSmall     stores a file in one message
  upload.v1.Uploads/Get          reads a file
  upload.v1.Uploads/Delete       removes a file
  grpc.health.v1.Health/Check    whether uploads are accepted, of the service upload.v1.Uploads
  grpc.health.v1.Health/Watch    the same, and each change of it",
};

#[tokio::main]
async fn main() -> ExitCode {
    run(PROGRAM, serve).await
}

async fn serve(listener: TcpListener, store: Store) -> Result<(), BoxError> {
    let guard = StorageGuardLayer::new(store.volume.clone())
        .quota(store.quota.source.clone())
        .scope_by(Folder::scopes_of)
        // Each call is a POST, so the guarded ones are named. The others read, or make room.
        .calls(["upload.v1.Uploads/Put", "upload.v1.Uploads/PutSmall"])?;
    // Load balancers may ask without a token whether uploads are accepted.
    let (reporter, health_service) = health_reporter();
    let name = UploadsServer::<Service>::NAME;
    tokio::spawn(health::report(reporter, name, store.volume.clone()));
    let uploads = ServiceBuilder::new()
        .layer(LogFailures::with_error(|extensions| {
            extensions.get::<Status>()?.source()
        }))
        // Outside of the guard: unauthenticated clients learn nothing about storage, and cannot reserve any.
        .layer(InterceptorLayer::new(move |request| {
            identify(&store, request)
        }))
        .layer(guard)
        .named_layer(UploadsServer::new(Service).max_decoding_message_size(MESSAGE));
    let router = Server::builder()
        // A client that disappears without closing its connection would keep its reservation.
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(health_service)
        .add_service(uploads);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    until_stopped(|stop| router.serve_with_incoming_shutdown(incoming, stop)).await
}

/// Puts the folder that the request is about into its extensions.
fn identify(store: &Store, mut request: Request<()>) -> Result<Request<()>, Status> {
    let authorization = request.metadata().get("authorization");
    let authorization = authorization.and_then(|value| value.to_str().ok());
    let Some(folder) = store.folder(authorization).cloned() else {
        return Err(Status::unauthenticated("who are you?"));
    };
    request.extensions_mut().insert(folder);
    Ok(request)
}

struct Service;

#[tonic::async_trait]
impl Uploads for Service {
    /// A file in pieces: its name, then its content.
    async fn put(
        &self,
        request: Request<Streaming<PutRequest>>,
    ) -> Result<Response<PutReply>, Status> {
        let (folder, reservation) = (folder(&request)?, reservation(&request)?);
        let mut parts = request.into_inner();
        let first = parts.message().await?;
        let Some(Part::Name(name)) = first.and_then(|message| message.part) else {
            return Err(Status::invalid_argument("the name comes first"));
        };
        let name = valid(&name)?;
        // An overwrite only costs the difference. The guard could not know that at admission, because the name is in
        // the stream. So if a quota is full to the last byte, nothing can be written: there must be room for the
        // first frame, usually 16 KiB, and for the framing of each message.
        if let Some(old) = folder.size(&name).await.map_err(status)? {
            reservation.replaces(Amount::new(old, 1)).await?;
        }
        let chunks = parts.and_then(|message| {
            future::ready(match message.part {
                Some(Part::Chunk(chunk)) => Ok(chunk),
                Some(Part::Name(_)) => Err(Status::invalid_argument("there is one name")),
                None => Err(Status::invalid_argument("there is nothing in a message")),
            })
        });
        let upload = folder.receive(name, &reservation, chunks, status).await?;
        publish(&folder, upload, &reservation).await
    }

    /// A file in one message.
    async fn put_small(
        &self,
        request: Request<PutSmallRequest>,
    ) -> Result<Response<PutReply>, Status> {
        let (folder, reservation) = (folder(&request)?, reservation(&request)?);
        // The whole message has been received. So an overwrite needs room in addition to what it replaces.
        let PutSmallRequest { name, data } = request.into_inner();
        let content = stream::iter([Ok(data)]);
        let upload = folder.receive(valid(&name)?, &reservation, content, status);
        publish(&folder, upload.await?, &reservation).await
    }

    type GetStream = Pin<Box<dyn Stream<Item = Result<GetReply, Status>> + Send>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let folder = folder(&request)?;
        let name = valid(&request.into_inner().name)?;
        let (file, _) = folder
            .read(&name)
            .await
            .map_err(status)?
            .ok_or_else(not_found)?;
        let chunks = ReaderStream::with_capacity(file, CHUNK)
            .map_ok(|chunk| GetReply { chunk })
            .map_err(status);
        Ok(Response::new(chunks.boxed()))
    }

    async fn delete(&self, request: Request<GetRequest>) -> Result<Response<DeleteReply>, Status> {
        let folder = folder(&request)?;
        let name = valid(&request.into_inner().name)?;
        if folder.delete(&name).await.map_err(status)? {
            Ok(Response::new(DeleteReply {}))
        } else {
            Err(not_found())
        }
    }
}

async fn publish(
    folder: &Folder,
    upload: Upload,
    reservation: &Reservation,
) -> Result<Response<PutReply>, Status> {
    let stored = folder.publish(vec![upload], reservation).await;
    let stored = stored
        .map_err(fail)?
        .files
        .iter()
        .map(|file| file.size)
        .sum();
    Ok(Response::new(PutReply { stored }))
}

fn folder<T>(request: &Request<T>) -> Result<Folder, Status> {
    let folder = request.extensions().get().cloned();
    folder.ok_or_else(|| Status::internal("the caller has not been identified"))
}

fn valid(name: &str) -> Result<Name, Status> {
    name.parse()
        .map_err(|error| Status::invalid_argument(format!("{error}")))
}

fn not_found() -> Status {
    Status::not_found("there is no file of this name")
}

/// An existing name is a client error: it has to be deleted by other means, so the code is not ALREADY_EXISTS. The
/// guard finds the storage faults in all other errors.
fn fail(error: BoxError) -> Status {
    match error.downcast::<NotAFile>() {
        Ok(error) => Status::failed_precondition(error.to_string()),
        Err(error) => status(error),
    }
}
