use std::{error::Error, fmt, sync::Arc};

use http::Extensions;
use tower::BoxError;

#[cfg(any(feature = "anyhow1", feature = "eyre06"))]
pub(crate) use super::report::boxed;

/// The error behind a response, kept in the response's extensions for the guard to classify.
///
/// A handler that turns its errors into responses by itself inserts this. The client sees nothing of the error.
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_storage_guard::fault::Source;
///
/// fn failed(error: std::io::Error) -> Response<()> {
///     let mut response = Response::new(());
///     *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
///     response.extensions_mut().insert(Source::new(error));
///     response
/// }
/// # failed(std::io::ErrorKind::StorageFull.into());
/// ```
#[derive(Clone)]
pub struct Source(Arc<dyn Error + Send + Sync>);

impl Source {
    /// Wraps an error.
    ///
    /// With the feature `anyhow1` or `eyre06`, a report of that crate is kept with the error that it was made of.
    pub fn new(error: impl Into<BoxError> + 'static) -> Self {
        Self(boxed(error).into())
    }

    /// The error.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.0
    }
}

#[cfg(not(any(feature = "anyhow1", feature = "eyre06")))]
pub(crate) fn boxed(error: impl Into<BoxError>) -> BoxError {
    error.into()
}

/// Returns the error that a handler has left in its response.
pub(crate) fn error_behind(extensions: &Extensions) -> Option<&(dyn Error + 'static)> {
    let source = extensions.get::<Source>().map(Source::error);
    #[cfg(feature = "tonic")]
    let source = source.or_else(|| {
        let status = extensions.get::<tonic::Status>()?;
        Some(status as _)
    });
    source
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
