//! Quotas as properties.

/// The two properties of RFC 4331, in bytes. One that is None is left out of PROPFIND's answer.
///
/// [`CollectionQuota::figures`](crate::dav::CollectionQuota::figures) computes them. Both count what is held for
/// uploads in flight as used, because admission counts it too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct DavQuota {
    /// `quota-available-bytes`: how large a new file may be. The minimum of what remains in each collection that the
    /// file would be in, in other scopes, and on the volume.
    ///
    /// 0 if a new file is refused because objects ran out, however small it is. None if nothing limits it, or if the
    /// value is unknown: a collection was not scanned yet, or the volume's probe hangs.
    pub available: Option<u64>,
    /// `quota-used-bytes`: what the nearest limited collection uses. None if there is no such collection, or if it
    /// was not scanned yet.
    ///
    /// RFC 4331, section 4, leaves a choice of sets. This is always the nearest collection, so that the figure does
    /// not jump when another limit comes closer.
    pub used: Option<u64>,
}
