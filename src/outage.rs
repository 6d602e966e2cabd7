//! The policy for outages of the probe or the quota source.

/// The policy for requests during an outage: a probe hangs or fails, or a quota source does not answer. Never 507,
/// because nothing is known to be full.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outage {
    /// They are answered 503 Service Unavailable.
    #[default]
    Refuse,
    /// They are admitted. If the storage is full, their writes fail. Scopes may pass their limits by the content that
    /// is stored meanwhile. It is [charged](crate::quota::QuotaSource::charge) when the requests succeed, or, if a
    /// store is away, as soon as it is back.
    Admit,
}
