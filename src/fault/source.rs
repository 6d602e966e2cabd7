use std::{error::Error, fmt, sync::Arc};

use http::Extensions;
use tower::BoxError;

/// The error behind an answer, in the answer's extensions, for the guard to classify.
///
/// A handler that turns its errors into answers by itself keeps them with this. Nothing of the error is
/// sent.
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
    /// Keeps an error.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into().into())
    }

    /// The error.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.0
    }
}

/// The error that a handler has left in its answer.
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
