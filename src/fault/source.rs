use std::{any::Any, error::Error, fmt, io, sync::Arc};

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

    /// Returns the error.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.0
    }
}

#[cfg(not(any(feature = "anyhow1", feature = "eyre06")))]
pub(crate) fn boxed(error: impl Into<BoxError>) -> BoxError {
    error.into()
}

/// Returns the error that a handler has left in its response.
pub(crate) fn error_behind(extensions: &Extensions) -> Option<Arc<dyn Error + Send + Sync>> {
    let source = extensions.get::<Source>().map(|source| source.0.clone());
    #[cfg(feature = "tonic")]
    let source = source.or_else(|| {
        let status = extensions.get::<tonic::Status>()?;
        Some(Arc::new(status.clone()) as _)
    });
    source
}

/// Keeps a service's error, which may be of any type. Of a type that is not known here, the texts are kept; `opened` returns the error
/// in such a value.
pub(crate) fn kept<E: 'static>(
    value: E,
    opened: impl FnOnce(&E) -> Option<&(dyn Error + 'static)>,
) -> Option<Arc<dyn Error + Send + Sync>> {
    let mut value = Some(value);
    let any: &mut dyn Any = &mut value;
    if let Some(Some(error)) = any.downcast_mut::<Option<BoxError>>().map(Option::take) {
        return Some(error.into());
    }
    if let Some(Some(error)) = any.downcast_mut::<Option<io::Error>>().map(Option::take) {
        return Some(Arc::new(error));
    }
    let error = opened(value.as_ref()?)?;
    Some(Arc::new(Texts::of(error, 64)))
}

/// The texts of an error and of its sources.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Texts {
    text: String,
    source: Option<Box<Texts>>,
}

impl Texts {
    /// Of `depth` errors at most: a chain may be cyclic.
    fn of(error: &(dyn Error + 'static), depth: usize) -> Self {
        let source = error.source().filter(|_| depth > 0);
        Self {
            text: error.to_string(),
            source: source.map(|source| Box::new(Self::of(source, depth - 1))),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
