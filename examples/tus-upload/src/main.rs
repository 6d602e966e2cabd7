//! An upload server for tus 1.0: an upload may take several requests, and is admitted for all of them at the first.
//!
//! ```sh
//! cargo run --release -p tus-upload
//! python -c 'from tusclient import client
//! client.TusClient("http://127.0.0.1:1080/files").uploader("video.mp4", chunk_size=1 << 20).upload()'
//! ```
//!
//! That is tuspy; any other client of <https://tus.io> works too. A complete upload can be fetched from its URL.
//! `--help` lists the flags and the routes.

use std::{
    fmt::Display,
    io,
    num::NonZeroU64,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router, ServiceExt,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
        header::{
            AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE,
        },
    },
    middleware::{self, Next},
    response::{ErrorResponse, IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use example_support::{
    created::Created,
    flags::{self, Flags, Program},
    log::LogFailures,
    run::{report, started, until_stopped},
    store::{Folder, Name, Store},
};
use tokio::task::block_in_place;
use tokio_util::io::ReaderStream;
use tower::{Layer, ServiceBuilder, util::MapRequestLayer};
use tower_storage_guard::{BoxError, Reservation, StorageGuardLayer, axum::Failure, upload};

use self::uploads::{Broken, MOST, Turn, Uploads};

mod uploads;

#[derive(Clone, Debug, Parser)]
struct TusFlags {
    #[command(flatten)]
    all: Flags,

    /// How long an upload is kept when nothing more of it comes
    #[arg(long, value_name = "SECONDS", default_value = "3600")]
    expire_after: NonZeroU64,
}

const PROGRAM: Program = Program {
    name: env!("CARGO_BIN_NAME"),
    listen: "127.0.0.1:1080",
    routes: "  \
  OPTIONS /files       the version of tus, and its extensions
  POST    /files       begins an upload, whose URL is in Location
  HEAD    /files/NAME  how much of an upload has been received
  PATCH   /files/NAME  goes on with an upload
  DELETE  /files/NAME  removes an upload
  GET     /files/NAME  reads a complete upload",
};

#[tokio::main]
async fn main() -> ExitCode {
    report(serve(flags::read(PROGRAM)).await)
}

async fn serve(flags: TusFlags) -> Result<(), BoxError> {
    // Before anything is created.
    let listener = flags.all.listen.bind().await?;
    let time_to_live = Duration::from_secs(flags.expire_after.get());
    let mut created = Created::default();
    let store = Store::open(flags.all, &mut created).await?;
    let uploads = block_in_place(|| Uploads::open(&store, time_to_live, &mut created))?;
    // Around the router, because it routes by the method.
    let app = app(store.clone(), uploads, time_to_live);
    let app = MapRequestLayer::new(override_method).layer(app);
    let app = ServiceExt::<Request>::into_make_service(app);
    started(&listener, created)?;
    let serving = axum::serve(listener, app);
    let served = until_stopped(|stop| serving.with_graceful_shutdown(stop).into_future()).await;
    store.close().await.and(served)
}

fn app(store: Store, uploads: Uploads, time_to_live: Duration) -> Router {
    let expiring = (store.clone(), uploads.clone());
    let reservations = upload::Uploads::default()
        .expire_after(time_to_live)
        .max_open(MOST)
        .on_expiry(move |path| {
            let (store, uploads) = expiring.clone();
            remove_expired(store, uploads, path)
        });
    let guard = StorageGuardLayer::new(store.volume.clone())
        .quota(store.quota.source.clone())
        .scope_by(Folder::scopes_of)
        .uploads(&reservations);
    let one = get(content).head(progress).patch(append).delete(terminate);
    Router::new()
        .route("/files", post(create))
        .route("/files/", post(create))
        .route("/files/{name}", one)
        .route_layer(
            ServiceBuilder::new()
                // Outside of the guard: unauthenticated clients learn nothing about storage, and cannot reserve any.
                .layer(middleware::from_fn_with_state(store, identify))
                .layer(guard),
        )
        // The guard knows how much room there is.
        .layer(DefaultBodyLimit::disable())
        // Its refusals need tus headers too.
        .layer(middleware::from_fn(speak_tus))
        .layer(LogFailures::default())
        .with_state(uploads)
}

/// Deletes the partial content of an upload whose reservation expires. What remains is charged.
async fn remove_expired(store: Store, uploads: Uploads, path: String) -> bool {
    let Some(Ok(name)) = path.strip_prefix("/files/").map(str::parse) else {
        return false;
    };
    if let Some(is_removed) = uploads.remove_expired(&name).await {
        return is_removed;
    }
    for folder in store.folders() {
        // It may have been completed.
        if !matches!(folder.size(&name).await, Ok(None)) {
            return false;
        }
    }
    true
}

const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");

/// How long the metadata of an upload may be, in bytes: they are kept in memory.
const MOST_METADATA: usize = 4_096;

const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const EXTENSIONS: &str =
    "creation,creation-with-upload,creation-defer-length,termination,expiration";
/// The content type of a part of an upload.
const PART: &str = "application/offset+octet-stream";

/// Some clients can only send GET and POST, and put the real method into a header.
fn override_method(mut request: Request) -> Request {
    let method = request.headers().get("x-http-method-override");
    if let Some(method) = method.and_then(|method| Method::from_bytes(method.as_bytes()).ok()) {
        *request.method_mut() = method;
    }
    request
}

/// Adds the tus version to answers, and rejects clients of other versions.
async fn speak_tus(request: Request, next: Next) -> Response {
    let version = request.headers().get(TUS_RESUMABLE);
    let mut response = match *request.method() {
        Method::OPTIONS => {
            let abilities = [
                (TUS_VERSION, VERSION),
                (TUS_EXTENSION, HeaderValue::from_static(EXTENSIONS)),
            ];
            (StatusCode::NO_CONTENT, abilities).into_response()
        }
        // GET is not part of tus: browsers send it.
        Method::GET => next.run(request).await,
        _ if version == Some(&VERSION) => next.run(request).await,
        _ => (StatusCode::PRECONDITION_FAILED, [(TUS_VERSION, VERSION)]).into_response(),
    };
    response.headers_mut().insert(TUS_RESUMABLE, VERSION);
    response
}

/// Puts the folder that the request is about into its extensions.
async fn identify(
    State(store): State<Store>,
    mut request: Request,
    next: Next,
) -> Result<Response, Response> {
    let authorization = request.headers().get(AUTHORIZATION);
    let authorization = authorization.and_then(|value| value.to_str().ok());
    let Some(folder) = store.folder(authorization) else {
        let challenge = [(WWW_AUTHENTICATE, "Bearer")];
        return Err((StatusCode::UNAUTHORIZED, challenge, "who are you?").into_response());
    };
    request.extensions_mut().insert(folder.clone());
    Ok(next.run(request).await)
}

async fn create(
    State(uploads): State<Uploads>,
    Extension(folder): Extension<Folder>,
    reservation: Reservation,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ErrorResponse> {
    let length = number(&headers, UPLOAD_LENGTH)?;
    let is_deferred = match headers.get(UPLOAD_DEFER_LENGTH) {
        Some(value) if value == "1" => true,
        Some(_) => return Err(bad_request("Upload-Defer-Length can only be 1").into()),
        None => false,
    };
    if length.is_some() == is_deferred {
        return Err(bad_request("either Upload-Length or Upload-Defer-Length").into());
    }
    let metadata = match headers.get(UPLOAD_METADATA) {
        Some(long) if long.len() > MOST_METADATA => {
            let error = format!("Upload-Metadata is longer than {MOST_METADATA} bytes");
            return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, error).into());
        }
        // A copy: what hyper gives keeps the whole head in memory.
        metadata => metadata.map(|it| HeaderValue::from_bytes(it.as_bytes()).expect("it is one")),
    };
    let mut upload = uploads.create(&folder, length, metadata).map_err(failed)?;
    if is_part(&headers) {
        receive(&mut upload, &reservation, &headers, body).await?;
    }
    upload.finish_if_whole(&reservation).await.map_err(failed)?;
    let location = [(LOCATION, format!("/files/{}", upload.name()))];
    let answer = (StatusCode::CREATED, location, state(&upload)).into_response();
    upload.keep();
    Ok(answer)
}

async fn append(
    State(uploads): State<Uploads>,
    Extension(folder): Extension<Folder>,
    uri: Uri,
    reservation: Reservation,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ErrorResponse> {
    if !is_part(&headers) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, PART).into());
    }
    let offset = number(&headers, UPLOAD_OFFSET)?;
    let offset = offset.ok_or_else(|| bad_request("where does it go on?"))?;
    let length = number(&headers, UPLOAD_LENGTH)?;
    let mut upload = turn(&uploads, &folder, &uri).await?;
    if offset != upload.offset() {
        return Err((StatusCode::CONFLICT, "it does not go on there").into());
    }
    if length.is_some_and(|length| !upload.set_length(length)) {
        return Err(bad_request("the length cannot be that").into());
    }
    receive(&mut upload, &reservation, &headers, body).await?;
    upload.finish_if_whole(&reservation).await.map_err(failed)?;
    Ok((StatusCode::NO_CONTENT, state(&upload)).into_response())
}

async fn progress(
    State(uploads): State<Uploads>,
    Extension(folder): Extension<Folder>,
    uri: Uri,
) -> Result<Response, ErrorResponse> {
    let upload = turn(&uploads, &folder, &uri).await?;
    Ok(([(CACHE_CONTROL, "no-store")], state(&upload)).into_response())
}

async fn terminate(
    State(uploads): State<Uploads>,
    Extension(folder): Extension<Folder>,
    uri: Uri,
) -> Result<StatusCode, ErrorResponse> {
    let upload = turn(&uploads, &folder, &uri).await?;
    upload.delete().await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

/// A complete upload, as a file.
async fn content(Extension(folder): Extension<Folder>, uri: Uri) -> Result<Response, Failure> {
    let file = match name_of(&uri) {
        Some(name) => folder.read(&name).await?,
        None => None,
    };
    let Some((file, size)) = file else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let head = [
        (CONTENT_LENGTH, size.to_string()),
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    let content = Body::from_stream(ReaderStream::with_capacity(file, 64 << 10));
    Ok((head, content).into_response())
}

/// The name exactly as it was sent. Another spelling, with a query or with `%61` for an `a`, is another name, because
/// the guard knows uploads by their `Location`.
fn name_of(uri: &Uri) -> Option<Name> {
    let target = uri.path_and_query()?.as_str();
    target.strip_prefix("/files/")?.parse().ok()
}

async fn turn(uploads: &Uploads, folder: &Folder, uri: &Uri) -> Result<Turn, ErrorResponse> {
    let not_found = || StatusCode::NOT_FOUND;
    let name = name_of(uri).ok_or_else(not_found)?;
    let upload = uploads.turn(folder, &name).await.map_err(failed)?;
    Ok(upload.ok_or_else(not_found)?)
}

async fn receive(
    upload: &mut Turn,
    reservation: &Reservation,
    headers: &HeaderMap,
    body: Body,
) -> Result<(), ErrorResponse> {
    let too_long = || {
        (
            StatusCode::PAYLOAD_TOO_LARGE,
            "there is more of it than it said",
        )
    };
    let announced = number(headers, CONTENT_LENGTH)?;
    if let (Some(announced), Some(left)) = (announced, upload.left())
        && announced > left
    {
        return Err(too_long().into());
    }
    let received = upload.receive(reservation, body.into_data_stream());
    received.await.map_err(|broken| match broken {
        Broken::Content(error) => bad_request(error).into(),
        Broken::Disk(error) => failed(error),
        Broken::TooLong => too_long().into(),
        Broken::Over => (StatusCode::LOCKED, "a later request goes on with it").into(),
    })
}

/// The progress of an upload.
fn state(upload: &Turn) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // For the guard, which sees the answer before `speak_tus` does, and recognises tus by this header.
    headers.insert(TUS_RESUMABLE, VERSION);
    headers.insert(UPLOAD_OFFSET, upload.offset().into());
    match upload.length() {
        Some(length) => headers.insert(UPLOAD_LENGTH, length.into()),
        None => headers.insert(UPLOAD_DEFER_LENGTH, 1.into()),
    };
    if let Some(metadata) = upload.metadata() {
        headers.insert(UPLOAD_METADATA, metadata.clone());
    }
    if let Some(expires) = upload.expires() {
        headers.insert(UPLOAD_EXPIRES, http_date(expires));
    }
    headers
}

fn http_date(time: SystemTime) -> HeaderValue {
    let date = httpdate::fmt_http_date(time);
    date.parse().expect("a date is ASCII")
}

fn is_part(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value == PART)
}

/// A header that is a number, if it is present.
fn number(headers: &HeaderMap, name: HeaderName) -> Result<Option<u64>, NotANumber> {
    let Some(value) = headers.get(&name) else {
        return Ok(None);
    };
    let digits = value.to_str().ok().filter(|text| !text.starts_with('+'));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(NotANumber(name)),
    }
}

struct NotANumber(HeaderName);

impl IntoResponse for NotANumber {
    fn into_response(self) -> Response {
        bad_request(format_args!("{} is not a number", self.0))
    }
}

/// An I/O error, kept for the guard to classify.
fn failed(error: io::Error) -> ErrorResponse {
    Failure::from(error).into()
}

fn bad_request(error: impl Display) -> Response {
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}
