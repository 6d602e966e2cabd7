//! The cause of a storage failure, and the resource.

use std::fmt;

use crate::amount::Amount;

/// A storage failure: its cause, and the resource that ran out.
///
/// It is also an error, so that a handler can return it with `?`. The classifier returns it unchanged.
///
/// ```
/// use tower_storage_guard::fault::{self, Cause, Fault, Resource};
///
/// fn add(entries: u64) -> Result<(), Fault> {
///     match entries {
///         1000.. => Err(Fault::new(Cause::CollectionFull, Resource::Objects)),
///         _ => Ok(()),
///     }
/// }
///
/// let fault = add(1000).unwrap_err();
/// assert_eq!(fault.to_string(), "collection limit reached: no objects left");
/// assert_eq!(fault::classify(&fault), Some(fault));
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[error("{cause}: no {resource} left")]
#[non_exhaustive]
pub struct Fault {
    /// The cause.
    pub cause: Cause,
    /// The resource that ran out.
    pub resource: Resource,
}

impl Fault {
    /// A full disk.
    pub(crate) const DISK_FULL: Self = Self::new(Cause::DiskFull, Resource::Bytes);

    /// Makes a fault with this cause and resource.
    pub const fn new(cause: Cause, resource: Resource) -> Self {
        Self { cause, resource }
    }
}

/// The cause of a storage failure. The four causes of HTTP 507.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// The server's disk is full.
    DiskFull,
    /// The quota of a user, tenant or project is used up.
    QuotaExceeded,
    /// A database or its tablespace is full.
    DatabaseFull,
    /// A collection (directory, bucket) has reached its limit.
    CollectionFull,
}

impl Cause {
    /// Returns the name on the wire and in metrics. It never changes.
    ///
    /// ```
    /// use tower_storage_guard::fault::Cause;
    ///
    /// assert_eq!(Cause::DiskFull.reason(), "disk_full");
    /// assert_eq!(Cause::QuotaExceeded.reason(), "quota_exceeded");
    /// assert_eq!(Cause::DatabaseFull.reason(), "database_full");
    /// assert_eq!(Cause::CollectionFull.reason(), "collection_limit_reached");
    /// ```
    pub const fn reason(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::QuotaExceeded => "quota_exceeded",
            Self::DatabaseFull => "database_full",
            Self::CollectionFull => "collection_limit_reached",
        }
    }
}

/// The cause as text, for logs.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskFull => "disk full",
            Self::QuotaExceeded => "quota exceeded",
            Self::DatabaseFull => "database full",
            Self::CollectionFull => "collection limit reached",
        })
    }
}

/// The resource that ran out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Resource {
    /// Bytes of space.
    Bytes,
    /// Objects: inodes, files, entries.
    Objects,
}

impl Resource {
    /// How much of it an amount has.
    pub(crate) const fn of(self, amount: Amount) -> u64 {
        match self {
            Self::Bytes => amount.bytes,
            Self::Objects => amount.objects,
        }
    }

    /// Returns the name on the wire and in metrics, which is also the unit of its figures.
    ///
    /// ```
    /// use tower_storage_guard::fault::Resource;
    ///
    /// assert_eq!(Resource::Bytes.as_str(), "bytes");
    /// assert_eq!(Resource::Objects.as_str(), "objects");
    /// ```
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Objects => "objects",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_well_in_a_log() {
        for (cause, resource, text) in [
            (Cause::DiskFull, Resource::Bytes, "disk full: no bytes left"),
            (
                Cause::QuotaExceeded,
                Resource::Objects,
                "quota exceeded: no objects left",
            ),
            (
                Cause::DatabaseFull,
                Resource::Bytes,
                "database full: no bytes left",
            ),
            (
                Cause::CollectionFull,
                Resource::Objects,
                "collection limit reached: no objects left",
            ),
        ] {
            assert_eq!(Fault::new(cause, resource).to_string(), text);
        }
    }
}
