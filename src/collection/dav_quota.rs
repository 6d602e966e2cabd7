//! Quotas as properties.

/// The two properties of RFC 4331, in bytes. One that is None is left out of PROPFIND's answer.
///
/// [`CollectionQuota::figures`](crate::dav::CollectionQuota::figures) finds them. Both count what is held for
/// uploads in flight as used: it is what the next request is measured by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct DavQuota {
    /// `quota-available-bytes`: how large a new file may be. The least of what is left in each of the
    /// collections that it would be in, and in other scopes, and of the room on the volume.
    ///
    /// 0 where a new file is refused for want of objects, however small. None where nothing limits it, or where
    /// it is not known now: a collection was not scanned yet, or the volume's probe hangs.
    pub available: Option<u64>,
    /// `quota-used-bytes`: what the nearest limited collection uses. None where there is none, or it was not
    /// scanned yet.
    ///
    /// Of the sets that RFC 4331, section 4, leaves to choose from, always this one, so that the figure does not
    /// jump when another limit comes closer.
    pub used: Option<u64>,
}
