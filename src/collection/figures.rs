//! The quota properties that PROPFIND returns.

use std::path::Path;

use super::{CollectionQuota, DavQuota};
use crate::{amount::Amount, quota::Usage, scope::Scopes, volume::Volume};

impl CollectionQuota {
    /// Returns the properties `quota-available-bytes` and `quota-used-bytes` of the resource at `path` (RFC 4331), as
    /// they are enforced now.
    ///
    /// A PUT of a new file of `available` bytes is admitted, and one of one byte more is refused. `volume` is the one
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
    /// let collections = CollectionQuota::new(Folder::new(root)).limit("", Limits::bytes(100))?;
    /// collections.rescan().await?;
    ///
    /// let volume = Volume::open(root)?;
    /// let figures = collections.figures(&volume, "photos");
    /// assert_eq!((figures.available, figures.used), (Some(70), Some(30)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn figures<'a>(
        &self,
        volume: impl Into<Option<&'a Volume>>,
        path: impl AsRef<Path>,
    ) -> DavQuota {
        self.figures_with(volume, path, Scopes::NONE)
    }

    /// Like [`Self::figures`], if the PUT is also charged to `others`, such as a user's scope.
    pub fn figures_with<'a>(
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
            let Usage { limits, used, held } = self.quota().usage(scope);
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
                // A new resource counts as an object.
                Amount { objects: 0, .. } => Some(0),
                Amount { bytes, .. } => (bytes < COUNTABLE).then_some(bytes),
            }),
            used: nearest,
        }
    }
}

/// Larger than any real limit: the remaining room where nothing is limited.
const COUNTABLE: u64 = 1 << 63;

fn least(a: Amount, b: Amount) -> Amount {
    Amount::new(a.bytes.min(b.bytes), a.objects.min(b.objects))
}
