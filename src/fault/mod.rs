//! Storage failures, classified by cause.

/// What ran out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Resource {
    /// Bytes of space.
    Bytes,
    /// Objects: inodes, files, entries.
    Objects,
}

/// Why there is no room. The four causes of HTTP 507.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
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

/// A storage failure: its cause, and the resource that ran out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Fault {
    /// Why there is no room.
    pub cause: Cause,
    /// What ran out.
    pub resource: Resource,
}
