//! One server for one folder.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use fs4::{FileExt, TryLockError};

use crate::created::Created;

/// A file that a start creates and removes again. A killed one leaves it behind, and the next removes it.
const TRIAL: &str = ".upload-trial";

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
    /// When another process has claimed it, or this process may not write there, which is said in the message.
    pub fn of(folder: &Path, created: &mut Created) -> io::Result<Self> {
        let named = |error| named(folder, &error);
        created
            .folder(folder)
            .map_err(|error| match folder.exists() {
                true => named(io::ErrorKind::NotADirectory.into()),
                false => named(error),
            })?;
        let opened = File::open(folder).map_err(named)?;
        match FileExt::try_lock(&opened) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(named(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another server uses this folder",
                )));
            }
            Err(TryLockError::Error(error)) => return Err(named(error)),
        }
        is_writable(folder)?;
        Ok(Self {
            _folder: Arc::new(opened),
        })
    }
}

/// Creates a file in a folder and removes it, because permissions do not tell all: the filesystem may be read-only, or on a server
/// with rules of its own. A full disk is no error, because files can be read and deleted there. Blocks.
///
/// # Errors
///
/// When it cannot be created, with the name of the folder.
pub fn is_writable(folder: &Path) -> io::Result<()> {
    let trial = folder.join(TRIAL);
    match File::create(&trial).and_then(|_| fs::remove_file(&trial)) {
        Err(error) if !is_full(&error) => {
            let text = format!("cannot write there: {error}");
            Err(named(folder, &io::Error::new(error.kind(), text)))
        }
        _ => Ok(()),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The same error, with the name of what it is about.
pub fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_server() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("made/if/missing");
        let mut created = Created::default();
        let claim = Claim::of(&folder, &mut created).unwrap();
        let error = Claim::of(&folder, &mut created).unwrap_err().to_string();
        assert!(
            error.ends_with(": another server uses this folder"),
            "{error}"
        );
        let clone = claim.clone();
        drop(claim);
        assert!(Claim::of(&folder, &mut created).is_err());
        drop(clone);
        Claim::of(&folder, &mut created).unwrap();
        assert!(folder.read_dir().unwrap().next().is_none());
        drop(created);
        assert!(root.path().read_dir().unwrap().next().is_none());
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Claim::of(file.path(), &mut Created::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
