//! The sizes of files and folders.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::amount::Amount;

/// The depth of a measurement (RFC 4918, section 10.2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Depth {
    /// The resource itself: for a collection, without its members.
    Zero,
    /// With all its members.
    Infinity,
}

/// Tells a measurement that its result is not needed any more: all requests that have waited for it have ended.
///
/// ```
/// use tower_storage_guard::dav::Stop;
///
/// assert!(Stop::never().check().is_ok());
/// assert!(Stop::when(&|| true).check().is_err());
/// ```
#[derive(Clone, Copy)]
pub struct Stop<'a>(Option<&'a dyn Fn() -> bool>);

impl<'a> Stop<'a> {
    /// Never stops.
    pub const fn never() -> Self {
        Self(None)
    }

    /// Stops as soon as `is_stopped` returns true.
    pub const fn when(is_stopped: &'a dyn Fn() -> bool) -> Self {
        Self(Some(is_stopped))
    }

    /// Call it between two steps. It costs about as much as an atomic load.
    ///
    /// # Errors
    ///
    /// [`Interrupted`](io::ErrorKind::Interrupted), if the measurement has to stop.
    pub fn check(&self) -> io::Result<()> {
        match self.0 {
            Some(is_stopped) if is_stopped() => Err(io::ErrorKind::Interrupted.into()),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Stop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").finish_non_exhaustive()
    }
}

/// The storage of a WebDAV service: which resources exist, and their sizes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how large files are",
    label = "not a `Tree`",
    note = "use `Folder` for files in a directory, or implement `Tree`"
)]
pub trait Tree: Send + Sync + 'static {
    /// Measures what is at a path: bytes of files, and objects, which are files and collections. None if nothing
    /// exists there.
    ///
    /// May block. It is not called on the thread of a request. One that takes long should [check](Stop::check) now and then
    /// whether a request still waits for it.
    ///
    /// # Errors
    ///
    /// If the size cannot be determined. The request is then answered 503, or 400 if the error is
    /// [`InvalidInput`](io::ErrorKind::InvalidInput): what is at the path is not the tree's to measure.
    fn measure(&self, path: &Path, depth: Depth, stop: &Stop<'_>) -> io::Result<Option<Amount>>;
}

impl<T: Tree + ?Sized> Tree for Arc<T> {
    fn measure(&self, path: &Path, depth: Depth, stop: &Stop<'_>) -> io::Result<Option<Amount>> {
        T::measure(self, path, depth, stop)
    }
}

impl<T: Tree + ?Sized> Tree for Box<T> {
    fn measure(&self, path: &Path, depth: Depth, stop: &Stop<'_>) -> io::Result<Option<Amount>> {
        T::measure(self, path, depth, stop)
    }
}

/// A tree of files. A symbolic link in a folder is an object of its own, without content.
///
/// A service may follow links, and what they lead to is not in the tree. So a path that is a link, or leads through one, is
/// an [`InvalidInput`](io::ErrorKind::InvalidInput). If a service follows the links in a folder that is copied, what it copies
/// is not in the price: keep links out of trees that are served so.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes the tree under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What is at a path, without following any link below the root.
    fn find(&self, path: &Path) -> io::Result<Option<(PathBuf, fs::Metadata)>> {
        let mut at = self.root.clone();
        if path.as_os_str().is_empty() {
            let root = unless_gone(fs::metadata(&at))?;
            return Ok(root.map(|metadata| (at, metadata)));
        }
        let mut found = None;
        for name in path {
            at.push(name);
            found = unless_gone(fs::symlink_metadata(&at))?;
            match &found {
                None => break,
                Some(metadata) if metadata.is_symlink() => {
                    let error = format!("{} is a symbolic link", at.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
                }
                Some(_) => {}
            }
        }
        Ok(found.map(|metadata| (at, metadata)))
    }
}

impl Tree for Folder {
    fn measure(&self, path: &Path, depth: Depth, stop: &Stop<'_>) -> io::Result<Option<Amount>> {
        let Some((path, metadata)) = self.find(path)? else {
            return Ok(None);
        };
        let mut amount = Amount::new(size(&metadata), 1);
        let mut folders = Vec::new();
        if metadata.is_dir() && depth == Depth::Infinity {
            folders.push(path);
        }
        while let Some(folder) = folders.pop() {
            let Some(entries) = unless_gone(fs::read_dir(&folder))? else {
                continue;
            };
            for entry in entries {
                stop.check()?;
                let entry = entry?;
                // Removed meanwhile by another writer.
                let Some(metadata) = unless_gone(entry.metadata())? else {
                    continue;
                };
                amount = amount + Amount::new(size(&metadata), 1);
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        Ok(Some(amount))
    }
}

/// In bytes, without folders: their own size is not content.
fn size(metadata: &fs::Metadata) -> u64 {
    if metadata.is_file() {
        metadata.len()
    } else {
        0
    }
}

fn unless_gone<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        // A file instead of the expected folder: nothing is under it.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
