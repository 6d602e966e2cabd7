//! What PROPFIND shows of quotas.

use std::path::Path;

use super::CollectionQuota;
use crate::{amount::Amount, quota::Usage, scope::Scopes, volume::Volume};

/// The two properties of RFC 4331, in bytes. One that is None is left out of PROPFIND's answer.
///
/// [`CollectionQuota::dav_quota`](crate::dav::CollectionQuota::dav_quota) computes them. Both count amounts that are
/// held for uploads in flight as used, because admission counts them too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct DavQuota {
    /// `quota-available-bytes`: how large a new file may be. The minimum of what remains in each collection that the
    /// file would be in, in other scopes, and on the volume.
    ///
    /// 0 if a new file is refused because objects ran out, however small it is. None if nothing limits it, or if the
    /// value is unknown: a collection was not scanned yet, or the volume's probe hangs.
    pub available: Option<u64>,
    /// `quota-used-bytes`: the usage of the nearest limited collection. None if there is no such collection, or if it
    /// was not scanned yet.
    ///
    /// RFC 4331, section 4, leaves a choice of sets. This is always the nearest collection, so that the figure does
    /// not jump when another limit comes closer.
    pub used: Option<u64>,
}

impl CollectionQuota {
    /// Computes the properties `quota-available-bytes` and `quota-used-bytes` (RFC 4331) of the resource at `path`, as
    /// they are enforced now.
    ///
    /// A PUT of a new file of `available` bytes is admitted, and one of a byte more is refused. `volume` is the one
    /// that the layer guards, if any. See [`DavQuota`].
    ///
    /// ```
    /// use tower_storage_guard::{
    ///     Volume,
    ///     dav::{CollectionQuota, Folder},
    ///     quota::Limits,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let root = tempfile::tempdir()?;
    /// # let root = root.path();
    /// std::fs::write(root.join("a"), [7; 30])?;
    /// let collections = CollectionQuota::builder(Folder::new(root)).limit("", Limits::bytes(100))?.build();
    /// collections.rescan().await?;
    ///
    /// let volume = Volume::open(root)?;
    /// let figures = collections.dav_quota(&volume, "photos");
    /// assert_eq!((figures.available, figures.used), (Some(70), Some(30)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn dav_quota<'a>(
        &self,
        volume: impl Into<Option<&'a Volume>>,
        path: impl AsRef<Path>,
    ) -> DavQuota {
        self.dav_quota_with(volume, path, Scopes::NONE)
    }

    /// Computes the same as [`Self::dav_quota`] for a PUT that is charged to `others` as well, such as its user.
    pub fn dav_quota_with<'a>(
        &self,
        volume: impl Into<Option<&'a Volume>>,
        path: impl AsRef<Path>,
        others: impl Into<Scopes>,
    ) -> DavQuota {
        let (volume, path, others) = (volume.into(), path.as_ref(), others.into());
        // Under the lock, no request is admitted between one scope and the next.
        let state = self.shared().lock();
        let collections = state.scopes(path);
        if !matches!(state.are_known(&state.places(&collections)), Ok(true)) {
            return DavQuota::default();
        }
        let nearest = collections.iter().next().map(|scope| {
            let Usage { used, held, .. } = self.quota().usage(scope);
            (used + held).bytes
        });
        let mut left = Some(Amount::new(u64::MAX, u64::MAX));
        for scope in collections.iter().chain(&others) {
            let usage = self.quota().usage(scope);
            let (limits, Usage { used, held, .. }) = (usage.in_force(), usage);
            let most = Amount::new(
                limits.bytes.unwrap_or(u64::MAX),
                limits.objects.unwrap_or(u64::MAX),
            );
            left = left.map(|left| least(left, most - (used + held)));
        }
        drop(state);
        if let Some(volume) = volume {
            left = match (left, volume.left()) {
                (Some(left), Some(room)) => Some(least(left, room)),
                _ => None,
            };
        }
        DavQuota {
            available: left.and_then(|left| match left {
                // Whatever is new is an object.
                Amount { objects: 0, .. } => Some(0),
                Amount { bytes, .. } => (bytes < COUNTABLE).then_some(bytes),
            }),
            used: nearest,
        }
    }
}

/// More than any disk has: what is left if nothing is limited.
const COUNTABLE: u64 = 1 << 63;

fn least(a: Amount, b: Amount) -> Amount {
    Amount::new(a.bytes.min(b.bytes), a.objects.min(b.objects))
}
