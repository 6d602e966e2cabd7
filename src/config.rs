//! Invalid settings.

use http::StatusCode;

/// An invalid setting.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A refusal is a client error or a server error, so its status is 4xx or 5xx.
    #[error("a refusal cannot have the status {0}: it has to be 4xx or 5xx")]
    Status(StatusCode),
    /// The base of problem types has to be an absolute URI.
    #[error("problem types need an absolute URI with a host, not {0:?}")]
    ProblemTypes(String),
    /// A call is named `package.Service` or `package.Service/Method`.
    #[error(
        "{0:?} names no call: it has to be like package.Service/Method, or package.Service for all of them"
    )]
    Call(String),
    /// A collection is a path in its tree, in UTF-8.
    #[error(
        "{0:?} names no collection: it has to be a path in UTF-8 that does not lead out of the tree"
    )]
    Collection(std::path::PathBuf),
}
