//! Failures at run time, on stderr.

use std::{
    error::Error,
    fmt::Write as _,
    io::{self, Write as _},
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Extensions, Request, Response, StatusCode};
use tower::{Layer, Service};
use tower_storage_guard::{fault::Source, refusal::Refusal};

/// Logs each answer that says that the server has failed, in a line with the request and the error behind it.
///
/// Clients are not told the error, so this is the only place where it is found. A refusal for want of room is no failure, unless the
/// disk was full while it was written to. To be layered outside of the guard.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFailures {
    find: Option<FindError>,
}

/// Finds the error behind an answer.
pub type FindError = fn(&Extensions) -> Option<&(dyn Error + 'static)>;

impl LogFailures {
    /// The same, with errors that are found in this way.
    pub fn with_error(find: FindError) -> Self {
        Self { find: Some(find) }
    }

    /// The line, if it is a failure.
    fn line<B>(&self, response: &Response<B>) -> Option<String> {
        let extensions = response.extensions();
        let refusal = extensions.get::<Refusal>();
        let error = refusal
            .and_then(|refusal| refusal.internal()?.error())
            .or_else(|| Some(extensions.get::<Source>()?.error()))
            .or_else(|| self.find.and_then(|find| find(extensions)));
        let outcome = Outcome::of(response);
        let is_failure = match outcome {
            Outcome::Fine => false,
            // A write has failed that the guard had found room for.
            Outcome::Full => {
                error.is_some() && refusal.is_some_and(|refusal| refusal.reason() == "disk_full")
            }
            Outcome::Failed => true,
        };
        is_failure.then(|| {
            let mut line = match response.headers().get("grpc-status") {
                Some(code) => format!("grpc-status {}", code.to_str().unwrap_or("?")),
                None => response.status().to_string(),
            };
            if let Some(refusal) = refusal {
                let _ = write!(line, ": {}", refusal.reason());
            }
            if let Some(error) = error {
                let _ = write!(line, ": {}", chain(error));
            }
            line
        })
    }
}

/// An error and its causes, in a line. Some errors repeat the text of their cause, which is in the line once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !line.ends_with(&text) {
            let _ = write!(line, ": {text}");
        }
        source = error.source();
    }
    line.replace('\n', " ")
}

enum Outcome {
    Fine,
    /// There is no room.
    Full,
    Failed,
}

impl Outcome {
    fn of<B>(response: &Response<B>) -> Self {
        let code = response.headers().get("grpc-status");
        match (response.status(), code.map(|code| code.as_bytes())) {
            (StatusCode::INSUFFICIENT_STORAGE, _) | (_, Some(b"8")) => Self::Full,
            // INTERNAL, UNAVAILABLE, DATA_LOSS. A client that breaks off is UNKNOWN.
            (status, code)
                if status.is_server_error() || matches!(code, Some(b"13" | b"14" | b"15")) =>
            {
                Self::Failed
            }
            _ => Self::Fine,
        }
    }
}

impl<S> Layer<S> for LogFailures {
    type Service = Logged<S>;

    fn layer(&self, inner: S) -> Logged<S> {
        Logged { inner, log: *self }
    }
}

/// A service whose failures are logged.
#[derive(Clone, Debug)]
pub struct Logged<S> {
    inner: S,
    log: LogFailures,
}

impl<S, A, B> Service<Request<A>> for Logged<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;
    type Response = Response<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (method, uri, log) = (request.method().clone(), request.uri().clone(), self.log);
        let answered = self.inner.call(request);
        let logged = answered.map(move |answered| {
            if let Ok(response) = &answered
                && let Some(line) = log.line(response)
            {
                // Not `eprintln!`, which panics if stderr is closed.
                let _ = writeln!(io::stderr(), "error: {method} {}: {line}", uri.path());
            }
            answered
        });
        logged.boxed()
    }
}
