//! One server for one folder.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use fs4::{FileExt, TryLockError};

/// The right to write to a folder, until the last clone is dropped, or the process ends in any way.
#[derive(Clone, Debug)]
pub struct Claim {
    _folder: Arc<File>,
}

impl Claim {
    /// Claims a folder, and creates it if it is missing. Blocks.
    ///
    /// A server removes leftovers when it starts, and counts from then on what is there. A second one would remove what the
    /// first is writing, and neither would know what the other stores.
    ///
    /// # Errors
    ///
    /// When another process has claimed it, which is said in the message.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            let text = format!("{}: {error}", folder.display());
            io::Error::new(error.kind(), text)
        };
        fs::create_dir_all(folder).map_err(named)?;
        let opened = File::open(folder).map_err(named)?;
        match FileExt::try_lock(&opened) {
            Ok(()) => Ok(Self {
                _folder: Arc::new(opened),
            }),
            Err(TryLockError::WouldBlock) => Err(named(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another server uses this folder",
            ))),
            Err(TryLockError::Error(error)) => Err(named(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_server() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("made/if/missing");
        let claim = Claim::of(&folder).unwrap();
        let error = Claim::of(&folder).unwrap_err().to_string();
        assert!(
            error.ends_with(": another server uses this folder"),
            "{error}"
        );
        let clone = claim.clone();
        drop(claim);
        assert!(Claim::of(&folder).is_err());
        drop(clone);
        Claim::of(&folder).unwrap();
    }
}
