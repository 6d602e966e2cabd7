//! An upload server that never admits more than it can store.
//!
//! ```sh
//! cargo run --release -p axum-upload
//! curl -T photo.jpg http://127.0.0.1:3000/files/photo.jpg
//! ```
//!
//! Or open <http://127.0.0.1:3000> in a browser. `--help` lists the flags and the routes.

mod metrics;
mod page;
mod room;

use std::{fmt::Display, io, process::ExitCode, sync::Arc};

use axum::{
    Extension, Json, RequestExt, Router,
    body::Body,
    extract::{DefaultBodyLimit, Multipart, Path, Request, State},
    http::{
        HeaderMap, Method, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE},
        request::Parts,
    },
    middleware::{self, Next},
    response::{ErrorResponse, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use clap::Parser;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::io::ReaderStream;
use tower_http::csrf::CsrfLayer;
use tower_storage_guard::{
    Amount, BoxError, Demand, Guard, Readiness, Reservation, Scope, StorageGuardLayer,
    axum::Failure, preflight::Preflight,
};

use example_support::{
    flags::{self, Flags, Program},
    log::LogFailures,
    run::{report, start, until_stopped},
    store::{Entry, Folder, Name, NotAFile, Store},
};

use self::metrics::Exporter;

const PROGRAM: Program = Program {
    name: env!("CARGO_BIN_NAME"),
    listen: "127.0.0.1:3000",
    routes: "  \
  GET    /            a page to upload with, which uses /sign-in, /sign-out, /room, /preflight and /delete/NAME
  GET    /files       lists the files
  POST   /files       stores the files of a form: all of them, or none
  GET    /files/NAME  reads a file
  PUT    /files/NAME  stores a file
  DELETE /files/NAME  removes a file
  HEAD   /preflight/NAME  whether the file would be admitted, by the header Upload-Length: 204 or 507
  POST   /preflight   which of several files would be, by JSON: files, a list of objects with name and size
  GET    /status      how full the disk and the quotas are
  GET    /ready       whether uploads are accepted: 200 or 503
  GET    /metrics     for Prometheus, with --metrics",
};

#[derive(Clone, Debug, Parser)]
struct UploadFlags {
    #[command(flatten)]
    all: Flags,

    /// Serves /metrics for Prometheus, to the clients that may see /status: with users, it takes the token of any of them. Build with
    /// `--features metrics`
    #[arg(long)]
    metrics: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    report(run(flags::read(PROGRAM)).await)
}

async fn run(flags: UploadFlags) -> Result<(), BoxError> {
    let exporter = flags.metrics.then(Exporter::start).transpose()?;
    let observer = exporter
        .as_ref()
        .map(|exporter| Arc::new(exporter.observer()) as _);
    start(flags.all, observer, async |listener, store| {
        serve(listener, app(store, exporter)).await
    })
    .await
}

async fn serve(listener: TcpListener, app: Router) -> Result<(), BoxError> {
    let serving = axum::serve(listener, app);
    until_stopped(|stop| serving.with_graceful_shutdown(stop).into_future()).await
}

fn app(store: Store, exporter: Option<Exporter>) -> Router {
    let mut guard =
        Guard::new(store.volume.clone().named("uploads")).quota(store.quota.source.clone());
    if let Some(exporter) = &exporter {
        guard = guard.observer(exporter.observer());
    }
    let preflight = Preflight::new(guard.clone(), Folder::scopes_of).replaced_by(replaced);
    let guard = StorageGuardLayer::new(guard)
        .scope_by(Folder::scopes_of)
        .price_by_async(price)
        .render_with(page::refusal);
    let name = get(read_file).put(put_file).delete(delete_file);
    Router::new()
        .route("/files", get(list_files).post(post_files))
        .route("/files/", name.clone())
        .route("/files/{*name}", name)
        .route("/room", get(room::room))
        .route("/status", get(status))
        .merge(exporter.map(Exporter::route).unwrap_or_default())
        .route_layer(guard)
        // A POST would not pass the guard when the disk is full.
        .route("/delete/{*name}", post(page::delete))
        .route_service("/preflight", preflight.clone())
        .route_service("/preflight/{*name}", preflight)
        // Outside of the guard: unauthenticated clients learn nothing about storage, and cannot reserve any.
        .route_layer(middleware::from_fn_with_state(store.clone(), identify))
        .merge(page::routes())
        // A page of any other site could store files through a browser that has access, or has signed in.
        .layer(CsrfLayer::new())
        // The guard knows how much room there is.
        .layer(DefaultBodyLimit::disable())
        // Load balancers may ask without a token whether uploads are accepted.
        .route("/ready", get(Readiness::new(store.volume.clone())))
        .layer(LogFailures::default())
        .with_state(store)
}

/// Puts the folder that the request is about, and the name of the file if it is about one, into its extensions.
async fn identify(
    State(store): State<Store>,
    mut request: Request,
    next: Next,
) -> Result<Response, Response> {
    let headers = request.headers();
    let Some(folder) = page::folder_of(&store, headers) else {
        return Err(page::stranger(headers));
    };
    request.extensions_mut().insert(folder.clone());
    let path = request.uri().path();
    let named = ["/files/", "/delete/", "/preflight/"];
    if named.iter().any(|of_files| path.starts_with(of_files)) {
        let name: Option<Path<String>> = request.extract_parts().await.ok();
        let name: Name = name
            .map_or_else(String::new, |Path(name)| name)
            .parse()
            .map_err(|error| page::failed(request.headers(), StatusCode::BAD_REQUEST, &error))?;
        request.extensions_mut().insert(name);
    }
    Ok(next.run(request).await)
}

/// An overwrite only costs the difference.
fn price(head: &Parts, demand: Demand) -> impl Future<Output = Demand> + Send + use<> {
    let replaced = (head.method == Method::PUT).then(|| replaced(head, None));
    async move {
        match replaced {
            Some(replaced) => demand.replacing(replaced.await),
            None => demand,
        }
    }
}

/// What an upload replaces: by its name in a list, or by that of the request.
fn replaced(head: &Parts, listed: Option<&str>) -> impl Future<Output = Amount> + Send + use<> {
    let folder = head.extensions.get::<Folder>().cloned();
    let name = match listed {
        Some(name) => name.parse().ok(),
        None => head.extensions.get::<Name>().cloned(),
    };
    async move {
        let (Some(folder), Some(name)) = (folder, name) else {
            return Amount::ZERO;
        };
        match folder.size(&name).await {
            Ok(Some(old)) => Amount::new(old, 1),
            // Any error occurs again when the file is written.
            Ok(None) | Err(_) => Amount::ZERO,
        }
    }
}

async fn put_file(
    Extension(folder): Extension<Folder>,
    Extension(name): Extension<Name>,
    reservation: Reservation,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ErrorResponse> {
    if headers.contains_key(CONTENT_RANGE) {
        // A part would replace the whole (RFC 9110, section 14.5).
        return Err(bad_request("files are written whole").into());
    }
    let content = body.into_data_stream();
    let content = content.map_err(|error| bad_request(error).into());
    let upload = folder.receive(name, &reservation, content, failed).await?;
    let stored = folder
        .publish(vec![upload], &reservation)
        .await
        .map_err(|error| fail(&headers, error))?;
    Ok(if stored.has_replaced {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::CREATED
    })
}

/// A form, with any number of files. All of them are stored, or none.
async fn post_files(
    Extension(folder): Extension<Folder>,
    reservation: Reservation,
    headers: HeaderMap,
    mut form: Multipart,
) -> Result<Response, ErrorResponse> {
    let refuse = |status, error: &dyn Display| page::failed(&headers, status, error);
    let mut uploads = Vec::new();
    while let Some(field) = form.next_field().await? {
        // Form fields that are not files are ignored.
        if let Some(name) = field.file_name() {
            let name: Result<Name, _> = name.parse();
            let name = name.map_err(|error| refuse(StatusCode::BAD_REQUEST, &error))?;
            let content = field.map_err(ErrorResponse::from);
            uploads.push(folder.receive(name, &reservation, content, failed).await?);
        }
    }
    if uploads.is_empty() {
        return Err(refuse(StatusCode::BAD_REQUEST, &"there is no file in the form").into());
    }
    let stored = folder.publish(uploads, &reservation).await;
    let stored = stored.map_err(|error| fail(&headers, error))?;
    Ok(if page::accepts_html(&headers) {
        Redirect::to("/").into_response()
    } else {
        (StatusCode::CREATED, Json(stored.files)).into_response()
    })
}

async fn list_files(Extension(folder): Extension<Folder>) -> Result<Json<Vec<Entry>>, Failure> {
    Ok(Json(folder.list().await?))
}

/// Also serves HEAD: axum then sends only the head.
async fn read_file(
    Extension(folder): Extension<Folder>,
    Extension(name): Extension<Name>,
) -> Result<Response, Failure> {
    let Some((file, size)) = folder.read(&name).await? else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let head = [
        (CONTENT_LENGTH, size.to_string()),
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    let content = Body::from_stream(ReaderStream::with_capacity(file, 64 << 10));
    Ok((head, content).into_response())
}

async fn delete_file(
    Extension(folder): Extension<Folder>,
    Extension(name): Extension<Name>,
) -> Result<StatusCode, Failure> {
    Ok(if folder.delete(&name).await? {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    })
}

/// The usage of the disk, and of the scopes that the client is charged to.
async fn status(
    State(store): State<Store>,
    Extension(folder): Extension<Folder>,
) -> Result<Json<Value>, Failure> {
    let usage = async |scope: &Scope| {
        let usage = store.quota.usage(scope).await?;
        Ok::<_, Failure>(json!({
            "scope": scope.as_str(),
            "limit": usage.limits.bytes,
            "used": usage.used.bytes,
            "held": usage.held.bytes,
        }))
    };
    let user = match room::user_of(&folder) {
        Some(user) => Some(usage(user).await?),
        None => None,
    };
    let everyone = usage(&Store::EVERYONE.into()).await?;
    let volume = store.volume.status();
    Ok(Json(json!({
        "volume": {
            "available": volume.available,
            "claimed": volume.claimed,
            "headroom": volume.headroom,
        },
        "user": user,
        "everyone": everyone,
    })))
}

/// An I/O error, kept for the guard to classify.
fn failed(error: io::Error) -> ErrorResponse {
    Failure::from(error).into()
}

fn bad_request(error: impl Display) -> Response {
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}

/// An existing name is a client error. The guard finds the storage faults in all other errors.
fn fail(headers: &HeaderMap, error: BoxError) -> ErrorResponse {
    match error.downcast::<NotAFile>() {
        Ok(error) => page::failed(headers, StatusCode::CONFLICT, &error).into(),
        Err(error) => Failure::from(error).into(),
    }
}
